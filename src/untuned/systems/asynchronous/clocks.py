"""How long simulated workers take for a gradient. Every duration follows from the seed, the worker and its number."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import numpy as np


class Clock(Protocol):
    """Says how long the gradient with that number (from 0) takes that worker, in virtual seconds, above 0."""

    def duration(self, worker: int, number: int) -> float: ...


@dataclasses.dataclass(frozen=True)
class Constant:
    """Always the same time: workers take turns.

    >>> Constant(2.0).duration(worker=0, number=5)
    2.0
    """

    seconds: float = 1.0

    def __post_init__(self) -> None:
        _positive("Constant: seconds", self.seconds)

    def duration(self, worker: int, number: int) -> float:
        return self.seconds


@dataclasses.dataclass(frozen=True)
class Exponential:
    """Exponentially distributed with that mean, independent of each other: no memory, at times very long."""

    mean: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _positive("Exponential: mean", self.mean)

    def duration(self, worker: int, number: int) -> float:
        return self.mean * float(_random(self.seed, worker, number).exponential())


@dataclasses.dataclass(frozen=True)
class Jitter:
    """Uniform between two times."""

    low: float = 0.8
    high: float = 1.2
    seed: int = 0

    def __post_init__(self) -> None:
        _positive("Jitter: low", self.low)
        if self.high < self.low:
            raise ValueError(f"Jitter: high must not lie below low, {self.low}, but is {self.high}.")

    def duration(self, worker: int, number: int) -> float:
        return float(_random(self.seed, worker, number).uniform(self.low, self.high))


@dataclasses.dataclass(frozen=True)
class Slow:
    """Another clock, `factor` times slower for some workers.

    >>> Slow(Constant(1.0), workers={3}, factor=10.0).duration(worker=3, number=0)
    10.0
    """

    clock: Clock
    workers: Collection[int]
    factor: float = 10.0

    def __post_init__(self) -> None:
        _positive("Slow: factor", self.factor)

    def duration(self, worker: int, number: int) -> float:
        return self.clock.duration(worker, number) * (self.factor if worker in self.workers else 1.0)


@dataclasses.dataclass(frozen=True)
class Recorded:
    """Durations that were measured, worker by worker; each list begins again when it ends.

    >>> Recorded({0: [1.0, 2.0], 1: [5.0]}).duration(worker=0, number=3)
    2.0
    """

    durations: Mapping[int, Sequence[float]]

    def __post_init__(self) -> None:
        for worker, durations in self.durations.items():
            if not durations:
                raise ValueError(f"Recorded: there is no duration of worker {worker}.")
            for value in durations:
                _positive(f"Recorded: a duration of worker {worker}", value)

    def duration(self, worker: int, number: int) -> float:
        if worker not in self.durations:
            raise ValueError(f"Recorded: there is no duration of worker {worker}.")
        return self.durations[worker][number % len(self.durations[worker])]


def _random(seed: int, worker: int, number: int) -> np.random.Generator:
    return np.random.default_rng((seed, worker, number))


def _positive(name: str, value: float) -> None:
    if not 0.0 < value < float("inf"):
        raise ValueError(f"{name} must be a finite number above 0, not {value!r}.")

"""Shapes of schedules by name, each a pure function of (step, steps), and a torch scheduler that follows one."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from untuned.parts.declare import inside, is_real


def constant(step: int, steps: int | None = None) -> float:
    """1."""
    return 1.0


def linear(step: int, steps: int) -> float:
    """(N - s) / N, from 1 to 1 / N: arXiv 2310.07831."""
    return (steps - step) / steps


def polynomial(step: int, steps: int, power: float = 2.0) -> float:
    """((N - s) / N)^power."""
    return ((steps - step) / steps) ** power


def cosine(step: int, steps: int, final: float = 0.0) -> float:
    """Half a wave from 1 to `final`: arXiv 1608.03983, without restarts."""
    return final + (1 - final) * (1 + math.cos(math.pi * step / steps)) / 2


def wsd(step: int, steps: int, decay: float = 0.2) -> float:
    """1, then linear to zero over the last part `decay` of the run (warm-up, stable, decay)."""
    return power_cooldown(step, steps, power=1.0, decay=decay, end=1.0)


def power_cooldown(step: int, steps: int, power: float = 1.2, decay: float = 0.5, end: float = 1.02) -> float:
    """1, then c (end - s / N)^power, which meets 1 where the last part `decay` of the run begins.

    `end`, in lengths of the run, lies a little beyond its last step: the last multipliers are small but not zero.
    """
    return min(1.0, max(0.0, (end - step / steps) / (end - 1 + decay)) ** power)


def stepwise(step: int, steps: int, at: tuple[float, ...] = (0.5, 0.75), factor: float = 0.1) -> float:
    """Multiplied by `factor` after each part `at` of the run."""
    return factor ** sum(step >= part * steps for part in at)


def inverse_sqrt(step: int, steps: int | None = None, alpha: float = 1.0) -> float:
    """sqrt(alpha / (s + alpha)), needs no horizon; with alpha = 1 the 1 / sqrt(t) of theory, t = 1, 2, ..."""
    return math.sqrt(alpha / (step + alpha))


SHAPES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "linear": linear,
    "polynomial": polynomial,
    "cosine": cosine,
    "wsd": wsd,
    "power_cooldown": power_cooldown,
    "step": stepwise,
    "inverse_sqrt": inverse_sqrt,
}
ENDLESS = {"constant", "inverse_sqrt"}  # need no number of steps
WITHIN = {
    "power": "[0, inf)",
    "final": "[0, inf)",
    "decay": "(0, 1]",
    "end": "[1, inf)",
    "at": "[0, inf)",
    "factor": "[0, inf)",
    "alpha": "(0, inf)",
}  # the intervals of the options, with which multipliers are finite and not negative


def _check_option(shape: str, name: str, value: Any) -> None:
    values, wanted = ((value,), "a number") if name != "at" else (value, "numbers")
    if not isinstance(values, tuple | list) or not all(is_real(v) and inside(v, WITHIN[name]) for v in values):
        raise ValueError(f"Schedule: {name} of {shape!r} must be {wanted} in {WITHIN[name]}, not {value!r}.")


@dataclass(frozen=True)
class Multiplier:
    """The multiplier of lr as a function of the step: a warm-up 1/W, ..., W/W, then the shape over what is left."""

    shape: str
    steps: int | None
    warmup: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        left = None if self.steps is None else self.steps - self.warmup
        return SHAPES[self.shape](step - self.warmup, left, **self.options)


class Ending(LambdaLR):
    """A schedule of so many steps: the lr after the last is that of the time N, and a further step is refused."""

    steps: int | None

    def step(self, epoch: int | None = None) -> None:
        following = self.last_epoch + 1 if epoch is None else epoch
        if self.steps is not None and following > self.steps:
            has = f"{self.steps} step" + "s" * (self.steps != 1)
            raise ValueError(f"{type(self).__name__}: the schedule has {has} and ends here: give it more.")
        super().step(epoch)


class Schedule(Ending):
    """Follow one of the shapes in `SHAPES`, behind a linear warm-up of `warmup` of the `steps`.

    `options` are those of the shape, as `decay=0.1` of "wsd". "constant" and "inverse_sqrt" need no `steps`. To step
    after every optimizer step; a step past the end is a ValueError, with nothing changed. It can be pickled, and its
    `state_dict()` holds all that it needs.

    >>> import torch, untuned
    >>> from untuned.schedules import Schedule
    >>> optimizer = untuned.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    >>> schedule = Schedule(optimizer, "wsd", steps=8, warmup=2, decay=0.5)
    >>> used = []
    >>> for _ in range(8):
    ...     used.append(round(optimizer.param_groups[0]["lr"], 3))
    ...     optimizer.step()
    ...     schedule.step()
    >>> used
    [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.667, 0.333]
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        shape: str,
        steps: int | None = None,
        warmup: int = 0,
        last_epoch: int = -1,
        **options: Any,
    ) -> None:
        if not isinstance(shape, str) or shape not in SHAPES:
            raise ValueError(f"Schedule: no shape is called {shape!r}; there are {', '.join(SHAPES)}.")
        whole = [value for value in (warmup, steps) if isinstance(value, int) and not isinstance(value, bool)]
        if len(whole) < 1 + (steps is not None) or warmup < 0 or (steps is not None and steps <= warmup):
            raise ValueError(f"Schedule: needs whole numbers 0 <= warmup < steps, not {warmup!r} and {steps!r}.")
        if steps is None and shape not in ENDLESS:
            raise ValueError(f"Schedule: {shape!r} ends, so it needs steps=, the number of optimizer steps of the run.")
        known = list(inspect.signature(SHAPES[shape]).parameters)[2:]
        if unknown := sorted(options.keys() - {*known}):
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise TypeError(f"Schedule: {shape!r} has no option {unknown[0]!r}; {has}.")
        for name, value in options.items():
            _check_option(shape, name, value)
        self.steps = steps
        super().__init__(optimizer, Multiplier(shape, steps, warmup, options), last_epoch)


def sampled(shape: str, steps: int, **options: Any) -> list[float]:
    """The multipliers of a shape for each of so many steps."""
    return list(map(partial(SHAPES[shape], steps=steps, **options), range(steps)))

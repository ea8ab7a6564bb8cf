"""What the rows of the study of OrMo say: losses at the learning rates that others chose, and curves over time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from untuned.study.papers.frame import Row, Rows
from untuned.study.papers.ormo_runs import LRS, METHODS, START
from untuned.study.stats import Floats

SETTINGS = [(8, False), (8, True), (16, False), (16, True)]  # workers, whether every eighth is slow
CHANCE = math.log(10)  # loss of a network that says nothing, which a diverged run counts with


def named(workers: int, slow: bool) -> str:
    return f"{workers} workers, {'every eighth ten times slower' if slow else 'alike'}"


# ---------------------------------------------------------------------- the parabola


def losses(rows: Rows, method: str, workers: int, slow: bool) -> Floats:
    """Final losses, shape (seeds, learning rates); inf where a run diverged."""
    mine = [r for r in rows.get("toy", ()) if (r["method"], r["workers"], r["slow"]) == (method, workers, slow)]
    seeds = sorted({_number(r["seed"]) for r in mine})
    found = np.full((len(seeds), len(LRS)), math.inf)
    for r in mine:
        if r["loss"] is not None:
            found[seeds.index(_number(r["seed"])), LRS.index(_number(r["lr"]))] = _number(r["loss"])
    return found


def chosen(found: Floats) -> list[int]:
    """For each seed the learning rate, by its place, with the least mean loss over the other seeds."""
    one = len(found) == 1
    return [int(np.argmin(found.mean(0) if one else np.delete(found, i, 0).mean(0))) for i in range(len(found))]


def at_their_best(rows: Rows, method: str, workers: int, slow: bool) -> Floats:
    """The loss of each seed at the learning rate that the other seeds choose."""
    found = losses(rows, method, workers, slow)
    return found[np.arange(len(found)), chosen(found)]


def largest_stable(rows: Rows, method: str, workers: int, slow: bool) -> float:
    """The largest learning rate at which all seeds end below where they started."""
    stable = np.all(losses(rows, method, workers, slow) < START, axis=0).tolist()
    return max((lr for lr, good in zip(LRS, stable, strict=True) if good), default=math.nan)


# ---------------------------------------------------------------------- networks

Curve = dict[int, list[Row]]  # seed: the rows of its looks, in order


def curves(rows: Rows, task: str, method: str, effective: float | None = None) -> Curve:
    """The runs of a method on a task at that learning rate, or at all."""
    found: Curve = {}
    for r in rows.get("network", ()):
        if (r["task"], r["method"]) == (task, method) and effective in (None, r["effective"]):
            found.setdefault(int(_number(r["seed"])), []).append(r)
    return found


def ends(rows: Rows, task: str, method: str, seed: int) -> dict[float, float]:
    """By learning rate the validation loss that a seed ends with; inf where it diverged."""
    found: dict[float, float] = {}
    for r in curves(rows, task, method).get(seed, ()):
        found[_number(r["effective"])] = math.inf if r["val_loss"] is None else _number(r["val_loss"])
    return found  # of each run the last look stays


def tuned(rows: Rows, task: str, method: str) -> float | None:
    """The learning rate with the least validation loss of seed 0, which nothing else is said about."""
    found = ends(rows, task, method, 0)
    return min(found, key=found.__getitem__) if found else None


def fresh(rows: Rows, task: str, method: str) -> Curve:
    """The runs of the other seeds at the learning rate tuned on seed 0."""
    effective = tuned(rows, task, method)
    return {} if effective is None else {s: c for s, c in curves(rows, task, method, effective).items() if s > 0}


def value(row: Row, key: str) -> float:
    """A number of a look; of a diverged run that of chance."""
    chance = 0.1 if key == "accuracy" else CHANCE
    return chance if row[key] is None else _number(row[key])


def finals(rows: Rows, task: str, method: str, key: str = "val_loss") -> dict[int, float]:
    return {seed: value(curve[-1], key) for seed, curve in fresh(rows, task, method).items()}


def loss_at(curve: Sequence[Row], seconds: float) -> float:
    """Validation loss at a time, on straight lines between looks."""
    times = [_number(r["seconds"]) for r in curve if r["seconds"] is not None]
    return float(np.interp(seconds, times, [value(r, "val_loss") for r in curve if r["seconds"] is not None]))


def ratios(one: Mapping[int, float], other: Mapping[int, float]) -> Floats:
    """One over the other, seed by seed."""
    return np.array([one[seed] / other[seed] for seed in sorted(one.keys() & other.keys())])


def in_the_same_time(rows: Rows, task: str) -> Floats:
    """OrMo's final loss over that of synchronous SGD with momentum when OrMo ended, seed by seed."""
    ordered, rounds = fresh(rows, task, "ormo"), fresh(rows, task, "ssgdm")
    return np.array(
        [
            value(ordered[seed][-1], "val_loss") / loss_at(rounds[seed], _number(ordered[seed][-1]["seconds"]))
            for seed in sorted(ordered.keys() & rounds.keys())
            if ordered[seed][-1]["seconds"] is not None
        ]
    )


def methods_of(rows: Rows, task: str) -> list[str]:
    found = {r["method"] for r in rows.get("network", ()) if r["task"] == task}
    return [method for method in METHODS if method in found]


def _number(value: object) -> float:
    assert isinstance(value, int | float)
    return value

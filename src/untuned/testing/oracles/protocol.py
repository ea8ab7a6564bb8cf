"""What the oracles share: their types, and the lr and decay of each tensor at each step."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Problem = Callable[[list[Array], int], tuple[float, list[Array]]]
Result = tuple[list[list[Array]], dict[str, list[Any]]]
Schedule = Sequence[float] | None
Scope = Literal["model", "group", "tensor"]


class Group(TypedDict, total=False):
    indices: list[int]
    lr: float
    weight_decay: float
    schedule: Schedule


Groups = Sequence[Group] | None


def linear_decay(steps: int, warmup: int = 0) -> list[float]:
    """Multipliers 1, ..., 1/N of N = ``steps`` steps (arXiv 2310.07831), after ``warmup`` rising steps 1/W, ..., 1."""
    rising = [(s + 1) / warmup for s in range(warmup)]
    return rising + [(steps - s) / (steps - warmup) for s in range(warmup, steps)]


def _start(
    x0: list[Array], steps: int, lr: float, weight_decay: float, groups: Groups, schedule: Schedule
) -> tuple[list[Array], list[list[float]], list[float]]:
    """-> copies of x0, lr per step and tensor (steps count from 1: entry 0 is empty), weight decay per tensor."""
    lrs, decay, schedules = [lr for _ in x0], [weight_decay for _ in x0], [schedule for _ in x0]
    for group in groups or []:
        for i in group.get("indices", []):
            lrs[i] = group.get("lr", lr)
            decay[i] = group.get("weight_decay", weight_decay)
            schedules[i] = group.get("schedule", schedule)
    rates = [[]] + [[lrs[i] * _multiplier(schedules[i], k) for i in range(len(x0))] for k in range(1, steps + 1)]
    return [np.array(a, dtype=np.float64) for a in x0], rates, decay


def _multiplier(schedule: Schedule, k: int) -> float:
    return 1.0 if schedule is None else schedule[k - 1]


def _moving(rates: list[float]) -> list[tuple[int, float]]:
    """The tensors that take part in a step, with their lr."""
    return [(i, eta) for i, eta in enumerate(rates) if eta != 0]


def _spans(scope: Scope, x: list[Array], groups: Groups) -> list[list[int]]:
    """-> the tensors that share a number, span by span; the tensors that no group names are the last group."""
    named = [list(group.get("indices", [])) for group in groups or []]
    rest = [i for i in range(len(x)) if not any(i in indices for indices in named)]
    each = {"model": [list(range(len(x)))], "group": [*named, rest], "tensor": [[i] for i in range(len(x))]}
    return [span for span in each[scope] if span]


def _per_span(scope: Scope, values: list[float]) -> float | list[float]:
    """A number of the model as it is, those of the groups or tensors as a list."""
    return values[0] if scope == "model" else list(values)


def _zeros(x: list[Array]) -> list[Array]:
    return [np.zeros_like(a) for a in x]


def _dot(a: Array, b: Array) -> float:
    return float(np.sum(a * b))


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}

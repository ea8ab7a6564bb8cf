"""What the study of trajectories compares, and the numbers of its claims from its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from untuned.study.papers.frame import Row, Rows
from untuned.study.papers.rows import by, numbers
from untuned.study.stats import interval

STEPS = {"fashion-mlp": 960, "fashion-cnn": 320}  # 30 and 10 epochs of batches of 64
BASE: dict[str, Any] = {"lr": 0.03, "momentum": 0.9, "weight_decay": 0.0, "batch_size": 64}
WIDTHS = (25, 100, 400)
QUARTER, HALF_A_WALK, NO_DIRECTION, MATCH, TENTH = 0.25, 30.0, 80.0, 0.01, 0.005  # the limits of the rules below


@dataclass(frozen=True)
class Factor:
    """A setting that is said to lower the MDS when it grows: both ends, beside the base."""

    says: str
    low: dict[str, Any]
    high: dict[str, Any]
    steps: tuple[float, float] = (1.0, 1.0)  # at both ends, as multiples of the base's


FACTORS = {
    "momentum": Factor("A larger momentum (0.9 against 0)", {"momentum": 0.0}, {}),
    "weight decay": Factor("A larger weight decay (0.01 against 0)", {}, {"weight_decay": 0.01}),
    "learning rate": Factor("A larger learning rate (0.1 against 0.01)", {"lr": 0.01}, {"lr": 0.1}),
    "batch": Factor(
        "A larger batch (256 against 16), over as many epochs", {"batch_size": 16}, {"batch_size": 256}, (4, 0.25)
    ),
    "batch, lr in proportion": Factor(
        "A larger batch (256 against 16), over as many epochs, the learning rate in proportion to it",
        {"batch_size": 16, "lr": 0.0075},
        {"batch_size": 256, "lr": 0.12},
        (4, 0.25),
    ),
    "batch, equal steps": Factor(
        "A larger batch (256 against 16), over as many steps", {"batch_size": 16}, {"batch_size": 256}
    ),
}
BETWEEN: dict[str, dict[str, Any]] = {  # shown in the table, in no rule
    "momentum 0.5": {"momentum": 0.5},
    "weight decay 0.001": {"weight_decay": 0.001},
}
COUPLED: dict[str, Any] = {"lr": 0.003}  # with momentum 0.9 the same lr / (1 - momentum) as 0.03 without
DECAY_ALONE: dict[str, Any] = {"momentum": 0.0, "weight_decay": 0.01}


def arguments_of(task: str, change: dict[str, Any], times: float = 1.0) -> dict[str, Any]:
    return {"task": task, **BASE, **change, "steps": int(STEPS[task] * times)}


def runs(rows: Rows, arguments: dict[str, Any]) -> list[Row]:
    """The rows of one setting in the order of the seeds."""
    mine = [row for row in rows["settings"] if all(row[key] == value for key, value in arguments.items())]
    return sorted(mine, key=lambda row: int(row["seed"] or 0))


def difference(rows: Rows, task: str, factor: Factor, column: str = "mds_origin") -> np.ndarray:
    """High end minus low end, seed by seed; NaN where a run diverged."""
    low, high = (
        runs(rows, arguments_of(task, factor.low, factor.steps[0])),
        runs(rows, arguments_of(task, factor.high, factor.steps[1])),
    )
    return np.array(numbers(high, column)) - np.array(numbers(low, column))


def bounds(values: np.ndarray) -> tuple[float, float] | None:
    """The interval over seeds; None if a run is missing or diverged, so that nothing is told."""
    return None if np.isnan(values).any() else interval(values)


def said(values: np.ndarray, digits: int = 3, unit: str = "", sign: str = "+") -> str:
    """Mean, interval and n in words; `sign` is "+" for differences, "" else."""
    within = bounds(values)
    if within is None:
        return f"not told: {int(np.isnan(values).sum())} of {len(values)} runs diverged"
    mean, low, high = (f"{number:{sign}.{digits}f}" for number in (values.mean(), *within))
    return f"{mean}{unit} ({low} to {high}; n = {len(values)})"


def branch(rows: Rows, name: str, switch: int, column: str = "accuracy") -> np.ndarray:
    """A column of the branches that go on after the switch, in the order of the seeds."""
    mine = [row for row in rows["late"] if row["branch"] == name and row["switch"] == switch]
    return np.array(numbers(sorted(mine, key=lambda row: int(row["seed"] or 0)), column))


def progress_of(rows: Rows, task: str, column: str, low: float, high: float) -> np.ndarray:
    """Mean of a column over the points in a stretch of the run, by seed."""
    mine = [row for row in rows["progress"] if row["task"] == task and low <= float(row["share"] or 0) <= high]
    return np.array([np.mean(numbers(one, column)) for one in by(mine, "seed").values()])

"""How much wider the range of good learning rates of one method is than another's: rules with `statistic = "width"`.

The width of a method on a task is in decades of learning rate: the unbroken range around its own best mean over seeds
that is not worse by more than the tolerance, see `stats.plateau`. A range that touches the end of its grid may be
wider: its width is a lower bound.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from untuned.study.aggregate import RESAMPLES, Estimate
from untuned.study.results import TaskResult
from untuned.study.rules import Rule
from untuned.study.stats import Floats, Outcome, best, plateau, seed_mean


@dataclass(frozen=True)
class WidthRule(Rule):
    """When the range of good learning rates of one method counts as wider; `margin` in decades."""

    def __str__(self) -> str:
        drawn = "tasks and seeds" if self.tasks else "seeds"
        span = f"from {-self.margin:g} to {self.margin:g}" if self.margin else "at 0"
        return (
            f"The range of one method is wider than the other's if the {100 * self.level:g} % interval of the "
            f"difference in decades lies above {self.margin:g}, narrower if it lies below {-self.margin or 0.0:g}, not "
            f"different by more than the margin if it lies {span}, and else it cannot be told (bootstrap over {drawn}, "
            f"{RESAMPLES} resamples; where a range touches the end of its grid, the interval is open)."
        )


def width(outcome: Outcome, seeds: NDArray[np.intp], tolerance: float, chance: float, maximize: bool) -> Floats:
    """Least and largest width in decades that these seeds allow; the largest is infinite if the grid cuts the range.

    It is 0 if the method never beats `chance` by more than `tolerance`; nothing is known, (0, inf), without runs.
    """
    means = seed_mean(outcome.finals[:, seeds])
    at, sign = best(means, maximize), 1 if maximize else -1
    if at is None:
        return np.array([0.0, np.inf])
    if not sign * (means[at] - chance) > tolerance:
        return np.zeros(2)
    found = plateau(outcome.lrs, means, float(means[at]) - sign * tolerance, maximize)
    assert found is not None
    return np.array([found.decades, np.inf if found.censored else found.decades])


def compare(tasks: Sequence[TaskResult], method: str, against: str, rule: Rule) -> Estimate | None:
    """Mean over tasks of the difference in decades, method less against, as far as the grids reach; None without runs.

    Seeds are drawn in pairs, and tasks as well if the rule says so. An end of the interval is infinite where a range
    that the grid cuts could move it that far.
    """
    found = [_Pair.of(task, method, against) for task in tasks]
    pairs = [pair for pair in found if len(pair.seeds)]
    if not pairs:
        return None
    value = float(np.mean([pair.seen() for pair in pairs]))
    few = min(len(pair.seeds) for pair in pairs) < 2
    if (rule.tasks and len(pairs) < 2) or (not rule.tasks and few):
        return Estimate(value, None)
    rng = np.random.default_rng(0)
    shape = (RESAMPLES, len(pairs))
    drawn = rng.integers(len(pairs), size=shape) if rule.tasks else np.broadcast_to(np.arange(len(pairs)), shape)
    differences = np.empty((*shape, 2))
    for i, pair in enumerate(pairs):
        there, n = drawn == i, len(pair.seeds)
        seeds = np.sort(pair.seeds[rng.integers(n, size=(int(there.sum()), n))], axis=1)
        unique, inverse = np.unique(seeds, axis=0, return_inverse=True)  # few seeds have few resamples
        differences[there] = np.array([pair.difference(one) for one in unique])[inverse]
    low, high = differences.mean(axis=1).T
    tail = (1 - rule.level) / 2
    return Estimate(
        value,
        (float(np.quantile(low, tail, method="lower")), float(np.quantile(high, 1 - tail, method="higher"))),
    )


@dataclass(frozen=True)
class _Pair:
    """Two methods on one task, and the seeds that both have run."""

    task: TaskResult
    sides: tuple[Outcome, Outcome]
    seeds: NDArray[np.intp]

    @classmethod
    def of(cls, task: TaskResult, method: str, against: str) -> "_Pair":
        one, other = (next(o for o in task.outcomes if o.method == name) for name in (method, against))
        known = [~np.isnan(side.finals).all(axis=0) for side in (one, other)]
        return cls(task, (one, other), np.flatnonzero(known[0] & known[1]))

    def widths(self, seeds: NDArray[np.intp]) -> list[Floats]:
        metric = self.task.metric
        return [width(side, seeds, metric.tolerance, metric.chance, metric.maximize) for side in self.sides]

    def seen(self) -> float:
        """The difference as far as the grids reach."""
        one, other = self.widths(self.seeds)
        return float(one[0] - other[0])

    def difference(self, seeds: NDArray[np.intp]) -> tuple[float, float]:
        """Least and largest difference in decades that is possible."""
        one, other = self.widths(seeds)
        return one[0] - other[1], one[1] - other[0]


def text(decades: float, censored: bool) -> str:
    """`1.3`, or `≥ 1.3` where the grid cuts the range; a dash if not known."""
    return "–" if math.isnan(decades) else f"{'≥ ' if censored else ''}{decades:.1f}"

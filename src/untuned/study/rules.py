"""Rules, written down before the runs, of when one method counts as better than another."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from untuned.study.aggregate import RESAMPLES, Estimate, StatisticName, compare

Verdict = Literal["better", "worse", "no difference of more than the margin", "cannot be told"]


@dataclass(frozen=True)
class Rule:
    """When one method counts as better than another, written down before the runs.

    It is meant for one comparison: among twenty comparisons at level 0.95 one may err.
    """

    statistic: StatisticName = "mean"
    margin: float = 0.0  # in the unit of the scores; for "probability" the distance from one half
    level: float = 0.95
    higher_is_better: bool = False
    tasks: bool = True  # whether the claim is about tasks like these (True) or about these tasks (False)

    def __post_init__(self) -> None:
        if self.statistic not in get_args(StatisticName):
            raise ValueError(f"statistic is one of {', '.join(get_args(StatisticName))}, not {self.statistic!r}")
        if not 0 <= self.margin < (0.5 if self.statistic == "probability" else np.inf):
            raise ValueError(f"margin is at least 0 (and below 0.5 for the probability), not {self.margin!r}")
        if not 0 < self.level < 1:
            raise ValueError(f"level lies between 0 and 1, not {self.level!r}")

    def __str__(self) -> str:
        if self.statistic == "probability":
            span = f"from {0.5 - self.margin:g} to {0.5 + self.margin:g}"
            side = (
                f"of the probability that its run beats the other's on the same task lies above {0.5 + self.margin:g}"
            )
            worse = f"below {0.5 - self.margin:g}"
        else:
            name = {"mean": "mean", "iqm": "interquartile mean"}[self.statistic]
            span = f"from {-self.margin:g} to {self.margin:g}" if self.margin else "at 0"
            side = f"of its {name}'s lead over the other's lies above {self.margin:g}"
            worse = f"below {-self.margin:g}" if self.margin else "below 0"
        drawn = "tasks and seeds" if self.tasks else "seeds within each task"
        return (
            f"A method is better than another if the {100 * self.level:g} % interval {side}, worse if it lies {worse}, "
            f"not different by more than the margin if it lies {span}, and else it cannot be told "
            f"({'larger' if self.higher_is_better else 'smaller'} scores are better; "
            f"stratified bootstrap over {drawn}, {RESAMPLES} resamples)."
        )

    def estimate(self, a: ArrayLike, b: ArrayLike) -> Estimate:
        """The number the rule looks at, see `compare`."""
        return compare(a, b, self.statistic, level=self.level, higher_is_better=self.higher_is_better, tasks=self.tasks)

    def verdict(self, a: ArrayLike, b: ArrayLike) -> Verdict:
        """What the rule says of method `a` beside method `b`: scores (tasks, seeds) of the same tasks and seeds."""
        return self.judge(self.estimate(a, b).interval)

    def judge(self, interval: tuple[float, float] | None) -> Verdict:
        """What the rule says of an interval of the estimate; None is one that could not be computed."""
        regions = self.regions(interval)
        return next(iter(regions)) if len(regions) == 1 else "cannot be told"

    def regions(self, interval: tuple[float, float] | None) -> frozenset[Verdict]:
        """The verdicts that an interval leaves open: better, worse, no difference of more than the margin."""
        low, high = (-math.inf, math.inf) if interval is None else interval
        if self.statistic == "probability":
            low, high = low - 0.5, high - 0.5
        elif not self.higher_is_better:
            low, high = -high, -low
        found: dict[Verdict, bool] = {
            "worse": low < -self.margin,
            "no difference of more than the margin": low <= self.margin and high >= -self.margin,
            "better": high > self.margin,
        }
        return frozenset(verdict for verdict, there in found.items() if there)

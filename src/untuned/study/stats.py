"""Numbers of a study: means over seeds, their intervals, best learning rates and how wide a range of them works.

The final metrics of a method on a task are an array of shape (lrs, seeds) with NaN where a run is missing.
A run that diverged or ended worse counts with the metric of a model that learned nothing (`chance`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Plateau:
    """Learning rates from `low` to `high`. An open end was not found: it touches the grid's end or a missing result."""

    low: float
    high: float
    open_low: bool
    open_high: bool

    @property
    def decades(self) -> float:
        return float(np.log10(self.high / self.low))

    @property
    def censored(self) -> bool:
        """True if `decades` is only a lower bound."""
        return self.open_low or self.open_high


@dataclass(frozen=True)
class Outcome:
    """What a method did on a task; arrays of shape (lrs, seeds)."""

    method: str
    lrs: tuple[float, ...]  # ascending
    finals: Floats  # NaN where no run finished, chance where it diverged or ended worse
    diverged: NDArray[np.bool_]
    step_us: Floats  # median microseconds of optimizer.step() in each run, NaN where not measured
    default_lr: float | None = None  # what its users get without choosing; None if the optimizer has none
    state_bytes: float = np.nan  # largest optimizer state of a run, beside parameters and gradients; NaN if not known


@dataclass(frozen=True)
class AtRate:
    """The results of a method at one learning rate."""

    lr: float
    mean: float
    seeds: Floats  # final metrics, those of diverged runs being chance
    diverged: int
    interval: tuple[float, float] | None  # None with fewer than two seeds
    learned: bool  # the mean beats chance by more than the tolerance

    @property
    def n(self) -> int:
        return len(self.seeds)


@dataclass(frozen=True)
class Summary:
    """One method on one task. `mean`, `n` and `interval` are at `best_lr`, which is NaN if the method has no result."""

    method: str
    best_lr: float
    mean: float
    n: int
    interval: tuple[float, float] | None  # None with fewer than two seeds
    own: (
        Plateau | None
    )  # within the tolerance of this method's best; None if it never beat chance by more than the tolerance
    overall: Plateau | None  # within the tolerance of the best of all methods; None if the method does not get there
    diverged: int
    runs: int  # finished runs at all learning rates, the diverged ones included
    step_us: float  # median over runs, NaN if not measured
    step_ratio: float  # to Adam if the study has it, else to the cheapest method
    default: AtRate | None = None  # at the default lr; None if no run has finished there
    tried: int = 0  # learning rates with a result
    state_bytes: float = np.nan  # of the optimizer, NaN if not known


def seed_mean(finals: Floats) -> Floats:
    """Mean over the last axis, the seeds; NaN where there is no run at all."""
    n = np.sum(~np.isnan(finals), axis=-1)
    return np.where(n > 0, np.nansum(finals, axis=-1) / np.maximum(n, 1), np.nan)


def median(values: Floats) -> float:
    """Median of the values that are not NaN; NaN if there is none."""
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else np.nan


def interval(values: Floats, level: float = 0.95) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the mean over seeds, or None for fewer than two values.

    Of up to three values it is the range, since resamples of one value only are then commoner than a tail: too narrow.
    The resampling is seeded and the values are sorted first, so the result depends on nothing but their set.
    """
    if len(values) < 2:
        return None
    ci = bootstrap(
        (np.sort(values),),
        np.mean,
        confidence_level=level,
        n_resamples=9999,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(ci.low), float(ci.high)


def best(means: Floats, maximize: bool) -> int | None:
    """Position of the best mean, the smallest learning rate if several tie; None if all are missing."""
    if np.all(np.isnan(means)):
        return None
    return int(np.nanargmax(means) if maximize else np.nanargmin(means))


def plateau(lrs: Sequence[float], means: Floats, threshold: float, maximize: bool) -> Plateau | None:
    """The unbroken range of learning rates around the best one whose mean is not worse than `threshold`.

    Between grid points the mean is linear in log10(lr). None if even the best is worse than the threshold.
    """
    peak = best(means, maximize)
    margin = (means - threshold) if maximize else (threshold - means)
    if peak is None or margin[peak] < 0:
        return None
    x = np.log10(lrs)

    def edge(step: int) -> tuple[float, bool]:
        i = peak
        while 0 <= i + step < len(x) and margin[i + step] >= 0:
            i += step
        if not 0 <= i + step < len(x) or np.isnan(margin[i + step]):
            return float(lrs[i]), True
        share = margin[i] / (margin[i] - margin[i + step])
        return float(10 ** (x[i] + share * (x[i + step] - x[i]))), False

    (low, open_low), (high, open_high) = edge(-1), edge(+1)
    return Plateau(low, high, open_low, open_high)


def summarize(outcomes: Sequence[Outcome], *, maximize: bool, chance: float, tolerance: float) -> list[Summary]:
    """One summary per method of one task, in the order given. `tolerance` is in the unit of the metric."""
    sign = 1 if maximize else -1
    means = [seed_mean(outcome.finals) for outcome in outcomes]

    def at_default(outcome: Outcome, mean: Floats) -> AtRate | None:
        lr = outcome.default_lr
        if lr not in outcome.lrs or np.isnan(mean[at := outcome.lrs.index(lr)]):
            return None
        seeds = outcome.finals[at][~np.isnan(outcome.finals[at])]
        learned = bool(sign * (mean[at] - chance) > tolerance)
        return AtRate(lr, float(mean[at]), seeds, int(outcome.diverged[at].sum()), interval(seeds), learned)

    top = best(np.concatenate(means), maximize)
    limit = np.nan if top is None else float(np.concatenate(means)[top]) - sign * tolerance
    costs = [median(outcome.step_us) for outcome in outcomes]
    adam = [cost for outcome, cost in zip(outcomes, costs, strict=True) if outcome.method == "adam"]
    unit = adam[0] if adam and np.isfinite(adam[0]) else min((c for c in costs if np.isfinite(c)), default=np.nan)

    summaries = []
    for outcome, mean, cost in zip(outcomes, means, costs, strict=True):
        at = best(mean, maximize)
        seeds = np.array([]) if at is None else outcome.finals[at][~np.isnan(outcome.finals[at])]
        # A method that learned nothing is equally bad everywhere, which is no plateau.
        learned = at is not None and sign * (mean[at] - chance) > tolerance
        summaries.append(
            Summary(
                method=outcome.method,
                best_lr=np.nan if at is None else outcome.lrs[at],
                mean=np.nan if at is None else float(mean[at]),
                n=len(seeds),
                interval=interval(seeds),
                own=plateau(outcome.lrs, mean, float(mean[at]) - sign * tolerance, maximize) if learned else None,
                overall=plateau(outcome.lrs, mean, limit, maximize) if learned else None,
                diverged=int(outcome.diverged.sum()),
                runs=int(np.sum(~np.isnan(outcome.finals))),
                step_us=cost,
                step_ratio=cost / unit,
                default=at_default(outcome, mean),
                tried=int(np.sum(~np.isnan(mean))),
                state_bytes=outcome.state_bytes,
            )
        )
    return summaries

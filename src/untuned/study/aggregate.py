"""Scores of methods over several tasks and seeds: aggregates, their intervals, and two methods compared.

The scores of one method are an array of shape (tasks, seeds), NaN where a run is missing. All tasks have scores in the
same unit (regret, accuracy, ...). Scores are finite: a run that diverged counts with the score of a model that learned
nothing. A task without any run is left out. The statistics follow Agarwal et al. 2021 (arXiv 2108.13264, `rliable`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]  # (..., tasks, seeds) with NaN -> (...)
StatisticName = Literal["mean", "iqm", "probability"]

RESAMPLES = 10_000
_CHUNK = 2_000_000  # numbers held at once while resampling


@dataclass(frozen=True)
class Estimate:
    """A number and its bootstrap interval; None where the runs do not suffice for one (see `stratified_interval`)."""

    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Profile:
    """Share of runs beyond each threshold, in [0, 1], and its pointwise band (NaN where the runs do not suffice)."""

    thresholds: Floats
    share: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Paired:
    """Method a beside method b. Differences are a - b in the unit of the scores."""

    mean: Estimate  # difference of the means over tasks
    iqm: Estimate  # difference of the interquartile means
    probability: Estimate  # that a run of a is better than a run of b on the same task, a tie counted as one half
    won: int  # tasks on which a's mean is better by more than the margin
    tied: int
    lost: int
    runs: int  # pairs of runs compared

    @property
    def tasks(self) -> int:
        return self.won + self.tied + self.lost


# ---------------------------------------------------------------- statistics of arrays (..., tasks, seeds)


def _mean(values: Floats) -> Floats:
    """Mean over the last axis of what is not NaN; NaN if nothing is."""
    known = ~np.isnan(values)
    n = known.sum(axis=-1)
    return np.where(n > 0, np.where(known, values, 0.0).sum(axis=-1) / np.maximum(n, 1), np.nan)


def mean(scores: Floats) -> Floats:
    """Mean over tasks of the task's mean over seeds: every task weighs the same, however many of its runs are there."""
    return _mean(_mean(scores))


def iqm(scores: Floats) -> Floats:
    """Interquartile mean over all runs: a quarter of them, rounded down, is cut off at each end."""
    ordered = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)  # NaN comes last
    n = np.sum(~np.isnan(ordered), axis=-1, keepdims=True)
    position = np.arange(ordered.shape[-1])
    return _mean(np.where((position >= n // 4) & (position < n - n // 4), ordered, np.nan))


def largest_task_mean(scores: Floats) -> Floats:
    """The largest of the tasks' means: the worst task if smaller is better."""
    means = _mean(scores)
    return _or_nan(np.max(np.where(np.isnan(means), -np.inf, means), axis=-1, initial=-np.inf))


def smallest_task_mean(scores: Floats) -> Floats:
    """The smallest of the tasks' means: the worst task if larger is better."""
    return -largest_task_mean(-scores)


def probability_of_improvement(a: Floats, b: Floats, higher_is_better: bool = True) -> Floats:
    """Probability that a run of `a` is better than one of `b` on the same task, averaged over tasks.

    It is the Mann-Whitney statistic over the number of pairs: every run of `a` against every run of `b`, a tie counted
    as one half. Shapes (..., tasks, seeds), the number of seeds may differ.
    """
    sign = np.sign(a[..., :, None] - b[..., None, :]) * (1 if higher_is_better else -1)
    return _mean(_mean((0.5 + 0.5 * sign).reshape(*sign.shape[:-2], -1)))


def _or_nan(values: Floats) -> Floats:
    return np.where(np.isinf(values), np.nan, values)


# ---------------------------------------------------------------- stratified bootstrap


def stratified_interval(
    scores: ArrayLike, statistic: Statistic, level: float = 0.95, *, tasks: bool = False
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of a statistic; seeds are drawn anew within each task (strata).

    `tasks=False`: what would come out with other seeds *on these tasks*? It says nothing about further tasks, and it is
    too narrow with few seeds (by about sqrt(1 - 1/n) of its width with n seeds per task).
    `tasks=True`: the tasks are drawn anew as well: what would come out on other tasks *like these*? With few tasks this
    is the wide and honest one for a claim about a method; below ten tasks it is itself too narrow.

    None where the spread cannot be seen: a task with one run only (`tasks=False`), fewer than two tasks (`tasks=True`).
    The resampling is seeded and the scores are sorted first, so the result does not depend on the order of tasks and
    seeds. `statistic` maps (..., tasks, seeds) with NaN to (...).
    """
    rows = _checked(scores)
    pairs = _ordered(rows, rows)
    return _interval(_resampled(pairs, lambda a, _: statistic(a), tasks), level)


def performance_profile(
    scores: ArrayLike, thresholds: ArrayLike, *, above: bool = True, level: float = 0.95, tasks: bool = False
) -> Profile:
    """Share of runs with a score above each threshold (`above=False`: at or below it), with a pointwise band.

    It is the run-score distribution of rliable; every task weighs the same. The band holds at each threshold on its
    own, not for the whole curve. `tasks` as in `stratified_interval`.
    """
    rows, taus = _checked(scores), np.atleast_1d(np.asarray(thresholds, dtype=float))

    def shares(a: Floats) -> Floats:
        beyond = [np.where(np.isnan(a), np.nan, (a > tau) == above) for tau in taus]
        return np.stack([mean(share) for share in beyond], axis=-1)

    drawn = _resampled(_ordered(rows, rows), lambda a, _: shares(a), tasks, resamples=RESAMPLES // 5)
    if drawn is None:
        low = high = np.full(taus.shape, np.nan)
    else:
        low, high = np.quantile(drawn, _tails(level), axis=0)
    return Profile(taus, shares(rows), low, high)


def _checked(scores: ArrayLike) -> Floats:
    """The scores as an array (tasks, seeds) without the tasks that have no run."""
    rows = np.asarray(scores, dtype=float)
    if rows.ndim != 2:
        raise ValueError(f"scores have the shape (tasks, seeds), not {rows.shape}")
    if np.isinf(rows).any():
        raise ValueError("scores are finite: a diverged run counts with the score of a model that learned nothing")
    return rows[~np.isnan(rows).all(axis=1)]


def _checked_pair(a: ArrayLike, b: ArrayLike) -> tuple[Floats, Floats]:
    """The runs that both methods have, NaN in both arrays elsewhere."""
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if first.shape != second.shape:
        raise ValueError(f"two methods are compared on the same tasks and seeds, not {first.shape} and {second.shape}")
    known = ~np.isnan(first) & ~np.isnan(second)
    return _checked(np.where(known, first, np.nan)), _checked(np.where(known, second, np.nan))


def _ordered(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """Pairs (a, b) sorted within each task, missing ones last, then the tasks sorted: any order gives the same."""
    if not len(a):
        return a, b
    within = np.stack([np.lexsort((y, x)) for x, y in zip(a, b, strict=True)])
    a, b = np.take_along_axis(a, within, axis=1), np.take_along_axis(b, within, axis=1)
    among = np.lexsort(np.concatenate([b.T, a.T])[::-1])
    return a[among], b[among]


def _resampled(
    pairs: tuple[Floats, Floats],
    statistic: Callable[[Floats, Floats], Floats],
    tasks: bool,
    *,
    independent: bool = False,
    resamples: int = RESAMPLES,
) -> Floats | None:
    """Values of the statistic of resampled (a, b), shape (resamples, ...); None where the runs do not suffice.

    A resample draws as many runs in each task as it has. It draws the pairs, or, if `independent`, the runs of a and b
    each for themselves.
    """
    a, b = pairs
    n_tasks, n_seeds = a.shape
    n = np.sum(~np.isnan(a), axis=1)
    if n_tasks < (2 if tasks else 1) or (not tasks and n.min() < 2):
        return None
    rng = np.random.default_rng(0)
    size = max(1, _CHUNK // (n_tasks * n_seeds * (n_seeds if independent else 1)))
    parts = []
    for start in range(0, resamples, size):
        shape = (min(size, resamples - start), n_tasks, n_seeds)
        task = rng.integers(n_tasks, size=shape[:2]) if tasks else np.broadcast_to(np.arange(n_tasks), shape[:2])
        task, there = task[..., None], np.arange(n_seeds) < n[task][..., None]
        first = (rng.random(shape) * n[task]).astype(int)
        second = (rng.random(shape) * n[task]).astype(int) if independent else first
        parts.append(statistic(np.where(there, a[task, first], np.nan), np.where(there, b[task, second], np.nan)))
    return np.concatenate(parts)


def _tails(level: float) -> list[float]:
    return [(1 - level) / 2, (1 + level) / 2]


def _interval(drawn: Floats | None, level: float) -> tuple[float, float] | None:
    if drawn is None:
        return None
    low, high = np.quantile(drawn, _tails(level))
    return float(low), float(high)


# ---------------------------------------------------------------- two methods


def compare(
    a: ArrayLike,
    b: ArrayLike,
    statistic: StatisticName = "mean",
    *,
    level: float = 0.95,
    higher_is_better: bool = False,
    tasks: bool = True,
) -> Estimate:
    """One number that compares two methods on the same tasks and seeds; only runs that both have are used.

    "mean" and "iqm" are the aggregate of `a` minus that of `b`, and seeds are drawn in pairs: what a seed does to both
    methods cancels. "probability" is `probability_of_improvement`, for which the runs of the two methods are drawn
    independently of each other, as in rliable. `tasks` as in `stratified_interval`. Resamples of (a, b) and of (b, a)
    are pooled, so that exchanging the methods turns the estimate and its interval around exactly.
    """
    first, second = _checked_pair(a, b)
    probability = statistic == "probability"

    def of(x: Floats, y: Floats) -> Floats:
        if probability:
            return probability_of_improvement(x, y, higher_is_better)
        aggregate = {"mean": mean, "iqm": iqm}[statistic]
        return aggregate(x) - aggregate(y)

    there = _resampled(_ordered(first, second), of, tasks, independent=probability, resamples=RESAMPLES // 2)
    back = _resampled(_ordered(second, first), of, tasks, independent=probability, resamples=RESAMPLES // 2)
    whole = 1.0 if probability else 0.0
    drawn = None if there is None or back is None else np.concatenate([there, whole - back])
    return Estimate(float(of(first, second)), _interval(drawn, level))


def paired(
    a: ArrayLike,
    b: ArrayLike,
    *,
    level: float = 0.95,
    higher_is_better: bool = False,
    tasks: bool = True,
    margin: float = 0.0,
) -> Paired:
    """Everything that compares two methods on the same tasks and seeds, see `compare`.

    A task is won or lost if the methods' means on it differ by more than `margin`, in the unit of the scores.
    """
    first, second = _checked_pair(a, b)
    gain = (_mean(first) - _mean(second)) * (1 if higher_is_better else -1)
    won, lost = int(np.sum(gain > margin)), int(np.sum(gain < -margin))

    def estimate(statistic: StatisticName) -> Estimate:
        return compare(first, second, statistic, level=level, higher_is_better=higher_is_better, tasks=tasks)

    return Paired(
        mean=estimate("mean"),
        iqm=estimate("iqm"),
        probability=estimate("probability"),
        won=won,
        tied=len(gain) - won - lost,
        lost=lost,
        runs=int(np.sum(~np.isnan(first))),
    )

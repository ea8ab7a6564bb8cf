"""How good samples are: gaps to the optimum, the share that succeeds, the time that takes, and how much they differ.

A sample that diverged has an infinite value; it stays in every count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from untuned.systems.ising.problems import Problem
from untuned.systems.ising.solver import Samples

TARGET = 1e-3  # the gap of the paper below which a sample is a success
PERCENTILES = (5.0, 10.0, 25.0, 50.0)


def gaps(problem: Problem, values: Tensor) -> Tensor:
    """(f - f*) / |f*| for values of any shape, infinite where they are.

    Raises ValueError if the optimum is not known or 0.

    >>> import torch
    >>> from untuned.systems.ising import Ising
    >>> gaps(Ising(torch.zeros(2, 2), optimum=-4.0), torch.tensor([-4.0, -3.0])).tolist()
    [0.0, 0.25]
    """
    if problem.optimum is None:
        raise ValueError(f"{problem.name}: a gap needs the optimum, which is not known.")
    if problem.optimum == 0:
        raise ValueError(f"{problem.name}: the gap is relative to the optimum, which is 0.")
    return (values - problem.optimum) / abs(problem.optimum)


def running_gaps(found: Samples) -> Tensor:
    """The best gap of every sample up to each recorded round trip, [R, S]; diverged samples are infinite throughout."""
    least = found.history.cummin(0).values.masked_fill(found.diverged, math.inf)
    return gaps(found.problem, least)


def success(found: Samples, target: float = TARGET) -> float:
    """The share of all samples, the diverged ones included, whose best gap is at most `target`."""
    return float((gaps(found.problem, found.best) <= target).double().mean())


def time_to_target(probability: float, single: float, certainty: float = 0.99) -> float:
    """single * log(1 - certainty) / log(1 - probability): the time until one run has succeeded with that certainty.

    `single`: the time of one run, in any unit; it is the least that is returned. Infinite for probability 0.

    >>> time_to_target(0.5, single=1.0, certainty=0.75), time_to_target(1.0, single=3.0), time_to_target(0.0, 1.0)
    (2.0, 3.0, inf)
    """
    if not 0 <= probability <= 1 or not 0 < certainty < 1:
        raise ValueError(f"A probability is in [0, 1] and a certainty in (0, 1), not {probability!r}, {certainty!r}.")
    if probability == 0:
        return math.inf
    if probability == 1:
        return single
    return single * max(1.0, math.log(1 - certainty) / math.log(1 - probability))


def roundtrip_fraction(
    one: Samples, other: Samples, percentiles: Sequence[float] = PERCENTILES
) -> dict[float, float | None]:
    """How many round trips `one` needs for what `other` needs 1: below 1, it is faster.

    For each percentile X: the X-th percentile over samples of the running minima, for both; the common gap is the
    larger of the two final ones; the fraction is that of the first recorded round trips at which each has it. None if a
    final percentile is infinite, for samples that diverged. Source: arXiv 2401.12135, which does not say more exactly
    what happens in ties; here reaching the gap is enough, to 1e-9.
    """
    series = []
    for found in (one, other):
        running = running_gaps(found)
        ranked = running.sort(1).values
        at = [math.ceil(X / 100 * running.shape[1]) - 1 for X in percentiles]  # the nearest rank: inf stays inf
        series.append(ranked[:, [max(0, i) for i in at]])
    fractions: dict[float, float | None] = {}
    for i, X in enumerate(percentiles):
        common = max(float(of[-1, i]) for of in series)
        if math.isinf(common):
            fractions[X] = None
            continue
        first = [
            int(found.rounds[int((of[:, i] <= common + 1e-9).int().argmax())])
            for found, of in zip((one, other), series, strict=True)
        ]
        fractions[X] = first[0] / first[1]
    return fractions


@dataclass(frozen=True)
class Diversity:
    """How much the samples that did not diverge differ."""

    samples: int  # how many they are
    distinct: int  # solutions that differ after rounding
    distance: float  # mean over pairs of |x - y| / sqrt(n), between 0 and 1; NaN with fewer than two samples
    gap_spread: float  # standard deviation of the final gaps, the paper's measure; NaN if the optimum is not known


def diversity(found: Samples, decimals: int = 0) -> Diversity:
    """The diversity of the final points; `decimals` is what coordinates are rounded to before points are compared.

    With 0, the default, two points that lie at the same corner of the box, or nearest to it, are the same.
    """
    x = found.x[~found.diverged].double()
    m, n = x.shape
    distinct = len(x.round(decimals=decimals).unique(dim=0)) if m else 0
    distance = float(torch.pdist(x).mean()) / math.sqrt(n) if m > 1 else math.nan
    known = found.problem.optimum not in (None, 0)
    spread = float(gaps(found.problem, found.value[~found.diverged]).std(correction=0)) if known and m else math.nan
    return Diversity(m, distinct, distance, spread)

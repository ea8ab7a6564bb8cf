"""When a learning rate counts as tuned: every neighbour of every near-best rate has run.

The rule is that of "Fantastic Pretraining Optimizers" for its sweeps, here for one grid of learning rates.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from untuned.study.stats import best

LIMIT = (1e-8, 1e4)  # no learning rate below or above is tried
_DIGITS = 6  # significant digits of a learning rate


def on_grid(k: int, per_decade: int = 2) -> float:
    """10^(k / per_decade) to six significant digits: 1, 3.16228, 10, ... for two steps a decade.

    Rounded, a rate prints well and is the same number on every machine, so that runs can be keyed by it.
    """
    return _rounded(10 ** (k / per_decade))


def missing(
    lrs: Sequence[float],
    means: ArrayLike,
    tolerance: float,
    ratio: float = 10**0.5,
    limit: tuple[float, float] = LIMIT,
    *,
    maximize: bool = False,
) -> list[float]:
    """Learning rates that have to run before the best of `lrs` counts as tuned, ascending; empty when it is.

    `lrs` are the rates that have run, ascending, `ratio` apart or a multiple of it; `means` their mean results, NaN or
    infinite where a rate diverged or learned nothing. A rate is near-best if its result is within `tolerance` of the
    best, in the unit of the result. Missing are the rates one step below and above each near-best rate, inside `limit`
    (its ends belong to it). If no rate has a result, the one below the lowest is missing, down to the limit.

    Rates are powers of `ratio` to six significant digits, as `on_grid` makes them, if the given ones are; a rate has
    run if one within a tenth of a step of it has. Asking again with the missing rates added comes to an end, since
    every rate lies inside the limit and none is asked for twice.
    """
    tried, values = np.asarray(lrs, dtype=float), np.asarray(means, dtype=float)
    if tried.ndim != 1 or len(tried) == 0 or values.shape != tried.shape:
        raise ValueError(f"every learning rate has one mean result, not {tried.shape} and {values.shape}")
    if not (tried[0] > 0 and np.isfinite(tried).all() and (np.diff(tried) > 0).all()):
        raise ValueError(f"learning rates are positive and ascending, not {tried.tolist()}")
    if not (ratio > 1 and tolerance >= 0 and 0 < limit[0] <= limit[1]):
        raise ValueError(f"ratio > 1, tolerance >= 0 and 0 < limit: not {ratio}, {tolerance} and {limit}")
    values = np.where(np.isfinite(values), values, np.nan)
    peak = best(values, maximize)
    if peak is None:
        wanted = [min(_step(lrs[0], ratio, -1), limit[1])]
    else:
        near = np.flatnonzero(np.abs(values - values[peak]) <= tolerance)
        wanted = [_step(float(tried[i]), ratio, step) for i in near for step in (-1, 1)]
    found: list[float] = []
    for lr in sorted(wanted):
        known = any(abs(math.log(lr / other)) < 0.1 * math.log(ratio) for other in (*lrs, *found))
        if limit[0] <= lr <= limit[1] and not known:
            found.append(lr)
    return found


def _step(lr: float, ratio: float, steps: int) -> float:
    """`lr` times ratio^steps, rounded. A rounded power of the ratio stands for the power, so no error adds up."""
    k = round(math.log(lr) / math.log(ratio))
    return _rounded(ratio ** (k + steps) if _rounded(ratio**k) == _rounded(lr) else lr * ratio**steps)


def _rounded(lr: float) -> float:
    return float(f"{lr:.{_DIGITS - 1}e}")

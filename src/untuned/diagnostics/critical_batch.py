"""The batch size with the fewest gradients of samples to a goal, and the gradient variance it speaks for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class CriticalBatch:
    """What `critical_batch` found."""

    batch: int | None  # with the fewest gradients of samples, b K(b); None if no batch size reached the goal
    C2: float  # batch eps^2 / eta: an order of magnitude only; NaN without a batch
    inside: bool  # smaller and larger batch sizes were tried, so that the minimum is none of the sweep's ends
    tried: dict[int, int | None]  # steps to the goal by batch size, None if not reached

    def __str__(self) -> str:
        if self.batch is None:
            return f"none of the batch sizes {', '.join(map(str, self.tried))} reached the goal"
        edge = "" if self.inside else ", at an end of the sweep"
        return f"critical batch size {self.batch}{edge}; gradient variance about {self.C2:.1g}, order of magnitude only"


def critical_batch(
    steps: Callable[[int], int | None], *, eta: float, eps: float, smallest: int = 1, largest: int, runs: int = 10
) -> CriticalBatch:
    """Try powers of two times `smallest`, up to `largest` and at most `runs` of them: arXiv 2402.02325.

    `steps(b)` trains SGD at learning rate `eta` with batch size b and returns K(b), the first step at which the mean of
    |grad f|^2 over the steps so far is at most eps^2, or None if it gives up. The sweep ends early when b K(b) has
    risen twice in a row. With the bound X / K + eta C2 / (2 b) <= eps^2, b K(b) is smallest at b = eta C2 / eps^2. This
    form is recalled and was derived again. Powers of two, one run each and a bound taken for an equation make C2 an
    order of magnitude only.

    >>> found = critical_batch(lambda b: None if b < 9 else round(1000 / (1 - 8 / b)), eta=0.1, eps=0.5, largest=256)
    >>> print(found)
    critical batch size 16; gradient variance about 4e+01, order of magnitude only
    """
    if not (eta > 0 and eps > 0 and runs >= 1 and 1 <= smallest <= largest):
        raise ValueError("critical_batch: eta, eps and runs must be positive, and smallest between 1 and largest.")
    tried: dict[int, int | None] = {}
    b = smallest
    while b <= largest and len(tried) < runs:
        tried[b] = steps(b)
        last = [_cost(size, tried[size]) for size in list(tried)[-3:]]
        if len(last) == 3 and last[0] < last[1] < last[2]:
            break
        b *= 2
    return critical_of(tried, eta=eta, eps=eps)


def critical_of(tried: dict[int, int | None], *, eta: float, eps: float) -> CriticalBatch:
    """The result of a sweep that has been made: steps to the goal by batch size."""
    reached = {b: _cost(b, k) for b, k in tried.items() if k is not None}
    if not reached:
        return CriticalBatch(None, math.nan, False, dict(tried))
    best = min(reached, key=lambda b: (reached[b], b))
    return CriticalBatch(best, best * eps**2 / eta, min(tried) < best < max(tried), dict(tried))


def _cost(b: int, steps: int | None) -> float:
    return math.inf if steps is None else b * steps

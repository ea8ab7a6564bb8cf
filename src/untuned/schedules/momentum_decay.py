"""A schedule of the averaging parameter of primal averaging, in place of one of lr."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from untuned.iterates import PrimalAverage
from untuned.schedules.linear_decay import _count
from untuned.spa import spa_descent_margin

SHAPES = {"linear": lambda s: s, "cosine": lambda s: (1 - math.cos(math.pi * s)) / 2}


def _factors(given: Any, total: int) -> list[float]:
    try:
        factors = [float(factor) for factor in given]
    except (TypeError, ValueError):
        raise ValueError(f"MomentumDecay: lr_factors must be numbers, one per step, not {given!r}.") from None
    if len(factors) != total:
        raise ValueError(f"MomentumDecay: lr_factors must have {total} entries, one per step, not {len(factors)}.")
    if wrong := [k for k, factor in enumerate(factors) if not 0 < factor < math.inf]:
        what = f"at step {wrong[0]} there is {factors[wrong[0]]:g}"
        raise ValueError(f"MomentumDecay: lr_factors must be positive and finite; {what}.")
    return factors


class MomentumDecay(LRScheduler):
    """Lower c = 1 - momentum of `SGDSPA` from its own value to `final_c`, at fixed lr: after arXiv 2010.00406.

    In this form it is better to lower c than lr (recalled from the paper and its author's account), and
    `untuned.spa.spa_descent_margin` says why: at fixed lr a fall of c never breaks descent, a tenfold drop of lr does;
    heavy ball's usual drop of lr is one of c. The first step uses the optimizer's own c, step `total_steps` and all
    later ones `final_c`; in between c is linear in the step or follows half a cosine.

    Where the margin is negative for losses as curved as 1 / lr (for the largest lr), one warning says at which steps:
    that is where c rises fast. `lr_factors`, one per step, are what another schedule will multiply lr by; they are used
    for this check alone, and warn where lr falls fast.

    >>> import torch, untuned
    >>> from untuned.schedules import MomentumDecay
    >>> optimizer = untuned.SGDSPA([torch.nn.Parameter(torch.ones(1))], momentum=0.5)
    >>> schedule = MomentumDecay(optimizer, total_steps=3, final_c=0.25)
    >>> used = []
    >>> for _ in range(4):
    ...     used.append(optimizer.param_groups[0]["momentum"])
    ...     optimizer.step()
    ...     schedule.step()
    >>> used
    [0.5, 0.625, 0.75, 0.75]
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        total_steps: int,
        final_c: float = 0.01,
        shape: str = "linear",
        lr_factors: Sequence[float] | None = None,
        last_epoch: int = -1,
    ) -> None:
        total = _count("MomentumDecay", "total_steps", total_steps, 2)
        if isinstance(final_c, bool) or not isinstance(final_c, (int, float)) or not 0 < final_c <= 1:
            raise ValueError(f"MomentumDecay: final_c must be a number in (0, 1], not {final_c!r}.")
        if not isinstance(shape, str) or shape not in SHAPES:
            raise ValueError(f"MomentumDecay: shape must be one of {', '.join(SHAPES)}, not {shape!r}.")
        if not isinstance(getattr(optimizer, "parts", {}).get("iterate"), PrimalAverage):
            raise TypeError(f"MomentumDecay: {type(optimizer).__name__} has no primal averaging; use it with SGDSPA.")
        if lr_factors is not None:
            lr_factors = _factors(lr_factors, total)
        self.total_steps, self.final_c, self.shape = total, float(final_c), shape
        groups = optimizer.param_groups
        first = [1 - float(group.get("initial_momentum", group["momentum"])) for group in groups]
        weak = self._without_margin(groups, first, lr_factors)
        for group in groups:
            group.setdefault("initial_momentum", group["momentum"])
        if weak:
            steps = f"step {weak[0]}" if len(weak) == 1 else f"{len(weak)} steps from {weak[0]} to {weak[-1]}"
            why = (
                "descent is not guaranteed where losses are as curved as 1 / lr; let c and lr change more slowly there"
            )
            warnings.warn(f"MomentumDecay: at {steps} {why}.", stacklevel=2)
        super().__init__(optimizer, last_epoch)

    def _c(self, first: float, step: int) -> float:
        return first + (self.final_c - first) * SHAPES[self.shape](min(1.0, step / (self.total_steps - 1)))

    def _without_margin(
        self, groups: list[dict[str, Any]], first: list[float], lr_factors: Sequence[float] | None
    ) -> list[int]:
        """The steps, from 0, at which the margin of some group is negative by more than rounding."""
        weak, factors = set[int](), [1.0] * self.total_steps if lr_factors is None else lr_factors
        for group, c in zip(groups, first, strict=True):
            lr = float(group.get("initial_lr", group["lr"]))
            etas = [(lr or 1.0) * factor for factor in factors]
            cs = [self._c(c, k) for k in range(self.total_steps)]
            margin = spa_descent_margin(etas, cs, 1 / max(etas))
            weak |= {k for k, q in enumerate(margin) if q * etas[k] * cs[k] < -1e-12}
        return sorted(weak)

    def get_lr(self) -> list[Any]:
        """lr as it is. torch asks at every step for what to set, and momentum is set here."""
        for group in self.optimizer.param_groups:
            group.setdefault("initial_momentum", group["momentum"])  # of a group that came later
            group["momentum"] = 1 - self._c(1 - float(group["initial_momentum"]), self.last_epoch)
        return [group["lr"] for group in self.optimizer.param_groups]

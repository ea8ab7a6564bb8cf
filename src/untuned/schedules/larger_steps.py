"""A larger step now and then, which leaves saddles."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from untuned.schedules.linear_decay import _count


class LargerSteps(LRScheduler):
    """Multiply lr by `factor`, or set it to `lr`, at steps 0, every, 2 every, ...: arXiv 2106.02985.

    The paper's algorithm takes r = `lr` of order eps^2 there and eta of order eps^5 at all other steps, to reach
    a point with a gradient below eps and no curvature below -eps.

    >>> import torch, untuned
    >>> from untuned.schedules import LargerSteps
    >>> optimizer = untuned.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.5, momentum=0.9)
    >>> schedule = LargerSteps(optimizer, every=3, factor=4.0)
    >>> used = []
    >>> for _ in range(5):
    ...     used.append(optimizer.param_groups[0]["lr"])
    ...     optimizer.step()
    ...     schedule.step()
    >>> used
    [2.0, 0.5, 0.5, 2.0, 0.5]
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        every: int,
        factor: float | None = None,
        lr: float | None = None,
        last_epoch: int = -1,
    ) -> None:
        every = _count("LargerSteps", "every", every, 1)
        if (factor is None) == (lr is None):
            raise ValueError("LargerSteps: give either factor or lr.")
        name, value = ("factor", factor) if lr is None else ("lr", lr)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ValueError(f"LargerSteps: {name} must be a positive number, not {value!r}.")
        if lr is not None and not all(float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups):
            raise ValueError("LargerSteps: a group at lr 0 can have a factor, but not an lr.")
        self.every, self.factor, self.lr = every, 1.0 if factor is None else factor, lr
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """lr of every group at this step; the state has what it follows from."""
        if self.last_epoch % self.every:
            return [*self.base_lrs]
        return [base * self.factor if self.lr is None else self.lr for base in self.base_lrs]

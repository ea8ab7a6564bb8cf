"""Linear decay to zero, and a linear warm-up."""

from __future__ import annotations

import torch
from torch.optim.lr_scheduler import LambdaLR


def _count(name: str, what: str, value: object, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}: {what} must be a whole number of at least {least}, not {value!r}.")
    return value


class LinearDecay(LambdaLR):
    """Warm up linearly, then decay linearly to zero: arXiv 2310.07831, the schedule with a last-iterate guarantee.

    With N = total_steps - warmup_steps the multipliers of lr are 1/W, ..., W/W during W = warmup_steps and then
    N/N, ..., 1/N; step `total_steps` is the last that moves, after it the multiplier is 0. The theory's T points make
    T - 1 steps, so N = T - 1: no step is wasted on a multiplier of 0, and none starts at 0.

    >>> import torch, untuned
    >>> from untuned.schedules import LinearDecay
    >>> optimizer = untuned.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    >>> schedule = LinearDecay(optimizer, total_steps=6, warmup_steps=2)
    >>> used = []
    >>> for _ in range(6):
    ...     used.append(optimizer.param_groups[0]["lr"])
    ...     optimizer.step()
    ...     schedule.step()
    >>> used
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, total_steps: int, warmup_steps: int = 0, last_epoch: int = -1
    ) -> None:
        warm = _count("LinearDecay", "warmup_steps", warmup_steps, 0)
        total = _count("LinearDecay", "total_steps", total_steps, warm + 1)

        def multiplier(step: int) -> float:
            return (step + 1) / warm if step < warm else max(0.0, (total - step) / (total - warm))

        super().__init__(optimizer, multiplier, last_epoch)


class Warmup(LambdaLR):
    """Multiply lr by 1/W, 2/W, ..., 1 over W = warmup_steps steps, then by 1.

    >>> import torch, untuned
    >>> from untuned.schedules import Warmup
    >>> optimizer = untuned.Prodigy([torch.nn.Parameter(torch.ones(1))])
    >>> schedule = Warmup(optimizer, warmup_steps=4)
    >>> optimizer.param_groups[0]["lr"]
    0.25
    """

    def __init__(self, optimizer: torch.optim.Optimizer, warmup_steps: int, last_epoch: int = -1) -> None:
        warm = _count("Warmup", "warmup_steps", warmup_steps, 1)
        super().__init__(optimizer, lambda step: min(1.0, (step + 1) / warm), last_epoch)

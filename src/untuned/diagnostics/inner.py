"""The optimizer whose steps are looked at."""

from __future__ import annotations

from typing import Any

import torch


def innermost(optimizer: Any, title: str) -> torch.optim.Optimizer:
    """The optimizer, or the one that it wraps, as Accelerate's does; TypeError if there is none."""
    inner = optimizer
    while (wrapped := getattr(inner, "optimizer", None) or getattr(inner, "optim", None)) is not None:
        inner = wrapped
    if not isinstance(inner, torch.optim.Optimizer):
        raise TypeError(f"{title} needs a torch.optim.Optimizer, not {type(optimizer).__name__}.")
    return inner

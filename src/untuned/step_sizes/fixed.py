"""The user's learning rate, with or without a warm-up."""

from __future__ import annotations

from typing import Any

from untuned.parts import Place, StepSize, hyper, minimum


class Fixed(StepSize):
    """p <- p - lr u, divided by the direction's bias correction if it has one. Slots: none."""

    lr: float = hyper(default=1e-3, within="[0, inf)")

    def size(self, x: Place) -> tuple[Any, Any]:
        return x.lr / x.bias, x.lr


class WarmedUp(StepSize):
    """lr min(1, t / warmup_steps), t counting the steps of the tensor from 1. Slots: none."""

    lr: float = hyper(default=1e-3, within="[0, inf)")
    warmup_steps: int = hyper(default=0, within="[0, inf)")

    def size(self, x: Place) -> tuple[Any, Any]:
        now = x.lr * minimum(1.0, x.t / (x.warmup_steps + 1e-300))
        return now / x.bias, now

"""Schedule-Free: averaging in place of a schedule."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.iterates.averaged import Evaluated
from untuned.parts import Place, hyper, maximum, number, where


class ScheduleFree(Evaluated):
    """Schedule-Free learning: arXiv 2405.15682, Algorithm 1 with the weights of the released package.

        y = (1 - beta) z + beta x                        gradients are taken at y, which p holds while training
        z <- the plain step from z, with the weight decay of y
        c  = w / sum of all w,   w = t^r (largest rate so far)^weight_lr_power
        x <- (1 - c) x + c z                             the averaged point, which p holds after eval()

    Stored are z and y; x = (y - (1 - beta) z) / beta. Step sizes measure at z, as in the published composites: Polyak's
    step (arXiv 2511.07767) and the authors' Prodigy; with `measure_at="y"` at y, which no theory covers. Differs from
    the released package in that: it starts in training mode; the weights' sum is kept per tensor, so that a tensor
    which joins late is averaged from its own first step; weights and gradients are left as they are. Any direction and
    step size. Slots: 1, and three numbers per tensor.
    """

    beta: float = hyper(default=0.9, within="(0, 1)")
    r: float = hyper(default=0.0, within="[0, inf)")
    weight_lr_power: float = hyper(default=2.0, within="[0, inf)")
    scope = "tensor"
    decays_w: ClassVar[bool] = False
    largest = number(0.0, key="lr_max")
    total = number(0.0, key="weight_sum")
    ck = number(0.0, key="ckp1")

    def decide(self, c: Place) -> None:
        c.largest = maximum(c.largest, c.rate)
        w = c.t**c.r * c.largest**c.weight_lr_power
        c.total = c.total + w
        c.ck = where(c.total > 0, w / c.total, 0.0)

    def _train(self, x: Place) -> Any:
        return x.beta

    def _share(self, x: Place) -> Any:
        return x.ck

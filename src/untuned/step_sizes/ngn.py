"""NGN: a step from the loss that goes smoothly from a fixed one to twice Polyak's."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.parts import Place, StepSize, dot, hyper, maximum, number, ratio
from untuned.step_sizes.loss_advice import bounded
from untuned.step_sizes.polyak import loss_shift


class NGN(StepSize):
    """The step of non-negative Gauss-Newton: arXiv 2407.04358, gamma = c / (1 + c |g|^2 / (2 f)) with c = lr.

        gap   = max(f - lb, 0)
        theta = 2 gap / (2 gap + sum lr <g, u>)                            0 where gap is 0
        x    <- x - theta lr u

    The Gauss-Newton step on r = sqrt(f - lb) with 1/lr as damping. It is below lr, and near it where the gradient is
    small for the loss, and below 2 gap / <g, u>, twice Polyak's step, which it comes near to where lr is large. Where
    <g, u> < 0, as with momentum in the direction, theta is 1. Groups of different lr share one theta. Weight decay,
    averaging iterates and needs as in `SPS`; under `PrimalAverage` it is NGN-M (recalled, arXiv 2508.15071). Differs
    from the public code (step-back) in that: groups there have a theta each, of their lr and the norm of all gradients;
    and a loss below 0 may lead uphill, as there is no lb. Sweeps: 2. Slots: none.
    """

    lr: float = hyper(default=1.0, within="[0, inf)")
    lb: float = hyper(default=0.0, within="(-inf, inf)")
    needs: ClassVar[frozenset[str]] = frozenset({"loss", "additive"})
    theta = number(0.0)

    def measure(self, x: Place) -> tuple[Any, Any]:
        return x.lr / x.bias * dot(x.g, x.u), loss_shift(x)

    def decide(self, c: Place, slope: Any, shift: Any) -> None:
        gap = maximum(c.loss + shift - c.lb, 0.0)
        c.theta = ratio(2 * gap, 2 * gap + maximum(slope, 0.0))

    def advice(self, numbers: dict[str, Any]) -> str | None:
        return bounded(self.name, numbers)

    def size(self, x: Place) -> tuple[Any, Any]:
        return x.theta * x.lr / x.bias, x.theta * x.lr

"""NGN: a Polyak step that needs no bound to be reached, and none above the user's."""

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

    The Gauss-Newton step, with 1/lr as damping, on f - lb = r^2. It is at most lr, which binds where the gradient is
    small, and at most 2 gap / <g, u>, twice Polyak's step: lr is a cap that the step comes near to, and never meets. It
    goes to 0 as the loss goes to lb. Groups of different lr share one theta. Weight decay, averaging iterates and needs
    as in `SPS`. Sweeps: 2. Slots: none.
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

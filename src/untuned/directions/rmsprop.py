"""The gradient over its root mean square."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.parts import Direction, Place, hyper, slot, sqrt


class RMSProp(Direction):
    """Adam without its first moment: Tieleman and Hinton 2012, with Adam's bias correction (arXiv 1412.6980).

        v <- beta2 v + (1 - beta2) b g^2
        u  = a g / (sqrt(v / (1 - beta2^t)) + sqrt(b) eps)

    The direction inside Schedule-Free AdamW, whose iterate does the averaging. With `corrected=False` v stays as it is,
    as in torch.optim.RMSprop, and the correction is left to step sizes that apply it. Slots: 1.
    """

    beta2: float = hyper(default=0.999, within="[0, 1)")
    eps: float = hyper(default=1e-8, within="(0, inf)")
    corrected: bool = True
    gives: ClassVar[frozenset[str]] = frozenset({"average", "diagonal", "weighted"})
    v = slot("exp_avg_sq")

    def weight(self, x: Place) -> tuple[Any, Any]:
        return 0.0, 1.0

    def average(self, x: Place) -> Any:
        return x.a * x.g

    def accumulate(self, x: Place) -> None:
        x.v = x.beta2 * x.v + (1 - x.beta2) * x.b * x.g * x.g

    def scale(self, x: Place) -> Any:
        c2 = 1 - x.beta2**x.t if self.corrected else 1.0
        return sqrt(x.v / c2) + sqrt(x.b) * x.eps

    def unit(self, x: Place) -> Any:
        return x.a * x.g / x.scale

    def factor(self, x: Place) -> Any:
        return 1.0 if self.corrected else sqrt(1 - x.beta2**x.t)

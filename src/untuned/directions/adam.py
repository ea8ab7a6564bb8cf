"""Adam's direction."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.parts import Direction, Place, hyper, slot, sqrt


class Adam(Direction):
    """Adam: arXiv 1412.6980, Algorithm 1.

        m <- beta1 m + (1 - beta1) a g
        v <- beta2 v + (1 - beta2) b g^2
        u  = m / (sqrt(v / (1 - beta2^t)) + sqrt(b) eps)         the step divides by 1 - beta1^t

    a and b are the weights of the step size (1 for a fixed one); eps is scaled like sqrt(v). With `correct=False`
    neither average is corrected. t counts the steps of the tensor and the corrections take the betas of the step, as in
    torch.optim.Adam, also where a schedule moves beta1. Slots: 2.
    """

    betas: tuple[float, float] = hyper(default=(0.9, 0.999), within="[0, 1)")
    eps: float = hyper(default=1e-8, within="(0, inf)")
    correct: bool = True
    gives: ClassVar[frozenset[str]] = frozenset({"average", "diagonal", "weighted"})
    m = slot("exp_avg")
    v = slot("exp_avg_sq")

    def weight(self, x: Place) -> tuple[Any, Any]:
        return x.beta1, 1 - x.beta1

    def accumulate(self, x: Place) -> None:
        x.m = x.keep * x.m + x.a * x.take * x.g
        x.v = x.beta2 * x.v + (1 - x.beta2) * x.b * x.g * x.g

    def scale(self, x: Place) -> Any:
        c2 = 1 - x.beta2**x.t if self.correct else 1.0
        return sqrt(x.v / c2) + sqrt(x.b) * x.eps

    def unit(self, x: Place) -> Any:
        return x.m / x.scale

    def bias(self, x: Place) -> Any:
        return 1 - x.beta1**x.t if self.correct else 1.0

    def factor(self, x: Place) -> Any:
        return (1.0 if self.correct else sqrt(1 - x.beta2**x.t)) / (1 - x.beta1**x.t)

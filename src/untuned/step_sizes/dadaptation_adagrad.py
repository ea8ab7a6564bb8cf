"""D-Adaptation with AdaGrad."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.parts import Place, StepSize, dot, each, hyper, maximum, minimum, norm1, number, ratio


class DAdaptationAdaGrad(StepSize):
    """D-Adaptation with AdaGrad: arXiv 2301.07733, Algorithm 2, as in the released package.

    m, the direction's sum, takes d lr g; its step goes from x0; D is the direction's scale:

        Q <- Q + (d lr)^2 <g, g / D>;   d_hat = (<m, m / D> - Q) / |m|_1          no change while m = 0
        d <- max(d, min(d_hat, d growth_rate));   x <- x0 - m / D

    Differs from the released package in that the sums are taken anew at every step, not carried on, in groups of
    different lr and in weight decay and momentum, which it has for dense gradients only. Groups are units as in
    `DAdaptation`, but for the 1e-6 that `AdaGradDA` adds to v, which has none: at a fraction a of the largest lr, a
    step is longer than the unit makes it by (1/a^2 - 1) 5e-7 / v of itself. Sweeps: 2. Slots: none, and one number per
    tensor.
    """

    lr: float = hyper(default=1.0, within="[0, inf)")
    d0: float = hyper(default=1e-6, within="(0, inf)")
    growth_rate: float = hyper(default=float("inf"), within="[1, inf]")
    needs: ClassVar[frozenset[str]] = frozenset({"weighted", "from_start", "diagonal"})
    d = number("d0")
    Q = number(0.0, key="d_penalty", each=True)

    def gradient_factors(self, x: Place) -> tuple[Any, Any]:
        return x.d * x.lr, 1.0

    def measure(self, x: Place) -> tuple[Any, ...]:
        unit = x.lr / x.top
        return each(x.a * x.a / unit * dot(x.g, ratio(x.g, x.scale))), dot(x.m, x.u) / unit, norm1(x.m)

    def decide(self, c: Place, step: Any, mu: Any, m1: Any) -> None:
        c.Q = c.Q + step
        c.d = maximum(c.d, minimum(ratio(mu - c.summed(c.Q), m1), c.d * c.growth_rate))

    def size(self, x: Place) -> tuple[Any, Any]:
        return 1.0, x.was_d * x.lr

"""D-Adaptation for gradients."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.parts import Place, StepSize, choice, dot, each, hyper, maximum, minimum, number, ratio, slot, sqrt, where


class DAdaptationSGD(StepSize):
    """D-Adaptation for SGD: arXiv 2301.07733, Algorithm 3 (first version), factor 2 as in the released package.

        r <- r + d top <g, s>;   s <- s + d lr g;   G = |g| of the first step
        d_hat = 2 r / (G |s|)                                 no change while that is 0 / 0
        d <- max(d, min(d_hat, d growth_rate))
        x <- x - lr d / G g                                   d from before

    s is not divided by G here, the released package's is: the same numbers. Groups of different lr are in units in
    which the largest serves all; r is kept per tensor (see `DAdaptation`). Differs from the released package in these
    two, in the weight decay of each group, which also enters G, and in that a zero gradient is no error. Without
    momentum d <= 2 |x0 - x*| on convex problems. Needs the gradient itself. Sweeps: 2. Slots: 1, and one number per
    tensor.
    """

    lr: float = hyper(default=1.0, within="[0, inf)")
    d0: float = hyper(default=1e-6, within="(0, inf)")
    growth_rate: float = hyper(default=float("inf"), within="[1, inf]")
    freeze_after: float = hyper(default=float("inf"), within="[0, inf]")
    scope: str = choice(default="model", others=("group", "tensor"))
    needs: ClassVar[frozenset[str]] = frozenset({"gradient"})
    s = slot("s")
    d = number("d0")
    G = number(0.0, key="g0_norm")
    r = number(0.0, key="numerator_weighted", each=True)

    def measure(self, x: Place) -> tuple[Any, ...]:
        unit = x.lr / x.top
        agreement = x.d * x.top * dot(x.g, x.s)
        x.s = x.s + x.d * x.lr * x.g
        return each(agreement), dot(x.s, x.s) / unit, unit * dot(x.g, x.g)

    def decide(self, c: Place, agreement: Any, ss: Any, gg: Any) -> None:
        c.G = where(c.G > 0, c.G, sqrt(gg))
        c.r = c.r + agreement
        d_hat = 2 * ratio(c.summed(c.r), c.G * sqrt(ss))
        d = maximum(c.d, minimum(d_hat, c.d * c.growth_rate))
        c.d = where(c.t > c.freeze_after, c.d, d)

    def size(self, x: Place) -> tuple[Any, Any]:
        now = x.lr * ratio(x.was_d, x.G)
        return now, now

"""D-Adaptation for a direction of signs."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.parts import Place, StepSize, choice, dot, each, hyper, maximum, minimum, norm1, number, ratio, slot, where


class DAdaptationLion(StepSize):
    """D-Adaptation for a direction of signs: the Lion form of the released package (not in arXiv 2301.07733).

        h  = d lr, h_top = d top;   the direction's average takes h_top g
        r <- beta3 r + (1 - beta3) h_top <u, s>;   s <- beta3 s + (1 - beta3) h_top u
        d_hat = r / ((1 - beta3) |s|_1);   d <- max(d, d_hat)
        x <- x - h u                                              d from before

    While d is small, so is the average: Lion then follows the sign of the gradient, and its authors report that it
    learns worse than the Adam form. `scale_average=False` leaves the average as it is. Either way d can run away, in
    the released package too: `freeze_after` ends its growth. Groups and r as in `DAdaptation`. Needs the direction's
    `weighted`. Sweeps: 2. Slots: 1, and one number per tensor.
    """

    lr: float = hyper(default=1.0, within="[0, inf)")
    d0: float = hyper(default=1e-6, within="(0, inf)")
    growth_rate: float = hyper(default=float("inf"), within="[1, inf]")
    freeze_after: float = hyper(default=float("inf"), within="[0, inf]")
    beta3: float = hyper(default=0.99**0.5, within="[0, 1)")
    scale_average: bool = True
    scope: str = choice(default="model", others=("group", "tensor"))
    needs: ClassVar[frozenset[str]] = frozenset({"weighted"})
    s = slot("s")
    d = number("d0")
    r = number(0.0, key="numerator_weighted", each=True)

    def gradient_factors(self, x: Place) -> tuple[Any, Any]:
        return x.was_d * x.top if self.scale_average else 1.0, 1.0

    def measure(self, x: Place) -> tuple[Any, Any]:
        agreement = x.d * x.top * dot(x.u, x.s)
        x.s = x.beta3 * x.s + (1 - x.beta3) * x.d * x.top * x.u
        return each(agreement), norm1(x.s)

    def decide(self, c: Place, agreement: Any, s1: Any) -> None:
        c.r = c.beta3 * c.r + (1 - c.beta3) * agreement
        d_hat = ratio(c.summed(c.r), (1 - c.beta3) * s1)
        d = maximum(c.d, minimum(d_hat, c.d * c.growth_rate))
        c.d = where(c.t > c.freeze_after, c.d, d)

    def size(self, x: Place) -> tuple[Any, Any]:
        now = x.was_d * x.lr
        return now, now

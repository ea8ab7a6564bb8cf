"""AdaRem: a gain for every element of the gradient."""

from __future__ import annotations

from typing import Any

from untuned.parts import GradientTransform, Place, hyper, largest, number, ratio, slot


class AdaRem(GradientTransform):
    """AdaRem (experimental): arXiv 2010.11041, recalled from its one public implementation, for Flax; no code is given.

        g' = (1 + lam^(t-1) sign(g) m / (M + eps)) g,   M = max |m| over the tensor        0 / 0 = 0
        m <- beta m + (1 - beta) g                          after its use

    Where an element agrees with its past, the gain is up to 2, so that lr is stable up to half the rate of gradient
    descent only; where it turns round, the gain is down to 0; lam lets the gains tend to 1. t counts the steps of the
    tensor. Differs from the recalled code in that: a weight decay comes after the gain; eps may be 0. A tensor that is
    cut in two has other gains. beta and eps are group entries, so directions or iterates with options of these names do
    not go with it. Any step size. Sweeps: 2. Slots: 1, and one number per tensor.
    """

    beta: float = hyper(default=0.9, within="[0, 1)")
    lam: float = hyper(default=0.999, within="[0, 1]")
    eps: float = hyper(default=1e-8, within="[0, inf)")
    scope = "tensor"
    m = slot("gradient_avg")
    M = number(0.0, key="gradient_avg_max")

    def look(self, x: Place) -> Any:
        return largest(x.m)

    def decide(self, c: Place, most: Any) -> None:
        c.M = most

    def gradient(self, x: Place, g: Any) -> Any:
        return g + x.lam ** (x.t - 1) * ratio(x.m, x.M + x.eps) * abs(g)

    def remember(self, x: Place) -> None:
        x.m = x.beta * x.m + (1 - x.beta) * x.g

"""Adaptive heavy ball: the momentum that suits the learning rate and the curvature met."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.parts import Iterate, Place, dot, each, hyper, maximum, minimum, number, ratio, slot, sqrt, where


def best_momentum(c: Place, curvature: Any, moved: Any) -> Any:
    """(1 - sqrt(lr lambda))^2 of (lr lambda)^2 = curvature / moved, capped; the momentum before where none moved."""
    product = minimum(sqrt(ratio(curvature, moved)), c.cap)
    beta = minimum((1 - sqrt(product)) * (1 - sqrt(product)), 1 - c.delta)
    return where(moved > 0, maximum(beta, 0.0), c.beta)


class AdaptiveHeavyBall(Iterate):
    """Heavy ball with adaptive momentum: arXiv 2110.09057, recalled from a third party's implementation.

        beta = (1 - sqrt(lr |g - g_before| / |p - p_before|))^2,   at most 1 - delta     one for the model
        p <- the plain step from p  +  beta (p - p_before)

    On a parabola of curvature lambda, (1 - sqrt(lr lambda))^2 is the best momentum for the step lr; the two norms, of
    the whole model, estimate lambda. g has the coupled weight decay in it. beta is 0 in the first step of all, and as
    before where nothing moved. Tensors that join late add nothing to the norms in their first step; where groups have
    different rates, each difference of gradients is multiplied by its own.

    Differs from that implementation, in R, in that: beta there is that of the next step, from |g - g_before| and the
    displacement that follows g, which belongs to the next difference; it begins with the third step, with 1e-6 in the
    denominator and delta = 0.01.

    `cap` bounds lr lambda. The paper has none (cap=inf): there beta grows again where lr lambda is above 1, up to
    1 - delta where it is 4, as differences of noise make it; with cap=1, the default here, noise ends momentum.
    Needs the gradient as direction. Sweeps: 2. Slots: 2, and a number per tensor.
    """

    delta: float = hyper(default=1e-3, within="(0, 1]")
    cap: float = hyper(default=1.0, within="(0, inf]")
    gives: ClassVar[frozenset[str]] = frozenset({"plain_step"})
    needs: ClassVar[frozenset[str]] = frozenset({"gradient"})
    lacks: ClassVar[dict[str, str]] = {"additive": "AdaptiveHeavyBall adds the step before to every step"}
    d = slot("displacement")
    before = slot("previous_grad")
    beta = number(0.0, key="adaptive_beta")
    moved = number(0.0, key="moved_sq", each=True)

    def measure(self, x: Place) -> Any:
        change = x.rate * (x.g - x.before)
        x.before = x.g
        return where(x.t > 1, dot(change, change), 0.0)

    def decide(self, c: Place, curvature: Any) -> None:
        c.beta = best_momentum(c, curvature, c.summed(c.moved))

    def move(self, x: Place) -> None:
        new = x.base(x.p) + x.beta * x.d
        x.d = new - x.p
        x.p = new

    def watch(self, x: Place) -> Any:
        return each(dot(x.d, x.d))

    def record(self, c: Place, moved: Any) -> None:
        c.moved = moved

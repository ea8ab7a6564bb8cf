"""Lion: the sign of a mixture of momentum and gradient."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.parts import Direction, Place, hyper, sign, slot


class Lion(Direction):
    """Lion: arXiv 2302.06675, Algorithm 2.

        u  = sign(beta1 m + (1 - beta1) g)               m from before this step
        m <- beta2 m + (1 - beta2) a g

    Slots: 1.
    """

    betas: tuple[float, float] = hyper(default=(0.9, 0.99), within="[0, 1)")
    gives: ClassVar[frozenset[str]] = frozenset({"weighted"})
    lacks: ClassVar[dict[str, str]] = {"average": "Lion steps along a sign, not along an average"}
    m = slot("exp_avg")

    def unit(self, x: Place) -> Any:
        return sign(x.beta1 * x.m + (1 - x.beta1) * x.g)

    def remember(self, x: Place) -> None:
        x.m = x.beta2 * x.m + (1 - x.beta2) * x.a * x.g

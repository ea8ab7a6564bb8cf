"""Lion: the sign of a mixture of momentum and gradient."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.parts import Direction, Place, hyper, sign, slot


class Lion(Direction):
    """Lion: arXiv 2302.06675, Algorithm 2.

        u  = sign(beta1 m + (1 - beta1) g)               m from before this step
        m <- beta2 m + (1 - beta2) a g

    The old average is recovered from the new one, so that the direction can be asked for after the moments moved:
    beta2 (beta1 m_old + (1 - beta1) g) = beta1 m + (beta2 (1 - beta1) - beta1 (1 - beta2) a) g. Slots: 1.
    """

    betas: tuple[float, float] = hyper(default=(0.9, 0.99), within="(0, 1)")
    gives: ClassVar[frozenset[str]] = frozenset({"weighted"})
    lacks: ClassVar[dict[str, str]] = {"average": "Lion steps along a sign, not along an average"}
    m = slot("exp_avg")

    def accumulate(self, x: Place) -> None:
        x.m = x.beta2 * x.m + (1 - x.beta2) * x.a * x.g

    def unit(self, x: Place) -> Any:
        return sign(x.beta1 * x.m + (x.beta2 * (1 - x.beta1) - x.beta1 * (1 - x.beta2) * x.a) * x.g)

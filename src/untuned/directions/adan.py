"""Adan: Nesterov momentum estimated from differences of gradients."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.parts import Direction, Place, hyper, slot, sqrt, where


class Adan(Direction):
    """Adan: arXiv 2208.06677, Algorithm 1, in the form of the D-Adaptation package (no bias correction).

        D  = g - g_before                                            0 at the tensor's first step
        m <- beta1 m + (1 - beta1) a g;   n <- beta2 n + (1 - beta2) a D
        v <- beta3 v + (1 - beta3) b (g + beta2 D)^2
        u  = (m + beta2 n) / (sqrt(v) + sqrt(b) eps)

    Differs from the paper in that the averages start at 0, not at the first gradient. Slots: 4.
    """

    betas: tuple[float, float, float] = hyper(default=(0.98, 0.92, 0.99), within="[0, 1)")
    eps: float = hyper(default=1e-8, within="(0, inf)")
    gives: ClassVar[frozenset[str]] = frozenset({"diagonal", "weighted"})
    lacks: ClassVar[dict[str, str]] = {"average": "Adan adds an average of gradient differences"}
    before = slot("previous_grad")
    m = slot("exp_avg")
    n = slot("exp_avg_diff")
    v = slot("exp_avg_sq")

    def accumulate(self, x: Place) -> None:
        change = where(x.t > 1, x.g - x.before, 0.0)
        ahead = x.g + x.beta2 * change
        x.m = x.beta1 * x.m + (1 - x.beta1) * x.a * x.g
        x.n = x.beta2 * x.n + (1 - x.beta2) * x.a * change
        x.v = x.beta3 * x.v + (1 - x.beta3) * x.b * ahead * ahead
        x.before = x.g

    def scale(self, x: Place) -> Any:
        return sqrt(x.v) + sqrt(x.b) * x.eps

    def unit(self, x: Place) -> Any:
        return (x.m + x.beta2 * x.n) / x.scale

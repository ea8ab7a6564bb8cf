"""Gradients over roots of their summed squares."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.parts import Direction, Place, cbrt, hyper, maximum, ratio, slot, sqrt, where


class AdaGrad(Direction):
    """AdaGrad: Duchi, Hazan and Singer 2011, as `torch.optim.Adagrad`.

        v <- v + b g^2
        u  = a g / (sqrt(v) + sqrt(b) eps)

    Slots: 1.
    """

    eps: float = hyper(default=1e-10, within="[0, inf)")
    gives: ClassVar[frozenset[str]] = frozenset({"average", "diagonal", "weighted"})
    v = slot("sum")

    def weight(self, x: Place) -> tuple[Any, Any]:
        return 0.0, 1.0

    def average(self, x: Place) -> Any:
        return x.a * x.g

    def accumulate(self, x: Place) -> None:
        x.v = x.v + x.b * x.g * x.g

    def scale(self, x: Place) -> Any:
        return sqrt(x.v) + sqrt(x.b) * x.eps

    def unit(self, x: Place) -> Any:
        return ratio(x.a * x.g, x.scale)


class CubeRoot(Direction):
    """The direction of MirrorMADGRAD, from the package of arXiv 2101.11075 (no algorithm box in the paper).

        v <- sqrt((t - 1) / t) v + b g^2
        u  = a t^(1/3) g / (cbrt(v) + eps)            0 where that is 0 / 0

    t counts the steps of the tensor. Slots: 1.
    """

    eps: float = hyper(default=0.0, within="[0, inf)")
    gives: ClassVar[frozenset[str]] = frozenset({"average", "diagonal", "weighted"})
    v = slot("grad_sum_sq")

    def weight(self, x: Place) -> tuple[Any, Any]:
        return 0.0, 1.0

    def average(self, x: Place) -> Any:
        return x.a * x.g

    def accumulate(self, x: Place) -> None:
        x.v = sqrt((x.t - 1) / x.t) * x.v + x.b * x.g * x.g

    def scale(self, x: Place) -> Any:
        return (cbrt(x.v) + x.eps) / cbrt(x.t)

    def unit(self, x: Place) -> Any:
        return ratio(x.a * x.g, x.scale)


class DiagonalGradaGrad(Direction):
    """GradaGrad coordinate by coordinate: arXiv 2206.06900 (recalled; the property tests decide).

        w = g^2 - rho g g_before
        w >= 0:  alpha <- alpha + w                              else  gamma <- gamma sqrt(1 + min(-w / alpha, r))
        u = gamma g / sqrt(alpha)                                0 while alpha < 1.2e-38

    AdaGrad whose numerator grows where its sum ought to shrink; rho = 0 is AdaGrad. Slots: 3.
    """

    rho: float = hyper(default=2.0, within="[0, inf)")
    r: float = hyper(default=1.0, within="[0, inf)")
    before = slot("previous_grad")
    alpha = slot("alpha")
    gamma = slot("gamma", start=1.0)

    def accumulate(self, x: Place) -> None:
        w = x.g * x.g - x.rho * x.g * x.before
        growth = ratio(maximum(-w, 0.0), x.alpha)
        x.gamma = x.gamma * sqrt(1 + where(growth < x.r, growth, x.r))
        x.alpha = x.alpha + maximum(w, 0.0)
        x.before = x.g

    def unit(self, x: Place) -> Any:
        # Below the smallest normal float32 a fast square root is not to be trusted.
        return where(x.alpha > 1.2e-38, ratio(x.gamma * x.g, sqrt(x.alpha)), 0.0)

"""Sums of all past gradients, for dual averaging."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.parts import Direction, Place, cbrt, hyper, ratio, slot, sqrt

_GIVES = frozenset({"average", "weighted", "sum"})


class DualAverage(Direction):
    """The weighted sum of all gradients: Nesterov 2009.

        m <- m + a g
        u  = m

    With the iterate `FromStart` it is dual averaging, p = x0 - size m. Slots: 1.
    """

    gives: ClassVar[frozenset[str]] = _GIVES
    m = slot("grad_sum")

    def weight(self, x: Place) -> tuple[Any, Any]:
        return 1.0, 1.0

    def accumulate(self, x: Place) -> None:
        x.m = x.m + x.a * x.g

    def unit(self, x: Place) -> Any:
        return x.m


class AdaGradDA(Direction):
    """AdaGrad in its dual averaging form: Duchi, Hazan and Singer 2011.

        m <- m + a g;   v <- v + b g^2
        u  = m / (sqrt(v + 1e-6) + eps)

    with 1e-6 added to v, as in the D-Adaptation package. Slots: 2.
    """

    eps: float = hyper(default=1e-6, within="[0, inf)")
    gives: ClassVar[frozenset[str]] = _GIVES | {"diagonal"}
    m = slot("grad_sum")
    v = slot("grad_sum_sq")

    def weight(self, x: Place) -> tuple[Any, Any]:
        return 1.0, 1.0

    def accumulate(self, x: Place) -> None:
        x.m = x.m + x.a * x.g
        x.v = x.v + x.b * x.g * x.g

    def scale(self, x: Place) -> Any:
        return sqrt(x.v + 1e-6) + x.eps

    def unit(self, x: Place) -> Any:
        return x.m / x.scale


class CubeRootDA(Direction):
    """Dual averaging over the cube root of the sum of squares: arXiv 2101.11075, Algorithm 1 (MADGRAD).

        m <- m + a g;   v <- v + b g^2
        u  = m / (cbrt(v) + eps)                 0 where that is 0 / 0

    Slots: 2.
    """

    eps: float = hyper(default=1e-6, within="[0, inf)")
    gives: ClassVar[frozenset[str]] = _GIVES | {"diagonal"}
    m = slot("grad_sum")
    v = slot("grad_sum_sq")

    def weight(self, x: Place) -> tuple[Any, Any]:
        return 1.0, 1.0

    def accumulate(self, x: Place) -> None:
        x.m = x.m + x.a * x.g
        x.v = x.v + x.b * x.g * x.g

    def scale(self, x: Place) -> Any:
        return cbrt(x.v) + x.eps

    def unit(self, x: Place) -> Any:
        return ratio(x.m, x.scale)

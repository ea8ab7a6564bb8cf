"""The weights of modernised dual averaging."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.parts import Place, StepSize, hyper, sqrt

_NEEDS = frozenset({"weighted", "from_start"})


class MDA(StepSize):
    """Modernised dual averaging: arXiv 2010.10502.

    The direction's sum takes sqrt(t) lr g, and the step from x0 divides it by sqrt(t):

        m <- m + sqrt(t) lr g;   x <- x0 - m / sqrt(t)

    which is z <- z - lr g + (1 - sqrt((t - 1) / t)) (x0 - z): gradient descent with a decaying pull to the start. t
    counts the steps of the tensor. Slots: none.
    """

    lr: float = hyper(default=1.0, within="[0, inf)")
    needs: ClassVar[frozenset[str]] = _NEEDS

    def gradient_factors(self, x: Place) -> tuple[Any, Any]:
        return x.lr * sqrt(x.t), 1.0

    def size(self, x: Place) -> tuple[Any, Any]:
        return 1 / sqrt(x.t), x.lr


class MADGRAD(StepSize):
    """The weights of MADGRAD: arXiv 2101.11075, Algorithm 1.

    The direction's sums take w g and w g^2 with w = lr sqrt(t), and the step from x0 is 1. t counts the steps of the
    tensor. Differs from the released package in w = (lr + eps) sqrt(t) there. Slots: none.
    """

    lr: float = hyper(default=1e-2, within="[0, inf)")
    needs: ClassVar[frozenset[str]] = _NEEDS

    def gradient_factors(self, x: Place) -> tuple[Any, Any]:
        return x.lr * sqrt(x.t), x.lr * sqrt(x.t)

    def size(self, x: Place) -> tuple[Any, Any]:
        return 1.0, x.lr

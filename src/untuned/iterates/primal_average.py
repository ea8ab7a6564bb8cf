"""Primal averaging: momentum by averaging the iterates."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.parts import Iterate, Place, hyper, slot


class PrimalAverage(Iterate):
    """Stochastic primal averaging: arXiv 2010.00406.

        z <- the plain step from z, with the weight decay of z
        p <- momentum p + (1 - momentum) z

    Equal to SGD with heavy ball `momentum` at (1 - momentum) times this lr, while lr is constant and weight decay
    coupled. Slots: 1.
    """

    gives: ClassVar[frozenset[str]] = frozenset({"additive", "plain_step"})
    momentum: float = hyper(default=0.9, within="[0, 1)")
    decays_w: ClassVar[bool] = True
    z = slot("z", start="start")

    def point(self, x: Place) -> Any:
        return x.z

    def move(self, x: Place) -> None:
        x.z = x.base(x.z)
        x.p = x.momentum * x.p + (1 - x.momentum) * x.z

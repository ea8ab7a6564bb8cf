"""SNGM: normalise the gradient, then accumulate."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.parts import Direction, Place, choice, dot, hyper, number, ratio, slot, sqrt


class SNGM(Direction):
    """Stochastic normalised gradient descent with momentum: arXiv 2007.13985, Algorithm 1.

        m <- momentum m + a g / |g|                       0 / 0 = 0
        u  = m

    |g| is the norm of the whole gradient, coupled weight decay included, or of a narrower `scope`. Unlike
    implementations that add an eps to the norm. Slots: 1, and one number.
    """

    momentum: float = hyper(default=0.9, within="[0, 1)")
    scope: str = choice(default="model", others=("group", "tensor"))
    lacks: ClassVar[dict[str, str]] = {"average": "SNGM normalises each group or tensor apart unless scope='model'"}
    m = slot("momentum_buffer")
    inverse = number(0.0, key="inverse_norm")

    @property
    def gives(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return frozenset({"average", "weighted"} if self.scope == "model" else {"weighted"})

    def look(self, x: Place) -> Any:
        return dot(x.g, x.g)

    def decide(self, c: Place, gg: Any) -> None:
        c.inverse = ratio(1.0, sqrt(gg))

    def weight(self, x: Place) -> tuple[Any, Any]:
        return x.momentum, x.inverse

    def accumulate(self, x: Place) -> None:
        x.m = x.keep * x.m + x.a * x.take * x.g

    def unit(self, x: Place) -> Any:
        return x.m

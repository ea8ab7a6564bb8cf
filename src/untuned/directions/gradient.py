"""The gradient itself."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.parts import Direction, Place


class Gradient(Direction):
    """u = g: gradient descent.

        u = a g          (keep = 0, take = 1: the average holds the current gradient alone)

    Differs from the reference implementation in nothing (torch.optim.SGD without momentum). Slots: none.
    """

    gives: ClassVar[frozenset[str]] = frozenset({"average", "weighted", "gradient"})

    def weight(self, x: Place) -> tuple[Any, Any]:
        return 0.0, 1.0

    def average(self, x: Place) -> Any:
        return x.a * x.g

    def unit(self, x: Place) -> Any:
        return x.a * x.g

"""Dual averaging: the step is taken from the starting point."""

from __future__ import annotations

from typing import ClassVar

from untuned.core.declare import hyper, slot
from untuned.core.parts import Iterate
from untuned.core.place import Place


class FromStart(Iterate):
    """p <- momentum p + (1 - momentum) (x0 - size u), x0 being where the tensor stood at its first step.

    Dual averaging when u is a sum of gradients (Nesterov 2009), with the averaging that arXiv 2010.10502 and 2101.11075
    use for momentum. Decoupled weight decay acts on p after the averaging, from the weights p had before. Slots: 1.
    """

    momentum: float = hyper(default=0.0, within="[0, 1)")
    gives: ClassVar[frozenset[str]] = frozenset({"owns_p", "from_start"})
    needs: ClassVar[frozenset[str]] = frozenset({"sum"})
    x0 = slot("x0", start="start")

    def move(self, x: Place) -> None:
        z = x.x0 - x.size * x.u
        x.p = x.decayed(x.momentum * x.p + (1 - x.momentum) * z, x.p)

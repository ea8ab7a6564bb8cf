"""The plain iterate."""

from __future__ import annotations

from typing import ClassVar

from untuned.core.parts import Iterate
from untuned.core.place import Place


class Plain(Iterate):
    """p <- the plain step from p. Slots: none."""

    affine: ClassVar[bool] = True

    def move(self, x: Place) -> None:
        x.p = x.base(x.p)

"""The plain iterate."""

from __future__ import annotations

from typing import ClassVar

from untuned.parts import Iterate, Place


class Plain(Iterate):
    """p <- the plain step from p. Slots: none."""

    gives: ClassVar[frozenset[str]] = frozenset({"additive", "plain_step"})
    affine: ClassVar[bool] = True

    def move(self, x: Place) -> None:
        x.p = x.base(x.p)

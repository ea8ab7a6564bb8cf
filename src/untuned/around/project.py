"""Normalize-and-Project: weights that keep the norm they began with."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.parts import Place, StepTransform, choice, dot, number, ratio, sqrt, where


class Project(StepTransform):
    """The projection of Normalize-and-Project: arXiv 2407.01800, for layers whose output is normalised.

        w <- w' R / |w'|                                  w': the plain step; R: |w| before the tensor's first step

    The norms are of a tensor or, with scope="row", of each slice along the first dimension; a tensor with fewer than
    two dimensions is one row. What has the norm 0, at the start or after a plain step, is left alone. Meant for the
    matrices between normalisations, so give other tensors a label without it: around={"hidden": [Project()], "rest":
    []}. Differs from the paper in that: every step is projected, and the layers' scales and offsets are not. Under
    Schedule-Free it is z that keeps its norm. For other packages' optimizers, every so many steps, and scales and
    offsets there is `wrappers.WeightProjector`, which projects behind a step instead of inside it. Sweeps: 2. Slots:
    none, and two numbers per tensor or row.
    """

    scope: str = choice(default="tensor", others=("row",))
    removes: ClassVar[frozenset[str]] = frozenset({"additive"})
    lacks: ClassVar[dict[str, str]] = {"additive": "Project rescales the weights after every step"}
    R = number(-1.0, key="kept_norm")  # -1 before the first step
    f = number(1.0, key="rescaling")

    def measure(self, x: Place) -> tuple[Any, Any]:
        new = x.base(x.w)
        return dot(new, new), dot(x.w, x.w)

    def decide(self, c: Place, after: Any, before: Any) -> None:
        R = where(c.R < 0, sqrt(before), c.R)
        f = ratio(R, sqrt(after))
        c.R, c.f = R, where(f > 0, f, 1.0)

    def around(self, x: Place, w: Any, new: Any) -> Any:
        return x.f * new

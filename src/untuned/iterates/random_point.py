"""Gradients at a random point of the step."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.parts import Iterate, Place, hyper, number, slot, uniform


class RandomPoint(Iterate):
    """Online-to-non-convex conversion with a uniform point: arXiv 2405.09742, as in the authors' public code.

        z' = the plain step from z, with the weight decay of p
        p <- z + s (z' - z),   s ~ U(0, 1)                one s for the model in every step
        z <- z'

    Gradients are taken at p, which parameters hold. Of a fixed step D the mean slope along it is the mean change of the
    loss over it: E <grad F(z + s D), D> = F(z + D) - F(z), where `around.RandomScaling`, s ~ Exp(1), has
    E <grad F(z + s D), D> = E F(z + s D) - F(z) and needs no z. s follows from the seed and the number of the step
    alone, as there. The last p is the point that theory evaluates; `state[p]["z"]` holds the other. Step sizes measure
    at z. Slots: 1.
    """

    seed: int = hyper(default=0, within="[0, 4294967296)")
    gives: ClassVar[frozenset[str]] = frozenset({"additive", "plain_step"})
    z = slot("z", start="start")
    s = number(1.0, key="random_point")

    def point(self, x: Place) -> Any:
        return x.z

    def decide(self, c: Place) -> None:
        c.s = uniform(c.seed, c.k)

    def move(self, x: Place) -> None:
        z = x.base(x.z)
        x.p = x.z + x.s * (z - x.z)
        x.z = z

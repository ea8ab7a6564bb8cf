"""Distance over gradients."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.parts import Place, StepSize, choice, dot, each, hyper, maximum, number, ratio, slot, sqrt, where


class DoG(StepSize):
    """DoG: arXiv 2302.12022, equation (DoG); with `scope="tensor"` LDoG.

        R <- max(R, |x - x0|)             first reps_rel (1 + |x0|)
        S <- S + |u|^2
        x <- x - lr R / sqrt(S + dog_eps) u

    x0 is where the tensor stood at its first step. Groups of different lr are in units in which the largest serves all,
    if u is the gradient. Under an averaging iterate the x of R is its point x.w: z, where the steps lead, or y.
    The authors return a weighted average of the iterates; this is the last one. Differs from the reference
    implementation in one distance for all groups unless `scope="group"`. S is kept per tensor, so that one that rests
    leaves both sides of the fraction. Sweeps: 2. Slots: 1.
    """

    lr: float = hyper(default=1.0, within="[0, inf)")
    reps_rel: float = hyper(default=1e-6, within="(0, inf)")
    dog_eps: float = hyper(default=1e-8, within="[0, inf)")
    scope: str = choice(default="model", others=("group", "tensor"))
    reads_displacement: ClassVar[bool] = True
    x0 = slot("init_buffer", start="start")
    R = number(0.0, key="rbar")
    S = number(0.0, key="grad_norm_sq_sum", each=True)
    eta = number(0.0)

    def measure(self, x: Place) -> tuple[Any, ...]:
        unit, moved = x.lr / x.top, x.w - x.x0
        return dot(moved, moved) / unit, each(unit * dot(x.u, x.u)), dot(x.x0, x.x0) / unit

    def decide(self, c: Place, moved: Any, uu: Any, start: Any) -> None:
        c.R = maximum(where(c.R > 0, c.R, c.reps_rel * (1 + sqrt(start))), sqrt(moved))
        c.S = c.S + uu
        c.eta = ratio(c.R, sqrt(c.summed(c.S) + c.dog_eps))

    def size(self, x: Place) -> tuple[Any, Any]:
        return x.lr * x.eta, x.lr * x.eta


class DoWG(StepSize):
    """DoWG: arXiv 2305.16284, Algorithm 1, with the authors' eps as dog_eps.

        R2 <- max(R2, |x - x0|^2)             first dog_eps
        S  <- S + R2 |u|^2
        x  <- x - lr R2 / (sqrt(S) + dog_eps) u

    x0, groups, averaging iterates and the point returned as in `DoG`. Differs from the reference implementation in lr.
    Sweeps: 2. Slots: 1.
    """

    lr: float = hyper(default=1.0, within="[0, inf)")
    dog_eps: float = hyper(default=1e-4, within="(0, inf)")
    scope: str = choice(default="model", others=("group", "tensor"))
    reads_displacement: ClassVar[bool] = True
    x0 = slot("init_buffer", start="start")
    R2 = number("dog_eps", key="rbar_sq")
    S = number(0.0, key="grad_norm_sq_sum", each=True)
    eta = number(0.0)

    def measure(self, x: Place) -> tuple[Any, Any]:
        unit, moved = x.lr / x.top, x.w - x.x0
        return dot(moved, moved) / unit, each(unit * dot(x.u, x.u))

    def decide(self, c: Place, moved: Any, uu: Any) -> None:
        c.R2 = maximum(c.R2, moved)
        c.S = c.S + c.R2 * uu
        c.eta = c.R2 / (sqrt(c.summed(c.S)) + c.dog_eps)

    def size(self, x: Place) -> tuple[Any, Any]:
        return x.lr * x.eta, x.lr * x.eta

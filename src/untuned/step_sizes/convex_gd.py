"""Gradient descent forms of D-Adaptation and Prodigy: the theory's own, for convex problems."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.parts import Place, StepSize, dot, each, hyper, maximum, minimum, number, ratio, slot, sqrt, where

_NEEDS = frozenset({"gradient"})


def _distance(c: Place, eta: Any, gap: Any, moved: Any, gg: Any) -> Any:
    """Raise d to the bound after a step of eta; `moved` is |x0 - x|^2 before it."""
    c.r = c.r + eta * gap
    after = moved + 2 * eta * c.summed(gap) + eta * eta * c.top * c.top * c.summed(gg)
    d_hat = ratio(c.summed(c.r), sqrt(where(after > 0, after, 0.0)))
    return maximum(c.d, minimum(d_hat, c.d * c.growth_rate))


class DAdaptationGD(StepSize):
    """D-Adaptation by gradient descent: arXiv 2301.07733 (the step is quoted twice; d_hat derived, and tested).

        S <- S + |g|^2;   eta = d / sqrt(G^2 + S);   x <- x - lr eta g
        d_hat = sum lr eta <g, x0 - x> / |x0 - x|        x from before the step, in the norm from after it
        d <- max(d, min(d_hat, d growth_rate))

    On convex problems d <= |x0 - x*|, for any lr schedule. The paper returns the eta-weighted average of the iterates;
    this is the last one. Under an averaging iterate x is its point x.w; the norm after the step is that of z, so the
    theory's x is w = z. Groups of different lr are in units in which the largest serves all. Needs the gradient itself.
    Sweeps: 2. Slots: 1, and one number per tensor.
    """

    lr: float = hyper(default=1.0, within="[0, inf)")
    d0: float = hyper(default=1e-6, within="(0, inf)")
    growth_rate: float = hyper(default=float("inf"), within="[1, inf]")
    G: float = hyper(default=0.0, within="[0, inf)")
    needs: ClassVar[frozenset[str]] = _NEEDS
    reads_displacement: ClassVar[bool] = True
    x0 = slot("p0", start="start")
    d = number("d0")
    S = number(0.0, key="grad_norm_sq_sum", each=True)
    eta = number(0.0)
    r = number(0.0, key="d_numerator", each=True)

    def measure(self, x: Place) -> tuple[Any, ...]:
        unit, moved = x.lr / x.top, x.x0 - x.w
        return each(unit * dot(x.g, x.g)), each(x.top * dot(x.g, moved)), dot(moved, moved) / unit

    def decide(self, c: Place, gg: Any, gap: Any, moved: Any) -> None:
        c.S = c.S + gg
        c.eta = ratio(c.d, sqrt(c.G * c.G + c.summed(c.S)))
        c.d = _distance(c, c.eta, gap, moved, gg)

    def size(self, x: Place) -> tuple[Any, Any]:
        return x.lr * x.eta, x.lr * x.eta


class ProdigyGD(StepSize):
    """Prodigy by gradient descent: arXiv 2306.06101, Algorithm 1 (the step is quoted; d_hat derived, and tested).

        S <- S + d^2 |g|^2;   eta = d^2 / sqrt(d^2 G^2 + S);   x <- x - lr eta g
        d_hat = sum lr eta <g, x0 - x> / |x0 - x|        x from before the step, in the norm from after it
        d <- max(d, min(d_hat, d growth_rate))

    Differs from the paper in lr, which multiplies the step; the paper's weights enter S too, where a constant one
    cancels. Otherwise as `DAdaptationGD`. Sweeps: 2. Slots: 1, and one number per tensor.
    """

    lr: float = hyper(default=1.0, within="[0, inf)")
    d0: float = hyper(default=1e-6, within="(0, inf)")
    growth_rate: float = hyper(default=float("inf"), within="[1, inf]")
    G: float = hyper(default=0.0, within="[0, inf)")
    needs: ClassVar[frozenset[str]] = _NEEDS
    reads_displacement: ClassVar[bool] = True
    x0 = slot("p0", start="start")
    d = number("d0")
    S = number(0.0, key="grad_norm_sq_sum", each=True)
    eta = number(0.0)
    r = number(0.0, key="d_numerator", each=True)

    def measure(self, x: Place) -> tuple[Any, ...]:
        unit, moved = x.lr / x.top, x.x0 - x.w
        return each(unit * dot(x.g, x.g)), each(x.top * dot(x.g, moved)), dot(moved, moved) / unit

    def decide(self, c: Place, gg: Any, gap: Any, moved: Any) -> None:
        c.S = c.S + c.d * c.d * gg
        c.eta = ratio(c.d * c.d, sqrt(c.d * c.d * c.G * c.G + c.summed(c.S)))
        c.d = _distance(c, c.eta, gap, moved, gg)

    def size(self, x: Place) -> tuple[Any, Any]:
        return x.lr * x.eta, x.lr * x.eta

"""Dual averaging forms of D-Adaptation and Prodigy: the theory's own, for convex problems."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.parts import Place, StepSize, dot, each, hyper, maximum, minimum, number, ratio, sqrt, where

_NEEDS = frozenset({"weighted", "from_start"})


class DAdaptationDA(StepSize):
    """D-Adaptation by dual averaging: arXiv 2301.07733, Algorithm 1.

    m, the direction's sum, takes d lr g; its step goes from x0. gamma_i is gamma as it was before step i (1 / |g| at
    the first), S the sum of squares:

        S <- S + |g|^2;   gamma = 1 / sqrt(S);   x <- x0 - gamma m
        d_hat = (gamma |m|^2 - sum gamma_i (d lr)^2 |g|^2) / (2 |m|);   d <- max(d, min(d_hat, d growth_rate))

    On convex problems d <= |x0 - x*|. The paper returns the d-weighted average of the iterates; this is the last one.
    Groups of different lr are in units in which the largest serves all. Sweeps: 2. Slots: none, and one number per
    tensor.
    """

    lr: float = hyper(default=1.0, within="[0, inf)")
    d0: float = hyper(default=1e-6, within="(0, inf)")
    growth_rate: float = hyper(default=float("inf"), within="[1, inf]")
    needs: ClassVar[frozenset[str]] = _NEEDS
    d = number("d0")
    S = number(0.0, key="grad_norm_sq_sum", each=True)
    gamma = number(0.0)
    Q = number(0.0, key="d_penalty", each=True)

    def gradient_factors(self, x: Place) -> tuple[Any, Any]:
        return x.d * x.lr, 1.0

    def measure(self, x: Place) -> tuple[Any, ...]:
        unit = x.lr / x.top
        return each(unit * dot(x.g, x.g)), each(x.a * x.a / unit * dot(x.g, x.g)), dot(x.m, x.m) / unit

    def decide(self, c: Place, gg: Any, step: Any, mm: Any) -> None:
        before = c.summed(c.S)
        before = ratio(1.0, sqrt(where(before > 0, before, c.summed(gg))))
        c.S = c.S + gg
        c.gamma = ratio(1.0, sqrt(c.summed(c.S)))
        c.Q = c.Q + before * step
        d_hat = ratio(c.gamma * mm - c.summed(c.Q), 2 * sqrt(mm))
        c.d = maximum(c.d, minimum(d_hat, c.d * c.growth_rate))

    def size(self, x: Place) -> tuple[Any, Any]:
        return x.gamma, x.gamma

    def effective(self, x: Place, rate: Any) -> Any:
        return x.gamma * x.d * x.lr


class ProdigyDA(StepSize):
    """Prodigy by dual averaging: arXiv 2306.06101, Algorithm 2 (its weights d^2 are quoted, the rest recalled).

    m, the direction's sum, takes d^2 lr g; its step goes from x0:

        r <- r + d^2 lr <g, x0 - x>;   d_hat = r / |m|;   S <- S + d^2 |g|^2
        d <- max(d, min(d_hat, d growth_rate));   x <- x0 - m / sqrt(d^2 G^2 + S)

    On convex problems d <= |x0 - x*|, for any lr schedule. The paper returns the d^2-weighted average of the iterates;
    this is the last one. x0 - x is taken from the last step, so no copy of x0 is needed here. Groups of different lr
    are in units in which the largest serves all. Sweeps: 2. Slots: none, and one number per tensor.
    """

    lr: float = hyper(default=1.0, within="[0, inf)")
    d0: float = hyper(default=1e-6, within="(0, inf)")
    growth_rate: float = hyper(default=float("inf"), within="[1, inf]")
    G: float = hyper(default=0.0, within="[0, inf)")
    needs: ClassVar[frozenset[str]] = _NEEDS
    d = number("d0")
    S = number(0.0, key="grad_norm_sq_sum", each=True)
    gamma = number(0.0, key="last_gamma", each=True)  # of each tensor's own last step, which a pause does not change
    r = number(0.0, key="d_numerator", each=True)

    def gradient_factors(self, x: Place) -> tuple[Any, Any]:
        return x.d * x.d * x.lr, 1.0

    def measure(self, x: Place) -> tuple[Any, ...]:
        unit, moved = x.lr / x.top, x.gamma * x.old.m
        return each(unit * dot(x.g, x.g)), each(x.d * x.d * x.top * dot(x.g, moved)), dot(x.m, x.m) / unit

    def decide(self, c: Place, gg: Any, gap: Any, mm: Any) -> None:
        c.r = c.r + gap
        c.S = c.S + c.d * c.d * gg
        c.d = maximum(c.d, minimum(ratio(c.summed(c.r), sqrt(mm)), c.d * c.growth_rate))
        c.gamma = ratio(1.0, sqrt(c.d * c.d * c.G * c.G + c.summed(c.S)))

    def size(self, x: Place) -> tuple[Any, Any]:
        return x.gamma, x.gamma

    def effective(self, x: Place, rate: Any) -> Any:
        return x.gamma * x.d * x.d * x.lr

"""Prodigy: the distance to the solution, estimated while training."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.parts import Place, StepSize, choice, dot, each, hyper, maximum, minimum, norm1, number, ratio, slot, where


class Prodigy(StepSize):
    """Prodigy: arXiv 2306.06101, Algorithm 4, with the options of the released package.

    The direction's averages take d g and d^2 g^2. With h = d lr, times the direction's `factor` if `bias_correction`,
    and h_top the same with the largest lr of all groups:

        r <- beta3 r + (d / d0) h_top <g, x0 - x>
        s <- beta3 s + (d / d0) h g                       d lr / top instead of h with `safeguard_warmup`
        d_hat  = d_coef r / |s|_1                         no change while s = 0
        d_max <- max(d_max, d_hat);   at the first rise d <- max(d, d_hat);   d <- min(d_max, d growth_rate)
        x <- x - h u                                      h with the d from before, eps in u with the new one

    x0 is where the tensor stood at its first step. Under an averaging iterate the x of r is its point x.w; with w = z,
    on a direction without a first moment, that is the authors' Prodigy with Schedule-Free. Groups may have their own
    lr: one at a tenth of the largest moves a tenth as far, exactly as if its parameters (and eps, as a gradient) were
    measured in units ten times as large, if u does not change with the scale of g, as Adam's. r is kept per tensor and
    summed over those that take part, as |s|_1 is: r of a tensor that rests, over an |s|_1 without it, would raise d for
    good. Differs from the released package in these two; lr 0 freezes; with beta1 = 0 the step uses the d from before
    as well. `scope` gives each group or tensor an estimate of its own; d stays after `freeze_after` steps. With
    `slice_p` the estimate sees every slice_p-th element: less memory, one more sweep, no bound on d. Needs the
    direction's `weighted`. Sweeps: 2. Slots: 2, and one number per tensor.
    """

    lr: float = hyper(default=1.0, within="[0, inf)")
    d0: float = hyper(default=1e-6, within="(0, inf)")
    d_coef: float = hyper(default=1.0, within="[0, inf)")
    growth_rate: float = hyper(default=float("inf"), within="[1, inf]")
    freeze_after: float = hyper(default=float("inf"), within="[0, inf]")
    beta3: float = hyper(default=0.999**0.5, within="[0, 1)")
    safeguard_warmup: bool = False
    slice_p: int = hyper(default=1, within="[1, inf)", fixed=True)
    bias_correction: bool = False
    scope: str = choice(default="model", others=("group", "tensor"))
    needs: ClassVar[frozenset[str]] = frozenset({"weighted"})
    reads_displacement: ClassVar[bool] = True
    s = slot("s", shape="slice")
    x0 = slot("p0", start="start", shape="slice")
    d = number("d0", seldom=True)
    d_max = number("d0")
    d_hat = number(0.0)
    r = number(0.0, key="d_numerator", each=True)

    def gradient_factors(self, x: Place) -> tuple[Any, Any]:
        return x.was_d, x.d * x.d

    def _step(self, x: Place, d: Any, lr: Any) -> Any:
        return d * lr * (x.factor if self.bias_correction else 1.0)

    def measure(self, x: Place) -> tuple[Any, Any]:
        weight = x.d * x.lr / x.top if self.safeguard_warmup else self._step(x, x.d, x.lr)
        x.s = x.beta3 * x.s + x.d / x.d0 * weight * x.g
        return each(x.d / x.d0 * self._step(x, x.d, x.top) * dot(x.g, x.x0 - x.w)), norm1(x.s)

    def decide(self, c: Place, gap: Any, s1: Any) -> None:
        c.r = c.beta3 * c.r + gap
        c.d_hat = c.d_coef * ratio(c.summed(c.r), s1)
        frozen = c.t > c.freeze_after
        d = where(c.d == c.d0, maximum(c.d, c.d_hat), c.d)
        c.d_max = where(frozen, c.d_max, maximum(c.d_max, c.d_hat))
        c.d = where(frozen, c.d, minimum(c.d_max, d * c.growth_rate))

    def advice(self, numbers: dict[str, Any]) -> str | None:
        if numbers["steps"] >= 100 and numbers["d"] == numbers["d0"]:
            steps, d0 = numbers["steps"], numbers["d0"]
            return f"Prodigy: d is still d0={d0:g} after {steps:.0f} steps. Raise d0 tenfold, up to 1e-4."
        return None

    def size(self, x: Place) -> tuple[Any, Any]:
        h = self._step(x, x.was_d, x.lr)
        return h if self.bias_correction else h / x.bias, h

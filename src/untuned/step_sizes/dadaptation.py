"""D-Adaptation for scaled directions."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.parts import Place, StepSize, choice, dot, each, hyper, maximum, minimum, norm1, number, ratio, slot, where


class DAdaptation(StepSize):
    """D-Adaptation: arXiv 2301.07733, the Adam form of the released package (its version 3).

    The direction's first average takes h g with h = d lr, times the direction's `factor` if `bias_correction`; h_top is
    the same with the largest lr of all groups; D is the direction's scale, and the sums run over the whole model:

        r <- beta3 r + (1 - beta3) h <g, s / D>                 s and D from before this step
        s <- beta3 s + (1 - beta3) h_top g
        d_hat = d_coef r / ((1 - beta3) sum (lr / top) |s|_1)  no change while s = 0
        d <- max(d, min(d_hat, d growth_rate))
        x <- x - u                                            lr and d are inside u

    Groups may have their own lr: a group at a tenth of the largest moves a tenth as far, exactly as if its parameters
    (and eps, as a gradient) were measured in units ten times as large, if u does not change with the scale of g (the
    released package's layer_scale). Under an averaging iterate s belongs to z, whatever its point is. r is kept per
    tensor and summed over those that take part, as |s|_1 is: r of a tensor that rests, over an |s|_1 without it, would
    raise d for good. Differs from the released package in these two; lr 0 freezes; a zero gradient still counts as a
    step. `scope` gives each group or tensor an estimate of its own; d stays after `freeze_after` steps. Needs the
    direction's `diagonal` and `weighted`. Sweeps: 2. Slots: 1, and one number per tensor.
    """

    lr: float = hyper(default=1.0, within="[0, inf)")
    d0: float = hyper(default=1e-6, within="(0, inf)")
    d_coef: float = hyper(default=1.0, within="[0, inf)")
    growth_rate: float = hyper(default=float("inf"), within="[1, inf]")
    freeze_after: float = hyper(default=float("inf"), within="[0, inf]")
    beta3: float = hyper(default=0.999**0.5, within="[0, 1)")
    bias_correction: bool = False
    scope: str = choice(default="model", others=("group", "tensor"))
    needs: ClassVar[frozenset[str]] = frozenset({"weighted", "diagonal"})
    s = slot("s")
    d = number("d0")
    r = number(0.0, key="numerator_weighted", each=True)

    def _step(self, x: Place, d: Any, lr: Any) -> Any:
        return d * lr * (x.factor if self.bias_correction else 1.0)

    def gradient_factors(self, x: Place) -> tuple[Any, Any]:
        return self._step(x, x.was_d, x.lr), 1.0

    def measure(self, x: Place) -> tuple[Any, Any]:
        agreement = x.a * dot(x.g, ratio(x.s, x.old.scale))
        x.s = x.beta3 * x.s + (1 - x.beta3) * self._step(x, x.d, x.top) * x.g
        return each(agreement), x.lr / x.top * norm1(x.s)

    def decide(self, c: Place, agreement: Any, s1: Any) -> None:
        c.r = c.beta3 * c.r + (1 - c.beta3) * agreement
        d_hat = c.d_coef * ratio(c.summed(c.r), (1 - c.beta3) * s1)
        d = maximum(c.d, minimum(d_hat, c.d * c.growth_rate))
        c.d = where(c.t > c.freeze_after, c.d, d)

    def advice(self, numbers: dict[str, Any]) -> str | None:
        if numbers["steps"] >= 100 and numbers["d"] == numbers["d0"]:
            steps, d0 = numbers["steps"], numbers["d0"]
            return f"D-Adaptation: d is still d0={d0:g} after {steps:.0f} steps. Raise d0 tenfold."
        return None

    def size(self, x: Place) -> tuple[Any, Any]:
        return 1.0 if self.bias_correction else 1 / x.bias, self._step(x, x.was_d, x.lr)

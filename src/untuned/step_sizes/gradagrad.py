"""GradaGrad: a step size that can grow."""

from __future__ import annotations

from typing import Any

from untuned.parts import Place, StepSize, choice, dot, hyper, maximum, minimum, number, ratio, slot, sqrt


class GradaGrad(StepSize):
    """GradaGrad in its scalar form: arXiv 2206.06900 (recalled, agrees with an independent implementation).

        w = |g|^2 - rho <g, g_before>
        w >= 0:  alpha <- alpha + w              else  gamma <- gamma sqrt(1 + min(-w / alpha, r))
        x <- x - lr gamma / sqrt(alpha) u                                    no step while alpha = 0

    AdaGrad-Norm (rho = 0) whose numerator grows where its sum ought to shrink; r caps the growth of a step to
    sqrt(1 + r). gamma starts at 1, so lr is the length of the first step. Sums run over `scope`; groups of different lr
    are in units in which the largest serves all, if u is the gradient. Sweeps: 2. Slots: 1.
    """

    lr: float = hyper(default=1e-3, within="[0, inf)")
    rho: float = hyper(default=2.0, within="[0, inf)")
    r: float = hyper(default=1.0, within="[0, inf)")
    scope: str = choice(default="model", others=("group", "tensor"))
    before = slot("previous_grad")
    alpha = number(0.0)
    gamma = number(1.0)

    def measure(self, x: Place) -> tuple[Any, Any]:
        unit = x.lr / x.top
        along = unit * dot(x.g, x.before)
        x.before = x.g
        return unit * dot(x.g, x.g), along

    def decide(self, c: Place, gg: Any, along: Any) -> None:
        w = gg - c.rho * along
        c.gamma = c.gamma * sqrt(1 + minimum(ratio(maximum(-w, 0.0), c.alpha), c.r))
        c.alpha = c.alpha + maximum(w, 0.0)

    def size(self, x: Place) -> tuple[Any, Any]:
        now = x.lr * ratio(x.gamma, sqrt(x.alpha))
        return now / x.bias, now

"""D-Adaptation with resetting: start over whenever the estimate of the distance has doubled."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.iterates.from_start import forgotten_decay
from untuned.parts import Iterate, Place, dot, each, hyper, number, ratio, slot, sqrt, where


class Resetting(Iterate):
    """D-Adaptation with resetting, dual averaging form: arXiv 2306.06101, versions 1 to 3 (recalled; there is no code).

    d is fixed between resets. With the sums since the last one, and lr the learning rate of each step:

        s <- s + lr g;   gamma = d / sqrt(G^2 + sum |g|^2);   p <- x0 - gamma s
        d_hat = sum lr <g, x0 - p> / |s|              p from before the step, s from after it
        d_hat > 2 d:   d <- d_hat;   p <- x0;   s and all sums <- 0

    For convex problems: a reset gives up all progress. There d does not exceed the distance to the solution, so there
    are at most log2(D / d0) + 1 resets. Groups of different lr are in units in which the largest lr serves all. Needs
    the gradient itself. Sweeps: 2. Slots: 2, and one number per tensor.
    """

    d0: float = hyper(default=1e-6, within="(0, inf)")
    G: float = hyper(default=0.0, within="[0, inf)")
    gives: ClassVar[frozenset[str]] = frozenset({"additive"})
    needs: ClassVar[frozenset[str]] = frozenset({"gradient"})
    wants_size: ClassVar[bool] = True
    reads_displacement: ClassVar[bool] = True
    x0 = slot("x0", start="start")
    s = slot("grad_sum")
    d = number("d0")
    gamma = number(0.0)
    total = number(0.0, key="grad_norm_sq_sum", each=True)
    r = number(0.0, key="d_numerator", each=True)
    resets = number(0.0)

    def caution(self, group: dict[str, Any], decay: frozenset[str]) -> str | None:
        return forgotten_decay(self.name, group, decay)

    def measure(self, x: Place) -> tuple[Any, ...]:
        unit, s = x.size / x.top, x.s + x.size * x.g
        return each(unit * dot(x.g, x.g)), each(x.top * dot(x.g, x.x0 - x.p)), dot(s, s) / unit

    def decide(self, c: Place, gg: Any, gap: Any, ss: Any) -> None:
        total, r = c.total + gg, c.r + gap
        d_hat = ratio(c.summed(r), sqrt(ss))
        reset = d_hat > 2 * c.d
        c.resets = c.resets + where(reset, 1.0, 0.0)
        c.d, c.total, c.r = where(reset, d_hat, c.d), where(reset, 0.0, total), where(reset, 0.0, r)
        c.gamma = where(reset, 0.0, ratio(c.d, sqrt(c.G * c.G + c.summed(total))))

    def move(self, x: Place) -> None:
        x.s = where(x.resets > x.was_resets, 0.0, x.s + x.size * x.g)
        x.p = x.decayed(x.x0 - x.gamma * x.s, x.p)

    def effective(self, x: Place, rate: Any) -> Any:
        return x.gamma * rate

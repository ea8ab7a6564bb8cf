"""D-Adaptation with resetting: by gradient descent: start over whenever the estimate of the distance has doubled."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.parts import Iterate, Place, dot, each, hyper, number, ratio, slot, sqrt, where


class ResettingGD(Iterate):
    """D-Adaptation with resetting, gradient descent form: arXiv 2306.06101, versions 1 to 3 (recalled; no code exists).

        gamma = d / sqrt(G^2 + sum |g|^2);   p <- p - lr gamma g
        d_hat = sum gamma lr <g, x0 - p> / |x0 - p|        p from before the step, in the norm from after it
        d_hat > 2 d:   d <- d_hat;   p <- x0;   all sums <- 0

    Otherwise as `Resetting`. Sweeps: 2. Slots: 1, and one number per tensor.
    """

    d0: float = hyper(default=1e-6, within="(0, inf)")
    G: float = hyper(default=0.0, within="[0, inf)")
    gives: ClassVar[frozenset[str]] = frozenset({"additive"})
    needs: ClassVar[frozenset[str]] = frozenset({"gradient"})
    wants_size: ClassVar[bool] = True
    reads_displacement: ClassVar[bool] = True
    x0 = slot("x0", start="start")
    d = number("d0")
    gamma = number(0.0)
    total = number(0.0, key="grad_norm_sq_sum", each=True)
    r = number(0.0, key="d_numerator", each=True)
    resets = number(0.0)

    def measure(self, x: Place) -> tuple[Any, ...]:
        unit, moved = x.size / x.top, x.x0 - x.p
        return each(unit * dot(x.g, x.g)), each(x.top * dot(x.g, moved)), dot(moved, moved) / unit

    def decide(self, c: Place, gg: Any, gap: Any, moved: Any) -> None:
        total = c.total + gg
        gamma = ratio(c.d, sqrt(c.G * c.G + c.summed(total)))
        r = c.r + gamma * gap
        moved = moved + 2 * gamma * c.summed(gap) + gamma * gamma * c.top * c.top * c.summed(gg)
        d_hat = where(moved > 0, ratio(c.summed(r), sqrt(where(moved > 0, moved, 1.0))), 0.0)
        reset = d_hat > 2 * c.d
        c.resets = c.resets + where(reset, 1.0, 0.0)
        c.d, c.total, c.r = where(reset, d_hat, c.d), where(reset, 0.0, total), where(reset, 0.0, r)
        c.gamma = where(reset, 0.0, gamma)

    def move(self, x: Place) -> None:
        moved = x.decayed(x.p - x.gamma * x.size * x.g, x.p)
        x.p = where(x.resets > x.was_resets, x.x0, moved)

    def effective(self, x: Place, rate: Any) -> Any:
        return x.gamma * rate

"""Mechanic as its authors later put it into optax."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.parts import Iterate, Place, choice, dot, hyper, maximum, minimum, number, slot, sqrt

_EPS = 1e-8


class Mechanize(Iterate):
    """Mechanic: arXiv 2306.00144, the authors' later variant in optax (`optax.contrib.mechanize`).

        h = <g, D> + s_decay S |g| / (|x| + eps) <x, D>              x from before the step
        m <- max(beta m, |h| + eps);   v <- beta^2 v + h^2
        W <- beta W - s max(min(h, m_before), -m_before)             stored unclipped
        s <- (s_init m / n + max(W, 0)) / (sqrt(v) + eps);   S = sum of s
        D <- D + y - x;   x <- x + S_before (y - x) + (S - S_before) D

    Letters and remarks as in `Mechanic`, from which it differs in the clipped wager, in W, in eps in m, in the point of
    the decay term, in s_init and in m = 0 at the start. Differs from optax in float64 numbers and exact groups. Slots:
    1, and one number per tensor.
    """

    s_decay: float = hyper(default=1e-2, within="[0, inf)")
    s_init: float = hyper(default=1e-6, within="(0, inf)")
    decays: tuple[float, ...] = hyper(default=(0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999), within="[0, 1)")
    scope: str = choice(default="model", others=("group", "tensor"))
    gives: ClassVar[frozenset[str]] = frozenset({"additive", "plain_step"})
    wants_size: ClassVar[bool] = True
    reads_displacement: ClassVar[bool] = True
    D = slot("delta", total=True)
    beta = number("decays", key="mechanic_beta")
    s = number(0.0, size="decays", key="mechanic_s")
    m = number(0.0, size="decays", key="mechanic_m")
    v = number(0.0, size="decays", key="mechanic_v")
    W = number(0.0, size="decays", key="mechanic_wealth")
    S = number(0.0, key="mechanic_S")
    last = number(0.0, key="mechanic_last", each=True)

    def measure(self, x: Place) -> tuple[Any, ...]:
        sums = dot(x.raw, x.D), dot(x.p, x.D), dot(x.raw, x.raw), dot(x.p, x.p)
        y = x.base(x.p)
        x.D = x.D + (y - x.p)
        x.p = x.p + x.last * (y - x.p)
        return sums

    def decide(self, c: Place, gD: Any, xD: Any, gg: Any, xx: Any) -> None:
        h = (gD + c.s_decay * c.S * sqrt(gg) / (sqrt(xx) + _EPS) * xD)[..., None]
        wager = maximum(minimum(h, c.m), -c.m)
        c.m = maximum(c.beta * c.m, abs(h) + _EPS)
        c.v = c.beta * c.beta * c.v + h * h
        c.W = c.beta * c.W - c.s * wager
        c.s = (c.s_init * c.m / c.m.shape[-1] + maximum(c.W, 0.0)) / (sqrt(c.v) + _EPS)
        c.S = c.s.sum(-1)
        c.last = c.S

    def move(self, x: Place) -> None:
        x.p = x.p + (x.last - x.was_last) * x.D

    def effective(self, x: Place, rate: Any) -> Any:
        return x.S * rate

"""Mechanic: a learned scale of the whole displacement."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.parts import Iterate, Place, choice, dot, hyper, maximum, number, slot, sqrt


class Mechanic(Iterate):
    """Mechanic: arXiv 2306.00144, Algorithm 1 as in the authors' PyTorch code.

    y is where the plain step would take x, D the sum of all plain steps y - x so far, and n bettors, one for each beta
    in `decays`, wager on h, the loss of one more unit of D; everything runs over the whole model, and g is the gradient
    of the loss alone, without coupled weight decay:

        h = <g, D> + s_decay S |g| / (|y| + eps) <y, D>
        m <- max(beta m, |h|);   v <- beta^2 v + h^2;   W <- max(beta W - s h, 0)            per bettor
        s <- (s_init m / n + W) / (sqrt(v) + eps);   S = sum of s
        D <- D + y - x;   x <- x + S_before (y - x) + (S - S_before) D            so x = start + S D

    Differs from the authors' PyTorch code in that: D is stored, and x moves by what start + S D changes, where they
    keep the starting point and recompute D as (x - start) / S, which divides rounding errors by S; weights changed
    from outside stay changed; closures, groups, add_param_group and checkpoints work. An lr schedule acts on future
    steps only, since S scales all of D. `scope` gives each group or tensor a scale of its own. Any direction and step
    size. Sweeps: 2, and one more if the step size measures too. Slots: 1, and one number per tensor.
    """

    s_decay: float = hyper(default=1e-2, within="[0, inf)")
    s_init: float = hyper(default=1e-8, within="(0, inf)")
    decays: tuple[float, ...] = hyper(default=(0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999), within="[0, 1)")
    scope: str = choice(default="model", others=("group", "tensor"))
    gives: ClassVar[frozenset[str]] = frozenset({"additive", "plain_step"})
    wants_size: ClassVar[bool] = True
    reads_displacement: ClassVar[bool] = True
    D = slot("delta", total=True)
    beta = number("decays", key="mechanic_beta")
    s = number(0.0, size="decays", key="mechanic_s")
    m = number(1e-6, size="decays", key="mechanic_m")
    v = number(0.0, size="decays", key="mechanic_v")
    W = number(0.0, size="decays", key="mechanic_wealth")
    S = number(0.0, key="mechanic_S")
    last = number(0.0, key="mechanic_last", each=True)  # the S of each tensor's last step: some rest while S goes on

    def measure(self, x: Place) -> tuple[Any, ...]:
        y = x.base(x.p)
        sums = dot(x.raw, x.D), dot(y, x.D), dot(x.raw, x.raw), dot(y, y)
        x.D = x.D + (y - x.p)
        x.p = x.p + x.last * (y - x.p)
        return sums

    def decide(self, c: Place, gD: Any, yD: Any, gg: Any, yy: Any) -> None:
        h = (gD + c.s_decay * c.S * sqrt(gg) / (sqrt(yy) + 1e-8) * yD)[..., None]
        c.m = maximum(c.beta * c.m, abs(h))
        c.v = c.beta * c.beta * c.v + h * h
        c.W = maximum(c.beta * c.W - c.s * h, 0.0)
        c.s = (c.s_init * c.m / c.m.shape[-1] + c.W) / (sqrt(c.v) + 1e-8)
        c.S = c.s.sum(-1)
        c.last = c.S

    def move(self, x: Place) -> None:
        x.p = x.p + (x.last - x.was_last) * x.D

    def effective(self, x: Place, rate: Any) -> Any:
        return x.S * rate

"""MoMo: a Polyak step on a momentum model of the loss."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.parts import Place, StepSize, dot, each, hyper, maximum, minimum, number, where
from untuned.step_sizes.loss_advice import bounded


class MoMo(StepSize):
    """MoMo: arXiv 2305.07583, Algorithm 1, exact for groups of different lr and weight decay.

    m, F and G average the gradients, the losses and <g, x> with the direction's weights, whose sum is rho. The model of
    the loss, F - G + <m, y>, is cut off below at rho L and minimised with a proximal step; D is the direction's scale:

        gap   = F - G + sum <m, x> / shrink - rho L            shrink = 1 + lr weight_decay, per group
        theta = min(max(gap, 0) / sum (lr / shrink) <m, m / D>,  1 / rho)          0 where the sum is 0
        x    <- (x - theta lr m / D) / shrink

    so lr is the cap of the step. L is the known bound `lb`, or with `online=True` (MoMo*) an estimate not below `lb`:
    halved towards the model before the step where the model lies below it, then

        L <- max((F - G + sum <m, x> - theta/2 sum lr <m, m / D>) / rho, lb)

    Where the model lies at or below its bound the step is 0: a loss that falls below `lb` stops the training, so `lb`
    must be below any value the loss can reach. `online` raises the bound from there and cannot mend one too high. Where
    the loss cannot come near `lb`, theta is too large throughout, and lr alone keeps the steps short.

    What is kept is E = <m, x> - G, per tensor, so that tensors without a gradient leave the model. It goes on by
    E <- keep (E + <m, x - x_old>), with m from before the gradient and `keep` of the direction, whoever moved x: so
    weights that were changed between steps, in whatever way, are taken as they are. keep m is the new m - take g there.

    Differs from the reference implementation in that: several groups minimise one model (there, one per group);
    a vanishing average gives theta = 0, not the cap; non-finite losses do not enter the averages; everything is in the
    state dict. Needs the loss and the direction's `average`. Sweeps: 2. Slots: none, and two numbers per tensor.
    """

    lr: float = hyper(default=1.0, within="[0, inf)")
    lb: float = hyper(default=0.0, within="(-inf, inf)")
    online: bool = False
    needs: ClassVar[frozenset[str]] = frozenset({"loss", "average", "additive"})
    F = number(0.0, key="loss_avg")
    E = number(0.0, key="model_offset", each=True)
    mx = number(0.0, key="mx", each=True)
    rho = number(0.0, key="weights")
    L = number("lb", key="lower_bound")
    theta = number(0.0, key="theta")

    def measure(self, x: Place) -> tuple[Any, ...]:
        along = x.lr * dot(x.m, x.u)
        mx = dot(x.m, x.p)
        return each(dot(x.g, x.p)), each(mx), mx * (1 / x.shrink - 1), along, along / x.shrink

    def decide(self, c: Place, gx: Any, mx: Any, decayed: Any, mu: Any, mu_shrunk: Any) -> None:
        c.rho = c.keep * c.rho + c.take
        c.F = c.keep * c.F + c.take * c.loss
        c.E = c.keep * (c.E - c.mx) + mx - c.take * gx
        c.mx = mx
        model = c.F + c.summed(c.E) + decayed
        if self.online:
            c.L = where(model < c.rho * c.L, maximum(model / (2 * c.rho), c.lb), c.L)
        gap = maximum(model - c.rho * c.L, 0.0)
        c.theta = where(mu_shrunk > 0, minimum(gap / mu_shrunk, 1 / c.rho), 0.0)
        if self.online:
            c.L = maximum((c.F + c.summed(c.E) - c.theta / 2 * mu) / c.rho, c.lb)

    def size(self, x: Place) -> tuple[Any, Any]:
        return x.theta * x.lr, x.lr

    def advice(self, numbers: dict[str, Any]) -> str | None:
        return bounded(self.name, numbers, "" if self.online else "set use_fstar=True (in compositions online=True)")

    def effective(self, x: Place, rate: Any) -> Any:
        return x.theta * x.rho * x.lr

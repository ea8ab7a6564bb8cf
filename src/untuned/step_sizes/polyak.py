"""Stochastic Polyak step sizes: the loss says how far to go."""

from __future__ import annotations

from math import inf
from typing import Any, ClassVar

from untuned.parts import Place, StepSize, dot, hyper, maximum, minimum, number, ratio, sqrt, where
from untuned.step_sizes.loss_advice import bounded

_NEEDS = frozenset({"loss", "additive"})


def loss_shift(x: Place) -> Any:
    """The summand of what separates the linear model of the loss at x.w from the loss of the step.

    That is weight_decay/2 |p|^2 if the gradient holds that term (coupled decay), and <g, w - p>, 0 where x.w is x.p.
    """
    return dot(x.g - x.raw, x.p) / 2 + dot(x.g, x.w - x.p)


class SPS(StepSize):
    """SPS_max: arXiv 2002.10542, equation 3.

        theta = min(max(f - lb, 0) / (c sum lr <g, u>), 1)               0 where the sum is 0
        x    <- x - theta lr u

    so lr is the cap of the step; a large one leaves SPS. Coupled weight decay adds its weight_decay/2 |x|^2 to f, since
    the loss must be the one whose gradient is used. c = 1/2 is the authors' choice for non-convex problems. Under an
    averaging iterate f is f(y) + <g, w - y>, the loss at its point w. With w = z, on `Gradient`, with c = 1 and equal
    weights of the average, that is Polyak's step with Schedule-Free (arXiv 2511.07767, quoted; without its floor below
    |g|^2). Differs from the released package in: no smoothing of the cap, no eps. Needs the loss. Sweeps: 2. Slots:
    none.
    """

    lr: float = hyper(default=1.0, within="[0, inf)")
    c: float = hyper(default=0.5, within="(0, inf)")
    lb: float = hyper(default=0.0, within="(-inf, inf)")
    needs: ClassVar[frozenset[str]] = _NEEDS
    theta = number(0.0)

    def measure(self, x: Place) -> tuple[Any, Any]:
        return x.lr / x.bias * dot(x.g, x.u), loss_shift(x)

    def decide(self, c: Place, slope: Any, decay: Any) -> None:
        c.theta = minimum(ratio(maximum(c.loss + decay - c.lb, 0.0), c.c * slope), 1.0)

    def advice(self, numbers: dict[str, Any]) -> str | None:
        return bounded(self.name, numbers)

    def size(self, x: Place) -> tuple[Any, Any]:
        return x.theta * x.lr / x.bias, x.theta * x.lr


class DecSPS(StepSize):
    """Decreasing SPS: arXiv 2205.04583, equation 9, which converges to the solution without interpolation.

        c_k = c0 sqrt(k)                                                   k from 1
        cap <- min(max(f - lb, 0) / sum lr <g, u>, cap)                    from c0; stays where the sum is not above 0
        x   <- x - cap / c_k lr u

    A batch whose loss lies at lb ends the training: its cap is 0. Weight decay, averaging iterates and needs as in
    `SPS`. Sweeps: 2. Slots: none.
    """

    lr: float = hyper(default=1.0, within="[0, inf)")
    c0: float = hyper(default=1.0, within="(0, inf)")
    lb: float = hyper(default=0.0, within="(-inf, inf)")
    needs: ClassVar[frozenset[str]] = _NEEDS
    cap = number("c0")
    theta = number(0.0)

    def measure(self, x: Place) -> tuple[Any, Any]:
        return x.lr / x.bias * dot(x.g, x.u), loss_shift(x)

    def decide(self, c: Place, slope: Any, decay: Any) -> None:
        gap = maximum(c.loss + decay - c.lb, 0.0)
        c.cap = where(slope > 0, minimum(c.cap, gap / where(slope > 0, slope, 1.0)), c.cap)
        c.theta = c.cap / (c.c0 * sqrt(c.k))

    def advice(self, numbers: dict[str, Any]) -> str | None:
        if numbers["cap"] == 0 and numbers.get("loss_low", -inf) > numbers["lb"]:
            return f"DecSPS: a batch's loss fell to lb={numbers['lb']:g}, which ended the training. Lower lb."
        return bounded(self.name, numbers)

    def size(self, x: Place) -> tuple[Any, Any]:
        return x.theta * x.lr / x.bias, x.theta * x.lr


class SP(StepSize):
    """The stochastic Polyak method: Polyak 1987; arXiv 2106.11851, equation 3.

        x <- x - lr max(f - lb, 0) / sum (lr / top) <g, u>  u              top: the largest lr of all groups

    lr is the relaxation, in (0, 2); lb the smallest value of every single loss. Weight decay, averaging iterates and
    needs as in `SPS`. Sweeps: 2. Slots: none.
    """

    lr: float = hyper(default=1.0, within="[0, inf)")
    lb: float = hyper(default=0.0, within="(-inf, inf)")
    needs: ClassVar[frozenset[str]] = _NEEDS
    theta = number(0.0)

    def measure(self, x: Place) -> tuple[Any, Any]:
        return x.lr / x.top / x.bias * dot(x.g, x.u), loss_shift(x)

    def decide(self, c: Place, slope: Any, decay: Any) -> None:
        theta = ratio(maximum(c.loss + decay - c.lb, 0.0), slope)
        c.theta = minimum(theta, 1e38)  # which float32 still holds; a tiny gradient asks for more

    def advice(self, numbers: dict[str, Any]) -> str | None:
        return bounded(self.name, numbers)

    def size(self, x: Place) -> tuple[Any, Any]:
        return x.theta * x.lr / x.bias, x.theta * x.lr

"""Momentum: heavy ball, exponential average, Nesterov."""

from __future__ import annotations

from typing import Any

from untuned.parts import Direction, Place, hyper, slot, where


class Momentum(Direction):
    """Momentum in torch's form: Polyak 1964, Nesterov 1983, Sutskever et al. 2013.

        m <- momentum m + take a g
        u  = m,   or   a g + momentum m   with `nesterov`
        take = 1 - dampening, but 1 at the model's first step, so that m starts as the first gradient

    `dampening=0` is the heavy ball, `dampening=momentum` an exponential average. With `correct=True` take is
    1 - dampening from the first step on and the step is divided by the sum of the weights (bias correction); with
    `from_zero=True` likewise, and the step is left as it is.
    Differs from torch.optim.SGD, where it is dampened, in a tensor whose first gradient comes late: its average starts
    from zero with the model's weights, not with weight 1, so that one pair of weights holds for all tensors and for
    MoMo's average of the losses; and where momentum is 0 for a while: m is the gradient then, there it stays. Slots: 1.
    """

    momentum: float = hyper(default=0.9, within="[0, 1)")
    dampening: float = hyper(default=0.0, within="[0, 1]")
    nesterov: bool = False
    correct: bool = False
    from_zero: bool = False
    m = slot("momentum_buffer")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and self.dampening:
            raise ValueError(f"Momentum: nesterov needs dampening 0, not {self.dampening}.")

    @property
    def gives(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return frozenset({"weighted"} if self.nesterov else {"average", "weighted"})

    @property
    def lacks(self) -> dict[str, str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return {"average": "Nesterov momentum steps along a mixture of the average and the current gradient"}

    def weight(self, x: Place) -> tuple[Any, Any]:
        taken = 1 - x.dampening
        return x.momentum, taken if self.correct or self.from_zero else where(x.k == 1, 1.0, taken)

    def bias(self, x: Place) -> Any:
        return x.rho if self.correct else 1.0

    def accumulate(self, x: Place) -> None:
        x.m = x.keep * x.m + x.a * x.take * x.g

    def unit(self, x: Place) -> Any:
        return x.a * x.g + x.momentum * x.m if self.nesterov else x.m

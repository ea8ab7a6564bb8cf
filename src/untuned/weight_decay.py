"""The three places where weight decay enters a step; `weight_decay` is the coefficient lambda of each."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.parts import Place, WeightDecay, hyper


class Coupled(WeightDecay):
    """g <- g + lambda p, before everything else: L2 regularisation, as in torch.optim.SGD and Adam."""

    decoupled = False
    weight_decay: float = hyper(default=0.0, within="[0, inf)")

    def gradient(self, x: Place, g: Any) -> Any:
        return g + x.weight_decay * x.p

    def decay(self, x: Place, w: Any, at: Any) -> Any:
        return w

    def shrink(self, x: Place) -> Any:
        return 1.0


class Decoupled(WeightDecay):
    """w <- w - size u - rate lambda p, p being the weights where the gradient was taken (or those of an average)."""

    weight_decay: float = hyper(default=0.0, within="[0, inf)")
    gives: ClassVar[frozenset[str]] = frozenset({"decays_p"})

    def gradient(self, x: Place, g: Any) -> Any:
        return g

    def decay(self, x: Place, w: Any, at: Any) -> Any:
        return w - x.rate * x.weight_decay * at

    def shrink(self, x: Place) -> Any:
        return 1 + x.rate * x.weight_decay


class Proximal(WeightDecay):
    """w <- (w - size u) / (1 + rate lambda): the decay is part of the model that the step minimises, as in MoMo."""

    weight_decay: float = hyper(default=0.0, within="[0, inf)")
    gives: ClassVar[frozenset[str]] = frozenset({"decays_p"})

    def gradient(self, x: Place, g: Any) -> Any:
        return g

    def decay(self, x: Place, w: Any, at: Any) -> Any:
        return w / (1 + x.rate * x.weight_decay)

    def shrink(self, x: Place) -> Any:
        return 1 + x.rate * x.weight_decay

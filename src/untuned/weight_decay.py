"""Where weight decay enters a step, and what scales it; `weight_decay` is the coefficient lambda."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.parts import Place, WeightDecay, hyper, slot, where


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


class Anchored(WeightDecay):
    """w <- w - size u + weight_decay (x0 - w) (1 - (t / (t + 1))^power): SODA, arXiv 2605.11172, of which power is 1.

    A pull towards where the tensor stood at its first step, which fades with t, the steps that it has taken, and has no
    coefficient to tune: `weight_decay` is 1, or 0 for tensors that are left alone. With gradient descent it is dual
    averaging, w = x0 - sum lr (i + 1)^power g_i / (t + 1)^power, i from 1 to t. Neither lr nor d scales it. Other
    powers are ours. Differs from the authors' code in that: t is the tensor's number of steps, not the group's; and a
    group at lr 0 rests, where theirs is pulled on. Slots: 1.
    """

    power: float = hyper(default=1.0, within="(0, inf)")
    weight_decay: float = hyper(default=1.0, within="[0, 1]")
    x0 = slot("anchor", start="start")

    def gradient(self, x: Place, g: Any) -> Any:
        return g

    def decay(self, x: Place, w: Any, at: Any) -> Any:
        return w + x.weight_decay * (1 - (x.t / (x.t + 1)) ** x.power) * (x.x0 - at)

    def shrink(self, x: Place) -> Any:
        return 1.0


class Cautious(WeightDecay):
    """As `Decoupled`, where the step shrinks the weight as well: arXiv 2510.12402 (quoted).

    w <- w - size u - rate lambda p where u p >= 0, else w - size u. No model of the loss knows of it.
    """

    weight_decay: float = hyper(default=0.0, within="[0, inf)")
    gives: ClassVar[frozenset[str]] = frozenset({"decays_p"})

    def gradient(self, x: Place, g: Any) -> Any:
        return g

    def decay(self, x: Place, w: Any, at: Any) -> Any:
        return w - where(x.u * at >= 0, x.rate * x.weight_decay, 0.0) * at

    def shrink(self, x: Place) -> Any:
        return 1.0


class Independent(WeightDecay):
    """w <- w - size u - lambda p: as `Decoupled`, but neither lr, nor its schedule, nor an estimate of d scales it.

    So lambda is the share that a weight loses in every step. A group at lr 0 rests, and does not decay.
    """

    weight_decay: float = hyper(default=0.0, within="[0, 1)")
    gives: ClassVar[frozenset[str]] = frozenset({"decays_p"})

    def gradient(self, x: Place, g: Any) -> Any:
        return g

    def decay(self, x: Place, w: Any, at: Any) -> Any:
        return w - x.weight_decay * at

    def shrink(self, x: Place) -> Any:
        return 1 + x.weight_decay

"""Dual averaging: the step is taken from the starting point."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.parts import Iterate, Place, hyper, slot


def forgotten_decay(name: str, group: dict[str, Any], decay: frozenset[str]) -> str | None:
    """What to say of a weight decay that the next step, from the starting point again, does not know of."""
    if "decays_p" not in decay or not group["weight_decay"]:
        return None
    return (
        f"{name}: weight_decay={group['weight_decay']:g} hardly decays: each step starts from x0 again and forgets the "
        f"decay before it, so that weights end at 1 / (1 + lr weight_decay) of those without. Decay the gradient: "
        f"weight_decay.Coupled, decouple_decay=False."
    )


class FromStart(Iterate):
    """p <- momentum p + (1 - momentum) (x0 - size u), x0 being where the tensor stood at its first step.

    Dual averaging when u is a sum of gradients (Nesterov 2009), with the averaging that arXiv 2010.10502 and 2101.11075
    use for momentum. Decoupled weight decay acts on p after the averaging, from the weights p had before. Since every
    step starts from x0 again, a steady decay ends at (1 - momentum) / (1 - momentum + lr weight_decay) of the weights
    without it, where AdamW's goes on to 0; at momentum 0 a warning says so. Slots: 1.
    """

    momentum: float = hyper(default=0.0, within="[0, 1)")
    gives: ClassVar[frozenset[str]] = frozenset({"from_start", "additive"})
    needs: ClassVar[frozenset[str]] = frozenset({"sum"})
    x0 = slot("x0", start="start")

    def caution(self, group: dict[str, Any], decay: frozenset[str]) -> str | None:
        return None if group["momentum"] else forgotten_decay(self.name, group, decay)

    def move(self, x: Place) -> None:
        z = x.x0 - x.size * x.u
        x.p = x.decayed(x.momentum * x.p + (1 - x.momentum) * z, x.p)

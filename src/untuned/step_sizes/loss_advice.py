"""What the losses say when a step size that reads them goes wrong."""

from __future__ import annotations

from typing import Any


def below_bound(name: str, numbers: dict[str, Any]) -> str | None:
    """A sentence if most of the last hundred losses lie below `lb`, where the steps are 0."""
    if "loss_last" in numbers and numbers["loss_last"] < numbers["lb"]:
        return (
            f"{name}: the loss ({numbers['loss_last']:.4g}) lies below lb={numbers['lb']:g}, where the steps are 0: "
            f"training has stopped. Set lb below every value that the loss can reach."
        )
    return None


def climbs(name: str, numbers: dict[str, Any], why: str) -> str | None:
    """A sentence, which ends with `why`, if the loss has risen by more than it differs from batch to batch.

    Risen is a loss that has regained half of its fall while nine in ten of the last hundred values lie above the median
    of its best hundred, or that lies above its first value by twice the distance from median to lower decile; and that
    is a tenth further from its bound than it was: weight decay may raise it a little.
    """
    if "loss_last" not in numbers:
        return None
    first, least, low, last = (numbers[f"loss_{key}"] for key in ("first", "least", "low", "last"))
    best = min(first, least)
    far = last - best > (best - numbers.get("lb", 0.0)) / 10
    if far and ((low > least and last > (first + least) / 2) or 2 * low - last > first):
        return (
            f"{name}: after {numbers['steps']:.0f} steps the loss it models ({last:.4g}) has risen from {best:.4g}: "
            f"the steps are too long{why}."
        )
    return None


def bounded(name: str, numbers: dict[str, Any], other: str = "") -> str | None:
    """The advice of rules that step towards the bound `lb`; `other`: an option that helps as well."""
    remedies = ["lower lr", "raise lb to the lowest loss you expect", *([other] if other else [])]
    why = f" where the loss cannot come near lb={numbers['lb']:g}; {', '.join(remedies[:-1])}, or {remedies[-1]}"
    return below_bound(name, numbers) or climbs(name, numbers, why)

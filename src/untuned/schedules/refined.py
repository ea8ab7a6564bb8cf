"""A torch scheduler that follows a refined schedule, from a file or from norms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike

from untuned.schedules import tables
from untuned.schedules.refine import Floats, refine, resample
from untuned.schedules.shapes import Ending

_DIAGONAL = (
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adamax,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.RMSprop,
)


def power_for(optimizer: torch.optim.Optimizer) -> int:
    """1 if the optimizer divides by a diagonal, as Adam does, and 2 if not; a ValueError if that is not known.

    Of one that goes around another, such as `wrappers.Extrapolated`, the inner one counts.
    """
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    if (recipe := getattr(optimizer, "recipe", None)) is not None:
        return 1 if any("diagonal" in part.gives for part in recipe.all_parts) else 2
    if isinstance(optimizer, _DIAGONAL):
        return 1
    if isinstance(optimizer, torch.optim.SGD):
        return 2
    name = type(optimizer).__name__
    raise ValueError(f"Refined: say power=1 if {name} divides by a diagonal, as Adam does, or power=2 if not.")


def norms_of(path: Path | str, columns: tables.Columns, power: float) -> Floats:
    """The norms that go with a power: L1 with 1, else L2."""
    return tables.column(path, columns, "l1" if power == 1 else "l2")


@dataclass(frozen=True)
class Listed:
    """Multipliers one by one, and 0 at the end."""

    values: tuple[float, ...]

    def __call__(self, step: int) -> float:
        return self.values[step] if step < len(self.values) else 0.0


class Refined(Ending):
    """Follow the refined schedule of an earlier run: arXiv 2310.07831, see `refine`.

    `source` is the file of a schedule (`untuned schedule refine`), the log of a `NormRecorder`, or norms, one number a
    step. `power` is 1 for directions that divide by a diagonal, as Adam does, with L1 norms, and 2 for others, with L2
    norms; None asks the optimizer. `tau` is the part of the run that is smoothed over. `power` and `tau` count for
    norms only: a schedule is what it is. It has as many steps as `source`; with `steps` it is stretched to so many. The
    lr of the optimizer is the peak. To step after every optimizer step; a step past the end is a ValueError.

    >>> import torch, untuned
    >>> from untuned.schedules import Refined
    >>> optimizer = untuned.SGD([torch.nn.Parameter(torch.ones(1))], lr=2.0)
    >>> schedule = Refined(optimizer, [3.0, 3.0, 3.0, 3.0], steps=8)
    >>> optimizer.step()
    >>> schedule.step()
    >>> optimizer.param_groups[0]["lr"]
    1.75
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        source: Path | str | ArrayLike,
        steps: int | None = None,
        power: float | None = None,
        tau: float = 0.1,
        last_epoch: int = -1,
    ) -> None:
        columns = tables.read(source) if isinstance(source, (str, Path)) else None
        if columns is not None and "multiplier" in columns:
            values = columns["multiplier"]
            if not (len(values) and np.isfinite(values).all() and (values >= 0).all() and values.max() > 0):
                raise ValueError(f"Refined: {source} holds no schedule: multipliers are >= 0, and one is positive.")
            values = values if steps is None else resample(values, steps)
        else:
            power = power_for(optimizer) if power is None else power
            norms = source if columns is None else norms_of(str(source), columns, power)
            values = refine(norms, power, tau, steps)  # pyright: ignore[reportArgumentType]
        self.steps = len(values)
        super().__init__(optimizer, Listed(tuple(values.tolist())), last_epoch)

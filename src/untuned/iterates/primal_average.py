"""Primal averaging: momentum by averaging the iterates."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Any

from untuned.iterates.averaged import Averaged
from untuned.parts import Place, choice, hyper


class PrimalAverage(Averaged):
    """Stochastic primal averaging: arXiv 2010.00406.

        z <- the plain step from z, with the weight decay of z
        p <- momentum p + (1 - momentum) z

    Equal to SGD with heavy ball `momentum` at (1 - momentum) times this lr, while lr is constant and weight decay
    coupled. Gradients are taken at the average p = y = x. `measure_at` says whether step sizes measure there ("y", as
    the recorded Polyak steps, arXiv 2106.11851, are published with momentum) or at z, as in `ScheduleFree`. Slots: 1.
    """

    momentum: float = hyper(default=0.9, within="[0, 1)")
    _: KW_ONLY
    measure_at: str = choice(default="y", others=("z",))

    def _train(self, x: Place) -> Any:
        return 1.0

    def _share(self, x: Place) -> Any:
        return 1 - x.momentum

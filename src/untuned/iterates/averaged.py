"""Averages of a sequence of plain steps: what primal averaging, Schedule-Free and GPA share."""

from __future__ import annotations

import abc
from dataclasses import KW_ONLY
from typing import Any, ClassVar

from untuned.parts import Iterate, Place, choice, slot


class Averaged(Iterate):
    """x averages the points z that plain steps lead through; gradients are taken at y, which p holds.

        y = train x + (1 - train) z
        z <- the plain step from z, with the weight decay of z if `decays_w`, else of y
        x <- (1 - c) x + c z

    Stored are z and y; x = (y - (1 - train) z) / train. A class gives `train` in (0, 1], which must not change between
    steps, and the share c in [0, 1] of the new point.

    `measure_at` is the point x.w at which step sizes measure the distance and the model of the loss: "z", where their
    step begins, the loss there being f(y) + <g, z - y>; or "y", as if it began where the gradient is taken. The
    published composites measure at z: Polyak's step (arXiv 2511.07767), ScheduleFree+ (arXiv 2605.19095) and the
    authors' Prodigy with Schedule-Free. No theory covers "y". Rules that measure neither are the same with both.
    """

    _: KW_ONLY
    measure_at: str = choice(default="z", others=("y",))
    gives: ClassVar[frozenset[str]] = frozenset({"additive", "plain_step"})
    decays_w: ClassVar[bool] = True
    z = slot("z", start="start")

    @abc.abstractmethod
    def _train(self, x: Place) -> Any:
        """The share of x in y."""

    @abc.abstractmethod
    def _share(self, x: Place) -> Any:
        """The share of the new z in x."""

    def point(self, x: Place) -> Any:
        return x.z

    def move(self, x: Place) -> None:
        train, c = self._train(x), self._share(x)
        z = x.base(x.z)
        x.p = (1 - train + train * c) * z + (1 - c) * (x.p - (1 - train) * x.z)
        x.z = z


class Evaluated(Averaged):
    """An average that is put into p for evaluation, and y for training."""

    gives: ClassVar[frozenset[str]] = Averaged.gives | {"modes"}

    def leave(self, x: Place) -> None:
        x.p = x.p + (1 - 1 / self._train(x)) * (x.z - x.p)

    def enter(self, x: Place) -> None:
        x.p = x.p + (1 - self._train(x)) * (x.z - x.p)

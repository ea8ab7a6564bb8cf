"""Generalized primal averaging: where gradients are taken, and how long the average is, apart."""

from __future__ import annotations

from typing import Any

from untuned.iterates.averaged import Evaluated
from untuned.parts import Place, hyper


class GPA(Evaluated):
    """Generalized primal averaging: arXiv 2512.17131 (mu_y is `train`, mu_x is `keep`).

        y = train x + (1 - train) z                      gradients are taken at y, which p holds while training
        z <- the plain step from z, with the weight decay of z
        x <- keep x + (1 - keep) z                       the averaged point, which p holds after eval()

    Stored are z and y; x = (y - (1 - train) z) / train. keep = 0 is the plain iterate, train = 1 primal averaging with
    momentum = keep, and keep = (t - 1) / t at step t is Schedule-Free with equal weights, where nothing decays;
    keep = 0.9^(1/H) averages as long as the authors' outer steps of H inner ones. `keep` may follow a schedule,
    `train` must stay. Step sizes measure at z, with `measure_at="y"` at y; neither is published with this iterate. Any
    direction and step size. Differs from the authors' code in that it starts in training mode, and where weights decay:
    theirs shrinks the stored z but not the y that it is part of, so that in every step x also goes
    keep (1 - train) / train lr weight_decay z away from 0. Their `use_wd_on_y` shrinks the stored y alone: then x loses
    keep / train lr weight_decay y, and z nothing. With train = 1 or keep = 0 the first is the same as here. Slots: 1.
    """

    train: float = hyper(default=0.7, within="(0, 1]")
    keep: float = hyper(default=0.9967, within="[0, 1)")

    def _train(self, x: Place) -> Any:
        return x.train

    def _share(self, x: Place) -> Any:
        return 1 - x.keep

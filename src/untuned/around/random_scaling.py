"""Random scaling: every step is multiplied by one random number."""

from __future__ import annotations

from typing import Any

from untuned.parts import Place, StepTransform, hyper, log, number, uniform


class RandomScaling(StepTransform):
    """Random scaling: arXiv 2405.09742, with the plain step from w to w' of any direction, step size and weight decay.

        w <- w + s (w' - w),   s ~ Exp(1)                 one s for the model in every step, of mean and variance 1

    s follows from the seed and the number k of the step alone: it is equal on all ranks and after a resume, a step that
    is skipped uses none, and no other random number depends on it. Differs from the authors' code in that: theirs draws
    from the global generator. Any iterate of plain steps: under Schedule-Free it is the step of z. Slots: none.
    """

    seed: int = hyper(default=0, within="[0, 4294967296)")
    s = number(1.0, key="random_scale")

    def decide(self, c: Place) -> None:
        c.s = -log(1 - uniform(c.seed, c.k))

    def around(self, x: Place, w: Any, new: Any) -> Any:
        return w + x.s * (new - w)

"""Steps in proportion to the size of the weights."""

from __future__ import annotations

from typing import Any

from untuned.parts import Place, StepSize, dot, each, hyper, maximum, number, ratio, sqrt


class Relative(StepSize):
    """A step is lr times the root mean square of the weights it moves: what a u of unit elements changes, in shares.

        r_i = rms of tensor i,   R = rms of all tensors together, at least `least`
        s_i = own max(r_i, floor R) + (1 - own) R
        x <- x - lr s_i u / bias

    As with the scaled learning rate of Adafactor (arXiv 1804.04235, section 8), without the clip of its updates, and
    with R where it has one constant for every tensor: if all parameters are multiplied by a number that the model
    divides by, and u does not change with the scale of the gradient, every step is multiplied by it too. A tensor of
    zeros moves by `floor` R, and one in a group with own=0 by R, whatever its own size: offsets and the scales of norms
    begin at 0 and at 1, which says little about how far they must go. `least` is for models that are 0 altogether.
    Weight decay has the rate lr, not lr s. Slots: none, and one number per tensor.
    """

    lr: float = hyper(default=0.1, within="[0, inf)")
    own: float = hyper(default=1.0, within="[0, 1]")
    floor: float = hyper(default=0.1, within="[0, 1]")
    least: float = hyper(default=1e-3, within="(0, inf)")
    r = number(0.0, key="rms", each=True)
    R = number(0.0, key="rms_of_model")

    def measure(self, x: Place) -> tuple[Any, Any]:
        one = 0.0 * x.w + 1.0
        return each(dot(x.w, x.w)), each(one)

    def decide(self, c: Place, squares: Any, count: Any) -> None:
        c.r = sqrt(ratio(squares, count))
        c.R = sqrt(ratio(c.summed(squares), c.summed(count)))

    def size(self, x: Place) -> tuple[Any, Any]:
        R = maximum(x.R, x.least)
        s = x.own * maximum(x.r, x.floor * R) + (1 - x.own) * R
        return x.lr * s / x.bias, x.lr

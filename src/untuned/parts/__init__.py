"""All that the author of a method imports: the kinds of part, what they declare, and the mathematics of their verbs."""

from untuned.parts.declare import choice, hyper, number, scratch, signal, slot
from untuned.parts.kinds import Direction, GradientTransform, Iterate, StepSize, StepTransform, WeightDecay
from untuned.parts.math import (
    cbrt,
    dot,
    each,
    exp,
    largest,
    log,
    maximum,
    minimum,
    norm1,
    ratio,
    sign,
    sqrt,
    tanh,
    uniform,
    where,
)
from untuned.parts.place import Place

__all__ = [
    "Direction",
    "GradientTransform",
    "Iterate",
    "Place",
    "StepSize",
    "StepTransform",
    "WeightDecay",
    "cbrt",
    "choice",
    "dot",
    "each",
    "exp",
    "hyper",
    "largest",
    "log",
    "maximum",
    "minimum",
    "norm1",
    "number",
    "ratio",
    "scratch",
    "sign",
    "signal",
    "slot",
    "sqrt",
    "tanh",
    "uniform",
    "where",
]

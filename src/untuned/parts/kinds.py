"""The kinds of part and their verbs. A verb is pure elementwise math on a place `x`; `decide` is scalar math on `c`.

A part offers a verb by having it; the engine plans the sweeps from the verbs it finds, and refuses a method that is no
verb (helpers begin with an underscore). A class that can be used as a part is not extended: what methods share is in
these classes or in abstract ones between. Verbs use the functions of `untuned.parts.math`, since what they see are
tensors, symbols or, in `decide`, also NumPy's numbers. A value that `decide` has read does not change when it writes
that number; reading the number again gives the new value. In the lists below, verbs in brackets may be left out.

`watch` and `record` are for sums that nothing in this step waits for, so that they cost no pass over memory: a gradient
transform's are taken with its first sweep, those of a direction or an iterate behind the move (x.old.p is where p was).
`record` is a decision on them at the end of that sweep, whose numbers the next step reads.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportPrivateImportUsage=false
# torch's stubs leave types unknown, and its multi-tensor functions have private names.

from __future__ import annotations

import abc
from typing import Any, ClassVar

from untuned.parts.declare import Slot
from untuned.parts.part import Part
from untuned.parts.place import Place

ADVICE = ("caution", "advice", "refuse")  # no verbs: they return a sentence or None (see `Part`)
WRITERS = ("look", "accumulate", "reform", "measure", "move", "leave", "enter", "remember")  # may store to slots
PAIRS = {"watch": "record", "leave": "enter"}
PARTNERS = PAIRS | {b: a for a, b in PAIRS.items()} | {"look": "decide", "measure": "decide"}  # verb: what it needs
WATCHED = ("watch", "record", *ADVICE)
UNTRACED = ("reform", "decide", "record", *ADVICE)


class GradientTransform(Part):
    """Turns the gradient into another one before the weight decay and the direction see it.

    Verbs: [look, decide] [accumulate] gradient [watch, record] [remember]. `gradient(x, g)`: the new gradient;
    x.g of its other verbs is the gradient that comes in.
    """

    verbs: ClassVar[tuple[str, ...]] = ("look", "decide", "accumulate", "gradient", "remember", *WATCHED)

    @abc.abstractmethod
    def gradient(self, x: Place, g: Any) -> Any: ...


class Direction(Part):
    """Turns gradients into a direction u. Verbs: [look, decide] [weight] [accumulate] [reform] unit
    [watch, record] [remember], and [scale] [bias] [factor] [average].

    `weight(x) -> keep, take`: the scalars of m <- keep m + take g; it reads x.k, not x.t, so that one pair holds for
    the whole model and its losses. `reform(x)`: matrix math, with any function of torch, on letters that are whole
    tensors (gathered, if sharded) in float32 or float64; a `measure` after it cannot read x.old. `unit(x)`: u.
    `average(x)`: x.m for other parts, if the direction has no slot m. `scale(x)`: the diagonal D of u = m / D.
    `bias(x)`: what the step divides by since m starts at 0. `factor(x)`: the whole bias correction as one factor of the
    step, for rules that apply it outside the direction. `remember(x)`: what to store when x.u has been read for the
    last time.
    """

    verbs: ClassVar[tuple[str, ...]] = (
        *("look", "decide", "weight", "accumulate", "reform", "unit", "remember"),
        *("scale", "bias", "factor", "average", *WATCHED),
    )

    @abc.abstractmethod
    def unit(self, x: Place) -> Any: ...


class StepSize(Part):
    """How far to go along u. Verbs: [gradient_factors] [measure, decide] size [effective].

    `gradient_factors(x) -> a, b`: the factors of g in m and of g^2 in v. `size(x) -> size, rate`: the factors of u and
    of the weight decay. `effective(x, rate)`: the learning rate people should see, if it is not `rate`.
    """

    verbs: ClassVar[tuple[str, ...]] = ("gradient_factors", "measure", "decide", "size", "effective", *ADVICE)

    @property
    def every(self) -> int:
        """`measure` and the slots that are slices see every n-th element of a tensor."""
        sliced = any(isinstance(s, Slot) and s.shape == "slice" for s in self.letters.values())
        return getattr(self, "slice_p", 1) if sliced else 1

    @abc.abstractmethod
    def size(self, x: Place) -> tuple[Any, Any]: ...


class StepTransform(Part):
    """Turns the plain step from w into another one. Verbs: [measure, decide] around.

    `around(x, w, new)`: where the step ends that would lead from w to `new`; its own `measure` runs when x.size is
    known, and x.base is there the plain step with the transforms before this one. `removes`: words that the iterate no
    longer gives beside it.
    """

    verbs: ClassVar[tuple[str, ...]] = ("measure", "decide", "around", *ADVICE)
    removes: ClassVar[frozenset[str]] = frozenset()
    needs: ClassVar[frozenset[str]] = frozenset({"plain_step"})

    @abc.abstractmethod
    def around(self, x: Place, w: Any, new: Any) -> Any: ...


class Iterate(Part):
    """What the parameters hold; the only writer of x.p. Verbs: [point] [measure, decide] move
    [watch, record], [leave, enter] [effective].

    `point(x)`: x.w, the point of the distance and of the model of the loss that step sizes measure, if it is not x.p.
    `leave(x)` puts the point to evaluate into x.p, `enter(x)` the point to train from.
    """

    verbs: ClassVar[tuple[str, ...]] = ("point", "measure", "decide", "move", "leave", "enter", "effective", *WATCHED)
    wants_size: ClassVar[bool] = False  # its `measure` reads x.size
    decays_w: ClassVar[bool] = False  # the weights that decay are x.w, not x.p
    affine: ClassVar[bool] = False  # the new x.p is affine in the old one and in x.size * x.u

    @abc.abstractmethod
    def move(self, x: Place) -> None: ...


class WeightDecay(Part):
    """Where weight decay enters. Verbs: gradient (x.g of all parts), decay, shrink.

    `decay(x, w, at)`: w after the decay, `at` being the weights that decay: x.p, or x.w if the iterate has `decays_w`.
    `shrink(x)`: 1 + x.rate * x.weight_decay, or 1 if the gradient has the decay. `decoupled`: the gradient is left as
    it is.
    """

    verbs: ClassVar[tuple[str, ...]] = ("gradient", "decay", "shrink", *ADVICE)
    decoupled: ClassVar[bool] = True

    @abc.abstractmethod
    def gradient(self, x: Place, g: Any) -> Any: ...

    @abc.abstractmethod
    def decay(self, x: Place, w: Any, at: Any) -> Any: ...

    @abc.abstractmethod
    def shrink(self, x: Place) -> Any: ...


KINDS = (GradientTransform, Direction, StepSize, StepTransform, Iterate, WeightDecay)

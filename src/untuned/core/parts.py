"""The four kinds of part. A verb is pure elementwise math on a place `x`; `decide` is scalar math on a place `c`.

A part offers a verb by having it; the engine plans the sweeps from the verbs it finds. Nothing here is overridden:
a part is abstract (these classes) or final (a method's class). Verbs use the functions of `untuned.core.place`, since
what they see are tensors, symbols or, in `decide`, also NumPy's numbers. What `decide` has read stays as it was when
it writes.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportPrivateImportUsage=false
# torch's stubs leave types unknown, and its multi-tensor functions have private names.

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar, dataclass_transform

from untuned.core.declare import Hyper, Number, Slot, check, choice, hyper, shapes
from untuned.core.place import Place


@dataclass_transform(eq_default=False, field_specifiers=(hyper, choice))
class Part(abc.ABC):
    """Declared slots, numbers and hyper-parameters (annotated fields), and verbs.

    `scope` says where `decide` runs: once for the model, once per group, or once for all tensors of a group as vectors.
    A field of that name makes the scope an option. `advice(numbers)`, if a part has it, looks at the hyper-parameters
    of the first group, at what `metrics()` read and, after 100 steps of a method that needs the loss, at `loss_first`
    and the median and lower decile of each hundred, `loss_last` and `loss_low` of the last, `loss_least` the least
    median so far; it returns a sentence about what has gone wrong and the option to turn, or None.
    `caution(group, decay)` looks at the options of a new group in the same way, `decay` being what the weight decay
    gives.
    """

    gives: ClassVar[frozenset[str]] = frozenset()
    needs: ClassVar[frozenset[str]] = frozenset()
    lacks: ClassVar[dict[str, str]] = {}  # capability -> why this part does not give it
    scope = "model"
    reads_displacement: ClassVar[bool] = False  # how far the parameters moved: rounding must not hide it
    letters: ClassVar[dict[str, Slot | Number | Hyper]]
    fields: ClassVar[dict[str, dataclasses.Field[Any]]]

    def __init_subclass__(cls) -> None:
        declared: dict[str, Slot | Number | Hyper] = {}
        for letter, value in vars(cls).items():
            if isinstance(value, Number):
                declared[letter] = dataclasses.replace(value, key=value.key or letter)
            elif isinstance(value, Slot):
                declared[letter] = value
        dataclasses.dataclass(eq=False)(cls)
        cls.fields = {f.name: f for f in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
        for name, field in cls.fields.items():
            if isinstance(field.default, tuple):
                for i in range(len(field.default)):
                    declared[f"{name[:-1]}{i + 1}"] = Hyper(name, i)
            if not shapes(field):
                declared[name] = Hyper(name)
        cls.letters = declared

    def __post_init__(self) -> None:
        for name, field in self.fields.items():
            setattr(self, name, check(self.name, field, getattr(self, name)))

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def shape(self) -> str:
        """The name, with the options that shape the state and are not the default."""
        options = (
            f"{k}={getattr(self, k)!r}" for k, f in self.fields.items() if shapes(f) and getattr(self, k) != f.default
        )
        return f"{self.name}({text})" if (text := ", ".join(options)) else self.name

    def hypers(self) -> dict[str, Any]:
        """The values that live in the groups; options that shape the method do not."""
        return {k: getattr(self, k) for k, f in self.fields.items() if not shapes(f)}

    def slots(self) -> dict[str, Slot]:
        return {k: v for k, v in self.letters.items() if isinstance(v, Slot)}

    def numbers(self) -> dict[str, Number]:
        return {k: v for k, v in self.letters.items() if isinstance(v, Number)}

    def length(self, n: Number) -> int:
        size = getattr(self, n.size)
        return len(size) if isinstance(size, tuple) else size

    def per_tensor(self, n: Number) -> bool:
        return n.each or self.scope == "tensor"


class Direction(Part):
    """Turns gradients into a direction u. Verbs: [look, decide] [weight] [accumulate] unit, [scale] [bias] [factor].

    `weight(x) -> keep, take`: the scalars of m <- keep m + take g; it reads x.k, not x.t, so that one pair holds for
    the whole model and its losses. `scale(x)`: the diagonal D of u = m / D. `bias(x)`: what the step divides by since m
    starts at 0. `factor(x)`: the whole bias correction as one factor of the step, for rules that apply it outside the
    direction.
    """

    @abc.abstractmethod
    def unit(self, x: Place) -> Any: ...


class StepSize(Part):
    """How far to go along u. Verbs: [weight] [measure, decide] size [effective].

    `weight(x) -> a, b`: the factors of g in m and of g^2 in v. `size(x) -> size, rate`: the factors of u and of the
    weight decay. `effective(x)`: the learning rate people should see, if it is not `rate`.
    """

    @property
    def every(self) -> int:
        """`measure` and the slots of the part see every n-th element of a tensor, n from a field `slice_p`."""
        return getattr(self, "slice_p", 1)

    @abc.abstractmethod
    def size(self, x: Place) -> tuple[Any, Any]: ...


class Iterate(Part):
    """What the parameters hold; the only writer of x.p. Verbs: [measure, decide] move, [leave, enter] [effective].

    `leave(x)` puts the point to evaluate into x.p, `enter(x)` the point to train from; both return the new x.p.
    """

    wants_size: ClassVar[bool] = False  # its `measure` reads x.size
    affine: ClassVar[bool] = False  # the new x.p is affine in the old one and in x.size * x.u

    @abc.abstractmethod
    def move(self, x: Place) -> None: ...


class WeightDecay(Part):
    """Where weight decay enters. Verbs: gradient (x.g of all parts), decay, shrink.

    `decay(x, w, at)`: where the decay takes w, the weights that decay being those of the point `at`. `decoupled`: the
    gradient is left as it is.
    """

    decoupled: ClassVar[bool] = True

    @abc.abstractmethod
    def gradient(self, x: Place, g: Any) -> Any: ...

    @abc.abstractmethod
    def decay(self, x: Place, w: Any, at: Any) -> Any: ...

    @abc.abstractmethod
    def shrink(self, x: Place) -> Any: ...

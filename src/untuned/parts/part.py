"""What all parts have: declared letters, options with their ranges, and words that say what they give and need."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportPrivateImportUsage=false
# torch's stubs leave types unknown, and its multi-tensor functions have private names.

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar, dataclass_transform

from untuned.parts.declare import Hyper, Number, Signal, Slot, check, choice, hyper, shapes


@dataclass_transform(eq_default=False, field_specifiers=(hyper, choice))
class Part(abc.ABC):
    """Declared slots, numbers and hyper-parameters (annotated fields), and verbs.

    `scope` says where `decide` runs: "model", once for all groups; "group", once per group; "tensor" or "row", once per
    group on vectors with an entry per tensor or row. A field of that name makes the scope an option.

    Any part may have three methods that return a sentence or None. `advice(numbers)` looks at the hyper-parameters of
    the first group, at what `metrics()` read and, after 100 steps of a method that needs the loss, at `loss_first` and
    the median and lower decile of each hundred, `loss_last` and `loss_low` of the last, `loss_least` the least median
    so far; it says what has gone wrong and which option to turn. `caution(group, decay)` looks at the options of a new
    group in the same way, `decay` being what the weight decay gives. `refuse(p)` says why it cannot train a tensor.
    """

    gives: ClassVar[frozenset[str]] = frozenset()
    needs: ClassVar[frozenset[str]] = frozenset()
    lacks: ClassVar[dict[str, str]] = {}  # word -> why this part does not give it
    scope = "model"
    reads_displacement: ClassVar[bool] = False  # how far the parameters moved: rounding must not hide it
    letters: ClassVar[dict[str, Slot | Number | Hyper | Signal]] = {}
    fields: ClassVar[dict[str, dataclasses.Field[Any]]]

    def __init_subclass__(cls) -> None:
        declared = dict(cls.letters)  # those of the class it extends
        for letter, value in vars(cls).items():
            if isinstance(value, Number):
                declared[letter] = dataclasses.replace(value, key=value.key or letter)
            elif isinstance(value, Slot | Signal):
                declared[letter] = value
        dataclasses.dataclass(eq=False)(cls)
        cls.fields = {f.name: f for f in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
        for name, field in cls.fields.items():
            if not isinstance(field.default, bool) and not field.metadata:
                raise TypeError(
                    f"{cls.__name__}: {name} must be declared by hyper(default=..., within=...) or choice()."
                )
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

    def signals(self) -> set[tuple[str, str]]:
        """The keywords of `step()` that the part reads, but for the loss and the samples, and their intervals."""
        return {(v.key, v.within) for v in self.letters.values() if isinstance(v, Signal)}

    def per_tensor(self, n: Number) -> bool:
        return n.each or self.scope in ("tensor", "row")

    def per_row(self, n: Number) -> bool:
        return self.scope == "row"

"""The place x: what the verbs of a part read and write, and the elementwise functions they may use.

A place resolves a name in this order: the part's own letters (slots, numbers, hyper-parameters), then the public
letters below. Letters of other parts are out of reach, so two parts may use the same one.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportPrivateImportUsage=false
# torch's stubs leave types unknown, and its multi-tensor functions have private names.

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from untuned.core.declare import Hyper, Number, Slot

if TYPE_CHECKING:
    from untuned.core.parts import Part


class Place:
    """One element position of the model as one part sees it; in `decide`, the scalars of one scope (then called c)."""

    __slots__ = ("_frame", "_part")

    def __init__(self, frame: Frame, part: Part) -> None:
        object.__setattr__(self, "_frame", frame)
        object.__setattr__(self, "_part", part)

    def __getattr__(self, name: str) -> Any:
        return self._frame.read(self._part, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._frame.write(self._part, name, value)

    def base(self, w: Any, at: Any = None) -> Any:
        """Where the plain step takes w, with the weight decay of the point `at` (by default of x.p)."""
        return self.decayed(w - self.size * self.u, self.p if at is None else at)

    def decayed(self, w: Any, at: Any) -> Any:
        """Where the weight decay of the point `at` takes w."""
        return self._frame.parts["decay"].decay(self._frame.place("decay"), w, at)

    def summed(self, v: Any) -> Any:
        """In `decide`: the sum of what is kept per tensor over the tensors of one decision, on all ranks."""
        return v if self._part.scope == "tensor" else self._frame.total(v.sum())


class Frame:
    """Resolves names for one tensor (streams and scalars) or for one `decide` (scalars only)."""

    def __init__(self, parts: dict[str, Any]) -> None:
        self.parts = parts

    def place(self, role: str) -> Place:
        return Place(self, self.parts[role])  # not kept: a cycle would keep tensors alive until the collector runs

    def read(self, part: Part, name: str) -> Any:
        if name == "top" and part.scope != "model":
            name = "lr"
        letter = part.letters.get(name)
        if isinstance(letter, Slot):
            return self.slot(letter.key)
        if isinstance(letter, Number):
            return self.number(part, letter)
        if isinstance(letter, Hyper):
            return self.hyper(part, letter)
        if name in PUBLIC:
            return PUBLIC[name](self)
        if name.startswith("was_") and isinstance(old := part.letters.get(name[4:]), Number):
            return self.number_before(part, old)
        raise AttributeError(f"{part.name}: x.{name} is neither one of its letters nor one of {' '.join(PUBLIC)}.")

    def write(self, part: Part, name: str, value: Any) -> None:
        raise AttributeError(f"{part.name}: x.{name} cannot be written here.")

    def written(self, part: Part, name: str, kind: type[Slot] | type[Number] = Slot) -> str:
        """The key of what a verb writes to; a decision writes numbers."""
        letter, place = part.letters.get(name), "x" if kind is Slot else "c"
        if isinstance(letter, kind):
            return letter.key
        if name == "p" and kind is Slot and part is self.parts["iterate"]:
            return "p"
        kinds = f"{kind.__name__.lower()}s"
        raise AttributeError(f"{part.name}: {place}.{name} is not one of its {kinds}, so it cannot be written.")

    def total(self, local: Any) -> Any:
        """A sum over this process's tensors, added over the ranks if each holds others."""
        return local

    def slot(self, key: str) -> Any:
        raise AttributeError(f"a scalar decision cannot read the slot {key!r}: it has one value per element.")

    def number(self, part: Part, declared: Number) -> Any:
        raise NameError(declared.key)

    def number_before(self, part: Part, declared: Number) -> Any:
        raise NameError(declared.key)

    def hyper(self, part: Part, letter: Hyper) -> Any:
        raise NameError(letter.key)

    def public(self, name: str) -> Any:
        """A letter of the engine: p, g, raw, rho, t, k, loss, old."""
        raise AttributeError(f"x.{name} does not exist here.")


def _average(frame: Frame) -> Any:
    direction = frame.parts["direction"]
    if "m" in direction.letters:
        return frame.read(direction, "m")
    return direction.average(frame.place("direction"))


def _verb(role: str, verb: str, item: int | None = None, default: Any = None) -> Callable[[Frame], Any]:
    def read(frame: Frame) -> Any:
        part = frame.parts[role]
        if not hasattr(part, verb):
            return default
        value = getattr(part, verb)(frame.place(role))
        return value if item is None else value[item]

    return read


PUBLIC: dict[str, Callable[[Frame], Any]] = {
    "p": lambda f: f.public("p"),  # the parameter
    "g": lambda f: f.public("g"),  # its gradient, sign and coupled weight decay applied
    "raw": lambda f: f.public("raw"),  # its gradient before the weight decay
    "m": _average,  # the direction's average of gradients
    "u": _verb("direction", "unit"),  # the direction; evaluated anew at every mention, since it follows fresh slots
    "scale": _verb("direction", "scale", default=1.0),  # the diagonal D in u = m / D
    "factor": _verb("direction", "factor", default=1.0),  # the direction's bias correction as a factor of the step
    "keep": _verb("direction", "weight", 0),  # m <- keep m + take g
    "take": _verb("direction", "weight", 1),
    "a": _verb("step_size", "weight", 0, 1.0),  # the step size's factor of g in m
    "b": _verb("step_size", "weight", 1, 1.0),  # and of g^2 in v
    "size": _verb("step_size", "size", 0),  # factor of u in the step
    "rate": _verb("step_size", "size", 1),  # factor of weight_decay in the step
    "shrink": _verb("decay", "shrink"),  # what the weight decay divides the weights by
    "bias": _verb("direction", "bias", default=1.0),  # what its bias correction divides the step by
    "rho": lambda f: f.public("rho"),  # sum of the weights in m, per tensor
    "t": lambda f: f.public("t"),  # steps this tensor has taken, from 1
    "k": lambda f: f.public("k"),  # steps the model has taken, from 1
    "top": lambda f: f.public("top"),  # the largest lr of all groups in the scope of the part
    "loss": lambda f: f.public("loss"),  # only in `decide`
    "ids": lambda f: f.public("ids"),  # only in `decide`: the numbers of the samples in the batch
    "old": lambda f: f.public("old"),  # the same place with the slots as they were before this sweep
}


# ---------------------------------------------------------------- functions of one element


class Traced:
    """Base of the symbols that kernels trace verbs with: `q.call(op, ...)` is the operation on them."""

    __slots__ = ()

    def call(self, op: str, *args: Any) -> Any:
        raise TypeError(op)


def _apply(op: str, name: str, in_python: Callable[..., Any], *values: Any) -> Any:
    """The operation on symbols, on tensors, on NumPy's numbers or on Python's, which may be mixed with the others."""
    if (symbol := next((v for v in values if isinstance(v, Traced)), None)) is not None:
        return symbol.call(op, *values)
    if tensors := [v for v in values if isinstance(v, torch.Tensor)]:
        real = [v for v in tensors if v.is_floating_point()] or [tensors[0].new_empty((), dtype=torch.float64)]
        like = max(real, key=torch.Tensor.dim)
        return getattr(torch, name)(*(v if isinstance(v, torch.Tensor) else like.new_full((), v) for v in values))
    if any(isinstance(v, np.ndarray | np.generic) for v in values):
        return getattr(np, name)(*values)
    return in_python(*values)


def sqrt(q: Any) -> Any:
    return _apply("sqrt", "sqrt", math.sqrt, q)


def minimum(q: Any, r: Any) -> Any:
    return _apply("min", "minimum", min, q, r)


def maximum(q: Any, r: Any) -> Any:
    return _apply("max", "maximum", max, q, r)


def _chosen(condition: Any, q: Any, r: Any) -> Any:
    return q if condition else r


def where(condition: Any, q: Any, r: Any) -> Any:
    return _apply("where", "where", _chosen, condition, q, r)


def cbrt(q: Any) -> Any:
    """The cube root of q >= 0."""
    return q.call("cbrt", q) if isinstance(q, Traced) else q ** (1 / 3)


def sign(q: Any) -> Any:
    return where(q > 0, 1.0, where(q < 0, -1.0, 0.0))


def ratio(q: Any, r: Any) -> Any:
    """q / r, and 0 where r is 0."""
    return where(r > 0, q / where(r > 0, r, 1.0), 0.0)


def dot(q: Any, r: Any) -> Any:
    """The summand of <q, r>: what a verb returns is summed over the model by the engine."""
    return q * r


def norm1(q: Any) -> Any:
    """The summand of the 1-norm."""
    return abs(q)


class Each:
    """A summand whose sums stay apart, one per tensor."""

    def __init__(self, value: Any) -> None:
        self.value = value


def each(summand: Any) -> Each:
    return Each(summand)

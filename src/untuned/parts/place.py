"""The place x: what the verbs of a part read and write.

A place resolves a name in this order: the part's own letters (slots, numbers, hyper-parameters, signals), then the
letters of the table below. Letters of other parts are out of reach, so two parts may use the same one.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportPrivateImportUsage=false
# torch's stubs leave types unknown, and its multi-tensor functions have private names.

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from untuned.parts.declare import Hyper, Number, Signal, Slot
from untuned.parts.part import Part

Parts = dict[str, Any]  # role -> part, in the order of the step: gradient 1, ..., direction, step_size, around 1, ...


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

    def base(self, w: Any) -> Any:
        """The plain step from w: w - size u, its weight decay, and the step transforms before the part that asks.

        The weights that decay are x.p, or x.w if the iterate has `decays_w`.
        """
        at = "w" if self._frame.parts["iterate"].decays_w else "p"
        # read by the table, since letters of the part itself may have these names
        size, u, at = (LETTERS[name][1](self._frame, self._part) for name in ("size", "u", at))
        new = self.decayed(w - size * u, at)
        for role, part in self._frame.before(self._part, "around"):
            new = part.around(self._frame.place(role), w, new)
        return new

    def decayed(self, w: Any, at: Any) -> Any:
        """Where the weight decay of the point `at` takes w."""
        return self._frame.parts["decay"].decay(self._frame.place("decay"), w, at)

    def summed(self, v: Any) -> Any:
        """In `decide`: the sum over tensors, on all ranks, of a vector with an entry per tensor.

        In a decision of tensors or rows, the vector itself.
        """
        return v if self._part.scope in ("tensor", "row") else self._frame.total(v.sum())


class Frame:
    """Resolves names for one tensor (scalars, and streams: one value per element) or for one `decide` (scalars only).

    `where` says which, in the words of the first entry of `LETTERS`.
    """

    where: ClassVar[str] = "sweeps"

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.at: tuple[str, str] = "", ""  # the role and the verb that run

    def place(self, role: str) -> Place:
        return Place(self, self.parts[role])  # not kept: a cycle would keep tensors alive until the collector runs

    def before(self, part: Part, kind: str) -> Iterator[tuple[str, Any]]:
        """The transforms of the chain `kind` that come before a part in the order of a step, by their roles."""
        for role, one in self.parts.items():
            if one is part:
                return
            if role.startswith(kind):
                yield role, one

    def read(self, part: Part, name: str) -> Any:
        if name == "top" and part.scope != "model" and name not in part.letters:
            name = "lr"
        letter, letter_of = part.letters.get(name), "x" if self.where == "sweeps" else "c"
        if isinstance(letter, Slot):
            if callable(letter.shape) and self.at[1] != "reform":
                raise AttributeError(f"{part.name}: x.{name} has a shape of its own: only 'reform' may read it.")
            return self.slot(letter.key)
        if isinstance(letter, Number):
            return self.number(part, letter)
        if isinstance(letter, Hyper):
            return self.hyper(part, letter)
        if isinstance(letter, Signal):
            return self.signal(letter.key)
        if name in LETTERS:
            where, read, meaning = LETTERS[name]
            if where not in ("", self.where):
                hint = "measure" if hasattr(part, "measure") or not hasattr(part, "look") else "look"
                hint = f" ({meaning}); return what {hint!r} sums of it" if letter_of == "c" else f" ({meaning})"
                raise AttributeError(f"{part.name}: {letter_of}.{name} exists only in {where}{hint}.")
            return read(self, part)
        if name.startswith("was_") and isinstance(old := part.letters.get(name[4:]), Number):
            return self.number_before(part, old)
        raise AttributeError(
            f"{part.name}: {letter_of}.{name} is neither one of its letters nor one of {' '.join(LETTERS)}."
        )

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
        """A sum over the tensors of this process; if each rank holds other tensors, added over the ranks."""
        return local

    def slot(self, key: str) -> Any:
        raise AttributeError(f"a scalar decision cannot read the slot {key!r}: it has one value per element.")

    def number(self, part: Part, declared: Number) -> Any:
        raise NameError(declared.key)

    def number_before(self, part: Part, declared: Number) -> Any:
        raise NameError(declared.key)

    def hyper(self, part: Part, letter: Hyper) -> Any:
        raise NameError(letter.key)

    def signal(self, key: str) -> Any:
        raise NameError(key)

    def engine(self, name: str) -> Any:
        """A letter that the engine knows: p, given, rho, t, k, top, loss, ids."""
        raise AttributeError(f"the letter {name!r} does not exist here: {LETTERS[name][2]}.")

    def old(self) -> Frame:
        """The frame with the slots as they were before this sweep."""
        raise AttributeError("x.old does not exist here.")

    def raw(self, part: Part) -> Any:
        """The gradient after the chain of transforms; for one of them, after those before it."""
        g = self.engine("given")
        for role, one in self.before(part, "gradient"):
            g = one.gradient(self.place(role), g)
        return g

    def gradient(self, part: Part) -> Any:
        g, role = self.raw(part), next(role for role, one in self.parts.items() if one is part)
        # the weights that decay are those from before the sweep, whatever moved in it
        return g if role.startswith("gradient") else self.parts["decay"].gradient(self.old().place("decay"), g)

    def start(self, part: Part) -> Any:
        """Where the plain step starts; for a step size, p if the iterate is to be measured there."""
        iterate = self.parts["iterate"]
        here = part is self.parts["step_size"] and getattr(iterate, "measure_at", "z") == "y"
        return self.engine("p") if here or not hasattr(iterate, "point") else iterate.point(self.place("iterate"))


Read = Callable[[Frame, Part], Any]


def _average(frame: Frame, part: Part) -> Any:
    direction = frame.parts["direction"]
    if "m" in direction.letters:
        return frame.read(direction, "m")
    return direction.average(frame.place("direction"))


def _engine(name: str) -> Read:
    return lambda frame, part: frame.engine(name)


def _verb(role: str, verb: str, item: int | None = None, default: Any = None) -> Read:
    def read(frame: Frame, part: Part) -> Any:
        owner = frame.parts[role]
        if not hasattr(owner, verb):
            return default(frame, part) if callable(default) else default
        value = getattr(owner, verb)(frame.place(role))
        return value if item is None else value[item]

    return read


def _old(frame: Frame, part: Part) -> Place:
    if frame.at[1] == "measure" and hasattr(frame.parts["direction"], "reform"):  # measured in a pass after it
        raise AttributeError(f"{part.name}: after 'reform' x.old is not what was before the step. Use x.m and x.g.")
    return Place(frame.old(), part)


# letter: (where it exists, "" for both a sweep and a decision; how it is read; what it is)
LETTERS: dict[str, tuple[str, Read, str]] = {
    "p": ("sweeps", _engine("p"), "the parameter"),
    "g": ("sweeps", Frame.gradient, "its gradient, sign, clipping, transforms and coupled weight decay applied"),
    "raw": ("sweeps", Frame.raw, "its gradient before the weight decay"),
    "w": ("sweeps", lambda frame, part: frame.start(part), "where the plain step starts: p, or z of averages"),
    "m": ("sweeps", _average, "the direction's average of gradients"),
    "u": ("sweeps", _verb("direction", "unit"), "the direction; evaluated anew at every mention, with fresh slots"),
    "scale": ("sweeps", _verb("direction", "scale", default=1.0), "the diagonal D in u = m / D"),
    "factor": ("", _verb("direction", "factor", default=1.0), "the whole bias correction as a factor of the step"),
    "keep": ("", _verb("direction", "weight", 0), "m <- keep m + take g"),
    "take": ("", _verb("direction", "weight", 1), "m <- keep m + take g"),
    "a": ("", _verb("step_size", "gradient_factors", 0, 1.0), "the step size's factor of g in m"),
    "b": ("", _verb("step_size", "gradient_factors", 1, 1.0), "and of g^2 in v"),
    "size": ("", _verb("step_size", "size", 0), "factor of u in the step"),
    "rate": ("", _verb("step_size", "size", 1), "factor of weight_decay in the step"),
    "shrink": ("", _verb("decay", "shrink"), "what the weight decay divides the weights by"),
    "bias": ("", _verb("direction", "bias", default=1.0), "what the bias correction divides the step by"),
    "rho": ("", _engine("rho"), "the sum of the weights in m, per tensor"),
    "t": ("", _engine("t"), "steps this tensor has taken, from 1"),
    "k": ("", _engine("k"), "steps the model has taken, from 1"),
    "top": ("", _engine("top"), "the largest lr of all groups in the scope of the part"),
    "loss": ("'decide'", _engine("loss"), "the loss of the step"),
    "clip": ("'decide'", _engine("clip"), "what clipping multiplies the gradients by"),
    "ids": ("'decide'", _engine("ids"), "the numbers of the samples in the batch"),
    "old": ("sweeps", _old, "the same with slots from before this sweep"),
}

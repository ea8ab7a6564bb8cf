"""Tracing: the verbs of a sweep, run once on symbols, become a straight-line program."""

from __future__ import annotations

import dataclasses
import os
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from untuned.parts.declare import Hyper, Number
from untuned.parts.math import Reduced, each, reduced, where
from untuned.parts.part import Part
from untuned.parts.place import Frame, Parts
from untuned.recipe.plan import Verbs
from untuned.recipe.recipe import COMPENSATION, Recipe
from untuned.recipe.symbols import BEFORE, OPERATIONS, Program, Symbol, Zeros

Sums = dict[Any, list[Reduced]]  # of a stage by the role that asked for them; of a sweep over all labels by the part
Body = Callable[[Frame], Sums]
_OURS = tuple(os.path.join(os.path.dirname(os.path.dirname(__file__)), room) for room in ("parts", "recipe"))


def _kind(part: Part, n: Number) -> str:
    """The kind of column that a number has in the table of scalars."""
    return "row" if part.per_row(n) else "each" if part.per_tensor(n) else "number"


class TraceFrame(Frame):
    """Resolves names to symbols: streams by key, scalars by the column of the table that holds them.

    What is named in `zeros` is the constant 0. The numbers of the parts in `early` are those from before the step.
    """

    def __init__(self, recipe: Recipe, parts: Parts, zeros: Zeros = frozenset(), early: Sequence[Part] = ()) -> None:
        super().__init__(parts)
        self.recipe, self.zeros, self.early = recipe, zeros, early
        self.reads_only = False
        self.fresh: dict[str, Any] = {}

    def slot(self, key: str) -> Any:
        return self.fresh.get(key, Symbol("load", key))

    def number(self, part: Part, declared: Number) -> Any:
        if part in self.early:
            return self.number_before(part, declared)
        return Symbol("scalar", (_kind(part, declared), declared.key, None))

    def number_before(self, part: Part, declared: Number) -> Any:
        return Symbol("scalar", (BEFORE[_kind(part, declared)], declared.key, None))

    def hyper(self, part: Part, letter: Hyper) -> Any:
        if letter.key in self.zeros:
            return Symbol("const", 0.0)
        return Symbol("scalar", ("hyper", letter.key, letter.index))

    def signal(self, key: str) -> Any:
        return Symbol("scalar", ("signal", key, None))

    def engine(self, name: str) -> Any:
        if name == "p":
            return self.slot("p")
        if name == "given":
            g = Symbol("load", "g")
            g = g.call("neg", g) if self.recipe.maximize else g
            clip = Symbol("scalar", ("clip", "clip", None))
            return g if self.recipe.clip_grad_norm is None else g.call("*", g, clip)
        if name in ("t", "k", "top") or (name == "rho" and self.recipe.corrects(self.parts)):
            return Symbol("scalar", (name, name, None))
        return super().engine(name)

    def old(self) -> Frame:
        return TraceFrame(self.recipe, self.parts, self.zeros, self.early) if self.fresh else self

    def write(self, part: Part, name: str, value: Any) -> None:
        if self.reads_only:
            raise AttributeError(
                f"{part.name}: x.{name} cannot be written in {self.at[1]!r}, which runs at every mention of its value. "
                f"Write it in 'accumulate' or 'remember'."
            )
        self.fresh[self.written(part, name)] = Symbol.lift(value)


def body(verbs: Verbs) -> Body:
    """The verbs of a sweep, to be run in order on one place."""

    def run(frame: Frame) -> Sums:
        sums: Sums = {}
        for role, verb in verbs:
            frame.at = role, verb
            out = getattr(frame.parts[role], verb)(frame.place(role))
            if out is not None:
                sums[role] = [reduced(q) for q in (out if isinstance(out, tuple) else (out,))]
        return sums

    return run


def guard(clips: bool) -> Body:
    """Counts gradient elements whose square is not finite, which would stay in an average of squares.

    With clipping it also adds up the squares.
    """

    def run(frame: Frame) -> Sums:
        square = frame.slot("g") * frame.slot("g")
        bad = where(square < float("inf"), 0.0, 1.0)
        return {"guard": [each(bad), each(square)] if clips else [each(bad)]}

    return run


def trace(frame: TraceFrame, run: Body) -> Program:
    """The program of a sweep, with its verbs run on symbols."""
    try:
        sums = run(frame)
    except (TypeError, AttributeError) as error:
        if isinstance(error, AttributeError) and "'Symbol'" not in str(error):
            raise  # a letter that does not exist says so itself
        steps, (role, verb) = traceback.extract_tb(error.__traceback__), frame.at
        at = next((f for f in reversed(steps) if not f.filename.startswith(_OURS)), steps[-1])
        names, owner = " x ".join(part.name for part in frame.parts.values()), frame.parts[role].name
        raise TypeError(
            f"{names}: the verb {verb!r} of {owner} is not elementwise math as untuned.parts has it: {error} "
            f"In {at.name!r}, line {at.lineno}: {at.line} Use arithmetic, sqrt, cbrt, exp, log, tanh, minimum, maximum "
            f"and where, and x.lr, not self.lr, for options of groups."
        ) from error
    lifted = {r: [dataclasses.replace(one, value=Symbol.lift(one.value)) for one in of] for r, of in sums.items()}
    return Program(frame.fresh, lifted)


def compensated(program: Program) -> Program:
    """The same for parameters with a slot that holds what rounding took from them: x.p is the sum of both."""
    known: dict[int, Symbol] = {}

    def exact(q: Symbol) -> Symbol:
        if id(q) not in known:
            if q.op == "load" and q.args[0] == "p":
                both = q.call("+", q, Symbol("load", COMPENSATION))
                known[id(q)] = q.call("where", q.call("round", both) == q, both, q)  # else p was set from outside
            else:
                known[id(q)] = Symbol(q.op, *map(exact, q.args)) if q.op in OPERATIONS else q
        return known[id(q)]

    stores = {key: exact(value) for key, value in program.stores.items()}
    if "p" in stores:
        p = stores["p"]
        stores[COMPENSATION] = p.call("-", p, p.call("round", p))
    sums = {r: [dataclasses.replace(one, value=exact(one.value)) for one in of] for r, of in program.sums.items()}
    return Program(stores, sums)

"""Tracing: the verbs of a sweep, run once on symbols, become a straight-line program.

A symbol is `flat` if it has the same value for all elements of a tensor: then it is computed once per chunk in float64
and cast where it meets an element (1 - 0.999 in float32 would be off by 1e-5).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import traceback
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from untuned.core.declare import Hyper, Number
from untuned.core.frames import COMPENSATION
from untuned.core.parts import Part
from untuned.core.place import Each, Frame, Place, Traced

if TYPE_CHECKING:
    from untuned.core.engine import Optimizer
    from untuned.core.plan import Verbs

Column = tuple[str, str, int | None]  # of the table of scalars: kind, key, position
Zeros = frozenset[str]  # what is 0 for all tensors, and so a constant of a program: weight_decay
_OURS = tuple(os.path.join(os.path.dirname(os.path.dirname(__file__)), room) for room in ("core", "kernels"))
OPERATIONS = {"+", "-", "*", "/", "**", "<", "<=", ">", ">=", "==", "&", "sqrt", "min", "max", "abs", "where", "neg"}
OPERATIONS |= {"cbrt", "round"}  # round: to the dtype of the parameter and back


LEAVES = ("load", "row", "const", "sum")  # sum: of a tensor, in a decision
_KIND = {False: "number", True: "each"}  # of the column of a number, by whether there is one per tensor
_BEFORE = {"number": "before", "each": "each_before"}
_NEUTRAL = {"+": 0.0, "-": 0.0, "*": 1.0, "/": 1.0}


class Symbol(Traced):
    """A node of the program: a load, a scalar of the table, a constant or an operation on nodes."""

    __slots__ = ("args", "flat", "op")

    def __init__(self, op: str, *args: Any) -> None:
        self.op, self.args = op, args
        self.flat = op in LEAVES[1:] or (op in OPERATIONS and all(q.flat for q in args))

    @staticmethod
    def lift(q: Any) -> Symbol:
        return q if isinstance(q, Symbol) else Symbol("const", float(q))

    def call(self, op: str, *args: Any) -> Symbol:
        """The operation; what a zero or a one makes of the other operand at once, so that it need not be read."""
        nodes = list(map(Symbol.lift, args))
        for i, node in enumerate(nodes) if op in _NEUTRAL else ():
            if node.op == "const" and (value := node.args[0]) in (0.0, 1.0):
                if value == _NEUTRAL[op] and (i == 1 or op in "+*"):
                    return nodes[1 - i]
                if value == 0.0 and (op == "*" or (op == "/" and i == 0)):
                    return node
        if op == "-" and nodes[0].op == nodes[1].op in LEAVES and nodes[0].args == nodes[1].args:
            return Symbol.lift(0.0)
        return Symbol(op, *nodes)

    def __bool__(self) -> bool:
        raise TypeError("a verb cannot branch on a value that differs between elements or steps: use where().")

    __hash__ = None  # pyright: ignore[reportAssignmentType]


_OPERATORS = {"add": "+", "sub": "-", "mul": "*", "truediv": "/", "pow": "**", "and": "&", "abs": "abs", "neg": "neg"}
_OPERATORS |= {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "=="}


def _operator(op: str, swapped: bool) -> Any:
    return lambda q, *r: q.call(op, *r, q) if swapped else q.call(op, q, *r)


for _name, _op in _OPERATORS.items():
    setattr(Symbol, f"__{_name}__", _operator(_op, swapped=False))
    setattr(Symbol, f"__r{_name}__", _operator(_op, swapped=True))


@dataclasses.dataclass
class Program:
    """What a sweep does to one element: values to store, and summands with the role that asked for them."""

    stores: dict[str, Symbol]
    sums: list[Symbol]
    apart: dict[str, list[bool]]  # role -> for each of its sums, whether tensors stay apart
    at_random: bool = False  # whether stores in bfloat16 round stochastically

    def streams(self) -> tuple[list[str], list[str]]:
        """Names of what is read and what is written, one element each per parameter."""
        nodes = leaves([*self.stores.values(), *self.sums])
        return sorted({node.args[0] for node in nodes if node.op == "load"}), sorted(self.stores)


def leaves(roots: Iterable[Symbol]) -> list[Symbol]:
    """The loads, rows and constants that values are computed from."""
    found: list[Symbol] = []
    seen: set[int] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if id(node) not in seen:
            seen.add(id(node))
            stack += node.args if node.op in OPERATIONS else ()
            found += () if node.op in OPERATIONS else (node,)
    return found


def same(q: Symbol, r: Symbol) -> bool:
    """Whether two values are computed in the same way from the same."""
    names: dict[Any, int] = {}
    known: dict[int, int] = {}

    def name(node: Symbol) -> int:
        if id(node) not in known:
            args = tuple(map(name, node.args)) if node.op in OPERATIONS else node.args
            known[id(node)] = names.setdefault((node.op, args), len(names))
        return known[id(node)]

    return name(q) == name(r)


class TraceFrame(Frame):
    """Resolves names to symbols: streams by key, scalars by the column of the table that holds them.

    What is named in `zeros` is the constant 0. The numbers of the parts in `early` are those from before the step.
    """

    def __init__(self, opt: Optimizer, zeros: Zeros = frozenset(), early: Sequence[Part] = ()) -> None:
        super().__init__(opt.parts)
        self.opt, self.zeros, self.early = opt, zeros, early
        self.fresh: dict[str, Any] = {}

    def slot(self, key: str) -> Any:
        return self.fresh.get(key, Symbol("load", key))

    def number(self, part: Part, declared: Number) -> Any:
        if part in self.early:
            return self.number_before(part, declared)
        return Symbol("row", (_KIND[part.per_tensor(declared)], declared.key, None))

    def number_before(self, part: Part, declared: Number) -> Any:
        return Symbol("row", (_BEFORE[_KIND[part.per_tensor(declared)]], declared.key, None))

    def hyper(self, part: Part, letter: Hyper) -> Any:
        if letter.key in self.zeros:
            return Symbol("const", 0.0)
        return Symbol("row", ("hyper", letter.key, letter.index))

    def public(self, name: str) -> Any:
        if name == "p":
            return self.slot("p")
        if name in ("g", "raw"):
            g = Symbol("load", "g")
            g = g.call("neg", g) if self.opt.maximize else g
            g = g.call("*", g, Symbol("row", ("clip", "clip", None))) if self.opt.clip_grad_norm is not None else g
            return g if name == "raw" else self.parts["decay"].gradient(self.place("decay"), g)
        if name in ("t", "rho", "k", "top"):
            return Symbol("row", (name, name, None))
        return super().public(name)

    def read(self, part: Part, name: str) -> Any:
        if name == "old":
            return Place(TraceFrame(self.opt, self.zeros, self.early), part)
        return super().read(part, name)

    def write(self, part: Part, name: str, value: Any) -> None:
        self.fresh[self.written(part, name)] = Symbol.lift(value)


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
    return Program(stores, [exact(q) for q in program.sums], program.apart)


def trace(frame: TraceFrame, verbs: Verbs) -> Program:
    """The program of a sweep's verbs, run in order on one place."""
    parts = frame.parts
    sums: list[Symbol] = []
    apart: dict[str, list[bool]] = {}
    for role, verb in verbs:
        try:
            out: Any = getattr(parts[role], verb)(frame.place(role))
        except (TypeError, AttributeError) as error:
            if isinstance(error, AttributeError) and "'Symbol'" not in str(error):
                raise  # a letter that does not exist says so itself
            recipe = " x ".join(part.name for part in parts.values())
            where = traceback.extract_tb(error.__traceback__)
            at = next((f for f in reversed(where) if not f.filename.startswith(_OURS)), where[-1])
            raise TypeError(
                f"{recipe}: the verb {verb!r} of {parts[role].name} is not elementwise math as untuned.core.place has "
                f"it: {error} In {at.name!r}, line {at.lineno}: {at.line} Use arithmetic, sqrt, cbrt, minimum, "
                f"maximum and where."
            ) from error
        if out is not None:
            out = out if isinstance(out, tuple) else (out,)
            apart[role] = [isinstance(q, Each) for q in out]
            sums += [Symbol.lift(q.value if isinstance(q, Each) else q) for q in out]
    return Program(frame.fresh, sums, apart)


class _Decision(TraceFrame):
    """A decision of one tensor, whose numbers are symbols."""

    def number(self, part: Part, declared: Number) -> Any:
        if declared.size:
            raise TypeError(declared.key)
        return self.fresh[declared.key] if declared.key in self.fresh else super().number(part, declared)

    def write(self, part: Part, name: str, value: Any) -> None:
        key, value = self.written(part, name, Number), Symbol.lift(value)
        finite = value.call("<", value.call("abs", value), float("inf"))
        self.fresh[key] = value.call("where", finite, value, self.read(part, name))


def decision(opt: Optimizer, deciders: Verbs, apart: dict[str, list[bool]]) -> dict[Column, Symbol] | None:
    """What decisions make of the sums of a sweep, as columns of a table; None unless each is of one tensor alone."""
    if not deciders or any(opt.parts[role].scope != "tensor" for role, _ in deciders):
        return None
    sums = itertools.count()
    given = {role: [Symbol("sum", next(sums)) for _ in flags] for role, flags in apart.items()}
    frame = _Decision(opt)
    with contextlib.suppress(Exception):  # a function of torch's, the loss: the engine decides
        for role, verb in deciders:
            getattr(opt.parts[role], verb)(frame.place(role), *given.get(role, []))
        return {("each", key, None): value for key, value in frame.fresh.items()}
    return None


def early(opt: Optimizer, decided: list[Part], zeros: Zeros) -> tuple[Program, list[tuple[Column, Column]]] | None:
    """What is left to do if the move goes ahead of the decisions of these parts, in the sweep whose sums they read.

    That is a program that puts into p what the decisions changed, and the numbers it depends on, as columns of a table,
    now and before the step; none if the decisions change nothing that the move reads. None if the move cannot go ahead:
    it can if the numbers seldom change, it is affine in the step, and neither the decay nor, by way of the weights, the
    direction depends on them.
    """
    iterate = opt.parts["iterate"]

    def moved(p: Symbol, before: list[Part]) -> tuple[Program, Symbol]:
        frame = TraceFrame(opt, zeros, before)
        frame.fresh["p"] = p
        return trace(frame, [("iterate", "move")]), Symbol.lift(frame.read(iterate, "rate"))

    (now, rate), (then, rate_then) = (moved(Symbol("load", "p"), before) for before in ([], decided))
    if all(same(value, then.stores[key]) for key, value in now.stores.items()):
        return Program({}, [], {}), []
    rows = {leaf.args[0] for leaf in leaves(now.stores.values()) if leaf.op == "row"}
    numbers = {n.key: n for part in decided for n in part.numbers().values()}
    changed = sorted(row for row in rows if row[0] in _BEFORE and row[1] in numbers)
    direction = leaves([Symbol.lift(TraceFrame(opt, zeros).read(iterate, "u"))])
    follows = not same(rate, rate_then) or any(leaf.op == "load" and leaf.args[0] == "p" for leaf in direction)
    if follows or {*now.stores} != {"p"} or not (iterate.affine and all(numbers[key].seldom for _, key, _ in changed)):
        return None
    new, old = (moved(Symbol("const", 0.0), before)[0].stores["p"] for before in ([], decided))
    corrected = new.call("+", Symbol("load", "p"), new.call("-", new, old))
    return Program({"p": corrected}, [], {}), [(row, (_BEFORE[row[0]], *row[1:])) for row in changed]

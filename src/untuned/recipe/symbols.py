"""Symbols: what verbs compute when they are traced, and the programs made of them.

A symbol is `flat` if it has the same value for all elements of a tensor: then it is computed once per chunk in float64
and cast where it meets an element (1 - 0.999 in float32 would be off by 1e-5).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from untuned.parts.math import Reduced, Traced

Column = tuple[str, str, int | None]  # of the table of scalars: kind, key, position
Zeros = frozenset[str]  # what is 0 for all tensors, and so a constant of a program: weight_decay
ARITHMETIC = {"+", "-", "*", "/", "**", "<", "<=", ">", ">=", "==", "&", "neg"}
FUNCTIONS = {"sqrt", "cbrt", "exp", "log", "tanh", "min", "max", "abs", "where", "round"}  # round: to the dtype of p
OPERATIONS = ARITHMETIC | FUNCTIONS

LEAVES = ("load", "scalar", "const", "sum")  # sum: of a tensor, in a decision
BEFORE = {"number": "before", "each": "each_before", "row": "row_before"}  # kinds of columns of numbers
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


@dataclasses.dataclass
class Program:
    """What a sweep does to one element: values to store, and what is reduced, by the role that asked for it."""

    stores: dict[str, Symbol]
    sums: dict[str, list[Reduced]]
    at_random: bool = False  # whether stores in bfloat16 round stochastically

    @property
    def reductions(self) -> list[Reduced]:
        return [one for of_role in self.sums.values() for one in of_role]

    def streams(self) -> tuple[list[str], list[str]]:
        """Names of what is read and what is written, one element each per parameter."""
        nodes = leaves([*self.stores.values(), *(one.value for one in self.reductions)])
        return sorted({node.args[0] for node in nodes if node.op == "load"}), sorted(self.stores)

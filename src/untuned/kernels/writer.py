"""A walk over a program that writes it down in some language: values once, scalars before the loop over elements."""

from __future__ import annotations

import abc
from typing import Any

from untuned.recipe.symbols import LEAVES, Column, Program, Symbol

_CONDITIONS = {"<", "<=", ">", ">=", "==", "&"}


class Writer(abc.ABC):
    """The lines of one program for one combination of dtypes, and what they need to know.

    `keys` are the rows of the table of addresses; `columns` become those of the table of scalars, which programs may
    share. A language fills in templates of a stream's elements in a chunk, of the random key of a tensor, of a scalar
    cast to the arithmetic of elements and of a finished sum, and says how to write an operation.
    """

    opening = seed = ""
    cast = total = largest = "{0}"

    def __init__(self, program: Program, dtypes: dict[str, str], columns: list[Column]) -> None:
        self.keys, self.dtypes, self.columns = list(dtypes), dtypes, columns
        self.arithmetic = "float64" if "float64" in dtypes.values() else "float32"
        self.names: dict[Any, str] = {}
        self.casts: dict[str, str] = {}
        self.opened: set[str] = set()
        self.head: list[str] = []  # once per chunk; the others once per element
        self.loads: list[str] = []
        self.body: list[str] = []
        self.totals: dict[tuple[str, str], str] = {}  # (summand, "sum" or "max") -> the name of its total
        self.sums: list[str] = []  # the value of each sum of the program
        stores = {key: self.element(value) for key, value in program.stores.items()}
        for one in program.reductions:
            summand, factor = without_flat_factors(one.value) if one.kind == "sum" else (one.value, None)
            total = self.totals.setdefault((self.element(summand), one.kind), f"r{len(self.totals)}")
            finished = self.total if one.kind == "sum" else self.largest
            self.sums.append(finished.format(total) + ("" if factor is None else f" * {self.value(factor)}"))
        for key in stores:
            self.stream(key)
        self.stores = stores
        self.at_random = {key for key in stores if program.at_random and dtypes[key] == "bfloat16"}
        self.head += [self.seed.format(self.column(("noise", "noise", None)))] if self.at_random else []

    @abc.abstractmethod
    def expression(self, q: Symbol, args: tuple[Any, ...]) -> str: ...

    def stream(self, key: str) -> str:
        row = self.keys.index(key)
        if key not in self.opened:
            self.opened.add(key)
            self.head.append(self.opening.format(row, self.dtypes[key]))
        return f"s{row}"

    def column(self, column: Column) -> int:
        """Its place in the table, whose first column says whether the tensor may change."""
        if column not in self.columns:
            self.columns.append(column)
        return self.columns.index(column) + 1

    def element(self, q: Symbol) -> str:
        """The value in the arithmetic of elements: a flat one is cast once per chunk."""
        name = self.value(q)
        if not q.flat or q.op in _CONDITIONS:
            return name
        if name not in self.casts:
            cast = self.cast.format(name, self.arithmetic)
            self.casts[name] = name if cast == name else f"e{name}"
            self.head += [f"e{name} = {cast}"] if cast != name else []
        return self.casts[name]

    def value(self, q: Symbol) -> str:
        if q.op in LEAVES:
            key: Any = (q.op, q.args[0])
        else:
            key = (q.op, *((self.value if q.flat else self.element)(a) for a in q.args))
        if key not in self.names:
            name = self.names[key] = f"v{len(self.names)}"
            lines = self.head if q.flat else self.loads if q.op == "load" else self.body
            lines.append(f"{name} = {self.expression(q, key[1:])}")
        return self.names[key]


def without_flat_factors(q: Symbol) -> tuple[Symbol, Symbol | None]:
    """A summand and the flat factor to multiply its sum by: sums that differ in one only share their loop."""
    factor: Symbol | None = None
    while not q.flat:
        if q.op == "*" and (q.args[0].flat or q.args[1].flat):
            q, flat = sorted(q.args, key=lambda factor: factor.flat)
        elif q.op == "/" and q.args[1].flat:
            q, flat = q.args[0], q.call("/", 1.0, q.args[1])
        elif q.op == "neg":
            q, flat = q.args[0], Symbol.lift(-1.0)
        else:
            break
        factor = flat if factor is None else factor.call("*", factor, flat)
    return q, factor

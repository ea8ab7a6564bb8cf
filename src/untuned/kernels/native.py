"""Native sweeps on a CPU: a program becomes one Numba function over a table of pointers, one call for all tensors.

Chunks of a tensor are summed apart and added in a fixed order, so the result does not depend on the number of threads.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch

from untuned.kernels.batch import PER_TENSOR, Batch, scalar
from untuned.kernels.cache import compile_source
from untuned.kernels.writer import Writer
from untuned.memory.now import Now
from untuned.memory.rounding import shift
from untuned.recipe.symbols import Column, Program, Symbol

Then = tuple[Program, dict[Column, Symbol], bool]
_ONE_AT_A_TIME = threading.Lock()
CHUNK = 2**17  # elements: few enough beginnings, and enough chunks to share out
ONE_PASS = 2**22  # elements of a tensor: above it the second program finds nothing in the cache
TYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}

_TEMPLATES = {"where": "{1} if {0} else {2}", "neg": "-{0}", **{f: f"np.{f}({{0}})" for f in ("exp", "log", "tanh")}}
for _name, _sign in (("min", "<"), ("max", ">")):  # of NaN and a number NaN, as in torch
    _TEMPLATES[_name] = f"{{0}} if ({{0}} {_sign} {{1}}) | ({{0}} != {{0}}) else {{1}}"

_SOURCE = """\
from math import sqrt
from untuned.kernels.pointers import *

T, B = np.float{bits}, np.int{bits}

{functions}
@njit(parallel={parallel}, nogil=True, **FAST)
def sweep(pointers, pieces, tensor, offset, length, table, partial):
    for piece in prange(pieces.shape[0]):
        first, end = pieces[piece]
        for c in range(first, end):
            if table[tensor[c], 0] != 0.0:
                chunk(pointers, tensor[c], offset[c], length[c], table, partial[c])
"""
_THEN = """
        decide(tensor[first], table, partial[first:end])
        for c in range(end - 1, first - 1, -1):
            if table[tensor[c], 0] != 0.0:
                chunk_then(pointers, tensor[c], offset[c], length[c], table, partial[c])
"""


def _function(signature: str, lines: list[str]) -> str:
    return "\n    ".join([f"@njit(**FAST)\ndef {signature}:", *lines]) + "\n\n"


class NumbaWriter(Writer):
    """The source of a program as a function of one chunk of a tensor, which Numba compiles."""

    opening = "s{0} = carray({1}(pointers[{0}, t], o), n)"
    seed = "seed = np.uint32(table[t, {0}])"
    cast, largest = "T({0})", "B({0}).view(T)"

    def __init__(self, program: Program, dtypes: dict[str, str], columns: list[Column], name: str = "chunk") -> None:
        super().__init__(program, dtypes, columns)
        head = self.head + [f"{t} = {'T' if kind == 'sum' else 'B'}(0)" for (_, kind), t in self.totals.items()]
        body = self.loads + self.body
        for (summand, kind), total in self.totals.items():
            # the bits of numbers >= 0 are in their order, NaN last, and compilers compare 16 at a time
            body.append(f"{total} += {summand}" if kind == "sum" else f"{total} = max({total}, T({summand}).view(B))")
        for key, value in self.stores.items():
            bits = f"bits_of(np.float32({value}))"
            stored = value if dtypes[key] != "bfloat16" else f"b{value}" if f"b{value} = {bits}" in body else bits
            if key in self.at_random:
                stored = f"bits_at_random(np.float32({value}), seed + np.uint32(o + i), np.uint32({shift(key)}))"
            body.append(f"{self.stream(key)}[i] = {stored}")
        sums = [f"partial[{j}] = {value}" for j, value in enumerate(self.sums)]
        lines = [*head, "for i in range(n):", *(f"    {line}" for line in body), *sums]
        self.source = _function(f"{name}(pointers, t, o, n, table, partial)", lines)

    def decision(self, decided: dict[Column, Symbol], skips: bool) -> str:
        """A function that puts decided numbers into the table; `skips`: a tensor whose sums overflow stays as it is."""
        values = {self.columns.index(column) + 1: self.value(q) for column, q in decided.items()}
        lines = [f"table[t, {j}] = {value}" for j, value in values.items()]
        stay = ["table[t, 0] *= np.isfinite(partial).all()"] if skips else []
        return _function("decide(t, table, partial)", [*self.head, *lines, *stay, "return"])

    def expression(self, q: Symbol, args: tuple[Any, ...]) -> str:
        if q.op == "load":
            loaded = f"{self.stream(args[0])}[i]"
            return f"float_of({loaded})" if self.dtypes[args[0]] == "bfloat16" else f"T({loaded})"
        if q.op == "scalar":
            return f"table[t, {self.column(args[0])}]"
        if q.op == "sum":
            return f"partial[:, {args[0]}].{q.args[1]}()"
        if q.op == "const":
            return f"np.float64({args[0]!r})".replace("inf", "np.inf").replace("nan", "np.nan")
        if q.op == "round":
            bits = [f"b{args[0]} = bits_of(np.float32({args[0]}))"] if self.dtypes["p"] == "bfloat16" else []
            self.body += bits  # a store of it takes these
            return f"float_of(b{args[0]})" if bits else f"T(np.{self.dtypes['p']}({args[0]}))"
        if q.op == "cbrt" and (q.flat or self.arithmetic == "float64"):
            return f"{args[0]} ** (1 / 3)"
        usual = f"({{0}}) {q.op} ({{1}})" if len(args) == 2 else f"{q.op}({{0}})"
        return _TEMPLATES.get(q.op, usual).format(*args)


def pointers(table: np.ndarray) -> np.ndarray:
    return table.astype(np.uint64)


def numbers_of(t: torch.Tensor) -> np.ndarray:
    """The memory of a small tensor: no operation is dispatched, unless it is on a GPU or in bfloat16."""
    return (t.double() if t.is_cuda or t.dtype == torch.bfloat16 else t).detach().cpu().numpy()


def _run(function: Any, arguments: tuple[Any, ...], threads: int) -> None:
    """Run on as many threads as torch uses, and leave torch's number as it was: the two may share one OpenMP pool.

    One at a time, since numba's simplest threading layer cannot do more.
    """
    if threads == 1:
        return function(*arguments)
    import numba

    with _ONE_AT_A_TIME:
        try:
            numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # pyright: ignore
            function(*arguments)
        finally:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)


class Call:
    """One program on one batch: a kernel call, and the memory it needs.

    `then`: a second program; the numbers that decisions of single tensors make of the sums of the first, as columns of
    the table; and whether tensors with bad sums are left out. It follows tensor by tensor, while they are in the cache.
    """

    def __init__(self, program: Program, batch: Batch, then: Then | None = None) -> None:
        self.threads = torch.get_num_threads()
        types = {key: TYPES[d] for key, d in batch.dtypes.items()}
        chunks = [(i, o, min(CHUNK, n - o)) for i, n in enumerate(batch.sizes) for o in range(0, n, CHUNK)]
        self.tensor, self.offset, self.length = np.array(chunks).T.copy()
        self.first = np.searchsorted(self.tensor, np.arange(len(batch.sizes)))
        self.columns: list[Column] = []
        writer = NumbaWriter(program, types, self.columns)
        source, functions, stores = _SOURCE, writer.source, {*writer.stores}
        self.pieces = np.arange(len(chunks))[:, None] + [0, 1]
        if then:
            second = NumbaWriter(then[0], types, self.columns, "chunk_then")
            read = {column: value for column, value in then[1].items() if column in self.columns}
            decision = NumbaWriter(Program({}, {}), types, self.columns).decision(read, then[2])
            source, functions, stores = source + _THEN, functions + second.source + decision, stores | {*second.stores}
            dealt = np.argsort(batch.sizes)  # each thread takes one stretch of the pieces: they are to be of equal size
            order = np.concatenate([dealt[i :: self.threads] for i in range(self.threads)])
            self.pieces = np.stack([self.first, np.append(self.first[1:], len(chunks))], 1)[order]
        source = source.format(bits=writer.arithmetic[5:], parallel=self.threads > 1, functions=functions)
        self.function, self.moves = compile_source(source), "p" in stores
        self.table = np.empty((len(batch.sizes), len(self.columns) + 1))
        self.largest = [j for j, one in enumerate(program.reductions) if one.kind == "max"]
        self.partial = np.empty((len(chunks), max(1, len(program.reductions))))

    def run(self, now: Now, batch: Batch, flags: dict[int, torch.Tensor | None]) -> torch.Tensor:
        """Run the kernel; return a row of sums per tensor."""
        if all(flag is not None and not numbers_of(flag) for flag in flags.values()):
            return torch.zeros((len(self.first), self.partial.shape[1]), dtype=torch.float64)
        for number, index, rows in batch.spans:
            bucket, flag = batch.buckets[number], flags[number]
            self.table[rows, 0] = True if flag is None else numbers_of(flag)
            for column, name in enumerate(self.columns, start=1):
                value = scalar(now, bucket, name)
                value = numbers_of(value) if isinstance(value, torch.Tensor) else value
                self.table[rows, column] = value[index] if name[0] in PER_TENSOR else value
        self.partial.fill(0.0)
        arguments = batch.pointers, self.pieces, self.tensor, self.offset, self.length, self.table, self.partial
        _run(self.function, arguments, self.threads)
        if self.moves:
            torch.autograd.graph.increment_version(batch.params)
        sums = np.add.reduceat(self.partial, self.first, axis=0)
        if self.largest:
            sums[:, self.largest] = np.maximum.reduceat(self.partial[:, self.largest], self.first, axis=0)
        return torch.from_numpy(sums)

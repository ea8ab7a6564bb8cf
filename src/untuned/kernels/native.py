"""Native sweeps on a CPU: a program becomes one Numba function over a table of pointers, one call for all tensors.

Chunks of a tensor are summed apart and added in a fixed order, so the result does not depend on the number of threads.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from untuned.core.rounding import shift
from untuned.kernels.batch import PER_TENSOR, Batch, scalar
from untuned.kernels.cache import compile_source
from untuned.kernels.program import Program, Symbol
from untuned.kernels.writer import Writer

if TYPE_CHECKING:
    from untuned.core.engine import Optimizer

_ONE_AT_A_TIME = threading.Lock()
CHUNK = 65536  # elements: a quarter of it costs 1 to 2 % more, and there are enough chunks to share out
TYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}

_TEMPLATES = {"where": "{1} if {0} else {2}", "neg": "-{0}", "min": "min({0}, {1})", "max": "max({0}, {1})"}
_TEMPLATES |= {name: f"{name}({{0}})" for name in ("sqrt", "cbrt", "abs")}

_SOURCE = """\
from math import sqrt
import numpy as np
from numba import njit, prange
from untuned.kernels.pointers import bits_at_random, bits_of, cbrt, float_of
from untuned.kernels.pointers import view_bfloat16, view_float32, view_float64

T = np.{arithmetic}


@njit(parallel={parallel}, cache=True, nogil=True, error_model="numpy",
      fastmath={{"reassoc", "nsz", "contract", "arcp", "afn"}})
def sweep(pointers, tensor, offset, length, table, partial):
    for c in prange(tensor.size):
        t = tensor[c]
        o = offset[c]
        n = length[c]
        if table[t, 0] == 0.0:
            continue
"""


class NumbaWriter(Writer):
    """The source of a program as a function that Numba compiles."""

    def __init__(self, program: Program, dtypes: dict[str, str], parallel: bool) -> None:
        self.arithmetic = "float64" if "float64" in dtypes.values() else "float32"
        super().__init__(program, dtypes)
        head = self.head + [f"{total} = T(0)" for total in self.totals.values()]
        body = self.loads + self.body + [f"{total} += {summand}" for summand, total in self.totals.items()]
        for key, value in self.stores.items():
            bits = f"bits_of(np.float32({value}))"
            stored = value if dtypes[key] != "bfloat16" else f"b{value}" if f"b{value} = {bits}" in body else bits
            if key in self.at_random:
                stored = f"bits_at_random(np.float32({value}), seed + np.uint32(o + i), np.uint32({shift(key)}))"
            body.append(f"{self.stream(key)}[i] = {stored}")
        lines = [
            *(f"        {line}" for line in head),
            "        for i in range(n):",
            *(f"            {line}" for line in body),
            *(f"        partial[c, {j}] = {value}" for j, value in enumerate(self.sums)),
        ]
        self.source = _SOURCE.format(arithmetic=self.arithmetic, parallel=parallel) + "\n".join(lines) + "\n"

    def opening(self, name: str, key: str) -> str:
        return f"{name} = view_{self.dtypes[key]}(pointers[{self.keys.index(key)}, t], o, n)"

    def seed(self) -> str:
        return f"seed = np.uint32(table[t, {self.column(('noise', 'noise', None))}])"

    def cast(self, name: str) -> str:
        return f"T({name})"

    def scaled(self, total: str, factor: str | None) -> str:
        return total if factor is None else f"{total} * {factor}"

    def expression(self, q: Symbol, args: tuple[Any, ...]) -> str:
        if q.op == "load":
            loaded = f"{self.stream(args[0])}[i]"
            return f"float_of({loaded})" if self.dtypes[args[0]] == "bfloat16" else f"T({loaded})"
        if q.op == "row":
            return f"table[t, {self.column(args[0])}]"
        if q.op == "const":
            return f"np.float64({args[0]!r})".replace("inf", "np.inf").replace("nan", "np.nan")
        if q.op == "round":
            bits = [f"b{args[0]} = bits_of(np.float32({args[0]}))"] if self.dtypes["p"] == "bfloat16" else []
            self.body += bits  # a store of it takes these
            return f"float_of(b{args[0]})" if bits else f"T(np.{self.dtypes['p']}({args[0]}))"
        if q.op == "cbrt" and self.arithmetic == "float64":
            return f"{args[0]} ** (1 / 3)"
        return _TEMPLATES.get(q.op, f"({{0}}) {q.op} ({{1}})").format(*args)


def numbers_of(t: torch.Tensor) -> np.ndarray:
    """The memory of a small tensor: no operation is dispatched, unless it is on a GPU or in bfloat16."""
    return (t.double() if t.is_cuda or t.dtype == torch.bfloat16 else t).detach().cpu().numpy()


def _in_parallel(function: Any, arguments: tuple[Any, ...]) -> None:
    """Run on as many threads as torch uses, and leave torch's number as it was: the two may share one OpenMP pool.

    One at a time, since numba's simplest threading layer cannot do more.
    """
    import numba

    threads = torch.get_num_threads()
    with _ONE_AT_A_TIME:
        try:
            numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # pyright: ignore
            function(*arguments)
        finally:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)


class Call:
    """One program on one batch: a kernel call, and the memory it needs."""

    def __init__(self, program: Program, batch: Batch) -> None:
        self.batch, self.parallel = batch, torch.get_num_threads() > 1
        self.writer = NumbaWriter(program, {key: TYPES[d] for key, d in batch.dtypes.items()}, self.parallel)
        self.function = compile_source(self.writer.source)
        chunks = [(i, o, min(CHUNK, n - o)) for i, n in enumerate(batch.sizes) for o in range(0, n, CHUNK)]
        self.tensor, self.offset, self.length = np.array(chunks).T.copy()
        self.first = np.searchsorted(self.tensor, np.arange(len(batch.sizes)))
        self.table = np.empty((len(batch.sizes), len(self.writer.columns) + 1))
        self.partial = np.empty((len(chunks), max(1, len(program.sums))))
        self.rows = np.empty((len(batch.sizes), max(1, len(program.sums))))

    def run(self, opt: Optimizer, flags: dict[int, torch.Tensor | None]) -> torch.Tensor:
        """Run the kernel; return a row of sums per tensor."""
        if all(flag is not None and not numbers_of(flag) for flag in flags.values()):
            return torch.zeros(self.rows.shape, dtype=torch.float64)
        for number, index, rows in self.batch.spans:
            bucket, flag = self.batch.buckets[number], flags[number]
            self.table[rows, 0] = True if flag is None else numbers_of(flag)
            for column, name in enumerate(self.writer.columns, start=1):
                value = scalar(opt, bucket, name)
                value = numbers_of(value) if isinstance(value, torch.Tensor) else value
                self.table[rows, column] = value[index] if name[0] in PER_TENSOR else value
        self.partial.fill(0.0)
        arguments = self.batch.pointers, self.tensor, self.offset, self.length, self.table, self.partial
        if self.parallel:
            _in_parallel(self.function, arguments)
        else:
            self.function(*arguments)
        if "p" in self.writer.stores:
            torch.autograd.graph.increment_version(self.batch.params)
        return torch.from_numpy(np.add.reduceat(self.partial, self.first, axis=0, out=self.rows))

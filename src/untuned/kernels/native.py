"""Native sweeps on a CPU: a program becomes one Numba function over a table of pointers, one call for all tensors.

Chunks of a tensor are summed apart and added in a fixed order, so the result does not depend on the number of threads.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from untuned.core.buckets import Bucket, local
from untuned.kernels.program import Program, Symbol

if TYPE_CHECKING:
    from untuned.core.engine import Optimizer

_ONE_AT_A_TIME = threading.Lock()
_POINTERS = Path(__file__).with_name("pointers.py").read_text()  # inlined into every kernel, so part of its identity
CHUNK = 16384  # elements: the streams of a chunk fit a core's cache
Dtypes = tuple[torch.dtype, ...]
Where = list[tuple[int, Bucket, int]]  # (the bucket's number, bucket, index in it)
_TYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}
_PLAIN = (torch.Tensor, torch.nn.Parameter)  # other classes may keep their elements elsewhere
_CALLS = ("sqrt", "min", "max", "abs")

_HEADER = """\
from math import sqrt
import numpy as np
from numba import njit, prange
from untuned.kernels.pointers import bits_of, float_of, view_bfloat16, view_float32, view_float64

T = np.{arithmetic}
"""
_SIGNATURE = """
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


def without_flat_factors(q: Symbol) -> tuple[Symbol, Symbol | None]:
    """A summand and the flat factor to multiply its sum by: sums that differ in one only share their loop."""
    factor: Symbol | None = None
    while not q.flat:
        if q.op == "*" and q.args[0].flat:
            q, flat = q.args[1], q.args[0]
        elif q.op == "*" and q.args[1].flat:
            q, flat = q.args
        elif q.op == "/" and q.args[1].flat:
            q, flat = q.args[0], 1 / q.args[1]
        elif q.op == "neg":
            q, flat = q.args[0], Symbol.lift(-1.0)
        else:
            break
        factor = flat if factor is None else factor * flat
    return q, factor


class Writer:
    """Emits the source of one program for one combination of dtypes."""

    def __init__(self, program: Program, dtypes: dict[str, str], parallel: bool) -> None:
        self.dtypes = dtypes
        self.names: dict[Any, str] = {}
        self.casts: dict[str, str] = {}
        self.streams: list[str] = []
        self.columns: list[tuple[str, str, int | None]] = []
        self.head: list[str] = []
        self.body: list[str] = []
        stores = {key: self.element(value) for key, value in program.stores.items()}
        tail: list[str] = []
        totals: dict[str, str] = {}
        for j, value in enumerate(program.sums):
            summand, factor = without_flat_factors(value)
            element = self.element(summand)
            if element not in totals:
                totals[element] = f"r{len(totals)}"
                self.head.append(f"{totals[element]} = T(0)")
                self.body.append(f"{totals[element]} += {element}")
            tail.append(f"partial[c, {j}] = {totals[element]}" + ("" if factor is None else f" * {self.value(factor)}"))
        for key, value in stores.items():
            stored = f"bits_of(np.float32({value}))" if dtypes[key] == "bfloat16" else value
            self.body.append(f"{self.stream(key)}[i] = {stored}")
        arithmetic = "float64" if "float64" in dtypes.values() else "float32"
        lines = [
            *(f"        {line}" for line in self.head),
            "        for i in range(n):",
            *(f"            {line}" for line in self.body),
            *(f"        {line}" for line in tail),
        ]
        self.source = (
            _HEADER.format(arithmetic=arithmetic) + _SIGNATURE.format(parallel=parallel) + "\n".join(lines) + "\n"
        )
        self.count = len(program.sums)
        self.stored = frozenset(stores)

    def stream(self, key: str) -> str:
        if key not in self.streams:
            self.streams.append(key)
            row = len(self.streams) - 1
            self.head.append(f"s{row} = view_{self.dtypes[key]}(pointers[{row}, t], o, n)")
        return f"s{self.streams.index(key)}"

    def element(self, q: Symbol) -> str:
        """The value in element arithmetic: a flat one is cast once per chunk."""
        name = self.value(q)
        if not q.flat:
            return name
        if name not in self.casts:
            self.casts[name] = f"e{name}"
            self.head.append(f"e{name} = T({name})")
        return self.casts[name]

    def value(self, q: Symbol) -> str:
        if q.op in ("load", "row", "const"):
            key: Any = (q.op, q.args[0])
        else:
            key = (q.op, *((self.value if q.flat else self.element)(a) for a in q.args))
        if key not in self.names:
            name = self.names[key] = f"v{len(self.names)}"
            (self.head if q.flat else self.body).append(f"{name} = {self.expression(q, key)}")
        return self.names[key]

    def expression(self, q: Symbol, key: tuple[Any, ...]) -> str:
        args = key[1:]
        if q.op == "load":
            loaded = f"{self.stream(args[0])}[i]"
            return f"float_of({loaded})" if self.dtypes[args[0]] == "bfloat16" else f"T({loaded})"
        if q.op == "row":
            if args[0] not in self.columns:
                self.columns.append(args[0])
            return f"table[t, {self.columns.index(args[0]) + 1}]"
        if q.op == "const":
            return f"np.float64({args[0]!r})".replace("inf", "np.inf").replace("nan", "np.nan")
        if q.op == "where":
            return f"{args[1]} if {args[0]} else {args[2]}"
        if q.op == "round":
            bits = f"bits_of(np.float32({args[0]}))"
            return f"float_of({bits})" if self.dtypes["p"] == "bfloat16" else args[0]
        if q.op == "neg":
            return f"-{args[0]}"
        if q.op in _CALLS:
            return f"{q.op}({', '.join(args)})"
        return f"({args[0]}) {q.op} ({args[1]})"


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "untuned" / "kernels"


@functools.cache
def compile_source(source: str) -> Any:
    """The compiled function of a source text, from the cache on disk if it was compiled before."""
    name = "k" + hashlib.sha256((source + _POINTERS).encode()).hexdigest()[:24]
    try:
        return _load(_written(_cache_folder(), name, source), name)
    except (OSError, RuntimeError):  # no home, a folder of somebody else, a full disk: a folder of this process
        return _load(_written(Path(tempfile.mkdtemp(prefix="untuned-")), name, source), name)


def _written(folder: Path, name: str, source: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.py"
    if not path.exists():
        handle, temporary = tempfile.mkstemp(dir=folder, suffix=".tmp")
        with os.fdopen(handle, "w") as file:
            file.write(source)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    return path


def _load(path: Path, name: str) -> Any:
    name = f"untuned_kernel_{name}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # numba's cache looks its functions up by the name of their module
    spec.loader.exec_module(module)
    return module.sweep


def _flat_layout(t: torch.Tensor) -> bool:
    """Whether the elements fill one block of memory, so that equal strides mean equal order."""
    return t.is_contiguous() or (t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last))


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
    """One kernel call: tensors of equal dtypes, and everything about them that stays from step to step."""

    def __init__(self, writer: Writer, function: Any, parallel: bool, where: Where) -> None:
        self.writer, self.function, self.parallel = writer, function, parallel
        self.params = [bucket.params[j] for _, bucket, j in where]
        self.states = [bucket.states[j] for _, bucket, j in where]
        self.writes_p = "p" in self.writer.stored
        self.slots = [key for key in self.writer.streams if key not in "pg"]
        self.held = [state[key] for key in self.slots for state in self.states]  # kept alive with their addresses
        self.held_ids = [id(slot) for slot in self.held]
        sizes = [local(p).numel() for p in self.params]
        chunks = [(i, o, min(CHUNK, n - o)) for i, n in enumerate(sizes) for o in range(0, n, CHUNK)]
        self.tensor, self.offset, self.length = np.array(chunks, dtype=np.int64).T.copy()
        self.first = np.searchsorted(self.tensor, np.arange(len(where)))
        self.pointers = np.zeros((len(self.writer.streams), len(where)), dtype=np.uint64)
        self.table = np.empty((len(where), len(self.writer.columns) + 1))
        self.spans: list[tuple[int, list[int], slice]] = []  # a bucket, tensors in it, and their rows here
        self.buckets = {number: bucket for number, bucket, _ in where}
        for number in self.buckets:
            rows = [row for row, (n, _, _) in enumerate(where) if n == number]
            self.spans.append((number, [where[r][2] for r in rows], slice(rows[0], rows[-1] + 1)))

    def current(self) -> bool:
        """Whether its slots are still those of the state, and the number of threads what it was compiled for."""
        now = [id(state[key]) for key in self.slots for state in self.states]
        return now == self.held_ids and self.parallel == (torch.get_num_threads() > 1)

    def run(self, opt: Optimizer) -> torch.Tensor:
        """Run the kernel; return a row of sums per tensor."""
        held = iter(self.held)
        for row, key in enumerate(self.writer.streams):  # storage may have moved under the same tensor
            streams = self.params if key == "p" else [p.grad for p in self.params] if key == "g" else held
            self.pointers[row] = [local(t).data_ptr() for _, t in zip(self.params, streams, strict=False)]
        for number, index, rows in self.spans:
            bucket = self.buckets[number]
            self.table[rows, 0] = True if bucket.on is None else bucket.on.numpy()
            for column, name in enumerate(self.writer.columns, start=1):
                self.table[rows, column] = _scalar(opt, bucket, index, *name)
        partial = np.zeros((self.tensor.size, max(1, self.writer.count)))
        arguments = self.pointers, self.tensor, self.offset, self.length, self.table, partial
        if self.parallel:
            _in_parallel(self.function, arguments)
        else:
            self.function(*arguments)
        if self.writes_p:
            torch.autograd.graph.increment_version(self.params)
        return torch.from_numpy(np.add.reduceat(partial, self.first, axis=0))


class NativeSweep:
    """The compiled functions of one program, one for every combination of dtypes met."""

    def __init__(self, program: Program) -> None:
        self.program = program
        reads, writes = program.streams()
        self.keys = sorted({*reads, *writes})
        self.kernels: dict[Any, tuple[Writer, Any]] = {}

    def kernel(self, dtypes: Dtypes, parallel: bool) -> tuple[Writer, Any]:
        if (dtypes, parallel) not in self.kernels:
            types = dict(zip(self.keys, (_TYPES[d] for d in dtypes), strict=True))
            writer = Writer(self.program, types, parallel)
            self.kernels[dtypes, parallel] = writer, compile_source(writer.source)
        return self.kernels[dtypes, parallel]

    def call(self, dtypes: Dtypes, where: Where) -> Call:
        """The call for tensors of these dtypes, on as many threads as torch uses now."""
        parallel = torch.get_num_threads() > 1
        return Call(*self.kernel(dtypes, parallel), parallel, where)

    def accepts(self, opt: Optimizer, p: torch.Tensor) -> Dtypes | None:
        """The dtypes of the streams in order if a kernel can take this tensor, else None."""
        x = local(p)
        if x.device.type != "cpu" or not x.numel() or not _flat_layout(x):
            return None
        streams = [_stream(opt, p, key) for key in self.keys]
        same = all(
            type(t) in _PLAIN
            and t.dtype in _TYPES
            and t.stride() == x.stride()
            and t.shape == x.shape
            and not t.is_neg()
            for t in streams
        )
        return tuple(t.dtype for t in streams) if same else None


def _stream(opt: Optimizer, p: torch.Tensor, key: str) -> torch.Tensor:
    if key == "g":
        assert p.grad is not None
        return local(p.grad)
    return local(p if key == "p" else opt.state[p][key])


def _scalar(opt: Optimizer, bucket: Bucket, index: list[int], kind: str, key: str, position: int | None) -> Any:
    """A column of the table for tensors of one bucket; 0-dim tensors are read as memory, not by the dispatcher."""
    if kind == "hyper":
        value = bucket.group[key] if position is None else bucket.group[key][position]
        return value.detach().numpy().reshape(()) if isinstance(value, torch.Tensor) else value
    if kind == "t":
        return bucket.t.numpy()[index]
    if kind == "k":
        return bucket.group["steps"].numpy()
    if kind == "top":
        return opt.top.numpy() if isinstance(opt.top, torch.Tensor) else opt.top
    if kind in ("each", "rho"):
        return [bucket.states[j][key].numpy() for j in index]
    if kind == "each_before":
        return [bucket.before[j][key].numpy() for j in index]
    if kind == "before":
        return opt.before[id(bucket.group["params"])][key].numpy()
    return bucket.group[key].numpy()

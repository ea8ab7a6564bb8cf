"""Triton sweeps on a GPU: a program becomes one launch for all tensors of equal dtypes, whatever their number.

Addresses, chunks and scalars are read from tables on the device. Chunks are summed apart and added in a fixed order by
a second launch, so equal steps give equal bits. The host waits for nothing, and a step can be captured in a CUDA graph.
"""

# pyright: reportArgumentType=false, reportMissingImports=false
# Triton's decorators hide the types of kernels, and not every platform has Triton.

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from untuned.core.buckets import Bucket, local
from untuned.kernels.native import _PLAIN, _flat_layout, _stream, compile_source, without_flat_factors
from untuned.kernels.program import Program, Symbol

if TYPE_CHECKING:
    from untuned.core.engine import Optimizer

BLOCK = 1024  # elements at a time: a thread of four warps has 16 or 32 bytes of every stream in flight
CHUNK = 8192  # elements of one program, which computes its scalars once
FUSED = {"enable_fp_fusion": True}  # in words, since Triton is about to change its default
Dtypes = tuple[torch.dtype, ...]
Where = list[tuple[int, Bucket, int]]  # (the bucket's number, bucket, index in it)
_TYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_BOOLEAN = {"<", "<=", ">", ">=", "==", "&"}
_PER_TENSOR = {"t", "rho", "each", "each_before"}
_TEMPLATES = {
    "where": "tl.where({0}, {1}, {2})",
    "min": "tl.where(({0} < {1}) | ({0} != {0}), {0}, {1})",  # of NaN and a number NaN, as in torch
    "max": "tl.where(({0} > {1}) | ({0} != {0}), {0}, {1})",
    "sqrt": "tl.sqrt({0})",
    "abs": "tl.abs({0})",
    "neg": "-{0}",
    "**": "power({0}, {1})",
}

_SOURCE = """\
import triton
import triton.language as tl
from untuned.kernels.triton import power


@triton.jit
def sweep(pointers, chunks, scalars, index, partial, ALIGNMENT: tl.constexpr):
    c = tl.program_id(0)
    t = tl.load(chunks + 2 * c)
    begin = tl.load(chunks + 2 * c + 1).to(tl.int64) * {CHUNK}
    row = pointers + t * {row}
    column = index + t * {columns}
    if tl.load(scalars + tl.load(column)) != 0.0:
        n = tl.load(row + {streams}) - begin
{head}
        for o in range(0, {CHUNK}, {BLOCK}):
            i = o + tl.arange(0, {BLOCK})
            if o + {BLOCK} <= n:
{body}
            elif o < n:
                inside = i < n
{rest}
{tail}
    else:
{off}
"""


@triton.jit
def power(x, y):
    """x ** y as torch has it: of a negative base only with whole exponents."""
    size = tl.where(y == 0.0, 1.0, tl.exp(y * tl.log(tl.abs(x))))
    odd = tl.floor(y / 2) * 2 != y
    return tl.where(x < 0.0, tl.where(tl.floor(y) == y, tl.where(odd, -size, size), float("nan")), size)


@triton.jit
def add_chunks(partial, first, sums, COUNT: tl.constexpr, WIDTH: tl.constexpr):
    """sums[t, j] = the sum of partial[c, j] over the chunks c of tensor t."""
    t = tl.program_id(0)
    j = tl.program_id(1)
    total = tl.full((WIDTH,), 0.0, tl.float64)
    c = tl.load(first + t)
    end = tl.load(first + t + 1)
    while c < end:
        i = c + tl.arange(0, WIDTH)
        total += tl.load(partial + i * COUNT + j, mask=i < end, other=0.0)
        c += WIDTH
    tl.store(sums + t * COUNT + j, tl.sum(total))


class Writer:
    """Emits the source of one program for one combination of dtypes."""

    def __init__(self, program: Program, dtypes: dict[str, str]) -> None:
        self.dtypes = dtypes
        self.arithmetic = "tl.float64" if "float64" in dtypes.values() else "tl.float32"
        self.names: dict[Any, str] = {}
        self.casts: dict[str, str] = {}
        self.streams: list[str] = []
        self.columns: list[tuple[str, str, int | None]] = []
        self.count = len(program.sums)
        self.head: list[str] = []  # once per chunk; the others once per block
        self.loads: list[str] = []
        self.body: list[str] = []
        stores = {key: self.element(value) for key, value in program.stores.items()}
        totals: dict[str, str] = {}
        tail: list[str] = []
        for j, value in enumerate(program.sums):
            summand, factor = without_flat_factors(value)
            total = totals.setdefault(self.element(summand), f"r{len(totals)}")
            scaled = "" if factor is None else f" * {self.value(factor)}"
            tail.append(f"tl.store(partial + c * {self.count} + {j}, tl.sum({total}).to(tl.float64){scaled})")
        self.head += [f"{total} = tl.full(({BLOCK},), 0.0, {self.arithmetic})" for total in totals.values()]
        body = self.loads + self.body
        body += [f"{total} += {{keep}}{summand}{{drop}}" for summand, total in totals.items()]
        body += [f"tl.store({self.stream(k)} + i, {v}.to(tl.{dtypes[k]}){{mask}})" for k, v in stores.items()]
        off = [f"tl.store(partial + c * {self.count} + {j}, 0.0)" for j in range(self.count)] or ["pass"]
        self.source = _SOURCE.format(
            BLOCK=BLOCK,
            CHUNK=CHUNK,
            streams=len(self.streams),
            row=len(self.streams) + 1,
            columns=len(self.columns) + 1,
            head=_indented(2, self.head),
            body=_indented(4, body, keep="", drop="", mask=""),
            rest=_indented(4, body, keep="tl.where(inside, ", drop=", 0.0)", mask=", mask=inside"),
            tail=_indented(2, tail),
            off=_indented(2, off),
        )

    def stream(self, key: str) -> str:
        if key not in self.streams:
            row = len(self.streams)
            self.streams.append(key)
            address = f"tl.load(row + {row}).to(tl.pointer_type(tl.{self.dtypes[key]}))"
            self.head.append(f"s{row} = tl.multiple_of({address}, ALIGNMENT) + begin")
        return f"s{self.streams.index(key)}"

    def element(self, q: Symbol) -> str:
        """The value in element arithmetic: a flat one is cast once per chunk."""
        name = self.value(q)
        if not q.flat or q.op in _BOOLEAN:
            return name
        if name not in self.casts:
            self.casts[name] = f"e{name}"
            self.head.append(f"e{name} = {name}.to({self.arithmetic})")
        return self.casts[name]

    def value(self, q: Symbol) -> str:
        if q.op in ("load", "row", "const"):
            key: Any = (q.op, q.args[0])
        else:
            key = (q.op, *((self.value if q.flat else self.element)(a) for a in q.args))
        if key not in self.names:
            name = self.names[key] = f"v{len(self.names)}"
            lines = self.head if q.flat else self.loads if q.op == "load" else self.body
            lines.append(f"{name} = {self.expression(q, key)}")
        return self.names[key]

    def expression(self, q: Symbol, key: tuple[Any, ...]) -> str:
        args = key[1:]
        if q.op == "load":
            return f"tl.load({self.stream(args[0])} + i{{mask}}).to({self.arithmetic})"
        if q.op == "row":
            if args[0] not in self.columns:
                self.columns.append(args[0])
            return f"tl.load(scalars + tl.load(column + {self.columns.index(args[0]) + 1}))"
        if q.op == "const":
            return f"tl.full((), float('{args[0]!r}'), tl.float64)"
        if q.op == "round":
            return f"{args[0]}.to(tl.{self.dtypes['p']}).to({self.arithmetic})"
        return _TEMPLATES.get(q.op, f"{{0}} {q.op} {{1}}").format(*args)


def _indented(depth: int, lines: list[str], **values: str) -> str:
    return "\n".join("    " * depth + line.format(**values) for line in lines)


class Table:
    """Numbers of the host on a device: sent when they change, without waiting, and anew into every captured graph."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self.sent: list[Any] | None = None
        self.tensor = torch.empty(0)

    def send(self, values: list[Any], rows: Callable[[list[Any]], list[Any]] = list) -> torch.Tensor:
        """The tensor of rows(values), a function of nothing else."""
        if _capturing(self.device):  # later steps replace our tensor, but not the graph's
            return _upload(rows(values), self.dtype, self.device)
        if values != self.sent:
            self.sent, self.tensor = values, _upload(rows(values), self.dtype, self.device)
        return self.tensor


def _upload(values: list[Any], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda").to(device, non_blocking=True)


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class Call:
    """One kernel call: tensors of equal dtypes on one device, and what stays from step to step."""

    def __init__(self, sweep: TritonSweep, dtypes: Dtypes, where: Where) -> None:
        self.sweep, self.writes = sweep, "p" in sweep.program.stores
        self.writer, self.function = sweep.kernel(dtypes)
        self.params = [bucket.params[j] for _, bucket, j in where]
        self.states = [bucket.states[j] for _, bucket, j in where]
        self.held = {k: [state[k] for state in self.states] for k in self.writer.streams if k not in "pg"}
        self.sizes = [local(p).numel() for p in self.params]
        self.sharded = any(local(p) is not p for p in self.params)
        self.device = local(self.params[0]).device
        counts = [triton.cdiv(n, CHUNK) for n in self.sizes]
        self.chunks = _upload([(t, c) for t, n in enumerate(counts) for c in range(n)], torch.int32, self.device)
        self.first = _upload([0, *accumulate(counts)], torch.int32, self.device)
        self.buckets = {number: bucket for number, bucket, _ in where}
        self.spans: list[tuple[int, torch.Tensor, slice]] = []  # a bucket, tensors in it, and their rows here
        for number in self.buckets:
            rows = [row for row, (n, _, _) in enumerate(where) if n == number]
            members = _upload([where[row][2] for row in rows], torch.int64, self.device)
            self.spans.append((number, members, slice(rows[0], rows[-1] + 1)))
        self.index = _upload(self._index(where), torch.int32, self.device)
        self.pointers = Table(torch.int64, self.device)
        self.floats = Table(torch.float64, self.device)
        self.alignment = 1

    def current(self) -> bool:
        """Whether its slots are still those of the state."""
        return all(state[k] is t for k, ts in self.held.items() for state, t in zip(self.states, ts, strict=True))

    def _index(self, where: Where) -> list[list[int]]:
        """A row for each tensor: where its scalars stand in `_scalars`."""
        columns = ["on", *(kind for kind, _, _ in self.writer.columns)]
        index = [[0] * len(columns) for _ in where]
        place = 0
        for number, bucket in self.buckets.items():
            for column, kind in enumerate(columns):
                for row, (n, _, j) in zip(index, where, strict=True):
                    if n == number:
                        row[column] = place + (j if kind in _PER_TENSOR else 0)
                place += len(bucket.params) if kind in _PER_TENSOR else 1
        return index

    def _scalars(self, opt: Optimizer) -> torch.Tensor:
        """The flag and the columns of every bucket in turn; a column is one value, or one for each of its tensors."""
        values: list[Any] = []
        for bucket in self.buckets.values():
            values.append(1.0 if bucket.on is None else bucket.on)
            values += [_scalar(opt, bucket, *column) for column in self.writer.columns]
        sent = iter(self.floats.send([v for v in values if not isinstance(v, torch.Tensor)]).split(1))
        for i, v in enumerate(values):
            tensor = v.to(self.device, torch.float64, non_blocking=True) if isinstance(v, torch.Tensor) else next(sent)
            values[i] = tensor.reshape(-1)
        return torch.cat(values)

    def _rows(self, addresses: list[int]) -> list[tuple[int, ...]]:
        """A row for each tensor: the addresses of its streams, and its size."""
        self.alignment = 16 if all(a % 16 == 0 for a in addresses) else 1
        n = len(self.sizes)
        columns = [addresses[i : i + n] for i in range(0, len(addresses), n)]
        return list(zip(*columns, self.sizes, strict=True))

    def run(self, opt: Optimizer) -> torch.Tensor:
        """Run the kernel; return a row of sums per tensor."""
        if _capturing(self.device):
            self.sweep.captured.append(self)  # the graph reads our tables in every replay
        streams: list[Any] = []
        for key in self.writer.streams:
            streams += self.params if key == "p" else [p.grad for p in self.params] if key == "g" else self.held[key]
        addresses = [t.data_ptr() for t in (map(local, streams) if self.sharded else streams)]
        pointers = self.pointers.send(addresses, self._rows)
        scalars = self._scalars(opt)
        count = self.writer.count
        partial = scalars.new_empty((len(self.chunks), count))
        sums = scalars.new_empty((len(self.params), count))
        with torch.cuda.device_of(scalars):
            tables = (pointers, self.chunks, scalars, self.index, partial)
            self.function[(len(self.chunks),)](*tables, ALIGNMENT=self.alignment, **FUSED)
            if count:
                add_chunks[(len(self.params), count)](partial, self.first, sums, COUNT=count, WIDTH=1024, **FUSED)  # pyright: ignore
        if self.writes:
            torch.autograd.graph.increment_version(self.params)
        return sums


class TritonSweep:
    """The compiled functions of one program, one for every combination of dtypes met."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.keys = sorted(set().union(*program.streams()))
        self.kernels: dict[Dtypes, tuple[Writer, Any]] = {}
        self.captured: list[Call] = []

    def kernel(self, dtypes: Dtypes) -> tuple[Writer, Any]:
        if dtypes not in self.kernels:
            writer = Writer(self.program, dict(zip(self.keys, (_TYPES[d] for d in dtypes), strict=True)))
            self.kernels[dtypes] = writer, compile_source(writer.source)
        return self.kernels[dtypes]

    def accepts(self, opt: Optimizer, p: torch.Tensor) -> Dtypes | None:
        """The dtypes of the streams in order if a kernel can take this tensor, else None."""
        x = local(p)
        if not x.numel() or not _flat_layout(x):
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

    def call(self, dtypes: Dtypes, where: Where) -> Call:
        return Call(self, dtypes, where)


def _scalar(opt: Optimizer, bucket: Bucket, kind: str, key: str, position: int | None) -> Any:
    """A column for the tensors of one bucket: a number, a 0-dim tensor, or a vector if it differs between them."""
    if kind == "hyper":
        return bucket.group[key] if position is None else bucket.group[key][position]
    if kind == "t":
        return bucket.t
    if kind == "k":
        return bucket.group["steps"]
    if kind == "top":
        return opt.top
    if kind in ("each", "rho"):
        return torch.stack([state[key] for state in bucket.states])
    if kind == "each_before":
        return torch.stack([state[key] for state in bucket.before])
    if kind == "before":
        return opt.before[id(bucket.group["params"])][key]
    return bucket.group[key]

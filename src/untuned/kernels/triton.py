"""Triton sweeps on a GPU: a program becomes one launch for all tensors of equal dtypes, whatever their number.

Addresses, chunks and scalars are read from tables on the device. Chunks are summed apart and added in a fixed order by
a second launch, so equal steps give equal bits. The host waits for nothing, and a step can be captured in a CUDA graph.
"""

# pyright: reportArgumentType=false, reportMissingImports=false
# Triton's decorators hide the types of kernels, and not every platform has Triton.

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from untuned.kernels.batch import PER_TENSOR, Batch, scalar
from untuned.kernels.cache import compile_source
from untuned.kernels.writer import Writer
from untuned.memory.now import Now
from untuned.memory.rounding import shift
from untuned.recipe.symbols import Program, Symbol

BLOCK = 1024  # elements at a time: a thread of four warps has 16 or 32 bytes of every stream in flight
CHUNK = 8192  # elements of one program, which computes its scalars once
ONE_PASS = 0  # elements of a tensor: all are too large for it
FUSED = {"enable_fp_fusion": True}  # in words, since Triton is about to change its default
TYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_TEMPLATES = {"where": "tl.where({0}, {1}, {2})", "sqrt": "tl.sqrt({0})", "abs": "tl.abs({0})", "neg": "-{0}"}
_TEMPLATES |= {"cbrt": "power({0}, 1 / 3)", "**": "power({0}, {1})"}
_TEMPLATES |= {"exp": "tl.exp({0})", "log": "tl.log({0})", "tanh": "tanh({0})"}
for _name, _sign in (("min", "<"), ("max", ">")):  # of NaN and a number NaN, as in torch
    _TEMPLATES[_name] = f"tl.where({{0}} != {{0}}, {{0}}, tl.where({{0}} {_sign} {{1}}, {{0}}, {{1}}))"

_SOURCE = """\
import triton
import triton.language as tl
from untuned.kernels.triton import at_random, largest, power, tanh


@triton.jit
def sweep(pointers, tensors, chunks, scalars, partial, ALIGNMENT: tl.constexpr):
    c = tl.program_id(0)
    t = tl.load(chunks + 2 * c)
    begin = tl.load(chunks + 2 * c + 1).to(tl.int64) * {CHUNK}
    row = pointers + t
    scalars += t * {columns}
    if tl.load(scalars) != 0.0:
        n = tl.load(row + {streams} * tensors) - begin
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
def tanh(x):
    e = tl.exp(-2 * tl.abs(x))  # a polynomial near 0, where 1 - e would cancel
    near = tl.abs(x) * (1 - x * x / 3 * (1 - 0.4 * x * x * (1 - 17 / 42 * x * x * (1 - 62 / 153 * x * x))))
    size = tl.where(tl.abs(x) < 0.04, near, (1 - e) / (1 + e))
    return tl.where(x < 0.0, -size, size)


@triton.jit
def at_random(value, seed, SHIFT: tl.constexpr):
    """A float32 with the bits of a bfloat16 above and below it, by the hash of a uint32; see memory.rounding."""
    x = (seed ^ (seed >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    bits = (value.to(tl.uint32, bitcast=True) + (((x ^ (x >> 16)) >> SHIFT) & 0xFFFF)) & 0xFFFF0000
    return tl.where(value == value, bits.to(tl.float32, bitcast=True), value)


@triton.jit
def largest(x):
    """The maximum of a vector; NaN if one of its elements is."""
    return tl.max(x) + tl.sum(tl.where(x != x, x, 0.0))  # pyright: ignore[reportOperatorIssue]


@triton.jit
def add_chunks(partial, first, sums, COUNT: tl.constexpr, WIDTH: tl.constexpr, LARGEST: tl.constexpr):
    """sums[t, j] = the sum, or where bit j of LARGEST is set the maximum, of partial[c, j] over tensor t's chunks c."""
    t = tl.program_id(0)
    j = tl.program_id(1)
    total = tl.full((WIDTH,), 0.0, tl.float64)
    most = tl.full((WIDTH,), 0.0, tl.float64)
    c = tl.load(first + t)
    end = tl.load(first + t + 1)
    while c < end:
        i = c + tl.arange(0, WIDTH)
        here = tl.load(partial + i * COUNT + j, mask=i < end, other=0.0)
        total += here
        most = tl.where((here > most) | (here != here), here, most)
        c += WIDTH
    tl.store(sums + t * COUNT + j, tl.where((LARGEST >> j) & 1 == 1, largest(most), tl.sum(total)))


class TritonWriter(Writer):
    """The source of a program as a kernel that Triton compiles."""

    opening = "s{0} = tl.multiple_of(tl.load(row + {0} * tensors).to(tl.pointer_type(tl.{1})), ALIGNMENT) + begin"
    seed = "seed = tl.load(scalars + {0}).to(tl.int64).to(tl.uint32)"
    cast = "{0}.to(tl.{1})"
    total = "tl.sum({0}).to(tl.float64)"
    largest = "largest({0}).to(tl.float64)"

    def __init__(self, program: Program, dtypes: dict[str, str]) -> None:
        super().__init__(program, dtypes, [])
        self.count = len(program.reductions)
        self.maxima = sum(1 << j for j, one in enumerate(program.reductions) if one.kind == "max")
        head = self.head + [f"{r} = tl.full(({BLOCK},), 0.0, tl.{self.arithmetic})" for r in self.totals.values()]
        body = self.loads + self.body
        for (summand, kind), total in self.totals.items():
            here = f"{{keep}}{summand}{{drop}}"
            most = _TEMPLATES["max"].format(here, total)
            body.append(f"{total} += {here}" if kind == "sum" else f"{total} = {most}")
        for k, v in self.stores.items():
            v = f"at_random({v}, seed + (begin + i).to(tl.uint32), {shift(k)})" if k in self.at_random else v
            body.append(f"tl.store({self.stream(k)} + i, {v}.to(tl.{dtypes[k]}){{mask}})")
        tail = [f"tl.store(partial + c * {self.count} + {j}, {value})" for j, value in enumerate(self.sums)]
        off = [f"tl.store(partial + c * {self.count} + {j}, 0.0)" for j in range(self.count)] or ["pass"]
        sizes = {"BLOCK": BLOCK, "CHUNK": CHUNK, "streams": len(self.keys), "columns": len(self.columns) + 1}
        self.source = _SOURCE.format(
            **sizes,
            head=_indented(2, head),
            body=_indented(4, body, keep="", drop="", mask=""),
            rest=_indented(4, body, keep="tl.where(inside, ", drop=", 0.0)", mask=", mask=inside"),
            tail=_indented(2, tail),
            off=_indented(2, off),
        )

    def expression(self, q: Symbol, args: tuple[Any, ...]) -> str:
        if q.op == "load":
            return f"tl.load({self.stream(args[0])} + i{{mask}}).to(tl.{self.arithmetic})"
        if q.op == "scalar":
            return f"tl.load(scalars + {self.column(args[0])})"
        if q.op == "const":
            return f"tl.full((), float('{args[0]!r}'), tl.float64)"
        if q.op == "round":
            return f"{args[0]}.to(tl.{self.dtypes['p']}).to(tl.{self.arithmetic})"
        return _TEMPLATES.get(q.op, f"{{0}} {q.op} {{1}}").format(*args)


def _indented(depth: int, lines: list[str], **values: str) -> str:
    return "\n".join("    " * depth + line.format(**values) for line in lines)


def pointers(table: np.ndarray) -> tuple[bytes, int]:
    """The table, and by how many bytes all addresses can be divided."""
    return table.tobytes(), 1 if (table[:-1] % 16).any() else 16


def _upload(values: bytes, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    memory = torch.frombuffer(bytearray(values), dtype=dtype)
    return (memory.pin_memory() if device.type == "cuda" else memory).to(device, non_blocking=True)


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class Call:
    """One program on one batch: what its launches need, and what stays from step to step."""

    def __init__(self, program: Program, batch: Batch) -> None:
        self.device = batch.device
        self.writer = TritonWriter(program, {key: TYPES[d] for key, d in batch.dtypes.items()})
        self.function = compile_source(self.writer.source)
        counts = [triton.cdiv(n, CHUNK) for n in batch.sizes]
        chunks = np.array([(t, c) for t, n in enumerate(counts) for c in range(n)], dtype=np.int32)
        # numbers of the host that stay from step to step are sent once, and anew into every captured graph
        self.upload = next((c.upload for c in batch.calls.values() if c), lru_cache(maxsize=16)(_upload))
        self.chunks = self._sent(chunks.tobytes(), torch.int32).view(-1, 2)
        self.first = self._sent(np.array([0, *accumulate(counts)], dtype=np.int32).tobytes(), torch.int32)

    def _sent(self, values: bytes, dtype: torch.dtype) -> torch.Tensor:
        # later steps replace our tensor, but not the graph's
        upload = _upload if _capturing(self.device) else self.upload
        return upload(values, dtype, self.device)

    def _scalars(self, now: Now, batch: Batch, flags: dict[int, torch.Tensor | None]) -> torch.Tensor:
        """The flag and the scalars of every tensor, [tensors, columns]."""
        kinds = ["flag", *(kind for kind, _, _ in self.writer.columns)]
        values: list[list[Any]] = []
        for number, _, _ in batch.spans:
            flag = 1.0 if flags[number] is None else flags[number]
            values.append([flag, *(scalar(now, batch.buckets[number], column) for column in self.writer.columns)])
        floats = [v for vs in values for v in vs if not isinstance(v, torch.Tensor)]
        sent = iter(self._sent(np.array([*floats, 0.0]).tobytes(), torch.float64).unbind())
        rows = []
        for vs, (_, members, here) in zip(values, batch.spans, strict=True):
            tensors = [v.to(self.device, torch.float64) if torch.is_tensor(v) else next(sent) for v in vs]
            chosen = (t[members] if k in PER_TENSOR else t.reshape(-1) for t, k in zip(tensors, kinds, strict=True))
            rows.append(torch.stack([t.expand(here.stop - here.start) for t in chosen], 1))
        return torch.cat(rows)

    def run(self, now: Now, batch: Batch, flags: dict[int, torch.Tensor | None]) -> torch.Tensor:
        """Run the kernel; return a row of sums per tensor."""
        table, alignment = batch.pointers
        pointers = self._sent(table, torch.int64)
        scalars = self._scalars(now, batch, flags)
        count = self.writer.count
        partial = scalars.new_empty((len(self.chunks), count))
        sums = scalars.new_empty((len(batch.sizes), count))
        with torch.cuda.device_of(scalars):
            if _capturing(self.device):
                batch.captured += (pointers, self.chunks, scalars, partial, self.first)
            arguments = (pointers, len(batch.sizes), self.chunks, scalars, partial)
            self.function[(len(self.chunks),)](*arguments, ALIGNMENT=alignment, **FUSED)
            if count:
                grid = (len(batch.sizes), count)
                add_chunks[grid](
                    partial, self.first, sums, COUNT=count, WIDTH=1024, LARGEST=self.writer.maxima, **FUSED
                )  # pyright: ignore
        if "p" in self.writer.stores:
            torch.autograd.graph.increment_version(batch.params)
        return sums

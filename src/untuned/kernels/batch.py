"""Tensors that one kernel call takes, and where their elements lie."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch._C._dynamo.guards import TensorGuards  # all that torch.compile checks of its inputs, in one call

from untuned.memory.buckets import Bucket, in_one_block, local, row_count
from untuned.memory.now import Now
from untuned.recipe.symbols import Column

Dtypes = tuple[tuple[str, torch.dtype], ...]  # of every stream: p, g and slots by their keys
Members = list[tuple[int, Bucket, int]]  # (the bucket's number, bucket, index in it)
_PLAIN = (torch.Tensor, torch.nn.Parameter)  # other classes may keep their elements elsewhere


class Batch:
    """Tensors on one device whose streams have equal dtypes, and everything about them that stays from step to step.

    Members a recipe has numbers of rows, kernels take each row of a tensor for a tensor of its own: `counts` of them.
    """

    def __init__(
        self, kernels: Any, label: Any, one_pass: bool, dtypes: Dtypes, members: Members, captured: list[Any]
    ) -> None:
        self.dtypes, self.kernels, self.label, self.one_pass = dict(dtypes), kernels, label, one_pass
        self.captured = captured
        self.params = [bucket.params[j] for _, bucket, j in members]
        self.tensors = [(i, j) for i, _, j in members]
        held = [bucket.held(j) for _, bucket, j in members]
        self.slots = {key: [one[key] for one in held] for key in self.dtypes if key not in "pg"}
        self.counts = [bucket.ends[j + 1] - bucket.ends[j] for _, bucket, j in members]
        self.sizes = [local(p).numel() // n for p, n in zip(self.params, self.counts, strict=True) for _ in range(n)]
        self.device, self.sharded = self.params[0].device, any(local(p) is not p for p in self.params)
        self.calls: dict[Any, Any] = {}  # a kernel call, or None, for every stage and what is 0 in it
        self.buckets = {number: bucket for number, bucket, _ in members}
        self.spans: list[tuple[int, Any, slice]] = []  # a bucket, its reductions that are here, and their rows here
        ends = np.cumsum([0, *self.counts])
        for number, bucket in self.buckets.items():
            rows = [row for row, (n, _, _) in enumerate(members) if n == number]
            index = np.concatenate([np.arange(*bucket.ends[members[row][2] :][:2]) for row in rows])
            whole = len(rows) == len(bucket.params)
            chosen = slice(None) if whole else torch.from_numpy(index).to(self.device)
            self.spans.append((number, chosen, slice(int(ends[rows[0]]), int(ends[rows[-1] + 1]))))
        self.kinds, self.addresses = None, list[list[int]]()
        self.pointers: Any = None  # as the kernels take them, made of [streams and size, tensors]

    def refresh(self) -> bool:
        """Look up the addresses of all streams; False if anything else about them is not as it was the last time.

        Storage may move under the same parameter or slot, and gradients are new tensors in every step. `map` is several
        times as fast as a loop, which counts in a step on thousands of small tensors.
        """
        whole = len(self.buckets) == 1 and isinstance(self.spans[0][1], slice)
        grads = self.buckets[self.spans[0][0]].grads if whole else [self.buckets[i].grads[j] for i, j in self.tensors]
        streams = {"p": self.params, "g": grads, **self.slots}
        if self.sharded:
            streams = {key: list(map(local, tensors)) for key, tensors in streams.items()}
        given = [*streams["p"], *streams["g"]]
        if self.kinds is None:  # of class, dtype, device, shape and strides, as they were when the tensors were sorted
            self.kinds = TensorGuards(*given, dynamic_dims_sizes=None, dynamic_dims_strides=None)
        if not self.kinds.check(*given):
            return False
        addresses = [list(map(torch.Tensor.data_ptr, streams[key])) for key in self.dtypes]
        if addresses != self.addresses:
            for key, now, then in zip(self.dtypes, addresses, self.addresses or addresses, strict=True):
                moved = zip(streams[key], streams["p"], strict=True) if key not in "pg" and now != then else ()
                if any((t.dtype, *_layout(t)) != (self.dtypes[key], *_layout(p)) for t, p in moved):
                    return False
            self.addresses, table = addresses, [np.array(row, dtype=np.int64) for row in addresses]
            if len(self.sizes) > len(self.params):
                table = [self._of_rows(row, key) for row, key in zip(table, self.dtypes, strict=True)]
            self.pointers = self.kernels.pointers(np.array([*table, self.sizes], dtype=np.int64))
        return True

    def _of_rows(self, addresses: Any, key: str) -> Any:
        """The addresses of all rows from those of the tensors."""
        first = np.repeat(np.cumsum([0, *self.counts])[:-1], self.counts)
        place = np.arange(len(self.sizes)) - first
        return np.repeat(addresses, self.counts) + place * np.array(self.sizes) * self.dtypes[key].itemsize


def _layout(t: torch.Tensor) -> tuple[Any, ...]:
    return t.device, t.shape, t.stride()


def accepted(bucket: Bucket, j: int, keys: list[str], types: dict[torch.dtype, str]) -> Dtypes | None:
    """The dtypes of the streams if a kernel can take this tensor: in one block of memory each, in equal order."""
    p = bucket.params[j]
    x = local(p)
    held = {"p": p, "g": p.grad, **bucket.held(j)}
    streams = [(key, local(held[key])) for key in keys]
    known = all(type(t) in _PLAIN and t.dtype in types and not t.is_neg() for _, t in streams)
    taken = x.numel() and known and in_one_block(x, (t for _, t in streams))
    return tuple((key, t.dtype) for key, t in streams) if taken else None


PER_TENSOR = {"t", "rho", "each", "each_before", "row", "row_before", "noise"}  # kinds with a value for each tensor


def scalar(now: Now, bucket: Bucket, column: Column) -> Any:
    """What a column of the table of scalars holds for a bucket: a number, a 0-dim tensor or a vector, of rows if the
    recipe has numbers of rows."""
    kind, key, position = column
    if kind in PER_TENSOR:
        return _of_each(now, bucket, kind, key)
    if kind in ("top", "clip"):
        return getattr(now, kind)
    if kind == "signal":
        return now.signals[key]
    if kind == "before":
        return now.before[id(bucket.group["params"])][key]
    value = bucket.group["steps" if kind == "k" else key]
    return value if position is None else value[position]


def _of_each(now: Now, bucket: Bucket, kind: str, key: str) -> torch.Tensor:
    if kind in ("t", "noise"):
        value = getattr(bucket, kind)
    else:
        value = bucket.before[key] if kind.endswith("before") else bucket.number(key)
    if not now.recipe.by_rows or kind.startswith("row"):
        return value
    spread = value[bucket.owners]  # made when tensors are arranged: nothing is sent to a GPU here
    if kind != "noise":
        return spread
    counts = [row_count(local(p)) for p in bucket.params]
    lengths = torch.tensor(
        [local(p).numel() // n for p, n in zip(bucket.params, counts, strict=True) for _ in range(n)]
    )
    place = torch.cat([torch.arange(n) for n in counts]) * lengths  # of a row's first element in the tensor
    return (spread + place.to(spread.device)) & 0xFFFFFFFF

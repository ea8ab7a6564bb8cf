"""Tensors that one kernel call takes, and where their elements lie."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from torch._C._dynamo.guards import TensorGuards  # all that torch.compile checks of its inputs, in one call

from untuned.core.buckets import Bucket, in_one_block, local
from untuned.kernels.program import Column

if TYPE_CHECKING:
    from untuned.core.engine import Optimizer

Dtypes = tuple[tuple[str, torch.dtype], ...]  # of every stream: p, g and slots by their keys
Where = list[tuple[int, Bucket, int]]  # (the bucket's number, bucket, index in it)
_PLAIN = (torch.Tensor, torch.nn.Parameter)  # other classes may keep their elements elsewhere


class Batch:
    """Tensors on one device whose streams have equal dtypes, and everything about them that stays from step to step."""

    def __init__(self, kernels: Any, one_pass: bool, dtypes: Dtypes, where: Where) -> None:
        self.dtypes, self.kernels, self.one_pass = dict(dtypes), kernels, one_pass
        self.params = [bucket.params[j] for _, bucket, j in where]
        states = [bucket.states[j] for _, bucket, j in where]
        self.slots = {key: list(map(itemgetter(key), states)) for key in self.dtypes if key not in "pg"}
        self.sizes = [local(p).numel() for p in self.params]
        self.device, self.sharded = self.params[0].device, any(local(p) is not p for p in self.params)
        self.calls: dict[Any, Any] = {}  # a kernel call, or None, for every sweep and what is 0 in it
        self.buckets = {number: bucket for number, bucket, _ in where}
        self.spans: list[tuple[int, Any, slice]] = []  # a bucket, tensors in it, and their rows here
        for number, bucket in self.buckets.items():
            rows = [row for row, (n, _, _) in enumerate(where) if n == number]
            index = torch.tensor([where[row][2] for row in rows], device=self.device)
            members = slice(None) if len(rows) == len(bucket.params) else index
            self.spans.append((number, members, slice(rows[0], rows[-1] + 1)))
        self.kinds, self.addresses = None, list[list[int]]()
        self.pointers: Any = None  # as the kernels take them, made of [streams and size, tensors]

    def found(self) -> bool:
        """Look up the addresses of all streams; False if anything else about them is not as it was the last time.

        Storage may move under the same parameter or slot, and gradients are new tensors in every step. `map` is several
        times as fast as a loop, which counts in a step on thousands of small tensors.
        """
        grads: list[torch.Tensor] = []
        for number, members, _ in self.spans:
            here = self.buckets[number].grads
            grads += here if isinstance(members, slice) else [here[j] for j in members.tolist()]
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
            self.addresses, self.pointers = addresses, self.kernels.pointers([*addresses, self.sizes])
        return True


def _layout(t: torch.Tensor) -> tuple[Any, ...]:
    return t.device, t.shape, t.stride()


def accepted(opt: Optimizer, p: torch.Tensor, keys: list[str], types: dict[torch.dtype, str]) -> Dtypes | None:
    """The dtypes of the streams if a kernel can take this tensor: in one block of memory each, in equal order."""
    x = local(p)
    held = {"p": p, "g": p.grad, **opt.state[p]}
    streams = [(key, local(held[key])) for key in keys]
    known = all(type(t) in _PLAIN and t.dtype in types and not t.is_neg() for _, t in streams)
    taken = x.numel() and known and in_one_block(x, (t for _, t in streams))
    return tuple((key, t.dtype) for key, t in streams) if taken else None


PER_TENSOR = {"t", "rho", "each", "each_before", "noise"}  # kinds of columns with a value for each tensor of a bucket


def scalar(opt: Optimizer, bucket: Bucket, column: Column) -> Any:
    """What a column of the table of scalars holds for a bucket: a number, a 0-dim tensor or a vector."""
    kind, key, position = column
    if kind in ("top", "clip", "t", "noise"):
        return getattr(opt if kind in ("top", "clip") else bucket, kind)
    if kind == "before":
        return opt.before[id(bucket.group["params"])][key]
    if kind in ("each", "rho", "each_before"):
        return (bucket.before if kind == "each_before" else bucket.numbers)[key]
    value = bucket.group["steps" if kind == "k" else key]
    return value if position is None else value[position]

"""Decisions: scalar math on what sweeps have reduced, once per step: of the model, a group, tensors or rows."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportPrivateImportUsage=false
# torch's stubs leave types unknown, and its multi-tensor functions have private names.

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from untuned.memory.buckets import Bucket, joined, local, number_from, row_count
from untuned.memory.now import Now
from untuned.parts.declare import Hyper, Number
from untuned.parts.math import where
from untuned.parts.part import Part
from untuned.parts.place import Frame
from untuned.run import reduce
from untuned.run.eager import hyper


class ScalarFrame(Frame):
    """The scalars of one decision: of the model, of a group, or of all its live tensors or rows as vectors.

    `in_numpy`: as NumPy's, in the same memory, since an operation on these costs less than one of torch's.
    """

    where = "'decide'"

    def __init__(self, now: Now, role: str, buckets: list[Bucket], in_numpy: bool) -> None:
        super().__init__(buckets[0].parts)
        self.now, self.buckets, self.fresh = now, buckets, dict[str, Any]()
        self.part = self.parts[role]
        self.in_numpy = in_numpy and all(device.type == "cpu" for device in (now.device, *(b.device for b in buckets)))
        self.group = buckets[0].group
        self.on = self.as_held(now.on_any(buckets))

    def as_held(self, value: Any) -> Any:
        return value.numpy() if self.in_numpy and isinstance(value, torch.Tensor) else value

    def _counts(self) -> list[int]:
        """How many numbers each bucket has: one per tensor, or one per row of each."""
        if self.part.scope == "row":
            return [sum(row_count(local(p)) for p in bucket.params) for bucket in self.buckets]
        return [len(bucket.params) for bucket in self.buckets]

    def _on_rows(self) -> Any:
        return self.as_held(self.now.on_rows(self.buckets, self._counts()))

    def number(self, part: Part, declared: Number) -> Any:
        if not part.per_tensor(declared):
            return self.fresh.get(declared.key, self.as_held(self.group[declared.key]))
        held = self._per_tensor(declared.key)
        if self.part.scope == "model" and any(isinstance(b.group["lr"], torch.Tensor) for b in self.buckets):
            held = where(self._on_rows(), held, 0.0)  # a tensor that rests is not in the model
        return held

    def number_before(self, part: Part, declared: Number) -> Any:
        if not part.per_tensor(declared):
            return self.as_held(self.now.before[id(self.group["params"])][declared.key])
        return self.as_held(joined([b.before[declared.key].to(self.now.device) for b in self.buckets]))

    def total(self, local: Any) -> Any:
        group = self.now.shard_group
        return self.as_held(reduce.over_shards(torch.as_tensor(local), group)) if group else local

    def hyper(self, part: Part, letter: Hyper) -> Any:
        return self.as_held(hyper(self.group, letter))

    def signal(self, key: str) -> Any:
        return self.as_held(self.now.signals[key])

    def engine(self, name: str) -> Any:
        if name == "k" or (name == "t" and self.part.scope == "model"):
            return self.as_held(self.group["steps"])
        if name in ("top", "clip", "loss", "ids") and (value := getattr(self.now, name)) is not None:
            return self.as_held(value)
        if name == "t" and self.part.scope in ("tensor", "group"):
            steps = self.as_held(joined([b.t.to(self.now.device) for b in self.buckets]))
            longest = steps.max() if len(steps) else self.as_held(self.group["steps"])
            return steps if self.part.scope == "tensor" else longest
        if name == "rho" and self.part.scope == "tensor":
            return self._per_tensor("rho")
        return super().engine(name)

    def _per_tensor(self, key: str) -> Any:
        held = self.fresh.get(key)
        return self.as_held(joined([b.number(key).to(self.now.device) for b in self.buckets])) if held is None else held

    def write(self, part: Part, name: str, value: Any) -> None:
        key = self.written(part, name, Number)
        value = np.asarray(value, dtype=np.float64) if self.in_numpy else number_from(value, self.now.device)
        # A number that cannot be updated keeps its value: an estimate must survive an overflow in a sum.
        good = abs(value) < math.inf
        if part.per_tensor(part.numbers()[name]):
            old, on = self._per_tensor(key), self._on_rows()
            on = on if on is True else on.reshape(-1, *[1] * (old.ndim - 1))
            self.fresh[key] = where(on & good, value, old)
        else:
            self.fresh[key] = where(self.on & good.all(), value, self.read(part, name))

    def commit(self) -> None:
        """Change the numbers, in place; until then what the decision has read stays as it was."""
        for key, value in self.fresh.items():
            if key in self.group:
                self.as_held(self.group[key])[...] = value
                for group in self.now.groups if self.part.scope == "model" else ():
                    if self.part in self.now.recipe.of(group).values():
                        group[key] = self.group[key]
            first = 0
            for b in self.buckets if key not in self.group else ():
                for held in [b.numbers[key]] if key in b.numbers else [local(state[key]) for state in b.states]:
                    self.as_held(held)[...] = value[first : (first := first + len(held))]

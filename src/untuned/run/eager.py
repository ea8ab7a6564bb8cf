"""The reference: every verb as written, on one tensor after the other. It runs on any device with float64.

On a CPU, a block of memory at a time: what the verbs compute on the way then stays in the cache.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportPrivateImportUsage=false
# torch's stubs leave types unknown, and its multi-tensor functions have private names.

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch

from untuned.memory import rounding
from untuned.memory.buckets import Bucket, in_one_block, local, placed_like, row_count, sliced, whole
from untuned.memory.now import Now
from untuned.parts.declare import Hyper, Number
from untuned.parts.math import Reduced
from untuned.parts.part import Part
from untuned.parts.place import Frame
from untuned.recipe.fuse import Stage
from untuned.recipe.recipe import COMPENSATION, LOW_PRECISION, Group

BLOCK = 65536  # elements


def hyper(group: Group, letter: Hyper) -> Any:
    value = group[letter.key]
    if letter.index is not None:
        value = value[letter.index]
    return value.detach().double().reshape(()) if isinstance(value, torch.Tensor) else value


def in_memory(t: torch.Tensor) -> torch.Tensor:
    """The elements of a tensor that fills one block of memory, in their order there."""
    return t.view(-1) if t.is_contiguous() else t.permute(0, 2, 3, 1).view(-1)


class ElementFrame(Frame):
    """One tensor (its local shard), or a block of its memory, in one sweep: loads in the arithmetic dtype, stores on
    `commit`."""

    def __init__(self, now: Now, bucket: Bucket, i: int, every: int = 1, block: slice | None = None) -> None:
        super().__init__(bucket.parts)
        self.now, self.bucket, self.i, self.every, self.block = now, bucket, i, every, block
        self.param, self.held = bucket.params[i], bucket.held(i)
        self.loads: dict[str, torch.Tensor] = {}
        self.fresh: dict[str, Any] = {}

    def _target(self, key: str) -> torch.Tensor:
        return self.view(self.param.detach() if key == "p" else self.held[key])

    def view(self, t: torch.Tensor) -> torch.Tensor:
        return local(t) if self.block is None else in_memory(local(t))[self.block]

    def slot(self, key: str) -> Any:
        return self.fresh[key] if key in self.fresh else self.load(key)

    def load(self, key: str) -> torch.Tensor:
        """A slot, the parameter "p" or its gradient "g" as it was given."""
        if key not in self.loads:
            t = self.view(self.param.grad) if key == "g" and self.param.grad is not None else self._target(key)
            t = t.float() if t.dtype in LOW_PRECISION else t
            if key == "p" and COMPENSATION in self.held:
                exact = t + self._target(COMPENSATION)
                t = torch.where(exact.to(self.param.dtype) == t, exact, t)  # else the weights were set from outside
            self.loads[key] = sliced(t, self.every) if t.numel() == self.param.numel() else t  # of a slice or a block
        return self.loads[key]

    def number(self, part: Part, declared: Number) -> Any:
        if part.per_tensor(declared):
            return self._spread(part, declared, local(self.held[declared.key]))
        return self.bucket.group[declared.key].to(self.bucket.device)

    def number_before(self, part: Part, declared: Number) -> Any:
        key, before = declared.key, self.bucket.before
        if not part.per_tensor(declared):
            before = self.now.before.get(id(self.bucket.group["params"]), self.bucket.group)
            return before[key].to(self.bucket.device)
        if not before:
            return self.number(part, declared)
        first = sum(row_count(local(p)) for p in self.bucket.params[: self.i])
        rows = slice(first, first + row_count(local(self.param)))
        return self._spread(part, declared, before[key][rows if part.per_row(declared) else self.i])

    def _spread(self, part: Part, declared: Number, value: torch.Tensor) -> torch.Tensor:
        """A number of each row, shaped so that it meets the elements of its row; other numbers as they are."""
        dim = self.param.dim()
        return value.view(value.shape[:dim] + (1,) * (dim - 1)) if part.per_row(declared) else value

    def hyper(self, part: Part, letter: Hyper) -> Any:
        return hyper(self.bucket.group, letter)

    def signal(self, key: str) -> Any:
        return self.now.signals[key].to(self.bucket.device)

    def _given(self) -> torch.Tensor:
        g = -self.load("g") if self.now.recipe.maximize else self.load("g")
        return g if self.now.recipe.clip_grad_norm is None else g * self.now.clip.to(g.device)

    letters: ClassVar[dict[str, Callable[[ElementFrame], Any]]] = {
        "p": lambda f: f.slot("p"),
        "given": lambda f: f._given(),
        "t": lambda f: f.bucket.t[f.i],
        "rho": lambda f: f.bucket.numbers["rho"][f.i],
        "k": lambda f: f.bucket.group["steps"].to(f.bucket.device),
        "top": lambda f: f.now.top,
    }

    def engine(self, name: str) -> Any:
        return self.letters[name](self) if name in self.letters else super().engine(name)

    def old(self) -> Frame:
        if not self.fresh:
            return self
        old = type(self)(self.now, self.bucket, self.i, self.every, self.block)
        old.loads = self.loads
        return old

    def write(self, part: Part, name: str, value: Any) -> None:
        self.fresh[self.written(part, name)] = value

    def commit(self) -> None:
        on = self.bucket.on
        for key, value in self.fresh.items():
            if any(value is held for held in self.loads.values()):  # of another slot, which may be stored to first
                self.fresh[key] = value.clone()
        if "p" in self.fresh and COMPENSATION in self.held:
            self.fresh[COMPENSATION] = self.fresh["p"] - self.fresh["p"].to(self.param.dtype)
        for key, value in self.fresh.items():
            target = self._target(key)
            if self.now.recipe.stochastic_rounding and target.dtype == torch.bfloat16 and self.bucket.noise is not None:
                first = 0 if self.block is None else self.block.start
                value = rounding.to_bfloat16(value, self.bucket.noise[self.i], key, first)
            target.copy_(value if on is None else torch.where(on, value.to(target.dtype), target))


class WholeFrame(ElementFrame):
    """One tensor as a whole, gathered from the ranks that hold its shards, for matrix math."""

    def view(self, t: torch.Tensor) -> torch.Tensor:
        return whole(t)

    def commit(self) -> None:
        shard = ElementFrame(self.now, self.bucket, self.i)
        shard.fresh = {key: placed_like(self.held[key], value) for key, value in self.fresh.items()}
        shard.loads = self.loads
        shard.commit()


def run(now: Now, stage: Stage, bucket: Bucket, i: int) -> list[torch.Tensor]:
    """Run a stage on one tensor of a bucket, store what its verbs wrote, and return its reductions, one per row of the
    tensor if the recipe has any of rows, else each a scalar."""
    found: list[list[torch.Tensor]] = []
    by_rows = now.recipe.by_rows
    kinds: list[str] = []
    for block in _blocks(bucket, i, stage, by_rows):
        frame = WholeFrame(now, bucket, i) if stage.whole else ElementFrame(now, bucket, i, stage.every, block)
        reductions = [one for of_role in stage.run(frame).values() for one in of_role]
        frame.commit()
        kinds = [one.kind for one in reductions]
        found.append([_reduced(one, frame.load("p"), by_rows) for one in reductions])
    joined = [torch.stack(of_blocks) for of_blocks in zip(*found, strict=True)]
    return [t.amax(0) if kind == "max" else t.sum(0) for t, kind in zip(joined, kinds, strict=True)]


def _reduced(one: Reduced, like: torch.Tensor, by_rows: bool) -> torch.Tensor:
    values = torch.as_tensor(
        one.value, dtype=like.dtype if not torch.is_tensor(one.value) else None, device=like.device
    )
    values = values.expand_as(like)
    rows = row_count(values) if by_rows else 1
    values = values.reshape(rows, values.numel() // max(rows, 1))
    if one.kind == "max":
        return torch.cat([values.double(), values.new_zeros(len(values), 1, dtype=torch.float64)], 1).amax(1)
    return values.sum(1, dtype=torch.float64)


def _blocks(bucket: Bucket, i: int, stage: Stage, by_rows: bool) -> list[slice] | list[None]:
    """The blocks of a tensor whose streams lie in one piece of memory each, in equal order; else it is one."""
    p = bucket.params[i]
    if stage.every > 1 or stage.whole or by_rows or bucket.device.type != "cpu" or p.numel() <= BLOCK:
        return [None]
    x, streams = local(p), [local(t) for t in (p.grad, *bucket.held(i).values()) if t is not None and t.dim()]
    if not in_one_block(x, streams):
        return [None]
    return [slice(first, first + BLOCK) for first in range(0, x.numel(), BLOCK)]

"""How a place resolves its names: on the elements of one tensor, or on the scalars of one decision."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportPrivateImportUsage=false
# torch's stubs leave types unknown, and its multi-tensor functions have private names.

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from untuned.core import rounding
from untuned.core.buckets import Bucket, Group, local, sliced
from untuned.core.declare import Hyper, Number
from untuned.core.place import Frame, Place, where
from untuned.core.totals import joined, over_shards

if TYPE_CHECKING:
    from untuned.core.engine import Optimizer
    from untuned.core.parts import Part

LOW_PRECISION = (torch.bfloat16, torch.float16)
COMPENSATION = "compensation"  # what rounding took from a low-precision parameter: x.p is their sum


def number_from(value: Any, device: torch.device) -> torch.Tensor:
    """A number of the optimizer: float64, since it is a sum over the model and enters every element."""
    if isinstance(value, float):  # as_tensor would copy from the host, which a CUDA graph cannot capture
        return torch.full((), value, dtype=torch.float64, device=device)
    return torch.as_tensor(value, dtype=torch.float64, device=device)


def in_memory(t: torch.Tensor) -> torch.Tensor:
    """The elements of a tensor that fills one block of memory, in their order there."""
    return t.view(-1) if t.is_contiguous() else t.permute(0, 2, 3, 1).view(-1)


def _hyper(group: Group, letter: Hyper) -> Any:
    value = group[letter.key]
    if letter.index is not None:
        value = value[letter.index]
    return value.detach().double().reshape(()) if isinstance(value, torch.Tensor) else value


class ElementFrame(Frame):
    """One tensor (its local shard), or a block of its memory, in one sweep: loads in the arithmetic dtype, stores on
    `commit`."""

    def __init__(self, opt: Optimizer, bucket: Bucket, i: int, every: int = 1, block: slice | None = None) -> None:
        super().__init__(opt.parts)
        self.opt, self.bucket, self.i, self.every, self.block = opt, bucket, i, every, block
        self.param = bucket.params[i]
        self.state = opt.state[self.param]
        self.loads: dict[str, torch.Tensor] = {}
        self.fresh: dict[str, Any] = {}

    def _target(self, key: str) -> torch.Tensor:
        return self._seen(self.param.detach() if key == "p" else self.state[key])

    def _seen(self, t: torch.Tensor) -> torch.Tensor:
        return local(t) if self.block is None else in_memory(local(t))[self.block]

    def load(self, key: str) -> torch.Tensor:
        if key not in self.loads:
            t = self._target(key)
            t = t.float() if t.dtype in LOW_PRECISION else t
            if key == "p" and COMPENSATION in self.state:
                exact = t + self._target(COMPENSATION)
                t = torch.where(exact.to(self.param.dtype) == t, exact, t)  # else the weights were set from outside
            self.loads[key] = sliced(t, self.every) if key == "p" else t
        return self.loads[key]

    def gradient_as_given(self) -> torch.Tensor:
        assert self.param.grad is not None
        g = sliced(self._seen(self.param.grad), self.every)
        return g.float() if g.dtype in LOW_PRECISION else g

    def _raw_gradient(self) -> torch.Tensor:
        g = self.gradient_as_given()
        g = -g if self.opt.maximize else g
        return g if self.opt.clip_grad_norm is None else g * self.opt.clip.to(g.device)

    def _gradient(self) -> Any:
        if "g" not in self.loads:
            self.loads["g"] = self.parts["decay"].gradient(self.place("decay"), self._raw_gradient())
        return self.loads["g"]

    def slot(self, key: str) -> Any:
        return self.fresh[key] if key in self.fresh else self.load(key)

    def number(self, part: Part, declared: Number) -> Any:
        if part.per_tensor(declared):
            return self.state[declared.key]
        return self.bucket.group[declared.key].to(self.bucket.device)

    def number_before(self, part: Part, declared: Number) -> Any:
        if not part.per_tensor(declared):
            before = self.opt.before.get(id(self.bucket.group["params"]), self.bucket.group)
            return before[declared.key].to(self.bucket.device)
        return self.bucket.before[declared.key][self.i] if self.bucket.before else self.state[declared.key]

    def hyper(self, part: Part, letter: Hyper) -> Any:
        return _hyper(self.bucket.group, letter)

    letters: ClassVar[dict[str, Callable[[ElementFrame], Any]]] = {
        "p": lambda f: f.slot("p"),
        "g": lambda f: f._gradient(),
        "raw": lambda f: f._raw_gradient(),
        "t": lambda f: f.bucket.t[f.i],
        "rho": lambda f: f.bucket.numbers["rho"][f.i],
        "k": lambda f: f.bucket.group["steps"].to(f.bucket.device),
        "top": lambda f: f.opt.top,
    }

    def public(self, name: str) -> Any:
        return self.letters[name](self) if name in self.letters else super().public(name)

    def read(self, part: Part, name: str) -> Any:
        if name == "old":
            old = ElementFrame(self.opt, self.bucket, self.i, self.every, self.block)
            old.loads = self.loads
            return Place(old, part)
        return super().read(part, name)

    def write(self, part: Part, name: str, value: Any) -> None:
        self.fresh[self.written(part, name)] = value

    def commit(self) -> None:
        on = self.bucket.on
        for key, value in self.fresh.items():
            if any(value is held for held in self.loads.values()):  # of another slot, which may be stored to first
                self.fresh[key] = value.clone()
        if "p" in self.fresh and COMPENSATION in self.state:
            self.fresh[COMPENSATION] = self.fresh["p"] - self.fresh["p"].to(self.param.dtype)
        for key, value in self.fresh.items():
            target = self._target(key)
            if self.opt.stochastic_rounding and target.dtype == torch.bfloat16 and self.bucket.noise is not None:
                first = 0 if self.block is None else self.block.start
                value = rounding.to_bfloat16(value, self.bucket.noise[self.i], key, first)
            target.copy_(value if on is None else torch.where(on, value.to(target.dtype), target))


class ScalarFrame(Frame):
    """The scalars of one decision: of the model, of a group, or of all live tensors of a group as vectors.

    `in_numpy`: as NumPy's, in the same memory, since an operation on these costs less than one of torch's.
    """

    def __init__(self, opt: Optimizer, part: Part, buckets: list[Bucket], in_numpy: bool) -> None:
        super().__init__(opt.parts)
        self.opt, self.scope, self.buckets, self.fresh = opt, part.scope, buckets, dict[str, Any]()
        self.in_numpy = in_numpy and all(device.type == "cpu" for device in (opt.device, *(b.device for b in buckets)))
        self.group = buckets[0].group if part.scope != "model" else opt.param_groups[0]
        self.on, self.on_rows = self.seen(opt.on_any(buckets)), self.seen(opt.on_rows(buckets))

    def seen(self, value: Any) -> Any:
        return value.numpy() if self.in_numpy and isinstance(value, torch.Tensor) else value

    def number(self, part: Part, declared: Number) -> Any:
        if not part.per_tensor(declared):
            return self.fresh.get(declared.key, self.seen(self.group[declared.key]))
        held = self._per_tensor(declared.key)
        if self.scope == "model" and any(isinstance(b.group["lr"], torch.Tensor) for b in self.buckets):
            held = where(self.on_rows, held, 0.0)  # a tensor that rests is not in the model
        return held

    def number_before(self, part: Part, declared: Number) -> Any:
        if not part.per_tensor(declared):
            return self.seen(self.opt.before[id(self.group["params"])][declared.key])
        return self.seen(joined([b.before[declared.key].to(self.opt.device) for b in self.buckets]))

    def total(self, local: Any) -> Any:
        return self.seen(over_shards(torch.as_tensor(local), self.opt.shard_group)) if self.opt.shard_group else local

    def hyper(self, part: Part, letter: Hyper) -> Any:
        return self.seen(_hyper(self.group, letter))

    def public(self, name: str) -> Any:
        if name == "k" or (name == "t" and self.scope == "model"):
            return self.seen(self.group["steps"])
        if name == "top":
            return self.seen(self.opt.top)
        if name == "loss" and self.opt.loss is not None:
            return self.seen(self.opt.loss)
        if name == "ids" and self.opt.sample_ids is not None:
            return self.opt.sample_ids
        if name == "t":
            steps = self.seen(joined([b.t.to(self.opt.device) for b in self.buckets]))
            return steps if self.scope == "tensor" else steps.max() if len(steps) else self.seen(self.group["steps"])
        if name == "rho" and self.scope == "tensor":
            return self._per_tensor("rho")
        return super().public(name)

    def _per_tensor(self, key: str) -> Any:
        held = self.fresh.get(key)
        return self.seen(joined([b.numbers[key].to(self.opt.device) for b in self.buckets])) if held is None else held

    def write(self, part: Part, name: str, value: Any) -> None:
        key = self.written(part, name, Number)
        value = np.asarray(value, dtype=np.float64) if self.in_numpy else number_from(value, self.opt.device)
        # A number that cannot be updated keeps its value: an estimate must survive an overflow in a sum.
        good = abs(value) < math.inf
        if key in self.buckets[0].numbers:
            old, on = self._per_tensor(key), self.on_rows
            on = on if on is True else on.reshape(-1, *[1] * (old.ndim - 1))
            self.fresh[key] = where(on & good, value, old)
        else:
            self.fresh[key] = where(self.on & good.all(), value, self.read(part, name))

    def commit(self) -> None:
        """Change the numbers, in place; until then what the decision has read stays as it was."""
        for key, value in self.fresh.items():
            first = 0
            for b in self.buckets if key in self.buckets[0].numbers else ():
                self.seen(b.numbers[key])[...] = value[first : (first := first + len(b.params))]
            if key not in self.buckets[0].numbers:
                self.seen(self.group[key])[...] = value
                for group in self.opt.param_groups if self.scope == "model" else ():
                    group[key] = self.group[key]


class DryFrame(Frame):
    """A decision on ones, to learn which hyper-parameters it reads: `read_keys` holds (part, key)."""

    def __init__(self, parts: dict[str, Any], ones: Callable[[int], Any]) -> None:
        super().__init__(parts)
        self.ones = ones
        self.read_keys: list[tuple[str, str]] = []

    def number(self, part: Part, declared: Number) -> Any:
        first = getattr(part, declared.first) if isinstance(declared.first, str) else declared.first
        size = part.length(declared) if declared.size else len(first) if isinstance(first, tuple) else 1
        return self.ones(size)

    number_before = number

    def hyper(self, part: Part, letter: Hyper) -> Any:
        self.read_keys.append((part.name, letter.key))
        return _hyper(part.hypers(), letter)

    def public(self, name: str) -> Any:
        return torch.zeros(1, dtype=torch.int64) if name == "ids" else self.ones(1)

    def write(self, part: Part, name: str, value: Any) -> None:
        self.written(part, name, Number)

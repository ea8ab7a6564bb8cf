"""Which tensors take part in a step, grouped by what a sweep must know about them."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportPrivateImportUsage=false
# torch's stubs leave types unknown, and its multi-tensor functions have private names.

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable
from itertools import accumulate, compress, repeat
from operator import attrgetter, is_, is_not
from typing import Any

import torch
import torch.distributed as dist

from untuned.parts.place import Parts
from untuned.recipe.recipe import Group, Recipe

States = dict[torch.Tensor, dict[str, torch.Tensor]]


def number_from(value: Any, device: torch.device) -> torch.Tensor:
    """A number of the optimizer: float64, since it is a sum over the model and enters every element."""
    if isinstance(value, float):  # as_tensor would copy from the host, which a CUDA graph cannot capture
        return torch.full((), value, dtype=torch.float64, device=device)
    return torch.as_tensor(value, dtype=torch.float64, device=device)


def joined(blocks: list[torch.Tensor]) -> torch.Tensor:
    """Blocks of rows, one per bucket, as one table."""
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def _is_distributed(t: Any) -> bool:
    """Whether t is a DTensor; importing that class takes as long as torch itself, and who has one has imported it."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(t, module.DTensor)


def local(t: Any) -> torch.Tensor:
    """The shard of t on this process; t itself if it is not sharded."""
    return t.to_local() if _is_distributed(t) else t


def whole(t: Any) -> torch.Tensor:
    """t gathered from all ranks that hold shards of it."""
    return t.full_tensor() if _is_distributed(t) else t


def placed_like(t: Any, value: torch.Tensor) -> torch.Tensor:
    """This process's shard of a whole value, as t is sharded."""
    if not _is_distributed(t):
        return value
    tensor = sys.modules["torch.distributed.tensor"]
    everywhere = [tensor.Replicate()] * t.device_mesh.ndim
    spread = tensor.DTensor.from_local(value, t.device_mesh, everywhere, run_check=False)
    return spread.redistribute(placements=t.placements).to_local()


def in_one_block(x: torch.Tensor, others: Iterable[torch.Tensor]) -> bool:
    """Whether the elements of x fill one block of memory, and those of the others lie in equal order."""
    fills = x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))
    return fills and all(t.shape == x.shape and t.stride() == x.stride() for t in others)


def sliced(t: torch.Tensor, every: int) -> torch.Tensor:
    """Every so many elements of t, as a vector; t itself for 1."""
    if every == 1:
        return t.detach()
    if _is_distributed(t):
        raise TypeError("slots of every n-th element (slice_p) need parameters that are not sharded: use slice_p=1.")
    return t.detach().flatten()[::every]


def row_count(t: torch.Tensor) -> int:
    """A row is a slice along the first dimension; a tensor with fewer than two is one row."""
    return len(t) if t.dim() > 1 else 1


def of_rows(p: Any, value: torch.Tensor) -> torch.Tensor:
    """A number for each row of p, placed on the ranks as the rows are."""
    if not _is_distributed(p):
        return value.repeat(row_count(p))
    tensor = sys.modules["torch.distributed.tensor"]
    by_row = [one if p.dim() > 1 and one.is_shard(0) else tensor.Replicate() for one in p.placements]
    shared = {"device_mesh": p.device_mesh, "placements": by_row}
    return tensor.full((row_count(p),), value.item(), dtype=value.dtype, **shared)


def device_of(groups: list[Group]) -> torch.device:
    """Where the numbers live: the device of the first parameter; that of the process group if this rank has none."""
    if (first := next((p for group in groups for p in group["params"]), None)) is not None:
        return first.device
    by_gpu = dist.is_available() and dist.is_initialized() and dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if by_gpu else torch.device("cpu")


def domain(p: Any, of_rows: bool = False) -> tuple[Any, ...]:
    """The process groups over which sums of p's elements must be added: one per mesh axis that shards p.

    `of_rows`: sums of its rows, which an axis that shards the first dimension leaves whole.
    """
    if not _is_distributed(p):
        return ()
    axes = ((axis, one) for axis, one in enumerate(p.placements) if not one.is_replicate())
    whole = of_rows and p.dim() > 1
    return tuple(p.device_mesh.get_group(axis) for axis, one in axes if not (whole and one.is_shard(0)))


@dataclasses.dataclass
class Bucket:
    """Parameters of one group with the same device and sharding, in group order, and their scalars in this step."""

    group: Group
    params: list[torch.Tensor]
    states: list[dict[str, torch.Tensor]]  # their slots, counters and numbers
    device: torch.device
    domain: tuple[Any, ...]
    parts: Parts  # that serve the group
    row_domain: tuple[Any, ...] = ()  # as domain, for sums of rows
    source: tuple[int, list[int]] = (0, [])  # index of its group, and of its tensors among the live ones there
    grads: list[torch.Tensor] = dataclasses.field(default_factory=list)
    numbers: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)  # counters and numbers, a row per tensor
    on: torch.Tensor | None = None  # bool: whether this step may change anything; None if it surely may
    t: torch.Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0))  # steps each has taken, float64
    before: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)  # numbers when the step began
    positions: torch.Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0))  # among all parameters
    noise: torch.Tensor | None = None  # for each tensor, what the random bits of this step follow from
    begun: bool = False  # whether all have surely taken a step
    scratch: list[dict[str, torch.Tensor]] = dataclasses.field(default_factory=list)
    ends: list[int] = dataclasses.field(default_factory=lambda: [0])  # of each tensor's reductions: one, or one per row
    owners: torch.Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0))  # the tensor of each row

    def number(self, key: str) -> torch.Tensor:
        """A number of all tensors: a row for each, or for each row of each in this process."""
        if key in self.numbers:
            return self.numbers[key]
        return torch.cat([local(held[key]) for held in self.states] or [number_from(0.0, self.device).new_zeros(0)])

    def held(self, i: int) -> dict[str, torch.Tensor]:
        """What verbs may read of a tensor besides it and its gradient."""
        return self.states[i] | self.scratch[i] if self.scratch else self.states[i]


def check_gradient(name: str, p: Any) -> None:
    g = p.grad
    if g.layout != torch.strided:
        raise TypeError(f"{name}: gradients must be dense, not {g.layout}. Use sparse=False in the embedding layer.")
    if _is_distributed(p) and (not _is_distributed(g) or g.placements != p.placements):
        placed = g.placements if _is_distributed(g) else "a plain tensor"
        raise TypeError(
            f"{name}: a gradient must be placed like its parameter, {tuple(p.placements)}, not {placed}. Redistribute."
        )


_gradient = attrgetter("grad")
Live = tuple[list[torch.Tensor], list[torch.Tensor]]  # parameters and their gradients


def takes_part(group: Group) -> Live:
    """The parameters of a group that have a gradient, and their gradients; none if its lr is 0.

    `map` is several times as fast as a loop, which counts in a step on thousands of small tensors.
    """
    lr, params = group["lr"], group["params"]
    if not isinstance(lr, torch.Tensor) and lr == 0:
        return [], []
    grads = list(map(_gradient, params))
    has = list(map(is_not, grads, repeat(None)))
    return (list(params), grads) if all(has) else (list(compress(params, has)), list(compress(grads, has)))


def take_gradients(buckets: list[Bucket], live: list[Live]) -> None:
    for bucket in buckets:
        number, places = bucket.source
        grads = live[number][1]
        bucket.grads = grads if len(places) == len(grads) else [grads[place] for place in places]


def same_objects(these: list[Any], those: list[Any]) -> bool:
    return len(these) == len(those) and all(map(is_, these, those))


def arrange(live: list[Live], recipe: Recipe, groups: list[Group], states: States) -> list[Bucket]:
    """Buckets of the parameters that take part."""
    buckets: list[Bucket] = []
    for number, (group, (params, _)) in enumerate(zip(groups, live, strict=True)):
        here: dict[Any, Bucket] = {}
        for place, p in enumerate(params):
            key = p.device, domain(p), domain(p, of_rows=True) if recipe.by_rows else ()
            if key not in here:
                here[key] = Bucket(group, [], [], *key[:2], recipe.of(group), key[2], (number, []))
            here[key].params.append(p)
            here[key].states.append(states[p])
            here[key].source[1].append(place)
        buckets += here.values()
    for bucket in buckets:
        counts = [row_count(local(p)) if recipe.by_rows else 1 for p in bucket.params]
        bucket.ends = list(accumulate(counts, initial=0))
        bucket.owners = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(bucket.device)
    return buckets

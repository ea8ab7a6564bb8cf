"""Which tensors take part in a step, grouped by what a sweep must know about them."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportPrivateImportUsage=false
# torch's stubs leave types unknown, and its multi-tensor functions have private names.

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable
from itertools import compress, repeat
from operator import attrgetter, is_, is_not
from typing import Any

import torch

Group = dict[str, Any]


def _is_distributed(t: Any) -> bool:
    """Whether t is a DTensor; importing that class takes as long as torch itself, and who has one has imported it."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(t, module.DTensor)


def local(t: Any) -> torch.Tensor:
    """The shard of t on this process; t itself if it is not sharded."""
    return t.to_local() if _is_distributed(t) else t


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


def domain(p: Any) -> tuple[Any, ...]:
    """The process groups over which sums of p's elements must be added: one per mesh axis that shards p."""
    if not _is_distributed(p):
        return ()
    mesh = p.device_mesh
    return tuple(mesh.get_group(axis) for axis, placement in enumerate(p.placements) if not placement.is_replicate())


@dataclasses.dataclass
class Bucket:
    """Parameters of one group with the same device and sharding, in group order, and their scalars in this step."""

    group: Group
    params: list[torch.Tensor]
    states: list[dict[str, torch.Tensor]]  # their slots, counters and numbers
    device: torch.device
    domain: tuple[Any, ...]
    source: tuple[int, list[int]] = (0, [])  # the number of its group, and its places among the live tensors there
    grads: list[torch.Tensor] = dataclasses.field(default_factory=list)
    numbers: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)  # counters and numbers, a row per tensor
    on: torch.Tensor | None = None  # bool: whether this step may change anything; None if it surely may
    t: torch.Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0))  # steps each has taken, float64
    before: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)  # numbers when the step began
    positions: torch.Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0))  # among all parameters
    noise: torch.Tensor | None = None  # for each tensor, what the random bits of this step follow from
    begun: bool = False  # whether all have surely taken a step


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
    """The parameters of a group that have a gradient, and these; none if its lr is 0.

    `map` is several times as fast as a loop, which counts in a step on thousands of small tensors.
    """
    lr, params = group["lr"], group["params"]
    if not isinstance(lr, torch.Tensor) and lr == 0:
        return [], []
    grads = list(map(_gradient, params))
    has = list(map(is_not, grads, repeat(None)))
    return (list(params), grads) if all(has) else (list(compress(params, has)), list(compress(grads, has)))


def same_objects(these: list[Any], those: list[Any]) -> bool:
    return len(these) == len(those) and all(map(is_, these, those))


def arrange(live: list[Live], groups: list[Group], states: dict[torch.Tensor, dict[str, torch.Tensor]]) -> list[Bucket]:
    """Buckets of the parameters that take part."""
    buckets: list[Bucket] = []
    for number, (group, (params, _)) in enumerate(zip(groups, live, strict=True)):
        here: dict[Any, Bucket] = {}
        for place, p in enumerate(params):
            key = (p.device, domain(p))
            if key not in here:
                here[key] = Bucket(group, [], [], p.device, key[1], (number, []))
            here[key].params.append(p)
            here[key].states.append(states[p])
            here[key].source[1].append(place)
        buckets += here.values()
    return buckets

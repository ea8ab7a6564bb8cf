"""Which tensors take part in a step, grouped by what a sweep must know about them."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportPrivateImportUsage=false
# torch's stubs leave types unknown, and its multi-tensor functions have private names.

from __future__ import annotations

import dataclasses
import sys
from itertools import compress, repeat
from operator import attrgetter, is_not
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
    numbers: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)  # counters and numbers, a row per tensor
    views: dict[str, list[torch.Tensor]] = dataclasses.field(
        default_factory=dict
    )  # these rows, as the states hold them
    on: torch.Tensor | None = None  # bool: whether this step may change anything; None if it surely may
    t: torch.Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0))  # steps each has taken, float64
    before: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)  # numbers when the step began
    positions: torch.Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0))  # among all parameters
    noise: torch.Tensor | None = None  # for each tensor, what the random bits of this step follow from
    begun: bool = False  # whether the start-point slots of all are filled


def check_gradient(name: str, p: Any) -> None:
    g = p.grad
    if g.layout != torch.strided:
        raise TypeError(f"{name}: gradients must be dense, not {g.layout}. Use sparse=False in the embedding layer.")
    if _is_distributed(p) and (not _is_distributed(g) or g.placements != p.placements):
        placed = g.placements if _is_distributed(g) else "a plain tensor"
        raise TypeError(
            f"{name}: a gradient must be placed like its parameter {tuple(p.placements)}, not {placed}. "
            f"Redistribute it before step()."
        )


gradient = attrgetter("grad")


def takes_part(group: Group) -> list[torch.Tensor]:
    """The parameters of a group that have a gradient; none if its lr is 0."""
    lr, params = group["lr"], group["params"]
    if not isinstance(lr, torch.Tensor) and lr == 0:
        return []
    return list(compress(params, map(is_not, map(gradient, params), repeat(None))))


def signature(groups: list[Group], states: dict[torch.Tensor, dict[str, torch.Tensor]]) -> list[object]:
    """Which tensors take part, and which dictionaries hold their state: to compare with the step before.

    `map` is several times as fast as a loop, which counts in a step on thousands of small tensors.
    """
    live = list(map(takes_part, groups))
    held = (map(states.get, params) for params in live)
    return [list(map(id, groups)), *(list(map(id, params)) for params in live), *(list(map(id, ds)) for ds in held)]


def arrange(groups: list[Group], states: dict[torch.Tensor, dict[str, torch.Tensor]]) -> list[Bucket]:
    """Buckets of the parameters that take part: those with a gradient, in groups whose lr is not 0."""
    buckets: list[Bucket] = []
    for group in groups:
        here: dict[Any, Bucket] = {}
        for p in takes_part(group):
            key = (p.device, domain(p))
            if key not in here:
                here[key] = Bucket(group, [], [], p.device, key[1])
            here[key].params.append(p)
            here[key].states.append(states[p])
        buckets += here.values()
    return buckets

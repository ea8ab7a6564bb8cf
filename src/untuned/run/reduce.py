"""Reductions over buckets, shards and ranks: every element counted exactly once, the same result on all ranks."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportPrivateImportUsage=false
# torch's stubs leave types unknown, and its multi-tensor functions have private names.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from untuned.memory.buckets import Bucket, joined
from untuned.parts.math import Reduced


def by_kind(ones: Sequence[Reduced], added: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """Of values [..., reductions], sums for some and maxima for others, those that were asked for.

    A maximum over ranks may overlook a NaN, a sum does not.
    """
    largest = torch.where(added.isnan(), added, largest)
    return torch.stack([(largest if one.kind == "max" else added)[..., j] for j, one in enumerate(ones)], -1)


def over_groups(values: torch.Tensor, groups: tuple[Any, ...], ones: Sequence[Reduced] = ()) -> torch.Tensor:
    """Values [..., reductions] of this rank, reduced over process groups, each reduction in its kind."""
    if not groups:
        return values
    added, largest, maxima = values.clone(), values.clone(), any(one.kind == "max" for one in ones)
    for group in groups:
        dist.all_reduce(added, group=group)
        if maxima:
            dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
    return by_kind(ones, added, largest) if maxima else added


def gather(
    buckets: list[Bucket], blocks: list[torch.Tensor], device: torch.device, ones: list[Reduced]
) -> torch.Tensor:
    """Rows of reductions, one per live tensor bucket by bucket, from one block [tensors, reductions] per bucket.

    One packed collective per sharding domain; within a bucket the tensors of all ranks are the same, in the same order.
    """
    for domain in dict.fromkeys(bucket.domain for bucket in buckets if bucket.domain):
        members = [i for i, bucket in enumerate(buckets) if bucket.domain == domain]
        packed = over_groups(torch.cat([blocks[i] for i in members]), domain, ones)
        for i, part in zip(members, packed.split([len(blocks[i]) for i in members]), strict=True):
            blocks[i] = part
    return joined([block.to(device) for block in blocks])


def over_shards(values: torch.Tensor, group: Any, ones: Sequence[Reduced] = ()) -> torch.Tensor:
    """Reductions over this process's tensors, reduced further over a group whose ranks hold different tensors."""
    group = process_group(group)
    return values if group is None else over_groups(values, (group,), ones)


def process_group(group: Any) -> Any:
    """The process group of an option: a process group, "world" (all ranks, if there are any) or None (off)."""
    if group is None or not (dist.is_available() and dist.is_initialized()):
        return None
    return dist.group.WORLD if group == "world" else group


def mean_over_ranks(loss: torch.Tensor, numbers: list[torch.Tensor], group: Any, share: float = 1.0) -> Any:
    """The mean of every rank's loss; and whether numbers that should be equal on all ranks differ from their means.

    They go with the loss, so that this costs no collective of its own, and nobody waits for a rank that does not ask.
    The share of a rank that has run out of batches is 0.
    """
    if (group := process_group(group)) is None:
        return loss, False
    here = torch.cat([value.reshape(-1) for value in (loss, torch.ones_like(loss), *numbers)])
    mean = share * here
    dist.all_reduce(mean, group=group)
    mean = mean / mean[1]
    return mean[0], ((mean - here)[2:].abs() > 1e-6 * mean[2:].abs()).any()


def size(group: Any) -> int:
    """How many ranks a process group of an option has."""
    group = process_group(group)
    return 1 if group is None else dist.get_world_size(group)


def of_all_ranks(name: str, ids: torch.Tensor, group: Any) -> torch.Tensor:
    """Every rank's sample ids, one after the other; every rank gives as many."""
    if (group := process_group(group)) is None:
        if size("world") > 1:
            raise ValueError(f"{name}: loss_group=None would record other samples on every rank. Leave it at 'world'.")
        return ids
    parts = [torch.empty_like(ids) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, ids, group=group)
    return torch.cat(parts)

"""Sums over buckets, shards and ranks: every element counted exactly once, the same result on all ranks."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportPrivateImportUsage=false
# torch's stubs leave types unknown, and its multi-tensor functions have private names.

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from untuned.core.buckets import Bucket


def gather(buckets: list[Bucket], blocks: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Rows of sums, one per live tensor bucket by bucket, from one block [tensors, sums] per bucket.

    One packed collective per sharding domain; within a bucket the tensors of all ranks are the same, in the same order.
    """
    for domain in dict.fromkeys(bucket.domain for bucket in buckets if bucket.domain):
        members = [i for i, bucket in enumerate(buckets) if bucket.domain == domain]
        packed = torch.cat([blocks[i] for i in members])
        for group in domain:
            dist.all_reduce(packed, group=group)
        for i, part in zip(members, packed.split([len(blocks[i]) for i in members]), strict=True):
            blocks[i] = part
    return joined([block.to(device) for block in blocks])


def joined(blocks: list[torch.Tensor]) -> torch.Tensor:
    """Blocks of rows, one per bucket, as one table."""
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def over_shards(sums: torch.Tensor, group: Any) -> torch.Tensor:
    """Sums over the tensors of this process, added over the ranks of a group in which each holds others."""
    if (group := process_group(group)) is None:
        return sums
    added = sums.clone()
    dist.all_reduce(added, group=group)
    return added


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


def device_without_tensors() -> torch.device:
    """Where a rank that holds no tensor takes part in sums."""
    by_gpu = dist.is_available() and dist.is_initialized() and dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if by_gpu else torch.device("cpu")


def of_all_ranks(name: str, ids: torch.Tensor, group: Any) -> torch.Tensor:
    """Every rank's sample ids, one after the other; every rank gives as many."""
    if (group := process_group(group)) is None:
        if size("world") > 1:
            raise ValueError(f"{name}: loss_group=None would record other samples on every rank. Leave it at 'world'.")
        return ids
    parts = [torch.empty_like(ids) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, ids, group=group)
    return torch.cat(parts)

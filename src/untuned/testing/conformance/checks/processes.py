"""Two processes that train one model: sharded, or replicated with a part of the batch each."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from untuned.testing.conformance.check import DoesNotApply, Harm, check
from untuned.testing.conformance.problem import EVEN, UNEVEN, net, relative, vector
from untuned.testing.conformance.target import Target

STEPS = range(10)


@dataclasses.dataclass(frozen=True)
class World:
    """The place of this process among those that run a check together, and the folder where they meet."""

    rank: int
    size: int
    folder: Path

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """A gloo process group inside the block; it stays after an error.

        If it went, the other process would fail of a lost connection, and that would hide what is wrong.
        """
        where, limit = f"file://{self.folder}/rendezvous", datetime.timedelta(seconds=30)
        dist.init_process_group("gloo", init_method=where, rank=self.rank, world_size=self.size, timeout=limit)
        yield
        dist.destroy_process_group()

    @property
    def rows(self) -> slice:
        return slice(self.rank, None, self.size)


def _alone(target: Target, widths: tuple[int, int, int] = UNEVEN) -> torch.Tensor:
    target.train(model := net(widths=widths), target.build(model), STEPS)
    return vector(model)


def _distance_of_ranks(found: torch.Tensor, world: World) -> float:
    everywhere = [torch.empty_like(found) for _ in range(world.size)]
    dist.all_gather(everywhere, found)
    return max(float((other - everywhere[0]).abs().max()) for other in everywhere)


def _sharded(target: Target, world: World, widths: tuple[int, int, int]) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if target.can("needs_closure"):
        raise DoesNotApply("it flattens all parameters into one vector")
    expected = _alone(target, widths)
    with world.joined():
        fully_shard(model := net(widths=widths), mesh=init_device_mesh("cpu", (world.size,)))
        target.train(model, target.build(model), STEPS, world.rows)
        end = vector(model)
    if (off := relative(end, expected, vector(net(widths=widths)))) > 1e-6:
        raise Harm(f"under FSDP2 two processes train otherwise than one, by {off:.2g} of the way, and nothing says so")


@check("it cannot train a model sharded by FSDP2 (fully_shard)", processes=2)
def fsdp2(target: Target, world: World) -> None:
    """Under FSDP2, each process with its rows and its loss, two processes do what one does."""
    _sharded(target, world, EVEN)


@check("it cannot train a model whose tensors FSDP2 (fully_shard) shards unevenly", processes=2)
def fsdp2_uneven(target: Target, world: World) -> None:
    """The same with shards of different sizes, some empty."""
    _sharded(target, world, UNEVEN)


@check("it cannot train a model replicated by DistributedDataParallel", processes=2)
def ddp(target: Target, world: World) -> None:
    """Under DDP, each process with its rows and its loss, the replicas stay one model, that of one process."""
    from torch.nn.parallel import DistributedDataParallel

    expected = _alone(target)
    lrs: list[dict[str, float]] = [{}]
    if target.can("needs_loss") and (lr := target.make(net()).param_groups[0].get("lr")):
        lrs.append({"lr": 100 * lr})  # where lr is a cap, only a large one lets the loss decide
    ends: list[torch.Tensor] = []
    with world.joined():
        for lr in lrs:
            model = net()
            target.train(DistributedDataParallel(model), target.build(model, **lr), STEPS, world.rows)
            ends.append(vector(model))
            if (apart := _distance_of_ranks(ends[-1], world)) > 0:
                raise Harm(f"the replicas of DDP drift apart, by {apart:.2g} in ten steps, and nothing says so")
    if (off := relative(ends[0], expected, vector(net()))) > 1e-6:
        raise Harm(f"under DDP two processes train otherwise than one, by {off:.2g} of the way")

"""Two processes that train one model: sharded, or replicated with a part of the batch each."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from untuned.testing.conformance.check import DoesNotApply, Harm, check
from untuned.testing.conformance.problem import EVEN, UNEVEN, gradients, net, relative, vector
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


@check("a step in which one of two processes has no gradient (an expert without tokens) does not end", processes=2)
def gradient_on_one_rank(target: Target, world: World) -> None:
    """A step in which one of two processes has no gradient ends, and so do those after it."""
    if target.can("needs_closure"):
        raise DoesNotApply("its closure computes the gradients")
    with world.joined():
        target.train(model := net(), optimizer := target.build(model), range(2))
        before = vector(model)
        gradients(model)
        if world.rank == 1:
            optimizer.zero_grad()
        target.step(optimizer, torch.ones((), dtype=torch.float64))
        if world.rank == 1 and not torch.equal(vector(model), before):
            raise Harm("a step without a gradient in this process moves its weights")
        target.train(model, optimizer, range(2, 4))
        if not torch.isfinite(vector(model)).all():
            raise Harm("a step in which one of two processes has no gradient makes weights infinite or NaN")
        dist.barrier()


def _train_in_join(target: Target, model: nn.Module, world: World) -> None:
    """The second process has two batches more. The replica goes with this function, before the process group does."""
    from torch.nn.parallel import DistributedDataParallel

    replica = DistributedDataParallel(model)
    with replica.join():
        target.train(replica, target.build(model), range(3 + 2 * world.rank), world.rows)


@check("DistributedDataParallel.join(), for processes with different numbers of batches, cannot be used", processes=2)
def ddp_join(target: Target, world: World) -> str | None:
    """Inside DistributedDataParallel.join() processes with more batches go on alone, or it says that it cannot."""
    if target.can("needs_closure"):
        raise DoesNotApply("how often its closure is called may differ between processes")
    refusal = world.folder / "refusal"
    with world.joined():
        model = net()
        try:
            _train_in_join(target, model, world)
            apart = _distance_of_ranks(vector(model), world)
        except Exception as error:
            if "join" in str(error):
                refusal.write_text(str(error))  # for the other process, which fails because this one has left
            elif not _appears(refusal):
                raise Harm(
                    f"inside DistributedDataParallel.join() a process that has more batches than another fails with a "
                    f"riddle, or waits for it: {type(error).__name__}: {str(error)[:100]}"
                ) from None
            return "it says that it does not work with join()"
    if apart > 0:
        raise Harm(f"after DistributedDataParallel.join() the replicas are not one model, they differ by {apart:.2g}")
    return None


def _appears(path: Path, patience: float = 2.0) -> bool:
    deadline = time.monotonic() + patience
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return path.exists()

"""The log of gradient norms in two processes, against that of one process that sees all the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import forked
import processes
import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from untuned.schedules import NormRecorder, tables

pytestmark = pytest.mark.xdist_group("norms_of_ranks")  # its processes serve all tests of the file

STEPS = 6


class Bare(torch.optim.SGD):
    """For the loop of the other tests, which gives every optimizer the loss."""

    def step(self, **_: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().step()


def wrapped(model: nn.Module, how: str) -> nn.Module:
    if how == "replicated":
        return DistributedDataParallel(model)
    if how == "sharded":  # of the last layer one process holds nothing
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    return model


def half(rank: int) -> Any:
    """Each process steps one of two layers, with the gradient of all data."""
    model = processes.network()
    return model, Bare(model.get_submodule(str(2 * rank)).parameters(), lr=0.1)


def recorded(rank: int, folder: Path) -> dict[str, Any]:
    steps = {}
    for how in ("replicated", "sharded"):
        model = processes.network()
        run = wrapped(model, how)
        optimizer = Bare(model.parameters(), lr=0.1)
        recorder = NormRecorder(optimizer, folder / how, every=4)
        processes.train(run, optimizer, range(STEPS - 2), slice(rank, None, 2))  # pyright: ignore[reportArgumentType]
        checkpoint = recorder.state_dict()
        processes.train(run, optimizer, range(STEPS - 2, STEPS), slice(rank, None, 2))  # pyright: ignore[reportArgumentType]
        recorder.close()
        steps[how] = (checkpoint, recorder.state_dict())
    model, optimizer = half(rank)
    recorder = NormRecorder(optimizer, folder / "divided", shard_group="world")
    processes.loss_on(model, 0, slice(None)).backward()
    optimizer.step()
    recorder.close()
    return steps


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("norms") / "ranks"
    counts = {"steps": STEPS - 2}, {"steps": STEPS}
    for rank in forked.run(recorded, folder, 2):
        assert rank == {"replicated": counts, "sharded": counts}
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("norms") / "alone"
    model = processes.network()
    optimizer = Bare(model.parameters(), lr=0.1)
    recorder = NormRecorder(optimizer, path)
    processes.train(model, optimizer, range(STEPS))  # pyright: ignore[reportArgumentType]
    recorder.close()
    return tables.read(path)


@pytest.mark.parametrize(("how", "count"), [("replicated", STEPS), ("sharded", STEPS), ("divided", 1)])
def test_the_norms_are_those_of_the_whole_gradient(how: str, count: int, folder: Path, alone: Any) -> None:
    found = tables.read(folder / how)
    assert found["step"].tolist() == list(range(1, count + 1))
    for name in ("l1", "l2", "lr"):
        assert found[name] == pytest.approx(alone[name][:count], rel=1e-12)

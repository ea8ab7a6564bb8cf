"""Signals over two processes: the same number on both ranks, and a rank that forgets it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import forked
import processes
import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import untuned
from untuned.directions import Gradient
from untuned.iterates import OrderedMomentum
from untuned.step_sizes import Fixed

INDEXES = [0, 0, 1, 0, 3, 2, 6, 4, 7, 5, 8, 10]


def ordered(params: list[Any], **options: Any) -> untuned.Optimizer:
    return untuned.compose(params, Gradient(), Fixed(0.1), OrderedMomentum(workers=3, momentum=0.8), **options)


def two_ranks(rank: int, folder: Path) -> dict[str, Any]:
    """FSDP2, and parameters that each rank holds alone; one rank forgets the index once."""
    found = {}
    for way in ("sharded", "divided"):
        model = processes.network()
        if way == "sharded":
            fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
            params = list(model.parameters())
            optimizer = ordered(params)
        else:
            params = list(model.parameters())[rank::2]
            optimizer = ordered(params, shard_group="world")
        for k, index in enumerate(INDEXES):
            optimizer.zero_grad()
            processes.loss_on(model, k, slice(None)).backward()
            if way == "divided" and k == 6:
                with pytest.raises(
                    ValueError if rank else RuntimeError, match="needs index" if rank else "take no part"
                ):
                    optimizer.step(**({} if rank else {"index": index}))
            optimizer.step(index=index)
            if way == "divided":
                for i, p in enumerate(model.parameters()):
                    torch.distributed.broadcast(p.detach(), i % 2)
        found[way] = processes.vector(model)
    return found


def test_two_processes_are_one(tmp_path: Path) -> None:
    ranks = forked.run(two_ranks, tmp_path / "ranks", 2)
    model = processes.network()
    optimizer = ordered(list(model.parameters()))
    start = processes.vector(model)
    for k, index in enumerate(INDEXES):
        optimizer.zero_grad()
        processes.loss_on(model, k, slice(None)).backward()
        optimizer.step(index=index)
    expected = processes.vector(model)
    assert (expected - start).abs().max() > 0.01
    for found in ranks:
        for way in ("sharded", "divided"):
            torch.testing.assert_close(found[way], expected, rtol=1e-12, atol=1e-12)

"""Maxima and decisions of rows over two processes: shards of rows and of columns, and tensors of other ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import forked
import processes
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import untuned
from untuned.parts import Direction, Place, choice, dot, largest, number, sqrt
from untuned.step_sizes import Fixed

pytestmark = pytest.mark.xdist_group("rows")  # its processes serve all tests of the file

SCOPES = ["model", "group", "tensor", "row"]
EXECUTIONS = ["reference", "auto"]
NUMBERS = ["most", "square"]
STEPS = 6


class Measured(Direction):
    scope: str = choice(default="model", others=("group", "tensor", "row"))
    most = number(0.0)
    square = number(0.0)

    def look(self, x: Place) -> Any:
        return largest(x.g), dot(x.g, x.g)

    def decide(self, c: Place, most: Any, square: Any) -> None:
        c.most, c.square = most, 0.5 * c.square + square

    def unit(self, x: Place) -> Any:
        return x.g / (0.1 + x.most) + x.g / (0.1 + sqrt(x.square))


def whole(t: Tensor) -> Tensor:
    return (t.full_tensor() if isinstance(t, DTensor) else t.detach()).clone()


def optimizer_of(params: list[Any], scope: str, execution: str, **options: Any) -> untuned.Optimizer:
    groups = [{"params": params[::2]}, {"params": params[1::2], "lr": 0.1}]
    return untuned.compose(groups, Measured(scope), Fixed(0.2), execution=execution, **options)


def numbers(model: nn.Module, optimizer: untuned.Optimizer, scope: str) -> list[Tensor]:
    if scope in ("model", "group"):
        return [group[key].clone() for group in optimizer.param_groups for key in NUMBERS]
    return [whole(optimizer.state[p][key]) for p in model.parameters() if p in optimizer.state for key in NUMBERS]


def alone(scope: str, execution: str) -> dict[str, Any]:
    model = processes.network()
    optimizer = optimizer_of(list(model.parameters()), scope, execution)
    processes.train(model, optimizer, range(STEPS))
    return {"end": processes.vector(model), "numbers": numbers(model, optimizer, scope)}


def sharded(rank: int, scope: str, execution: str) -> dict[str, Any]:
    """FSDP2: the first layer has shards of 2 and 1 rows, the last of 1 and none."""
    model = processes.network()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = optimizer_of(list(model.parameters()), scope, execution)
    processes.train(model, optimizer, range(STEPS), slice(rank, None, 2))
    return {"end": processes.vector(model), "numbers": numbers(model, optimizer, scope)}


def placed(scope: str, execution: str) -> dict[str, Any]:
    """Columns on two ranks, the same on both, rows, and a plain tensor."""
    mesh = init_device_mesh("cpu", (2,))
    whole_model, model = processes.network(), processes.network()
    for key, placement in {"0.weight": Shard(1), "0.bias": Replicate(), "2.weight": Shard(0)}.items():
        layer, leaf = key.split(".")
        p = distribute_tensor(model.get_parameter(key).detach(), mesh, [placement])
        setattr(model.get_submodule(layer), leaf, nn.Parameter(p))
    optimizer = optimizer_of(list(model.parameters()), scope, execution)
    for k in range(STEPS):
        nn.utils.vector_to_parameters(processes.vector(model), whole_model.parameters())
        whole_model.zero_grad()
        processes.loss_on(whole_model, k, slice(None)).backward()
        for p, q in zip(model.parameters(), whole_model.parameters(), strict=True):
            assert q.grad is not None
            p.grad = distribute_tensor(q.grad, mesh, p.placements) if isinstance(p, DTensor) else q.grad
        optimizer.step()
    return {"end": processes.vector(model), "numbers": numbers(model, optimizer, scope)}


def divided(rank: int, scope: str, execution: str) -> dict[str, Any]:
    """Each rank holds tensors of its own; rank 1 none of the second group."""
    model = processes.network()
    every = list(model.parameters())
    mine = [[every[0]], [every[1], every[3]]] if rank == 0 else [[every[2]], []]
    groups = [{"params": mine[0]}, {"params": mine[1], "lr": 0.1}]
    optimizer = untuned.compose(groups, Measured(scope), Fixed(0.2), execution=execution, shard_group="world")
    for k in range(STEPS):
        optimizer.zero_grad()
        model.zero_grad()
        processes.loss_on(model, k, slice(None)).backward()
        optimizer.step()
        for i, p in enumerate(every):
            dist.broadcast(p.detach(), int(i == 2))
    return {"end": processes.vector(model), "numbers": numbers(model, optimizer, scope)}


def resumed(rank: int, execution: str) -> dict[str, Any]:
    """A state dict of shards, loaded by another optimizer of the same shards in the middle."""
    model = processes.network()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = optimizer_of(list(model.parameters()), "row", execution)
    processes.train(model, optimizer, range(STEPS // 2), slice(rank, None, 2))
    other = optimizer_of(list(model.parameters()), "row", execution)
    other.load_state_dict(optimizer.state_dict())
    processes.train(model, other, range(STEPS // 2, STEPS), slice(rank, None, 2))
    return {"end": processes.vector(model), "numbers": numbers(model, other, "row")}


def two_ranks(rank: int, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for execution in EXECUTIONS:
        found[f"resumed row {execution}"] = resumed(rank, execution)
        for scope in SCOPES:
            found[f"sharded {scope} {execution}"] = sharded(rank, scope, execution)
            found[f"placed {scope} {execution}"] = placed(scope, execution)
            found[f"divided {scope} {execution}"] = divided(rank, scope, execution)
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return forked.run(two_ranks, tmp_path_factory.mktemp("rows") / "ranks", 2)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("scope", SCOPES)
def test_two_processes_are_one(ranks: list[dict[str, Any]], scope: str, execution: str) -> None:
    expected = alone(scope, execution)
    assert (expected["end"] - processes.vector(processes.network())).abs().max() > 0.01
    ways = ["sharded", "placed", "divided", *(["resumed"] if scope == "row" else [])]
    for rank, found in enumerate(ranks):
        for way in ways:
            here = found[f"{way} {scope} {execution}"]
            torch.testing.assert_close(here["end"], expected["end"], rtol=1e-12, atol=1e-12)
            theirs = expected["numbers"]
            if way == "divided" and scope in ("tensor", "row"):  # those of this rank's own tensors
                owner = [0, 0, 1, 0]
                theirs = [value for i, value in enumerate(theirs) if owner[i // len(NUMBERS)] == rank]
            assert len(here["numbers"]) == len(theirs)
            for ours, exact in zip(here["numbers"], theirs, strict=True):
                torch.testing.assert_close(ours, exact, rtol=1e-11, atol=0.0)

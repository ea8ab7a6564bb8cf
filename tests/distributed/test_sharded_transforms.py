"""Transforms of the gradient and of the plain step in two processes that hold shards, against one process."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from unittest import mock

import forked
import processes
import pytest
import torch
import torch.distributed as dist
from processes import STEPS
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import untuned
from untuned.around import Multiplicative, Project, RandomScaling
from untuned.directions import Adam, AdaptiveAdam, Gradient
from untuned.gradients import AdaRem, Norms
from untuned.iterates import RandomPoint
from untuned.parts.math import Reduced
from untuned.run import reduce
from untuned.step_sizes import Fixed
from untuned.weight_decay import Anchored, Cautious

pytestmark = pytest.mark.xdist_group("sharded_transforms")  # its processes serve all tests of the file

CASES: dict[str, Any] = {
    "adarem": lambda: {"direction": Gradient(), "step_size": Fixed(0.2), "gradient": [AdaRem(0.8, 0.95)]},
    "random scaling": lambda: {"step_size": Fixed(0.02), "around": [RandomScaling(3)]},
    "random point": lambda: {"step_size": Fixed(0.02), "iterate": RandomPoint(3), "decay": Cautious(0.5)},
    "anchored": lambda: {"step_size": Fixed(0.02), "decay": Anchored()},
    "norms": lambda: {"step_size": Fixed(0.02), "gradient": [Norms()]},
    "adaptive heavy ball": lambda: {"direction": AdaptiveAdam(), "step_size": Fixed(0.02)},
    "project": lambda: {"step_size": Fixed(0.02), "around": [Project()]},
    "project rows": lambda: {"step_size": Fixed(0.02), "around": [RandomScaling(3), Project(scope="row")]},
    "multiplicative": lambda: {"step_size": Fixed(0.02), "around": [Multiplicative(mix=0.7, additive=0.5)]},
    "all, by rows": lambda: {
        "direction": Gradient(),
        "step_size": Fixed(0.2),
        "gradient": [AdaRem(0.8, 0.95)],
        "around": [Project(scope="row")],
    },
}
PLACED = {"by rows": Shard(0), "by columns": Shard(1)}


def made(model: nn.Module, name: str) -> untuned.Optimizer:
    return untuned.compose(model.parameters(), **{"direction": Adam()} | CASES[name]())


def sharded(rank: int, name: str) -> dict[str, Any]:
    """FSDP2, each process with rows of its own; of the last layer one process holds nothing."""
    model = processes.network()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = made(model, name)
    processes.train(model, optimizer, range(STEPS - 1), slice(rank, None, 2))
    with mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as reductions:
        processes.train(model, optimizer, range(STEPS - 1, STEPS), slice(rank, None, 2))
    count = reductions.call_count
    return {"end": processes.vector(model), "metrics": optimizer.metrics(), "reductions": count}


def placed(rank: int, name: str, by: Any) -> dict[str, Any]:
    """Matrices split in one way, the biases kept whole by the mesh."""
    mesh = init_device_mesh("cpu", (2,))
    whole, model = processes.network(), processes.network()
    for layer in model.children():
        for leaf, p in list(layer.named_parameters()):
            placement = by if p.dim() > 1 else Replicate()
            setattr(layer, leaf, nn.Parameter(distribute_tensor(p.detach(), mesh, [placement])))
    optimizer = made(model, name)
    for k in range(STEPS):
        nn.utils.vector_to_parameters(processes.vector(model), whole.parameters())
        whole.zero_grad()
        processes.loss_on(whole, k, slice(None)).backward()
        for p, q in zip(model.parameters(), whole.parameters(), strict=True):
            assert q.grad is not None
            assert isinstance(p, DTensor)
            p.grad = distribute_tensor(q.grad, mesh, p.placements)
        optimizer.step()
    return {"end": processes.vector(model), "metrics": optimizer.metrics()}


def every_scenario(rank: int, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {f"sharded {name}": sharded(rank, name) for name in CASES}
    found |= {f"{way} {name}": placed(rank, name, by) for way, by in PLACED.items() for name in CASES}
    ones = [Reduced(0.0, "max"), Reduced(0.0, "max"), Reduced(0.0)]
    for bad in range(2):
        values = torch.tensor([[math.nan if rank == bad else 1.0, 2.0 + rank, 3.0]], dtype=torch.float64)
        found[f"nan of {bad}"] = reduce.over_groups(values, (dist.group.WORLD,), ones)
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return forked.run(every_scenario, tmp_path_factory.mktemp("transforms") / "ranks", 2)


@pytest.mark.parametrize("way", ["sharded", *PLACED])
@pytest.mark.parametrize("name", CASES)
def test_shards_are_one_model(name: str, way: str, ranks: list[dict[str, Any]]) -> None:
    model = processes.network()
    optimizer = made(model, name)
    processes.train(model, optimizer, range(STEPS))
    expected, start = processes.vector(model), processes.vector(processes.network())
    assert (expected - start).abs().max() > 0.01
    numbers = optimizer.metrics()
    for rank in ranks:
        found = rank[f"{way} {name}"]
        assert (found["end"] - expected).abs().max() < 1e-11
        for key in numbers:
            of_rows = "row" in name and key in ("kept_norm", "rescaling")  # a mean over the rows of one process
            assert found["metrics"][key] == pytest.approx(numbers[key], rel=2.0 if of_rows else 1e-9), key
    assert torch.equal(*(rank[f"{way} {name}"]["end"] for rank in ranks))


@pytest.mark.parametrize("name", CASES)
def test_ranks_meet_where_something_is_reduced_and_only_there(name: str, ranks: list[dict[str, Any]]) -> None:
    """For the guard and each sweep with sums, for maxima once more, and all of it for rows, too, if there are any.

    Decisions and moves without sums cost none.
    """
    wanted = {
        "adarem": 3,
        "random scaling": 1,
        "random point": 1,
        "anchored": 1,
        "multiplicative": 1,
        "norms": 2,
        "adaptive heavy ball": 3,
        "project": 2,
        "project rows": 4,
        "all, by rows": 8,
    }
    for rank in ranks:
        assert rank[f"sharded {name}"]["reductions"] == wanted[name]


@pytest.mark.parametrize("bad", [0, 1])
def test_a_maximum_over_ranks_is_nan_if_one_of_them_has_nan(bad: int, ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        first, second, third = rank[f"nan of {bad}"][0].tolist()
        assert math.isnan(first)
        assert (second, third) == (3.0, 6.0)

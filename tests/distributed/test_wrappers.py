"""Wrappers in two processes: sharded weights that are projected, and gradients that each process takes elsewhere."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import forked
import processes
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState, post_localSGD_hook
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import untuned
from untuned.wrappers import Extrapolated, WeightProjector, insert_norms

pytestmark = pytest.mark.xdist_group("wrappers")  # its processes serve all tests of the file

STEPS = 12
PLACED = {"by rows": Shard(0), "by columns": Shard(1)}
SCOPES = ("tensor", "row")
BASES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "adamw": lambda p: untuned.AdamW(p, lr=0.02),
}
RATES = {"plain": 0.0, "nesterov": 0.9}
START = 6  # of local steps; the last one is not averaged


def stack() -> nn.Sequential:
    """Normalised; the first layer has shards of 2 and 1 rows."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    insert_norms(model)
    return model


def projected(
    model: nn.Module, scope: str, steps: range, rows: slice = slice(None), saved: Any = None
) -> dict[str, Any]:
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    projector = WeightProjector(model, optimizer, scope=scope, every=2, pull=0.1)
    for k in steps:
        optimizer.zero_grad()
        processes.loss_on(model, k, rows).backward()
        optimizer.step()
    return {"end": processes.vector(model), "metrics": projector.metrics(), "projector": projector, "adam": optimizer}


def result(found: dict[str, Any]) -> dict[str, Any]:
    return {key: found[key] for key in ("end", "metrics")}


def sharded(rank: int, scope: str) -> dict[str, Any]:
    """FSDP2; the norms are saved and loaded into another one."""
    model = stack()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    found = projected(model, scope, range(STEPS), slice(rank, None, 2))
    state = found["projector"].state_dict()
    kept = {name: r.full_tensor() if isinstance(r, DTensor) else r for name, r in state["kept_norms"].items()}
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2.0)
    other = WeightProjector(model, scope=scope)
    other.load_state_dict(state)
    with mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as reductions:
        other.project()
    other.load_state_dict({**state, "kept_norms": kept})  # from a run without shards
    again = processes.vector(model)
    other.project()
    apart = (processes.vector(model) - again).abs().max()
    return result(found) | {"kept": kept, "again": again, "apart": apart, "reductions": reductions.call_count}


def placed(by: Any, scope: str) -> dict[str, Any]:
    """Matrices split in one way, vectors kept whole by the mesh."""
    mesh = init_device_mesh("cpu", (2,))
    model = stack()
    for module in model.modules():
        for leaf, p in list(module.named_parameters(recurse=False)):
            placement = by if p.dim() > 1 else Replicate()
            setattr(module, leaf, nn.Parameter(distribute_tensor(p.detach(), mesh, [placement])))
    projector = WeightProjector(model, scope=scope)
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.mul_(1.5 + i)
    projector.project()
    return {"end": processes.vector(model)}


def zero_weight() -> str:
    mesh = init_device_mesh("cpu", (2,))
    zero = nn.Parameter(distribute_tensor(torch.zeros(3, 2), mesh, [Shard(0)]))
    half = torch.zeros(3, 2)
    half[0] = 1.0  # this is on one rank only
    WeightProjector([nn.Parameter(distribute_tensor(half, mesh, [Shard(0)]))], scope="row")
    try:
        WeightProjector([zero], scope="row")
    except ValueError as error:
        return str(error)
    return ""


def wrapped(
    rank: int, base: str, direction: str, nesterov: float, *, hooked: bool = True
) -> tuple[DistributedDataParallel, Extrapolated]:
    model = DistributedDataParallel(processes.network())
    optimizer = Extrapolated(BASES[base](model.parameters()), 0.05, direction, nesterov=nesterov)
    if hooked:
        model.register_comm_hook(None, optimizer.ddp_hook)
    return model, optimizer


def train(model: nn.Module, optimizer: Any, steps: range, rank: int, step: Any = None) -> Tensor:
    for k in steps:
        optimizer.zero_grad()
        with optimizer.extrapolated():
            processes.loss_on(model, k, slice(rank, None, 2)).backward()
        (step or optimizer).step()
    return processes.vector(model)


def resumed(rank: int, folder: Path, base: str, nesterov: float) -> dict[str, Any]:
    """Saved by each rank in the middle, and gone on with from there."""
    model, optimizer = wrapped(rank, base, "local", nesterov)
    train(model, optimizer, range(5), rank)
    torch.save((model.module.state_dict(), optimizer.state_dict()), folder / f"saved {rank} {base} {nesterov}.pt")
    straight = train(model, optimizer, range(5, 9), rank)
    other, again = wrapped(rank, base, "local", nesterov)
    weights, state = torch.load(folder / f"saved {rank} {base} {nesterov}.pt")
    other.module.load_state_dict(weights)
    again.load_state_dict(state)
    return {"straight": straight, "resumed": train(other, again, range(5, 9), rank)}


def accumulated(rank: int) -> Tensor:
    """Two micro-batches in a step, the first of them not averaged."""
    model, optimizer = wrapped(rank, "sgd", "local", 0.0)
    for k in range(STEPS):
        optimizer.zero_grad()
        with optimizer.extrapolated():
            with model.no_sync():
                processes.loss_on(model, k, slice(rank, None, 4)).div(2).backward()
            processes.loss_on(model, k, slice(rank + 2, None, 4)).div(2).backward()
        optimizer.step()
    return processes.vector(model)


def post_local(rank: int) -> Tensor:
    """Averaged gradients for START steps, then local steps with averaged weights every third."""
    from torch.distributed.optim import PostLocalSGDOptimizer  # which warns of what torch itself has deprecated

    model = DistributedDataParallel(processes.network())
    optimizer = Extrapolated(torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), 0.05)
    alone, _ = dist.new_subgroups(1)
    state = PostLocalSGDState(process_group=None, subgroup=alone, start_localSGD_iter=START)
    model.register_comm_hook(state, optimizer.keep_local(post_localSGD_hook))
    averaged = PostLocalSGDOptimizer(optimizer, PeriodicModelAverager(period=3, warmup_steps=START))
    return train(model, optimizer, range(STEPS), rank, averaged)


def of_shards(rank: int) -> dict[str, Any]:
    model = processes.network()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    base = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    try:
        Extrapolated(base, 0.05)
        said = ""
    except ValueError as error:
        said = str(error)
    optimizer = Extrapolated(base, 0.05, "global", nesterov=0.9)
    return {"said": said, "end": train(model, optimizer, range(STEPS), rank)}


def every_scenario(rank: int, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"zero": zero_weight(), "of shards": of_shards(rank)}
    found |= {f"sharded {scope}": sharded(rank, scope) for scope in SCOPES}
    found |= {f"{way} {scope}": placed(by, scope) for way, by in PLACED.items() for scope in SCOPES}
    for base in BASES:
        for form, nesterov in RATES.items():
            found[f"local {base} {form}"] = train(*wrapped(rank, base, "local", nesterov), range(STEPS), rank)
            found[f"global {base} {form}"] = train(
                *wrapped(rank, base, "global", nesterov, hooked=False), range(STEPS), rank
            )
            found[f"resumed {base} {form}"] = resumed(rank, folder, base, nesterov)
    found["accumulated"], found["post-local"] = accumulated(rank), post_local(rank)
    model, optimizer = wrapped(rank, "sgd", "local", 0.0)
    found["same data"] = train(model, optimizer, range(STEPS), 0)  # of rank 0 on both
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(*wrapped(rank, "sgd", "local", 0.0, hooked=False), range(3), rank)
    found["warnings"] = [str(w.message) for w in caught if "local gradients" in str(w.message)]
    model, optimizer = wrapped(rank, "sgd", "noise", 0.0)
    with optimizer.extrapolated():
        found["noise"] = processes.vector(model)
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return forked.run(every_scenario, tmp_path_factory.mktemp("wrappers") / "ranks", 2)


# ---------------------------------------------------------------- projection


@pytest.mark.parametrize("scope", SCOPES)
def test_sharded_weights_are_projected_like_whole_ones(scope: str, ranks: list[dict[str, Any]]) -> None:
    model = stack()
    expected = projected(model, scope, range(STEPS))
    kept = expected["projector"].state_dict()["kept_norms"]
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2.0)
    expected["projector"].project()
    for rank in ranks:
        found = rank[f"sharded {scope}"]
        assert (found["end"] - expected["end"]).abs().max() < 1e-12
        assert found["metrics"] == pytest.approx(expected["metrics"], rel=1e-12)
        assert found["kept"].keys() == kept.keys()
        assert all(torch.allclose(found["kept"][name], r, rtol=1e-14) for name, r in kept.items())
        assert found["apart"] < 1e-15
        assert found["reductions"] == 1  # for rows those of scale and offset
    assert (ranks[0][f"sharded {scope}"]["again"] - ranks[1][f"sharded {scope}"]["again"]).abs().max() == 0


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("way", PLACED)
def test_however_matrices_are_split_their_norms_are_whole(way: str, scope: str, ranks: list[dict[str, Any]]) -> None:
    model = stack()
    projector = WeightProjector(model, scope=scope)
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.mul_(1.5 + i)
    projector.project()
    for rank in ranks:
        assert (rank[f"{way} {scope}"]["end"] - processes.vector(model)).abs().max() < 1e-14


def test_a_weight_that_is_zero_on_all_ranks_is_refused_by_all(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["zero"] == "WeightProjector: '0' is zero and has no norm to keep; exclude it."


# ---------------------------------------------------------------- extrapolation


def reference(base: str, direction: str, nesterov: float, start: int = STEPS, parts: int = 1) -> Tensor:
    """Both workers in one process, written from the equations; from `start` on their steps are local."""
    models = [processes.network() for _ in range(2)]
    optimizers = [BASES[base](model.parameters()) for model in models]
    q: list[Any] = [None, None]
    before: list[Any] = [None, None]
    for k in range(STEPS):
        gradients = []
        for rank, model in enumerate(models):
            w = [p.detach().clone() for p in model.parameters()]
            with torch.no_grad():
                for i, p in enumerate(model.parameters()):
                    if before[rank] is not None and nesterov:
                        p.add_(w[i] - before[rank][i], alpha=nesterov)
                    if q[rank] is not None:
                        p.add_(q[rank][i], alpha=-0.05)
            model.zero_grad()
            for part in range(parts):
                rows = slice(rank + 2 * part, None, 2 * parts)
                processes.loss_on(model, k, rows).div(parts).backward()
            gradients.append([p.grad for p in model.parameters()])
            with torch.no_grad():
                for p, a in zip(model.parameters(), w, strict=True):
                    p.copy_(a)
            before[rank] = w
        mean = [a / 2 + b / 2 for a, b in zip(*gradients, strict=True)]
        q = gradients if direction == "local" else [mean, mean]
        q = [[g.clone() for g in own] for own in q]
        for rank, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            for p, g in zip(model.parameters(), mean if k < start else gradients[rank], strict=True):
                p.grad = g.clone()
            optimizer.step()
        if k >= start and (k - start) % 3 == 0:
            with torch.no_grad():
                for a, b in zip(*(model.parameters() for model in models), strict=True):
                    a.copy_(a / 2 + b / 2)
                    b.copy_(a)
    return torch.stack([processes.vector(model) for model in models])


@pytest.mark.parametrize("form", RATES)
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("direction", ["local", "global"])
def test_two_processes_are_two_workers_in_one(
    direction: str, base: str, form: str, ranks: list[dict[str, Any]]
) -> None:
    expected = reference(base, direction, RATES[form])
    for rank, end in zip(ranks, expected, strict=True):
        assert (rank[f"{direction} {base} {form}"] - end).abs().max() == 0.0
    other = reference(base, "global" if direction == "local" else "local", RATES[form])
    assert (expected - other).abs().max() > 1e-5


@pytest.mark.parametrize("form", RATES)
@pytest.mark.parametrize("base", BASES)
def test_every_rank_resumes_with_its_own_direction(base: str, form: str, ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        found = rank[f"resumed {base} {form}"]
        assert torch.equal(found["straight"], found["resumed"])


def test_with_the_same_data_everywhere_local_is_global(ranks: list[dict[str, Any]]) -> None:
    model = processes.network()
    optimizer = Extrapolated(BASES["sgd"](model.parameters()), 0.05, "global")
    expected = train(model, optimizer, range(STEPS), 0)
    for rank in ranks:
        assert (rank["same data"] - expected).abs().max() == 0.0


def test_micro_batches_that_are_averaged_once_are_one_gradient(ranks: list[dict[str, Any]]) -> None:
    expected = reference("sgd", "local", 0.0, parts=2)
    for rank, end in zip(ranks, expected, strict=True):
        assert (rank["accumulated"] - end).abs().max() == 0.0


def test_local_steps_with_averaged_weights_are_torchs_own(ranks: list[dict[str, Any]]) -> None:
    expected = reference("sgd", "local", 0.0, start=START)
    assert (expected[0] - expected[1]).abs().max() > 1e-5
    for rank, end in zip(ranks, expected, strict=True):
        assert (rank["post-local"] - end).abs().max() < 1e-15


def test_shards_have_no_local_gradient_and_follow_the_global_one(ranks: list[dict[str, Any]]) -> None:
    expected = reference("sgd", "global", 0.9)[0]
    for rank in ranks:
        assert rank["of shards"]["said"].endswith("no process has the gradient; use direction='global'.")
        assert (rank["of shards"]["end"] - expected).abs().max() < 1e-13


def test_a_forgotten_hook_is_told_once(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert len(rank["warnings"]) == 1
        assert "optimizer.ddp_hook" in rank["warnings"][0]


def test_every_rank_has_noise_of_its_own(ranks: list[dict[str, Any]]) -> None:
    start = processes.vector(processes.network())
    assert all((rank["noise"] - start).abs().max() > 1e-3 for rank in ranks)
    assert (ranks[0]["noise"] - ranks[1]["noise"]).abs().max() > 1e-3

"""Steps in which a rank holds nothing, fails or has run out of batches: nobody waits, and the sums are right."""

from pathlib import Path
from typing import Any

import forked
import processes
import pytest
import torch
import torch.distributed as dist
from processes import OPTIONS
from torch import nn
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

import untuned
from untuned.integrations.join import Joining

pytestmark = pytest.mark.xdist_group("absent_ranks")  # its processes serve all tests of the file

STEPS = 6
WITHOUT = {1: (2, 3), 0: (4,), None: (1,)}  # the rank that has no gradient, in which steps; None: nobody has
GROUPED = {
    "prodigy": {"scope": "group"},
    "dadapt_adam": {"scope": "group"},
    "dadapt_sgd": {"scope": "group"},
    "tam": {"scope": "group"},
    "mechanic_sgd": {},
}


def build(name: str, mine: list[list[nn.Parameter]], **options: Any) -> untuned.Optimizer:
    groups = [{"params": part} for part in mine]
    return untuned.get(name).optimizer(groups, **OPTIONS[name] | GROUPED.get(name, {}) | options)


def owned(model: nn.Module, rank: int) -> list[nn.Parameter]:
    """The first layer is with rank 0, the second with rank 1."""
    return [*model.get_submodule("02"[rank]).parameters()]


def step(model: nn.Module, optimizer: untuned.Optimizer, k: int, samples: slice = slice(None)) -> None:
    for p in model.parameters():
        p.grad = None
    loss = processes.loss_on(model, k, slice(None))
    loss.backward()
    for rank, steps in WITHOUT.items():
        for p in model.parameters() if rank is None else owned(model, rank):
            p.grad = None if k in steps else p.grad
    optimizer.step(loss=loss.detach(), sample_ids=torch.arange(8)[samples])


def without_gradients(rank: int, name: str) -> dict[str, Any]:
    model = processes.network()
    mine: list[list[nn.Parameter]] = [[], []]
    mine[rank] = owned(model, rank)
    optimizer = build(name, mine, shard_group="world", clip_grad_norm=2.0)
    for k in range(STEPS):
        step(model, optimizer, k, slice(rank, None, 2))  # which are what each rank saw
        for i in range(2):
            for p in owned(model, i):
                dist.broadcast(p.detach(), src=i)
    return {"end": processes.vector(model), "metrics": optimizer.metrics()}


def every_method(rank: int, folder: Path) -> dict[str, Any]:
    return {name: without_gradients(rank, name) for name in OPTIONS}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return forked.run(every_method, tmp_path_factory.mktemp("absent") / "all", 2)


@pytest.mark.parametrize("name", OPTIONS)
def test_ranks_without_gradients_take_part(name: str, ranks: list[dict[str, Any]]) -> None:
    """As one process whose tensors have no gradient in these steps."""
    model = processes.network()
    optimizer = build(name, [owned(model, rank) for rank in range(2)], clip_grad_norm=2.0)
    for k in range(STEPS):
        step(model, optimizer, k)
    expected, whole = processes.vector(model), optimizer.metrics()
    way = (expected - processes.vector(processes.network())).abs().max()
    of_tensors = {n.key for part in optimizer.parts.values() for n in part.numbers().values() if part.per_tensor(n)}
    for found in (rank[name] for rank in ranks):
        assert way > 1e-3
        assert (found["end"] - expected).abs().max() <= 1e-9 * way
        for key in whole.keys() - of_tensors:
            if "lr_effective" not in key:  # of a group that this rank has no tensors of
                assert found["metrics"][key] == pytest.approx(whole[key], rel=1e-9, abs=1e-12), key


# ---------------------------------------------------------------- ranks that fail


def fails(rank: int, folder: Path) -> dict[str, Any]:
    """In one step rank 1 gives no loss, in the next a sparse gradient, in a third it is in evaluation mode."""
    found: dict[str, Any] = {}
    for name, options in (
        ("momo", {}),
        ("momo_adam", {"shard_group": "world"}),
        ("schedule_free_sgd", {"shard_group": "world"}),
        ("prodigy", {"shard_group": "world"}),
    ):
        torch.manual_seed(0)
        p = nn.Parameter(torch.ones(3, dtype=torch.float64))
        optimizer = untuned.create([p], name, **options)
        said = []
        for k in range(4):
            p.grad = torch.full_like(p, 1.0 + rank)
            loss: Any = 1.0
            if rank == 1 and k == 1:
                loss = None if "momo" in name else 1.0
                if name == "schedule_free_sgd":
                    optimizer.eval()
                elif name == "prodigy":
                    p.grad = None
                    p.grad = torch.ones(3, dtype=torch.float64).to_sparse()
            try:
                optimizer.step(loss=loss)
                said.append("")
            except (RuntimeError, ValueError, TypeError) as error:
                said.append(f"{type(error).__name__}: {error}")
            optimizer.train()
        found[name] = {"said": said, "steps": optimizer.metrics()["steps"]}
    return found


def test_a_rank_that_fails_makes_the_others_fail_with_a_sentence(tmp_path: Path) -> None:
    zero, one = forked.run(fails, tmp_path / "fails", 2)
    titles = {"momo": "MoMo", "momo_adam": "MoMoAdam", "schedule_free_sgd": "SGDScheduleFree", "prodigy": "Prodigy"}
    reasons = {
        "momo": "needs the loss",
        "momo_adam": "needs the loss",
        "schedule_free_sgd": "needs training mode",
        "prodigy": "gradients must be dense",
    }
    for name, title in titles.items():
        assert zero[name]["said"][1].startswith(f"RuntimeError: {title}.step(): 1 ranks take no part in it.")
        assert reasons[name] in one[name]["said"][1]
        for rank in (zero, one):  # and both go on
            assert [rank[name]["said"][k] for k in (0, 2, 3)] == ["", "", ""]
            assert rank[name]["steps"] == 3


# ---------------------------------------------------------------- ranks that run out of batches

BATCHES = (3, 5)


JOINING = ["momo", "momo_adam", "adamw"]


def joined(rank: int, name: str, together: bool) -> dict[str, Any]:
    model = processes.network()
    wrapped = DistributedDataParallel(model)
    optimizer = untuned.create(model, name, **OPTIONS[name])
    said, losses = "", []
    try:
        with Join([wrapped, Joining(optimizer)]) if together else wrapped.join():
            for k in range(BATCHES[rank]):
                optimizer.zero_grad()
                loss = processes.loss_on(wrapped, k, slice(rank, None, 2))
                loss.backward()
                optimizer.step(loss=loss.detach())
                losses.append(float(loss.detach()))
    except RuntimeError as error:
        said = str(error)
    return {"end": processes.vector(model), "said": said, "losses": losses}


def joined_together(rank: int, folder: Path) -> dict[str, Any]:
    return {name: joined(rank, name, together=True) for name in JOINING}


def joined_alone(rank: int, folder: Path) -> dict[str, Any]:
    return joined(rank, "momo", together=False)


def test_ranks_with_other_numbers_of_batches_join(tmp_path: Path) -> None:
    """As one process with the mean of the losses there are; torch divides gradients by the number of all ranks."""
    ranks = forked.run(joined_together, tmp_path / "together", 2)
    for name in JOINING:
        model = processes.network()
        optimizer = untuned.create(model, name, **OPTIONS[name])
        for k in range(max(BATCHES)):
            here = [rank for rank in range(2) if k < BATCHES[rank]]
            optimizer.zero_grad()
            losses = [processes.loss_on(model, k, slice(rank, None, 2)) for rank in here]
            (sum(losses) / 2).backward()
            optimizer.step(loss=sum(float(loss.detach()) for loss in losses) / len(here))
        way = (processes.vector(model) - processes.vector(processes.network())).abs().max()
        for rank in ranks:
            assert rank[name]["said"] == ""
            assert (rank[name]["end"] - processes.vector(model)).abs().max() <= 1e-9 * way


def test_join_of_the_model_alone_is_refused_in_a_sentence(tmp_path: Path) -> None:
    _, one = forked.run(joined_alone, tmp_path / "alone", 2)
    assert one["said"].startswith("MoMo.step(): 1 ranks take no part in it.")
    assert "Join([model, untuned.integrations.join.Joining(optimizer)])" in one["said"]
    assert len(one["losses"]) == min(BATCHES)


def test_what_cannot_join_says_so() -> None:
    p = nn.Parameter(torch.ones(2))
    for optimizer in (untuned.TAPS([p], samples=3), untuned.Prodigy([p], shard_group="world")):
        with pytest.raises(ValueError, match=r"ranks exchange .* in every step and cannot join"):
            Joining(optimizer)

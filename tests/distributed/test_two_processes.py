"""Two processes against one that sees all the data: DistributedDataParallel, FSDP2, checkpoints."""

import copy
import os
import time
import warnings
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
import torch.distributed.checkpoint as dcp
from processes import FLATTENED, MIXED, MORE, OPTIONS, REPLICATED, SAVED, STEPS
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import untuned

pytestmark = pytest.mark.xdist_group("two_processes")  # its processes serve all tests of the file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all workers of the run, who share what the two processes did."""
    base = tmp_path_factory.getbasetemp()
    found = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "two processes"
    found.mkdir(exist_ok=True)
    return found


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    done = folder / "done"
    try:
        (folder / "claimed").touch(exist_ok=False)
    except FileExistsError:  # by another worker
        deadline = time.monotonic() + 240
        while not done.exists():
            assert time.monotonic() < deadline, "the worker that runs the two processes has not come back"
            time.sleep(0.2)
        return [torch.load(folder / f"{rank}.pt") for rank in range(2)]
    found = processes.run(processes.every_scenario, folder)
    done.touch()
    return found


def alone(name: str) -> tuple[torch.nn.Module, untuned.Optimizer]:
    """One process after the same steps on the joined batches."""
    model = processes.network()
    optimizer = untuned.create(model, name, **OPTIONS[name])
    processes.train(model, optimizer, range(STEPS))
    return model, optimizer


def assert_near(found: torch.Tensor, expected: torch.Tensor, width: int = 3) -> None:
    way = (expected - processes.vector(processes.network(width))).abs().max()
    assert way > 0.01
    assert (found - expected).abs().max() <= 1e-9 * way


def assert_same_numbers(found: dict[str, float], expected: dict[str, float]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-9, abs=1e-12), key


@pytest.mark.parametrize("name", REPLICATED)
def test_replicas_are_one_model(name: str, ranks: list[dict[str, Any]]) -> None:
    one, two = (rank[f"replicated {name}"] for rank in ranks)
    model, optimizer = alone(name)
    assert torch.equal(one["end"], two["end"])
    assert one["metrics"] == two["metrics"]
    assert_near(one["end"], processes.vector(model))
    assert_same_numbers(one["metrics"], optimizer.metrics())


@pytest.mark.parametrize("looked_at", [False, True])
@pytest.mark.parametrize("name", SAVED)
def test_a_model_sharded_after_its_optimizer_was_built_takes_half_the_memory(
    name: str, looked_at: bool, ranks: list[dict[str, Any]]
) -> None:
    """The second layer has one row and one bias: so rank 0 holds 15 of 25 numbers, and rank 1 holds 10."""
    model = processes.network(4)
    optimizer = untuned.create(model, name, **OPTIONS[name])
    processes.train(model, optimizer, range(STEPS))
    whole = processes.nbytes(optimizer)
    for rank, share in zip(ranks, (15 / 25, 10 / 25), strict=True):
        found = rank[f"exchanged {name} {looked_at}"]
        assert found["alive"] == []
        assert found["bytes"] == share * whole
        assert_near(found["end"], processes.vector(model), 4)


def test_replicas_part_if_each_uses_its_own_loss(ranks: list[dict[str, Any]]) -> None:
    one, two = (rank["own loss"]["end"] for rank in ranks)
    assert (one - two).abs().max() > 1e-2


def test_nan_loss_of_one_process_skips_the_step_of_all(ranks: list[dict[str, Any]]) -> None:
    one, two = (rank["nan loss"] for rank in ranks)
    assert one["metrics"]["skipped"] == two["metrics"]["skipped"] == 1
    assert torch.equal(one["end"], two["end"])
    assert torch.equal(one["end"], ranks[0]["replicated momo"]["end"])


@pytest.mark.parametrize("name", untuned.list())
def test_shards_are_one_model(name: str, ranks: list[dict[str, Any]]) -> None:
    one, two = (rank[f"sharded {name}"] for rank in ranks)
    model, optimizer = alone(name)
    assert one["metrics"] == two["metrics"]
    assert_near(one["end"], processes.vector(model))
    assert_same_numbers(one["metrics"], optimizer.metrics())

    assert one["skipped"] == two["skipped"] == 1  # a NaN in one shard
    assert torch.equal(one["after nan"], one["end"])
    processes.train(model, optimizer, MORE)
    assert_near(one["later"], processes.vector(model))
    optimizer.eval()
    assert_near(one["averaged"], processes.vector(model))


@pytest.mark.parametrize("name", MIXED)
def test_every_element_counts_once_however_it_is_placed(name: str, ranks: list[dict[str, Any]]) -> None:
    one, two = (rank[f"mixed {name}"] for rank in ranks)
    model, optimizer = alone(name)
    assert one["metrics"] == two["metrics"]
    assert_near(one["end"], processes.vector(model))
    assert_same_numbers(one["metrics"], optimizer.metrics())


def clipped(name: str) -> tuple[torch.Tensor, dict[str, float]]:
    model = processes.network()
    optimizer = untuned.create([*model.parameters()], name, **OPTIONS[name], clip_grad_norm=2.0)
    processes.train(model, optimizer, range(STEPS))
    return processes.vector(model), optimizer.metrics()


@pytest.mark.parametrize("name", OPTIONS)
def test_divided_parameters_are_one_model(name: str, ranks: list[dict[str, Any]]) -> None:
    one, two = (rank[f"divided {name}"] for rank in ranks)
    expected, numbers = clipped(name)
    assert torch.equal(one["end"], two["end"])
    assert_near(one["end"], expected)
    for found in (one, two):
        assert torch.equal(found["after nan"], found["end"])
        assert found["metrics"]["skipped"] == numbers["skipped"] + 1


@pytest.mark.parametrize("name", FLATTENED)
def test_flattened_parameters_are_one_model(name: str, ranks: list[dict[str, Any]]) -> None:
    one, two = (rank[f"flattened {name}"] for rank in ranks)
    expected, numbers = clipped(name)
    assert torch.equal(one["end"], two["end"])
    assert_near(one["end"], expected)
    assert one["metrics"]["grad_norm"] == two["metrics"]["grad_norm"] == pytest.approx(numbers["grad_norm"], rel=1e-6)


@pytest.mark.parametrize("name", SAVED)
def test_checkpoint_of_two_processes_goes_on_in_one(name: str, ranks: list[dict[str, Any]], folder: Path) -> None:
    model = processes.network()
    optimizer = untuned.create(model, name, **OPTIONS[name])
    values, state = get_state_dict(model, optimizer)
    fresh = copy.deepcopy(state)
    saved = {"model": values, "optimizer": state}
    with warnings.catch_warnings(action="ignore"):  # that it runs in a single process
        dcp.load(saved, checkpoint_id=folder / name)
    set_state_dict(model, optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"])
    assert str(fresh) != str(saved["optimizer"])
    expected = ranks[0][f"sharded {name}"]
    assert torch.equal(processes.vector(model), expected["end"])
    assert optimizer.metrics() == expected["metrics"] | {"skipped": 1.0}
    processes.train(model, optimizer, MORE)
    assert_near(processes.vector(model), expected["later"])

"""Saved by two processes, loaded by one and by four, with the groups in another order: as if the run were unbroken."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import forked
import processes
import pytest
import torch
import torch.distributed.checkpoint as dcp
from processes import OPTIONS
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import untuned

BEFORE, AFTER = range(5), range(5, 10)
FEW = ["momo", "prodigy", "mechanic_adamw", "ldog"]
FLAT = {"nested": False, "flat": True}


def grouped(name: str, model: nn.Module, turned: bool = False) -> untuned.Optimizer:
    """Weights, and biases at half their lr; turned: the biases first, and an lr that a checkpoint must overwrite."""
    named = list(model.named_parameters())
    weights, biases = ([(n, p) for n, p in named if n.endswith(kind)] for kind in ("weight", "bias"))
    lr = OPTIONS[name].get("lr", untuned.registry.get(name).lr)
    groups: list[dict[str, Any]] = [{"params": weights}, {"params": biases, "lr": lr / 2}]
    if turned:
        groups = [{"params": biases, "lr": lr / 7}, {"params": weights[::-1], "lr": lr / 3}]
    return untuned.create(groups, name, **OPTIONS[name])


def forgotten() -> nn.Module:
    """The network with other weights, which loading must replace."""
    model = processes.network()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.125)
    return model


def load(model: nn.Module, optimizer: untuned.Optimizer, folder: Path, flat: bool) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    values, state = get_state_dict(model, optimizer, options=options)
    saved = {"model": values, "optimizer": state}
    dcp.load(saved, checkpoint_id=folder)
    set_state_dict(
        model, optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"], options=options
    )


def facts(model: nn.Module, optimizer: untuned.Optimizer) -> dict[str, Any]:
    lrs = {tuple(group["param_names"]): group["lr"] for group in optimizer.param_groups}
    optimizer.eval()
    averaged = processes.vector(model)
    optimizer.train()
    return {"end": processes.vector(model), "averaged": averaged, "metrics": optimizer.metrics(), "lrs": lrs}


def save_by_two(rank: int, folder: Path, *, names: list[str], checkpoints: Path) -> None:
    for name in names:
        model = processes.network()
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
        optimizer = grouped(name, model)
        processes.train(model, optimizer, BEFORE, slice(rank, None, 2))
        for kind, flat in FLAT.items():
            values, state = get_state_dict(
                model, optimizer, options=StateDictOptions(flatten_optimizer_state_dict=flat)
            )
            dcp.save({"model": values, "optimizer": state}, checkpoint_id=checkpoints / f"{name} {kind}")


def load_by_four(rank: int, folder: Path, *, names: list[str], checkpoints: Path) -> dict[str, Any]:
    """The first layer has three rows: the fourth process holds no part of it, and of the last only the first does."""
    found = {}
    for name in names:
        for kind, flat in FLAT.items():
            model = forgotten()
            fully_shard(model, mesh=init_device_mesh("cpu", (4,)))
            optimizer = grouped(name, model, turned=flat)
            load(model, optimizer, checkpoints / f"{name} {kind}", flat)
            processes.train(model, optimizer, AFTER, slice(rank, None, 4))
            found[f"{name} {kind}"] = facts(model, optimizer)
    return found


def load_by_one(name: str, kind: str, checkpoints: Path) -> dict[str, Any]:
    model = forgotten()
    optimizer = grouped(name, model, turned=FLAT[kind])
    with warnings.catch_warnings(action="ignore"):  # that it runs in a single process
        load(model, optimizer, checkpoints / f"{name} {kind}", FLAT[kind])
    processes.train(model, optimizer, AFTER)
    return facts(model, optimizer)


def unbroken(name: str) -> dict[str, Any]:
    model = processes.network()
    optimizer = grouped(name, model)
    processes.train(model, optimizer, BEFORE)
    processes.train(model, optimizer, AFTER)
    return facts(model, optimizer)


def wrong(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Where a resumed run is not the unbroken one, in relation to how far that has come."""
    way = (expected["end"] - processes.vector(processes.network())).abs().max()
    assert way > 1e-3
    said = [key for key in ("end", "averaged") if not (found[key] - expected[key]).abs().max() <= 1e-12 * way]
    mine = dict(sorted(found["metrics"].items()))
    lrs = [expected["lrs"][names] for names in expected["lrs"]]
    said += [] if sorted(found["lrs"].values()) == sorted(lrs) else [f"lr {found['lrs']}"]
    for key, value in expected["metrics"].items():  # those of groups belong to places, which a turned optimizer swaps
        if not key.startswith("lr_effective") and mine[key] != pytest.approx(value, rel=1e-11, abs=1e-14):
            said.append(f"{key}: {mine[key]} for {value}")
    return said


def reshard(names: list[str], folder: Path) -> dict[str, list[str]]:
    """-> what is wrong, by method and way of loading."""
    checkpoints = folder / "checkpoints"
    forked.run(partial(save_by_two, names=names, checkpoints=checkpoints), folder / "two", 2)
    ranks = forked.run(partial(load_by_four, names=names, checkpoints=checkpoints), folder / "four", 4)
    found: dict[str, list[str]] = {}
    for name in names:
        expected = unbroken(name)
        for kind in FLAT:
            four = [rank[f"{name} {kind}"] for rank in ranks]
            same = all(torch.equal(one["end"], four[0]["end"]) and one["metrics"] == four[0]["metrics"] for one in four)
            found[f"{name} {kind} by four"] = wrong(four[0], expected) + ([] if same else ["the ranks differ"])
            found[f"{name} {kind} by one"] = wrong(load_by_one(name, kind, checkpoints), expected)
    assert len(found) == 4 * len(names)
    return {what: said for what, said in found.items() if said}


def test_a_chosen_few_saved_by_two_go_on_in_one_and_in_four(tmp_path: Path) -> None:
    """One test, so that one worker of the test run starts the six processes."""
    assert reshard(FEW, tmp_path) == {}


@pytest.mark.slow
def test_all_methods_saved_by_two_go_on_in_one_and_in_four(tmp_path: Path) -> None:
    assert reshard([name for name in OPTIONS if name not in FEW], tmp_path) == {}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")
@pytest.mark.parametrize("kind", FLAT)
@pytest.mark.parametrize("name", OPTIONS)
def test_groups_are_matched_by_name_in_one_process(name: str, kind: str) -> None:
    """Loaded into groups of another order: each parameter finds its state, each group its lr."""
    options = StateDictOptions(flatten_optimizer_state_dict=FLAT[kind])
    model = processes.network()
    optimizer = grouped(name, model)
    processes.train(model, optimizer, BEFORE)
    values, state = get_state_dict(model, optimizer, options=options)
    other = forgotten()
    turned = grouped(name, other, turned=True)
    set_state_dict(other, turned, model_state_dict=values, optim_state_dict=state, options=options)
    assert [group["lr"] for group in turned.param_groups] == [group["lr"] for group in optimizer.param_groups[::-1]]
    processes.train(other, turned, AFTER)
    assert wrong(facts(other, turned), unbroken(name)) == []

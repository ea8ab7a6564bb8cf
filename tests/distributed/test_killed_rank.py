"""One of two processes dies in the middle of a step: the other ends with an error, and the last checkpoint goes on."""

from __future__ import annotations

import datetime
import os
import signal
import time
from pathlib import Path
from typing import Any

import forked
import processes
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from processes import OPTIONS
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import untuned

SAVED, KILLED, END = 4, 6, 10  # steps before the checkpoint, before the death, and in all
TIMEOUT = 20  # seconds a process waits for another in a collective


def start(rank: int, folder: Path, name: str) -> tuple[torch.nn.Module, untuned.Optimizer]:
    limit = datetime.timedelta(seconds=TIMEOUT)
    where = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=2, timeout=limit)
    model = processes.network()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    return model, untuned.create(model, name, **OPTIONS[name])


def save(model: torch.nn.Module, optimizer: untuned.Optimizer, folder: Path) -> None:
    values, state = get_state_dict(model, optimizer)
    dcp.save({"model": values, "optimizer": state}, checkpoint_id=folder)


def dies_in_an_all_reduce(step: int, optimizer: untuned.Optimizer) -> None:
    """SIGKILL where the step is about to add up its sums over the ranks, as the other one does already."""
    reduce = dist.all_reduce

    def killed(*args: Any, **kwargs: Any) -> Any:
        if optimizer.metrics()["steps"] >= step:
            os.kill(os.getpid(), signal.SIGKILL)
        return reduce(*args, **kwargs)

    dist.all_reduce = killed


def run(rank: int, folder: Path, name: str) -> None:
    """Trains, saves, and would save again; rank 1 is killed inside a step before that. Writes how it ended."""
    torch.set_num_threads(1)
    model, optimizer = start(rank, folder, name)
    rows = slice(rank, None, 2)
    processes.train(model, optimizer, range(SAVED), rows)
    save(model, optimizer, folder / "checkpoint")
    if rank == 1:
        dies_in_an_all_reduce(KILLED, optimizer)
    began = time.monotonic()
    try:
        processes.train(model, optimizer, range(SAVED, END), rows)
        save(model, optimizer, folder / "checkpoint")
    except Exception as error:
        waited = time.monotonic() - began
        torch.save({"error": f"{type(error).__name__}: {error}", "waited": waited}, folder / f"ended {rank}.pt")
        os._exit(3)  # what is left of the process group would be waited for
    torch.save({"error": None}, folder / f"ended {rank}.pt")


def resume(rank: int, folder: Path, name: str, checkpoint: Path) -> None:
    torch.set_num_threads(1)
    model, optimizer = start(rank, folder, name)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.5)
    values, state = get_state_dict(model, optimizer)
    saved = {"model": values, "optimizer": state}
    dcp.load(saved, checkpoint_id=checkpoint)
    set_state_dict(model, optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"])
    processes.train(model, optimizer, range(SAVED, END), slice(rank, None, 2))
    end = processes.vector(model)
    torch.save({"end": end, "metrics": optimizer.metrics()}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def check(name: str, folder: Path) -> None:
    first, second = folder / "first", folder / "second"
    first.mkdir()
    second.mkdir()
    survivor, dead = forked.start(2, run, first, name)
    assert dead == -signal.SIGKILL
    assert survivor == 3  # it has neither hung nor gone on alone
    ended = torch.load(first / "ended 0.pt")
    assert ended["error"] is not None and "Error" in ended["error"].split(":")[0]
    assert ended["waited"] < TIMEOUT + 15

    assert forked.start(2, resume, second, name, first / "checkpoint") == [0, 0]
    one, two = (torch.load(second / f"{rank}.pt") for rank in range(2))
    assert torch.equal(one["end"], two["end"]) and one["metrics"] == two["metrics"]
    model = processes.network()
    optimizer = untuned.create(model, name, **OPTIONS[name])
    processes.train(model, optimizer, range(END))
    expected = processes.vector(model)
    way = (expected - processes.vector(processes.network())).abs().max()
    assert way > 1e-3
    assert (one["end"] - expected).abs().max() <= 1e-12 * way
    for key, value in optimizer.metrics().items():
        assert one["metrics"][key] == pytest.approx(value, rel=1e-11, abs=1e-14), key


def test_a_killed_rank_ends_the_others_and_the_checkpoint_goes_on(tmp_path: Path) -> None:
    check("prodigy", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["momo", "mechanic_adamw", "schedule_free_adamw", "tam", "dadapt_sgd", "motaps"])
def test_a_killed_rank_in_other_methods(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)

"""Every method trained without a break, trained until SIGKILL, and resumed in a new process.

Each phase is one interpreter, so that imports are paid three times and not 120 times. In the phase of the kill it only
imports, and forks a process for each method, which dies. The test files call `main` when they are run as scripts.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import untuned

# Options under which every method moves visibly in a few steps.
OPTIONS: dict[str, dict[str, Any]] = {
    "adam": {"lr": 0.01},
    "adamw": {"lr": 0.01},
    "adatam": {"lr": 2e-3},
    "adatamw": {"lr": 2e-3},
    "dadapt_adagrad": {"d0": 1e-2},
    "dadapt_adam": {"d0": 1e-3},
    "dadapt_adan": {"d0": 1e-3, "growth_rate": 1.05},
    "dadapt_da": {"d0": 0.1},
    "dadapt_gd": {"d0": 0.1},
    "dadapt_lion": {"d0": 1e-3, "growth_rate": 1.05},
    "dadapt_sgd": {"d0": 1e-2, "momentum": 0.5},
    "dowg": {"eps": 1e-2},
    "dog": {"reps_rel": 1e-2},
    "gradagrad": {"lr": 0.05, "momentum": 0.5},
    "ldog": {"reps_rel": 1e-2},
    "mechanic_adamw": {"s_init": 1e-2},
    "mechanic_sgd": {"s_init": 1e-2},
    "momo": {"lr": 10.0},
    "momo_adam": {"lr": 0.1, "use_fstar": True, "lb": -1.0},
    "motaps": {"samples": 20, "lr": 0.3, "target_lr": 0.5, "momentum": 0.5},
    "prodigy": {"d0": 1e-3},
    "prodigy_da": {"d0": 0.1},
    "prodigy_gd": {"d0": 0.1},
    "resetting": {"d0": 0.1},
    "resetting_gd": {"d0": 0.1},
    "sgd": {"lr": 0.1, "momentum": 0.9},
    "taps": {"samples": 20, "lr": 0.3},
}

# name, its folder, whether to die, whether to go on from what lies there; returns all that was trained
Train = Callable[[str, Path, bool, bool], dict[str, Any]]


def main(train: Train) -> None:
    """Run the phase of the command line: `FILE unbroken|killed|resumed FOLDER`."""
    phase, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    importlib.import_module("torch._dynamo")  # a second, which every first step would pay
    for name in untuned.list():
        where = folder / ("unbroken" if phase == "unbroken" else "broken") / name
        where.mkdir(parents=True, exist_ok=True)
        if phase == "killed":
            child = os.fork()
            if child == 0:
                try:
                    train(name, where, True, False)
                finally:
                    os._exit(1)
            status = os.waitpid(child, 0)[1]
            if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
                sys.exit(f"{name} ended with status {status} where it should have been killed")
        else:
            torch.save(train(name, where, False, phase == "resumed"), where / "final.pt")


def main_of_two(train: Train, names: Iterable[str]) -> None:
    """As `main`, in two processes of one process group for each name, both forked; they share its folder.

    Of the two that are to die rank 1 kills itself, in the middle of a step; the other is killed then, as launchers do.
    """
    phase, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    importlib.import_module("torch._dynamo")
    for name in names:
        where = folder / ("unbroken" if phase == "unbroken" else "broken") / name
        where.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        ranks = [_rank(rank, train, name, where, phase) for rank in range(2)]
        status = os.waitpid(ranks[1], 0)[1]
        if phase == "killed":
            os.kill(ranks[0], signal.SIGKILL)
            expected = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        else:
            expected = status == 0
        if not (os.waitpid(ranks[0], 0)[1] == 0 or phase == "killed") or not expected:
            sys.exit(f"{name}, {phase}: rank 1 ended with status {status}")


def _rank(rank: int, train: Train, name: str, where: Path, phase: str) -> int:
    child = os.fork()
    if child:
        return child
    try:
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        os.environ |= {key: str(value) for key, value in own.items()}
        found = train(name, where, phase == "killed" and rank == 1, phase == "resumed")
        if phase != "killed":
            (where / str(rank)).mkdir()
            torch.save(found, where / str(rank) / "final.pt")
            leave()
            os._exit(0)
    except Exception:
        traceback.print_exc()
    os._exit(1)


def options(name: str) -> dict[str, Any]:
    return {"execution": "reference"} | OPTIONS.get(name, {})


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run(file: str, folder: Path) -> None:
    """All three phases of a test file, on a CPU and without a hub."""
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    for phase in ("unbroken", "killed", "resumed"):
        done = subprocess.run(
            [sys.executable, file, phase, str(folder)], env=environment, capture_output=True, text=True, timeout=280
        )
        assert done.returncode == 0, f"{phase}: {done.stderr[-3000:]}"


def compare(folder: Path, name: str) -> None:
    """Assert that weights and optimizer of both runs have the same bits, and that the break was a break."""
    ends = [torch.load(folder / kind / name / "final.pt", weights_only=True) for kind in ("unbroken", "broken")]
    assert (ends[0].pop("begun_at"), ends[1].pop("begun_at")) == (0, 3)
    flat = [dict(_flat(end)) for end in ends]
    assert flat[0].keys() == flat[1].keys()
    assert [key for key in flat[0] if not torch.equal(flat[0][key], flat[1][key])] == []
    moved = max((flat[0][f"weights.{k}"] - start).abs().max() for k, start in _flat(ends[0]["start"]))
    assert moved > 1e-4


def _flat(value: Any, path: str = "") -> list[tuple[str, torch.Tensor]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if items is not None:
        return [leaf for key, inner in items for leaf in _flat(inner, f"{path}.{key}" if path else str(key))]
    return [(path, value if isinstance(value, torch.Tensor) else torch.tensor(value))] if _is_number(value) else []


def _is_number(value: Any) -> bool:
    return isinstance(value, torch.Tensor | int | float | bool)


def one_and_two(file: str, folder: Path, **environment: str) -> list[dict[str, Any]]:
    """What `file together FOLDER` saved from one process, and from either of two."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for how in ([], launch):
        command = [sys.executable, *how, file, "together", str(folder)]
        surroundings = os.environ | {"OMP_NUM_THREADS": "1"} | environment
        done = subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{name}.pt", weights_only=True) for name in ("0of1", "0of2", "1of2")]


def leave() -> None:
    """End a process of one or two: without this gloo now and then aborts one that ends before the other."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()

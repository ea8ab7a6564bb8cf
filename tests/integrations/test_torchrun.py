"""Plain torch: every method killed and resumed, and the torchrun example, of which the whole run is killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import kill_and_resume
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import untuned

pytestmark = pytest.mark.integrations
SCRIPT = Path(__file__).parents[2] / "examples" / "torchrun_training.py"


# ------------------------------------------------------------------ one process


def train(name: str, folder: Path, kill: bool, resume: bool) -> dict[str, Any]:
    """Seven steps of two micro-batches, with dropout, clipping, a schedule and evaluations; saved at step 3."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 2))
    start = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = untuned.create(model, name, **kill_and_resume.options(name) | {"weight_decay": 0.01})
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, total_iters=7)
    begun_at = 0
    if resume:
        saved = torch.load(folder / "last.pt", weights_only=True)
        begun_at = saved["step"]
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        torch.set_rng_state(saved["random"])
    for step in range(begun_at + 1, 8):
        optimizer.zero_grad()
        for k in (2 * step, 2 * step + 1):
            generator = torch.Generator().manual_seed(k)
            x = torch.randn(4, 3, generator=generator)
            each = (model(x) - torch.stack([torch.sin(2 * x[:, 0]), x[:, 1] * x[:, 2]], 1)).square().mean(1)
            (each.mean() / 2).backward()
            optimizer.record_loss(each.mean(), sample_ids=torch.arange(4 * k, 4 * k + 4) % 20)
            if kill and step == 6:
                kill_and_resume.die()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        if step % 2 == 0:
            with optimizer.averaged_parameters(), torch.no_grad():
                mse_loss(model(torch.ones(1, 3)), torch.ones(1, 2))
        if step == 3:
            states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            states |= {"schedule": schedule.state_dict(), "random": torch.get_rng_state(), "step": step}
            torch.save(states, folder / "last.pt")
    end = {"weights": model.state_dict(), "optimizer": optimizer.state_dict()}
    return end | {"begun_at": begun_at, "start": start}


@pytest.mark.parametrize("name", untuned.list())
def test_a_killed_run_ends_as_one_without_a_break(runs: Path, name: str) -> None:
    kill_and_resume.compare(runs, name)


# ------------------------------------------------------------------ torchrun


def start(folder: Path, method: str, lr: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    options = ["--out", str(folder), "--optimizer", method, "--lr", lr, "--epochs", "8", "--execution", "reference"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        command + options, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(run: subprocess.Popen[str]) -> str:
    printed, _ = run.communicate(timeout=120)
    assert run.returncode == 0, printed[-3000:]
    return printed


def kill(run: subprocess.Popen[str]) -> None:
    """SIGKILL the launcher and its workers, which have sessions of their own."""
    found = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    assert len(found) == 2
    for pid in (run.pid, *map(int, found)):
        os.kill(pid, signal.SIGKILL)
    run.communicate(timeout=30)


def flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, inner in items for k, v in flat(inner, f"{path}.{key}").items()}
    return {path: value}


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
@pytest.mark.parametrize(("method", "lr"), [("momo_adam", "1"), ("schedule_free_adamw", "0.01")])
def test_torchrun_killed_and_started_again(method: str, lr: str, tmp_path: Path) -> None:
    printed = finish(start(tmp_path / "whole", method, lr))
    losses = [float(loss) for loss in re.findall(r"test loss (\S+),", printed)]
    assert len(losses) == 8 and losses[-1] < 0.5 * losses[0]

    broken = tmp_path / "broken"
    run, deadline = start(broken, method, lr), time.monotonic() + 120
    while not (broken / "last.pt").exists():
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    kill(run)
    assert not (broken / "end.pt").exists()
    saved_at = torch.load(broken / "last.pt", weights_only=True)["step"]
    assert f"resumed at step {saved_at}\n" in finish(start(broken, method, lr))

    whole, resumed = (flat(torch.load(tmp_path / d / "end.pt", weights_only=True)) for d in ("whole", "broken"))
    assert whole.keys() == resumed.keys() and whole[".step"] == 8 * 32 > saved_at
    for key, value in whole.items():
        assert torch.equal(value, resumed[key]) if isinstance(value, torch.Tensor) else value == resumed[key], key


if __name__ == "__main__":
    kill_and_resume.main(train)

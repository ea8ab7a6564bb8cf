"""DeepSpeed's ZeRO in two processes: it puts a flat piece of all parameters of a group in their place."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import kill_and_resume
import pytest
import torch
from torch import Tensor, nn

import untuned

if importlib.util.find_spec("deepspeed") is None:
    pytest.skip("needs deepspeed", allow_module_level=True)

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("default"), pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
METHODS = ["adamw", "mechanic_adamw", "momo_adam", "prodigy", "schedule_free_adamw"]
CASES = [*(f"{name}-1" for name in METHODS), "prodigy-2", "adamw-1-2"]  # the stage of ZeRO, and groups
STEPS = 7


def net() -> nn.Module:
    """Of 76 parameters: DeepSpeed pads to a multiple of four."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))


def made(case: str, model: nn.Module, **options: Any) -> untuned.Optimizer:
    name, _, *several = case.split("-")
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    chosen = groups if several else model.parameters()
    return untuned.create(chosen, name, **kill_and_resume.options(name), **options)


def loss_on(model: nn.Module, step: int, rows: slice) -> Tensor:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
    return (model(x[rows]) - torch.sin(2 * x[rows])).square().mean()


def train(case: str, folder: Path, kill: bool, resume: bool) -> dict[str, Any]:
    """Seven steps, saved after the third, killed in the sixth."""
    import deepspeed
    import torch.distributed as dist

    deepspeed.init_distributed("gloo")
    model = net()
    start = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = made(case, model, shard_group="world")
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 0.0,  # by default DeepSpeed clips to 1
        "zero_optimization": {"stage": int(case.split("-")[1])},
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    begun_at, taken = 3 if resume else 0, 0
    if resume:
        engine.load_checkpoint(str(folder), tag="step_3")
    for step in range(begun_at, STEPS):
        for micro_batch in range(2):
            loss = loss_on(engine, step, slice(2 * dist.get_rank() + micro_batch, None, 4))
            engine.backward(loss)
            optimizer.record_loss(loss)
            if kill and step == 5 and micro_batch == 1:
                kill_and_resume.die()
            engine.step()
        if step == begun_at:
            taken = nbytes(optimizer)
        if step == 2:
            engine.save_checkpoint(str(folder), tag="step_3")
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    found = {"weights": weights, "optimizer": optimizer.state_dict(), "metrics": optimizer.metrics()}
    optimizer.eval()
    found["evaluated"] = dict(model.state_dict())
    return found | {"start": start, "begun_at": begun_at, "bytes": taken}


def nbytes(optimizer: torch.optim.Optimizer) -> int:
    """What the slots take in this process; counters and numbers are scalars."""
    return sum(v.nbytes for held in optimizer.state.values() for v in held.values() if v.dim())


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_ends_as_one_without_a_break(runs: Path, case: str, rank: int) -> None:
    kill_and_resume.compare(runs, f"{case}/{rank}")


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one_and_share_its_memory(runs: Path, case: str) -> None:
    model = net()
    optimizer = made(case, model)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = loss_on(model, step, slice(None))
        loss.backward()
        optimizer.step(loss=loss)
    ranks = [torch.load(runs / "unbroken" / case / str(rank) / "final.pt", weights_only=True) for rank in range(2)]
    for found in ranks:
        for key, value in model.state_dict().items():  # in float32, and summed in another order
            assert (found["weights"][key] - value).abs().max() < 1e-5 * value.abs().max(), key
        chosen = optimizer.metrics()["lr_effective"]
        assert found["metrics"]["lr_effective"] == pytest.approx(chosen, rel=1e-5)
    assert ranks[0]["metrics"]["lr_effective"] == ranks[1]["metrics"]["lr_effective"]
    assert [found["bytes"] for found in ranks] == [nbytes(optimizer) / 2] * 2


@pytest.mark.parametrize("rank", [0, 1])
def test_the_averaged_point_does_not_reach_the_model(runs: Path, rank: int) -> None:
    """If this ever fails, the page can say so."""
    found = torch.load(runs / "unbroken" / "schedule_free_adamw-1" / str(rank) / "final.pt", weights_only=True)
    assert all(torch.equal(found["evaluated"][key], value) for key, value in found["weights"].items())


def test_the_code_of_the_page_runs() -> None:
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    done = subprocess.run(
        [sys.executable, __file__, "page"], env=os.environ | alone, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "3.0 steps"


def page() -> None:
    block = (ROOT / "docs" / "integrations" / "deepspeed.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {"torch": torch, "model": nn.Linear(3, 2)}
    names["data"] = [(torch.randn(4, 3), torch.randn(4, 2)) for _ in range(3)]
    exec(block, names)
    print(names["optimizer"].metrics()["steps"], "steps", flush=True)
    kill_and_resume.leave()


if __name__ == "__main__":
    os.environ |= {"DS_ACCELERATOR": "cpu"}
    if sys.argv[1] == "page":
        page()
    else:
        kill_and_resume.main_of_two(train, CASES)

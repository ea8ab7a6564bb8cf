"""Accelerate with FSDP2 in two processes: it shards the model, and exchanges the tensors in the optimizer's groups."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import kill_and_resume
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

import untuned

accelerate = pytest.importorskip("accelerate")

from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin  # noqa: E402

from untuned.integrations.accelerate import backward  # noqa: E402

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("default"), pytest.mark.timeout(900)]
METHODS = ["adamw", "mechanic_adamw", "momo_adam", "prodigy", "schedule_free_adamw"]
CASES = [f"{name}-{kind}" for name in METHODS for kind in ("SHARDED_STATE_DICT", "FULL_STATE_DICT")]
STEPS = 7


def net() -> nn.Module:
    """Of even sizes, so that each process has a half; the last bias is whole in one of them."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()


def made(name: str, model: nn.Module) -> untuned.Optimizer:
    """With two groups, biases undecayed, as trainers build them."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return untuned.create(groups, name, **kill_and_resume.options(name))


def loss_on(model: nn.Module, step: int, rows: slice) -> Tensor:
    x = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
    return (model(x[rows]) - torch.sin(2 * x[rows, :2])).square().mean()


def sharding(kind: str) -> Any:
    """An Accelerator that uses FSDP2 on a CPU. Of itself it would on an accelerator only: what decides is set here,
    and everything from `prepare` on is Accelerate's own."""
    accelerator = accelerate.Accelerator(cpu=True)
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        state_dict_type=kind,
        cpu_ram_efficient_loading=kind == "SHARDED_STATE_DICT",  # by way of the meta device
        auto_wrap_policy="size_based_wrap",
        min_num_params=10,
    )
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerate.PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    return accelerator


def local(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: local(inner) for key, inner in value.items()}
    return value.to_local() if isinstance(value, DTensor) else value


def nbytes(optimizer: torch.optim.Optimizer) -> int:
    """What the slots take in this process; counters and numbers are scalars."""
    return sum(local(v).nbytes for held in optimizer.state.values() for v in held.values() if v.dim())


def train(case: str, folder: Path, kill: bool, resume: bool) -> dict[str, Any]:
    """Seven steps, saved after the third, killed in the sixth."""
    name, kind = case.split("-")
    accelerator = sharding(kind)
    assert accelerator.is_fsdp2 and accelerator.num_processes == 2
    model = net()
    start = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = made(name, model)
    whole = [weakref.ref(p) for p in model.parameters()]
    model, optimizer = accelerator.prepare(model, optimizer)
    assert all(isinstance(p, DTensor) for group in optimizer.param_groups for p in group["params"])
    begun_at, before, taken = 3 if resume else 0, nbytes(optimizer), 0
    if resume:
        accelerator.load_state(str(folder / "step_3"))
    for step in range(begun_at, STEPS):
        optimizer.zero_grad()
        backward(accelerator, optimizer, loss_on(model, step, slice(accelerator.process_index, None, 2)))
        if kill and step == 5:
            kill_and_resume.die()
        optimizer.step()
        if step == begun_at:
            gc.collect()
            taken = nbytes(optimizer)
            assert [ref() for ref in whole if isinstance(ref(), nn.Parameter)] == []
            assert optimizer.state.keys() == {*model.parameters()}
        if step == 2:
            accelerator.save_state(str(folder / "step_3"))
    weights = {key: value.full_tensor() for key, value in model.state_dict().items()}
    found = {"weights": weights, "optimizer": local(optimizer.state_dict()), "start": start, "begun_at": begun_at}
    return found | {"bytes": taken, "bytes_before": before}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_ends_as_one_without_a_break(runs: Path, case: str, rank: int) -> None:
    kill_and_resume.compare(runs, f"{case}/{rank}")


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one_and_share_its_memory(runs: Path, case: str) -> None:
    model = net()
    optimizer = made(case.split("-")[0], model)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = loss_on(model, step, slice(None))
        loss.backward()
        optimizer.step(loss=loss)
    ranks = [torch.load(runs / "unbroken" / case / str(rank) / "final.pt", weights_only=True) for rank in range(2)]
    for found in ranks:
        for key, value in model.state_dict().items():
            torch.testing.assert_close(found["weights"][key], value, rtol=1e-9, atol=1e-9)
    assert [found["bytes"] for found in ranks] == [nbytes(optimizer) / 2] * 2
    # Accelerate reads the state before it shards. If this ever fails, the page can say so.
    assert [found["bytes_before"] for found in ranks] == [nbytes(optimizer)] * 2


if __name__ == "__main__":
    kill_and_resume.main_of_two(train, CASES)

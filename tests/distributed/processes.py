"""What two processes do together: every scenario in one go, since starting them costs more than running them."""

from __future__ import annotations

import datetime
import functools
import gc
import math
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import untuned

STEPS = 20
MORE = range(STEPS, STEPS + 5)

# Options under which every method moves visibly in these steps.
OPTIONS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.1, "momentum": 0.9},
    "adam": {"lr": 0.02},
    "adamw": {"lr": 0.02},
    "momo": {"lr": 10.0, "weight_decay": 1e-3},
    "momo_adam": {"lr": 0.1, "use_fstar": True, "lb": -1.0},
    "prodigy": {"d0": 1e-3, "weight_decay": 0.01},
    "dadapt_adam": {"d0": 1e-3, "weight_decay": 0.01},
    "mechanic_sgd": {"s_init": 1e-3, "weight_decay": 0.01},
    "mechanic_adamw": {"s_init": 1e-3, "weight_decay": 0.01},
    "tam": {"lr": 0.1},
    "adatam": {"lr": 2e-3},
    "adatamw": {"lr": 2e-3},
    "schedule_free_sgd": {"lr": 0.5, "warmup_steps": 5},
    "schedule_free_adamw": {"lr": 0.02},
    "sps": {"lr": 0.2, "weight_decay": 0.01},
    "dec_sps": {"lr": 0.5},
    "prox_sps": {"lr": 0.5, "weight_decay": 0.01},
    "sp": {"lr": 0.1},
    "alig": {"lr": 0.2},
    "taps": {"samples": 16, "lr": 0.3},
    "motaps": {"samples": 16, "lr": 0.3, "target_lr": 0.5, "momentum": 0.5},
    "dadapt_sgd": {"d0": 1e-2, "momentum": 0.5},
    "dadapt_adagrad": {"d0": 1e-2},
    "dadapt_lion": {"d0": 1e-3, "growth_rate": 1.05},
    "dadapt_adan": {"d0": 2e-3, "growth_rate": 1.05},
    "dadapt_da": {"d0": 0.1},
    "dadapt_gd": {"d0": 0.1},
    "prodigy_da": {"d0": 0.1},
    "prodigy_gd": {"d0": 0.1},
    "resetting": {"d0": 0.1},
    "resetting_gd": {"d0": 0.1},
    "dog": {"reps_rel": 1e-2},
    "ldog": {"reps_rel": 1e-2},
    "dowg": {"eps": 1e-2},
    "gradagrad": {"lr": 0.05, "momentum": 0.5},
    "gradagrad_diagonal": {"lr": 0.02},
    "madgrad": {"lr": 0.02},
    "mirror_madgrad": {"lr": 0.02},
    "adarem": {"lr": 0.1, "momentum": 0.5},
    "multiplicative_sgd": {"lr": 0.1, "momentum": 0.5},
    "multiplicative_adam": {"lr": 0.02, "mix": 0.5},
    "mda": {"lr": 0.3},
    "ahb_adam": {"lr": 0.02},
    "ahb_sgd": {"lr": 0.05},
    "am_msgd": {"lr": 0.05},
    "sgd_spa": {"lr": 0.5},
    "sgdf": {"lr": 0.1},
    "sngm": {"lr": 0.02},
    "gpa_adamw": {"lr": 0.02, "keep": 0.8},
    "ngn": {"lr": 0.3, "momentum": 0.5},
    "ormo": {"lr": 0.05, "num_workers": 3},
    "prodigy_schedule_free": {"d0": 1e-3, "weight_decay": 0.01},
    "random_scaling_adamw": {"lr": 0.02},
    "random_scaling_sgd": {"lr": 0.1},
    "relative_muon": {"lr": 0.1},
}
REPLICATED = list(OPTIONS)
WHOLE = {"tam", "adatam", "adatamw", "ldog"}  # these see whole tensors
WHOLE |= {"adarem", "relative_muon"}
FLATTENED = [name for name in OPTIONS if name not in WHOLE]
SAVED = ["momo", "prodigy", "mechanic_adamw", "schedule_free_adamw", "tam"]
MIXED = ["momo", "prodigy", "dadapt_adam", "mechanic_sgd", "tam"]


def network(width: int = 3) -> nn.Module:
    """Over two processes the first layer has shards of 2 and 1 rows, the last of 1 and none."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 1)).double()


def loss_on(model: nn.Module, k: int, rows: slice) -> Tensor:
    """The mean loss on some rows of batch k, which has eight."""
    generator = torch.Generator().manual_seed(k)
    x = torch.randn(8, 4, dtype=torch.float64, generator=generator)
    y = torch.sin(2 * x[:, :1]) + x[:, 1:2] * x[:, 2:3]
    return (model(x[rows]) - y[rows]).square().mean()


def train(model: nn.Module, optimizer: untuned.Optimizer, steps: range, rows: slice = slice(None)) -> None:
    for k in steps:
        optimizer.zero_grad()
        loss = loss_on(model, k, rows)
        loss.backward()
        optimizer.step(loss=loss, sample_ids=torch.arange(8)[rows] + 8 * (k % 2))


def vector(model: nn.Module) -> Tensor:
    whole = [p.detach().full_tensor() if isinstance(p, DTensor) else p.detach() for p in model.parameters()]
    return torch.cat([p.flatten() for p in whole]).clone()


def replicated(rank: int, name: str, **options: Any) -> dict[str, Any]:
    """DistributedDataParallel, each process with rows of its own."""
    model = network()
    wrapped = DistributedDataParallel(model)
    optimizer = untuned.create(model, name, **OPTIONS[name], **options)
    train(wrapped, optimizer, range(STEPS), slice(rank, None, 2))
    return {"end": vector(model), "metrics": optimizer.metrics()}


def nan_loss(rank: int) -> dict[str, Any]:
    """One process has a NaN loss in the middle of the run; the gradients are fine."""
    model = network()
    wrapped = DistributedDataParallel(model)
    optimizer = untuned.create(model, "momo", **OPTIONS["momo"])
    train(wrapped, optimizer, range(10), slice(rank, None, 2))
    optimizer.zero_grad()
    loss_on(wrapped, 99, slice(rank, None, 2)).backward()
    optimizer.step(loss=math.nan if rank == 1 else 1.0)
    train(wrapped, optimizer, range(10, STEPS), slice(rank, None, 2))
    return {"end": vector(model), "metrics": optimizer.metrics()}


def sharded(rank: int, name: str, folder: Path) -> dict[str, Any]:
    """FSDP2, each process with rows of its own; a step with a NaN in one shard; a checkpoint; a few steps more."""
    rows = slice(rank, None, 2)
    model = network()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = untuned.create(model, name, **OPTIONS[name])
    train(model, optimizer, range(STEPS), rows)
    found = {"end": vector(model), "metrics": optimizer.metrics()}

    optimizer.zero_grad()
    loss_on(model, 99, rows).backward()
    poisoned = next(model.parameters()).grad
    assert isinstance(poisoned, DTensor)
    if rank == 1:
        poisoned.to_local()[0, 0] = math.nan
    optimizer.step(loss=1.0, sample_ids=[0, 1, 2, 3])
    found["after nan"] = vector(model)
    found["skipped"] = optimizer.metrics()["skipped"]

    if name in SAVED:
        values, state = get_state_dict(model, optimizer)
        dcp.save({"model": values, "optimizer": state}, checkpoint_id=folder / name)
    train(model, optimizer, MORE, rows)
    found["later"] = vector(model)
    optimizer.eval()
    found["averaged"] = vector(model)
    return found


def exchanged(rank: int, name: str, looked_at: bool) -> dict[str, Any]:
    """FSDP2 after the optimizer was built; its groups get the shards by hand, as trainers do that take both."""
    model = network(4)
    optimizer = untuned.create(model, name, **OPTIONS[name])
    if looked_at:  # Accelerate does, to move it to the device
        optimizer.load_state_dict(optimizer.state_dict())
    names = {p: name for name, p in model.named_parameters()}
    lists = [[names[p] for p in group["params"]] for group in optimizer.param_groups]
    whole = [weakref.ref(p) for p in names]
    names.clear()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    for group, inside in zip(optimizer.param_groups, lists, strict=True):
        group["params"] = [model.get_parameter(name) for name in inside]
    train(model, optimizer, range(1), slice(rank, None, 2))
    gc.collect()
    alive, bytes_of_slots = [p.shape for ref in whole if (p := ref()) is not None], nbytes(optimizer)
    train(model, optimizer, range(1, STEPS), slice(rank, None, 2))
    return {"end": vector(model), "alive": alive, "bytes": bytes_of_slots, "metrics": optimizer.metrics()}


def nbytes(optimizer: torch.optim.Optimizer) -> int:
    """What the slots take in this process; counters and numbers are scalars."""
    slots = [value for held in optimizer.state.values() for value in held.values() if value.dim()]
    return sum((slot.to_local() if isinstance(slot, DTensor) else slot).nbytes for slot in slots)


def mixed(rank: int, name: str) -> dict[str, Any]:
    """Parameters split along columns, kept whole by the mesh, split along rows and unknown to it, in one optimizer."""
    mesh = init_device_mesh("cpu", (2,))
    whole, model = network(), network()
    for key, placement in {"0.weight": Shard(1), "0.bias": Replicate(), "2.weight": Shard(0)}.items():
        layer, leaf = key.split(".")
        p = distribute_tensor(model.get_parameter(key).detach(), mesh, [placement])
        setattr(model.get_submodule(layer), leaf, nn.Parameter(p))
    optimizer = untuned.create(model, name, **OPTIONS[name])
    for k in range(STEPS):
        nn.utils.vector_to_parameters(vector(model), whole.parameters())
        whole.zero_grad()
        loss = loss_on(whole, k, slice(None))
        loss.backward()
        for p, q in zip(model.parameters(), whole.parameters(), strict=True):
            assert q.grad is not None
            p.grad = distribute_tensor(q.grad, mesh, p.placements) if isinstance(p, DTensor) else q.grad
        optimizer.step(loss=loss)
    return {"end": vector(model), "metrics": optimizer.metrics()}


WIDTHS = {"ddp": 3, "fsdp": 3, "hsdp": 3, "tensor parallel": 4}  # torch splits columns evenly only
LAYOUTS = list(WIDTHS)


def laid_out(rank: int, name: str, layout: str) -> dict[str, Any]:
    """Four processes: shards in all of them, two replicas of two shards, columns by rows, or data parallel."""
    rows, group = slice(rank, None, 4), "world"
    model = network(WIDTHS[layout])
    if layout == "ddp":
        wrapped: nn.Module = DistributedDataParallel(model)
    elif layout == "fsdp":  # the first layer has shards of 1, 1, 1 and 0 rows
        wrapped = fully_shard(model, mesh=init_device_mesh("cpu", (4,)))
    elif layout == "hsdp":
        wrapped = fully_shard(model, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards")))
    else:  # tensor parallel inside, sharded data parallel outside
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "columns"))
        plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        parallelize_module(model, mesh["columns"], plan)
        wrapped = fully_shard(model, mesh=mesh["data"])
        rows = slice(rank // 2, None, 2)
        group = mesh["data"].get_group()  # the ranks of one column see different data, those of one row the same
    optimizer = untuned.create(model, name, loss_group=group, **OPTIONS[name])
    train(wrapped, optimizer, range(STEPS), rows)
    return {"end": vector(model), "metrics": optimizer.metrics()}


def every_layout(rank: int, folder: Path) -> dict[str, Any]:
    return {f"{layout} {name}": laid_out(rank, name, layout) for layout in LAYOUTS for name in OPTIONS}


def divided(rank: int, name: str) -> dict[str, Any]:
    """ZeroRedundancyOptimizer: each process steps parameters of its own; one of them meets a NaN."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = network()
    wrapped = DistributedDataParallel(model)
    make = functools.partial(untuned.get(name).optimizer, **OPTIONS[name], shard_group="world", clip_grad_norm=2.0)
    params: Any = wrapped.parameters()
    if name == "relative_muon":  # it must not divide groups in turn
        kept = ("params", "label", "own")
        params = [{key: group[key] for key in kept} for group in untuned.create(model, name).param_groups]
    optimizer: Any = ZeroRedundancyOptimizer(params, make)
    train(wrapped, optimizer, range(STEPS), slice(rank, None, 2))
    end = vector(model)
    next(model.parameters()).grad.fill_(math.nan)
    optimizer.step(loss=1.0, sample_ids=torch.arange(4))
    return {"end": end, "after nan": vector(model), "metrics": optimizer.optim.metrics()}


def flattened(rank: int, name: str) -> dict[str, Any]:
    """FSDP1 with the original parameters: each process holds a piece of a flat one, as plain tensors."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = FullyShardedDataParallel(network(), use_orig_params=True, device_id=torch.device("cpu"))
    optimizer = untuned.create([*model.parameters()], name, **OPTIONS[name], shard_group="world", clip_grad_norm=2.0)
    train(model, optimizer, range(STEPS), slice(rank, None, 2))
    with FullyShardedDataParallel.summon_full_params(model):
        return {"end": vector(model), "metrics": optimizer.metrics()}


def every_scenario(rank: int, folder: Path) -> dict[str, Any]:
    found = {f"replicated {name}": replicated(rank, name) for name in REPLICATED}
    found["own loss"] = replicated(rank, "momo", loss_group=None)
    found["nan loss"] = nan_loss(rank)
    found |= {f"sharded {name}": sharded(rank, name, folder) for name in OPTIONS}
    found |= {f"exchanged {name} {was}": exchanged(rank, name, was) for name in SAVED for was in (False, True)}
    with warnings.catch_warnings(action="ignore"):  # torch's, that these have successors
        found |= {f"divided {name}": divided(rank, name) for name in OPTIONS}
        found |= {f"flattened {name}": flattened(rank, name) for name in FLATTENED}
    return found | {f"mixed {name}": mixed(rank, name) for name in MIXED}


def _process(rank: int, size: int, job: Callable[[int, Path], Any], folder: Path) -> None:
    torch.set_num_threads(1)
    where = f"file://{folder}/rendezvous"
    limit = datetime.timedelta(seconds=60)  # what one process waits for another that has failed
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=size, timeout=limit)
    try:
        torch.save(job(rank, folder), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def run(job: Callable[[int, Path], Any], folder: Path, size: int = 2) -> list[Any]:
    """`job(rank, folder)` in `size` processes; -> what each returned."""
    mp.spawn(_process, args=(size, job, folder), nprocs=size)
    return [torch.load(folder / f"{rank}.pt") for rank in range(size)]

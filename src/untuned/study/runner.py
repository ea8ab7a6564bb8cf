"""One run: train a task with a method at a learning rate, and measure."""

import math
import random
import reprlib
import shutil
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, count, islice, repeat
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from untuned.gradients import Norms
from untuned.optimizer.optimizer import Optimizer
from untuned.schedules import NormRecorder
from untuned.study import building
from untuned.study.config import Run
from untuned.study.memory import reset_peak, resident_peak, state_bytes
from untuned.study.range_test import find_lr
from untuned.study.tasks import Task

EVALUATIONS = 20
HOPELESS_AFTER = 0.25  # part of the run

CURVE = pa.schema(
    {
        "step": pa.int32(),
        "epoch": pa.float32(),
        "train_loss": pa.float32(),
        "val_loss": pa.float32(),
        "metric": pa.float32(),
        "lr_effective": pa.float32(),
        "step_us": pa.float32(),
        "fwdbwd_us": pa.float32(),
    }
)


@dataclass
class Result:
    """How a run ended. `final` is what `evaluate()` said at the end, None unless the run is done."""

    status: str  # done, diverged or crashed
    seconds: float = 0.0
    steps: int = 0
    final: dict[str, float] | None = None
    error: str | None = None
    state_bytes: int | None = None  # what the optimizer holds beside parameters and gradients, at the end
    peak_bytes: int | None = None  # largest resident memory of the process during the run, None where it is not told
    warnings: tuple[str, ...] = ()  # what was warned of, each once


class _DivergedError(Exception):
    pass


@dataclass
class _Curve:
    """Rows so far, and what happened since the last one."""

    rows: list[dict[str, float | None]] = field(default_factory=list)
    steps: int = 0
    losses: list[float] = field(default_factory=list)
    fwdbwd: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)
    optimizer: torch.optim.Optimizer | None = None

    def add(self, epoch: float, **values: float) -> None:
        self.rows.append(
            {
                "step": self.steps,
                "epoch": epoch,
                "train_loss": fmean(self.losses) if self.losses else None,
                "step_us": 1e6 * median(self.step) if self.step else None,
                "fwdbwd_us": 1e6 * median(self.fwdbwd) if self.fwdbwd else None,
                **values,
            }
        )
        self.losses, self.fwdbwd, self.step = [], [], []


def train(task: Task, run: Run, norms: Path | None = None) -> tuple[Result, pa.Table]:
    """Train, and return how it ended and the curve so far; an exception is a result too.

    The numbers depend on `run` alone: not on the thread setting, nor on what ran before in this process.
    A non-finite training loss, weight or result of `evaluate()` ends the run as diverged, an exception as crashed. With
    `run.stop_hopeless` so does a validation loss above that of the untrained model, from a quarter of the run on.
    `norms`: a folder for the log of gradient norms, see `untuned.schedules.NormRecorder`.
    """
    begin = time.perf_counter()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    reset_peak()
    curve = _Curve()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        warnings.filterwarnings("ignore", module=r"untuned\.")  # of a learning rate that a study tries on purpose
        try:
            result = Result("done", final=_train(task, run, curve, norms))
        except _DivergedError as reason:
            result = Result("diverged", error=str(reason))
        except Exception:  # whatever a task or a method raises is a result
            result = Result("crashed", error=traceback.format_exc())
        finally:
            torch.set_num_threads(threads)
    result.seconds, result.steps = time.perf_counter() - begin, curve.steps
    result.peak_bytes = resident_peak()
    result.state_bytes = None if curve.optimizer is None else state_bytes(curve.optimizer)
    result.warnings = tuple(dict.fromkeys(f"{w.category.__name__}: {w.message}" for w in caught))
    return result, pa.Table.from_pylist(curve.rows, schema=CURVE)


def _train(task: Task, run: Run, curve: _Curve, norms: Path | None) -> dict[str, float]:
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(run.seed)
    model = task.model(run.seed)
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"{run.task}: model(seed) must return a torch.nn.Module, not {_short(model)}")
    records = building.records_samples(run.method)
    if records and not task.samples:
        raise ValueError(f"{run.method} records a loss per sample, and {run.task} does not number its samples")
    given: dict[str, Any] = {"samples": task.samples} if records else {}
    given |= {} if norms is None else {"gradient": [Norms()]}  # summed in the step: no second pass over the gradients

    def create(of: torch.nn.Module, lr: float) -> torch.optim.Optimizer:
        return building.create(of, run.method, lr, run.options, **given)

    per_epoch = sum(1 for _ in task.batches(run.seed, 0))
    if not per_epoch:
        raise ValueError(f"{run.task}: batches(seed={run.seed}, epoch=0) is empty")
    total = max(1, round(run.epochs * run.budget * per_epoch))
    evaluations = {round(total * i / EVALUATIONS) for i in range(1, EVALUATIONS + 1)}
    lr = run.lr
    if run.probe:
        found, curve.steps = find_lr(task, run, model, create, total)
        lr *= found
    optimizer = curve.optimizer = create(model, lr)
    takes_loss = building.takes_loss(optimizer)
    follows = building.follow(optimizer, run.schedule, run.warmup, total - curve.steps)

    def evaluate() -> dict[str, float]:
        final = _evaluated(task, run, model, optimizer)
        curve.add(
            curve.steps / per_epoch,
            val_loss=final["val_loss"],
            metric=final[task.metric],
            lr_effective=_lr_effective(optimizer),
        )
        for name, value in final.items():
            if not math.isfinite(value):
                raise _DivergedError(f"{name} is {value} after step {curve.steps}")
        if not all(parameter.isfinite().all() for parameter in model.parameters()):
            raise _DivergedError(f"weights are not finite after step {curve.steps}")
        return final

    final = evaluate()
    untrained = final["val_loss"]
    stream = chain.from_iterable(task.batches(run.seed, epoch) for epoch in count())
    ids = chain.from_iterable(task.ids(run.seed, epoch) for epoch in count()) if records else repeat(None)
    with _recorded(optimizer, norms):
        for batch, sample_ids in islice(zip(stream, ids, strict=False), total - curve.steps):
            begin = time.perf_counter()
            optimizer.zero_grad()
            loss = _loss(task, run, model, batch)
            loss.backward()
            curve.fwdbwd.append(time.perf_counter() - begin)
            curve.losses.append(loss.item())
            if not math.isfinite(curve.losses[-1]):
                value = curve.losses[-1]
                curve.add(curve.steps / per_epoch)
                raise _DivergedError(f"train_loss is {value} after step {curve.steps}")
            given = {"loss": loss.detach()} if takes_loss else {}
            given |= {"sample_ids": sample_ids} if records else {}
            begin = time.perf_counter()
            optimizer.step(**given)
            curve.step.append(time.perf_counter() - begin)
            curve.steps += 1
            if curve.steps in evaluations:
                final = evaluate()
                if run.stop_hopeless and curve.steps >= HOPELESS_AFTER * total and final["val_loss"] > untrained:
                    said = f"hopeless: val_loss {final['val_loss']:.4g} is above that of the untrained model"
                    raise _DivergedError(f"{said}, {untrained:.4g}, after step {curve.steps}")
            if follows is not None:
                follows.step()
    return final


def _lr_effective(optimizer: torch.optim.Optimizer) -> float:
    if isinstance(optimizer, Optimizer):
        return optimizer.metrics()["lr_effective"]
    group = optimizer.param_groups[0]
    try:
        return float(group["lr"]) * float(group.get("d", 1.0))  # d: what D-Adaptation and its kin estimate
    except (KeyError, TypeError, ValueError):
        return math.nan


@contextmanager
def _recorded(optimizer: torch.optim.Optimizer, norms: Path | None) -> Iterator[None]:
    """Log gradient norms in a folder, which an earlier attempt may have left, also those of a run that diverges."""
    if norms is None:
        yield
        return
    shutil.rmtree(norms, ignore_errors=True)
    recorder = NormRecorder(optimizer, norms)
    try:
        yield
    finally:
        recorder.close()


def _evaluated(task: Task, run: Run, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    _switch(optimizer, "eval")
    found: Any = task.evaluate(model)
    _switch(optimizer, "train")
    try:
        final = {name: float(value) for name, value in found.items()}
    except (AttributeError, TypeError, ValueError):
        raise TypeError(f"{run.task}: evaluate() must return a dict of numbers, not {_short(found)}") from None
    for name in ("val_loss", task.metric):
        if name not in final:
            raise ValueError(f"{run.task}: evaluate() must return {name!r}; it returned only {', '.join(final)}")
    return final


def _switch(optimizer: torch.optim.Optimizer, mode: str) -> None:
    """Methods that average evaluate at another point than they train at: `eval()` and `train()` go between them."""
    switch = getattr(optimizer, mode, None)
    if callable(switch):
        switch()


def _loss(task: Task, run: Run, model: torch.nn.Module, batch: Any) -> torch.Tensor:
    loss: Any = task.loss(model, batch)
    if isinstance(loss, torch.Tensor) and loss.numel() == 1 and loss.requires_grad:
        return loss
    what = _short(loss)
    if isinstance(loss, torch.Tensor):
        what = f"one of shape {tuple(loss.shape)}" if loss.numel() != 1 else "one that has no gradient"
    raise TypeError(f"{run.task}: loss() must return a scalar tensor to call backward() on, not {what}")


def _short(value: Any) -> str:
    """A value in a line of an error."""
    return " ".join(reprlib.repr(value).split())

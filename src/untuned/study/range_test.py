"""The learning-rate range test, as fastai and Lightning users run it before they train: Smith 2015, arXiv 1506.01186.

A copy of the model trains for a few steps while lr grows geometrically from `low` to `high`, until the smoothed loss is
four times its least. The lr is then read off the smoothed losses (mean with weight 0.98, corrected for its start) by
one of two rules: "steepest", the lr at which the loss falls fastest against log lr (Lightning; the first ten steps and
the last are left out), or "valley", the middle of the longest run of steps over which the loss falls (fastai's
default: the longest decreasing subsequence). Both recalled from those libraries, whose constants these are; their
numbers are not compared with here.
"""

import ast
import copy
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import chain, count, islice, repeat
from typing import Any

import numpy as np
import torch

from untuned.study import building
from untuned.study.config import Run
from untuned.study.tasks import Task

SKIP, SMOOTH, STOP = 10, 0.98, 4.0


def find_lr(
    task: Task,
    run: Run,
    model: torch.nn.Module,
    create: Callable[[torch.nn.Module, float], torch.optim.Optimizer],
    total: int,
) -> tuple[float, int]:
    """The suggested lr and the number of steps it took; `model` stays as it is. ValueError if the run is too short."""
    call = ast.parse(run.probe, mode="eval").body
    given = {str(k.arg): ast.literal_eval(k.value) for k in (call.keywords if isinstance(call, ast.Call) else [])}
    steps, low, high = given.get("steps", 100), given.get("low", 1e-7), given.get("high", 10.0)
    if steps >= total:
        raise ValueError(f"{run.task}: a range test of {steps} steps leaves none of {total} to train with")
    trial = copy.deepcopy(model)
    optimizer = create(trial, low)
    lrs, smoothed, mean, used = [], [], 0.0, 0
    takes_loss = building.takes_loss(optimizer)
    stream = chain.from_iterable(task.batches(run.seed, epoch) for epoch in count())
    records = building.records_samples(run.method)
    ids = chain.from_iterable(task.ids(run.seed, epoch) for epoch in count()) if records else repeat(None)
    for step, (batch, sample_ids) in enumerate(islice(zip(stream, ids, strict=False), steps)):
        lr = low * (high / low) ** (step / (steps - 1))
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        loss = task.loss(trial, batch)
        mean = SMOOTH * mean + (1 - SMOOTH) * loss.item()
        used = step + 1
        value = mean / (1 - SMOOTH**used)
        if not math.isfinite(value) or (step > 0 and value > STOP * min(smoothed)):
            break
        lrs.append(lr)
        smoothed.append(value)
        loss.backward()
        inputs: dict[str, Any] = {"loss": loss.detach()} if takes_loss else {}
        inputs |= {"sample_ids": sample_ids} if records else {}
        optimizer.step(**inputs)
    read_off = steepest if given.get("rule", "steepest") == "steepest" else valley
    return (read_off(lrs, smoothed) if lrs else low), used


def steepest(lrs: Sequence[float], losses: Sequence[float]) -> float:
    """The lr at which the loss falls fastest against the logarithm of lr, without the first ten and the last."""
    skip = SKIP if len(losses) > SKIP + 3 else 0
    kept = np.array(losses[skip:-1] if len(losses) > skip + 3 else losses)
    return float(lrs[skip + int(np.argmin(np.gradient(kept)))]) if len(kept) > 1 else float(lrs[0])


def valley(lrs: Sequence[float], losses: Sequence[float]) -> float:
    """The middle of the longest decreasing subsequence of the losses."""
    ends: list[float] = []  # minus the largest last loss of a decreasing subsequence, by its length
    last: list[int] = []  # where it ends
    before = [-1] * len(losses)
    for i, loss in enumerate(losses):
        k = bisect_left(ends, -loss)
        before[i] = last[k - 1] if k else -1
        ends[k : k + 1], last[k : k + 1] = [-loss], [i]
    at, found = last[-1], []
    while at >= 0:
        found.append(at)
        at = before[at]
    return float(lrs[(found[-1] + found[0]) // 2])

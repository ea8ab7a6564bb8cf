"""The runs of the study of LoRASC: a small network that learns from a teacher, and a pretrained encoder of text.

An arm is what is compared: how many cascades of which rank, and with which pace and noise. Plain LoRA is one cascade
with pace 1 and no noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu

import untuned
from untuned.study import tasks
from untuned.study.papers.frame import Job, Row, Rows
from untuned.study.stats import Floats
from untuned.study.tasks.classification import Classification
from untuned.study.tasks.task import seeded
from untuned.systems.lorasc import CascadeLoRA, add_lora

TASK = "minilm-lora"


@dataclass(frozen=True)
class Arm:
    label: str
    rank: int  # of an expert, as a multiple of that of the setting's; 0: that of all its cascades
    cascades: bool = True
    pace: float = 1.0
    noise: float = 0.0


@dataclass(frozen=True)
class Setting:
    title: str
    rank: int  # of the experts that are cascaded
    cascades: int
    lrs: tuple[float, ...]  # tried first, by the half decade
    metric: str  # the column by which the lr is chosen
    time: str  # the column that counts steps or epochs


ARMS = {
    "lora": Arm("LoRA, rank of one expert", 1, cascades=False),
    "total": Arm("LoRA, rank of all experts", 0, cascades=False),
    "lorasc": Arm("LoRASC (pace 0.5, noise 0.1)", 1, pace=0.5, noise=0.1),
    "quiet": Arm("LoRASC without noise", 1, pace=0.5),
    "chain": Arm("LoRASC without noise, pace 1", 1),
}
SETTINGS = {
    "teacher": Setting("Regression to a teacher", 2, 6, (3e-3, 1e-2, 3e-2), "loss", "step"),
    "text": Setting("MiniLM on paragraphs", 1, 4, (3e-3, 1e-2, 3e-2), "val_loss", "epoch"),
}
GRID = tuple(float(f"{m}e{e}") for e in range(-5, 1) for m in (1, 3))
STRENGTHS = (0.0, 0.3, 1.0)  # of the noise, beside that of the arm
TUNING = (1000, 1001)  # seeds that choose the lr and are not used for anything else


def plan(setting: str, arm: str, noise: float | None = None) -> dict[str, Any]:
    """The arguments of an arm's runs but lr and seed. `noise`: another strength than the arm's."""
    chosen, of = SETTINGS[setting], ARMS[arm]
    cascades = chosen.cascades if of.cascades else 1
    rank = chosen.rank * (of.rank or chosen.cascades)
    return {"rank": rank, "cascades": cascades, "pace": of.pace, "noise": of.noise if noise is None else noise}


# ---------------------------------------------------------------- the two settings


def teacher(*, rank: int, cascades: int, pace: float, noise: float, lr: float, seed: int) -> list[Row]:
    """A tanh network 32-64-16 learns the function of another in 600 full steps on 512 inputs: a row each 100 steps.

    Inputs are normal and the biases of both equal; the other one's weights are drawn anew, with three times the size.
    `change` is the rank of what was added to the second matrix (16, 64).
    """
    steps, part = 600, 100
    with seeded(seed):
        model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 16)).double()
        other = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 16)).double()
        x = torch.randn(512, 32, dtype=torch.float64)
        with torch.no_grad():
            for key, its in other.state_dict().items():
                its.copy_(3 * its if "weight" in key else model.state_dict()[key])
            y = 2 * other(x)
        first = model.state_dict()["2.weight"].clone()
        add_lora(model, ["0", "2"], rank=rank)

    def loss(_: int) -> Tensor:
        return (model(x) - y).square().mean()

    def measured(done: int) -> Row:
        spectrum = torch.linalg.svdvals((_weight(model[2]) - first).nan_to_num())
        return {"step": done, "loss": loss(0).item(), "change": int((spectrum > 1e-8 * spectrum[0]).sum())}

    with torch.no_grad():
        rows: list[Row] = [{"step": 0, "loss": loss(0).item(), "change": 0}]
    options = {"pace": pace, "noise": noise, "seed": seed}
    return rows + _trained(model, loss, steps, part, steps // cascades, lr, measured, options)


def text(*, rank: int, cascades: int, pace: float, noise: float, lr: float, seed: int) -> list[Row]:
    """Four epochs of fine-tuning the feed-forward part of the last layer of MiniLM and a new linear layer: a row each.

    What lies below is frozen, so its features are computed once. AdamW, lr decaying linearly to zero, batches of 16.
    """
    epochs, batch = 4, 16
    task, x, x_val = _features()
    model = _Top(seed)
    with seeded(seed):
        add_lora(model, ["linear1", "linear2"], rank=rank, alpha=2 * rank)
    model.logits.requires_grad_(True)
    generator = torch.Generator().manual_seed(seed)
    order = [i for _ in range(epochs) for i in torch.randperm(len(task.y), generator=generator).split(batch)]

    def loss(k: int) -> Tensor:
        return cross_entropy(model(x[order[k]], task.x[order[k]]), task.y[order[k]])

    def measured(done: int) -> Row:
        logits = model(x_val, task.x_val)
        return {
            "epoch": done * epochs // len(order),
            "val_loss": cross_entropy(logits, task.y_val).item(),
            "val_accuracy": (logits.argmax(1) == task.y_val).double().mean().item(),
            "train_loss": cross_entropy(model(x, task.x), task.y).item() if done == len(order) else None,
        }

    steps = len(order)
    options = {"pace": pace, "noise": noise, "seed": seed}
    return _trained(model, loss, steps, steps // epochs, steps // cascades, lr, measured, options, decay=True)


def _trained(
    model: nn.Module,
    loss: Callable[[int], Tensor],
    steps: int,
    part: int,
    every: int,
    lr: float,
    measured: Callable[[int], Row],
    options: dict[str, Any],
    decay: bool = False,
) -> list[Row]:
    """Train with AdamW and measure after each `part` steps, at the end of a cascade what was merged.

    A run with an expert that is not finite ends, and its last row holds what the model computes then.
    """
    optimizer = untuned.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    cascade = CascadeLoRA(model, optimizer, **options)
    measured = torch.no_grad()(measured)
    rows: list[Row] = []
    for k in range(steps):
        if k % every == 0:
            cascade.begin()
        optimizer.param_groups[0]["lr"] = lr * (1 - k / steps if decay else 1)
        optimizer.zero_grad()
        loss(k).backward()
        optimizer.step()
        if (k + 1) % every == 0:
            try:
                cascade.end()
            except FloatingPointError:
                return [*rows, measured(steps)]
        if (k + 1) % part == 0:
            rows.append(measured(k + 1))
    return rows


def _weight(layer: Any) -> Tensor:
    return (layer.weight + layer.scaling * layer.lora_b @ layer.lora_a).detach()


class _Top(nn.Module):
    """The feed-forward part of the last layer, and a new linear layer on the mean over the words."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        whole: Any = _task().pretrained(seed)
        layer = whole.encoder.layers[-1]
        self.linear1, self.linear2, self.norm, self.logits = layer.linear1, layer.linear2, layer.norm2, whole.logits

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        present = tokens != 0
        words = x[present]
        words = self.norm(words + self.linear2(gelu(self.linear1(words))))
        sums = words.new_zeros(len(x), words.shape[1]).index_add(0, present.nonzero()[:, 0], words)
        return self.logits(sums / present.sum(1, keepdim=True))


@cache
def _task() -> Any:
    return tasks.load(TASK)


@cache
def _features() -> tuple[Classification, Tensor, Tensor]:
    """The task, and for its training and evaluation texts what enters the feed-forward part of the last layer."""
    task = _task()
    encoder = task.pretrained(0).encoder.eval()

    def below(tokens: Tensor) -> Tensor:
        x = encoder.norm(encoder.tokens(tokens) + encoder.positions[: tokens.shape[1]])
        *first, last = encoder.layers
        for layer in first:
            x = layer(x, src_key_padding_mask=tokens == 0)
        return last.norm1(x + last.self_attn(x, x, x, key_padding_mask=tokens == 0, need_weights=False)[0])

    with torch.no_grad():
        return task, below(task.x), below(task.x_val)


# ---------------------------------------------------------------- which runs, and what they found


def jobs(seeds: int, rows: Rows) -> list[Job]:
    """First each arm's lr on two seeds of their own, then the seeds at the best one, then other strengths of noise.

    The lrs tried grow by a half decade at an end as long as the best of them is that end.
    """
    asked: list[Job] = []
    best: dict[tuple[str, str], float] = {}
    for name in SETTINGS:
        for arm in ARMS:
            means = tuned(rows, name, arm)
            lrs, chosen = list(means) or list(SETTINGS[name].lrs), best_lr(rows, name, arm)
            wider = None if chosen is None else _wider(lrs, chosen)
            asked += [_job(name, arm, lr, seed) for lr in [*lrs, *([wider] if wider else [])] for seed in TUNING]
            if chosen is not None and wider is None:
                best[name, arm] = chosen
    if len(best) == len(SETTINGS) * len(ARMS):
        asked += [_job(name, arm, lr, seed) for (name, arm), lr in best.items() for seed in range(seeds)]
        lr = best["text", "lorasc"]
        asked += [_job("text", "lorasc", lr, seed, noise) for noise in STRENGTHS for seed in range(seeds)]
    return list({(job.function, *job.arguments.items()): job for job in asked}.values())


def _job(name: str, arm: str, lr: float, seed: int, noise: float | None = None) -> Job:
    arguments = plan(name, arm, noise) | {"lr": lr, "seed": seed}
    return Job({"teacher": teacher, "text": text}[name], arguments)


def _wider(lrs: Sequence[float], best: float) -> float | None:
    """The next lr beyond the end that is the best one, or None."""
    if best not in (lrs[0], lrs[-1]):
        return None
    place = GRID.index(best) + (1 if best == lrs[-1] else -1)
    return GRID[place] if 0 <= place < len(GRID) else None


def runs(rows: Rows, name: str, arm: str, noise: float | None = None) -> list[Row]:
    """The rows of an arm, at all lrs and seeds."""
    wanted = plan(name, arm, noise)
    return [row for row in rows.get(name, ()) if all(row[key] == value for key, value in wanted.items())]


def tuned(rows: Rows, name: str, arm: str) -> dict[float, float]:
    """The mean of the metric over the tuning seeds by lr, ascending; infinite if a run is not finite."""
    metric, found = SETTINGS[name].metric, dict[float, list[float]]()
    for row in _ends(name, runs(rows, name, arm)):
        if row["seed"] in TUNING:
            found.setdefault(_number(row["lr"]), []).append(_number(row[metric]))
    means = {lr: sum(values) / len(values) for lr, values in sorted(found.items())}
    return {lr: mean if math.isfinite(mean) else math.inf for lr, mean in means.items()}


def best_lr(rows: Rows, name: str, arm: str) -> float | None:
    """The lr with the smallest mean over the tuning seeds, the smaller one of two; None if there is none yet."""
    means = tuned(rows, name, arm)
    return min(means, key=lambda lr: means[lr]) if means else None


def counted(rows: Rows, name: str, arm: str, noise: float | None = None) -> list[Row]:
    """The rows of the runs that count: those of the other seeds at the lr chosen, ordered by seed."""
    lr = best_lr(rows, name, arm)
    mine = [row for row in runs(rows, name, arm, noise) if row["seed"] not in TUNING and row["lr"] == lr]
    return sorted(mine, key=lambda row: _number(row["seed"]))


def final(rows: Rows, name: str, arm: str, column: str, noise: float | None = None) -> Floats:
    """A column at the end of the runs that count, a number a seed."""
    return np.array([_number(row[column]) for row in _ends(name, counted(rows, name, arm, noise))])


def _ends(name: str, these: Sequence[Row]) -> list[Row]:
    column = SETTINGS[name].time
    end = max((_number(row[column]) for row in these), default=0.0)
    return [row for row in these if row[column] == end]


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)

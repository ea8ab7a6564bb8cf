"""Runs with and without the wrappers: docs/wrappers.csv, docs/wrappers.png and the tables in docs/wrappers.md.

    OMP_NUM_THREADS=1 python scripts/wrapper_study.py [--draw]

`--draw` trains nothing: it draws the picture again and prints the tables. All runs are on the MLP 784-100-100-10 and
the 2,000 training images of fashion-mlp, with constant learning rates. These rules were fixed before the runs, and
every run is in the CSV:

- Continual. Fifteen tasks of 15 epochs (480 steps, batches of 64) after each other. A task gives every image a label
  drawn evenly from the ten classes, so it is learned by heart; weights and state of Adam go on from task to task. Adam
  has lr 1e-3, its default, for all contenders: the net as it is, `insert_norms`, and `insert_norms` and
  `WeightProjector`, all with their defaults. Three seeds. What counts is the accuracy on all 2,000 images at the end of
  a task, averaged over the last five tasks; beside it the accuracy on batches before they are learned from.
- Batch. Thirty epochs of the true labels with SGD in the paper's Nesterov form, momentum 0.9: batches of 64 (960 steps)
  and of 512 (120 steps), and batches of 512 with `Extrapolated`, direction "local" (the gradient of the last step,
  since there is one process) and "noise". lr is the power of two from 2^-9 to 2^-1, and inner_lr the multiple 1/16,
  1/4 or 1 of it ("local") or 2^-8, 2^-6 or 2^-4 ("noise"), with the least mean training loss at the end over seeds 100
  and 101; a loss that is not finite is infinite. So the extrapolated runs have three times as many tries. What counts
  is the training loss on all 2,000 images after 30 epochs, in seeds 0 to 2.

Intervals are those of `untuned.study.stats.interval`; of three seeds they are the range.
"""

import argparse
import csv
import io
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter
from method_study import BLUE, GREY, ORANGE
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import untuned
from untuned.study.stats import interval
from untuned.study.tasks.images import FashionMLP
from untuned.study.tasks.task import evaluating, shuffled
from untuned.wrappers import EffectiveLR, Extrapolated, WeightProjector, insert_norms

CSV = Path(__file__).parents[1] / "docs" / "wrappers.csv"
PNG = CSV.with_suffix(".png")
GREEN = "#009E73"
SEEDS, TUNING_SEEDS = (0, 1, 2), (100, 101)
TASKS, TASK_EPOCHS, ADAM_LR, LAST = 15, 15, 1e-3, 5
EPOCHS, MOMENTUM, SMALL, LARGE = 30, 0.9, 64, 512
LRS = tuple(2.0**i for i in range(-9, 0))
NETS = ("plain net", "norms", "norms and projector")
BATCHES = {"batch 64": SMALL, "batch 512": LARGE, "batch 512, local": LARGE, "batch 512, noise": LARGE}
COLORS = dict(zip(NETS, (GREY, BLUE, ORANGE), strict=True)) | dict(
    zip(BATCHES, (GREY, BLUE, ORANGE, GREEN), strict=True)
)
MARKERS = dict(zip((*NETS, *BATCHES), "sD^sD^v", strict=True))
LAYERS = ("1.weight", "3.weight")  # 784 to 100, 100 to 100
COLUMNS = ("part", "contender", "lr", "inner_lr", "seed", "step", "loss", "accuracy", "online", "val_accuracy")
COLUMNS += tuple(f"{what}/{layer}" for what in ("norm", "lr_per_norm") for layer in LAYERS)
Row = dict[str, str]


def row(part: str, contender: str, lr: float, seed: int, step: int, **values: float) -> Row:
    written = {"part": part, "contender": contender, "lr": f"{lr:.12g}", "seed": str(seed), "step": str(step)}
    return (
        dict.fromkeys(COLUMNS, "")
        | written
        | {key: f"{value:.{12 if key == 'inner_lr' else 5}g}" for key, value in values.items()}
    )


def measured(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Mean cross-entropy and accuracy."""
    with evaluating(model):
        logits = model(x)
    return cross_entropy(logits, y).item(), (logits.argmax(1) == y).double().mean().item()


# ---------------------------------------------------------------- Normalize-and-Project on labels that change


def continual(data: FashionMLP, contender: str, seed: int) -> Iterator[Row]:
    model = data.model(seed)
    if contender != "plain net":
        insert_norms(model)
    optimizer = untuned.Adam(model.parameters(), lr=ADAM_LR)
    if contender == "norms and projector":
        WeightProjector(model, optimizer)
    probe, step = EffectiveLR(model, optimizer), 0

    def now(**values: float) -> Row:
        found = {key: value for key, value in probe.metrics().items() if key in COLUMNS}
        return row("continual", contender, ADAM_LR, seed, step, **values, **found)

    yield now()
    for task in range(TASKS):
        y = torch.from_numpy(np.random.default_rng([seed, task]).integers(0, 10, len(data.x)))
        right = 0
        for epoch in range(TASK_EPOCHS):
            for index in shuffled(len(y), SMALL, seed, task * TASK_EPOCHS + epoch):
                optimizer.zero_grad()
                logits = model(data.x[index])
                cross_entropy(logits, y[index]).backward()
                optimizer.step()
                right += int((logits.argmax(1) == y[index]).sum())
                step += 1
        loss, accuracy = measured(model, data.x, y)
        yield now(loss=loss, accuracy=accuracy, online=right / (TASK_EPOCHS * len(y)))


# ---------------------------------------------------------------- extrapolation and the size of batches


def inner_lrs(contender: str, lr: float) -> tuple[float, ...]:
    if contender.endswith("local"):
        return (lr / 16, lr / 4, lr)
    return (2.0**-8, 2.0**-6, 2.0**-4) if contender.endswith("noise") else (0.0,)


def batch(data: FashionMLP, part: str, contender: str, lr: float, inner_lr: float, seed: int) -> Iterator[Row]:
    """Rows of every epoch; of the last alone when tuning."""
    model, step = data.model(seed), 0
    direction = "noise" if contender.endswith("noise") else "local"
    base = untuned.SGD(model.parameters(), lr=lr, momentum=MOMENTUM)
    optimizer = Extrapolated(base, inner_lr, direction, nesterov=MOMENTUM, seed=seed)  # inner_lr 0: Nesterov alone
    for epoch in range(EPOCHS + 1):
        if part == "batch" or epoch == EPOCHS:
            (loss, _), (_, accuracy) = measured(model, data.x, data.y), measured(model, data.x_val, data.y_val)
            yield row(part, contender, lr, seed, step, inner_lr=inner_lr, loss=loss, val_accuracy=accuracy)
        for index in shuffled(len(data.y), BATCHES[contender], seed, epoch) if epoch < EPOCHS else ():
            optimizer.zero_grad()
            with optimizer.extrapolated():
                cross_entropy(model(data.x[index]), data.y[index]).backward()
            optimizer.step()
            step += 1


def tuned(rows: Sequence[Row], contender: str) -> tuple[float, float]:
    """lr and inner_lr with the least mean loss over the tuning seeds."""
    losses: dict[tuple[float, float], list[float]] = {}
    for r in rows:
        if (r["part"], r["contender"]) == ("tuning", contender):
            loss = float(r["loss"])
            key = float(r["lr"]), float(r["inner_lr"])
            losses.setdefault(key, []).append(loss if math.isfinite(loss) else math.inf)
    return min(losses, key=lambda key: (sum(losses[key]), key))


def train() -> list[Row]:
    data = FashionMLP()
    rows = [r for contender in NETS for seed in SEEDS for r in continual(data, contender, seed)]
    for contender in BATCHES:
        for lr in LRS:
            for inner_lr in inner_lrs(contender, lr):
                for seed in TUNING_SEEDS:
                    rows += batch(data, "tuning", contender, lr, inner_lr, seed)
        for seed in SEEDS:
            rows += batch(data, "batch", contender, *tuned(rows, contender), seed)
        print(contender, *tuned(rows, contender), file=sys.stderr)
    return rows


# ---------------------------------------------------------------- tables


def read() -> list[Row]:
    with CSV.open(newline="") as file:
        return list(csv.DictReader(file))


def curves(rows: Sequence[Row], part: str, contender: str, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps at which there is a value, and the values, (seeds, steps)."""
    mine = [r for r in rows if (r["part"], r["contender"]) == (part, contender) and r[column]]
    steps = sorted({int(r["step"]) for r in mine})
    values = [[float(r[column]) for r in mine if int(r["seed"]) == seed] for seed in SEEDS]
    return np.array(steps), np.array(values)


def spread(values: np.ndarray, shown: Callable[[float], str]) -> str:
    low, high = interval(values) or (math.nan, math.nan)
    return f"{shown(values.mean())} ({shown(low)} to {shown(high)})"


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def small(value: float) -> str:
    return f"{value:.2g}"


def power(value: float) -> str:
    return f"2^{math.log2(value):g}" if value else "0"


def tables(rows: Sequence[Row]) -> tuple[str, str]:
    """What docs/wrappers.md says of both studies: means over the seeds, and intervals."""
    first = ["| | accuracy, first task (%) | last five tasks (%) | online, last five (%) | norms, end / start |"]
    first += ["|---|---|---|---|---|"]
    for contender in NETS:
        (_, end), (_, online) = (curves(rows, "continual", contender, what) for what in ("accuracy", "online"))
        cells = [spread(end[:, 0], percent), *(spread(c[:, -LAST:].mean(1), percent) for c in (end, online))]
        norms = [curves(rows, "continual", contender, f"norm/{layer}")[1] for layer in LAYERS]
        grown = ", ".join(f"{(norm[:, -1] / norm[:, 0]).mean():.2f}" for norm in norms)
        first.append(f"| {contender} | {' | '.join(cells)} | {grown} |")
    second = ["| | lr | inner_lr | steps | training loss after 30 epochs | validation accuracy (%) |"]
    second += ["|---|---|---|---|---|---|"]
    for contender in BATCHES:
        steps, loss = curves(rows, "batch", contender, "loss")
        _, accuracy = curves(rows, "batch", contender, "val_accuracy")
        cells = [*map(power, tuned(rows, contender)), str(steps[-1])]
        cells += [spread(loss[:, -1], small), spread(accuracy[:, -1], percent)]
        second.append(f"| {contender} | {' | '.join(cells)} |")
    return "\n".join(first), "\n".join(second)


# ---------------------------------------------------------------- the picture


def draw(rows: Sequence[Row]) -> None:
    with mpl.rc_context({"font.size": 9, "axes.spines.right": False, "axes.spines.top": False}):
        figure = Figure(figsize=(10.5, 6.4), facecolor="white", layout="constrained")
        (accuracy, norm, rate), (steps, epochs, tuning) = figure.subplots(2, 3)
        unit = TASK_EPOCHS * -(-2000 // SMALL)
        for contender in NETS:
            line(accuracy, contender, *curves(rows, "continual", contender, "accuracy"), unit)
            for i, layer in enumerate(LAYERS):
                dash: Any = ("-", (0, (2, 1.2)))[i]
                line(norm, contender, *curves(rows, "continual", contender, f"norm/{layer}"), unit, dash)
                line(rate, contender, *curves(rows, "continual", contender, f"lr_per_norm/{layer}"), unit, dash)
        for contender in BATCHES:
            at, loss = curves(rows, "batch", contender, "loss")
            line(steps, contender, at[1:], loss[:, 1:])
            line(epochs, contender, at, loss, at[-1] / EPOCHS)
            found = {lr: least(rows, contender, lr) for lr in LRS}
            tuning.plot(list(found), list(found.values()), color=COLORS[contender], marker=MARKERS[contender], ms=4)
        percents = np.arange(0, 1.01, 0.2)
        accuracy.set_yticks(percents, [f"{100 * p:.0f}" for p in percents])
        accuracy.set_ylim(0, 1.02)
        accuracy.axhline(0.1, color="black", lw=0.8, ls=(0, (1, 3)))
        accuracy.annotate("chance", (1, 0.11), fontsize=8)
        label(accuracy, "task", "training accuracy at the end of a task (%)")
        label(norm, "tasks learned", "norm of hidden weights |W|")
        label(rate, "tasks learned", "effective learning rate lr / |W| (1e-4)")
        label(steps, "steps of the optimizer", "training loss (nats)")
        label(epochs, "epochs of 2,000 images", "training loss (nats)")
        label(tuning, "lr", "training loss after 30 epochs (nats)")
        for ax in (steps, epochs, tuning):
            ax.set_yscale("log")
        tuning.annotate("none learns", (LRS[-1], 0.02), rotation=90, ha="center", va="bottom", fontsize=8)
        for ax in (accuracy, norm, rate):
            ax.set_xticks(range(0, TASKS + 1, 3))
        for ax in (norm, rate):
            ax.set_ylim(0)
        rate.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{1e4 * value:g}"))
        steps.set_xscale("log")
        tuning.set_xscale("log", base=2)
        tuning.set_xlim(LRS[0] / 1.3, LRS[-1] * 1.3)
        layers = [Line2D([], [], color="black", ls=ls, label=f"layer {i}") for i, ls in ((1, "-"), (2, (0, (2, 1.2))))]
        norm.legend(handles=layers, frameon=False, fontsize=8)
        for ax, title, names in (
            (accuracy, "Random labels, new ones in every task", NETS),
            (steps, "SGD with Nesterov momentum", tuple(BATCHES)),
        ):
            marks = [
                Line2D(
                    [],
                    [],
                    color=COLORS[name],
                    marker=MARKERS[name],
                    ms=4,
                    label=name,
                )
                for name in names
            ]
            ax.legend(handles=marks, frameon=False, fontsize=8)
            ax.set_title(title, fontsize=9, loc="left", fontweight="bold")
        norm.set_title(f"lines: means of n = {len(SEEDS)} seeds; bands: their range", fontsize=9, loc="left")
        tuning.set_title(f"means of n = {len(TUNING_SEEDS)} other seeds, best inner_lr", fontsize=9, loc="left")
        epochs.set_title(f"lines: means of n = {len(SEEDS)} seeds; bands: their range", fontsize=9, loc="left")
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=110)
    Image.open(drawn).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(PNG, optimize=True)


def least(rows: Sequence[Row], contender: str, lr: float) -> float:
    """Mean loss of the tuning seeds at an lr, with the best inner_lr there; NaN if all are 10 or more."""
    mine = [r for r in rows if r["part"] == "tuning" and r["contender"] == contender and float(r["lr"]) == lr]
    inner = {r["inner_lr"] for r in mine}
    means = [float(np.mean([float(r["loss"]) for r in mine if r["inner_lr"] == q])) for q in inner]
    return min((mean for mean in means if mean < 10), default=math.nan)


def line(ax: Axes, name: str, x: np.ndarray, y: np.ndarray, unit: float = 1, dash: Any = "-") -> None:
    ax.fill_between(x / unit, y.min(0), y.max(0), color=COLORS[name], alpha=0.2, lw=0)
    many = {"marker": MARKERS[name], "ms": 3.5, "markevery": max(len(x) // 8, 1)}
    ax.plot(x / unit, y.mean(0), color=COLORS[name], ls=dash, lw=1.6, **many)


def label(ax: Axes, x: str, y: str) -> None:
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.grid(alpha=0.2, lw=0.6)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--draw", action="store_true")
    if not parser.parse_args(arguments).draw:
        torch.set_num_threads(1)
        rows = train()
        with CSV.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    draw(read())
    print("\n\n".join(tables(read())))


if __name__ == "__main__":
    main(sys.argv[1:])

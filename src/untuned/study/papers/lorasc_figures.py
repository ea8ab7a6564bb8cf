"""The pictures of the study of LoRASC."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from matplotlib.axes import Axes

from untuned.study.looks import INK, Style, styles
from untuned.study.papers.frame import Panel, Rows
from untuned.study.papers.lorasc_runs import ARMS, SETTINGS, STRENGTHS, TUNING, best_lr, counted, final, tuned
from untuned.study.stats import Floats, interval

LOOKS = styles({arm: of.label for arm, of in ARMS.items()})


def panels(rows: Rows) -> list[Panel]:
    """How both settings are fitted, what the lr does, and what training and noise do to the validation loss."""
    n = len({row["seed"] for row in rows["text"] if row["seed"] not in TUNING})
    return [
        (f"Teacher: loss while it is learned, n = {n} seeds", partial(_teacher, rows=rows)),
        (f"Teacher: loss by the rank of the change, n = {n} seeds", partial(_ranks, rows=rows)),
        (f"MiniLM: choice of the lr, n = {len(TUNING)} seeds of their own", partial(_rates, rows=rows)),
        (f"MiniLM: validation by epoch, n = {n} seeds", partial(_epochs, rows=rows)),
        (f"MiniLM: fit and validation, n = {n} seeds", partial(_gap, rows=rows)),
        (f"MiniLM: strength of the noise, pace 0.5, n = {n} seeds", partial(_noise, rows=rows)),
    ]


def _bar(ax: Axes, x: float, values: Floats, style: Style) -> None:
    """The mean with its interval."""
    mean = float(values.mean())
    low, high = interval(values) or (mean, mean)
    ax.plot([x, x], [low, high], color=style.color, lw=1.4)
    ax.plot(x, mean, style.marker, color=style.color, ms=7, mec="white", zorder=3)


def _curves(ax: Axes, rows: Rows, name: str, x: str, y: str, *, shift: float = 0.0) -> None:
    """Means over the seeds, with intervals; `shift`: how far apart the arms are drawn."""
    for i, (arm, style) in enumerate(LOOKS.items()):
        mine = counted(rows, name, arm)
        places = sorted({float(row[x] or 0) for row in mine})
        columns = [np.array([float(row[y] or math.nan) for row in mine if row[x] == place]) for place in places]
        drawn = [place + (i - 2) * shift for place in places]
        ax.plot(drawn, [c.mean() for c in columns], color=style.color, ls=style.dash, lw=1.4)
        for place, column in zip(drawn, columns, strict=True):
            _bar(ax, place, column, style)
    _legend(ax)


def _legend(ax: Axes) -> None:
    for style in LOOKS.values():
        ax.plot([], [], color=style.color, marker=style.marker, ls=style.dash, label=style.label)
    ax.legend(frameon=False, fontsize=8, handlelength=4)


def _log_losses(ax: Axes) -> None:
    ax.set_yscale("log")
    ax.set_yticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
    ax.minorticks_off()
    ax.set_ylabel("training loss (squared error), mean")


def _teacher(ax: Axes, rows: Rows) -> None:
    _curves(ax, rows, "teacher", "step", "loss")
    _log_losses(ax)
    ax.set_xlabel("steps of AdamW")


def _ranks(ax: Axes, rows: Rows) -> None:
    """The way of the cascades, and where plain LoRA ends."""
    for arm, style in LOOKS.items():
        mine, means = counted(rows, "teacher", arm), dict[float, Floats]()
        for rank in sorted({float(row["change"] or 0) for row in mine}):
            means[rank] = np.array([float(row["loss"] or math.nan) for row in mine if row["change"] == rank])
        if ARMS[arm].cascades:
            ax.plot(list(means), [c.mean() for c in means.values()], color=style.color, ls=style.dash, lw=1.4)
        else:
            means = {max(means, default=0.0): final(rows, "teacher", arm, "loss")}
        for rank, values in means.items():
            _bar(ax, rank, values, style)
    _legend(ax)
    _log_losses(ax)
    ax.set_xlabel("rank of what was added to the second matrix")


def _rates(ax: Axes, rows: Rows) -> None:
    """The best lr of each arm is filled."""
    for arm, style in LOOKS.items():
        means = {lr: mean for lr, mean in tuned(rows, "text", arm).items() if math.isfinite(mean)}
        ax.plot(list(means), list(means.values()), color=style.color, ls=style.dash, marker=style.marker,
                mfc="white", label=style.label)  # fmt: skip
        if (best := best_lr(rows, "text", arm)) in means:
            ax.plot(best, means[best], style.marker, color=style.color, ms=9, zorder=3)
    ax.set_xscale("log")
    ax.legend(frameon=False, fontsize=8, handlelength=4)
    ax.set(xlabel="lr of AdamW (chosen: filled)", ylabel="validation loss (nats), mean")


def _epochs(ax: Axes, rows: Rows) -> None:
    _curves(ax, rows, "text", "epoch", "val_loss", shift=0.04)
    ax.set_xticks(range(1, SETTINGS["text"].cascades + 1))
    ax.set(xlabel="epochs, each a cascade of LoRASC", ylabel="validation loss (nats), mean")


def _gap(ax: Axes, rows: Rows) -> None:
    """A small mark for each seed and a large one for the mean."""
    for arm, style in LOOKS.items():
        x, y = final(rows, "text", arm, "train_loss"), final(rows, "text", arm, "val_loss")
        ax.plot(x, y, style.marker, color=style.color, ms=4, alpha=0.45)
        ax.plot(x.mean(), y.mean(), style.marker, color=style.color, ms=10, mec=INK, label=style.label, ls="none")
    ax.legend(frameon=False, fontsize=8)
    ax.set(xlabel="training loss at the end (nats)", ylabel="validation loss at the end (nats)")


def _noise(ax: Axes, rows: Rows) -> None:
    """At the lr of LoRASC, without noise too; a line per seed."""
    style = LOOKS["lorasc"]
    strengths = sorted({*STRENGTHS, ARMS["lorasc"].noise})
    columns = [final(rows, "text", "lorasc", "val_loss", noise) for noise in strengths]
    for seed in range(min(map(len, columns))):
        ax.plot(range(len(strengths)), [c[seed] for c in columns], color="#8C8C8C", lw=0.7, alpha=0.6)
    for place, column in enumerate(columns):
        _bar(ax, place, column, style)
    ax.set_xticks(range(len(strengths)), [f"{noise:g}" for noise in strengths])
    ax.set(
        xlabel="noise (range of an element over the deviation of W)", ylabel="validation loss (nats), mean and seeds"
    )

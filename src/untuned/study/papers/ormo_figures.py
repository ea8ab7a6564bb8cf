"""The pictures of the study of OrMo."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
from matplotlib.axes import Axes

from untuned.study.looks import INK, Style, styles
from untuned.study.papers.frame import Panel, Rows
from untuned.study.papers.ormo_results import CHANCE, fresh, losses, methods_of, value
from untuned.study.papers.ormo_runs import LRS, METHODS, START


def panels(rows: Rows) -> list[Panel]:
    """Final loss against the learning rate on the parabola, and a network against virtual time and against time."""
    looks = styles(METHODS)
    n = len(losses(rows, "ormo", 16, True))
    found = [(f"Parabola, 16 workers, 2 slow, n = {n} seeds", partial(_sensitivity, rows=rows, looks=looks))]
    n = len(fresh(rows, "fashion-cnn", "ormo"))
    if n:
        title = f"Fashion CNN, 16 workers, 2 slow, n = {n} seeds"
        found.append((title, partial(_curves, rows=rows, looks=looks, task="fashion-cnn")))
    if rows.get("processes"):
        found.append(("Fashion CNN, 3 processes, 1 slow, n = 1", partial(_wall, rows=rows, looks=looks)))
    return found


def _sensitivity(ax: Axes, rows: Rows, looks: Mapping[str, Style]) -> None:
    """Means over seeds with their range, up to where one diverges; beyond it the curve ends."""
    lrs = np.array(LRS)
    for method, style in looks.items():
        found = losses(rows, method, 16, True)
        good = np.isfinite(found).all(0) & (found < START).all(0)
        means = np.where(good, found.mean(0), np.nan)
        ax.plot(lrs, means, color=style.color, ls=style.dash, marker=style.marker, ms=4, label=style.label)
        ax.fill_between(lrs[good], found[:, good].min(0), found[:, good].max(0), color=style.color, alpha=0.15, lw=0)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.legend(frameon=False, fontsize=8.5, handlelength=4)
    ax.set(xlabel="learning rate of one gradient", ylabel="loss after 4,000 gradients, mean and range")


def _curves(ax: Axes, rows: Rows, looks: Mapping[str, Style], task: str) -> None:
    """Means over seeds with their range against virtual seconds; of six methods, to the end of each."""
    for method in methods_of(rows, task):
        style, found = looks[method], list(fresh(rows, task, method).values())
        length = min(map(len, found))
        times = np.mean([[value(r, "seconds") for r in curve[1:length]] for curve in found], 0)
        values = np.array([[value(r, "val_loss") for r in curve[1:length]] for curve in found])
        ax.plot(times, values.mean(0), color=style.color, ls=style.dash, marker=style.marker, ms=4, label=style.label)
        ax.fill_between(times, values.min(0), values.max(0), color=style.color, alpha=0.1, lw=0)
    ax.set_xscale("log")
    ax.set_ylim(bottom=0.0)
    _chance(ax)
    ax.legend(loc="lower left", frameon=False, fontsize=8.5, handlelength=4)
    ax.set(xlabel="virtual time (mean time of a gradient)", ylabel="validation loss, mean and range")


def _wall(ax: Axes, rows: Rows, looks: Mapping[str, Style]) -> None:
    for method, style in looks.items():
        mine = [r for r in rows["processes"] if r["method"] == method]
        if mine:
            xy = np.array([(value(r, "seconds_since"), value(r, "val_loss")) for r in mine])
            ax.plot(*xy.T, color=style.color, ls=style.dash, marker=style.marker, ms=4, label=style.label)
    _chance(ax)
    ax.legend(frameon=False, fontsize=8.5, handlelength=4)
    ax.set(xlabel="seconds by the clock on the wall", ylabel="validation loss")


def _chance(ax: Axes) -> None:
    ax.axhline(CHANCE, color=INK, lw=0.9, ls=(0, (2, 2)))
    ax.annotate("chance", (0.98, CHANCE), (0, -3), ha="right", va="top", fontsize=8.5,
                xycoords=("axes fraction", "data"), textcoords="offset points")  # fmt: skip
    ax.set_ylim(top=CHANCE * 1.04)

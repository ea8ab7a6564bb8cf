"""The pictures of the study of trajectories."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from untuned.study.looks import INK, Style, styles
from untuned.study.papers.frame import Panel, Rows
from untuned.study.papers.hallmarks_numbers import BASE, FACTORS, STEPS, bounds, branch, difference
from untuned.study.papers.hallmarks_runs import BRANCHES, EPOCHS, SWITCHES, random_walk_angle
from untuned.study.papers.rows import by, numbers
from untuned.study.stats import interval
from untuned.study.trajectory_picture import draw_map

_NOTE = {"textcoords": "offset points", "fontsize": 8.5}


def panels(rows: Rows) -> list[Panel]:
    """Two maps, what settings change, how the direction is found, what is left to train, and what moves."""
    n = len({row["seed"] for row in rows["settings"]})
    return [
        ("Trajectory map of the MLP, momentum 0.9, seen from the origin", partial(_map, rows=rows, center="origin")),
        ("The same run seen from its start (relative map)", partial(_map, rows=rows, center="init")),
        (f"What a larger setting does to the MDS, n = {n} seeds", partial(_factors, rows=rows)),
        (f"The way so far against the whole way, n = {n} seeds", partial(_directions, rows=rows)),
        (f"Going on with some parameters alone, n = {n} seeds", partial(_branches, rows=rows)),
        (f"Relative movement in full training, n = {n} seeds", partial(_movement, rows=rows)),
    ]


def _map(ax: Axes, rows: Rows, center: str) -> None:
    mine = [row for row in rows["maps"] if row["momentum"] == BASE["momentum"]]
    steps = sorted({int(row["row"] or 0) for row in mine})
    matrix = np.array(numbers(mine, center)).reshape(len(steps), len(steps))
    draw_map(ax, matrix, steps, unit="step of the optimizer")


def _legend(ax: Axes, looks: dict[str, Style], loc: Any) -> None:
    for style in looks.values():
        ax.plot([], [], color=style.color, marker=style.marker, ls=style.dash, label=style.label)
    ax.legend(frameon=False, fontsize=8.5, handlelength=4, loc=loc)


def _factors(ax: Axes, rows: Rows) -> None:
    """The difference of both ends for each seed, with mean and interval."""
    looks = styles({task: task for task in STEPS})
    for i, factor in enumerate(FACTORS.values()):
        for k, (task, style) in enumerate(looks.items()):
            values = difference(rows, task, factor)
            place, known = i + 0.26 * (k - 0.5), values[~np.isnan(values)]
            ax.plot(np.full(len(known), place - 0.07), known, ".", color=style.color, alpha=0.4, ms=4)
            if len(known) < len(values):
                gone = f"{len(values) - len(known)} of {len(values)} diverged:\nno mean"
                ax.annotate(gone, (place, known.max()), (0, 6), ha="center", fontsize=7.5, textcoords="offset points")
            elif within := bounds(values):
                ax.plot([place, place], within, color=style.color)
                ax.plot(place, values.mean(), style.marker, color=style.color, ms=7, zorder=3)
    ax.axhline(0, color=INK, lw=0.9, ls=(0, (2, 2)))
    ax.annotate("higher: straighter", (0.01, 0), (0, 3), xycoords=("axes fraction", "data"), **_NOTE)
    ax.annotate("lower: explores", (0.01, 0), (0, -11), xycoords=("axes fraction", "data"), **_NOTE)
    ax.set_xticks(range(len(FACTORS)), [name.replace(", ", ",\n").replace(" ", "\n", 1) for name in FACTORS])
    ax.tick_params(axis="x", labelsize=8.5)
    ax.set_ylabel("MDS of the larger end minus the smaller")
    for style in looks.values():
        ax.plot([], [], style.marker, color=style.color, label=style.label)
    ax.legend(frameon=False, fontsize=8.5)


def _directions(ax: Axes, rows: Rows) -> None:
    """Angle at theta_0 between theta_t and theta_T: mean and interval by task, and the two lines that are known."""
    looks = styles({task: task for task in STEPS})
    for task, style in looks.items():
        mine = by([row for row in rows["progress"] if row["task"] == task], "share")
        share = np.array([float(key[0] or 0) for key in mine])
        angles = [np.array(numbers(found, "end_angle")) for found in mine.values()]
        within = np.array([interval(values) or (math.nan, math.nan) for values in angles])
        ax.fill_between(100 * share, *within.T, color=style.color, alpha=0.2, lw=0)
        every = slice(3, None, 6)
        means = [values.mean() for values in angles]
        ax.plot(100 * share, means, color=style.color, ls=style.dash)
        ax.plot(100 * share[every], means[every], style.marker, color=style.color, ms=5)
    share = np.linspace(0, 1, 101)
    ax.plot(100 * share, [random_walk_angle(x) for x in share], color=INK, lw=1, ls=(0, (4, 3)))
    ax.annotate("random walk: arccos of the root of the share", (31, random_walk_angle(0.31)), (4, 4), **_NOTE)
    ax.plot([25, 25], [0, 30], color=INK, lw=0.9)
    ax.annotate("rule: both below 30 here", (25, 4), (4, 0), **_NOTE)
    ax.set_xlim(0, 100)
    ax.set_ylim(0, 92)
    _legend(ax, looks, "upper right")
    ax.set(xlabel="share of the steps (%)", ylabel="angle at the start to the end (degrees)")


def _branches(ax: Axes, rows: Rows) -> None:
    """Test accuracy beside that of full training, by the epoch of the switch."""
    names = [name for name in BRANCHES if name != "everything"]
    looks = styles({name: name for name in names})
    for k, (name, style) in enumerate(looks.items()):
        values = [100 * (branch(rows, name, switch) - branch(rows, "everything", switch)) for switch in SWITCHES]
        at = np.array(SWITCHES) + 0.25 * (k - 1)
        for x, seeds in zip(at, values, strict=True):
            low, high = bounds(seeds) or (math.nan, math.nan)
            ax.plot([x, x], [low, high], color=style.color)
        ax.plot(at, [seeds.mean() for seeds in values], color=style.color, marker=style.marker, ls=style.dash)
    ax.axhspan(-1, 1, color=INK, alpha=0.1, lw=0)
    ax.annotate("full training, within one point", (0.99, 1), (0, 3), ha="right",
                xycoords=("axes fraction", "data"), **_NOTE)  # fmt: skip
    ax.set_xticks(SWITCHES)
    _legend(ax, looks, "lower right")
    ax.set(xlabel=f"switch after this epoch, of {EPOCHS}", ylabel="test accuracy to full training (points)")


def _movement(ax: Axes, rows: Rows) -> None:
    """How far each kind of parameter has gone, after each epoch."""
    groups = list(dict.fromkeys(str(row["group"]) for row in rows["movement"] if row["group"] != "all"))
    looks = styles({group: group for group in groups})
    for group, style in looks.items():
        mine = by([row for row in rows["movement"] if row["group"] == group], "epoch")
        epochs = [int(key[0] or 0) for key in mine]
        values = [np.array(numbers(found, "moved")) for found in mine.values()]
        within = np.array([interval(seeds) or (math.nan, math.nan) for seeds in values])
        ax.fill_between(epochs, *within.T, color=style.color, alpha=0.2, lw=0)
        ax.plot(epochs, [v.mean() for v in values], color=style.color, marker=style.marker, ls=style.dash, markevery=3)
    ax.set_ylim(bottom=0)
    _legend(ax, looks, (0.5, 0.19))
    ax.set(xlabel="epoch", ylabel="|theta_t - theta_0| / |theta_0|")

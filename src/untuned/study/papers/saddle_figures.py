"""The pictures of the study of saddles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from matplotlib.axes import Axes

from untuned.study.looks import INK, Style, styles
from untuned.study.papers.frame import Panel, Rows
from untuned.study.papers.saddle_problems import Saddle
from untuned.study.papers.saddle_runs import (
    ENOUGH,
    LIMIT,
    SETTINGS,
    Outcome,
    Point,
    outcomes_of,
    points_of,
    predicted,
    scaled_means,
)
from untuned.study.stats import interval


def panels(rows: Rows) -> list[Panel]:
    """Paths, escape times, errors, and the share of measurements within APAG."""
    outcomes, points = outcomes_of(rows), points_of(rows)
    betas = sorted({o.beta for o in outcomes})
    looks = {float(beta): style for beta, style in styles({f"{b:g}": f"beta {b:g}" for b in betas}).items()}
    n = len({o.seed for o in outcomes})
    mine = [o for o in outcomes if o.problem == "saddle" and o.seed in {p.seed for p in points}]
    seed = min(
        mine, key=lambda o: math.inf if math.isnan(o.steps) else o.scaled
    ).seed  # its runs go on while others are away
    return [
        (f"Saddle in the plane: paths of seed {seed}", partial(_paths, points=points, looks=looks, seed=seed)),
        (f"Saddle in the plane: escape, n = {n} seeds", partial(_times, outcomes=outcomes, looks=looks)),
        (
            f"Phase retrieval: distance to the solution, n = {len({p.seed for p in points})} seeds",
            partial(_errors, points=points, looks=looks),
        ),
        (
            f"Measurements with an APAG ratio of at least {LIMIT:g}, n = {n} seeds",
            partial(_shares, outcomes=outcomes, looks=looks),
        ),
    ]


def _legend(ax: Axes, looks: Mapping[float, Style]) -> None:
    for style in looks.values():
        ax.plot([], [], color=style.color, marker=style.marker, ls=style.dash, label=style.label)
    ax.legend(frameon=False, fontsize=8.5, handlelength=4)


def _paths(ax: Axes, points: Sequence[Point], looks: Mapping[float, Style], seed: int) -> None:
    """The paths of one seed on the level lines of its f."""
    problem = Saddle([seed])
    lines = np.linspace(-0.4, 0.4, 81), np.linspace(-0.75, 0.75, 121)
    grid = torch.tensor(np.stack(np.meshgrid(*lines), -1).reshape(-1, 1, 2))
    f = np.array([problem.losses(w).item() for w in grid]).reshape(121, 81)
    ax.contour(*lines, f, levels=np.linspace(-0.03, 0.06, 19), colors="#B0B0B0", linewidths=0.7)
    for beta, style in looks.items():
        xy = np.array([(p.x, p.y) for p in points if p.problem == "saddle" and p.beta == beta and p.seed == seed])
        ax.plot(*xy.T, color=style.color, ls=style.dash, lw=1.1)
        ax.plot(*xy[-1], style.marker, color=style.color, ms=7, mec="white", zorder=3)
    ax.plot(0, 0, "+", color=INK, ms=10, mew=1.5)
    ax.annotate("start", (0, 0), (5, 5), textcoords="offset points", fontsize=8.5)
    _legend(ax, looks)
    ax.set(xlabel="w1", ylabel="w2")


def _times(ax: Axes, outcomes: Sequence[Outcome], looks: Mapping[float, Style]) -> None:
    """Escape times in the paper's unit: a line per seed, the mean with its interval, and what growth predicts."""
    mine = [o for o in outcomes if o.problem == "saddle"]
    means = scaled_means(mine)
    for seed in sorted({o.seed for o in mine}):
        one = sorted((o.beta, o.scaled) for o in mine if o.seed == seed)
        ax.plot(*np.array(one).T, color="#8C8C8C", lw=0.7, alpha=0.6)
    for beta, style in looks.items():
        scaled = np.array([o.scaled for o in mine if o.beta == beta])
        ax.plot(np.full(len(scaled), beta), scaled, ".", color=style.color, alpha=0.35, ms=5)
        low, high = interval(scaled[~np.isnan(scaled)]) or (means[beta], means[beta])
        ax.plot([beta, beta], [low, high], color=style.color)
        ax.plot(beta, means[beta], style.marker, color=style.color, ms=8, zorder=3)
    curve = np.linspace(0, max(looks), 60)
    ax.plot(curve, [predicted(b, means[0.0]) for b in curve], color=INK, lw=1, ls=(0, (4, 3)))
    ax.annotate(
        "from the growth per step", (curve[4], predicted(curve[4], means[0.0])), (0, 6), textcoords="offset points",
        fontsize=8.5,
    )  # fmt: skip
    ax.set_ylim(bottom=0)
    ax.set(xlabel="beta", ylabel="steps to half of the descent, times 1/(1 - beta)")


def _errors(ax: Axes, points: Sequence[Point], looks: Mapping[float, Style]) -> None:
    """Medians over the seeds that still run; a line per seed in the background."""
    for beta, style in looks.items():
        mine = [p for p in points if p.problem == "phase" and p.beta == beta]
        by_step: dict[int, list[float]] = {}
        for p in mine:
            by_step.setdefault(p.step, []).append(p.x)
        ax.plot(list(by_step), [np.median(v) for v in by_step.values()], color=style.color, ls=style.dash)
        for seed in sorted({p.seed for p in mine}):
            xy = np.array([(p.step, p.x) for p in mine if p.seed == seed])
            ax.plot(*xy.T, color=style.color, lw=0.6, alpha=0.35)
    ax.axhline(0.1, color=INK, lw=0.9, ls=(0, (2, 2)))
    ax.set_yscale("log")
    ax.set_ylim(0.01, 10)
    _legend(ax, looks)
    ax.set(xlabel="steps", ylabel="error (share of |w*|), median and seeds")


def _shares(ax: Axes, outcomes: Sequence[Outcome], looks: Mapping[float, Style]) -> None:
    """Share of measurements within APAG, by beta, for both problems."""
    for i, (name, setting) in enumerate(SETTINGS.items()):
        for x, (beta, style) in enumerate(looks.items()):
            shares = 100 * np.array([o.apag_within for o in outcomes if o.problem == name and o.beta == beta])
            place, filled = x + 0.24 * (i - 0.5), name == "phase"
            mean = float(np.nanmean(shares))
            low, high = interval(shares[~np.isnan(shares)]) or (mean, mean)
            ax.plot([place, place], [low, high], color=style.color)
            face = style.color if filled else "white"
            ax.plot(place, mean, style.marker, color=style.color, mfc=face, ms=8)
        ax.plot([], [], "o", color="#8C8C8C", mfc="#8C8C8C" if name == "phase" else "white", label=setting.title)
    ax.axhline(100 * ENOUGH, color=INK, lw=0.9, ls=(0, (2, 2)))
    ax.annotate("flagged below", (0.02, 100 * ENOUGH), (0, -3), va="top", fontsize=8.5,
                xycoords=("axes fraction", "data"), textcoords="offset points")  # fmt: skip
    ax.set_xticks(range(len(looks)), [f"{beta:g}" for beta in looks])
    ax.set_ylim(0, 104)
    ax.legend(loc="lower left", frameon=False, fontsize=8.5)
    ax.set(xlabel="beta", ylabel="share of measurements (%)")

"""The pictures of the study of the coherent Ising machine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from untuned.study.looks import INK, Style, styles
from untuned.study.papers.frame import Panel, Row, Rows
from untuned.study.papers.ising_runs import CELLS, FEEDBACKS, KAPPAS, METHODS, PERCENTILES, SAMPLES, SHOWN, STRENGTHS
from untuned.study.papers.rows import by, numbers
from untuned.study.stats import interval

LABELS = {"gradient": "plain feedback", "momentum": "momentum", "adam": "Adam", "many starts": "projected gradient"}
LINEAR = 1e-4  # gaps below are drawn on a linear scale


def panels(rows: Rows) -> list[Panel]:
    """Final gaps, running minima, the map of the conditioning test, successes, roundtrip fractions, diversity."""
    looks = styles({method: LABELS[method] for method in METHODS})
    n, density, _ = SHOWN
    one, instances = f"{n} variables at {density:.0%}", len(by(rows["race"], "n", "density", "seed"))
    trials = len(by(rows["conditioning"], "seed"))
    race = rows["race"]
    each = instances // len(CELLS)
    return [
        (f"Final gaps, {one}, n = {SAMPLES} samples", partial(_finals, rows=rows["finals"], looks=looks)),
        (f"Best gaps so far, same instance, n = {SAMPLES}", partial(_curves, rows=rows["curves"], looks=looks)),
        (
            f"Successes by kappa and strength, n = {trials} trials",
            partial(_map, rows=rows["conditioning"]),
        ),
        (f"Successes by size, n = {each} instances each", partial(_successes, rows=race, looks=looks)),
        (
            f"Speed against plain feedback, n = {instances}",
            partial(_fractions, rows=race, looks=looks),
        ),
        (f"Diversity of final samples, n = {instances} instances", partial(_diversity, rows=race, looks=looks)),
    ]


def _legend(ax: Axes, looks: Mapping[str, Style], **options: object) -> None:
    ax.legend(frameon=False, fontsize=8.5, **{"handlelength": 3.5, **options})  # pyright: ignore[reportArgumentType]


def _gap_axis(ax: Axes, which: str) -> None:
    getattr(ax, f"set_{which}scale")("symlog", linthresh=LINEAR, linscale=0.5)
    ticks = [0, 1e-4, 1e-3, 1e-2, 1e-1, 1]
    getattr(ax, f"set_{which}ticks")(ticks, ["0", "0.01 %", "0.1 %", "1 %", "10 %", "100 %"])


def _finals(ax: Axes, rows: Sequence[Row], looks: Mapping[str, Style]) -> None:
    """How many samples end at a gap of at most x."""
    for (method,), group in by(rows, "method").items():
        style, gaps = looks[str(method)], np.sort(np.maximum(numbers(group, "gap"), 0))
        x, share = np.concatenate([[0], gaps, [1]]), np.arange(len(gaps) + 2).clip(max=len(gaps)) / len(gaps)
        ax.plot(x, 100 * share, color=style.color, ls=style.dash, drawstyle="steps-post", lw=1.6)
        middle = len(gaps) // 2
        ax.plot(gaps[middle], 100 * share[middle + 1], style.marker, color=style.color, ms=7, clip_on=False, zorder=3)
        ax.plot([], [], color=style.color, marker=style.marker, ls=style.dash, label=style.label)
    ax.axvline(1e-3, color=INK, lw=0.9, ls=(0, (2, 2)))
    ax.annotate("success", (1e-3, 4), (-4, 0), textcoords="offset points", fontsize=8.5, rotation=90, ha="right")
    _gap_axis(ax, "x")
    largest = max(v for v in numbers(rows, "gap") if math.isfinite(v))
    ax.set_xlim(-LINEAR / 5, max(0.01, 1.5 * largest))
    ax.set_ylim(0, 104)
    ax.set(xlabel="final gap to the optimum", ylabel="samples at most there (%)")
    _legend(ax, looks, loc="lower right")


def _curves(ax: Axes, rows: Sequence[Row], looks: Mapping[str, Style]) -> None:
    """Median and 5th percentile of the running minima."""
    for (method,), group in by(rows, "method").items():
        style, rounds = looks[str(method)], numbers(group, "round")
        for column, width in (("p50", 1.8), ("p5", 0.8)):
            values = np.maximum(numbers(group, column), 0)
            ax.plot(rounds, values, color=style.color, ls=style.dash, lw=width)
        ax.plot(rounds[5::6], np.maximum(numbers(group, "p50"), 0)[5::6], style.marker, color=style.color, ms=5)
        ax.plot([], [], color=style.color, marker=style.marker, ls=style.dash, label=style.label)
    _gap_axis(ax, "y")
    ax.axhline(1e-3, color=INK, lw=0.9, ls=(0, (2, 2)))
    ax.set_ylim(-LINEAR / 5, 2)
    ax.set(
        xlabel="round trips (gradients of a sample)", ylabel="best gap so far: median (thick), 5th percentile (thin)"
    )
    _legend(ax, looks)


def _map(ax: Axes, rows: Sequence[Row]) -> None:
    """A block of cells for each feedback: kappa across, strength upwards; hatched where samples diverged."""
    width = len(KAPPAS) + 0.4
    for b, method in enumerate(FEEDBACKS):
        for (kappa, strength), group in by([r for r in rows if r["method"] == method], "kappa", "strength").items():
            x, y = b * width + list(KAPPAS).index(int(kappa or 0)), list(STRENGTHS).index(float(strength or 0))
            success, lost = (float(np.mean(numbers(group, column))) for column in ("success", "diverged"))
            face = (1 - 0.75 * success, 1 - 0.45 * success, 1 - 0.2 * success)
            hatch = "////" if lost > 0.5 else None
            ax.add_patch(
                Rectangle(
                    (x, y), 1, 1, facecolor="#F2C9B0" if hatch else face, edgecolor="#777777", hatch=hatch, lw=0.6
                )
            )
            text = "div." if hatch else f"{success:.2f}".removeprefix("0") if success < 1 else "1"
            ax.text(
                x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=8,
                bbox={"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.85} if hatch else None,
            )  # fmt: skip
        ax.text(b * width + len(KAPPAS) / 2, len(STRENGTHS) + 0.12, LABELS[method], ha="center", fontsize=9)
    ax.set_xlim(-0.1, len(FEEDBACKS) * width - 0.3)
    ax.set_ylim(0, len(STRENGTHS) + 0.5)
    places = [b * width + i + 0.5 for b in range(len(FEEDBACKS)) for i in range(len(KAPPAS))]
    ax.set_xticks(places, [f"{kappa:g}" for kappa in KAPPAS] * len(FEEDBACKS), fontsize=8)
    ax.set_yticks(np.arange(len(STRENGTHS)) + 0.5, [f"{strength:g}" for strength in STRENGTHS])
    ax.tick_params(length=0)
    ax.grid(False)
    ax.set(xlabel="conditioning kappa (hatched: more than half of the samples diverged)", ylabel="feedback strength")


def _successes(ax: Axes, rows: Sequence[Row], looks: Mapping[str, Style]) -> None:
    """Mean share of successful samples with its interval, and the instances, by size."""
    for x, (n, density) in enumerate(CELLS):
        for i, (method, style) in enumerate(looks.items()):
            mine = [r for r in rows if (r["n"], r["density"], r["method"]) == (n, density, method)]
            shares, place = 100 * np.array(numbers(mine, "success")), x + 0.19 * (i - 1.5)
            ax.plot(np.full(len(shares), place), shares, "_", color=style.color, ms=6, alpha=0.6)
            low, high = interval(shares) or (shares.mean(), shares.mean())
            ax.plot([place, place], [low, high], color=style.color)
            ax.plot(place, shares.mean(), style.marker, color=style.color, ms=7, zorder=3, clip_on=False)
    for style in looks.values():
        ax.plot([], [], style.marker, color=style.color, label=style.label)
    ax.set_xticks(range(len(CELLS)), [f"{n}\n{density:.0%}" for n, density in CELLS])
    ax.set_ylim(0, 119)
    ax.set_yticks(range(0, 101, 20))
    ax.set(xlabel="variables, density", ylabel="successful samples (%), mean and instances")
    _legend(ax, looks, ncols=4, loc="upper center", handlelength=1, columnspacing=1.2)


def _fractions(ax: Axes, rows: Sequence[Row], looks: Mapping[str, Style]) -> None:
    """A point for each instance, by percentile."""
    for i, (method, style) in enumerate((m, looks[m]) for m in METHODS[1:]):
        mine = [row for row in rows if row["method"] == method]
        for x, X in enumerate(PERCENTILES):
            values = np.array(numbers(mine, f"fraction_{X:g}"))
            spread = np.linspace(-0.09, 0.09, len(values))
            ax.plot(x + 0.27 * (i - 1) + spread, values, style.marker, color=style.color, ms=4, alpha=0.6, mew=0)
            middle = np.exp(np.nanmean(np.log(values)))
            ax.plot(x + 0.27 * (i - 1) + np.array([-0.12, 0.12]), [middle] * 2, color=INK, lw=2)
        ax.plot([], [], style.marker, color=style.color, label=style.label)
    ax.axhline(1, color=INK, lw=0.9, ls=(0, (2, 2)))
    ax.axhline(0.5, color=INK, lw=0.7, ls=(0, (1, 3)))
    ax.set_yscale("log")
    ax.set_yticks([0.001, 0.01, 0.1, 0.5, 1, 10], ["0.001", "0.01", "0.1", "0.5", "1", "10"])
    ax.set_ylim(top=20)
    ax.set_xticks(range(len(PERCENTILES)), [f"{X:g}" for X in PERCENTILES])
    ax.set(xlabel="percentile of the samples", ylabel="round trips / plain's, instances and geometric mean")
    _legend(ax, looks, ncols=3, loc="upper center", handlelength=1)


def _diversity(ax: Axes, rows: Sequence[Row], looks: Mapping[str, Style]) -> None:
    """Spread of gaps over distance, a point for each instance."""
    for method in FEEDBACKS:
        mine, style = [row for row in rows if row["method"] == method], looks[method]
        x, y = numbers(mine, "distance"), 100 * np.array(numbers(mine, "gap_spread"))
        ax.plot(x, y, style.marker, color=style.color, ms=6, alpha=0.75, label=style.label, clip_on=False)
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
    ax.set(
        xlabel="mean distance of two samples / sqrt(variables)",
        ylabel="standard deviation of final gaps (% of optimum)",
    )
    _legend(ax, looks, handlelength=1)

"""The pictures of the study of momentum as smoothing."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from matplotlib.axes import Axes

from untuned.study.looks import INK, styles
from untuned.study.papers.frame import Panel, Row, Rows
from untuned.study.stats import interval


def panels(rows: Rows) -> list[Panel]:
    """Noise of both forms by batch size; its parts; the search for a batch size; the schedules."""
    n = len({row["seed"] for row in rows["noise"]})
    fresh = len({row["seed"] for row in rows["schedule"] if row["seed"] >= 100})  # type: ignore[operator]
    return [
        (f"Heavy ball, beta 0.9: noise, n = {n} seeds", partial(_noise, rows=rows, kind="shb")),
        (f"Averaged, beta 0.9: noise, n = {n} seeds", partial(_noise, rows=rows, kind="nshb")),
        (f"Delta of one path in two forms, n = {n} seeds", partial(_forms, rows=rows)),
        (f"Search for the critical batch size, n = {n} seeds", partial(_critical, rows=rows)),
        (f"Accuracy by schedule and learning rate, n = {n} seeds", partial(_rates, rows=rows)),
        (f"At the best learning rate, n = {fresh} fresh seeds", partial(_finals, rows=rows)),
    ]


def _column(rows: list[Row], name: str) -> np.ndarray:
    return np.array([row[name] for row in rows], float)


def _mean(
    ax: Axes, x: list[float], values: list[np.ndarray], color: str, marker: str, dash: object, label: str
) -> None:
    """Means with 95 % intervals."""
    bounds = np.array([interval(v) or (math.nan, math.nan) for v in values])
    ax.plot(x, [v.mean() for v in values], marker, ls=dash, color=color, label=label)  # type: ignore[arg-type]
    ax.vlines(x, *bounds.T, color=color, lw=1.4)


def _noise(ax: Axes, rows: Rows, kind: str) -> None:
    """Root of the mean squared distance: bound, exact for a constant gradient, measured, and its two parts."""
    titles = {
        "bound": "published bound",
        "exact": "constant gradient, exact",
        "total": "measured",
        "bias": "measured: bias",
        "variance": "measured: variance",
    }
    mine = [row for row in rows["noise"] if row["kind"] == kind and row["beta"] == 0.9]
    batches = sorted({int(row["batch"]) for row in mine})  # type: ignore[arg-type]
    for (name, title), style in zip(
        titles.items(), styles({f"_{k}": t for k, t in titles.items()}).values(), strict=True
    ):
        values = []
        for batch in batches:
            here = [row for row in mine if row["batch"] == batch]
            exact = _column(here, "exact_gradient") + _column(here, "exact_noise")
            values.append(np.sqrt(exact if name == "exact" else _column(here, name)))
        _mean(ax, [float(b) for b in batches], values, style.color, style.marker, style.dash, title)
    _batch_axis(ax, batches)
    ax.set_yscale("log")
    ax.set_yticks(ticks := [0.03, 0.1, 0.3, 1, 3, 10, 30], [f"{y:g}" for y in ticks])
    ax.minorticks_off()
    ax.set_ylim((0.2, 60) if kind == "shb" else (0.02, 15))
    ax.legend(frameon=False, fontsize=8, handlelength=4, ncol=2, loc="lower left")
    ax.set(ylabel="root mean square of |d - grad f|")


def _batch_axis(ax: Axes, batches: list[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(batches, [f"{b}" for b in batches])
    ax.minorticks_off()
    ax.set_xlabel("batch size")


def _forms(ax: Axes, rows: Rows) -> None:
    """eta times the noise, by beta, for two batch sizes."""
    titles = {
        (k, b): f"{t}, batches of {b}" for k, t in (("shb", "heavy ball"), ("nshb", "averaged")) for b in (8, 512)
    }
    looks = styles({f"_{k}{b}": title for (k, b), title in titles.items()}).values()
    betas = sorted({float(row["beta"]) for row in rows["noise"]})  # type: ignore[arg-type]
    for ((kind, batch), title), style in zip(titles.items(), looks, strict=True):
        values = []
        for beta in betas:
            mine = [r for r in rows["noise"] if r["batch"] == batch and r["beta"] == beta
                    and (r["kind"] == kind or beta == 0)]  # fmt: skip
            values.append(_column(mine, "lr") * np.sqrt(_column(mine, "total")))
        _mean(ax, betas, values, style.color, style.marker, style.dash, title)
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, fontsize=8.5, handlelength=4)
    ax.set(xlabel="beta (coupled learning rate 0.05)", ylabel="delta, measured")


def _critical(ax: Axes, rows: Rows) -> None:
    """Samples to the goal by batch size: a line for each seed, and the mean where all seeds reached it."""
    batches = sorted({int(row["batch"]) for row in rows["steps_to_goal"]})  # type: ignore[arg-type]
    seeds = sorted({int(row["seed"]) for row in rows["steps_to_goal"]})  # type: ignore[arg-type]
    cost = np.array(
        [
            [next(math.nan if r["steps"] is None else float(r["steps"]) * b for r in rows["steps_to_goal"]  # type: ignore[arg-type]
                  if (r["batch"], r["seed"]) == (b, s)) for b in batches]
            for s in seeds
        ]
    )  # fmt: skip
    for i, (line, style) in enumerate(zip(cost, styles({f"_{s}": f"seed {s}" for s in seeds}).values(), strict=True)):
        ax.plot(batches, line, style.marker, ls=style.dash, color=style.color, lw=1.1, label=style.label)
        missed = np.array(batches)[np.isnan(line)]
        ax.plot(
            missed, np.full(len(missed), 0.03 + 0.03 * i), "x", color=style.color, transform=ax.get_xaxis_transform()
        )
    if np.isnan(cost).any():
        ax.plot([], [], "x", color=INK, label="goal not reached")
    _batch_axis(ax, batches)
    ax.set_yscale("log")
    ax.set_yticks([5e3, 1e4, 2e4, 5e4, 1e5, 2e5], ["5,000", "10,000", "20,000", "50,000", "100,000", "200,000"])
    ax.minorticks_off()
    ax.legend(frameon=False, fontsize=8.5, handlelength=4)
    ax.set(ylabel="samples to the goal, b K(b)")


_TITLES = {
    "constant": "constant",
    "linear": "linear decay of lr",
    "lr": "graduated, lr",
    "batch": "graduated, batch",
    "beta": "graduated, beta",
}


def _rates(ax: Axes, rows: Rows) -> None:
    etas = sorted({float(row["eta"]) for row in rows["schedule"]})  # type: ignore[arg-type]
    for i, (method, style) in enumerate(styles({f"_{k}": t for k, t in _TITLES.items()}).items()):
        values = [
            np.array([r["val_accuracy"] for r in rows["schedule"]
                      if (f"_{r['method']}", r["eta"]) == (method, eta) and r["seed"] < 100], float)  # type: ignore[operator]
            for eta in etas
        ]  # fmt: skip
        place = [eta * 1.03 ** (i - 2) for eta in etas]
        _mean(ax, place, values, style.color, style.marker, style.dash, style.label)
    ax.set_xscale("log")
    ax.set_xticks(etas, [f"{eta:g}" for eta in etas])
    ax.minorticks_off()
    ax.set_ylim(74, 85)
    ax.legend(frameon=False, fontsize=8.5, handlelength=4, loc="lower left")
    ax.set(xlabel="eta = lr / (1 - beta) at the start", ylabel="accuracy (%); what is below 74 is not shown")


def _finals(ax: Axes, rows: Rows) -> None:
    """A row for each schedule: seeds, mean and interval."""
    looks = styles({f"_{k}": t for k, t in _TITLES.items()})
    for place, (method, style) in enumerate(looks.items()):
        mine = [r for r in rows["schedule"] if f"_{r['method']}" == method and r["seed"] >= 100]  # type: ignore[operator]
        values = _column(mine, "val_accuracy")
        ax.plot(values, np.full(len(values), place), ".", color=style.color, alpha=0.35, ms=5)
        low, high = interval(values) or (values.mean(), values.mean())
        ax.plot([low, high], [place, place], color=style.color, lw=2.4)
        ax.plot(values.mean(), place, style.marker, color=style.color, ms=8, mec="white", zorder=3)
    ax.set_yticks(range(len(looks)), [style.label for style in looks.values()])
    ax.invert_yaxis()
    ax.set(xlabel="accuracy (%): seeds, mean and 95 % interval")

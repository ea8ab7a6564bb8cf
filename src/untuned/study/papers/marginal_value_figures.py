"""The pictures of the study of the marginal value of momentum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import numpy as np
from matplotlib.axes import Axes

from untuned.study.looks import INK, Style, styles
from untuned.study.papers.frame import Panel, Rows
from untuned.study.stats import interval

_SGD, _MOMENTUM = 0.0, 0.9


def panels(rows: Rows) -> list[Panel]:
    """The laboratory's variance and gap, SVAG on the network; accuracy by eta in both settings, and training loss."""
    betas = sorted({float(row["beta"]) for row in rows["sweep"]})  # type: ignore[arg-type]
    looks = _looks(betas)
    svag, swept = len({row["seed"] for row in rows["svag"]}), [r for r in rows["sweep"] if r["seed"] < 100]  # type: ignore[operator]
    n, found = len({row["seed"] for row in swept}), {**rows, "sweep": swept}
    return [
        (
            "Laboratory: variance under SVAG; dots simulated",
            partial(_variance, rows=rows, looks=looks),
        ),
        ("Laboratory: gap of mean paths to those of SGD", partial(_paths, rows=rows)),
        (f"Network under SVAG: loss gap, n = {svag} seeds", partial(_merging, rows=rows)),
        (f"Batches of 16, n = {n} seeds", partial(_by_eta, rows=found, looks=looks, setting="small")),
        (f"Batches of 500, n = {n} seeds", partial(_by_eta, rows=found, looks=looks, setting="large")),
        (
            f"Batches of 500: training loss, n = {n} seeds",
            partial(_by_eta, rows=found, looks=looks, setting="large", measure="train_loss"),
        ),
    ]


def _looks(betas: list[float]) -> dict[float, Style]:
    labels = {f"{b:g}": "SGD" if b == 0 else f"momentum, beta {b:g}" for b in betas}
    return {float(key): style for key, style in styles(labels).items()}


def _variance(ax: Axes, rows: Rows, looks: Mapping[float, Style]) -> None:
    for beta in (_SGD, _MOMENTUM):
        style = looks[beta]
        exact, simulated = (
            np.array([(r["l"], r["value"]) for r in rows["laboratory"] if r["what"] == what and r["beta"] == beta]).T
            for what in ("svag", "simulated")
        )
        ax.plot(*exact, color=style.color, ls=style.dash, label=style.label)
        ax.plot(*simulated, style.marker, color=style.color)
    limit = 0.5 * 0.7 / (2 * 1.3)
    ax.axhline(limit, color=INK, lw=0.9, ls=(0, (2, 2)))
    ax.annotate("limit eta s2 / (2 h)", (0.98, limit), (0, -4), xycoords=("axes fraction", "data"),
                textcoords="offset points", ha="right", va="top", fontsize=8.5)  # fmt: skip
    ax.set_xscale("log", base=2)
    ax.set_ylim(0.125, 0.205)
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    ax.legend(frameon=False, fontsize=8.5, handlelength=4)
    ax.set(xlabel="l (steps of eta / l, noise covariance times l)", ylabel="stationary variance of x at eta 0.5")


def _paths(ax: Axes, rows: Rows) -> None:
    labels = {"gap": "beta 0.9", "gap, beta 1 - eta^0.5": "beta 1 - eta^0.5"}
    looks = styles({"a": labels["gap"], "b": labels["gap, beta 1 - eta^0.5"]})
    for (what, label), style, power in zip(labels.items(), looks.values(), (1.0, 0.5), strict=True):
        eta, gap = np.array([(r["eta"], r["value"]) for r in rows["laboratory"] if r["what"] == what]).T
        ax.plot(eta, gap, style.marker, ls=style.dash, color=style.color, label=label)
        ax.plot(eta, gap[-1] * (eta / eta[-1]) ** power, color=style.color, lw=0.8, alpha=0.6)
        ax.annotate(f"order {power:g}", (eta[0], gap[-1] * (eta[0] / eta[-1]) ** power), (-2, -8),
                    textcoords="offset points", ha="right", va="top", fontsize=8.5, color=style.color)  # fmt: skip
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_yticks([0.03, 0.05, 0.1, 0.2, 0.3, 0.5], ["0.03", "0.05", "0.1", "0.2", "0.3", "0.5"])
    ax.set_xticks([0.003, 0.01, 0.03, 0.1], ["0.003", "0.01", "0.03", "0.1"])
    ax.minorticks_off()
    ax.legend(frameon=False, fontsize=8.5, handlelength=4, loc="lower right")
    ax.set(xlabel="coupled learning rate eta (curvature 1)", ylabel="largest |difference|, start at 1, time 5")


def _merging(ax: Axes, rows: Rows) -> None:
    """The gap of the training losses along the run: mean over seeds, a curve for each l."""
    ls = sorted({int(row["l"]) for row in rows["svag"]})  # type: ignore[arg-type]
    for l, style in zip(ls, styles({f"l{l}": f"l = {l}" for l in ls}).values(), strict=True):  # noqa: E741
        times = sorted({float(row["time"]) for row in rows["svag"] if row["l"] == l})  # type: ignore[arg-type]
        loss = {(r["beta"], r["seed"], r["time"]): float(r["train_loss"]) for r in rows["svag"] if r["l"] == l}  # type: ignore[arg-type]
        seeds = sorted({seed for _, seed, _ in loss})  # type: ignore[type-var]
        gap = np.array([[loss[_SGD, s, t] - loss[_MOMENTUM, s, t] for t in times] for s in seeds])
        bounds = np.array([interval(column) or (math.nan, math.nan) for column in gap.T])
        ax.plot(
            times, gap.mean(0), color=style.color, ls=style.dash, marker=style.marker, markevery=4, label=style.label
        )
        ax.fill_between(times, *bounds.T, color=style.color, alpha=0.15, lw=0)
    ax.axhline(0, color=INK, lw=0.9)
    ax.legend(frameon=False, fontsize=8.5, handlelength=4)
    ax.set(
        xlabel="steps of the plain run (steps / l), eta 0.5, batches of 256", ylabel="training loss, SGD less momentum"
    )


_LABELS = {"val_accuracy": "accuracy (%); what is below 60 is not shown", "train_loss": "training loss"}


def _by_eta(ax: Axes, rows: Rows, looks: Mapping[float, Style], setting: str, measure: str = "val_accuracy") -> None:
    """Means over seeds with 95 % intervals, on the shared axis."""
    mine = [row for row in rows["sweep"] if row["setting"] == setting]
    etas = sorted({float(row["eta"]) for row in mine})  # type: ignore[arg-type]
    for i, (beta, style) in enumerate(looks.items()):
        values = [np.array([r[measure] for r in mine if (r["eta"], r["beta"]) == (e, beta)], float) for e in etas]
        place = np.array(etas) * 1.04 ** (i - 1)
        bounds = np.array([interval(v) or (math.nan, math.nan) for v in values])
        ax.plot(place, [v.mean() for v in values], style.marker, ls=style.dash, color=style.color, label=style.label)
        ax.vlines(place, *bounds.T, color=style.color, lw=1.4)
    ax.set_xscale("log")
    ax.set_xticks(etas, [f"{eta:g}" for eta in etas])
    ax.minorticks_off()
    if measure == "val_accuracy":
        ax.set_ylim(60, 84)
    else:
        ax.set_yscale("log")
        ax.set_yticks([0.05, 0.1, 0.2, 0.5, 1, 2], ["0.05", "0.1", "0.2", "0.5", "1", "2"])
        ax.minorticks_off()
    ax.legend(frameon=False, fontsize=8.5, handlelength=4, loc="lower left")
    ax.set(xlabel="eta = lr / (1 - beta)", ylabel=_LABELS[measure])

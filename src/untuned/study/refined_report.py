"""The study of refined schedules as a page in Markdown and a picture."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from untuned.schedules import refine, tables
from untuned.schedules.refine import Floats, median_filter, peak, window_of
from untuned.schedules.refined import norms_of
from untuned.schedules.shapes import sampled
from untuned.study import charts
from untuned.study.looks import Style, styles
from untuned.study.refined import METHODS, NOISY, SCHEDULES, SHAPES, Column
from untuned.study.schedule import NORMS, draw_norms, draw_schedules, late, looks, readable
from untuned.study.stats import interval

_INTRO = """\
# Refined schedules, with and without random labels

The finding to look for: refined loses to linear decay on the clean labels, and does not with 20 % random ones.

{headline}

Refined schedules (arXiv 2310.07831) replayed with `untuned study refined`, {seeds} seeds. Every schedule has a peak lr
of its own, the power of two that the rule in `untuned/study/refined.py` finds with three more seeds; losses are of the
last weights, over all training data. The rule was fixed before the runs but for three things that first runs on
fashion-cnn led to: the number of tuning seeds (at first one), the loss above which a run counts as diverged, and the
second task, logreg-dna.

![norms, schedules, losses](refined.png)
"""


def write(folder: Path, columns: Sequence[Column], seeds: int) -> Path:
    """Write `refined.md` and `refined.png` and return the path of the first."""
    finals = [column.finals(seeds) for column in columns]
    panels, lines = [], []
    key = styles({name: name for name in SCHEDULES})
    plain = looks(*SCHEDULES)
    for column, losses in zip(columns, finals, strict=True):
        norms = _norms(column)
        smooth = median_filter(norms, window_of(0.1, len(norms)))
        refined = refine(norms, METHODS[column.method].power)
        drawn = {name: np.array(sampled(shape, len(norms))) for name, shape in SHAPES.items()} | {"refined": refined}
        title = f"{column.method.upper()}, {column.name}"
        kind = "L1" if METHODS[column.method].power == 1 else "L2"
        panels += [
            (f"{title}: linear decay", partial(draw_norms, norms=norms, smooth=smooth, kind=kind)),
            (f"{title}: schedules", partial(draw_schedules, schedules=drawn, key=plain)),
            (f"{title}: final training loss", partial(_draw_losses, losses=losses, key=key)),
        ]
        lines += _section(title, column, losses, refined)
    note = f"losses: seeds, their means and 95 % intervals, n = {seeds}"
    charts.png(folder / "refined.png", panels, NORMS | key, note)
    intro = _INTRO.format(headline=_headline(columns, finals), seeds=seeds)
    page = folder / "refined.md"
    page.write_text("\n".join([intro, *lines]), encoding="utf-8")
    return page


def verdict(losses: Mapping[str, Sequence[float]]) -> tuple[str, str]:
    """Of refined against linear decay: "loses", "wins" or "is not told apart", and the difference in words."""
    refined, linear = (np.array(losses[name]) for name in ("refined", "linear"))
    lost = int(np.isinf(refined).sum() - np.isinf(linear).sum())
    ended = np.isfinite(refined) & np.isfinite(linear)
    d = refined[ended] - linear[ended]
    bounds = interval(d)
    between = f"95 % interval {bounds[0]:+.4f} to {bounds[1]:+.4f}, " if bounds else ""
    text = f"{d.mean():+.4f}, {between}n = {len(d)}" if len(d) else "none"
    if lost:
        text += f"; diverged: {np.isinf(refined).sum()} of refined, {np.isinf(linear).sum()} of linear"
    low, high = (lost, lost) if lost or bounds is None else bounds
    return "loses" if low > 0 else "wins" if high < 0 else "is not told apart", text


def _headline(columns: Sequence[Column], finals: Sequence[Mapping[str, Sequence[float]]]) -> str:
    found = {(c.name, c.method): verdict(losses)[0] for c, losses in zip(columns, finals, strict=True)}
    said = []
    for name, method in found:
        if not name.endswith(NOISY):
            clean, noisy = found[name, method], found[name + NOISY, method]
            same = "reproduced" if clean == "loses" and noisy != "loses" else "not reproduced"
            where = f"{clean} with the clean labels, {noisy} with random ones"
            said.append(f"- {method.upper()} on {name}: refined {where}: {same}.")
    return "\n".join(said)


def _norms(column: Column) -> Floats:
    log = column.norms(column.tuned("linear"))
    return norms_of(log, tables.read(log), METHODS[column.method].power)


def _section(title: str, column: Column, losses: Mapping[str, Sequence[float]], refined: Floats) -> list[str]:
    rows = [["schedule", "peak lr", "final training loss", "95 % interval", "n"], ["---", "--:", "--:", "--:", "--:"]]
    for name, values in sorted(losses.items(), key=lambda one: float(np.mean(one[1]))):
        bounds = interval(np.array(values)) if np.isfinite(values).all() else None
        spread = f"{bounds[0]:.4f} to {bounds[1]:.4f}" if bounds else "none"
        rows.append([name, f"2^{column.tuned(name)}", f"{np.mean(values):.4f}", spread, str(len(values))])
    word, difference = verdict(losses)
    where, warning = peak(refined), late(peak(refined))
    return [
        f"## {title}\n",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        f"Refined {word} (refined minus linear: {difference}). Its peak comes after {100 * where:.0f} % of the run"
        + (f"; warning: {warning}." if warning else "."),
        "",
    ]


def _draw_losses(ax: Axes, losses: Mapping[str, Sequence[float]], key: Mapping[str, Style]) -> None:
    """A row a schedule: every seed, their mean and its interval, on a logarithmic axis."""
    for row, (name, values) in enumerate(losses.items()):
        known = np.array([value for value in values if np.isfinite(value)])
        style = key[name]
        ax.plot(known, np.full(len(known), row), "|", color=style.color, alpha=0.6)
        if bounds := interval(known):
            ax.plot(bounds, [row, row], color=style.color)
        if len(known):
            ax.plot(known.mean(), row, style.marker, color=style.color)
        if len(known) < len(values):
            ax.annotate(
                f"{len(values) - len(known)} diverged", (0.98, row), xycoords=("axes fraction", "data"), ha="right"
            )
    ax.set_xscale("log")
    readable(ax.xaxis)
    ax.set_xlabel("final training loss (cross-entropy, nats)")
    ax.set_yticks(range(len(losses)), list(losses))
    ax.set_ylim(len(losses) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)

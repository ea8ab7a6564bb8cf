"""Charts of a report, drawn with matplotlib: inline SVG that follows the page's theme, and one PNG for a README."""

import io
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from untuned.study.axes import decades, line, lr_axis, method_axis, metric_axis, name_lines, power, ticks
from untuned.study.looks import INK, Style
from untuned.study.results import Curve, TaskResult
from untuned.study.stats import AtRate, Summary, seed_mean

_SVG = "http://www.w3.org/2000/svg"
_RC: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "untuned",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
}


def lr_picture(ax: Axes, result: TaskResult, looks: Mapping[str, Style]) -> None:
    """Final metric against learning rate: mean line, band from the worst to the best seed, x where runs diverged.

    Better is up, and the axis is stretched towards the best, so that what counts as close to it can be seen.
    """
    metric, sign = result.metric, 1 if result.metric.maximize else -1
    finals = np.concatenate([outcome.finals.ravel() for outcome in result.outcomes])
    top = sign * max([*(sign * finals[~np.isnan(finals)]), sign * metric.chance + metric.tolerance])
    grid = sorted({lr for outcome in result.outcomes for lr in outcome.lrs})
    width = lr_axis(ax, grid)
    metric_axis(ax, "y", metric, metric.chance, top)
    ax.axhline(metric.chance, color=INK, lw=0.9, ls=(0, (2, 2)), alpha=0.7)
    at_left = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    ax.annotate("chance", (0, metric.chance), (3, -3), va="top", fontsize=8, **at_left)
    means = [s.mean for s in result.summaries if not math.isnan(s.mean)]
    if means:
        best = sign * max(sign * mean for mean in means)
        ax.axhspan(best - sign * metric.tolerance, best, color=INK, alpha=0.13, lw=0)

    ends = []
    for i, outcome in enumerate(result.outcomes):
        style = looks[outcome.method]
        seeds = [row[~np.isnan(row)] for row in outcome.finals]
        band = np.array([(row.min(), row.max()) if len(row) else (np.nan, np.nan) for row in seeds])
        mean = seed_mean(outcome.finals)
        # Side by side, since at high learning rates several methods diverge at the same place. With up to three
        # learning rates, all of them are apart, each with its range.
        place = (i + 0.5) / len(result.outcomes) - 0.5
        aside = 10 ** (0.3 * place)
        apart = 10 ** (min(0.16 * width, 0.35) * place) if len(grid) <= 3 else 1.0
        lrs = apart * np.array(outcome.lrs)
        line(ax, lrs, mean, band, style)
        if len(grid) <= 3:
            ax.vlines(lrs, band[:, 0], band[:, 1], color=style.color, alpha=0.35, lw=4, gid=style.key)
        ends.append((lrs, mean, style))
        for lr, x, y, row, diverged in zip(outcome.lrs, lrs, mean, seeds, outcome.diverged.sum(axis=1), strict=True):
            where = f"{style.label}, lr {power(lr)}"
            if diverged:
                tip = f"{style.key}|{where}: {diverged} of {len(row)} diverged"
                ax.plot(lr * aside, metric.chance, "x", color=style.color, mew=1.8, zorder=4, gid=tip)
            if diverged < len(row):
                low, mid, high = (metric.text(value) for value in (row.min(), row.mean(), row.max()))
                tip = f"{style.key}|{where}: mean {mid}, range {low} to {high}, n = {len(row)}"
                ax.plot(x, y, style.marker, color=style.color, zorder=3, gid=tip)
    name_lines(ax, ends)


def default_picture(ax: Axes, result: TaskResult, looks: Mapping[str, Style]) -> None:
    """What each method gets at its default lr, the best first, and beside it what it gets with the best of the grid.

    Dots: seeds. Full marker: mean over them, on a bar for its interval. Hollow marker: mean at the best learning rate.
    """
    metric, sign = result.metric, 1 if result.metric.maximize else -1
    rows = sorted(result.summaries, key=lambda s: -sign * s.default.mean if s.default else math.inf)
    shown = [s.mean for s in rows if s.n] + [v for s in rows if s.default for v in s.default.seeds]
    best = sign * max((sign * v for v in shown), default=sign * metric.chance)
    worst = sign * min([*(sign * v for v in shown), sign * best - 2 * metric.tolerance])
    method_axis(ax, [looks[s.method] for s in rows])
    metric_axis(ax, "x", metric, worst, best)
    top = sign * max((sign * s.mean for s in rows if s.n), default=math.nan)
    if not math.isnan(top):
        ax.axvspan(top - sign * metric.tolerance, top, color=INK, alpha=0.13, lw=0)
    defaults = {o.method: o.default_lr for o in result.outcomes}
    for row, s in enumerate(rows):
        style = looks[s.method]
        if s.default:
            _at_default(ax, row, s.default, style, metric.text)
        if s.n:
            tip = f"{style.key}|{style.label}, best of {s.tried} lr: {metric.text(s.mean)} at lr {power(s.best_lr)}"
            ax.plot(
                [s.mean, s.default.mean if s.default else s.mean], [row] * 2, color=style.color, lw=1, gid=style.key
            )
            ax.plot(s.mean, row, style.marker, mfc="none", color=style.color, mew=1.5, ms=11, gid=tip)
        lr, there = defaults[s.method], s.default
        cells = [
            ("–" if lr is None else f"{lr:g}", "normal"),
            (metric.text(there.mean) if there else result.absent.get(s.method, "not run"), "bold"),
            (metric.text(s.mean), "normal"),
        ]
        _beside(ax, row, cells, style.key)
    _beside(ax, None, [(text, "normal") for text in ("default\nlr", "result\nthere", "best\nof grid")])


def _beside(ax: Axes, row: int | None, cells: Sequence[tuple[str, str]], key: str | None = None) -> None:
    """Columns of (text, weight) right of the axes: in a row, or as heads above."""
    for x, (text, weight) in zip((40, 86, 126), cells, strict=False):
        place = {"xytext": (x, 0 if row is not None else 2), "textcoords": "offset points", "ha": "right"}
        place |= {"va": "center", "weight": weight, "gid": key} if row is not None else {"va": "bottom", "fontsize": 8}
        where = ax.get_yaxis_transform() if row is not None else ax.transAxes
        ax.annotate(text, (1, 1 if row is None else row), xycoords=where, **place)


def _at_default(ax: Axes, row: int, at: AtRate, style: Style, text: Callable[[float], str]) -> None:
    low, high = at.interval or (at.mean, at.mean)
    tip = f"{style.key}|{style.label}, default lr {power(at.lr)}: mean {text(at.mean)}, "
    tip += f"range {text(at.seeds.min())} to {text(at.seeds.max())}, n = {at.n}"
    tip += f", {at.diverged} diverged" if at.diverged else ""
    ax.plot([low, high], [row] * 2, color=style.color, lw=7, alpha=0.3, solid_capstyle="butt", gid=style.key)
    ax.plot(at.seeds, row + 0.26 * np.ones(at.n), "o", color=style.color, ms=3.5, alpha=0.7, mew=0, gid=style.key)
    ax.plot(at.mean, row, style.marker, color=style.color, ms=7, zorder=3, gid=tip)
    if at.diverged:
        place = {"xytext": (0, -3), "textcoords": "offset points", "ha": "center", "va": "bottom"}
        ax.annotate(f"{at.diverged}×", (at.mean, row - 0.2), color=style.color, weight="bold", gid=style.key, **place)


def words(ax: Axes, text: str) -> None:
    """A sentence where there is nothing to draw."""
    ax.axis("off")
    ax.text(0, 1, textwrap.fill(text, 70), transform=ax.transAxes, va="top")


def over_time(ax: Axes, what: str, curves: Mapping[str, Curve], looks: Mapping[str, Style]) -> None:
    """One curve per method against epochs, on a logarithmic axis."""
    ax.set_yscale("log")
    ax.set_xlabel("epoch")
    ax.set_ylabel(what)
    ax.margins(x=0.02)
    means: list[float] = []
    for method, curve in curves.items():
        style = looks[method]
        line(ax, curve.epoch, curve.mean, curve.band, style)
        means += [curve.mean.min(), curve.mean.max()] if len(curve.mean) else []
        some = slice(None, None, -max(1, len(curve.epoch) // 6))
        ax.plot(curve.epoch[some], curve.mean[some], style.marker, color=style.color, ms=4.5, gid=style.key)
    low, high = ax.get_ylim()
    if means:  # a band over seeds may reach orders of magnitude further than any mean
        low, high = max(low, min(means) / 4), min(high, 4 * max(means))
        ax.set_ylim(low, high)
    narrow = high / low < 200
    if high / low < 12:  # hardly a power of ten in it
        ax.set_yticks(ticks(0.13 * math.log(high / low), math.log(low), math.log(high), np.exp, np.log))
    else:
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if narrow else power(value)))
    name_lines(ax, [(curve.epoch, curve.mean, looks[method]) for method, curve in curves.items()])


def plateaus(ax: Axes, grid: Sequence[float], summaries: Sequence[Summary], looks: Mapping[str, Style]) -> None:
    """The learning rates close to the method's own best (light bar) and to the best of all (solid bar), in decades."""
    lr_axis(ax, grid)
    method_axis(ax, [looks[s.method] for s in summaries])
    across = ax.get_yaxis_transform()  # x in widths of the axes, y in data
    for row, s in enumerate(summaries):
        style = looks[s.method]
        for plateau, height, alpha in ((s.own, 0.72, 0.3), (s.overall, 0.34, 1.0)):
            if plateau and plateau.decades:
                width = plateau.high - plateau.low
                ax.barh(row, width, height, plateau.low, color=style.color, alpha=alpha, lw=0, gid=style.key)
        if s.own:
            for lr, cut, arrow, side in ((s.own.low, s.own.open_low, "<", -1), (s.own.high, s.own.open_high, ">", 1)):
                if cut and s.own.decades:
                    place = {"xytext": (8 * side, 0), "textcoords": "offset points", "ha": "center", "va": "center"}
                    ax.annotate(arrow, (lr, row), weight="bold", gid=style.key, **place)
            tip = f"{style.key}|{style.label}: best at lr {power(s.best_lr)}"
            ax.plot(s.best_lr, row, style.marker, color=style.color, mec="white", mew=1.2, ms=8, gid=tip)
        else:
            why = "no better than chance" if s.runs else "no runs"
            ax.text(0.5, row, why, transform=across, ha="center", va="center", style="italic", gid=style.key)
        cells = [(decades(s.own), "normal"), (decades(s.overall), "bold")]
        _beside(ax, row, cells, style.key)
    _beside(ax, None, [("own\nbest", "normal"), ("best\nof all", "normal")])


def step_costs(ax: Axes, summaries: Sequence[Summary], looks: Mapping[str, Style]) -> None:
    """Microseconds of one optimizer step, and its ratio to the reference's."""
    method_axis(ax, [looks[s.method] for s in summaries])
    for row, s in enumerate(summaries):
        style, known = looks[s.method], not math.isnan(s.step_us)
        ax.barh(row, s.step_us if known else 0, 0.6, color=style.color, lw=0, gid=style.key)
        text = f"{s.step_us:.0f} µs,  {s.step_ratio:.2f}×" if known else "not measured"
        right = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
        ax.annotate(text, (s.step_us if known else 0, row), gid=style.key, **right)
    ax.set_xlim(0, 1.35 * max([s.step_us for s in summaries if s.step_us > 0], default=1.0))
    unit = next((looks[s.method].label for s in summaries if s.step_ratio == 1), None)
    ax.set_xlabel("optimizer.step() (µs)" + (f", and its ratio to {unit}" if unit else ""))


def svg(draw: Callable[[Axes], None], description: str, height: float) -> str:
    """Draw on axes of 5.3 x `height` inches and return an <svg> element.

    Its ink is `currentColor`. An artist with the gid "KEY" or "KEY|TEXT" becomes a group with `data-method="KEY"`
    and the tooltip TEXT.
    """
    with mpl.rc_context(_RC):
        figure = Figure(figsize=(5.3, height), layout="constrained")
        draw(figure.add_subplot())
        return _inline(figure, description)


def swatch(style: Style) -> str:
    """A piece of line with its marker, for the page's key."""
    with mpl.rc_context(_RC):
        figure = Figure(figsize=(0.6, 0.2))
        ax = figure.add_axes((0, 0, 1, 1))
        ax.axis("off")
        ax.plot([0, 1, 2], [0, 0, 0], color=style.color, marker=style.marker, ls=style.dash, markevery=[1])
        return _inline(figure, style.label)


def png(
    path: Path,
    panels: Sequence[tuple[str, Callable[[Axes], None]]],
    key: Mapping[str, Style],
    note: str,
    width: float = 6.2,
    height: float = 4.3,
) -> None:
    """Panels (title, drawing) of `width` x `height` inches side by side, two or three in a row, above one legend."""
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    with mpl.rc_context(_RC):
        figure = Figure(figsize=(width * columns, height * rows + 0.7), facecolor="white", layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax, (title, draw) in zip(axes, panels, strict=False):
            draw(ax)
            kept = title.replace("n = ", "n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")
            ax.set_title("\n".join(textwrap.wrap(kept, 52)), fontsize=10.5, loc="left", weight="bold")
        for ax in axes[len(panels) :]:
            ax.remove()
        lines = [Line2D([], [], color=s.color, marker=s.marker, ls=s.dash, label=s.label) for s in key.values()]
        place = {"loc": "outside lower center", "ncols": min(len(lines), 3 * columns), "frameon": False}
        if lines:
            figure.legend(handles=lines, handlelength=4, title=note, title_fontsize=8.5, **place)
        figure.savefig(path, format="png", dpi=140)


def _inline(figure: Figure, description: str) -> str:
    raw = io.BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(raw, format="svg", transparent=True, metadata=nothing)
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(raw.getvalue())
    for group in root.iter(f"{{{_SVG}}}g"):
        key, _, tooltip = group.attrib.pop("id", "").partition("|")  # one page holds many figures: ids would clash
        if re.fullmatch(r"m\d+", key):
            group.set("data-method", key)
        if tooltip:
            ElementTree.SubElement(group, f"{{{_SVG}}}title").text = tooltip
    del root.attrib["width"], root.attrib["height"]
    root.set("role", "img")
    root.set("aria-label", description)
    text = ElementTree.tostring(root, encoding="unicode")
    return text.replace(INK, "currentColor").replace("'DejaVu Sans'", "system-ui")

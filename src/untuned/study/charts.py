"""Charts of a report, drawn with matplotlib: inline SVG that follows the page's theme, and one PNG for a README."""

import io
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from untuned.study.results import Curve, TaskResult
from untuned.study.stats import Floats, Plateau, Summary, seed_mean

INK = "#010203"  # text and axes: black in a PNG, `currentColor` in a page
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
_COLORS = ("#D55E00", "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", INK, "#8C8C8C")  # after Okabe and Ito
_MARKERS = "osD^vPXph*<>"
_DASHES: tuple[Any, ...] = (
    "-",
    (0, (6, 2)),
    (0, (1, 1.2)),
    (0, (5, 1.5, 1, 1.5)),
    (0, (9, 3)),
    (0, (3, 1, 1, 1, 1, 1)),
)


@dataclass(frozen=True)
class Style:
    """How one method looks in every chart: colour, marker and dash all differ, so that grey is enough."""

    key: str  # marks what belongs to the method in a page, so that the page can dim the others
    label: str
    color: str
    marker: str
    dash: Any  # a matplotlib line style


def styles(labels: Mapping[str, str]) -> dict[str, Style]:
    """A style per method, by position. `labels`: what people read, by method."""
    return {
        method: Style(f"m{i}", label, _COLORS[i % len(_COLORS)], _MARKERS[i % len(_MARKERS)], _DASHES[i % len(_DASHES)])
        for i, (method, label) in enumerate(labels.items())
    }


def power(value: float) -> str:
    """`10⁻³`, `3·10⁻³`, or digits where they are short."""
    exponent = math.floor(math.log10(value) + 1e-9)
    factor = float(f"{value / 10.0**exponent:.3g}")
    if factor != 1 and -2 <= exponent <= 2:
        return f"{value:.3g}"
    ten = "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return ten if factor == 1 else f"{factor:g}·{ten}"


def decades(plateau: Plateau | None) -> str:
    """`1.4`, or `≥ 4.0` if the plateau was cut off; `0` for none."""
    return "0" if plateau is None else f"{'≥ ' if plateau.censored else ''}{plateau.decades:.1f}"


def lr_picture(ax: Axes, result: TaskResult, looks: Mapping[str, Style]) -> None:
    """Final metric against learning rate: mean line, band from the worst to the best seed, x where runs diverged.

    Better is up.
    """
    metric, sign = result.metric, 1 if result.metric.maximize else -1
    finals = np.concatenate([outcome.finals.ravel() for outcome in result.outcomes])
    top = sign * max([*(sign * finals[~np.isnan(finals)]), sign * metric.chance + metric.tolerance])
    span = top - metric.chance
    _lr_axis(ax, sorted({lr for outcome in result.outcomes for lr in outcome.lrs}))
    ax.set_ylim(metric.chance - 0.07 * span, top + 0.06 * span)
    ax.set_ylabel(metric.unit + ("" if metric.maximize else ", lower is better"))
    if metric.percent:
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}"))
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
        _line(ax, np.array(outcome.lrs), mean, band, style)
        ends.append((outcome.lrs, mean, style))
        # Side by side, since at high learning rates several methods diverge at the same place.
        aside = 10 ** (0.3 * ((i + 0.5) / len(result.outcomes) - 0.5))
        for lr, y, row, diverged in zip(outcome.lrs, mean, seeds, outcome.diverged.sum(axis=1), strict=True):
            where = f"{style.label}, lr {power(lr)}"
            if diverged:
                tip = f"{style.key}|{where}: {diverged} of {len(row)} diverged"
                ax.plot(lr * aside, metric.chance, "x", color=style.color, mew=1.8, zorder=4, gid=tip)
            if diverged < len(row):
                low, mid, high = (metric.text(value) for value in (row.min(), row.mean(), row.max()))
                tip = f"{style.key}|{where}: mean {mid}, range {low} to {high}, n = {len(row)}"
                ax.plot(lr, y, style.marker, color=style.color, zorder=3, gid=tip)
    _name_lines(ax, ends)


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
    for method, curve in curves.items():
        style = looks[method]
        _line(ax, curve.epoch, curve.mean, curve.band, style)
        some = slice(None, None, -max(1, len(curve.epoch) // 6))
        ax.plot(curve.epoch[some], curve.mean[some], style.marker, color=style.color, ms=4.5, gid=style.key)
    low, high = ax.get_ylim()
    narrow = high / low < 200
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if narrow else power(value)))
    _name_lines(ax, [(curve.epoch, curve.mean, looks[method]) for method, curve in curves.items()])


def plateaus(ax: Axes, grid: Sequence[float], summaries: Sequence[Summary], looks: Mapping[str, Style]) -> None:
    """The learning rates close to the method's own best (light bar) and to the best of all (solid bar), in decades."""
    _lr_axis(ax, grid)
    method_axis(ax, [looks[s.method] for s in summaries])
    across = ax.get_yaxis_transform()  # x in widths of the axes, y in data
    for row, s in enumerate(summaries):
        style = looks[s.method]
        for plateau, height, alpha in ((s.own, 0.72, 0.3), (s.overall, 0.34, 1.0)):
            if plateau:
                width = plateau.high - plateau.low
                ax.barh(row, width, height, plateau.low, color=style.color, alpha=alpha, lw=0, gid=style.key)
        if s.own:
            for lr, cut, arrow, side in ((s.own.low, s.own.open_low, "<", -1), (s.own.high, s.own.open_high, ">", 1)):
                if cut:
                    place = {"xytext": (8 * side, 0), "textcoords": "offset points", "ha": "center", "va": "center"}
                    ax.annotate(arrow, (lr, row), weight="bold", gid=style.key, **place)
            tip = f"{style.key}|{style.label}: best at lr {power(s.best_lr)}"
            ax.plot(s.best_lr, row, style.marker, color=style.color, mec="white", mew=1.2, ms=8, gid=tip)
        else:
            why = "no better than chance" if s.runs else "no runs"
            ax.text(0.5, row, why, transform=across, ha="center", va="center", style="italic", gid=style.key)
        for x, plateau, weight in ((1.15, s.own, "normal"), (1.3, s.overall, "bold")):
            ax.text(x, row, decades(plateau), transform=across, ha="right", va="center", weight=weight, gid=style.key)
    for x, text in ((1.15, "own\nbest"), (1.3, "best\nof all")):
        ax.text(x, 1.0, text, transform=ax.transAxes, ha="right", va="bottom", fontsize=8)


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
    """Draw on axes of 5.8 x `height` inches and return an <svg> element.

    Its ink is `currentColor`. An artist with the gid "KEY" or "KEY|TEXT" becomes a group with `data-method="KEY"`
    and the tooltip TEXT.
    """
    with mpl.rc_context(_RC):
        figure = Figure(figsize=(5.8, height), layout="constrained")
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
    """Panels (title, drawing) of `width` x `height` inches side by side, at most three in a row, above one legend."""
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    with mpl.rc_context(_RC):
        figure = Figure(figsize=(width * columns, height * rows + 0.7), facecolor="white", layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax, (title, draw) in zip(axes, panels, strict=False):
            draw(ax)
            ax.set_title("\n".join(textwrap.wrap(title, 52)), fontsize=10.5, loc="left", weight="bold")
        for ax in axes[len(panels) :]:
            ax.remove()
        lines = [Line2D([], [], color=s.color, marker=s.marker, ls=s.dash, label=s.label) for s in key.values()]
        place = {"loc": "outside lower center", "ncols": min(len(lines), 3 * columns), "frameon": False}
        figure.legend(handles=lines, handlelength=4, title=note, title_fontsize=8.5, **place)
        figure.savefig(path, format="png", dpi=140)


def _lr_axis(ax: Axes, grid: Sequence[float]) -> None:
    ax.set_xscale("log")
    ax.set_xlim(grid[0] / 10**0.25, grid[-1] * 10**0.25)
    ax.set_xlabel("learning rate (lr)")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: power(value)))


def method_axis(ax: Axes, methods: Sequence[Style]) -> None:
    ax.set_yticks(range(len(methods)), [style.label for style in methods])
    ax.set_ylim(len(methods) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)


def _line(ax: Axes, x: Floats, mean: Floats, band: Floats, style: Style) -> None:
    ax.fill_between(x, band[:, 0], band[:, 1], color=style.color, alpha=0.16, lw=0, gid=style.key)
    ax.plot(x, mean, color=style.color, ls=style.dash, gid=style.key)


def _name_lines(ax: Axes, lines: Sequence[tuple[Sequence[float] | Floats, Floats, Style]]) -> None:
    """Write each line's name right of its last point, moved apart where they would overlap."""
    to_axes = ax.transScale + ax.transLimits
    ends = []
    for x, y, style in lines:
        known = np.flatnonzero(~np.isnan(y))
        if len(known):
            ends.append((*to_axes.transform((x[known[-1]], y[known[-1]])), style))
    ends.sort(key=lambda end: end[1])
    heights = [end[1] for end in ends]
    gap = 0.062  # of the axes' height: one line of text
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    ceiling = 1.0
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], ceiling)
        ceiling = heights[i] - gap
    for (x, y, style), height in zip(ends, heights, strict=True):
        leader = {"color": style.color, "lw": 0.8, "alpha": 0.8, "clip_on": False, "gid": style.key}
        ax.plot([x, 1.0, 1.03], [y, y, height], transform=ax.transAxes, **leader)
        ax.text(1.04, height, style.label, transform=ax.transAxes, va="center", fontsize=9, gid=style.key)


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

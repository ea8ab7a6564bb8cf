"""Charts of a report, drawn with matplotlib: inline SVG that follows the page's theme, and one PNG for a README."""

import io
import math
import re
import textwrap
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

import untuned
from untuned.study.results import Curve, Metric, TaskResult
from untuned.study.stats import AtRate, Floats, Plateau, Summary, seed_mean

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
_COLORS = {  # those of Okabe and Ito and six more, by the method that has one to itself
    "adam": "#D55E00",
    "momo_adam": "#0072B2",
    "prodigy": "#009E73",
    "adamw": "#E69F00",
    "schedule_free_adamw": "#CC79A7",
    "momo": "#56B4E9",
    "mechanic_adamw": INK,
    "sgd": "#8C8C8C",
    "dadapt_adam": "#7A5FD0",
    "dog": "#A0522D",
    "prodigy_schedule_free": "#5E9C1E",
    "madgrad": "#C2185B",
    "schedule_free_sgd": "#00838F",
    "range-test": "#5B2A86",
}
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
    """A style per method. `labels`: what people read, by method as in `adam(eps=1e-6)`.

    The colour of a registered method depends on its name alone, so that it is the same in every report; of several
    with one name that with the shortest label has it. The others take colours that are free, by position. No two
    methods of a report have both marker and dash in common.
    """
    plain: dict[str, str] = {}  # registered name: the method that has its colour
    for method in sorted(labels, key=lambda method: (len(method), method)):
        name = re.match(r"\w*", method).group()  # pyright: ignore[reportOptionalMemberAccess]
        if method in _COLORS or (name in _registered() and re.fullmatch(r"\w+(\(.*\))?", method)):
            plain.setdefault(method if method in _COLORS else name, method)
    palette = list(_COLORS.values())
    colors: dict[str, str] = {}
    wanted: dict[str, int] = {}  # position among the pairs of marker and dash
    for name, method in plain.items():
        lot = zlib.crc32(name.encode())
        colors[method] = _COLORS.get(name) or palette[lot % len(palette)]
        wanted[method] = list(_COLORS).index(name) if name in _COLORS else lot
    used = Counter(colors.values())
    for i, method in enumerate(labels):
        if method not in colors:
            colors[method] = min(palette[::-1] if plain else palette, key=lambda color: used[color])
            used[colors[method]] += 1
            wanted[method] = i
    pairs = [(_MARKERS[i % 12], _DASHES[(i + i // 12) % 6]) for i in range(72)]
    looks: dict[str, tuple[str, Any]] = {}
    for method in sorted(labels, key=lambda method: (method not in plain.values(), list(labels).index(method))):
        free = [pair for pair in pairs if pair not in looks.values()] or pairs
        first = pairs[wanted[method] % 72]
        looks[method] = first if first in free else free[wanted[method] % len(free)]
    return {m: Style(f"m{i}", label, colors[m], *looks[m]) for i, (m, label) in enumerate(labels.items())}


@cache
def _registered() -> frozenset[str]:
    return frozenset(untuned.list())


def power(value: float) -> str:
    """`10⁻³`, `3·10⁻³`, or digits where they are short."""
    exponent = math.floor(math.log10(value) + 1e-9)
    factor = float(f"{value / 10.0**exponent:.3g}")
    if factor != 1 and -2 <= exponent <= 2:
        return f"{value:.3g}"
    ten = "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return ten if factor == 1 else f"{factor:g}·{ten}"


def decades(plateau: Plateau | None) -> str:
    """`1.4`, or `≥ 4.0` if the plateau was cut off; `0` for none, a dash if it is a single learning rate."""
    if plateau is None:
        return "0"
    return f"{'≥ ' if plateau.censored else ''}{plateau.decades:.1f}" if plateau.decades else "–"


def lr_picture(ax: Axes, result: TaskResult, looks: Mapping[str, Style]) -> None:
    """Final metric against learning rate: mean line, band from the worst to the best seed, x where runs diverged.

    Better is up, and the axis is stretched towards the best, so that what counts as close to it can be seen.
    """
    metric, sign = result.metric, 1 if result.metric.maximize else -1
    finals = np.concatenate([outcome.finals.ravel() for outcome in result.outcomes])
    top = sign * max([*(sign * finals[~np.isnan(finals)]), sign * metric.chance + metric.tolerance])
    grid = sorted({lr for outcome in result.outcomes for lr in outcome.lrs})
    width = _lr_axis(ax, grid)
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
        _line(ax, lrs, mean, band, style)
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
    _name_lines(ax, ends)


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
        _line(ax, curve.epoch, curve.mean, curve.band, style)
        means += [curve.mean.min(), curve.mean.max()] if len(curve.mean) else []
        some = slice(None, None, -max(1, len(curve.epoch) // 6))
        ax.plot(curve.epoch[some], curve.mean[some], style.marker, color=style.color, ms=4.5, gid=style.key)
    low, high = ax.get_ylim()
    if means:  # a band over seeds may reach orders of magnitude further than any mean
        low, high = max(low, min(means) / 4), min(high, 4 * max(means))
        ax.set_ylim(low, high)
    narrow = high / low < 200
    if high / low < 12:  # hardly a power of ten in it
        ax.set_yticks(_ticks(0.13 * math.log(high / low), math.log(low), math.log(high), np.exp, np.log))
    else:
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


def _lr_axis(ax: Axes, grid: Sequence[float]) -> float:
    """A logarithmic axis at least one decade wide, and its width in decades. Few rates are all named."""
    low, high = math.log10(grid[0]), math.log10(grid[-1])
    margin = max(0.25, (1 - high + low) / 2)
    ax.set_xscale("log")
    ax.set_xlim(10 ** (low - margin), 10 ** (high + margin))
    ax.set_xlabel("learning rate (lr)")
    width = high - low + 2 * margin
    if sum(low - margin <= i <= high + margin for i in range(math.floor(low) - 1, math.ceil(high) + 2)) < 3:
        named: list[float] = []
        for lr in grid:
            if not named or math.log10(lr / named[-1]) > 0.16 * width:
                named.append(lr)
        ax.set_xticks(named)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: power(value)))
    return width


def metric_axis(ax: Axes, which: Literal["x", "y"], metric: Metric, worst: float, best: float) -> None:
    """An axis from worst to best, right or up, linear within the tolerance of the best and logarithmic far from it."""
    sign = 1 if metric.maximize else -1
    unit = metric.tolerance or 0.02 * abs(best - worst) or 1.0

    def goodness(value: Any) -> Any:  # 0 is the best
        ahead = sign * (np.asarray(value, float) - best) / unit
        return np.where(ahead < 0, -np.log1p(np.maximum(-ahead, 0)), ahead)

    def value_of(good: Any) -> Any:
        good = np.asarray(good, float)
        return best + sign * unit * np.where(good < 0, -np.expm1(np.maximum(-good, 0)), good)

    scale, limit, label = (
        (ax.set_xscale, ax.set_xlim, ax.set_xlabel) if which == "x" else (ax.set_yscale, ax.set_ylim, ax.set_ylabel)
    )
    scale("function", functions=(lambda value: sign * goodness(value), lambda place: value_of(sign * place)))
    span = -float(goodness(worst)) or 1.0
    low, high = -1.07 * span, 0.06 * span
    limit(float(value_of(low)), float(value_of(high)))
    label(metric.unit + ("" if metric.maximize else ", lower is better"))
    ticks = _ticks((0.07 if which == "y" else 0.14) * (high - low), low, high, value_of, goodness)
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_ticks(ticks)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value if metric.percent else value:.6g}"))


def _ticks(
    gap: float, low: float, high: float, value_of: Callable[[Any], Any], place_of: Callable[[Any], Any]
) -> list[float]:
    """Round values, the highest place first, at least `gap` apart on an axis that maps values to places."""
    ticks, place = [], high
    while place > low:
        ticks.append(_roundest(*value_of(np.array([max(place - gap, low), place]))))
        place = float(place_of(ticks[-1])) - gap
    return ticks


def _roundest(a: float, b: float) -> float:
    """The number between a and b with the fewest digits."""
    low, high = sorted((float(a), float(b)))
    for exponent in range(math.ceil(math.log10(max(abs(low), abs(high), 1e-12))), -13, -1):
        for digit in (5, 2, 1):
            step = digit * 10.0**exponent
            if math.ceil(low / step) * step <= high:
                return round(math.ceil(low / step) * step, 12)
    return high


def method_axis(ax: Axes, methods: Sequence[Style]) -> None:
    ax.set_yticks(range(len(methods)), [textwrap.fill(style.label, 30) for style in methods])
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

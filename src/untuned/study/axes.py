"""Axes, lines and numbers that the charts of a report share."""

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from untuned.study.looks import Style
from untuned.study.results import Metric
from untuned.study.stats import Floats, Plateau


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


def lr_axis(ax: Axes, grid: Sequence[float]) -> float:
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
    places = ticks((0.07 if which == "y" else 0.14) * (high - low), low, high, value_of, goodness)
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_ticks(places)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value if metric.percent else value:.6g}"))


def ticks(
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


def line(ax: Axes, x: Floats, mean: Floats, band: Floats, style: Style) -> None:
    ax.fill_between(x, band[:, 0], band[:, 1], color=style.color, alpha=0.16, lw=0, gid=style.key)
    ax.plot(x, mean, color=style.color, ls=style.dash, gid=style.key)


def name_lines(ax: Axes, lines: Sequence[tuple[Sequence[float] | Floats, Floats, Style]]) -> None:
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

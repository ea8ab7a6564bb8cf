"""A refined schedule from a log of gradient norms, with its picture, and schedules ranked by their bounds."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from rich.table import Table

from untuned.schedules import SHAPES, bound, numeric, refine, tables
from untuned.schedules.refine import Floats, median_filter, peak, window_of
from untuned.schedules.refined import norms_of
from untuned.schedules.shapes import sampled
from untuned.study import charts
from untuned.study.config import StudyError
from untuned.study.looks import INK, Style, styles

LATE = 0.5  # part of the run after which a peak is warned of
NORMS = {"norms": Style("n0", "norms", "#8C8C8C", "", "-"), "smoothed": Style("n1", "smoothed", INK, "", "-")}


@contextmanager
def in_one_sentence() -> Iterator[None]:
    """What is wrong with a log or an option is said to who typed it."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise StudyError(str(error)) from error


def late(where: float) -> str:
    """What to say of a refined schedule whose largest multiplier comes at this part of the run; "" if nothing."""
    if where <= LATE:
        return ""
    return (
        f"the largest lr comes after {100 * where:.0f} % of the run: the gradient norms collapse, as they do when a "
        "model comes to fit its data exactly; refined schedules have lost to linear decay there, so compare both"
    )


class Refined(NamedTuple):
    """What `untuned schedule refine` made."""

    schedule: Path
    picture: Path
    steps: int
    peak: float
    warning: str


def _check_out(out: Path, log: Path) -> None:
    """StudyError if the schedule cannot be written there, or would be written over the log or among its files."""
    if out.suffix not in (".csv", ".parquet"):
        raise StudyError(f"--out must end in .csv or .parquet, not {out.name!r}")
    if out.is_dir():
        raise StudyError(f"{out} is a folder; choose another --out")
    if not out.absolute().parent.is_dir():
        raise StudyError(f"{out}: there is no folder {out.parent}")
    if out.resolve() == log.resolve():
        raise StudyError(f"{out} is the log itself; choose another --out")
    if out.suffix == ".parquet" and out.resolve().parent == log.resolve():
        raise StudyError(f"{out} would be read as a part of the log; choose another --out")


def write_refined(log: Path, power: float, tau: float, steps: int | None, out: Path | None) -> Refined:
    """Write the schedule file (step, multiplier) and, with its name in .png, the picture. Raises StudyError."""
    if out is None:
        place = log.resolve() if log.name in ("", "..") else log  # the folder that one is in has a name, too
        out = place.parent / f"{place.name if log.is_dir() else place.stem}-schedule.csv"
    _check_out(out, log)
    with in_one_sentence():
        norms = norms_of(log, tables.read(log), power)
        schedule = refine(norms, power, tau, steps)
        tables.write(out, {"step": np.arange(1, len(schedule) + 1), "multiplier": schedule})
        smooth = median_filter(norms, window_of(tau, len(norms)))
        picture(out.with_suffix(".png"), norms, smooth, schedule, "L1" if power == 1 else "L2", log.name)
    where = peak(schedule)
    return Refined(out, out.with_suffix(".png"), len(schedule), where, late(where))


def looks(*labels: str) -> dict[str, Style]:
    """Styles of plain lines."""
    return {key: replace(style, marker="") for key, style in styles({one: one for one in labels}).items()}


def draw_norms(ax: Axes, norms: Floats, smooth: Floats, kind: str) -> None:
    """Norms of the gradient and their median, on a logarithmic axis, against the step of the log."""
    steps = np.arange(1, len(norms) + 1)
    ax.plot(steps, norms, color=NORMS["norms"].color, lw=0.7)
    ax.plot(steps, smooth, color=NORMS["smoothed"].color)
    ax.set_yscale("log")
    readable(ax.yaxis)
    ax.set_xlabel("optimizer step")
    ax.set_ylabel(f"{kind} norm of the gradient")


def readable(axis: Axis) -> None:
    """Plain numbers on a logarithmic axis: every 1, 2 and 5."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 200 else (1.0,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def draw_schedules(ax: Axes, schedules: dict[str, Floats], key: dict[str, Style]) -> None:
    """Multipliers of lr against the step."""
    for name, values in schedules.items():
        ax.plot(np.arange(1, len(values) + 1), values, color=key[name].color, ls=key[name].dash)
    ax.set_ylim(0, 1.04)
    ax.set_xlabel("optimizer step")
    ax.set_ylabel("lr as a part of its peak")


def picture(path: Path, norms: Floats, smooth: Floats, schedule: Floats, kind: str, title: str) -> None:
    """Norms and smoothed norms beside the refined schedule and linear decay."""
    key = looks("refined", "linear")
    both = {"refined": schedule, "linear": np.array(sampled("linear", len(schedule)))}
    panels = [
        (f"Gradient norms of {title}", partial(draw_norms, norms=norms, smooth=smooth, kind=kind)),
        ("Schedules", partial(draw_schedules, schedules=both, key=key)),
    ]
    charts.png(
        path, panels, NORMS | key, f"refined: {len(schedule)} steps, peak after {100 * peak(schedule):.0f} % of the run"
    )


class Bound(NamedTuple):
    """A schedule with the best scale and what it guarantees."""

    schedule: str
    value: float  # of f at the last iterate, above its minimum
    lr: float  # peak


def ranked(log: Path, distance: float = 1.0) -> tuple[list[Bound], float]:
    """The schedules by their bound for the L2 norms of a log, best first; and D G / sqrt(T), G the root mean square."""
    with in_one_sentence():
        columns = tables.read(log)
        norms = norms_of(log, columns, power=2)
        T = len(norms)
        schedules = {name: np.array(sampled(name, T)) for name in SHAPES}
        schedules["refined (L2 norms)"] = refine(norms, 2)
        if "l1" in columns:
            schedules["refined (L1 norms)"] = refine(columns["l1"], 1)
        schedules["least bound, numerically"] = numeric(norms)
        found = [Bound(name, *bound(values, norms, distance)) for name, values in schedules.items()]
    unit = distance * float(np.sqrt(np.mean((norms / norms.max()) ** 2)) * norms.max()) / T**0.5
    return sorted(found, key=lambda one: one.value), unit


def table(rows: list[Bound], unit: float, log: Path, distance: float) -> Table:
    """The ranking as it is printed."""
    found = Table(title=f"Schedules by the bound of their last step for the norms of {log}, distance {distance:g}")
    found.add_column("schedule")
    for name in ("bound", "in D G / sqrt(T)", "peak lr"):
        found.add_column(name, justify="right")
    for row in rows:
        found.add_row(row.schedule, f"{row.value:.4g}", f"{row.value / unit:.3f}", f"{row.lr:.3g}")
    return found

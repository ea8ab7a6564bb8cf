"""A benchmark as tables, on the screen and in Markdown, and as a picture."""

import importlib.metadata
import math
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from rich import box
from rich.table import Table

import untuned
from untuned.study import charts
from untuned.study.bench import Job, Row
from untuned.study.contenders import MODELS, PACKAGES, PEERS, REFERENCE
from untuned.study.looks import INK, Style, styles

_NAMES = ("contender", "malloc", "guard")
_NUMBERS = ("ratio", "quartiles", "ms", "GB/s", "B/param", "state B/param", "1st step s")
_FEW_TICKS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
_MANY_TICKS = (0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100)
_METHOD = """\
Ratio: time of a step over the mean of the two steps of `torch.optim.AdamW(fused=True)` around it, in the same process;
{clock}, threads: {threads}, median and quartiles of {rounds} rounds, contenders in shuffled order, the reference itself
among them as control. GB/s: B/param, the bytes that a step reads and writes by name, over the median step; the stream
rows are what this machine reaches with arrays of 256 MiB. Guard: whether steps with non-finite gradients are skipped,
for one more read of the gradients. First step: wall clock; kernels are compiled or loaded from the cache, and the first
method of a process also starts Numba. Tuned malloc: glibc is told to keep freed memory.
"""


def write(folder: Path, jobs: Sequence[Job], rows: Sequence[Row]) -> Path:
    """Write `bench.md` and `bench.png` and return the path of the first."""
    _plot(folder / "bench.png", rows)
    page = folder / "bench.md"
    page.write_text(_markdown(jobs[0], rows), encoding="utf-8")
    return page


def tables(rows: Sequence[Row]) -> Iterator[Table]:
    """Tables for the screen, one per parameter list and dtype."""
    for title, cells, failures in _tables(rows):
        table = Table(*_NAMES, title=title, title_justify="left", caption="\n".join(failures), box=box.SIMPLE_HEAD)
        for column in _NUMBERS:
            table.add_column(column, justify="right", no_wrap=True)
        for row in cells:
            table.add_row(*row)
        yield table


def _tables(rows: Sequence[Row]) -> Iterator[tuple[str, list[list[str]], list[str]]]:
    """Title, cells and what failed, one per parameter list and dtype."""
    for (model, dtype), found in groupby(rows, lambda row: (row.model, row.dtype)):
        ordered = sorted(found, key=_order)
        yield f"{model}, {dtype}", [_cells(row) for row in ordered], [f"failed: {row}" for row in ordered if row.error]


def _order(row: Row) -> tuple[int, str, str]:
    """What the machine can do, the control, ours, other packages'."""
    kinds = (row.contender.startswith("stream "), row.contender == REFERENCE, row.contender not in PEERS, True)
    return kinds.index(True), row.contender, row.allocator


def _cells(row: Row) -> list[str]:
    def number(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    return [
        f"{row.contender} itself" if row.contender == REFERENCE else row.contender,
        row.allocator,
        row.guard,
        "failed" if row.error else number(row.ratio, 2),
        "" if row.ratio is None else f"{row.low:.2f}–{row.high:.2f}",
        number(row.ms, 2),
        number(row.gb_per_s, 1),
        number(row.bytes_per_param, 1),
        number(row.state_bytes_per_param, 1),
        number(row.first_step_s, 2),
    ]


def _markdown(job: Job, rows: Sequence[Row]) -> str:
    lines = [
        "# Time of one optimizer step\n",
        f"{datetime.now(UTC):%Y-%m-%d}. {_machine(job)}. {_versions()}.\n",
        _METHOD.format(clock=job.clock, threads=job.threads, rounds=job.rounds),
        "![ratios](bench.png)",
    ]
    alignment = ["---"] * len(_NAMES) + ["--:"] * len(_NUMBERS)
    for title, cells, failures in _tables(rows):
        lines += [f"\n## {title}\n"]
        lines += [f"| {' | '.join(row)} |" for row in ((*_NAMES, *_NUMBERS), alignment, *cells)]
        lines += [f"\n{failure}" for failure in failures]
    return "\n".join(lines) + "\n"


def _machine(job: Job) -> str:
    if job.device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else []
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, {platform.system()}"


def _versions() -> str:
    found = {"untuned": untuned.__version__, "python": platform.python_version()}
    for package in ("numba", *PACKAGES):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(f"{package} {version}" for package, version in found.items())


def _plot(path: Path, rows: Sequence[Row]) -> None:
    """A panel per parameter list: a dot with its quartiles per contender, in one colour per dtype and malloc."""
    measured = sorted((row for row in rows if row.ratio is not None), key=_order)
    names = list(dict.fromkeys(row.contender for row in measured))
    models = list(dict.fromkeys(row.model for row in rows))
    looks = styles({_series(row): _series(row) for row in rows})
    width, height = 3.2 + 2.9 * len(models), 1.9 + (0.16 + 0.06 * len(looks)) * len(names)
    with mpl.rc_context(charts._RC):
        figure = Figure((width, height), facecolor="white", layout="constrained")
        panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
        for ax, model in zip(panels, models, strict=True):
            shapes = MODELS[model]
            millions = sum(map(math.prod, shapes)) / 1e6
            ax.set_title(f"{model}\n{len(shapes):,} tensors, {millions:.4g}M", fontsize=10.5, loc="left", weight="bold")
            _panel(ax, [row for row in measured if row.model == model], names, looks)
        panels[0].set_yticks(range(len(names)), names)
        panels[0].set_ylim(len(names) - 0.4, -0.6)
        lines = [Line2D([], [], color=s.color, marker=s.marker, ls="", label=s.label) for s in looks.values()]
        note = "time of a step over that of torch AdamW(fused=True): median and quartiles, left is faster"
        place = {"loc": "outside lower center", "ncols": max(1, int(width / 2.2)), "frameon": False}
        figure.legend(handles=lines, title=note, title_fontsize=9, **place)
        figure.savefig(path, format="png", dpi=140)


def _series(row: Row) -> str:
    return row.dtype if row.allocator == "default" else f"{row.dtype}, {row.allocator} malloc"


def _panel(ax: Axes, rows: Sequence[Row], names: Sequence[str], looks: Mapping[str, Style]) -> None:
    ax.set_xscale("log")
    ax.axvline(1, color=INK, lw=1.2)
    places = {series: 0.7 * ((i + 0.5) / len(looks) - 0.5) for i, series in enumerate(looks)}
    for row in rows:
        style, y = looks[_series(row)], names.index(row.contender) + places[_series(row)]
        low, ratio, high = np.array([row.low, row.ratio, row.high], dtype=float)
        ax.plot([low, high], [y, y], color=style.color)
        ax.plot(ratio, y, style.marker, color=style.color)
    low, high = ax.get_xlim()
    ax.xaxis.set_major_locator(FixedLocator(_MANY_TICKS if high < 8 * low else _FEW_TICKS))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.tick_params(axis="y", length=0)
    ax.set_xlim(low, high)

"""Train methods on one small task at learning rates around their defaults: docs/methods/study.csv and NAME.png.

    python scripts/method_study.py [NAME ...] [--workers N] [--draw]

Without names, every method. New results replace the older ones of the same methods and leave the others alone; `--draw`
trains nothing and draws the pictures again. Takes about half a second a run on two cores, and a method is 21 runs.
"""

import argparse
import csv
import io
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from PIL import Image
from rich.console import Console

import untuned
from untuned.study import results, tasks
from untuned.study.charts import INK, power
from untuned.study.config import MethodSpec, Study, resolve
from untuned.study.live import Live
from untuned.study.stats import Floats
from untuned.study.store import Store
from untuned.study.sweep import sweep

OUT = Path(__file__).parents[1] / "docs" / "methods"
TASK, EPOCHS, SEEDS = "fashion-mlp", 20, 3
FACTORS = tuple(10 ** (i * 2 / 3) for i in range(-3, 4))  # of the default lr
REFERENCE = "adamw"
GREY = "#7F7F7F"
COLUMNS = ("task", "epochs", "method", "lr", "seed", "metric", "value", "status")
Row = dict[str, str]


def lrs(method: str) -> tuple[float, ...]:
    """Seven learning rates, two decades to either side of the default."""
    return tuple(float(f"{untuned.get(method).lr * factor:.3g}") for factor in FACTORS)


def study(methods: Sequence[str], task: str = TASK, epochs: float = EPOCHS, seeds: int = SEEDS) -> Study:
    return resolve([task], [MethodSpec(name, {}, lrs(name)) for name in methods], (), seeds, epochs)


def rows(store: Store) -> list[Row]:
    """A row of the CSV for every run of a finished study. Raises RuntimeError if one crashed."""
    [task] = store.study.tasks
    ledger = {row["run"]: row for row in store.runs().to_pylist()}
    for row in ledger.values():
        if row["status"] == "crashed":
            raise RuntimeError(f"{row['method']} lr {row['lr']:g} seed {row['seed']} crashed:\n{row['error']}")
    found = []
    for end in results.load(store.folder).finished:
        run = end.run
        values = (task.name, f"{task.epochs:g}", run.method, f"{run.lr:g}", str(run.seed), task.metric)
        value = "" if end.diverged else f"{end.value:.6g}"
        found.append(dict(zip(COLUMNS, (*values, value, ledger[run.id]["status"]), strict=True)))
    return sorted(found, key=lambda row: (row["method"], float(row["lr"]), int(row["seed"])))


def read(path: Path = OUT / "study.csv") -> list[Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def merge(path: Path, new: Sequence[Row]) -> None:
    """Put the new rows in the place of the older ones of the same methods; methods that are gone lose theirs."""
    renewed = {row["method"] for row in new}
    kept = [row for row in (read(path) if path.exists() else []) if row["method"] in {*untuned.list()} - renewed]
    temporary = path.with_suffix(".part")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted([*kept, *new], key=lambda row: row["method"]))
    temporary.replace(path)


@dataclass(frozen=True)
class Sensitivity:
    """How the final metric of a method depends on lr: rows of `finals` are learning rates, columns seeds.

    A run that diverged, or ended worse than a model that learned nothing, counts as that.
    """

    method: str
    lrs: tuple[float, ...]
    finals: Floats
    diverged: Floats  # seeds, by learning rate

    @classmethod
    def of(cls, method: str, table: Sequence[Row], chance: float) -> Self:
        mine = [row for row in table if row["method"] == method]
        lrs = sorted({float(row["lr"]) for row in mine})
        cells = [[row for row in mine if float(row["lr"]) == lr] for lr in lrs]
        finals = [[max(float(row["value"] or chance), chance) for row in cell] for cell in cells]
        diverged = [sum(row["status"] == "diverged" for row in cell) for cell in cells]
        return cls(method, tuple(lrs), np.array(finals), np.array(diverged))

    @property
    def medians(self) -> Floats:
        return np.median(self.finals, axis=1)


def draw(path: Path, mine: Sensitivity, reference: Sensitivity, chance: float, label: str) -> None:
    """Metric against lr as a multiple of the default: median and range of the seeds, and the reference in grey."""
    ink = dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"), INK)
    with mpl.rc_context({"font.size": 9, "axes.spines.right": False, **ink}):
        figure = Figure(figsize=(5.6, 3.7), facecolor="white", layout="constrained")
        ax = figure.add_subplot()
        _curve(ax, mine, "#D55E00", "o", "-", mine.method)
        for lr, lost in zip(_multiples(mine), mine.diverged, strict=True):
            if lost:
                ax.annotate(f"{lost} diverged", (lr, 0.04), ha="center", va="center", fontsize=8, color="#D55E00")
        if mine.method != reference.method:
            default = power(untuned.get(reference.method).lr)
            _curve(ax, reference, GREY, "s", (0, (4, 2)), f"{reference.method}, default {default}")
        ax.axhline(reference.medians.max(), color=GREY, lw=1.2, ls=":", label=f"{reference.method} at its best lr")
        ax.axhline(chance, color=INK, lw=0.8, ls=(0, (1, 3)))
        left = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        ax.annotate("chance", (0, chance), (3, -3), va="top", fontsize=8, **left)
        ax.set_ylim(0, 0.95)  # the same in all pictures, so that pages can be compared
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}"))
        ax.set_ylabel(f"{label},\nmedian and range of {mine.finals.shape[1]} seeds")
        ax.set_xscale("log")
        ax.set_xlim(FACTORS[0] / 2.2, FACTORS[-1] * 2.2)
        ax.set_xlabel("lr as a multiple of the default")
        default = untuned.get(mine.method).lr
        above = ax.secondary_xaxis("top", functions=(lambda x: x * default, lambda x: x / default))
        above.set_xlabel(f"lr of {mine.method}")
        for axis in (ax.xaxis, above.xaxis):
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: power(value)))
        ax.grid(alpha=0.2, lw=0.6)
        look = {"ncols": 3, "frameon": False, "fontsize": 8, "handlelength": 2.5, "columnspacing": 1.2}
        figure.legend(loc="outside lower center", **look)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=110)
    colors = Image.open(drawn).convert("RGB").quantize(48, dither=Image.Dither.NONE)  # a third of the bytes
    colors.save(path, optimize=True)


def _multiples(what: Sensitivity) -> Floats:
    return np.array(what.lrs) / untuned.get(what.method).lr


def _curve(ax: Axes, what: Sensitivity, color: str, marker: str, dash: Any, label: str) -> None:
    ax.fill_between(_multiples(what), what.finals.min(1), what.finals.max(1), color=color, alpha=0.18, lw=0)
    ax.plot(_multiples(what), what.medians, color=color, marker=marker, ls=dash, lw=1.8, ms=4.5, label=label)


def draw_all(table: Sequence[Row], out: Path = OUT) -> None:
    task = tasks.load(table[0]["task"])
    reference = Sensitivity.of(REFERENCE, table, task.chance)
    label = f"{task.metric.replace('val_', 'validation ')} (%)"
    for method in sorted({row["method"] for row in table}):
        draw(out / f"{method}.png", Sensitivity.of(method, table, task.chance), reference, task.chance, label)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("methods", nargs="*", metavar="NAME")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("--draw", action="store_true")
    asked = parser.parse_args(arguments)
    if not asked.draw:
        with tempfile.TemporaryDirectory() as folder:
            store = Store.create(Path(folder), study(asked.methods or untuned.list()))
            with Live(store, asked.workers, False, Console()) as view:
                sweep(store, asked.workers, view)
            merge(OUT / "study.csv", rows(store))
    draw_all(read())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Train methods on one small task at learning rates around their defaults: docs/methods/study.csv and its pictures.

    python scripts/method_study.py [NAME ...] [--workers N] [--draw | --table]

Without names, every method. New results replace the older ones of the same methods and leave the others alone; `--draw`
trains nothing and draws the pictures again, `--table` prints what the results say of every method. Takes about half a
second a run on two cores, and a method is 21 runs.
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
from untuned.study.axes import decades, metric_axis, power
from untuned.study.config import MethodSpec, Study, label
from untuned.study.live import Live
from untuned.study.looks import INK
from untuned.study.resolve import resolve
from untuned.study.results import Metric
from untuned.study.stats import Floats, Plateau, plateau
from untuned.study.store import Store
from untuned.study.sweep import sweep

OUT = Path(__file__).parents[1] / "docs" / "methods"
TASK, EPOCHS, SEEDS = "fashion-mlp", 20, 3
FACTORS = tuple(10 ** (i * 2 / 3) for i in range(-3, 4))  # of the default lr
REFERENCE = "adamw"
TOP = 0.845  # a little above all runs
FLOOR = 0.6  # the overview writes lower metrics as numbers
GREY, ORANGE, BLUE = "#7F7F7F", "#D55E00", "#0072B2"  # the colours after Okabe and Ito
_INKED = dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"), INK)
COLUMNS = ("task", "epochs", "method", "lr", "seed", "metric", "value", "status")
Row = dict[str, str]


def lrs(method: str) -> tuple[float, ...]:
    """Seven learning rates, two decades to either side of the default."""
    return tuple(float(f"{untuned.get(method).lr * factor:.3g}") for factor in FACTORS)


def study(methods: Sequence[str], task: str = TASK, epochs: float = EPOCHS, seeds: int = SEEDS) -> Study:
    return resolve([task], [MethodSpec(name, {}, lrs(name)) for name in methods], (), seeds, epochs)


def rows(store: Store) -> list[Row]:
    """A row of the CSV for every run of a finished study. Raises RuntimeError if one crashed."""
    metrics = {task.name: task.metric for task in store.study.tasks}
    ledger = {row["run"]: row for row in store.runs().to_pylist()}
    for row in ledger.values():
        if row["status"] == "crashed":
            raise RuntimeError(f"{row['method']} lr {row['lr']:g} seed {row['seed']} crashed:\n{row['error']}")
    found = []
    for end in results.load(store.folder).finished:
        run = end.run
        method = label(run.method, run.options)
        values = (run.task, f"{run.epochs:g}", method, f"{run.lr:g}", str(run.seed), metrics[run.task])
        value = "" if end.diverged else f"{end.value:.6g}"
        found.append(dict(zip(COLUMNS, (*values, value, ledger[run.id]["status"]), strict=True)))
    return sorted(found, key=lambda row: (row["task"], row["method"], float(row["lr"]), int(row["seed"])))


def train(asked: Study, workers: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder), asked)
        with Live(store, workers, False, Console()) as view:
            sweep(store, workers, view)
        return rows(store)


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

    A run that diverged, or ended worse than a model that learned nothing (`chance`), counts as that.
    """

    method: str
    lrs: tuple[float, ...]
    finals: Floats
    diverged: Floats  # seeds, by learning rate
    chance: float

    @classmethod
    def of(cls, method: str, table: Sequence[Row], chance: float) -> Self:
        mine = [row for row in table if row["method"] == method]
        lrs = sorted({float(row["lr"]) for row in mine})
        cells = [[row for row in mine if float(row["lr"]) == lr] for lr in lrs]
        finals = [[max(float(row["value"] or chance), chance) for row in cell] for cell in cells]
        diverged = [sum(row["status"] == "diverged" for row in cell) for cell in cells]
        return cls(method, tuple(lrs), np.array(finals), np.array(diverged), chance)

    @property
    def medians(self) -> Floats:
        return np.median(self.finals, axis=1)

    @property
    def best(self) -> int:
        return int(self.medians.argmax())

    @property
    def default(self) -> int:
        """Position of the default lr, or of the one next to it."""
        wanted = np.log(untuned.get(self.method).lr)
        return int(np.abs(np.log(self.lrs) - wanted).argmin())

    def within(self, tolerance: float, of: float | None = None) -> Plateau | None:
        """Learning rates not worse than `of`, its own best by default, less the tolerance.

        None if there is none, or if the method learned nothing: then it is equally bad everywhere, which is no plateau.
        """
        best = float(self.medians[self.best])
        learned = best > self.chance + 0.02
        return plateau(self.lrs, self.medians, (best if of is None else of) - tolerance, True) if learned else None


def standings(table: Sequence[Row]) -> list[Sensitivity]:
    """Every method of the study, the best at its default lr first."""
    [task] = {row["task"] for row in table}
    chance = tasks.load(task).chance
    found = [Sensitivity.of(method, table, chance) for method in {row["method"] for row in table}]
    return sorted(found, key=lambda s: (-s.medians[s.default], -s.medians[s.best], s.method))


HEAD = (
    "method", "at the default lr", "which is", "less tuned adamw", "best", "at lr", "less tuned adamw",
    "decades within 1 point of own best", "within 2", "within 2 of tuned adamw's", "diverged runs",
)  # fmt: skip


def summary(found: Sequence[Sensitivity]) -> list[tuple[str, ...]]:
    """A row for every method, in the columns of `HEAD`: accuracies in per cent, differences in points."""
    tuned = next(float(s.medians[s.best]) for s in found if s.method == REFERENCE)
    lines = []
    for s in found:
        at_default, best = (float(s.medians[i]) for i in (s.default, s.best))
        low, high = s.finals[s.default].min(), s.finals[s.default].max()
        wide = (s.within(0.01), s.within(0.02), s.within(0.02, of=tuned))
        lines.append(
            (
                s.method, f"{100 * at_default:.1f} ({100 * low:.1f} to {100 * high:.1f})", f"{s.lrs[s.default]:g}",
                f"{100 * (at_default - tuned):+.1f}", f"{100 * best:.1f}", f"{s.lrs[s.best]:g}",
                f"{100 * (best - tuned):+.1f}", *(decades(plateau) for plateau in wide),
                f"{s.diverged.sum():g} of {s.finals.size}",
            )
        )  # fmt: skip
    return lines


def draw(path: Path, mine: Sensitivity, reference: Sensitivity, label: str) -> None:
    """Metric against lr as a multiple of the default: median and range of the seeds, and the reference in grey."""
    with mpl.rc_context({"font.size": 9, "axes.spines.right": False, **_INKED}):
        figure = Figure(figsize=(5.6, 3.7), facecolor="white", layout="constrained")
        ax = figure.add_subplot()
        _curve(ax, mine, ORANGE, "o", "-", mine.method)
        for lr, lost in zip(_multiples(mine), mine.diverged, strict=True):
            if lost:
                place = {"xycoords": ax.get_xaxis_transform(), "ha": "center", "va": "bottom", "color": ORANGE}
                ax.annotate(f"{lost} diverged", (lr, 0.1), fontsize=8, **place)
        if mine.method != reference.method:
            default = power(untuned.get(reference.method).lr)
            _curve(ax, reference, GREY, "s", (0, (4, 2)), f"{reference.method}, default {default}")
        ax.axhline(reference.medians.max(), color=GREY, lw=1.2, ls=":", label=f"{reference.method} at its best lr")
        ax.axhline(mine.chance, color=INK, lw=0.8, ls=(0, (1, 3)))
        left = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        ax.annotate("chance", (0, mine.chance), (3, -3), va="top", fontsize=8, **left)
        # Stretched towards the best, so that two points show, and the same in all pictures.
        metric_axis(ax, "y", Metric(label, True, mine.chance, 0.02, percent=True), mine.chance, TOP)
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
        _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    colors = Image.open(drawn).convert("RGB").quantize(48, dither=Image.Dither.NONE)  # a third of the bytes
    colors.save(path, optimize=True)


def _multiples(what: Sensitivity) -> Floats:
    return np.array(what.lrs) / untuned.get(what.method).lr


def _curve(ax: Axes, what: Sensitivity, color: str, marker: str, dash: Any, label: str) -> None:
    ax.fill_between(_multiples(what), what.finals.min(1), what.finals.max(1), color=color, alpha=0.18, lw=0)
    ax.plot(_multiples(what), what.medians, color=color, marker=marker, ls=dash, lw=1.8, ms=4.5, label=label)


def draw_overview(path: Path, found: Sequence[Sensitivity], label: str) -> None:
    """All methods: the metric at the default and at the best lr, and the range of lr within a point of the best."""
    tuned = next(float(s.medians[s.best]) for s in found if s.method == REFERENCE)
    seeds, y = found[0].finals.shape[1], np.arange(len(found))
    with mpl.rc_context({"font.size": 9, "axes.spines.right": False, "axes.spines.top": False, **_INKED}):
        figure = Figure(figsize=(8.2, 1.6 + 0.2 * len(found)), facecolor="white", layout="constrained")
        metric, width = figure.subplots(1, 2, sharey=True)
        at_default = np.array([s.finals[s.default] for s in found])
        metric.hlines(y, at_default.min(1), at_default.max(1), color=BLUE, lw=2.2, alpha=0.4)
        medians = np.array([(s.medians[s.default], s.medians[s.best]) for s in found])
        medians[medians < FLOOR] = np.nan
        default = metric.plot(medians[:, 0], y, "o", color=BLUE, ms=5, label="at the default lr")
        best = metric.plot(medians[:, 1], y, "D", mfc="none", color=ORANGE, ms=5, label="at the best of 7 lrs")
        line = metric.axvline(tuned, color=GREY, lw=1.2, ls=":", label=f"{REFERENCE} at its best lr")
        metric.set_xlim(FLOOR, max(s.finals.max() for s in found) + 0.01)
        for i, s in zip(y, found, strict=True):
            ends = {"default": float(s.medians[s.default]), "best": float(s.medians[s.best])}
            low = ", ".join(f"{what} {100 * value:.1f}" for what, value in ends.items() if value < FLOOR)
            if low:
                metric.annotate(f"◂ {low}", (FLOOR, i), (3, 0), textcoords="offset points", va="center", fontsize=8)
        metric.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}"))
        metric.set_xlabel(f"{label},\nmedian of n = {seeds} seeds; bars: range at the default")
        metric.set_ylabel("method, best at its default lr first")
        metric.set_yticks(y, [s.method for s in found])
        metric.set_ylim(len(found) - 0.4, -0.6)
        for i, s in zip(y, found, strict=True):
            wide, lr = s.within(0.01), untuned.get(s.method).lr
            if wide is None:
                width.annotate("learned nothing", (1, i), ha="center", va="center", fontsize=8)
                continue
            width.hlines(i, wide.low / lr, wide.high / lr, color=ORANGE, lw=3)
            width.plot(s.lrs[s.best] / lr, i, "D", mfc="white", color=ORANGE, ms=5)
            for open_end, end, marker in ((wide.open_low, wide.low, "<"), (wide.open_high, wide.high, ">")):
                if open_end:
                    width.plot(end / lr * (0.75 if marker == "<" else 1 / 0.75), i, marker, color=ORANGE, ms=5)
        width.axvline(1, color=BLUE, lw=1.2)
        width.set_xscale("log")
        width.set_xlim(FACTORS[0] / 2.2, FACTORS[-1] * 2.2)
        width.xaxis.set_minor_locator(NullLocator())
        width.xaxis.set_major_formatter(FuncFormatter(lambda value, _: power(value)))
        width.set_xlabel("lr within 1 point of the best, in units of\nthe default (arrow: as far as was tried)")
        width.tick_params(axis="y", length=0)
        for ax in (metric, width):
            ax.grid(alpha=0.2, lw=0.6)
            ax.set_axisbelow(True)
        figure.legend(handles=[*default, *best, line], loc="outside lower center", ncols=3, frameon=False, fontsize=8)
        _save(figure, path)


def draw_all(table: Sequence[Row], out: Path = OUT) -> None:
    task = tasks.load(table[0]["task"])
    reference = Sensitivity.of(REFERENCE, table, task.chance)
    label = f"{task.metric.replace('val_', 'validation ')} (%)"
    found = standings(table)
    for mine in found:
        draw(out / f"{mine.method}.png", mine, reference, label)
    draw_overview(out / "overview.png", found, label)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("methods", nargs="*", metavar="NAME")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("--draw", action="store_true")
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args(arguments)
    if asked.table:
        csv.writer(sys.stdout, lineterminator="\n").writerows([HEAD, *summary(standings(read()))])
        return 0
    if not asked.draw:
        merge(OUT / "study.csv", train(study(asked.methods or untuned.list()), asked.workers))
    draw_all(read())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

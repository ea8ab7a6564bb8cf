"""Published tables, run again: ours beside theirs."""

import csv
import inspect
import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes

import untuned
from untuned.study import charts
from untuned.study.config import MethodSpec, Study, StudyError, TaskEntry, label
from untuned.study.looks import INK, Style, styles
from untuned.study.resolve import resolve
from untuned.study.stats import interval, plateau
from untuned.study.store import Store

# Validation accuracy after 10 epochs of batch 128, mean of three shuffles, by learning rate: MoMo, arXiv 2305.07583,
# from the records of its authors (github.com/fabian-sp/step-back). A value near 0.1 is a diverged run.
MOMO_MNIST: list[tuple[str, dict[str, object], dict[float, float]]] = [
    (
        "sgd",
        {"momentum": 0.9, "dampening": 0.9},
        {1e-3: 0.8705, 1e-2: 0.9473, 1e-1: 0.9773, 1: 0.9708, 10: 0.098, 100: 0.098},
    ),
    (
        "momo",
        {},
        {1e-3: 0.8705, 1e-2: 0.9472, 1e-1: 0.9765, 1: 0.9797, 10: 0.9792, 100: 0.9792, 1000: 0.9792},
    ),
    ("adam", {}, {1e-4: 0.9598, 1e-3: 0.9775, 1e-2: 0.9646, 1e-1: 0.1003, 1: 0.1001, 10: 0.0992}),
    ("momo_adam", {}, {1e-4: 0.9598, 1e-3: 0.9787, 1e-2: 0.9796, 1e-1: 0.9795, 1: 0.9795, 10: 0.9795}),
]
# Training accuracy of softmax regression on LIBSVM's sets, mean of ten seeds: tuned Adam and D-Adaptation with Adam,
# arXiv 2301.07733, table of twelve sets, of which these are here. Batch 16, 100 epochs, tenfold drops of lr.
LOGREG12 = {
    "dna": (1.000, 1.000),
    "glass": (0.720, 0.723),
    "iris": (0.983, 0.986),
    "letter": (0.778, 0.777),
    "pendigits": (0.962, 0.958),
    "vehicle": (0.821, 0.819),
    "vowel": (0.774, 0.774),
    "wine": (1.000, 1.000),
}
LOGREG12_DROPS = (0.6, 0.8, 0.95)
POINT = 0.01
LEARNED_NOTHING = 0.12


@dataclass(frozen=True)
class Cell:
    """One published number beside our accuracies, one a seed."""

    task: str
    method: str
    lr: float
    published: float
    accuracies: tuple[float, ...]  # that of chance for a diverged run, NaN for one that crashed or is missing
    diverged: int  # seeds

    @property
    def ours(self) -> float:
        return fmean(self.accuracies)

    @property
    def n(self) -> int:
        return len(self.accuracies)

    @property
    def standard_error(self) -> float:
        """NaN for a single seed."""
        return float(np.std(self.accuracies, ddof=1)) / math.sqrt(self.n) if self.n > 1 else math.nan

    @property
    def difference(self) -> float:
        return self.ours - self.published

    @property
    def agrees(self) -> bool:
        """Within one point, or both learned nothing."""
        return abs(self.difference) <= POINT or max(self.ours, self.published) <= LEARNED_NOTHING


def momo_mnist() -> Study:
    """The 25 cells of the table, three seeds each. Raises StudyError if MNIST is not on this machine."""
    methods = [MethodSpec(name, options, tuple(cells)) for name, options, cells in MOMO_MNIST]
    return resolve(["mnist-mlp"], methods, lrs=(), seeds=3, epochs=10)


def momo_mnist_cells(store: Store) -> list[Cell]:
    """A cell for every method and learning rate."""
    published = {(label(name, options), lr): a for name, options, row in MOMO_MNIST for lr, a in row.items()}
    return _cells(store, lambda task, method, lr: published[method, lr])


def write_momo_mnist(store: Store) -> str:
    """Write `momo-mnist.csv` and `momo-mnist.md` beside the raw results, and return the latter's text."""
    table = momo_mnist_cells(store)
    remarks = ["Decades of learning rate within one point of the method's best, ours and published:", ""]
    for method in dict.fromkeys(cell.method for cell in table):
        row = [cell for cell in table if cell.method == method]
        ours, published = (_decades(row, values) for values in ([c.ours for c in row], [c.published for c in row]))
        remarks.append(f"- {method}: {ours}, published {published}")
    return _write(store, "momo-mnist", "MoMo on MNIST: validation accuracy (arXiv 2305.07583)", table, remarks)


def logreg12(sets: Sequence[str], methods: Sequence[MethodSpec], seeds: int) -> Study:
    """The protocol on `sets`, with a method's default lr and no weight decay unless given. Raises StudyError."""
    for name in sets:
        if name not in LOGREG12:
            raise StudyError(f"sets: no accuracy is published for {name!r}; choose from {','.join(LOGREG12)}")
    tasks, specs = [f"logreg-{name}" for name in sets], [_by_protocol(spec) for spec in methods]
    return resolve(tasks, specs, (), seeds, epochs=100, schedule=f"step(at={LOGREG12_DROPS})")


def _by_protocol(spec: MethodSpec) -> MethodSpec:
    method = untuned.get(spec.name)
    decays = inspect.signature(method.optimizer).parameters["weight_decay"].default
    options = {"weight_decay": 0.0, **spec.options} if decays else spec.options
    return spec._replace(options=options, lrs=spec.lrs or (method.lr,))


def logreg12_cells(store: Store) -> list[Cell]:
    """A cell for every set and method, at the learning rate that is best for the two."""

    def published(task: str, method: str, lr: float) -> float:
        adam, dadaptation = LOGREG12[task.removeprefix("logreg-")]
        return adam if method.partition("(")[0] == "adam" else dadaptation

    best: dict[tuple[str, str], Cell] = {}
    for cell in _cells(store, published):
        rival = best.setdefault((cell.task, cell.method), cell)
        if cell.ours > rival.ours or math.isnan(rival.ours):
            best[cell.task, cell.method] = cell
    return list(best.values())


def write_logreg12(store: Store) -> str:
    """Write `logreg12.csv`, `.md` and `.png` beside the raw results, and return the text of the second."""
    table = logreg12_cells(store)
    remarks = ["Adam stands beside the paper's tuned Adam, every other method beside its D-Adaptation. By set:", ""]
    for task in store.study.tasks:
        row = [cell for cell in table if cell.task == task.name]
        others = [f"{cell.method} {cell.difference:+.4f}" for cell in row if not cell.agrees]
        verdict = f"{len(row) - len(others)} of {len(row)} within one point"
        remarks.append(f"- {task.name}: " + ", not ".join([verdict, *others]))
    looks = styles({cell.method: cell.method for cell in table})
    n = len(store.study.seeds)
    note = f"Means over seeds, n = {n}{', with 95 % intervals' if n > 1 else ''}; grey: one point either way"
    panel = ("Training accuracy: ours minus published", lambda ax: _differences(ax, table, looks))
    charts.png(store.folder / "logreg12.png", [panel], looks, note)
    title = "Softmax regression: training accuracy after 100 epochs (arXiv 2301.07733)"
    return _write(store, "logreg12", title, table, remarks)


def _cells(store: Store, published: Callable[[str, str, float], float]) -> list[Cell]:
    """A cell for every task, method and learning rate of the study; `published` takes these three."""
    rows = {row["run"]: row for row in store.runs().to_pylist()}
    runs = defaultdict(list)
    for run in store.study.runs():
        runs[run.task, label(run.method, run.options), run.lr].append(rows.get(run.id, {"status": "missing"}))

    def cell(task: TaskEntry, method: str, lr: float) -> Cell:
        seeds = runs[task.name, method, lr]
        accuracies = [json.loads(row["final"])[task.metric] if row["status"] == "done" else math.nan for row in seeds]
        diverged = [row["status"] == "diverged" for row in seeds]
        counted = tuple(task.chance if bad else accuracy for accuracy, bad in zip(accuracies, diverged, strict=True))
        return Cell(task.name, method, lr, published(task.name, method, lr), counted, sum(diverged))

    return [
        cell(task, label(method.name, method.options), lr)
        for task in store.study.tasks
        for method in store.study.methods
        for lr in method.lrs
    ]


def _write(store: Store, name: str, title: str, table: Sequence[Cell], remarks: Sequence[str]) -> str:
    """Write the table as NAME.csv and, with remarks below it, as NAME.md; return the latter's text."""
    columns = ["task", "method", "lr", "ours", "standard_error", "n", "published", "difference", "agrees", "diverged"]
    with (store.folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([getattr(cell, column) for column in columns] for cell in table)
    lines = [
        f"# {title}, ours and published",
        "",
        f"{sum(cell.agrees for cell in table)} of {len(table)} cells agree: within one point, or nothing learned in"
        " either. Ours are means of n seeds.",
        "",
        "| task | method | lr | ours | standard error | n | published | difference | agrees | diverged seeds |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|---:|",
        *(
            f"| {cell.task} | {cell.method} | {cell.lr:g} | {cell.ours:.4f} |"
            f" {f'{cell.standard_error:.4f}' if cell.n > 1 else '–'} | {cell.n} | {cell.published:.4f} |"
            f" {cell.difference:+.4f} | {'yes' if cell.agrees else 'NO'} | {cell.diverged} |"
            for cell in table
        ),
        "",
        *remarks,
    ]
    text = "\n".join(lines) + "\n"
    (store.folder / f"{name}.md").write_text(text)
    return text


def _decades(row: list[Cell], accuracies: list[float]) -> str:
    found = plateau([cell.lr for cell in row], np.array(accuracies), np.nanmax(accuracies) - POINT, maximize=True)
    return f"{'at least ' if found.censored else ''}{found.decades:.1f}" if found else "none"


def _differences(ax: Axes, table: Sequence[Cell], looks: Mapping[str, Style]) -> None:
    """A row a set, one mark a method: ours minus published in points, with the interval of our mean."""
    ax.axvspan(-100 * POINT, 100 * POINT, color=INK, alpha=0.1, lw=0)
    ax.axvline(0, color=INK, lw=0.9)
    tasks = list(dict.fromkeys(cell.task for cell in table))
    for cell in table:
        if math.isnan(cell.ours):
            continue
        style = looks[cell.method]
        height = tasks.index(cell.task) + 0.7 * ((list(looks).index(cell.method) + 0.5) / len(looks) - 0.5)
        ax.plot(100 * cell.difference, height, style.marker, color=style.color)
        if bounds := interval(np.array(cell.accuracies)):
            ax.plot([100 * (bound - cell.published) for bound in bounds], [height] * 2, color=style.color)
    names = [task.removeprefix("logreg-") for task in tasks]
    labels = ["{}\n{:.1f}, {:.1f}".format(name, *(100 * accuracy for accuracy in LOGREG12[name])) for name in names]
    ax.set_yticks(range(len(tasks)), labels)
    ax.set_ylabel("set; published accuracy (%) of Adam, D-Adaptation")
    ax.set_ylim(len(tasks) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("difference of accuracies (percentage points)")

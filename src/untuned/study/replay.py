"""Published tables, run again: ours beside theirs."""

import csv
import json
import math
from collections import Counter, defaultdict
from dataclasses import astuple, dataclass, fields
from statistics import fmean

import numpy as np

from untuned.study.config import MethodSpec, Study, resolve
from untuned.study.stats import plateau
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
POINT = 0.01
LEARNED_NOTHING = 0.12


@dataclass(frozen=True)
class Cell:
    """One published number, and ours as the mean over seeds; a diverged seed counts with the metric of chance."""

    method: str
    lr: float
    published: float
    ours: float
    diverged: int  # seeds

    @property
    def agrees(self) -> bool:
        """Within one point, or both learned nothing."""
        return abs(self.ours - self.published) <= POINT or max(self.ours, self.published) <= LEARNED_NOTHING


def study() -> Study:
    """The 25 cells of the table, three seeds each. Raises StudyError if MNIST is not on this machine."""
    methods = [MethodSpec(name, options, tuple(cells)) for name, options, cells in MOMO_MNIST]
    return resolve(["mnist-mlp"], methods, lrs=(), seeds=3, epochs=10)


def cells(store: Store) -> list[Cell]:
    """The table once all runs have ended; a cell with a crashed run is NaN and agrees with nothing."""
    [task] = store.study.tasks
    finals: dict[tuple[str, float], list[float]] = defaultdict(list)
    diverged: Counter[tuple[str, float]] = Counter()
    for run in store.runs().to_pylist():
        key = run["method"], run["lr"]
        diverged[key] += run["status"] == "diverged"
        missing = task.chance if run["status"] == "diverged" else math.nan
        finals[key].append(json.loads(run["final"])[task.metric] if run["final"] else missing)
    return [
        Cell(method, lr, accuracy, fmean(finals[method, lr]), diverged[method, lr])
        for method, _, published in MOMO_MNIST
        for lr, accuracy in published.items()
    ]


def write(store: Store) -> str:
    """Write `momo-mnist.csv` and `momo-mnist.md` beside the raw results, and return the latter's text."""
    table = cells(store)
    with (store.folder / "momo-mnist.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(field.name for field in fields(Cell)), "difference", "agrees"])
        writer.writerows([*astuple(cell), cell.ours - cell.published, cell.agrees] for cell in table)
    agreeing = sum(cell.agrees for cell in table)
    lines = [
        "# MoMo on MNIST: validation accuracy, ours and published (arXiv 2305.07583)",
        "",
        f"{agreeing} of {len(table)} cells agree: within one point, or nothing learned in either.",
        "",
        "| method | lr | ours | published | difference | agrees | diverged seeds |",
        "|---|---:|---:|---:|---:|---|---:|",
        *(
            f"| {cell.method} | {cell.lr:g} | {cell.ours:.4f} | {cell.published:.4f} |"
            f" {cell.ours - cell.published:+.4f} | {'yes' if cell.agrees else 'NO'} | {cell.diverged} |"
            for cell in table
        ),
        "",
        "Decades of learning rate within one point of the method's best, ours and published:",
        "",
    ]
    for method, _, _ in MOMO_MNIST:
        row = [cell for cell in table if cell.method == method]
        ours, published = (_decades(row, values) for values in ([c.ours for c in row], [c.published for c in row]))
        lines.append(f"- {method}: {ours}, published {published}")
    text = "\n".join(lines) + "\n"
    (store.folder / "momo-mnist.md").write_text(text)
    return text


def _decades(row: list[Cell], accuracies: list[float]) -> str:
    found = plateau([cell.lr for cell in row], np.array(accuracies), np.nanmax(accuracies) - POINT, maximize=True)
    return f"{'at least ' if found.censored else ''}{found.decades:.1f}" if found else "none"

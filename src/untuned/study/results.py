"""What a study's folder holds so far: its runs, and for each task the outcomes, their summaries and curves."""

import json
import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from untuned.study.config import MethodEntry, Run, Study, TaskEntry
from untuned.study.stats import Floats, Outcome, Summary, median, seed_mean, summarize
from untuned.study.store import Store

LONGEST = 300  # characters of a reason in a line


@dataclass(frozen=True)
class Metric:
    """The metric a task is ranked by, and how it is written."""

    label: str
    maximize: bool
    chance: float
    tolerance: float
    percent: bool

    @property
    def unit(self) -> str:
        return f"{self.label} (%)" if self.percent else self.label

    @property
    def close(self) -> str:
        return f"{100 * self.tolerance:g} points" if self.percent else f"{self.tolerance:.2g}"

    def text(self, value: float) -> str:
        """`85.3` (per cent) or `2.481`; a dash if there is no value."""
        return "–" if math.isnan(value) else f"{100 * value:.1f}" if self.percent else f"{value:.3f}"


@dataclass(frozen=True)
class Curve:
    """Something over training of one method: mean, smallest and largest over seeds at each epoch."""

    epoch: Floats
    mean: Floats
    band: Floats  # (points, 2)


@dataclass(frozen=True)
class TaskResult:
    task: TaskEntry
    metric: Metric
    outcomes: list[Outcome]
    summaries: list[Summary]
    train_loss: dict[str, Curve]  # by method, at its best learning rate
    val_loss: dict[str, Curve]
    lr_effective: dict[str, Curve]
    nothing: str = ""  # why there is nothing to draw
    absent: Mapping[str, str] = field(default_factory=dict)  # why a method has no result at its default lr


@dataclass(frozen=True)
class Finished:
    """A run that is done or diverged."""

    run: Run
    value: float  # the ranked metric, NaN if the run diverged
    curve: pa.Table  # empty if its file is lost
    state_bytes: float = math.nan  # of the optimizer at the end, NaN if not known

    @property
    def diverged(self) -> bool:
        return math.isnan(self.value)


@dataclass(frozen=True)
class Results:
    study: Study
    runs: list[Run]  # all that the study asks for
    ledger: dict[str, dict[str, Any]]  # rows of those runs that have begun, by run id
    finished: list[Finished]
    tasks: list[TaskResult]
    command: str = ""  # the one that made the last runs


def load(folder: Path) -> Results:
    """Read a study's folder. Raises StudyError if there is no study in it."""
    store = Store(folder)
    study, runs = store.study, store.study.runs()
    tasks = {task.name: task for task in study.tasks}
    rows = {row["run"]: row for row in store.runs().to_pylist()}
    ledger = {run.id: rows[run.id] for run in runs if run.id in rows}
    finished = []
    for run in runs:
        row = ledger.get(run.id)
        if row and row["status"] in ("done", "diverged"):
            value = json.loads(row["final"])[tasks[run.task].metric] if row["status"] == "done" else math.nan
            value, held = value if math.isfinite(value) else math.nan, row["state_bytes"]
            finished.append(Finished(run, value, store.curve(run.id), math.nan if held is None else float(held)))
    results = [_task(study, task, [f for f in finished if f.run.task == task.name], ledger) for task in study.tasks]
    return Results(study, runs, ledger, finished, results, last_command(store.folder))


def of_values(study: Study, values: Mapping[tuple[str, str, float, int], float]) -> Results:
    """Results without a folder, from final metrics by task, method's label, lr and seed; NaN: the run diverged."""
    methods, nothing = (
        {method.label: method for method in study.methods},
        pa.table({"step_us": pa.array([], pa.float64())}),
    )
    tasks = {task.name: task for task in study.tasks}
    finished = [
        Finished(study.run(tasks[task], methods[label], lr, seed), value, nothing)
        for (task, label, lr, seed), value in values.items()
    ]
    found = [_task(study, task, [f for f in finished if f.run.task == task.name], {}) for task in study.tasks]
    return Results(study, study.runs(), {}, finished, found)


def last_command(folder: Path) -> str:
    """The command that last ran the study of a folder, "" if none is known."""
    try:
        lines = (folder / "command.txt").read_text(encoding="utf-8").split("\n")
    except OSError:
        return ""
    line = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return line.partition(" UTC: ")[2] or line  # its time stands before it


def crashes(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Why runs of a ledger crashed: a line for each task and error, with the number of its runs."""
    found = Counter((row["task"], last_line(row["error"])) for row in rows if row["status"] == "crashed")
    return [f"{task}: {n} run{'s' if n > 1 else ''} crashed: {error}" for (task, error), n in found.items()]


def last_line(error: str | None) -> str:
    """What a traceback comes to, in one line: the exception and its message, of which a long one is cut."""
    lines = (error or "").strip().splitlines()
    below = max((i for i, line in enumerate(lines) if line.startswith('  File "')), default=-1) + 1
    said = next((i for i in range(below, len(lines)) if not lines[i].startswith(" ")), 0)
    return textwrap.shorten(" ".join(lines[said:]), LONGEST, placeholder=" ...") or "no reason was given"


def _task(
    study: Study, task: TaskEntry, finished: Sequence[Finished], ledger: Mapping[str, Mapping[str, Any]]
) -> TaskResult:
    # Two points of accuracy, or 2 % of what a model that learned nothing gets: fixed by the task, not by the results.
    accuracy = task.metric.endswith("accuracy")
    tolerance = 0.02 if accuracy else 0.02 * (abs(task.chance) or 1.0)
    words = task.metric.replace("val_", "validation ", 1).replace("_", " ")
    metric = Metric(words, task.maximize, task.chance, tolerance, percent=accuracy)

    at = {(f.run.label, f.run.lr, f.run.seed): f for f in finished}
    outcomes = [_outcome(method, study.seeds, at, task) for method in study.methods]
    summaries = summarize(outcomes, maximize=task.maximize, chance=task.chance, tolerance=tolerance)
    train_loss, val_loss, lr_effective = {}, {}, {}
    for s in summaries:
        runs = [at.get((s.method, s.best_lr, seed)) for seed in study.seeds]
        tables = [f.curve for f in runs if f and not f.diverged and f.curve.num_rows]
        if tables:
            train_loss[s.method] = _curve(tables, "train_loss")
            val_loss[s.method] = _curve(tables, "val_loss")
            lr_effective[s.method] = _curve(tables, "lr_effective")
    crashed = crashes(row for row in ledger.values() if row["task"] == task.name)
    nothing = "" if finished else "; ".join(["No run has finished", *crashed]) + "."
    absent = {m.label: _absent(study, task, m, ledger) for m in study.methods}
    return TaskResult(task, metric, outcomes, summaries, train_loss, val_loss, lr_effective, nothing, absent)


def _absent(study: Study, task: TaskEntry, method: MethodEntry, ledger: Mapping[str, Mapping[str, Any]]) -> str:
    """What became of the runs at the default lr, for where none has finished."""
    if method.default_lr is None:
        return "none"
    if method.default_lr not in method.rates(task.name):
        return "not run"
    runs = [study.run(task, method, method.default_lr, seed) for seed in study.seeds]
    found = {ledger[run.id]["status"] for run in runs if run.id in ledger}
    return next((status for status in ("crashed", "running") if status in found), "not yet run")


def _outcome(
    method: MethodEntry, seeds: Sequence[int], at: Mapping[tuple[str, float, int], Finished], task: TaskEntry
) -> Outcome:
    """Diverged runs count as chance, and so do those that end worse: a finite disaster is no worse than NaN."""
    name = method.label
    cells = [[at.get((name, lr, seed)) for seed in seeds] for lr in method.rates(task.name)]
    better = max if task.maximize else min

    def counted(f: Finished) -> float:
        return task.chance if f.diverged else better(f.value, task.chance)

    return Outcome(
        method=name,
        lrs=method.rates(task.name),
        finals=np.array([[counted(f) if f else np.nan for f in row] for row in cells]),
        diverged=np.array([[f is not None and f.diverged for f in row] for row in cells]),
        step_us=np.array([[median(_column(f.curve, "step_us")) if f else np.nan for f in row] for row in cells]),
        default_lr=method.default_lr,
        state_bytes=max((f.state_bytes for row in cells for f in row if f and f.state_bytes >= 0), default=np.nan),
    )


def _curve(tables: Sequence[pa.Table], name: str) -> Curve:
    """Mean and range over runs at the steps at which all were evaluated: after a range test they begin apart.

    Zeros and missing values have no place on a logarithmic axis.
    """
    common = reduce(np.intersect1d, [_column(table, "step") for table in tables])
    at = [np.isin(_column(table, "step"), common) for table in tables]
    values = np.array([_column(table, name)[rows] for table, rows in zip(tables, at, strict=True)]).T
    values[~(values > 0)] = np.nan
    known = ~np.isnan(values).any(axis=1)
    values = values[known]
    band = np.stack([values.min(axis=1), values.max(axis=1)], axis=1)
    return Curve(_column(tables[0], "epoch")[at[0]][known], seed_mean(values), band)


def _column(table: pa.Table, name: str) -> Floats:
    return table.column(name).cast(pa.float64()).to_numpy()

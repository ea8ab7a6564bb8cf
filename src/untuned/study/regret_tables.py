"""Regret in numbers: contenders over all tasks, side by side, as CSV, Markdown and in the terminal."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich import box
from rich.table import Table

from untuned.study import aggregate
from untuned.study.regret import REFERENCE, Contender, Regrets
from untuned.study.stats import seed_mean

WHAT = (
    "Regret: the share of the step budget that a default loses to tuned AdamW, which reaches the default's final "
    "validation loss in the rest."
)
MARGIN = 0.05  # of the budget: by less no task is won


@dataclass(frozen=True)
class Row:
    """One contender over all tasks; regrets in [0, 1]."""

    contender: Contender
    mean: float
    interval: tuple[float, float] | None  # over tasks and seeds
    iqm: float
    worst: float
    worst_task: str
    by_task: dict[str, float]  # mean over seeds, NaN where no run has finished
    better: int  # tasks on which it ends below tuned AdamW
    n: int  # runs


def rows_of(regrets: Regrets) -> list[Row]:
    """Contenders by mean regret, the least first; those without a run last."""
    rows = [_row(regrets, contender) for contender in regrets.contenders]
    return sorted(rows, key=lambda row: (math.isnan(row.mean), row.mean))


def _row(regrets: Regrets, contender: Contender) -> Row:
    scores = regrets.scores(contender)
    known = scores[~np.isnan(scores).all(axis=1)] if len(scores) else scores
    by_task = {t.task: float(m) for t, m in zip(regrets.tasks, seed_mean(scores), strict=True)}
    seen = {task: value for task, value in by_task.items() if not math.isnan(value)}
    worst = max(seen, key=lambda task: seen[task], default="")
    better = [t for t in regrets.tasks if t.curve and seed_mean(t.finals[contender]) < t.curve.losses.min()]
    return Row(
        contender=contender,
        mean=float(aggregate.mean(known)) if len(known) else math.nan,
        interval=aggregate.stratified_interval(known, aggregate.mean, tasks=True) if len(known) > 1 else None,
        iqm=float(aggregate.iqm(known)) if len(known) else math.nan,
        worst=seen.get(worst, math.nan),
        worst_task=worst,
        by_task=by_task,
        better=len(better),
        n=int(np.sum(~np.isnan(scores))),
    )


def percent(value: float) -> str:
    """`30 %`, a dash if there is no value."""
    return "–" if math.isnan(value) else f"{100 * value:.0f} %"


def cells(row: Row, tasks: int) -> list[str]:
    low_high = f"{100 * row.interval[0]:.0f} to {100 * row.interval[1]:.0f} %" if row.interval else "–"
    return [
        row.contender.label,
        percent(row.mean),
        low_high,
        percent(row.iqm),
        f"{percent(row.worst)}{f' ({row.worst_task})' if row.worst_task else ''}",
        f"{row.better} of {tasks}",
        str(row.n),
    ]


HEADER = [
    "default",
    "mean regret",
    "95 % interval",
    "interquartile mean",
    "worst task",
    "better than tuned AdamW",
    "runs",
]


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' if n > 1 else ''}"


def table(regrets: Regrets) -> Table:
    """What the terminal shows: it fits 80 columns."""
    found = Table(
        title=f"Regret over {_count(len(regrets.tasks), 'task')}, {_count(len(regrets.study.seeds), 'seed')}",
        caption=f"{WHAT} Tuned AdamW: {REFERENCE}, best lr for each task and budget.",
        box=box.SIMPLE,
        title_justify="left",
        caption_justify="left",
    )
    found.add_column("default", overflow="fold")
    for name in ("mean", "95 %", "worst"):
        found.add_column(name, justify="right", no_wrap=True)
    found.add_column("on")
    for row in rows_of(regrets):
        _, mean, interval, *_ = cells(row, len(regrets.tasks))
        found.add_row(row.contender.label, mean, interval, percent(row.worst), row.worst_task)
    return found


def write_tables(folder: Path, regrets: Regrets, rows: list[Row]) -> None:
    tasks = [task.task for task in regrets.tasks]
    with (folder / "regret.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["method", "lr", "mean", "low95", "high95", "iqm", "worst", "worst_task", "better", "n", *tasks]
        )
        for row in rows:
            low, high = row.interval or (math.nan, math.nan)
            numbers = [row.mean, low, high, row.iqm, row.worst]
            found = [f"{v:.4f}" for v in numbers] + [row.worst_task, row.better, row.n]
            by_task = [f"{row.by_task[task]:.4f}" for task in tasks]
            writer.writerow([row.contender.method, f"{row.contender.lr:g}", *found, *by_task])
    with (folder / "regret-runs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["task", "method", "lr", "seed", "val_loss", "regret", "adamw_steps_for_it"])
        for task in regrets.tasks:
            for c in regrets.contenders:
                exchange = task.curve.exchange if task.curve else None
                for seed, loss, value in zip(regrets.study.seeds, task.finals[c], task.regrets[c], strict=True):
                    steps = float(exchange.effective(loss)) if exchange else math.nan
                    writer.writerow(
                        [task.task, c.method, f"{c.lr:g}", seed, f"{loss:.6g}", f"{value:.4f}", f"{steps:.4g}"]
                    )
    (folder / "regret.md").write_text(markdown(regrets, rows), encoding="utf-8")


def markdown(regrets: Regrets, rows: list[Row]) -> str:
    """The table, and regret by task, for a page."""

    def lines(header: list[str], body: list[list[str]]) -> str:
        rule = ["---", *["---:"] * (len(header) - 1)]
        return "".join("| " + " | ".join(cells) + " |\n" for cells in [header, rule, *body])

    names = [row.contender.label for row in rows]
    by_task = [[t.task, *(percent(row.by_task[t.task]) for row in rows)] for t in regrets.tasks]
    summary = lines(HEADER, [cells(row, len(regrets.tasks)) for row in rows])
    return f"{WHAT}\n\n{summary}\n{lines(['task', *names], by_task)}"


def beside(regrets: Regrets, rows: list[Row]) -> list[tuple[Row, aggregate.Paired]]:
    """Every contender beside the first of `rows`, on the tasks and seeds that both have run."""
    found = []
    for row in rows[1:]:
        a, b = regrets.scores(row.contender), regrets.scores(rows[0].contender)
        both = ~(np.isnan(a) | np.isnan(b)).all(axis=1)
        if both.any():
            found.append((row, aggregate.paired(a[both], b[both], margin=MARGIN)))
    return found

"""A study's numbers as tables: CSV, Markdown and the terminal; and the names of its methods that people read."""

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from untuned.study import verdicts
from untuned.study.axes import decades
from untuned.study.config import MethodEntry, Study, label
from untuned.study.results import Results, TaskResult
from untuned.study.stats import Summary

_NAME, _LEAST_NAME = 30, 6  # characters of a method's name in the terminal's table, for which columns are left out
_COLUMNS = 5  # that are never left out


def write_tables(folder: Path, results: Results) -> None:
    folder.mkdir(exist_ok=True)
    metrics = {t.task.name: t.task.metric for t in results.tasks}
    _csv(
        folder / "runs.csv",
        ["task", "method", "lr", "seed", "metric", "value", "diverged"],
        sorted(
            (
                f.run.task,
                f.run.label,
                f.run.lr,
                f.run.seed,
                metrics[f.run.task],
                f.value,
                f.diverged,
            )
            for f in results.finished
        ),
    )
    _csv(
        folder / "by_lr.csv",
        ["task", "method", "lr", "metric", "mean", "min", "max", "n", "diverged"],
        [
            (t.task.name, o.method, lr, t.task.metric, row.mean(), row.min(), row.max(), len(row), int(diverged.sum()))
            for t in results.tasks
            for o in t.outcomes
            for lr, finals, diverged in zip(o.lrs, o.finals, o.diverged, strict=True)
            if len(row := finals[~np.isnan(finals)])
        ],
    )
    summaries = [(t, s) for t in results.tasks for s in t.summaries]
    defaults = {m.label: m.default_lr for m in results.study.methods}
    plateau = ["decades", "low", "high", "lower_bound"]
    _csv(
        folder / "summary.csv",
        ["task", "method", "metric", "best_lr", "mean", "n", "low95", "high95", "tolerance"]
        + [f"{which}_{column}" for which in ("own", "overall") for column in plateau]
        + ["diverged", "runs", "lrs", "default_lr", "default_mean", "default_n", "default_low95", "default_high95"]
        + ["default_diverged", "state_bytes"],
        [
            [
                t.task.name,
                s.method,
                t.task.metric,
                s.best_lr,
                s.mean,
                s.n,
                *(s.interval or ("", "")),
                t.metric.tolerance,
            ]
            + [
                v
                for p in (s.own, s.overall)
                for v in ((p.decades, p.low, p.high, p.censored) if p else (0, "", "", False))
            ]
            + [s.diverged, s.runs, s.tried, *_default_cells(defaults[s.method], s), s.state_bytes]
            for t, s in summaries
        ],
    )
    _csv(
        folder / "step_cost.csv",
        ["task", "method", "step_us", "ratio"],
        [(t.task.name, s.method, s.step_us, s.step_ratio) for t, s in summaries],
    )
    if decisions := verdicts.decide(results):
        _csv(
            folder / "verdicts.csv",
            ["method", "against", "at", "statistic", "value", "low", "high", "level", "margin", "verdict"],
            [
                (
                    *(d.entry.method, d.entry.against, d.entry.at, d.entry.statistic),
                    *d.numbers,
                    d.rule.level,
                    d.rule.margin,
                    d.verdict,
                )
                for d in decisions
            ],
        )
    (folder / "summary.md").write_text("\n".join(_markdown(t) for t in results.tasks), encoding="utf-8")


def _csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    def cell(value: Any) -> Any:
        return ("" if math.isnan(value) else f"{value:.6g}") if isinstance(value, float) else value

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([cell(value) for value in row] for row in rows)
    path.write_text(text.getvalue(), encoding="utf-8")


def _default_cells(lr: float | None, s: Summary) -> list[Any]:
    at = s.default
    return ["" if lr is None else lr, *((at.mean, at.n, *(at.interval or ("", "")), at.diverged) if at else [""] * 5)]


def columns(result: TaskResult) -> list[tuple[str, str]]:
    """Header of the table that the page and the Markdown share: what it is about, and the column."""
    ends = f"final {result.metric.unit}"
    default, best, works = "at the default lr", "at the best lr", f"decades within {result.metric.close} of"
    own, overall = ("own best", "best of all")
    return [("", "method"), (default, "lr"), (default, ends), (default, "n"), (default, "95 % interval"),
            (best, "lr"), (best, ends), (best, "n"), (best, "95 % interval"),
            (works, own), (works, overall), ("", "diverged runs")]  # fmt: skip


def alone(about: str, column: str) -> str:
    """Name of a column where its group does not stand above it."""
    if column == "lr":
        return about.removeprefix("at the ")
    return f"{about} {column}" if about.startswith("decades") else f"{column} {about}".strip()


def cells(result: TaskResult, s: Summary, name: str) -> list[str]:
    def ends(mean: float, n: int, interval: tuple[float, float] | None) -> list[str]:
        between = f"{text(interval[0])} to {text(interval[1])}" if interval else "none (n = 1)" if n else "–"
        return [text(mean), str(n), between]

    text, at = result.metric.text, s.default
    lr = next(o.default_lr for o in result.outcomes if o.method == s.method)
    return [
        name,
        "–" if lr is None else f"{lr:g}",
        *(ends(at.mean, at.n, at.interval) if at else [result.absent.get(s.method, "not run"), "0", "–"]),
        "–" if math.isnan(s.best_lr) else f"{s.best_lr:g}",
        *ends(s.mean, s.n, s.interval),
        decades(s.own),
        decades(s.overall),
        f"{s.diverged} of {s.runs}",
    ]


def _markdown(result: TaskResult) -> str:
    header = [alone(*column) for column in columns(result)]
    rows = [header, ["---"] * len(header), *(cells(result, s, s.method) for s in result.summaries)]
    return f"### {result.task.title}\n\n" + "".join("| " + " | ".join(row) + " |\n" for row in rows)


def summary_tables(results: Results, width: int = 100) -> list[Table]:
    """A table per task for the terminal: what each method gets at its default lr and at its best, and what it costs.

    Where `width` characters do not hold all columns, numbers stay whole and the last columns are left out.
    """
    shown = names(results.study)
    tables = []
    for t in results.tasks:
        if t.nothing:
            continue
        note = f"mean over {seeds(results)}; best: of the learning rates tried, chosen on the same runs"
        table = Table(box=box.SIMPLE_HEAD, title=escape(f"{t.task.title}: {t.metric.unit}"), caption=note)
        table.title_justify = table.caption_justify = "left"
        rows = []
        for s in t.summaries:
            row = cells(t, s, shown[s.method])
            step = "–" if math.isnan(s.step_us) else f"{s.step_us:.0f} µs"
            rows.append([*(row[i] for i in (0, 1, 2, 5, 6, 9, 11)), step])
        header = ["method", "default lr", "result there", "best lr", "best", "decades", "diverged", "step"]
        sizes = _sizes([header, *rows], width)
        for i, (name, size) in enumerate(zip(header, sizes, strict=False)):
            table.add_column(name, justify="right" if i else "left", overflow="fold", width=size)
        for row in rows:
            table.add_row(*map(escape, row[: len(sizes)]))
        tables.append(table)
    return tables


def _sizes(rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """Characters of each column of a table, the header first and names on the left; of as many as `width` holds."""
    header, *columns = rows[0], *zip(*rows[1:], strict=True)
    sizes = [max(map(len, [*name.split(), *cells])) for name, cells in zip(header, columns, strict=True)]
    longest, sizes[0] = sizes[0], min(sizes[0], _NAME)
    while sum(sizes) + 3 * len(sizes) + 1 > width and len(sizes) > _COLUMNS:
        sizes.pop()
    spare = width - sum(sizes) - 3 * len(sizes) - 1
    for i in range(1, len(sizes)):  # a header stays in one line if there is room
        more = max(0, min(len(header[i]) - sizes[i], spare))
        sizes[i], spare = sizes[i] + more, spare - more
    sizes[0] = max(_LEAST_NAME, min(longest, sizes[0] + spare))
    return sizes


def shared(study: Study) -> tuple[str | None, float | None]:
    """The schedule and the warm-up that all methods have in common, None where they differ."""
    schedules, warmups = {m.schedule for m in study.methods}, {m.warmup for m in study.methods}
    return schedules.pop() if len(schedules) == 1 else None, warmups.pop() if len(warmups) == 1 else None


def names(study: Study) -> dict[str, str]:
    """What people read, by method: without the schedule and the warm-up that all methods share."""
    schedule, warmup = shared(study)
    return {
        m.label: _display(m, "" if schedule is not None else m.schedule, 0.0 if warmup is not None else m.warmup)
        for m in study.methods
    }


def common(study: Study) -> str:
    schedule, warmup = shared(study)
    said = [f"with schedule {schedule}"] if schedule else []
    said += [f"behind a warm-up over {100 * warmup:g} % of the run"] if warmup else []
    return f"All {' '.join(said)}. " if said else ""


def _display(of: MethodEntry, schedule: str, warmup: float) -> str:
    """`momo_adam` as papers write it: MoMo-Adam."""
    words = {"adamw": "AdamW", "momo": "MoMo", "dadapt": "D-Adapt", "adatam": "AdaTAM", "adatamw": "AdaTAMW"}
    words |= {"adarem": "AdaRem", "adagrad": "AdaGrad", "gradagrad": "GradaGrad", "alig": "ALI-G"}
    words |= {"dog": "DoG", "ldog": "LDoG", "dowg": "DoWG"}
    short = "ahb am da gd gpa madgrad mda motaps msgd ngn sgd sgdf sngm sp spa sps tam taps"
    words |= {word: word.upper() for word in short.split()}
    plain = re.fullmatch(r"\w+", of.name)
    name = "-".join(words.get(word, word.capitalize()) for word in of.name.split("_")) if plain else of.name
    return label(name, of.options, schedule, warmup, of.budget, of.probe)


def seeds(results: Results) -> str:
    n = len(results.study.seeds)
    return f"{'up to ' if missing(results) and n > 1 else ''}{n} seed{'s' if n > 1 else ''}"


def missing(results: Results) -> int:
    return len(results.runs) - len(results.finished)

"""A study as a page, a picture and tables, as far as its runs have come."""

import csv
import io
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from untuned.study import charts
from untuned.study.charts import Style, decades, power
from untuned.study.config import MethodEntry, StudyError, label
from untuned.study.results import Results, TaskResult, crashes, load
from untuned.study.stats import Summary


def write(folder: Path) -> Path:
    """Write `report.html`, `report.png` and `tables/` into a study's folder and return the page's path.

    All tables but `step_cost.csv` depend on the results alone, not on the order of the runs nor on when they ran.
    Runs that are missing or crashed are left out and counted. Raises StudyError if there is no study or no room.
    """
    results = load(folder)
    try:
        return _write(folder, results)
    except OSError as error:
        again = f"the runs are kept, `untuned report {folder}` writes it again"
        raise StudyError(f"cannot write a report to {folder} ({error}); {again}") from error


def _write(folder: Path, results: Results) -> Path:
    looks = charts.styles({m.label: _display(m) for m in results.study.methods})
    _write_tables(folder / "tables", results)
    charts.png(
        folder / "report.png",
        [
            (
                t.task.title,
                partial(charts.words, text=t.nothing)
                if t.nothing
                else partial(charts.lr_picture, result=t, looks=looks),
            )
            for t in results.tasks
        ],
        looks,
        f"mean and range over {_seeds(results)};  ×: diverged;  grey: close to the best of all methods",
    )
    templates = FileSystemLoader(Path(__file__).parent / "templates")
    template = Environment(loader=templates, autoescape=True, trim_blocks=True).get_template("report.html.j2")
    page = folder / "report.html"
    page.write_text(template.render(_page(results, looks)), encoding="utf-8")
    return page


# Tables


def _write_tables(folder: Path, results: Results) -> None:
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
    plateau = ["decades", "low", "high", "lower_bound"]
    _csv(
        folder / "summary.csv",
        ["task", "method", "metric", "best_lr", "mean", "n", "low95", "high95", "tolerance"]
        + [f"{which}_{column}" for which in ("own", "overall") for column in plateau]
        + ["diverged", "runs"],
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
            + [s.diverged, s.runs]
            for t, s in summaries
        ],
    )
    _csv(
        folder / "step_cost.csv",
        ["task", "method", "step_us", "ratio"],
        [(t.task.name, s.method, s.step_us, s.step_ratio) for t, s in summaries],
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


def _columns(result: TaskResult) -> list[str]:
    """Header of the table that the page and the Markdown share."""
    own, overall = (f"decades of lr within {result.metric.close} of {whose}" for whose in ("own best", "best of all"))
    return ["method", "best lr", f"final {result.metric.unit}", "n", "95 % interval", own, overall, "diverged runs"]


def _cells(result: TaskResult, s: Summary) -> list[str]:
    text = result.metric.text
    return [
        s.method,
        "–" if math.isnan(s.best_lr) else f"{s.best_lr:g}",
        text(s.mean),
        str(s.n),
        f"{text(s.interval[0])} to {text(s.interval[1])}" if s.interval else "none (n = 1)" if s.n else "–",
        decades(s.own),
        decades(s.overall),
        f"{s.diverged} of {s.runs}",
    ]


def _markdown(result: TaskResult) -> str:
    header = _columns(result)
    rows = [header, ["---"] * len(header), *(_cells(result, s) for s in result.summaries)]
    return f"### {result.task.title}\n\n" + "".join("| " + " | ".join(row) + " |\n" for row in rows)


# The page


def _display(of: MethodEntry) -> str:
    """`momo_adam` as papers write it: MoMo-Adam."""
    words = {"adamw": "AdamW", "momo": "MoMo", "dadapt": "D-Adapt", "adatam": "AdaTAM", "adatamw": "AdaTAMW"}
    words |= {"adarem": "AdaRem", "adagrad": "AdaGrad", "gradagrad": "GradaGrad", "alig": "ALI-G"}
    words |= {"dog": "DoG", "ldog": "LDoG", "dowg": "DoWG"}
    short = "ahb am da gd gpa madgrad mda motaps msgd ngn sgd sgdf sngm sp spa sps tam taps"
    words |= {word: word.upper() for word in short.split()}
    plain = re.fullmatch(r"\w+", of.name)
    name = "-".join(words.get(word, word.capitalize()) for word in of.name.split("_")) if plain else of.name
    return label(name, of.options, of.schedule, of.warmup, of.budget, of.probe)


def _seeds(results: Results) -> str:
    n = len(results.study.seeds)
    return f"{'up to ' if _missing(results) and n > 1 else ''}{n} seed{'s' if n > 1 else ''}"


def _missing(results: Results) -> int:
    return len(results.runs) - len(results.finished)


def _headline(results: Results, looks: Mapping[str, Style]) -> str:
    """One claim for a single task or for many, and one for each of two or three."""
    crashed = sum(row["status"] == "crashed" for row in results.ledger.values())
    if crashed and not results.finished:
        return f"No run has finished: {crashed} of {len(results.runs)} crashed."
    if len(results.tasks) not in (2, 3):
        return _claim(results.tasks, looks)
    return " ".join(f"{t.task.name}: {_claim([t], looks)}" for t in results.tasks)


def _claim(of: Sequence[TaskResult], looks: Mapping[str, Style]) -> str:
    """How wide the plateau of Adam is, and the widest of a method that keeps up with the best on half of the tasks."""
    width, keeps_up, censored = defaultdict[str, float](float), Counter[str](), set[str]()
    for s in (s for t in of for s in t.summaries):
        if s.own:
            width[s.method] += s.own.decades / len(of)
            keeps_up[s.method] += s.overall is not None
            if s.own.censored:
                censored.add(s.method)
    if not width:
        return "No method has learned anything yet."
    widest, *others = sorted(width, key=lambda m: (2 * keeps_up[m] < len(of), -width[m], m))
    first = "adam" if "adam" in others else others[-1] if others else widest

    def over(method: str) -> str:
        return f"over {'at least ' if method in censored else ''}{width[method]:.1f}"

    closes = {t.metric.close for t in of}
    close = f"within {closes.pop()} of" if len(closes) == 1 else "close to"
    text = f"{looks[first].label} stays {close} its best {over(first)} decades of learning rate"
    if widest != first:
        text += f", {looks[widest].label} {over(widest)}"
    return text + (f", on average over {len(of)} tasks." if len(of) > 1 else ".")


def _page(results: Results, looks: Mapping[str, Style]) -> dict[str, Any]:
    study, rows = results.study, list(results.ledger.values())
    status = Counter(results.ledger.get(run.id, {"status": "not run"})["status"] for run in results.runs)
    lrs = sorted({lr for method in study.methods for task in study.tasks for lr in method.rates(task.name)})
    days = [_day(pick(row["started"] for row in rows)) for pick in (min, max)] if rows else []
    return {
        "headline": _headline(results, looks),
        "seeds": _seeds(results),
        "close": " or ".join(dict.fromkeys(f"{t.metric.close} of {t.metric.label}" for t in results.tasks)),
        "lrs": [power(lr) for lr in lrs],
        "runs": len(results.runs),
        "diverged": sum(f.diverged for f in results.finished),
        "missing": _missing(results),
        "reasons": crashes(results.ledger.values()),
        "missing_why": ", ".join(f"{status[s]} {s}" for s in ("not run", "running", "crashed") if status[s]),
        "crashes": [
            (run, results.ledger[run.id]["error"])
            for run in results.runs
            if run.id in results.ledger and results.ledger[run.id]["status"] == "crashed"
        ],
        "methods": [(style, Markup(charts.swatch(style))) for style in looks.values()],
        "tasks": [_task(t, lrs, looks) for t in results.tasks],
        "days": " to ".join(dict.fromkeys(days)),
        "hours": sum(row["seconds"] or 0 for row in rows) / 3600,
        "machines": _distinct(row["machine"] for row in rows),
        "versions": _distinct(row["versions"] for row in rows),
    }


def _task(result: TaskResult, lrs: Sequence[float], looks: Mapping[str, Style]) -> dict[str, Any]:
    def draw(chart: Callable[..., None], name: str, height: float = 3.7, **data: Any) -> Markup:
        if result.nothing:
            return Markup('<p class="note">{}</p>').format(result.nothing)
        return Markup(charts.svg(partial(chart, looks=looks, **data), f"{name}: {result.task.title}", height))

    tall = 1.25 + 0.28 * len(looks)
    summaries = result.summaries
    cost = {s.method: "–" if math.isnan(s.step_us) else f"{s.step_us:.0f} µs, {s.step_ratio:.2f}×" for s in summaries}
    return {
        "task": result.task,
        "metric": result.metric,
        "lr": draw(charts.lr_picture, "Final metric against learning rate", result=result),
        "plateau": draw(charts.plateaus, "Learning rates that work", tall, summaries=summaries, grid=lrs),
        "loss": draw(charts.over_time, "Training loss", what="training loss", curves=result.train_loss),
        "lr_effective": draw(
            charts.over_time, "Effective learning rate", what="effective learning rate", curves=result.lr_effective
        ),
        "cost": draw(charts.step_costs, "Step cost", tall, summaries=summaries),
        "columns": [*_columns(result), "step"],
        "rows": [(looks[s.method], [*_cells(result, s), cost[s.method]]) for s in summaries],
    }


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")


def _distinct(values: Iterable[str | None]) -> list[str]:
    """JSON objects of the ledger as text, the commonest first."""
    found = Counter(", ".join(f"{k} {v}" for k, v in json.loads(value).items()) for value in values if value)
    return sorted(found, key=lambda text: (-found[text], text))

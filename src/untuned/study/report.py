"""A study as a page, a picture and tables, as far as its runs have come."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from untuned.study import charts, verdicts
from untuned.study.axes import power
from untuned.study.config import StudyError
from untuned.study.headline import headline
from untuned.study.looks import Style, styles
from untuned.study.report_tables import alone, cells, columns, common, missing, names, seeds, write_tables
from untuned.study.results import Results, TaskResult, crashes, load


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
    looks = styles(names(results.study))
    write_tables(folder / "tables", results)
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
        f"mean and range over {seeds(results)};  ×: diverged;  grey: close to the best of all methods",
    )
    page = folder / "report.html"
    page.write_text(html(results), encoding="utf-8")
    return page


def html(results: Results) -> str:
    """The page, which loads nothing and needs no script."""
    templates = FileSystemLoader(Path(__file__).parent / "templates")
    template = Environment(loader=templates, autoescape=True, trim_blocks=True).get_template("report.html.j2")
    return template.render(_page(results, styles(names(results.study))))


# The page


def _page(results: Results, looks: Mapping[str, Style]) -> dict[str, Any]:
    study, rows = results.study, list(results.ledger.values())
    status = Counter(results.ledger.get(run.id, {"status": "not run"})["status"] for run in results.runs)
    lrs = sorted({lr for method in study.methods for task in study.tasks for lr in method.rates(task.name)})
    days = [_day(pick(row["started"] for row in rows)) for pick in (min, max)] if rows else []
    return {
        "decisions": verdicts.decide(results),
        "headline": headline(results, {method: style.label for method, style in looks.items()}),
        "common": common(study),
        "command": results.command,
        "seeds": seeds(results),
        "close": " or ".join(dict.fromkeys(f"{t.metric.close} of {t.metric.label}" for t in results.tasks)),
        "lrs": [power(lr) for lr in lrs],
        "runs": len(results.runs),
        "diverged": sum(f.diverged for f in results.finished),
        "missing": missing(results),
        "reasons": crashes(results.ledger.values()),
        "missing_why": ", ".join(f"{status[s]} {s}" for s in ("not run", "running", "crashed") if status[s]),
        "crashes": [
            (run, results.ledger[run.id]["error"])
            for run in results.runs
            if run.id in results.ledger and results.ledger[run.id]["status"] == "crashed"
        ],
        "methods": [(style, Markup(charts.swatch(style))) for style in looks.values()],
        "tasks": [_task(t, lrs, looks) for t in results.tasks],
        "several_lrs": any(len(o.lrs) > 1 for t in results.tasks for o in t.outcomes),
        "measured": any(s.step_us > 0 for t in results.tasks for s in t.summaries),
        "days": " to ".join(dict.fromkeys(days)),
        "minutes": sum(row["seconds"] or 0 for row in rows) / 60,
        "machines": _distinct(row["machine"] for row in rows),
        "versions": _distinct(row["versions"] for row in rows),
    }


def _task(result: TaskResult, lrs: Sequence[float], looks: Mapping[str, Style]) -> dict[str, Any]:
    def draw(chart: Callable[..., None], name: str, height: float = 3.5, **data: Any) -> Markup:
        if result.nothing:
            return Markup()
        return Markup(charts.svg(partial(chart, looks=looks, **data), f"{name}: {result.task.title}", height))

    tall = 1.25 + 0.28 * len(looks)
    summaries = result.summaries
    step = {s.method: "–" if math.isnan(s.step_us) else f"{s.step_us:.0f} µs, {s.step_ratio:.2f}×" for s in summaries}
    rows = [
        (looks[s.method], [*cells(result, s, looks[s.method].label), step[s.method], size(s.state_bytes)])
        for s in summaries
    ]
    return {
        "task": result.task,
        "metric": result.metric,
        "nothing": result.nothing,
        "default": draw(charts.default_picture, "Result at the default lr", tall + 0.16 * len(looks), result=result),
        "lr": draw(charts.lr_picture, "Final metric against learning rate", result=result),
        "plateau": draw(charts.plateaus, "Learning rates that work", tall, summaries=summaries, grid=lrs),
        "train": draw(charts.over_time, "Training loss", what="training loss", curves=result.train_loss),
        "val": draw(charts.over_time, "Validation loss", what="validation loss", curves=result.val_loss),
        "lr_effective": draw(
            charts.over_time, "Effective learning rate", what="effective learning rate", curves=result.lr_effective
        ),
        "cost": draw(charts.step_costs, "Step cost", tall, summaries=summaries),
        "groups": [(about, len(list(columns))) for about, columns in groupby(c[0] for c in _table_columns(result))],
        "columns": [(*column, alone(*column)) for column in _table_columns(result)],
        "rows": rows,
    }


def _table_columns(result: TaskResult) -> list[tuple[str, str]]:
    return [*columns(result), ("", "step"), ("", "optimizer state")]


def size(count: float) -> str:
    """Bytes as people read them, in steps of 1000: `648 B`, `1.25 MB`; a dash if not known."""
    if math.isnan(count):
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5 or unit == "GB":
            return f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")


def _distinct(values: Iterable[str | None]) -> list[str]:
    """JSON objects of the ledger as text, the commonest first; of a machine its processor comes first."""
    objects = [sorted(json.loads(value).items(), key=lambda it: it[0] != "processor") for value in values if value]
    found = Counter(", ".join(f"{k} {v}" for k, v in one) for one in objects)
    return sorted(found, key=lambda text: (-found[text], text))

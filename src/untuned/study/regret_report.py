"""The report of `untuned regret`: a table, a picture that shows which default to take, and one for each task."""

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from untuned.study import aggregate, charts
from untuned.study.axes import method_axis
from untuned.study.config import StudyError
from untuned.study.looks import INK, Style, styles
from untuned.study.regret import REFERENCE, Regrets, TaskRegret, load
from untuned.study.regret_tables import HEADER, MARGIN, WHAT, Row, beside, cells, percent, rows_of, write_tables
from untuned.study.results import last_command
from untuned.study.stats import seed_mean

MEAN_AT, WORST_AT = 42, 84  # points right of the axes, which are narrow beside long names


def write(folder: Path) -> Path:
    """Write regret.html, regret.png, regret.md, regret.csv and regret-runs.csv, and return the page's path.

    Raises StudyError if there is no study or no room.
    """
    regrets = load(folder)
    rows = rows_of(regrets)
    looks = styles({row.contender.label: row.contender.label for row in rows})
    try:
        write_tables(folder, regrets, rows)
        _write_picture(folder / "regret.png", regrets, rows, looks)
        page = folder / "regret.html"
        page.write_text(_page(folder, regrets, rows, looks), encoding="utf-8")
    except OSError as error:
        raise StudyError(f"cannot write a report to {folder} ({error}); the runs are kept") from error
    return page


# ---------------------------------------------------------------- pictures


def overview(ax: Axes, rows: list[Row], looks: Mapping[str, Style]) -> None:
    """A row a contender: every task a dot, the mean with its interval, the worst task marked."""
    method_axis(ax, [looks[row.contender.label] for row in rows])
    ax.set_xlim(-3, 103)
    ax.set_xlabel("regret (% of the step budget), 0 = as good as tuned AdamW")
    across = ax.get_yaxis_transform()
    for y, row in enumerate(rows):
        style = looks[row.contender.label]
        for task, value in row.by_task.items():
            if not math.isnan(value):
                tip = f"{style.key}|{style.label}, {task}: {percent(value)}"
                ax.plot(100 * value, y, "o", color=style.color, alpha=0.35, ms=5, mew=0, gid=tip)
        if math.isnan(row.mean):
            ax.text(0.5, y, "no run has finished", transform=across, ha="center", va="center", style="italic")
            continue
        if row.interval:
            low, high = row.interval
            ax.plot([100 * low, 100 * high], [y, y], color=style.color, lw=2.4, gid=style.key)
        tip = f"{style.key}|{style.label}: mean {percent(row.mean)}"
        ax.plot(100 * row.mean, y, "D", color=style.color, mec="white", mew=1.2, ms=9, zorder=4, gid=tip)
        for x, text, weight in ((MEAN_AT, percent(row.mean), "bold"), (WORST_AT, percent(row.worst), "normal")):
            beside = {"xycoords": across, "xytext": (x, 0), "textcoords": "offset points", "ha": "right"}
            ax.annotate(text, (1, y), **beside, va="center", weight=weight, gid=style.key)
    for x, text in ((MEAN_AT, "mean"), (WORST_AT, "worst")):
        beside = {"xycoords": "axes fraction", "xytext": (x, 0), "textcoords": "offset points", "ha": "right"}
        ax.annotate(text, (1, 1), **beside, va="bottom", fontsize=8.5)


def profile(ax: Axes, regrets: Regrets, rows: list[Row], looks: Mapping[str, Style]) -> None:
    """The share of runs that lose at most so much."""
    at = np.linspace(0, 1, 101)
    for row in rows:
        scores = regrets.scores(row.contender)
        if np.isnan(scores).all():
            continue
        style = looks[row.contender.label]
        found = aggregate.performance_profile(scores[~np.isnan(scores).all(axis=1)], at, above=False)
        ax.plot(100 * at, 100 * found.share, color=style.color, ls=style.dash, gid=style.key)
        some = slice(None, None, 20)
        ax.plot(100 * at[some], 100 * found.share[some], style.marker, color=style.color, gid=style.key)
    ax.set_xlim(0, 100)
    ax.set_ylim(0, 102)
    ax.set_xlabel("regret at most (% of the step budget)")
    ax.set_ylabel("runs (%)")


def on_the_way(ax: Axes, task: TaskRegret, looks: Mapping[str, Style]) -> None:
    """Tuned AdamW's final loss by budget, and where on this way each contender ends."""
    curve = task.curve
    if curve is None:
        charts.words(ax, "There is no curve of tuned AdamW: none of its runs has finished.")
        return
    budgets = 100 * np.array(curve.horizons)
    ax.plot(budgets, curve.losses, "-", color=INK, lw=1.4)
    ax.plot(budgets, curve.losses, ".", color=INK, gid="|tuned AdamW")
    ax.set_xscale("log", base=2)
    ax.set_xlim(budgets[0] / 2.2, 115)
    low, high = float(curve.losses.min()), float(curve.losses.max())
    beaten = [float(v) for values in task.finals.values() for v in [seed_mean(values)] if v < low]
    span = (high - min([low, *beaten])) or max(abs(high), 1.0)  # flat where nothing was learned
    ax.set_ylim(min([low, *beaten]) - 0.06 * span, high + 0.25 * span)
    ax.set_xticks(budgets, [f"{b:g}" for b in budgets])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_xlabel("step budget (%), logarithmic")
    ax.set_ylabel("validation loss")
    for contender, finals in task.finals.items():
        style, regret = looks[contender.label], seed_mean(task.regrets[contender])
        if math.isnan(regret):
            continue
        loss = float(seed_mean(np.minimum(finals, curve.untrained)))
        x, y = max(100 * (1 - regret), budgets[0] / 2), min(loss, high + 0.2 * span)
        tip = f"{style.key}|{style.label}: loss {loss:.4g}, regret {percent(float(regret))}"
        ax.plot(x, y, style.marker, color=style.color, ms=8, mec="white", mew=0.8, zorder=3, gid=tip)


def _write_picture(path: Path, regrets: Regrets, rows: list[Row], looks: Mapping[str, Style]) -> None:
    panels = [
        (f"Regret over {len(regrets.tasks)} tasks: which default to take", partial(overview, rows=rows, looks=looks)),
        ("How often a default loses at most so much", partial(profile, regrets=regrets, rows=rows, looks=looks)),
    ]
    seeds = len(regrets.study.seeds)
    note = f"dots: tasks (means over n = {seeds} seeds); diamond, line: mean, 95 % interval over tasks and seeds"
    charts.png(path, panels, looks, note, width=8.2, height=1.6 + 0.34 * max(len(rows), 8))


# ---------------------------------------------------------------- the page


def _page(folder: Path, regrets: Regrets, rows: list[Row], looks: Mapping[str, Style]) -> str:
    templates = FileSystemLoader(Path(__file__).parent / "templates")
    template = Environment(loader=templates, autoescape=True, trim_blocks=True).get_template("regret.html.j2")
    best = next((row for row in rows if not math.isnan(row.mean)), None)
    headline = (
        f"Of {len(rows)} defaults, {best.contender.label} loses least: {percent(best.mean)} of the budget on average, "
        f"{percent(best.worst)} at worst."
        if best
        else "No run has finished yet."
    )
    styles = [looks[row.contender.label] for row in rows]
    return template.render(
        headline=headline,
        what=WHAT,
        reference=REFERENCE,
        seeds=len(regrets.study.seeds),
        shipped=sum(t.curve is not None and t.curve.shipped for t in regrets.tasks),
        missing=sum(int(np.isnan(regrets.scores(c)).sum()) for c in regrets.contenders),
        methods=[(style, Markup(charts.swatch(style))) for style in looks.values()],
        overview=_draw(partial(overview, rows=rows, looks=looks), "Regret by default", 1.3 + 0.32 * len(rows)),
        profile=_draw(partial(profile, regrets=regrets, rows=rows, looks=looks), "Performance profile", 3.7),
        tasks=[
            (t, _draw(partial(on_the_way, task=t, looks=looks), f"Where defaults end: {t.task}", 3.3))
            for t in regrets.tasks
        ],
        header=HEADER,
        names=[row.contender.label for row in rows],
        rows=[(style, cells(row, len(regrets.tasks))) for style, row in zip(styles, rows, strict=True)],
        by_task=[
            (t, [(style, percent(row.by_task[t.task])) for style, row in zip(styles, rows, strict=True)])
            for t in regrets.tasks
        ],
        margin=MARGIN,
        beside=[
            (
                looks[row.contender.label],
                f"{p.won}, {p.tied}, {p.lost}",
                _interval(p.mean, "{:+.0%}".format),
                _interval(p.probability, "{:.0%}".format),
            )
            for row, p in beside(regrets, rows)
        ],
        curves=[
            (t, t.curve, zip(t.curve.horizons, t.curve.losses, t.curve.lrs, strict=True))
            for t in regrets.tasks
            if t.curve
        ],
        minutes=sum(float(row["seconds"] or 0) for row in regrets.rows) / 60,  # pyright: ignore[reportArgumentType]
        machines=sorted({str(json.loads(str(row["machine"])).get("processor")) for row in regrets.rows}),
        command=last_command(folder),
    )


def _interval(estimate: aggregate.Estimate, form: Callable[[float], str]) -> str:
    span = f" ({form(estimate.interval[0])} to {form(estimate.interval[1])})" if estimate.interval else ""
    return f"{form(estimate.value)}{span}"


def _draw(chart: Callable[[Axes], None], name: str, height: float) -> Markup:
    return Markup(charts.svg(chart, name, height))

"""The report of `untuned regret`: a table, a picture that shows which default to take, and one for each task."""

import csv
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator
from rich import box
from rich.table import Table

from untuned.study import aggregate, charts
from untuned.study.charts import INK, Style
from untuned.study.config import StudyError
from untuned.study.execute import last_command
from untuned.study.regret import REFERENCE, Contender, Regrets, TaskRegret, load
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
    seconds: float  # of training, over all its runs
    step_us: float


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
    seconds = [
        float(row["seconds"])  # pyright: ignore[reportArgumentType]
        for row in regrets.rows
        if row["seconds"] and row["method"] == contender.method.partition("(")[0] and row["lr"] == contender.lr
    ]
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
        seconds=sum(seconds),
        step_us=math.nan,
    )


def percent(value: float) -> str:
    """`30 %`, a dash if there is no value."""
    return "–" if math.isnan(value) else f"{100 * value:.0f} %"


def _cells(row: Row, tasks: int) -> list[str]:
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
        _, mean, interval, *_ = _cells(row, len(regrets.tasks))
        found.add_row(row.contender.label, mean, interval, percent(row.worst), row.worst_task)
    return found


def write(folder: Path) -> Path:
    """Write regret.html, regret.png, regret.md, regret.csv and regret-runs.csv, and return the page's path.

    Raises StudyError if there is no study or no room.
    """
    regrets = load(folder)
    rows = rows_of(regrets)
    looks = charts.styles({row.contender.label: row.contender.label for row in rows})
    try:
        _write_tables(folder, regrets, rows)
        _write_picture(folder / "regret.png", regrets, rows, looks)
        page = folder / "regret.html"
        page.write_text(_page(folder, regrets, rows, looks), encoding="utf-8")
    except OSError as error:
        raise StudyError(f"cannot write a report to {folder} ({error}); the runs are kept") from error
    return page


# ---------------------------------------------------------------- tables


def _write_tables(folder: Path, regrets: Regrets, rows: list[Row]) -> None:
    tasks = [task.task for task in regrets.tasks]
    with (folder / "regret.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["method", "lr", "mean", "low95", "high95", "iqm", "worst", "worst_task", "better", "n", *tasks]
        )
        for row in rows:
            low, high = row.interval or (math.nan, math.nan)
            numbers = [row.mean, low, high, row.iqm, row.worst]
            cells = [f"{v:.4f}" for v in numbers] + [row.worst_task, row.better, row.n]
            by_task = [f"{row.by_task[task]:.4f}" for task in tasks]
            writer.writerow([row.contender.method, f"{row.contender.lr:g}", *cells, *by_task])
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
    summary = lines(HEADER, [_cells(row, len(regrets.tasks)) for row in rows])
    return f"{WHAT}\n\n{summary}\n{lines(['task', *names], by_task)}"


# ---------------------------------------------------------------- pictures


def overview(ax: Axes, rows: list[Row], looks: Mapping[str, Style]) -> None:
    """A row a contender: every task a dot, the mean with its interval, the worst task marked."""
    charts.method_axis(ax, [looks[row.contender.label] for row in rows])
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
        for x, text, weight in ((1.1, percent(row.mean), "bold"), (1.22, percent(row.worst), "normal")):
            ax.text(x, y, text, transform=across, ha="right", va="center", weight=weight, gid=style.key)
    for x, text in ((1.1, "mean"), (1.22, "worst")):
        ax.text(x, 1.0, text, transform=ax.transAxes, ha="right", va="bottom", fontsize=8.5)


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
        rows=[(style, _cells(row, len(regrets.tasks))) for style, row in zip(styles, rows, strict=True)],
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


def beside(regrets: Regrets, rows: list[Row]) -> list[tuple[Row, aggregate.Paired]]:
    """Every contender beside the first of `rows`, on the tasks and seeds that both have run."""
    found = []
    for row in rows[1:]:
        a, b = regrets.scores(row.contender), regrets.scores(rows[0].contender)
        both = ~(np.isnan(a) | np.isnan(b)).all(axis=1)
        if both.any():
            found.append((row, aggregate.paired(a[both], b[both], margin=MARGIN)))
    return found


def _interval(estimate: aggregate.Estimate, form: Callable[[float], str]) -> str:
    span = f" ({form(estimate.interval[0])} to {form(estimate.interval[1])})" if estimate.interval else ""
    return f"{form(estimate.value)}{span}"


def _draw(chart: Callable[[Axes], None], name: str, height: float) -> Markup:
    return Markup(charts.svg(chart, name, height))

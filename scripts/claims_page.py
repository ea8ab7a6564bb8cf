"""docs/claims.md from the studies docs/claims/*.toml.

    python scripts/claims_page.py [FOLDER]

FOLDER/NAME is that of `untuned compare docs/claims/NAME.toml --out FOLDER/NAME`: the final metric of every run goes to
docs/claims/results.csv, from which the page is written. Without a folder the page is written again from that file.
"""

import csv
import io
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from untuned.study import results, verdicts, widths
from untuned.study.config import ClaimEntry, RuleEntry, Study
from untuned.study.request import Request
from untuned.study.results import Results, TaskResult
from untuned.study.stats import seed_mean
from untuned.study.store import Store

ROOT = Path(__file__).parents[1]
CLAIMS = ROOT / "docs" / "claims"
PAGE, RESULTS = ROOT / "docs" / "claims.md", CLAIMS / "results.csv"
COLUMNS = ("claim", "task", "metric", "method", "lr", "seed", "value", "day")

HEAD = """# Claims of the papers, decided

<!-- Written by scripts/claims_page.py from docs/claims: change the studies there instead. -->

{count} claims of the papers behind this library, each decided by a study: {holds} hold here, {not_} do not,
{untold} cannot be told at this scale. The rule of a study was committed before its first run, with the date that stands
here. "Here" is on small tasks and one processor core: a claim that does not hold here may hold where its paper tested
it.

**How to read a rule.** `a (default) - b (best) >= -0.02`: method a at its default learning rate against b at the best
of its grid, which is chosen on the runs it is judged by. Scores lie between chance, 0, and the best mean of the study
on a task, 1; widths are decades of learning rate within 2 points of accuracy, or 2 % of chance, of a method's own
best, as far as the grid reaches, and where the grid cuts a range the interval is open (∞). The claim holds if the
whole 95 % interval (bootstrap over tasks and seeds, for a claim about tasks like these; over seeds where the rule says
*these tasks*) is on the rule's side, does not if the whole interval is on the other, and else cannot be told at this
scale. Of several rules each has to hold. What a rule says of each task, by its seeds alone, stands beside it and
decides nothing; where it says yes on some tasks and no on others, more seeds would not tell. Every number is in
[results.csv](claims/results.csv); the commands run from the root of the repository.

"""


def names() -> list[str]:
    return sorted(path.stem for path in CLAIMS.glob("*.toml"))


def asked(name: str) -> Study:
    """The study of a file, resolved in the root of the repository, from which its paths start."""
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        return Request.of([f"docs/claims/{name}.toml"]).resolve()
    finally:
        os.chdir(before)


# Numbers


def collected(name: str, folder: Path) -> list[list[str]]:
    """Rows of results.csv from a study's folder, if all of its runs have ended; raises ValueError if rules differ."""
    store, study = Store(folder), asked(name)
    if (store.study.rules, store.study.claim) != (study.rules, study.claim):
        raise ValueError(f"{folder} was run with other rules than docs/claims/{name}.toml has")
    found = results.load(folder)
    if len(found.finished) < len(found.runs):
        print(f"{name}: {len(found.runs) - len(found.finished)} of {len(found.runs)} runs are missing; left out")
        return []
    metrics = {task.task.name: task.task.metric for task in found.tasks}
    return [
        [
            *(name, f.run.task, metrics[f.run.task], f.run.label, f"{f.run.lr:g}", str(f.run.seed)),
            "" if f.diverged else f"{f.value:.6g}",
            datetime.fromtimestamp(found.ledger[f.run.id]["started"], UTC).strftime("%Y-%m-%d"),
        ]
        for f in sorted(found.finished, key=lambda f: (f.run.task, f.run.label, f.run.lr, f.run.seed))
    ]


def read() -> dict[str, list[dict[str, str]]]:
    """Rows of results.csv by claim."""
    rows: dict[str, list[dict[str, str]]] = {}
    if RESULTS.exists():
        for row in csv.DictReader(RESULTS.read_text(encoding="utf-8").splitlines()):
            rows.setdefault(row["claim"], []).append(row)
    return rows


def decided(name: str, rows: Iterable[dict[str, str]]) -> Results:
    """The study of a claim with the runs of results.csv, among them those at learning rates that tuning added."""
    values = {
        (row["task"], row["method"], float(row["lr"]), int(row["seed"])): float(row["value"] or "nan") for row in rows
    }
    study = asked(name)
    usual = {method.label: method.lrs for method in study.methods}
    added: dict[tuple[str, str], list[float]] = {}
    for task, method, lr, seed in values:
        if seed == 0 and lr not in usual[method]:
            added.setdefault((method, task), []).append(lr)
    return results.of_values(study.with_rates(added), values)


# Words

END = ", the end of its grid"
SAYS = {
    "holds here": "supports the claim",
    "does not hold here": "contradicts the claim",
    "cannot be told at this scale": "leaves the claim open",
}


def rule_text(entry: RuleEntry, claim: ClaimEntry) -> str:
    """The rule as an inequality for the interval."""
    middle = 0.5 if entry.statistic == "probability" else 0.0
    low, high = f"{middle - entry.margin:g}", f"{middle + entry.margin:g}"
    same = "no difference of more than the margin"
    side = {
        frozenset({"better"}): f"> {high}",
        frozenset({"better", same}): f">= {low}",
        frozenset({same}): f"from {low} to {high}",
        frozenset({"worse", same}): f"<= {high}",
        frozenset({"worse"}): f"< {low}",
        frozenset({"better", "worse"}): f"beyond {low} to {high}",
    }[frozenset(claim.holds)]
    one, other = entry.at, entry.against_at or entry.at
    a, b = short(entry.method), short(entry.against)
    said = {
        "mean": f"{a} ({one}) - {b} ({other}) {side}",
        "iqm": f"interquartile mean of {a} ({one}) - of {b} ({other}) {side}",
        "probability": f"probability that {a} ({one}) beats {b} ({other}) {side}",
        "width": f"decades of {a} - decades of {b} {side}",
    }[entry.statistic]
    return said + ("; these tasks" if entry.over == "seeds" else "")


def short(method: str) -> str:
    """A method as people write it, without the file of a refined schedule."""
    return re.sub(r"refined\([^)]*\)", "refined", method)


def number(value: float, digits: int = 3) -> str:
    if math.isnan(value):
        return "–"
    return ("∞" if value > 0 else "-∞") if math.isinf(value) else f"{value:.{digits}f}".replace("-0.000", "0.000")


def span(decision: verdicts.Decision) -> str:
    value, low, high = decision.numbers
    if math.isnan(value):
        return "no runs"
    return f"{number(value)}" + ("" if math.isnan(low) else f" ({number(low)} to {number(high)})")


def table(header: list[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)


def task_rows(found: Results, entry: RuleEntry) -> Iterable[list[str]]:
    """What a rule compares, task by task."""
    claim = found.study.claim
    assert claim is not None
    for task in found.tasks:
        decision = verdicts.decide_on(found, entry, [task])
        said = {"holds here": "yes", "does not hold here": "no"}.get(decision.says(claim), "cannot be told")
        yield [task.task.name, *sides(found, task, entry), span(decision), said]


def sides(found: Results, task: TaskResult, entry: RuleEntry) -> list[str]:
    """Result and learning rate, or width, of both methods."""
    cells = []
    for method, at in ((entry.method, entry.at), (entry.against, entry.against_at or entry.at)):
        outcome = next(o for o in task.outcomes if o.method == method)
        if entry.statistic == "width":
            own = next(s for s in task.summaries if s.method == method).own
            cells.append(widths.text(own.decades, own.censored) if own else "0")
            continue
        row = verdicts.row_of(found, outcome, at, task.metric.maximize)
        if row is None:
            cells.append("–")
            continue
        end = at == "best" and len(outcome.lrs) > 1 and row in (0, len(outcome.lrs) - 1)
        mean = task.metric.text(float(seed_mean(outcome.finals)[row]))
        cells.append(f"{mean} at {outcome.lrs[row]:g}{END if end else ''}")
    return cells


def task_by_task(found: Results) -> str:
    """On how many tasks the claim holds, does not, and cannot be told, each by its seeds alone; "" for one task."""
    claim = found.study.claim
    assert claim is not None
    said: Counter[str] = Counter()
    for task in found.tasks:
        words = {verdicts.decide_on(found, entry, [task]).says(claim) for entry in found.study.rules}
        no = "does not hold here" in words
        said["no" if no else "yes" if words == {"holds here"} else "open"] += 1
    if len(found.tasks) == 1:
        return ""
    return f"; task by task: {', '.join(f'{word} on {said[word]}' for word in ('yes', 'no', 'open') if said[word])}"


def at_an_end(found: Results) -> str:
    """A warning where a best learning rate is the first or last of its grid: a wider grid may have a better one."""
    cells = [cell for entry in found.study.rules for task in found.tasks for cell in sides(found, task, entry)]
    return "; a best rate at the end of its grid" if any(cell.endswith(END) for cell in cells) else ""


def seeds(study: Study) -> str:
    return f"n = {len(study.seeds)} seeds"


def command(name: str) -> str:
    return f"untuned compare docs/claims/{name}.toml"


def section(name: str, found: Results) -> str:
    study = found.study
    claim = study.claim
    assert claim is not None
    parts = [f"### {name}\n\n{claim.text} ({claim.source}): **{verdicts.decide_claim(found)}**.\n"]
    for entry in study.rules:
        decision = verdicts.decide_on(found, entry, found.tasks)
        unit = "decades, one" if entry.statistic == "width" else "one"
        effect = SAYS[decision.says(claim)]
        parts.append(
            f"\n`{rule_text(entry, claim)}`, {claim.date}, {seeds(study)}: {span(decision)}, which {effect}.\n\n"
        )
        header = [
            "task",
            short(entry.method),
            short(entry.against),
            f"{unit} - other (interval over seeds)",
            "claim holds",
        ]
        parts.append(table(header, task_rows(found, entry)))
    units = sorted({f"{t.metric.unit} for {t.task.name}" for t in found.tasks})
    parts.append(f"\n{' '.join(claim.why.split())} Final metrics: {', '.join(units)}.\n\n    {command(name)}\n\n")
    return "".join(parts)


def page(rows: dict[str, list[dict[str, str]]]) -> str:
    """The page from the rows of results.csv by claim."""
    found = {name: decided(name, rows[name]) for name in names() if name in rows}
    said = {name: verdicts.decide_claim(one) for name, one in found.items()}
    count = Counter(said.values())
    text = HEAD.format(
        count=len(found),
        holds=count["holds here"],
        not_=count["does not hold here"],
        untold=count["cannot be told at this scale"],
    )
    lines = []
    for name, one in found.items():
        study = one.study
        claim = study.claim
        assert claim is not None
        decisions = verdicts.decide(one)
        lines.append(
            [
                f"[{claim.text}](#{name})",
                claim.source,
                f"{', '.join(task.name for task in study.tasks)}; {seeds(study)}",
                f"{'<br>'.join(f'`{rule_text(entry, claim)}`' for entry in study.rules)}, {claim.date}",
                "<br>".join(span(decision) for decision in decisions),
                f"**{said[name]}**{task_by_task(one)}{at_an_end(one)}",
                f"`{command(name)}`",
            ]
        )
    header = ["claim", "source", "what was run", "rule, fixed on", "estimate (95 % interval)", "verdict", "command"]
    text += table(header, lines) + "\n## Claim by claim\n\n"
    return text + "".join(section(name, one) for name, one in found.items()).rstrip("\n") + "\n"


def main(folder: Path | None) -> None:
    rows = read()
    for name in names():
        if folder and (folder / name).exists() and (new := collected(name, folder / name)):
            rows[name] = [dict(zip(COLUMNS, row, strict=True)) for row in new]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([row[column] for column in COLUMNS] for name in names() for row in rows.get(name, []))
    RESULTS.write_text(text.getvalue(), encoding="utf-8")
    PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)

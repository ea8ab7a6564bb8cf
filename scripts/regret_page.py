"""The results of docs/regret.md from the folder of `untuned regret ... --suite public --out FOLDER`.

    python scripts/regret_page.py FOLDER

Writes docs/regret.png, docs/regret-runs.csv and what stands between the marks of docs/regret.md.
"""

import math
import re
import shutil
import sys
from pathlib import Path

from untuned.study import aggregate, regret, regret_report, regret_tables
from untuned.study.suites import CONFIRMED_ON, LOOKED_AT, SUITES

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "regret.md"
MARKS = "<!-- results -->\n", "<!-- end of results -->\n"


def filled(page: str, results: str) -> str:
    before, after = page.partition(MARKS[0])[0], page.partition(MARKS[1])[2]
    return before + MARKS[0] + results + MARKS[1] + after


def apart(found: regret.Regrets, rows: list[regret_tables.Row]) -> str:
    """Mean and worst regret on the tasks that defaults are developed on, and on the others."""
    parts = {"looked at": LOOKED_AT, "only confirmed on": CONFIRMED_ON}
    head = ["default", *(f"{what} {name}" for name in parts for what in ("mean regret,", "95 %,", "worst,"))]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in rows:
        line = [row.contender.label]
        by_task = found.scores(row.contender)
        for tasks in parts.values():
            scores = by_task[[task.task in tasks for task in found.tasks]]
            low, high = aggregate.stratified_interval(scores, aggregate.mean, tasks=True) or (math.nan, math.nan)
            worst = max(row.by_task[task] for task in tasks)
            line += [regret_tables.percent(float(aggregate.mean(scores))), f"{100 * low:.0f} to {100 * high:.0f} %"]
            line += [regret_tables.percent(worst)]
        lines.append(line)
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def main(folder: Path) -> None:
    regret_report.write(folder)
    found = regret.load(folder)
    rows = regret_tables.rows_of(found)
    shutil.copy(folder / "regret.png", DOCS / "regret.png")
    shutil.copy(folder / "regret-runs.csv", DOCS / "regret-runs.csv")
    tables = regret_tables.markdown(found, rows).partition("\n\n")[2]
    picture = "![Regret of defaults over the tasks of the public suite](regret.png)"
    summary, by_task = tables.split("\n\n")
    results = "\n\n".join([picture, summary, apart(found, rows).rstrip(), by_task.rstrip()])
    page = filled(PAGE.read_text(encoding="utf-8"), f"\n{results}\n\n")
    for name, tasks in {"PUBLIC": SUITES["public"], "DEMO": SUITES["demo"], "LOOKED": LOOKED_AT}.items():
        page = re.sub(rf"SUITE_{name}\b", ", ".join(f"`{task}`" for task in tasks), page)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""The results of docs/regret.md from the folder of `untuned regret ... --suite public --out FOLDER`.

    python scripts/regret_page.py FOLDER

Writes docs/regret.png, docs/regret-runs.csv and what stands between the marks of docs/regret.md.
"""

import re
import shutil
import sys
from pathlib import Path

from untuned.study import regret, regret_report, regret_tables
from untuned.study.suites import LOOKED_AT, SUITES

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "regret.md"
MARKS = "<!-- results -->\n", "<!-- end of results -->\n"


def filled(page: str, results: str) -> str:
    before, after = page.partition(MARKS[0])[0], page.partition(MARKS[1])[2]
    return before + MARKS[0] + results + MARKS[1] + after


def main(folder: Path) -> None:
    regret_report.write(folder)
    found = regret.load(folder)
    rows = regret_tables.rows_of(found)
    shutil.copy(folder / "regret.png", DOCS / "regret.png")
    shutil.copy(folder / "regret-runs.csv", DOCS / "regret-runs.csv")
    tables = regret_tables.markdown(found, rows).partition("\n\n")[2]
    picture = "![Regret of defaults over the tasks of the public suite](regret.png)"
    page = filled(PAGE.read_text(encoding="utf-8"), f"\n{picture}\n\n{tables}\n")
    for name, tasks in {"PUBLIC": SUITES["public"], "DEMO": SUITES["demo"], "LOOKED": LOOKED_AT}.items():
        page = re.sub(rf"SUITE_{name}\b", ", ".join(f"`{task}`" for task in tasks), page)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""docs/papers.md, the pages in docs/papers and their table in docs/evidence.md, from what `untuned study` found.

    python scripts/paper_pages.py [FOLDER] [--check]

FOLDER/NAME is the folder of `untuned study NAME`; its rows and its picture go to docs/papers. Of studies without such a
folder, and without FOLDER of all, the pages are written again from the rows that are there.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from untuned.study.papers import SUMMARIES, load, pages, rows
from untuned.study.papers.pages import HEADER

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
START, END = "<!-- studies of papers, by scripts/paper_pages.py -->", "<!-- end of the studies of papers -->"
HEAD = """# Studies of papers

<!-- Written by scripts/paper_pages.py: change the studies in src/untuned/study/papers instead. -->

Seven works of the field, each as one command that runs in minutes on two cores, resumes where it stopped, and
writes a page with the figure that the paper argues with and a verdict on each of its claims. `make studies` runs all.
"""


def take(folder: Path) -> None:
    """Copy rows and pictures of the studies that have a folder there."""
    (DOCS / "papers").mkdir(exist_ok=True)
    for name in SUMMARIES:
        found = sorted((folder / name).glob(f"{name}-*.csv"))
        if not found:
            continue
        for old in (DOCS / "papers").glob(f"{name}-*.csv"):
            old.unlink()
        for path in (*found, folder / name / f"{name}.png"):
            shutil.copy(path, DOCS / "papers")


def written() -> dict[Path, str]:
    """The text of every page."""
    index, cells, texts = list[list[str]](), list[tuple[str, ...]](), dict[Path, str]()
    for name in SUMMARIES:
        paper = load(name)
        found = rows.read_csv(paper, DOCS / "papers")
        claims = paper.claims(found)
        texts[DOCS / "papers" / f"{name}.md"] = pages.markdown(paper, found, claims)
        link = f"[{paper.title}](papers/{name}.md)"
        index.append([link, paper.source, pages.headline(claims), f"`untuned study {name}`"])
        cells += [(link, *row) for row in pages.claim_cells(claims)]
    texts[DOCS / "papers.md"] = "\n".join([HEAD, *pages.table(("study", "source", "claims", "command"), index), ""])
    table = pages.table(("paper", *HEADER), cells)
    evidence = (DOCS / "evidence.md").read_text(encoding="utf-8")
    before, _, rest = evidence.partition(START)
    texts[DOCS / "evidence.md"] = before + "\n".join([START, "", *table, "", END]) + rest.partition(END)[2]
    return texts


def main(arguments: Sequence[str]) -> int:
    """Write the pages, or with --check only say whether they are up to date: 0 if so."""
    folders = [Path(one) for one in arguments if one != "--check"]
    for folder in folders:
        take(folder)
    old = [path for path, text in written().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in old:
        print("out of date" if "--check" in arguments else "written", path.relative_to(ROOT))
        if "--check" not in arguments:
            path.write_text(written()[path], encoding="utf-8")
    return int("--check" in arguments and bool(old))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

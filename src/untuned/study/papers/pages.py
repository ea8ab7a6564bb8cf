"""The page of a study, in Markdown and HTML, with its figure: all of it follows from rows alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape

from untuned.study import charts
from untuned.study.config import StudyError
from untuned.study.papers.frame import Claim, PaperStudy, Row, Rows
from untuned.study.papers.rows import JOBS, numbers, read_csv

HEADER = ("claim", "published", "here", "verdict")


def write(study: PaperStudy, folder: Path) -> tuple[Path, Sequence[Claim]]:
    """Write NAME.md, NAME.html and NAME.png from the CSV files of the folder. -> the HTML page, and what it claims."""
    rows = read_csv(study, folder)
    claims, panels = study.claims(rows), study.panels(rows)
    page = folder / f"{study.name}.html"
    try:
        charts.png(folder / f"{study.name}.png", panels, {}, "")
        (folder / f"{study.name}.md").write_text(markdown(study, rows, claims), encoding="utf-8")
        drawn = [(title, Markup(charts.svg(draw, title, height=3.7))) for title, draw in panels]
        environment = Environment(loader=FileSystemLoader(Path(__file__).parents[1] / "templates"), autoescape=True)
        text = environment.get_template("paper.html.j2").render(
            study=study,
            headline=headline(claims),
            about=[_html(paragraph) for paragraph in _paragraphs(study)],
            claims=claims,
            tables=study.tables(rows),
            panels=drawn,
            foot=_foot(rows),
            methods=(),
        )
        page.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StudyError(f"cannot write a page to {folder} ({error}); the rows are kept") from error
    return page, claims


def headline(claims: Sequence[Claim]) -> str:
    """How many claims of the paper hold here, and how many of those that the study adds, in words."""
    said = []
    for ours, of in ((False, "of the paper"), (True, "that this study adds")):
        count = Counter(claim.verdict for claim in claims if claim.ours == ours)
        parts = [f"{count[verdict]} {words[count[verdict] > 1]}" for verdict, words in _WORDS.items() if count[verdict]]
        if n := sum(count.values()):
            said.append(f"Of {n} claim{'s' if n > 1 else ''} {of} {', '.join(parts)}.")
    return " ".join(said)


_WORDS = {  # of one claim and of several
    "holds here": ("holds here", "hold here"),
    "does not hold here": ("does not hold here", "do not hold here"),
    "cannot be told at this scale": ("cannot be told at this scale",) * 2,
}


def markdown(study: PaperStudy, rows: Rows, claims: Sequence[Claim]) -> str:
    """The page as it stands in the documentation."""
    lines = [f"# {study.title}", "", f"**{headline(claims)}**", ""]
    lines += [f"![{'; '.join(title for title, _ in study.panels(rows))}]({study.name}.png)", ""]
    lines += [*table(HEADER, claim_cells(claims)), "", f"Source: {study.source}.", ""]
    lines += [line for paragraph in _paragraphs(study) for line in (paragraph, "")]
    for one in study.tables(rows):
        lines += [f"## {one.title}", "", *table(one.columns, one.rows), ""]
        lines += [one.note, ""] if one.note else []
    lines += ["## How it was run", "", f"`untuned study {study.name}`. {_foot(rows)}", ""]
    return "\n".join(lines)


def claim_cells(claims: Sequence[Claim]) -> list[tuple[str, ...]]:
    """Rows of a table under `HEADER`."""
    return [(claim.says, claim.published, claim.here, f"**{claim.verdict}**") for claim in claims]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    cells = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in cells]


def _paragraphs(study: PaperStudy) -> list[str]:
    return [" ".join(text.split()) for text in study.about.strip().split("\n\n")]


def _html(paragraph: str) -> Markup:
    """Text with `code` in it."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(paragraph))))


def _foot(rows: Mapping[str, Sequence[Row]]) -> str:
    """What the jobs took, where and when."""
    jobs = rows[JOBS]
    minutes = sum(numbers(jobs, "seconds")) / 60
    told = {column: sorted({str(job[column]) for job in jobs}) for column in ("date", "machine", "torch")}
    return (
        f"{len(jobs)} jobs, {minutes:.1f} minutes of one core in all, on {' and '.join(told['date'])}, "
        f"{' and '.join(told['machine'])}, torch {' and '.join(told['torch'])}."
    )

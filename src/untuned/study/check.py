"""The command `untuned check`."""

import ast
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from untuned.testing.conformance import Result, Target

_MARKS = {
    "passed": "[green]✓[/]",
    "failed": "[red]✗[/]",
    "expected failure": "[yellow]✗[/]",
    "does not apply": "[dim]–[/]",
}


def check(
    target: Annotated[
        str, typer.Argument(help="A name from `untuned list`, or module:factory, as in torch.optim:AdamW.")
    ],
    option: Annotated[
        list[str] | None, typer.Option(help="An option of the optimizer, as in lr=1.0; may be repeated.")
    ] = None,
    declare: Annotated[
        list[str] | None,
        typer.Option(help="A capability that is not to be detected, as in needs_loss=yes; may be repeated."),
    ] = None,
    only: Annotated[str, typer.Option(help="Names of checks, as in resume,two_groups; by default all.")] = "",
    expected: Annotated[
        list[str] | None,
        typer.Option(help="A check that is known to fail and why, as in resume='see #7'; may be repeated."),
    ] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="File for all results.")] = None,
    badge: Annotated[Path | None, typer.Option(help="File for an SVG image with the number of passed checks.")] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds a check may take before it is stopped.")] = 60.0,
) -> None:
    """Check any torch optimizer: does it resume, take parameter groups, warm-up, sharding? Exit status 1 if not."""
    from rich.console import Console

    from untuned.study.config import StudyError
    from untuned.testing import conformance
    from untuned.testing.conformance import report

    chosen = [name for name in only.split(",") if name] or list(conformance.CHECKS)
    reasons = dict(_pair(text, "--expected") for text in expected or [])
    for name in (*chosen, *reasons):
        if name not in conformance.CHECKS:
            raise StudyError(f"no check is called {name!r}; there are {', '.join(conformance.CHECKS)}")
    for file in (json_, badge):
        if file and not file.absolute().parent.is_dir():
            raise StudyError(f"{file}: there is no folder {file.parent}")
    options = {name: _literal(value) for name, value in (_pair(text, "--option") for text in option or [])}
    declared = {name: _truth(name, value) for name, value in (_pair(text, "--declare") for text in declare or [])}
    console = Console()
    with conformance.Pool(timeout=timeout) as pool, console.status(f"checking {target}"):
        try:
            found = pool.detect(conformance.Target(target, options, declared))
        except conformance.TargetError as error:
            raise StudyError(str(error)) from None
        results = [r.judged(reasons) for r in pool.run(found, chosen)]
    results.sort(key=lambda r: list(conformance.CHECKS).index(r.check))
    _print(console, found, results)
    document = report.document(found, results)
    print(", ".join(f"{count} {status}" for status, count in document["counts"].items()))
    if json_:
        json_.write_text(json.dumps(document, indent=1) + "\n")
    if badge:
        badge.write_text(report.badge(results))
    if "failed" in document["counts"]:
        raise typer.Exit(1)


def _pair(text: str, option: str) -> tuple[str, str]:
    from untuned.study.config import StudyError

    name, sign, value = text.partition("=")
    if not (name and sign):
        raise StudyError(f"{option} {text!r}: write name=value")
    return name, value


def _literal(text: str) -> Any:
    """A Python literal; what is none is text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _truth(name: str, text: str) -> bool:
    from untuned.study.config import StudyError

    if text not in ("yes", "no"):
        raise StudyError(f"--declare {name}={text}: write {name}=yes or {name}=no")
    return text == "yes"


def _print(console: Any, target: "Target", results: "Sequence[Result]") -> None:
    from rich.markup import escape
    from rich.table import Table

    from untuned.testing.conformance import CHECKS

    able = [name for name, yes in target.declared.items() if yes]
    table = Table(title=f"{target.name} ({', '.join(able) or 'a plain step'})", box=None, title_justify="left")
    for column in ("", "check", "what holds, or what a user would suffer"):
        table.add_column(column)
    for result in results:
        title = CHECKS[result.check].title.rstrip(".")
        said = title if result.status == "passed" and not result.remark else f"{title}: {result.remark}"
        said = result.remark if result.status in ("failed", "expected failure") else said
        table.add_row(_MARKS[result.status], result.check, escape(said))
    console.print(table)

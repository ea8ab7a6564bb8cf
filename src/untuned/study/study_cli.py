"""`untuned study`: its commands. They import what they need when they run, as those in `cli.py` do."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from untuned.study.papers import SUMMARIES

if TYPE_CHECKING:
    from untuned.study.papers.rows import Record

study = typer.Typer(help="Studies of single findings, with a page and a picture.", no_args_is_help=True)


def _paper(name: str, summary: str) -> None:
    """Add the command of one study in `untuned.study.papers`."""

    @study.command(name, help=f"{summary} Goes on where it was stopped; at most 5 minutes on two cores.")
    def command(
        out: Annotated[Path | None, typer.Option(help="Folder of the results; studies/NAME if not given.")] = None,
        seeds: Annotated[
            int | None, typer.Option(min=2, help="Number of seeds; by default those that the committed page has.")
        ] = None,
        workers: Annotated[
            int | None, typer.Option(min=1, help="Worker processes of one thread each; by default one per core.")
        ] = None,
    ) -> None:
        from untuned.study.papers import load, pages, rows, run

        paper, folder = load(name), out or Path("studies") / name
        count = workers or os.cpu_count() or 1
        try:
            records = run.run(paper, folder, seeds or paper.seeds, count, _said)
        except KeyboardInterrupt:
            print("stopped; the same command goes on from here")
            raise typer.Exit(130) from None
        rows.write_csv(paper, folder, records)
        page, claims = pages.write(paper, folder)
        for claim in claims:
            print(f"- {claim.says}\n  published: {claim.published}\n  here: {claim.here}\n  {claim.verdict}")
        print(pages.headline(claims))
        print(f"report: {page}")


def _said(record: "Record", done: int, of: int) -> None:
    arguments = ", ".join(f"{name} {value}" for name, value in record.arguments.items())
    print(f"[{done}/{of}] {record.function}: {arguments} ({record.seconds:.1f} s)", flush=True)


for _name, _summary in SUMMARIES.items():
    _paper(_name, _summary)


@study.command("refined")
def study_refined(
    methods: Annotated[str, typer.Option(help="sgd, adam or both.")] = "sgd",
    epochs: Annotated[int | None, typer.Option(min=1, help="Of a run; by default what suits the task.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 3,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("studies/refined"),
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes of one thread each; by default one per core.")
    ] = None,
) -> None:
    """Refined schedules against others, on clean labels and with 20 % random ones.

    Takes about half an hour on two cores, and goes on where it was stopped.
    """
    from untuned.study import refined, refined_report
    from untuned.study.papers.rows import check_folder

    check_folder(out)
    try:
        found = refined.run(out, methods.split(","), epochs, seeds, workers or os.cpu_count() or 1)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here")
        raise typer.Exit(130) from None
    print(f"report: {refined_report.write(out, found, seeds)}")

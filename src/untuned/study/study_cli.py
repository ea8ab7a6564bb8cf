"""`untuned study`: its commands. They import what they need when they run, as those in `cli.py` do."""

import os
from pathlib import Path
from typing import Annotated

import typer

study = typer.Typer(help="Studies of single findings, with a page and a picture.", no_args_is_help=True)


@study.command("saddle")
def study_saddle(
    out: Annotated[Path, typer.Option(help="Folder of the results; an earlier study in it is written over.")],
    seeds: Annotated[int, typer.Option(min=2, help="Number of seeds; they run side by side.")] = 6,
) -> None:
    """How fast momentum leaves saddles, and when it is too much: arXiv 2106.02985. 20 seconds on one core.

    Writes saddle.csv and paths.csv as it goes, then saddle.md and saddle.png.
    """
    from untuned.study import saddle, saddle_report

    _check_folder(out)
    outcomes, points = [], []
    for found, path in saddle.study(out, seeds):
        outcomes, points = outcomes + found, points + path
        mean = saddle_report.scaled_means(found)[found[0].beta]
        print(f"{found[0].problem} beta {found[0].beta:g}: {mean:.0f} steps / (1 - beta)", flush=True)
    print(f"report: {saddle_report.write(out, outcomes, points)}")


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

    _check_folder(out)
    try:
        found = refined.run(out, methods.split(","), epochs, seeds, workers or os.cpu_count() or 1)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here")
        raise typer.Exit(130) from None
    print(f"report: {refined_report.write(out, found, seeds)}")


def _check_folder(out: Path) -> None:
    """StudyError if it is no folder and cannot become one."""
    from untuned.study.config import StudyError

    there = next(place for place in (out.absolute(), *out.absolute().parents) if place.exists())
    if not there.is_dir():
        raise StudyError(f"{out if out.exists() else there} is no folder; choose another --out")

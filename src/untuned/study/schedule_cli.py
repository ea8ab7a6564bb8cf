"""`untuned schedule`: its commands. They import what they need when they run, as those in `cli.py` do."""

from pathlib import Path
from typing import Annotated

import typer

schedule = typer.Typer(help="Schedules from logged gradient norms: arXiv 2310.07831.", no_args_is_help=True)

Log = Annotated[Path, typer.Argument(help="Folder of a NormRecorder, or a .csv or .parquet file with columns l1, l2.")]


@schedule.command()
def refine(
    log: Log,
    power: Annotated[
        float, typer.Option(help="2 for SGD and its relatives (L2 norms), 1 for Adam and its relatives (L1 norms).")
    ] = 2.0,
    tau: Annotated[float, typer.Option(help="Part of the run over which norms are smoothed.")] = 0.1,
    steps: Annotated[int | None, typer.Option(help="Steps of the new run; by default as many as were logged.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="File of the schedule, .csv or .parquet; by default LOG-schedule.csv.")
    ] = None,
) -> None:
    """Write the schedule that a run with these norms should have had, and a picture of it."""
    from untuned.study.schedule import write_refined

    made = write_refined(log, power, tau, steps, out)
    print(f"schedule: {made.schedule}, {made.steps} steps, peak after {100 * made.peak:.0f} % of the run")
    print(f"picture: {made.picture}")
    if made.warning:
        print(f"warning: {made.warning}")


@schedule.command()
def bound(
    log: Log, distance: Annotated[float, typer.Option(help="From the first weights to a minimiser.")] = 1.0
) -> None:
    """Rank schedules by what theory guarantees for SGD's last step with these norms, each at its best scale."""
    from rich.console import Console

    from untuned.study.schedule import ranked, table

    console = Console()
    console.width = max(console.width, 100)  # a row in two lines cannot be read down its columns
    console.print(table(*ranked(log, distance), log, distance))

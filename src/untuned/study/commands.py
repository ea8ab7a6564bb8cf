"""What commands that run a study share: options, the run itself, and how it ends."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from untuned.study.config import Study
    from untuned.study.execute import Rates
    from untuned.study.store import Store


class Where(StrEnum):
    """Where the runs of a study are made."""

    processes = "processes"
    ray = "ray"


Out = Annotated[Path | None, typer.Option(help="Folder of the results; by default one named after the study.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Worker processes of one thread each; by default one per core.")
]
RetryCrashed = Annotated[bool, typer.Option("--retry-crashed", help="Run crashed runs again.")]
On = Annotated[Where, typer.Option(help="processes of this machine, or a cluster: ray (see docs/scale.md).")]


def run_study(
    study: "Study",
    folder: Path,
    workers: int | None,
    retry_crashed: bool,
    *,
    norms: bool = False,
    more: "Callable[[Store], Rates] | None" = None,
    on: str = "processes",
) -> "Store":
    """Make the runs of a study in a folder, new or there; Ctrl-C ends the command with exit status 130."""
    from untuned.study.execute import execute
    from untuned.study.store import Store

    store = Store.create(folder, study, mended=retry_crashed)
    print(f"{len(store.study.runs())} runs in {folder}")
    try:
        execute(store, workers, retry_crashed=retry_crashed, norms=norms, more=more, on=on)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here")
        raise typer.Exit(130) from None
    return store


def exit_if_crashed(store: "Store") -> None:
    """Say what crashed and end with exit status 1, if anything did."""
    from untuned.study.results import crashes

    crashed = list(store.statuses().values()).count("crashed")
    if crashed:
        print(*crashes(store.runs().to_pylist()), sep="\n")
        print(f"crashed runs: {crashed}; ledger.sqlite holds the tracebacks, --retry-crashed runs them again")
        raise typer.Exit(1)

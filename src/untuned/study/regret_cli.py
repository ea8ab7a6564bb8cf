"""The command `untuned regret`."""

from pathlib import Path
from typing import Annotated

import typer

from untuned.study.commands import On, Out, RetryCrashed, Where, Workers, exit_if_crashed, run_study


def regret(
    method: Annotated[
        list[str] | None,
        typer.Argument(help="Methods as in `untuned compare`, each at its default lr unless one is given; range-test."),
    ] = None,
    suite: Annotated[str, typer.Option(help="Tasks: public, shipped (no download) or demo.")] = "shipped",
    task: Annotated[
        list[str] | None, typer.Option(help="A task in place of the suite, as my_module:MyTask; may be repeated.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 2,
    fresh_baseline: Annotated[
        bool, typer.Option("--fresh-baseline", help="Run tuned AdamW here, also where its runs come with the package.")
    ] = False,
    out: Out = None,
    workers: Workers = None,
    on: On = Where.processes,
    retry_crashed: RetryCrashed = False,
) -> None:
    """What a default loses to a tuned AdamW: the share of the step budget, over a suite of tasks.

    Prints a table and writes a report. The same folder keeps all methods that were ever asked for; a further one runs
    only what is new.
    """
    from rich.console import Console

    from untuned.study import regret as core
    from untuned.study import regret_report, regret_tables
    from untuned.study.config import StudyError, parse_methods
    from untuned.study.store import Store
    from untuned.study.suites import SUITES

    if not task and suite not in SUITES:
        raise StudyError(f"no suite is called {suite!r}; there are {', '.join(SUITES)}")
    chosen = dict.fromkeys(task) if task else SUITES[suite]
    study, contenders = core.plan(chosen, parse_methods(",".join(method or core.DEFAULTS)), seeds, fresh=fresh_baseline)
    folder = out or Path("studies") / f"regret-{'own' if task else suite}"
    Store.create(folder, study, mended=retry_crashed)
    core.remember(folder, contenders)
    store = run_study(study, folder, workers, retry_crashed, more=core.untried, on=on)
    page = regret_report.write(folder)
    Console(emoji=False).print(regret_tables.table(core.load(folder)))
    print(f"report: {page}")
    exit_if_crashed(store)

"""The command `untuned compare`."""

from pathlib import Path
from typing import Annotated

import typer

from untuned.study.commands import On, Out, RetryCrashed, Where, Workers, exit_if_crashed, run_study


def compare(
    task: Annotated[
        list[str] | None,
        typer.Argument(help="Names from `untuned list`, my_module:MyTask, or a file study.toml. By default two tasks."),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(help="Methods with options, compositions, other packages' optimizers; by default six methods."),
    ] = None,
    lr: Annotated[
        str | None,
        typer.Option(
            help="Learning rates: 1e-3,1e-2 or LOW:HIGH:COUNT, spaced evenly in log; `default` is each method's own."
            " By default default,1e-4:1e2:7."
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds, by default 3.")] = None,
    budget: Annotated[
        float | None, typer.Option(help="Epochs of a run; by default the task's own, 10 if none is named.")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help="Of methods that name none: linear, cosine, wsd(decay=0.1), refined('file'), ...")
    ] = None,
    warmup: Annotated[float | None, typer.Option(help="Part of a run for linear warm-up, as 0.05.")] = None,
    tune: Annotated[
        bool | None, typer.Option("--tune", help="Add learning rates until each neighbour of a near-best one has run.")
    ] = None,
    stop_hopeless: Annotated[
        bool | None,
        typer.Option("--stop-hopeless", help="Stop runs worse than the untrained model after a quarter of the steps."),
    ] = None,
    out: Out = None,
    workers: Workers = None,
    on: On = Where.processes,
    retry_crashed: RetryCrashed = False,
    record_norms: Annotated[
        bool, typer.Option("--record-norms", help="Log each step's gradient norms, for `untuned schedule`.")
    ] = False,
) -> None:
    """Run methods x learning rates x seeds on tasks and write a report.

    The same command again goes on where an earlier one was stopped, and one with more tasks, methods, learning rates or
    seeds and the same --out runs only what is new. Methods: adam(betas=(0.9, 0.95)), prodigy(schedule=linear),
    compose(adam, momo, schedule_free), torch.optim:NAdam, adamw(lr=range_test(steps=60)), joined by commas. An lr
    option of a method, as in prodigy(lr=1.0) or adam(lr=(1e-4, 1e-3)), replaces --lr for it.
    """
    from rich.console import Console

    from untuned.study import execute, report, report_tables, results, verdicts
    from untuned.study.request import Request

    request = Request.of(
        task or [],
        methods=methods,
        lr=lr,
        seeds=seeds,
        budget=budget,
        schedule=schedule,
        warmup=warmup,
        tune=tune,
        stop_hopeless=stop_hopeless,
    )
    study = request.resolve()
    name = "+".join(request.tasks).replace(":", ".").replace("/", "-in-")[:60]
    more = execute.untried if request.tune else None
    folder = out or Path("studies") / f"{name}-{study.id[:8]}"
    store = run_study(study, folder, workers, retry_crashed, norms=record_norms, more=more, on=on)
    page = report.write(store.folder)
    found = results.load(store.folder)
    console = Console(emoji=False)
    for table in report_tables.summary_tables(found, console.width):
        console.print(table)
    for decision in verdicts.decide(found):
        print(f"{decision.sentence}. Rule: {decision.rule}")
    if study.claim:
        print(f"claim: {study.claim.text} ({study.claim.source}): {verdicts.decide_claim(found)}")
    print(f"report: {page}")
    if record_norms:
        print(f"norms: {store.folder / 'norms'}, a folder for each run that was made now")
    exit_if_crashed(store)

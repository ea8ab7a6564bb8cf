"""The command line. A command imports what it needs when it runs, so that help is quick."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated

try:
    import typer
    from rich.console import Console
except ModuleNotFoundError as missing:
    raise SystemExit(f'untuned: {missing.name} is missing; run: pip install "untuned[study]"') from None

from untuned.study.check import check
from untuned.study.commands import Out, RetryCrashed, Workers, exit_if_crashed, run_study
from untuned.study.compare_cli import compare
from untuned.study.regret_cli import regret
from untuned.study.schedule_cli import schedule
from untuned.study.study_cli import study
from untuned.study.trajectory_cli import trajectory
from untuned.study.watch import watch

app = typer.Typer(
    help="Optimizers with momentum and without a learning rate to tune, compared on real tasks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
data = typer.Typer(help="List and fetch the data sets of the tasks.", no_args_is_help=True)
app.add_typer(data, name="data")
replay = typer.Typer(
    help="Run the study of a published table again and print ours beside the published numbers.", no_args_is_help=True
)
app.add_typer(replay, name="replay")
app.add_typer(study, name="study")
app.add_typer(schedule, name="schedule")


def _version(wanted: bool) -> None:
    if wanted:
        import untuned

        print("untuned", untuned.__version__)
        raise typer.Exit


@app.callback()
def _app(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@replay.command("momo-mnist")
def replay_momo_mnist(out: Out = None, workers: Workers = None, retry_crashed: RetryCrashed = False) -> None:
    """SGD, MoMo, Adam and MoMo-Adam on MNIST: arXiv 2305.07583, 75 runs."""
    from untuned.study import replay

    store = run_study(replay.momo_mnist(), out or Path("studies") / "momo-mnist", workers, retry_crashed)
    print(replay.write_momo_mnist(store))
    exit_if_crashed(store)


@replay.command("logreg12")
def replay_logreg12(
    sets: Annotated[
        str, typer.Option(help="Those of the twelve sets that are here.")
    ] = "dna,glass,iris,letter,pendigits,vehicle,vowel,wine",
    methods: Annotated[
        str, typer.Option(help="As in `untuned compare`, each at its default lr if none is given; the best lr counts.")
    ] = "adam(lr=(1e-3, 1e-2, 1e-1, 1.0)),dadapt_adam,prodigy,momo_adam(lr=1.0),mechanic_adamw",
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds; the paper has 10.")] = 1,
    out: Out = None,
    workers: Workers = None,
    retry_crashed: RetryCrashed = False,
) -> None:
    """Softmax regression on LIBSVM sets, training accuracy: D-Adaptation and tuned Adam, arXiv 2301.07733."""
    from untuned.study import replay
    from untuned.study.config import parse_methods

    study = replay.logreg12([word for word in sets.split(",") if word], parse_methods(methods), seeds)
    store = run_study(study, out or Path("studies") / f"logreg12-{study.id[:8]}", workers, retry_crashed)
    print(replay.write_logreg12(store))
    exit_if_crashed(store)


@app.command()
def bench(
    method: Annotated[
        list[str] | None,
        typer.Argument(help="Names from `untuned list`, with options as in sgd(momentum=0.9). By default all."),
    ] = None,
    model: Annotated[str, typer.Option(help="Parameter lists.")] = "resnet50,gpt2,vit-b,lora,tiny",
    dtype: Annotated[
        str, typer.Option(help="Of parameters and gradients; bfloat16:bfloat16 sets that of slots too.")
    ] = "float32,bfloat16",
    rounds: Annotated[int, typer.Option(min=3, help="Timed steps of every contender.")] = 9,
    against: Annotated[
        str, typer.Option(help="Installed packages whose optimizers run too: torch,momo-opt,prodigyopt,...")
    ] = "",
    threads: Annotated[int, typer.Option(min=1, help="With more than one, the wall clock is read.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    guard: Annotated[bool, typer.Option(help="Skip steps with non-finite gradients, as is the default.")] = True,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; by default bench-DATE-TIME.")] = None,
) -> None:
    """Time the steps of methods on the parameter lists of real models, relative to torch's fused AdamW.

    Writes bench.csv as it goes, then bench.md and bench.png.
    """
    from datetime import datetime

    from untuned.study import bench, bench_report
    from untuned.study.config import StudyError

    split = [[word for word in text.split(",") if word] for text in (model, dtype, against)]
    jobs = bench.plan(method or [], *split, guard=guard, rounds=rounds, threads=threads, device=device)
    folder = out or Path(f"bench-{datetime.now():%Y-%m-%d-%H%M%S}")
    if (folder / "bench.csv").exists():
        raise StudyError(f"{folder} holds a benchmark; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for row in bench.run(jobs, folder / "bench.csv", bench.in_process):
        rows.append(row)
        print(row)
    page = bench_report.write(folder, jobs, rows)
    console = Console()
    console.width = max(console.width, 160)  # a row in two lines cannot be read down its columns
    for table in bench_report.tables(rows):
        console.print(table)
    print(f"report: {page}")
    if any(row.error for row in rows):
        raise typer.Exit(1)


for command in (compare, regret, watch, check, trajectory):
    app.command()(command)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Folder of a study, finished or not.")]) -> None:
    """Write the report of a study again."""
    from untuned.study import report
    from untuned.study.store import Store

    print(f"report: {report.write(Store(folder).folder)}")


@app.command("list")
def list_methods_and_tasks() -> None:
    """List the methods, with the default lr, what goes around them, and the tasks."""
    import inspect
    import textwrap

    import untuned
    from untuned.study import tasks

    methods = [untuned.get(name) for name in untuned.list()]
    _print_columns([(m.name, m.summary, f"lr {m.lr:g}", m.paper) for m in methods])
    print("\nAround any of them, in Python:")
    rooms = (untuned.gradients, untuned.around, untuned.weight_decay, untuned.schedules, untuned.wrappers)
    classes = [(room.__name__, name, getattr(room, name)) for room in rooms for name in _public(room)]
    about = [
        textwrap.shorten((inspect.getdoc(it) or "").split("\n\n")[0], 90, placeholder=" ...") for *_, it in classes
    ]
    _print_columns([(f"  {room}.{name}", line) for (room, name, _), line in zip(classes, about, strict=True)])
    print("\nTasks:", *tasks.names(), sep="\n  ")


@app.command()
def show(
    method: Annotated[str, typer.Argument(help="A name from `untuned list`.")],
    program: Annotated[bool, typer.Option("--program", help="Show what kernels do to every element instead.")] = False,
) -> None:
    """Show a method and its parts: paper, equations, cost, options with defaults."""
    import inspect

    import torch

    import untuned
    from untuned.optimizer.options import EngineOptions
    from untuned.study.methods import known_method
    from untuned.study.programs import describe

    found = untuned.get(known_method(method))
    given = {"samples": 1} if found.records_samples else {}
    optimizer = untuned.create([torch.nn.Parameter(torch.ones(1))], found.name, **given)
    if program:
        print(describe(optimizer))
        return
    print(f"{found.name}: {found.summary}, {found.paper}\n\n{inspect.getdoc(found.optimizer)}\n\nOptions\n")
    for option in list(inspect.signature(found.optimizer).parameters.values())[1:]:
        if option.kind is not option.VAR_KEYWORD:
            print(f"    {option.name}" + ("" if option.default is option.empty else f" = {option.default!r}"))
    print(f"\n{inspect.getdoc(EngineOptions)}")
    for role, part in optimizer.parts.items():
        print(f"\n{role.replace('_', ' ').capitalize()}: {type(part).__name__}\n\n{inspect.getdoc(part)}")


@data.command("list")
def data_list() -> None:
    """List the data sets: those inside the package, then those to fetch."""
    from untuned.study import data

    classes = {e.name: f"{e.classes:,} classes" if e.classes else "" for e in data.available()}
    rows = [(e.name, f"{e.n:,} x {e.d:,}", classes[e.name], e.status, e.licence) for e in data.available()]
    _print_columns(rows)


@data.command("fetch")
def data_fetch(name: Annotated[str, typer.Argument(help="A name from `untuned data list`.")]) -> None:
    """Download a data set, check it and keep it in the cache folder."""
    from untuned.study import data
    from untuned.study.config import StudyError

    try:
        path = data.fetch(name)
    except (ValueError, data.FetchError) as error:
        raise StudyError(str(error)) from error
    print(f"{name}: {path}")


def _public(room: ModuleType) -> list[str]:
    """The names of the classes and functions that a package offers; those of a module that it defines."""
    offered = getattr(
        room, "__all__", [n for n, it in vars(room).items() if getattr(it, "__module__", "") == room.__name__]
    )
    return [name for name in offered if callable(getattr(room, name))]


def _print_columns(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def main() -> None:
    """Entry point. Exit status 0: all well, 1: a run crashed, 2: the request was refused, 130: stopped by Ctrl-C."""
    try:
        app()
    except ModuleNotFoundError as missing:
        sys.exit(f'untuned: {missing.name} is missing; run: pip install "untuned[study]"')
    except Exception as error:
        from untuned.study.config import StudyError

        if not isinstance(error, StudyError):
            raise
        print(f"untuned: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

"""Run a study in a folder: its runs, with learning rates added until they are tuned if asked for, and its view."""

import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
from rich.console import Console

from untuned.study import results
from untuned.study.config import StudyError
from untuned.study.live import Live
from untuned.study.results import TaskResult
from untuned.study.stats import Floats, seed_mean
from untuned.study.store import Store
from untuned.study.sweep import sweep
from untuned.study.tuning import missing

LIMIT = 1e-7, 1e3  # of learning rates that are added: beyond it a step that caps itself stays as good for ever
Rates = Mapping[tuple[str, str], Sequence[float]]  # by (label of a method, name of a task)


def execute(
    store: Store,
    workers: int | None,
    *,
    retry_crashed: bool = False,
    norms: bool = False,
    more: Callable[[Store], Rates] | None = None,
    on: str = "processes",
) -> None:
    """Make all runs that are pending, then those that `more` asks for, until it asks for none.

    The command is kept in the file command.txt of the folder, with its time. Raises StudyError.
    """
    line = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC: {shlex.join(['untuned', *sys.argv[1:]])}\n"
    try:
        with (store.folder / "command.txt").open("a", encoding="utf-8") as file:
            file.write(line)
    except OSError as error:
        raise StudyError(f"cannot write to {store.folder} ({error}); its runs are kept") from error
    while True:
        with Live(store, workers or os.cpu_count() or 1, retry_crashed, Console(emoji=False)) as view:
            sweep(store, workers, view, retry_crashed, norms, on)
        added = {} if more is None else more(store)
        if not added:
            return
        store.grow(store.study.with_rates(added))
        print(f"{sum(map(len, added.values()))} learning rates more: the best so far has neighbours that have not run")


def untried(store: Store) -> dict[tuple[str, str], list[float]]:
    """Neighbours of near-best learning rates that have not run, by method and task: see `tuning.missing`.

    Methods whose lr a range test finds are left as they are, and those of which no run has finished.
    """
    found = {}
    probed = {method.label for method in store.study.methods if method.probe}
    for task in results.load(store.folder).tasks:
        for outcome in task.outcomes:
            if outcome.method in probed or np.isnan(outcome.finals).all():
                continue
            means, metric = _learned(task, outcome.finals), task.metric
            if rates := missing(outcome.lrs, means, metric.tolerance, limit=LIMIT, maximize=metric.maximize):
                found[outcome.method, task.task.name] = rates
    return found


def _learned(task: TaskResult, finals: Floats) -> Floats:
    """Means over seeds, NaN where no more was learned than the tolerance."""
    means = seed_mean(finals)
    gain = (means - task.metric.chance) * (1 if task.metric.maximize else -1)
    means[~(gain > task.metric.tolerance)] = np.nan
    return means

"""What the terminal shows while a study runs."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from datetime import timedelta
from statistics import fmean
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from untuned.study.config import Run
from untuned.study.results import last_line
from untuned.study.runner import Result
from untuned.study.store import Store
from untuned.study.sweep import pending


class Live:
    """A bar with counts on a terminal, a line per run elsewhere. A context manager, and a `View` for `sweep`.

    What a run warned of is a line with the run, above the bar; what has been said once in a study is not said again.
    """

    def __init__(self, store: Store, workers: int, retry_crashed: bool, console: Console) -> None:
        todo = pending(store, retry_crashed)
        self.metrics = {task.name: task.metric for task in store.study.tasks}
        self.total = len(store.study.runs())
        unfinished = {run.id for run in todo}
        self.counts = Counter(status for run, status in store.statuses().items() if run not in unfinished)
        self.running = 0
        self.workers = workers
        self.left = Counter(run.task for run in todo)
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.warned: set[str] = set()
        self.console = console
        self.progress = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.bar = self.progress.add_task("starting", total=self.total, completed=self.counts.total())
        if self.counts:
            console.print(f"{self.counts.total()} of {self.total} runs are there already")

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def started(self, run: Run) -> None:
        self.running += 1
        self._refresh()

    def ended(self, run: Run, result: Result) -> None:
        self.running -= 1
        self.counts[result.status] += 1
        self.left[run.task] -= 1
        self.seconds[run.task].append(result.seconds)
        for warning in result.warnings:
            if warning not in self.warned:
                self.warned.add(warning)
                self._say(f"{run}: {' '.join(warning.split())}")
        if result.status == "crashed" or not self.console.is_terminal:
            metric = self.metrics[run.task]
            outcome = (
                f"{metric} {result.final[metric]:.4g}"
                if result.final
                else f"{result.status}: {last_line(result.error)}"
            )
            self._say(f"{self.counts.total()}/{self.total} {run}: {outcome} ({result.seconds:.1f} s)")
        self._refresh()

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def _refresh(self) -> None:
        counts = [f"{self.running} running", *(f"{self.counts[s]} {s}" for s in ("diverged", "crashed"))]
        if left := self._time_left():
            counts.append(f"{timedelta(seconds=round(left))} left")
        self.progress.update(self.bar, completed=self.counts.total(), description=", ".join(counts))

    def _time_left(self) -> float | None:
        ended = [{"task": task, "seconds": s} for task, seconds in self.seconds.items() for s in seconds]
        return time_left(ended, self.left.elements(), self.workers)


def time_left(ended: Iterable[Mapping[str, Any]], waiting: Iterable[str], workers: int) -> float | None:
    """Seconds that runs of the tasks `waiting` take, from the mean `seconds` by `task` of those that ended.

    A task not yet seen counts as the mean of the others. None before any run has ended.
    """
    seconds = defaultdict[str, list[float]](list)
    for row in ended:
        seconds[row["task"]].append(row["seconds"] or 0.0)
    if not seconds:
        return None
    means = {task: fmean(values) for task, values in seconds.items()}
    guess = fmean(means.values())
    return sum(means.get(task, guess) for task in waiting) / workers

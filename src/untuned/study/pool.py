"""Where the runs of a study are made: what local processes and a Ray cluster have in common."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from untuned.study import tasks
from untuned.study.config import Run
from untuned.study.runner import Result, train

Ended = tuple[Result, pa.Table | None]  # how a run ended and its curve, which a process that died has not left


class Pool(Protocol):
    """Where runs are made, each in a process that may die without harm to the others."""

    @property
    def free(self) -> int:
        """How many more runs can start now."""
        ...

    def start(self, run: Run) -> None: ...

    def ended(self) -> list[tuple[Run, Ended]]:
        """Wait for a while, and tell what has ended since the last call, if anything."""
        ...

    def stop(self) -> None:
        """End what still runs."""
        ...


def attempt(run: Run, load: Callable[[str], tasks.Task], norms: Path | None = None) -> Ended:
    """Make the run in this process; whatever it raises is a result."""
    try:
        return train(load(run.task), run, norms)
    except Exception:  # a task that does not load costs this run alone
        return Result("crashed", error=traceback.format_exc()), None

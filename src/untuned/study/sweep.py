"""A study on a pool of processes: a crash costs one run, and what is finished is never run again."""

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Protocol

from untuned.study import tasks
from untuned.study.config import Run, StudyError
from untuned.study.pool import Ended, Pool, attempt
from untuned.study.runner import Result
from untuned.study.store import Store


class View(Protocol):
    """Who wants to see the study go on."""

    def started(self, run: Run) -> None: ...
    def ended(self, run: Run, result: Result) -> None: ...


def pending(store: Store, retry_crashed: bool = False) -> list[Run]:
    """The runs still to be made; one that a dead process left as running is among them."""
    finished = {"done", "diverged"} if retry_crashed else {"done", "diverged", "crashed"}
    statuses = store.statuses()
    return [run for run in store.study.runs() if statuses.get(run.id) not in finished]


def sweep(
    store: Store,
    workers: int | None,
    view: View,
    retry_crashed: bool = False,
    norms: bool = False,
    on: str = "processes",
) -> None:
    """Make all pending runs, at most `workers` at a time, each on one thread; None takes as many as there are cores.

    `on`: "processes" of this machine or "ray", see `on_ray`. A run whose process dies (SIGKILL, out of memory) is
    recorded as crashed. This process alone writes to the study. `norms`: each run leaves a log of its gradient norms in
    the folder `norms/RUN` of the study. Raises StudyError, also where a cluster cannot be used.
    """
    with store.writing(), _interruptible() as interrupted:
        queue = deque(pending(store, retry_crashed))
        if not queue:
            return
        pool = _pool(on, workers, store.folder / "norms" if norms else None, {run.task for run in queue})
        busy = 0
        try:
            while queue or busy:
                for _ in range(min(pool.free, len(queue))):
                    run = queue.popleft()
                    store.start(run)
                    view.started(run)
                    pool.start(run)
                    busy += 1
                for run, (result, curve) in pool.ended():
                    busy -= 1
                    if curve is not None:
                        try:
                            store.write_curve(run, curve)
                        except OSError:  # a full disk costs this run alone
                            result = Result("crashed", seconds=result.seconds, error=traceback.format_exc())
                    store.finish(run, result)
                    view.ended(run, result)
                if interrupted.is_set():
                    raise KeyboardInterrupt
        finally:
            pool.stop()


def _pool(on: str, workers: int | None, norms: Path | None, task_names: set[str]) -> Pool:
    if on == "processes":
        return Processes(workers or os.cpu_count() or 1, norms)
    if on != "ray":
        raise StudyError(f"on: must be processes or ray, not {on!r}")
    if norms:
        raise StudyError("norms are recorded by processes of this machine only: leave out --record-norms or --on ray")
    from untuned.study.on_ray import Nodes

    return Nodes(workers, task_names)


class Processes:
    """A pool of worker processes on this machine.

    A worker serves many runs, because importing torch takes longer than many of them. One that dies costs the run it
    was at, and is replaced. No worker outlives this process.
    """

    def __init__(self, workers: int, norms: Path | None = None) -> None:
        self.size, self.norms = workers, norms
        self.idle: list[_Worker] = []
        self.busy: dict[_Worker, Run] = {}

    @property
    def free(self) -> int:
        return self.size - len(self.busy)

    def start(self, run: Run) -> None:
        worker = self.idle.pop() if self.idle else _Worker(self.norms)
        self.busy[worker] = run
        worker.send(run)

    def ended(self) -> list[tuple[Run, Ended]]:
        wait([event for worker in self.busy for event in (worker.connection, worker.process.sentinel)])
        found = []
        for worker, run in list(self.busy.items()):
            if end := worker.result():
                del self.busy[worker]
                self.idle.append(worker)
                found.append((run, end))
        return found

    def stop(self) -> None:
        for worker in (*self.idle, *self.busy):
            worker.stop()


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Remember Ctrl-C: the exception alone is lost where Python drops what a destructor or a callback raises."""
    interrupted = threading.Event()

    def interrupt(*_: object) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
        yield interrupted
        return
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


class _Worker:
    """The parent's end of a worker process, which it replaces when it dies."""

    def __init__(self, norms: Path | None = None) -> None:
        self.norms = norms
        self._launch()

    def _launch(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self.norms))
        # Ctrl-C reaches the whole process group; the parent alone shall act on it, even while a worker still imports.
        # It is held back here, not ignored, so that one in this moment is not lost; the worker inherits the block.
        if sys.platform == "win32":
            self.process.start()
        else:
            resource_tracker.ensure_running()  # whose start, else a part of the worker's, would end the block
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                self.process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()

    def send(self, run: Run) -> None:
        if not self.process.is_alive():
            self.stop()
            self._launch()
        self.since = time.perf_counter()
        with suppress(OSError):  # it died just now: result() will say so
            self.connection.send(run)

    def result(self) -> Ended | None:
        """How the run ended, None while it goes on."""
        try:
            if self.connection.poll():
                return self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
        if self.process.is_alive():
            return None
        code = self.process.exitcode or 0
        reason = f"killed by {signal.Signals(-code).name}" if code < 0 else f"left with exit code {code}"
        seconds = time.perf_counter() - self.since
        return Result("crashed", seconds=seconds, error=f"the worker process was {reason}"), None

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _serve(connection: Connection, norms: Path | None) -> None:
    threading.Thread(target=_die_with_parent, daemon=True).start()
    load = cache(tasks.load)
    while True:
        run: Run = connection.recv()
        connection.send(attempt(run, load, norms / run.id if norms else None))


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

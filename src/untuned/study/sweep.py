"""A study on a pool of worker processes: a crash costs one run, and what is finished is never run again."""

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Protocol

from untuned.study import tasks
from untuned.study.config import Run
from untuned.study.runner import Result, train
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


def sweep(store: Store, workers: int, view: View, retry_crashed: bool = False, norms: bool = False) -> None:
    """Make all pending runs on `workers` processes of one thread each.

    A worker serves many runs, because importing torch takes longer than many of them. One that dies (SIGKILL, out of
    memory) costs the run it was at, recorded as crashed, and is replaced. No worker outlives this process. `norms`:
    each run leaves a log of its gradient norms in the folder `norms/RUN` of the study.
    """
    with store.writing(), _interruptible() as interrupted:
        queue = deque(pending(store, retry_crashed))
        pool = [_Worker(store.folder, norms) for _ in range(min(workers, len(queue)))]
        busy: dict[_Worker, Run] = {}
        try:
            while queue or busy:
                for worker in pool:
                    if queue and worker not in busy:
                        busy[worker] = run = queue.popleft()
                        store.start(run)
                        view.started(run)
                        worker.send(run)
                wait([event for worker in busy for event in (worker.connection, worker.process.sentinel)])
                if interrupted.is_set():
                    raise KeyboardInterrupt
                for worker, run in list(busy.items()):
                    result = worker.result()
                    if result:
                        del busy[worker]
                        store.finish(run, result)
                        view.ended(run, result)
        finally:
            for worker in pool:
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

    def __init__(self, folder: Path, norms: bool = False) -> None:
        self.folder, self.norms = folder, norms
        self._launch()

    def _launch(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self.folder, self.norms))
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

    def result(self) -> Result | None:
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
        return Result("crashed", seconds=time.perf_counter() - self.since, error=f"the worker process was {reason}")

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _serve(connection: Connection, folder: Path, norms: bool) -> None:
    threading.Thread(target=_die_with_parent, daemon=True).start()
    store = Store(folder)
    load = cache(tasks.load)
    while True:
        run: Run = connection.recv()
        connection.send(_make(run, load, store, folder / "norms" / run.id if norms else None))


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _make(run: Run, load: Callable[[str], tasks.Task], store: Store, norms: Path | None) -> Result:
    try:
        result, curve = train(load(run.task), run, norms)
        store.write_curve(run, curve)
    except Exception:  # a task that does not load or a full disk costs this run alone
        return Result("crashed", error=traceback.format_exc())
    return result

"""Worker processes on this machine, each with one thread, and the store over which they find the server."""

from __future__ import annotations

import contextlib
import datetime
import multiprocessing
import os
import time
from collections.abc import Callable, Generator
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

LOCALHOST = "127.0.0.1"


@contextlib.contextmanager
def started(
    engine: str,
    workers: int,
    target: Callable[..., None],
    arguments: tuple[Any, ...],
    timeout: float,
    **environment: str,
) -> Generator[tuple[TCPStore, list[BaseProcess]]]:
    """Processes that run `target(worker, port, *arguments)` and have called `ready`; afterwards there are none.

    environment: variables that they have beside those of this process, unless it has them itself.

    Raises:
        RuntimeError: one has ended before it was ready, or was not ready within `timeout` seconds.
    """
    limit = datetime.timedelta(seconds=timeout)
    store = TCPStore(LOCALHOST, 0, is_master=True, wait_for_workers=False, timeout=limit)  # 0: a free port
    context = multiprocessing.get_context("spawn")
    processes: list[BaseProcess] = [
        context.Process(target=target, args=(worker, store.port, *arguments), daemon=True) for worker in range(workers)
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _variables(environment):
            for process in processes:
                process.start()
        waiting, end = set(range(workers)), time.monotonic() + timeout
        while waiting:
            waiting = {worker for worker in waiting if not store.check([f"ready {worker}"])}
            for worker in waiting:
                if processes[worker].exitcode is not None:
                    raise RuntimeError(
                        f"{engine}.train: worker {worker} {ended(processes[worker])} before it was ready."
                    )
            if time.monotonic() > end:
                raise RuntimeError(f"{engine}.train: workers {sorted(waiting)} were not ready within {timeout:g} s.")
            time.sleep(0.01)
        yield store, processes
        for process in processes:
            process.join(2.0)  # it was told to stop
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _variables(environment: dict[str, str]) -> Generator[None]:
    added = environment.keys() - os.environ.keys()
    os.environ.update({name: environment[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def ready(worker: int, port: int, timeout: float) -> TCPStore:
    """Called in a worker process that can begin. -> the store of all processes."""
    store = TCPStore(LOCALHOST, port, is_master=False, timeout=datetime.timedelta(seconds=timeout))
    store.set(f"ready {worker}", "")
    return store


def ended(process: BaseProcess) -> str:
    """How a process has ended, as a verb with what belongs to it."""
    code = process.exitcode
    if code is None:
        return "closed its connection"
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"

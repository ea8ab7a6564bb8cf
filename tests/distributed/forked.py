"""Processes that begin with torch imported: importing it costs each of them more than what they are to do."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import processes
import torch

PATIENCE = 120  # seconds until all have ended

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["torch.distributed.checkpoint.state_dict", "torch.distributed.fsdp", "torch.distributed.tensor.parallel"]
)


def start(size: int, target: Callable[..., object], *arguments: Any) -> list[int | None]:
    """`target(rank, *arguments)` in `size` processes; -> their exit codes, None for one that did not end in time."""
    ranks: list[BaseProcess] = [_context.Process(target=target, args=(rank, *arguments)) for rank in range(size)]
    deadline = time.monotonic() + PATIENCE
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(max(0.0, deadline - time.monotonic()))
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        if process.exitcode is None:
            process.kill()
            process.join()
    return codes


def run(job: Callable[[int, Path], Any], folder: Path, size: int) -> list[Any]:
    """`job(rank, folder)` in `size` processes of one process group; -> what each returned."""
    folder.mkdir()
    assert start(size, processes._process, size, job, folder) == [0] * size
    return [torch.load(folder / f"{rank}.pt") for rank in range(size)]

"""Asynchronous training with real processes that the server calls through torch.distributed.rpc (TensorPipe)."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import tempfile
import warnings
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch.distributed import rpc

from untuned.systems.asynchronous.exchange import CallExchange, Lost, Run, Watch
from untuned.systems.asynchronous.messages import Answer, Compute, Gradient, Worker
from untuned.systems.asynchronous.processes import ended, ready, started
from untuned.systems.asynchronous.server import Server


def train(
    server: Server,
    work: Callable[[int], Compute],
    *,
    timeout: float = 600.0,
    silence: float | None = None,
    watch: Watch | None = None,
) -> Run:
    """Run a server in this process and its workers in processes of their own, one thread each, until it is done.

    As `gloo.train`, with other losses: a worker whose call fails is lost, be it that the process has died, that what
    computes gradients has raised, or that the call took longer than `timeout`; the others go on. PyTorch keeps this
    package up without developing it further; a line or two about a closed pipe on stderr, at the end or when a worker
    dies, are harmless and do not appear where TORCH_CPP_LOG_LEVEL is ERROR.

    Args:
        server: one with `steps`; on the CPU.
        work: called in each worker process with its number; what it returns computes gradients. It is pickled.
        timeout: seconds that processes may take to be ready, and that any gradient may take.
        silence: a worker that has not answered for so many seconds counts as lost, and is heard again if it answers
            after all; None waits for `timeout`.
        watch: called with the server and the seconds since the start after every gradient that was applied.

    Raises:
        RuntimeError: torch.distributed.rpc is in use or missing in this build of torch, or a worker ends before it is
            ready.
        ValueError: the server has no steps to end at.
    """
    if not rpc.is_available():
        raise RuntimeError("rpc.train: this build of torch has no torch.distributed.rpc; use the engine gloo.")
    if _joined():
        raise RuntimeError("rpc.train: this process is in a group of RPC already; run it in a process of its own.")
    if server.steps is None:
        raise ValueError("rpc.train: nothing ends it; give the server steps.")
    with tempfile.TemporaryDirectory(prefix="untuned-") as folder:
        group = _Group(folder, server.workers, timeout, getattr(rpc, "_init_counter", 0))
        quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR"}
        with started("rpc", server.workers, _worker, (group, work), timeout, **quiet) as (store, processes):
            group.join(server.workers)
            try:
                return _Exchange(server, group, processes, silence, watch).run()
            finally:
                rpc.shutdown(graceful=False)  # the other way waits for processes that may have died
                store.set("stop", "")


@dataclasses.dataclass(frozen=True)
class _Group:
    """What all processes need to know of their group. The server has the last rank.

    folder: a new one, in which they meet, so that no port can be taken. before: how many groups the server has been in,
    since torch looks for the members of a process's next one under that number.
    """

    folder: str
    workers: int
    timeout: float
    before: int

    def name(self, rank: int) -> str:
        """As in no other group: torch numbers its rounds by the names of those who take part."""
        return f"{Path(self.folder).name}:{rank}"

    def join(self, rank: int) -> None:
        rpc._init_counter = self.before  # pyright: ignore[reportAttributeAccessIssue]
        options = rpc.TensorPipeRpcBackendOptions(
            init_method=Path(self.folder, "rendezvous").as_uri(), rpc_timeout=self.timeout, num_worker_threads=4
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*ProcessGroupGloo.* as a ProcessGroup", category=UserWarning)
            rpc.init_rpc(self.name(rank), rank=rank, world_size=self.workers + 1, rpc_backend_options=options)


class _Exchange(CallExchange):
    """A call for each piece of work; what it returns, or that it failed, comes by a thread of RPC."""

    def __init__(
        self, server: Server, group: _Group, processes: list[BaseProcess], silence: float | None, watch: Watch | None
    ) -> None:
        super().__init__(server, group.timeout, silence, watch)
        self.group, self.processes = group, processes

    def listen(self, worker: int) -> None:
        answer = self.given[worker]
        arguments = (answer.index, answer.draw, answer.weights)
        call = rpc.rpc_async(self.group.name(worker), _respond, args=arguments, timeout=self.group.timeout)
        call.add_done_callback(functools.partial(self._arrived, worker))

    def _arrived(self, worker: int, call: torch.futures.Future[Any]) -> None:
        process = self.processes[worker]
        try:
            found = call.value()
        except RuntimeError as error:  # of the transport
            process.join(1.0)
            late = process.is_alive() and "timeout" in str(error)
            self.inbox.put(Lost(worker, f"took longer than {self.group.timeout:g} s" if late else ended(process)))
        else:
            self.inbox.put(Lost(worker, found) if isinstance(found, str) else Gradient(worker, *found))


def _joined() -> bool:
    try:
        rpc.get_worker_info()
    except RuntimeError:
        return False
    return True


# ---------------------------------------------------------------------- in a worker process

_here: Worker


def _worker(worker: int, port: int, group: _Group, work: Callable[[int], Compute]) -> None:
    """A worker process: answer calls until told to stop, or until the server's process is gone."""
    global _here
    torch.set_num_threads(1)
    _here = Worker(worker, work(worker))
    store = ready(worker, port, group.timeout)
    group.join(worker)
    with contextlib.suppress(RuntimeError):  # the store ends with the server
        store.wait(["stop"], datetime.timedelta(days=365))
    rpc.shutdown(graceful=False)


def _respond(index: int, draw: int, weights: torch.Tensor) -> tuple[int, int, int, torch.Tensor] | str:
    """Index, draw, number and gradient, or what has gone wrong."""
    try:
        sent = _here(Answer(_here.worker, index, draw, weights))
    except Exception as error:
        return f"raised {type(error).__name__}: {error}"
    return sent.index, sent.draw, sent.number, sent.gradient

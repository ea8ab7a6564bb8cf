"""Asynchronous training with real processes that send each other tensors by torch.distributed's gloo."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import multiprocessing
import queue
import threading
import time
from collections.abc import Callable, Generator
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from untuned.systems.asynchronous.messages import Answer, Compute, Gradient
from untuned.systems.asynchronous.server import Server

_HEADER = 32  # bytes: four whole numbers in front of the vector
_LOCALHOST = "127.0.0.1"


@dataclasses.dataclass(frozen=True)
class Run:
    """What has happened. times: when each gradient of `server.trace` was applied, in seconds since the first work was
    given out. seconds: until the last answer. lost: worker -> why it was given up."""

    times: list[float]
    seconds: float
    lost: dict[int, str]


def train(
    server: Server,
    work: Callable[[int], Compute],
    *,
    timeout: float = 600.0,
    silence: float | None = None,
    watch: Callable[[Server, float], None] | None = None,
) -> Run:
    """Run a server in this process and its workers in processes of their own, one thread each, until it is done.

    A worker that dies (its connection closes) is lost: the others go on, and its gradient is never applied. A group of
    gloo takes no new members, so it cannot come back. If all are lost, `server.failure` says so. Scripts need the usual
    `if __name__ == "__main__":`, since processes are spawned. `replay(server.trace, ...)` repeats the run to the bit if
    what `work` returns is a pure function of weights and draw.

    Args:
        server: one with `steps`; on the CPU.
        work: called in each worker process with its number; what it returns computes gradients. It is pickled.
        timeout: seconds that processes may take to be ready, and that any message may take. A worker that is silent for
            longer ends the run, since gloo cannot go on then.
        silence: a worker that has not answered for so many seconds counts as lost, and is heard again if it sends after
            all; None waits.
        watch: called with the server and the seconds since the start after every gradient that was applied.

    Raises:
        RuntimeError: torch.distributed is in use already, or a worker ends before it is ready.
        ValueError: the server has no steps to end at.
    """
    if dist.is_initialized():
        raise RuntimeError("gloo.train: this process is in a process group already; run it in a process of its own.")
    if server.steps is None:
        raise ValueError("gloo.train: nothing ends it; give the server steps.")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _workers(server, work, timeout) as processes:
            return _Exchange(server, processes, timeout, silence, watch).run()
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _workers(server: Server, work: Callable[[int], Compute], timeout: float) -> Generator[list[BaseProcess]]:
    """The worker processes, in one group with this one; none of them is there any more afterwards."""
    limit, size = datetime.timedelta(seconds=timeout), server.workers + 1
    store = TCPStore(_LOCALHOST, 0, is_master=True, wait_for_workers=False, timeout=limit)  # 0: a free port
    like = server.weights()
    context = multiprocessing.get_context("spawn")
    processes: list[BaseProcess] = [
        context.Process(
            target=_worker, args=(worker, store.port, size, work, like.numel(), like.dtype, timeout), daemon=True
        )
        for worker in range(server.workers)
    ]
    try:
        for process in processes:
            process.start()
        waiting, end = set(range(server.workers)), time.monotonic() + timeout
        while waiting:
            waiting = {worker for worker in waiting if not store.check([f"ready {worker}"])}
            for worker in waiting:
                if processes[worker].exitcode is not None:
                    raise RuntimeError(f"gloo.train: worker {worker} {_ended(processes[worker])} before it was ready.")
            if time.monotonic() > end:
                raise RuntimeError(f"gloo.train: workers {sorted(waiting)} were not ready within {timeout:g} s.")
            time.sleep(0.01)
        dist.init_process_group("gloo", store=store, rank=server.workers, world_size=size, timeout=limit)
        yield processes
    finally:
        for process in processes:
            if process.pid is not None:
                process.join(2.0)  # it was told to stop
                process.kill()
                process.join()
        if dist.is_initialized():
            dist.destroy_process_group()


class _Exchange:
    """A thread per worker sends and receives; one queue brings what arrives to the server, in its order."""

    def __init__(
        self,
        server: Server,
        processes: list[BaseProcess],
        timeout: float,
        silence: float | None,
        watch: Callable[[Server, float], None] | None,
    ) -> None:
        self.server, self.processes, self.timeout, self.silence, self.watch = server, processes, timeout, silence, watch
        self.inbox: queue.SimpleQueue[Gradient | tuple[int, str]] = queue.SimpleQueue()
        self.outboxes = [queue.SimpleQueue[Answer]() for _ in processes]
        self.since: dict[int, float] = {}  # worker -> when it was given work

    def run(self) -> Run:
        server, times, lost = self.server, list[float](), dict[int, str]()
        threads = [threading.Thread(target=self._talk, args=(worker,), daemon=True) for worker in range(server.workers)]
        for thread in threads:
            thread.start()
        start = time.perf_counter()
        self._give(server.start())
        while server.in_flight and not server.done:
            message, before = self._next(), server.index
            if isinstance(message, Gradient):
                lost.pop(message.worker, None)
                self._give(server.receive(message))
            else:
                worker, why = message
                lost[worker] = why
                self._give(server.lost(worker))
            now = time.perf_counter() - start
            times += [now] * (server.index - before)
            if self.watch is not None and server.index > before:
                self.watch(server, now)
        seconds = time.perf_counter() - start
        if not server.done:
            server.failure = "no worker is left: " + "; ".join(f"worker {w} {why}" for w, why in sorted(lost.items()))
        for worker in range(server.workers):
            self.outboxes[worker].put(Answer(worker, server.index, -1, None))
        for thread in threads:
            thread.join(0.5)
        return Run(times, seconds, {w: why if why else _ended(self.processes[w]) for w, why in sorted(lost.items())})

    def _give(self, answers: list[Answer]) -> None:
        for answer in answers:
            self.since[answer.worker] = time.perf_counter()
            self.outboxes[answer.worker].put(answer)

    def _next(self) -> Gradient | tuple[int, str]:
        """The next arrival, or a worker that has been silent for too long."""
        quietest = min(self.server.in_flight, key=self.since.__getitem__)
        patience = self.timeout if self.silence is None else self.silence
        left = self.since[quietest] + patience - time.perf_counter()
        try:
            return self.inbox.get(timeout=max(left, 0.0))
        except queue.Empty:
            return quietest, f"was silent for {patience:g} s"

    def _talk(self, worker: int) -> None:
        """Send each answer and receive the gradient it asks for, until the answer is to stop or the worker is gone."""
        buffer = _buffer(sum(p.numel() for p in self.server.params), self.server.params[0].dtype)
        header, vector = _parts(buffer, self.server.params[0].dtype)
        try:
            while True:
                answer = self.outboxes[worker].get()
                header.copy_(torch.tensor([answer.index, answer.draw, int(answer.stop), 0]))
                if answer.weights is not None:
                    vector.copy_(answer.weights)
                dist.send(buffer, dst=worker)
                if answer.stop:
                    return
                dist.recv(buffer, src=worker)
                index, draw, number, _ = header.tolist()
                self.inbox.put(Gradient(worker, index, draw, number, vector))
        except (RuntimeError, ValueError):
            self.processes[worker].join(1.0)
            self.inbox.put((worker, _ended(self.processes[worker])))


def _worker(
    worker: int, port: int, size: int, work: Callable[[int], Compute], length: int, dtype: Any, timeout: float
) -> None:
    """A worker process: receive weights, send their gradient, until told to stop."""
    torch.set_num_threads(1)
    compute = work(worker)
    limit = datetime.timedelta(seconds=timeout)
    store = TCPStore(_LOCALHOST, port, is_master=False, timeout=limit)
    store.set(f"ready {worker}", "")
    dist.init_process_group("gloo", store=store, rank=worker, world_size=size, timeout=limit)
    buffer, number = _buffer(length, dtype), 0
    header, vector = _parts(buffer, dtype)
    while True:
        dist.recv(buffer, src=size - 1)
        index, draw, stop, _ = header.tolist()
        if stop:
            break
        vector.copy_(compute(vector.clone(), draw))
        header.copy_(torch.tensor([index, draw, number, 0]))
        dist.send(buffer, dst=size - 1)
        number += 1
    dist.destroy_process_group()


def _buffer(length: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(_HEADER + length * dtype.itemsize, dtype=torch.uint8)


def _parts(buffer: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The four whole numbers of a message and its vector, as views."""
    return buffer[:_HEADER].view(torch.int64), buffer[_HEADER:].view(dtype)


def _ended(process: BaseProcess) -> str:
    code = process.exitcode
    if code is None:
        return "closed its connection"
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"

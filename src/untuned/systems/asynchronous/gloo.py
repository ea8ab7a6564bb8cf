"""Asynchronous training with real processes that send each other tensors by torch.distributed's gloo."""

from __future__ import annotations

import contextlib
import datetime
import queue
import threading
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed as dist

from untuned.systems.asynchronous.exchange import Exchange, Lost, Run, Watch
from untuned.systems.asynchronous.messages import Answer, Compute, Gradient, Worker
from untuned.systems.asynchronous.processes import ended, ready, started
from untuned.systems.asynchronous.server import Server

_HEADER = 32  # bytes: four whole numbers in front of the vector


def train(
    server: Server,
    work: Callable[[int], Compute],
    *,
    timeout: float = 600.0,
    silence: float | None = None,
    watch: Watch | None = None,
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
    like, size = server.weights(), server.workers + 1
    arguments = (size, work, like.numel(), like.dtype, timeout)
    with contextlib.ExitStack() as stack:
        stack.callback(_leave)
        store, processes = stack.enter_context(started("gloo", server.workers, _worker, arguments, timeout))
        limit = datetime.timedelta(seconds=timeout)
        dist.init_process_group("gloo", store=store, rank=server.workers, world_size=size, timeout=limit)
        return _Exchange(server, processes, timeout, silence, watch).run()


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


class _Exchange(Exchange):
    """Two threads per worker: a message of gloo is under way until it is received, so both sides may send at once."""

    def __init__(
        self, server: Server, processes: list[BaseProcess], timeout: float, silence: float | None, watch: Watch | None
    ) -> None:
        super().__init__(server, timeout, silence, watch)
        self.processes = processes
        self.outboxes = [queue.SimpleQueue[Answer]() for _ in processes]

    def send(self, answer: Answer) -> None:
        self.outboxes[answer.worker].put(answer)

    def listen(self, worker: int) -> None:
        pass  # its thread does

    def run(self) -> Run:
        workers = range(len(self.processes))
        senders = [threading.Thread(target=self._send, args=(worker,), daemon=True) for worker in workers]
        receivers = [threading.Thread(target=self._receive, args=(worker,), daemon=True) for worker in workers]
        for thread in senders + receivers:
            thread.start()
        found = super().run()
        for thread in senders:
            thread.join(0.5)
        return found

    def _buffer(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return _buffer(sum(p.numel() for p in self.server.params), self.server.params[0].dtype)

    def _send(self, worker: int) -> None:
        """Send each answer, until it is to stop or the worker is gone."""
        buffer, header, vector = self._buffer()
        stop = False
        with contextlib.suppress(RuntimeError, ValueError):  # the other thread says so
            while not stop:
                answer = self.outboxes[worker].get()
                stop = answer.stop
                header.copy_(torch.tensor([answer.index, answer.draw, int(stop), 0]))
                if answer.weights is not None:
                    vector.copy_(answer.weights)
                dist.send(buffer, dst=worker)

    def _receive(self, worker: int) -> None:
        """Receive gradients until the worker is gone."""
        buffer, header, vector = self._buffer()
        try:
            while True:
                dist.recv(buffer, src=worker)
                index, draw, number, _ = header.tolist()
                self.inbox.put(Gradient(worker, index, draw, number, vector.clone()))
        except (RuntimeError, ValueError):
            self.processes[worker].join(1.0)
            self.inbox.put(Lost(worker, ended(self.processes[worker])))


def _worker(
    worker: int, port: int, size: int, work: Callable[[int], Compute], length: int, dtype: Any, timeout: float
) -> None:
    """A worker process: receive weights, send their gradient, until told to stop."""
    torch.set_num_threads(1)
    respond = Worker(worker, work(worker))
    store, limit = ready(worker, port, timeout), datetime.timedelta(seconds=timeout)
    dist.init_process_group("gloo", store=store, rank=worker, world_size=size, timeout=limit)
    buffer, header, vector = _buffer(length, dtype)
    while True:
        dist.recv(buffer, src=size - 1)
        index, draw, stop, _ = header.tolist()
        if stop:
            break
        sent = respond(Answer(worker, index, draw, vector.clone()))
        if sent.gradient.shape != vector.shape:
            raise ValueError(f"worker {worker}: the gradient has shape {tuple(sent.gradient.shape)}, not ({length},).")
        vector.copy_(sent.gradient)
        header.copy_(torch.tensor([sent.index, sent.draw, sent.number, 0]))
        dist.send(buffer, dst=size - 1)
    dist.destroy_process_group()


def _buffer(length: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A message; the four whole numbers in front and the vector are views of it."""
    buffer = torch.zeros(_HEADER + length * dtype.itemsize, dtype=torch.uint8)
    return buffer, buffer[:_HEADER].view(torch.int64), buffer[_HEADER:].view(dtype)

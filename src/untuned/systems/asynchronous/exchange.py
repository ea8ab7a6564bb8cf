"""The loop of a server that all engines share: what arrives goes to the server, what it answers goes out."""

from __future__ import annotations

import abc
import dataclasses
import queue
import time
from collections.abc import Callable, Sequence

from untuned.systems.asynchronous.messages import Answer, Gradient
from untuned.systems.asynchronous.server import Server

Watch = Callable[[Server, float], None]
REPEATS = 10  # gradients that a worker may send again for one piece of work


@dataclasses.dataclass(frozen=True)
class Run:
    """What has happened. times: when each gradient of `server.trace` was applied, in seconds since the first work was
    given out. seconds: until the last answer. lost: worker -> why it was given up."""

    times: list[float]
    seconds: float
    lost: dict[int, str]


@dataclasses.dataclass(frozen=True)
class Lost:
    """A worker will not send what it was told to compute. coming: another one takes its place soon."""

    worker: int
    why: str
    coming: bool = False


@dataclasses.dataclass(frozen=True)
class Back:
    """A worker is there again, in the place of one that was lost."""

    worker: int


class Exchange(abc.ABC):
    """The loop. An engine says how answers go out; its threads put what arrives into `inbox`.

    timeout: seconds after which a worker that has not answered counts as lost, unless `silence` is shorter.
    """

    def __init__(self, server: Server, timeout: float, silence: float | None, watch: Watch | None) -> None:
        self.server, self.watch = server, watch
        self.patience = timeout if silence is None else min(silence, timeout)
        self.inbox: queue.SimpleQueue[Gradient | Lost | Back] = queue.SimpleQueue()
        self.lost: dict[int, str] = {}
        self._since: dict[int, float] = {}  # worker -> when it was given the work that it has not answered
        self._repeated: dict[int, int] = {}  # worker -> how often it sent again what it had sent before

    @abc.abstractmethod
    def send(self, answer: Answer) -> None:
        """Bring an answer on its way to the worker, without waiting for it."""

    @abc.abstractmethod
    def listen(self, worker: int) -> None:
        """Wait for another message of a worker that has work, since its last one did not answer it."""

    def run(self) -> Run:
        """Until the server is done or no worker is left."""
        server, times = self.server, list[float]()
        start = time.perf_counter()
        self._give(server.start())
        while self._since and not server.done:
            event, before = self._next(), server.index
            self._since.pop(event.worker, None)
            if isinstance(event, Lost):
                self.lost[event.worker] = event.why
                self._give(server.lost(event.worker))
                if event.coming:
                    self._since[event.worker] = time.perf_counter()
            else:
                self.lost.pop(event.worker, None)
                self._give(server.rejoin(event.worker) if isinstance(event, Back) else server.receive(event))
                if event.worker in server.in_flight and event.worker not in self._since:
                    self._again(event.worker)
            now = time.perf_counter() - start
            times += [now] * (server.index - before)
            if self.watch is not None and server.index > before:
                self.watch(server, now)
        seconds = time.perf_counter() - start
        if not server.done:
            why = "; ".join(f"worker {worker} {why}" for worker, why in sorted(self.lost.items()))
            server.failure = f"no worker is left: {why}"
        for worker in range(server.workers):
            self.send(Answer(worker, server.index, -1, None))
        return Run(times, seconds, dict(sorted(self.lost.items())))

    def _give(self, answers: Sequence[Answer]) -> None:
        for answer in answers:
            if not answer.stop:
                self._since[answer.worker] = time.perf_counter()
            self._repeated[answer.worker] = 0
            self.send(answer)

    def _again(self, worker: int) -> None:
        self._since[worker] = time.perf_counter()
        self._repeated[worker] += 1
        if self._repeated[worker] < REPEATS:
            self.listen(worker)
        else:
            self.inbox.put(Lost(worker, f"sent a gradient {REPEATS} times again"))

    def _next(self) -> Gradient | Lost | Back:
        """The next arrival, or a worker that has been silent for too long."""
        quietest = min(self._since, key=self._since.__getitem__)
        left = self._since[quietest] + self.patience - time.perf_counter()
        try:
            return self.inbox.get(timeout=max(left, 0.0))
        except queue.Empty:
            return Lost(quietest, f"was silent for {self.patience:g} s")


class CallExchange(Exchange):
    """Of engines in which work is a call: sending it is calling, and a call that was no answer is made anew."""

    def __init__(self, server: Server, timeout: float, silence: float | None, watch: Watch | None) -> None:
        super().__init__(server, timeout, silence, watch)
        self.given: dict[int, Answer] = {}

    def send(self, answer: Answer) -> None:
        if not answer.stop:
            self.given[answer.worker] = answer
            self.listen(answer.worker)

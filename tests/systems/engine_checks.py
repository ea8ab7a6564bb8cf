"""What every engine of asynchronous training has to stand: one run with three workers.

Worker 0 is slow, and sends what must not be applied; worker 1 is killed at a random moment.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from asynchronous_workers import compute

import untuned
from untuned.systems.asynchronous import Compute, Gradient, Run, Server, replay
from untuned.systems.asynchronous.messages import Worker

STEPS = 500
LAST = 0.25  # seconds after which the killed worker is dead, of a run that takes longer


def server(**options: Any) -> Server:
    params = [torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.tensor(2.0))]
    return Server(untuned.OrMo(params, 0.05, num_workers=3, delay_cap=1.0), 3, steps=STEPS, **options)


def momentum(one: Server) -> list[torch.Tensor]:
    return [one.optimizer.state[p]["momentum_buffer"] for p in one.params]


@dataclasses.dataclass
class Ran:
    """A run that has ended. extra: whether a gradient that is sent twice is a message of its own."""

    server: Server
    run: Run
    died: str
    extra: bool


def ran(train: Callable[..., Run], died: str, *, extra: bool = False, **options: Any) -> Ran:
    moment = random.uniform(0.0, LAST)
    print(f"worker 1 is killed {moment:.3f} s after its second call")  # shown when a test fails
    one = server()
    run = train(one, functools.partial(work, moment=moment, extra=extra), timeout=60.0, **options)
    return Ran(one, run, died, extra)


def work(worker: int, moment: float, extra: bool) -> Compute:
    """Called in the worker's process, where it may alter what the worker does."""
    if worker == 0:
        lie(extra)
    if worker == 1:
        return Killed(moment)
    return functools.partial(slowly, seconds=0.02 if worker == 0 else 0.002)


def slowly(weights: torch.Tensor, draw: int, seconds: float) -> torch.Tensor:
    time.sleep(seconds)
    return compute(weights, draw)


class Killed:
    """Kills its process so many seconds after its second call, whatever it is doing then."""

    def __init__(self, moment: float) -> None:
        self.moment, self.calls = moment, 0

    def __call__(self, weights: torch.Tensor, draw: int) -> torch.Tensor:
        self.calls += 1
        if self.calls == 2:
            timer = threading.Timer(self.moment, os.kill, (os.getpid(), signal.SIGKILL))
            timer.daemon = True
            timer.start()
        return slowly(weights, draw, 0.002)


def lie(extra: bool) -> None:
    """Alter the messages of this process: its own weights and draws remain what they were."""
    honest, send, before = Worker.__call__, dist.send, list[Gradient]()

    def altered(self: Worker, answer: Any) -> Gradient:
        sent = honest(self, answer)
        before.append(sent)
        kind = sent.number % 6
        if kind == 1:
            return dataclasses.replace(sent, gradient=sent.gradient * float("nan"))
        if kind == 2:
            return dataclasses.replace(sent, index=sent.index + 10**6)
        if kind == 3 and not extra:
            return before[-2]
        if kind == 4 and not extra:
            return dataclasses.replace(sent, gradient=sent.gradient[:3])
        return sent

    def twice(tensor: torch.Tensor, dst: int) -> None:
        for _ in range(2 if before and before[-1].number % 6 == 3 else 1):
            send(tensor, dst=dst)

    Worker.__call__ = altered
    if extra:
        dist.send = twice


class EngineChecks:
    """The tests; the module of a subclass has the fixture `ran`."""

    def test_a_slow_and_a_killed_worker_do_not_stop_the_run(self, ran: Ran) -> None:
        one, counts = ran.server, [sum(row[0] == worker for row in ran.server.trace) for worker in range(3)]
        assert one.index == len(one.trace) == len(ran.run.times) == STEPS and not one.failure
        assert ran.run.lost == {1: ran.died}
        assert 0 < counts[1] < 200 < counts[2] and 5 < counts[0] < counts[2]
        assert ran.run.times == sorted(ran.run.times) and ran.run.times[-1] <= ran.run.seconds
        assert max(t - index for t, (worker, index, _) in enumerate(one.trace) if worker == 0) > 2  # it was late

    def test_the_trace_is_replayed_to_the_bit(self, ran: Ran) -> None:
        again = server()
        replay(ran.server.trace, compute, again)
        assert torch.equal(ran.server.weights(), again.weights())
        assert all(map(torch.equal, momentum(ran.server), momentum(again)))
        assert ran.server.trace == again.trace and ran.server.index == again.index

    def test_another_order_would_not_be_the_same_run(self, ran: Ran) -> None:
        """Or the replay would prove nothing."""
        rows, again = list(ran.server.trace), server()
        place = next(t for t in range(50, STEPS - 1) if rows[t + 1][1] < t and rows[t][1] != rows[t + 1][1])
        rows[place], rows[place + 1] = rows[place + 1], rows[place]
        replay(rows, compute, again)
        assert not torch.equal(ran.server.weights(), again.weights())

    def test_what_must_not_be_applied_is_refused_with_a_sentence(self, ran: Ran) -> None:
        refused, said = ran.server.refused, " ".join(ran.server.refusals)
        expected = {"nonfinite": "whose element 0 is nan", "future": "lies ahead of the server's", "duplicate": "again"}
        expected |= {} if ran.extra else {"shape": "sent a gradient of shape (3,)"}
        assert set(refused) - {"ended"} == set(expected)
        assert all(words in said for words in expected.values())
        assert all(sentence.startswith("worker 0 ") for sentence in ran.server.refusals)
        assert all(sentence.endswith("; it was not applied.") for sentence in ran.server.refusals)

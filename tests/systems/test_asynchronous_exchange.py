"""The loop that all engines share, with workers that answer at once, without processes."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from asynchronous_workers import compute

import untuned
from untuned.systems.asynchronous import Answer, Gradient, Server
from untuned.systems.asynchronous.exchange import REPEATS, Back, Exchange, Lost
from untuned.systems.asynchronous.messages import Worker

Event = Gradient | Lost | Back | None


class Direct(Exchange):
    """`answers(worker, gradient, times)`: what comes for a piece of work; times counts what the worker was asked."""

    def __init__(self, server: Server, answers: Callable[[Gradient, int], Event], patience: float = 5.0) -> None:
        super().__init__(server, timeout=patience, silence=None, watch=None)
        self.answers = answers
        self.workers = [Worker(worker, compute) for worker in range(server.workers)]
        self.given: dict[int, Answer] = {}
        self.told: list[int] = []

    def send(self, answer: Answer) -> None:
        if answer.stop:
            self.told.append(answer.worker)
        else:
            self.given[answer.worker] = answer
            self.listen(answer.worker)

    def listen(self, worker: int) -> None:
        sent = self.workers[worker](self.given[worker])
        event = self.answers(sent, self.workers[worker].sent)
        if event is not None:
            self.inbox.put(event)


def server(steps: int = 40, synchronous: bool = False) -> Server:
    return Server(
        untuned.OrMo([torch.nn.Parameter(torch.ones(3))], 0.05, num_workers=2), 2, steps=steps, synchronous=synchronous
    )


def test_all_is_applied_and_everybody_is_told_to_stop() -> None:
    exchange = Direct(server(), lambda sent, _: sent)
    run = exchange.run()
    assert exchange.server.index == len(run.times) == 40 and run.lost == {}
    assert set(exchange.told) == {0, 1}


def test_a_worker_is_asked_again_for_what_it_sent_before_and_lost_in_the_end() -> None:
    first: dict[int, Gradient] = {}

    def repeats(sent: Gradient, times: int) -> Event:
        return first.setdefault(sent.worker, sent) if sent.worker == 1 else sent

    exchange = Direct(server(), repeats)
    run = exchange.run()
    assert exchange.server.index == 40
    assert run.lost == {1: f"sent a gradient {REPEATS} times again"}
    assert exchange.server.refused == {"duplicate": REPEATS} and exchange.workers[1].sent == REPEATS + 1
    assert [row[0] for row in exchange.server.trace].count(1) == 1


@pytest.mark.parametrize("synchronous", [False, True])
def test_a_worker_that_is_lost_and_back_goes_on(synchronous: bool) -> None:
    def once(sent: Gradient, times: int) -> Event:
        if sent.worker == 1 and times == 5:
            exchange.inbox.put(Lost(1, "died", coming=True))
            return Back(1)
        return sent

    exchange = Direct(server(synchronous=synchronous), once)
    run = exchange.run()
    counts = [sum(row[0] == worker for row in exchange.server.trace) for worker in range(2)]
    assert run.lost == {} and sum(counts) == 40 and counts[1] > 10


def test_a_run_waits_for_the_only_worker_to_come_back_and_no_longer_than_it_was_told() -> None:
    exchange = Direct(server(), lambda sent, times: Lost(sent.worker, "died", coming=sent.worker == 0), patience=0.05)
    run = exchange.run()
    assert exchange.server.index == 0
    assert run.lost == {0: "was silent for 0.05 s", 1: "died"}
    assert exchange.server.failure == "no worker is left: worker 0 was silent for 0.05 s; worker 1 died"


def test_a_worker_that_was_silent_is_heard_again() -> None:
    late: list[Gradient] = []

    def silent(sent: Gradient, times: int) -> Event:
        if sent.worker == 1 and times == 2:
            late.append(sent)
            return None
        if sent.worker == 1:
            return sent
        if exchange.lost and late:
            exchange.inbox.put(late.pop())
        threading.Timer(0.004, exchange.inbox.put, (sent,)).start()  # so that the server has nothing to do at times
        return None

    exchange = Direct(server(steps=60), silent, patience=0.05)
    run = exchange.run()
    assert exchange.server.refused == {"lost": 1}
    assert [row[0] for row in exchange.server.trace].count(1) > 5 and 1 not in run.lost

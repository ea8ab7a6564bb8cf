"""Real processes over gloo: workers that are slow or killed, and the replay of what has happened."""

from __future__ import annotations

import functools
import multiprocessing
from typing import Any

import asynchronous_workers
import pytest
import torch
import torch.distributed as dist
from asynchronous_workers import compute

import untuned
from untuned.systems.asynchronous import Server, gloo, replay


def server(kind: str = "ormo", workers: int = 3, **options: Any) -> Server:
    params = [torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.tensor(2.0))]
    optimizer = {
        "ormo": lambda: untuned.OrMo(params, 0.05, num_workers=workers),
        "capped": lambda: untuned.OrMo(params, 0.05, num_workers=workers, delay_cap=1.0),
        "naive": lambda: untuned.SGD(params, 0.02, 0.9),
    }[kind]()
    return Server(optimizer, workers, **options)


def momentum(one: Server) -> list[torch.Tensor]:
    return [one.optimizer.state[p]["momentum_buffer"] for p in one.params]


def assert_replayed(ran: Server, again: Server) -> None:
    replay(ran.trace, compute, again)
    assert torch.equal(ran.weights(), again.weights())
    assert all(map(torch.equal, momentum(ran), momentum(again)))
    assert (ran.index, ran.trace) == (again.index, again.trace)


@pytest.mark.slow  # processes import torch
def test_a_slow_and_a_killed_worker_do_not_stop_synchronous_training_and_its_trace_is_replayed_to_the_bit() -> None:
    """Asynchronous training is in test_engines."""
    ran = server("naive", steps=200, synchronous=True)
    run = gloo.train(ran, asynchronous_workers.slow_and_dying, timeout=60.0)
    counts = [sum(row[0] == worker for row in ran.trace) for worker in range(3)]
    assert 200 <= ran.index <= 202 and len(run.times) == ran.index and not ran.failure
    assert run.lost == {1: "was killed by signal 9"}
    assert counts[1] < 20 < counts[2]
    assert sorted(run.times) == run.times and run.seconds >= run.times[-1]
    assert not dist.is_initialized() and not multiprocessing.active_children()
    assert_replayed(ran, server("naive", steps=200, synchronous=True))


@pytest.mark.slow  # processes import torch
def test_what_is_not_finite_is_refused_and_the_worker_goes_on() -> None:
    ran = server(workers=2, steps=60)
    gloo.train(ran, asynchronous_workers.spoiling, timeout=60.0)
    assert ran.index == 60 and ran.refused["nonfinite"] > 10
    assert not any(draw % 5 == 0 for *_, draw in ran.trace)
    assert_replayed(ran, server(workers=2))


@pytest.mark.slow  # processes import torch
def test_a_silent_worker_is_given_up_and_if_all_are_lost_the_server_says_so() -> None:
    ran = server(workers=2, steps=10_000)
    work = functools.partial(asynchronous_workers.slow_and_dying, slow=1, dying=0, dies_at=10, delay=60.0)
    run = gloo.train(ran, work, timeout=60.0, silence=0.5)
    assert run.lost == {0: "was killed by signal 9", 1: "was silent for 0.5 s"}
    assert 0 < ran.index < 15
    assert ran.failure == "no worker is left: worker 0 was killed by signal 9; worker 1 was silent for 0.5 s"
    assert not multiprocessing.active_children()


@pytest.mark.slow  # processes import torch
def test_a_worker_that_cannot_begin_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match=r"^gloo.train: worker [01] ended with exit code 1 before it was ready\.$"):
        gloo.train(server(workers=2, steps=10), asynchronous_workers.failing, timeout=60.0)
    assert "there is no data" in capfd.readouterr().err
    assert not dist.is_initialized() and not multiprocessing.active_children()


def test_what_cannot_run_is_refused_before_anything_starts() -> None:
    with pytest.raises(ValueError, match=r"^gloo.train: nothing ends it; give the server steps\.$"):
        gloo.train(server(), asynchronous_workers.work)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(RuntimeError, match="this process is in a process group already"):
            gloo.train(server(steps=10), asynchronous_workers.work)
    finally:
        dist.destroy_process_group()
    assert not multiprocessing.active_children()

"""Workers in virtual time: the five clocks, losses, and the replay of a trace."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from asynchronous_workers import compute

import untuned
from untuned.systems.asynchronous import (
    Clock,
    Constant,
    Exponential,
    Jitter,
    Recorded,
    Server,
    Slow,
    replay,
    simulate,
)

CLOCKS: dict[str, Clock] = {
    "constant": Constant(),
    "exponential": Exponential(seed=1),
    "jitter": Jitter(seed=2),
    "slow": Slow(Jitter(seed=3), (2,), 10.0),
    "recorded": Recorded({0: [1.0, 3.0], 1: [0.7], 2: [2.0, 0.1, 0.1]}),
}
KINDS = ["ormo", "lazy", "capped", "asgd", "naive", "torch"]


def server(kind: str = "ormo", workers: int = 3, **options: Any) -> Server:
    params = [torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.tensor(2.0))]
    optimizer = {
        "ormo": lambda: untuned.OrMo(params, 0.05, num_workers=workers),
        "lazy": lambda: untuned.OrMo(params, 0.05, num_workers=workers, open_rule="lazy"),
        "capped": lambda: untuned.OrMo(params, 0.05, num_workers=workers, delay_cap=1.0),
        "asgd": lambda: untuned.SGD(params, 0.05),
        "naive": lambda: untuned.SGD(params, 0.02, 0.9),
        "torch": lambda: torch.optim.SGD(params, 0.02, 0.9),
    }[kind]()
    return Server(optimizer, workers, **options)


def state(one: Server) -> list[torch.Tensor]:
    held = [value for p in one.params for value in one.optimizer.state[p].values()]
    return [one.weights(), *(value for value in held if torch.is_tensor(value))]


def counts(one: Server) -> list[int]:
    return np.bincount([row[0] for row in one.trace], minlength=one.workers).tolist()


@pytest.mark.parametrize("synchronous", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clock", CLOCKS)
def test_a_trace_is_replayed_to_the_bit(clock: str, kind: str, synchronous: bool) -> None:
    ran, again = (server(kind, steps=60, synchronous=synchronous) for _ in range(2))
    found = simulate(ran, compute, CLOCKS[clock], lost={1: 9.5}, back={1: 15.0})
    assert 60 <= ran.index == len(found.times) <= 62 and sorted(found.times) == found.times
    replay(ran.trace, compute, again)
    assert ran.trace == again.trace and all(map(torch.equal, state(ran), state(again)))
    assert len(state(ran)) > 1 or kind == "asgd"


def test_another_order_is_another_run() -> None:
    """Or the replay would not have to have it."""
    ran, again = server("capped", steps=60), server("capped", steps=60)
    simulate(ran, compute, CLOCKS["exponential"])
    first = next(t for t in range(10, 60) if ran.trace[t][1] < t - 1 and ran.trace[t + 1][1] < t)
    swapped = [*ran.trace[:first], ran.trace[first + 1], ran.trace[first], *ran.trace[first + 2 :]]
    replay(swapped, compute, again)
    assert not torch.equal(ran.weights(), again.weights())


def test_times_follow_from_the_clock() -> None:
    ran = server(steps=9)
    assert simulate(ran, compute, Constant(2.0)).times == [2.0] * 3 + [4.0] * 3 + [6.0] * 3
    assert [row[0] for row in ran.trace] == [0, 1, 2] * 3
    assert [row[1] for row in ran.trace] == [0, 0, 0, 1, 2, 3, 4, 5, 6]
    ran = server(steps=7)
    found = simulate(ran, compute, Recorded({0: [1.0], 1: [2.5], 2: [10.0]}))
    assert [*zip(found.times, [row[0] for row in ran.trace], strict=True)] == [
        *((1.0, 0), (2.0, 0), (2.5, 1), (3.0, 0), (4.0, 0)),
        *((5.0, 1), (5.0, 0)),  # worker 1 was told before worker 0
    ]


def test_a_slow_worker_slows_rounds_but_not_the_others() -> None:
    """As many gradients in the time: 16 workers, every eighth ten times slower."""
    clock = Slow(Jitter(), range(0, 16, 8), 10.0)
    speed = {}
    for synchronous in (False, True):
        ran = server("asgd", workers=16, synchronous=synchronous)
        simulate(ran, compute, clock, until=100.0)
        speed[synchronous] = ran.index / 100.0
        assert synchronous == (len(set(counts(ran))) == 1)
    assert 14.0 < speed[False] < 14.6
    assert 1.4 < speed[True] < 1.8


def test_without_chance_it_is_the_same_run_again_and_another_seed_is_another() -> None:
    ends = []
    for seed in (1, 1, 2):
        ran = server(steps=50)
        simulate(ran, compute, Exponential(seed=seed))
        ends.append(ran)
    assert ends[0].trace == ends[1].trace != ends[2].trace
    assert torch.equal(ends[0].weights(), ends[1].weights())


def test_the_lost_send_nothing_until_they_are_back() -> None:
    ran, seen = server("asgd", steps=60), []
    found = simulate(
        *(ran, compute, Constant(1.0)),
        lost={1: 4.5, 2: 8.5},
        back={1: 10.2},
        watch=lambda served, now: seen.append((served.trace[-1][0], now)),
    )
    times = {w: [now for worker, now in seen if worker == w] for w in range(3)}
    assert times[2] == [*range(1, 9)] and found.lost == [2]
    assert times[1][:4] == [1, 2, 3, 4] and times[1][4] == pytest.approx(11.2)
    assert [now for _, now in seen] == found.times
    assert found.end == found.times[-1]


def test_if_all_are_lost_it_ends() -> None:
    ran = server(steps=1000)
    found = simulate(ran, compute, Constant(1.0), lost=dict.fromkeys(range(3), 5.5))
    assert (ran.index, found.end, found.lost) == (15, 5.5, [0, 1, 2])
    assert not ran.in_flight and not ran.done


def test_a_restored_server_is_replayed_from_its_checkpoint() -> None:
    ran = server(steps=30)
    simulate(ran, compute, Exponential())
    saved = ran.state_dict()
    ran.steps = 60
    simulate(ran, compute, Exponential(seed=5))
    assert len(ran.trace) == 60
    whole, rest = server(), server()
    replay(ran.trace, compute, whole)
    rest.load_state_dict(saved)
    replay(ran.trace[30:], compute, rest)
    assert all(torch.equal(ran.weights(), other.weights()) for other in (whole, rest))


def test_a_row_of_a_trace_that_cannot_be_is_refused() -> None:
    for index in (5, -1):
        with pytest.raises(ValueError, match=rf"^replay: row 1 of the trace has index {index}, whose weights are not"):
            replay([(0, 0, 0), (1, index, 1)], compute, server())
    with pytest.raises(ValueError, match="give the server steps or the simulation a time"):
        simulate(server(), compute, Constant())


@pytest.mark.parametrize("clock", ["exponential", "jitter", "slow"])
def test_durations_are_independent_and_have_their_mean(clock: str) -> None:
    """Each is a function of worker and number alone, whatever was asked before."""
    drawn = {(w, n): CLOCKS[clock].duration(w, n) for w, n in itertools.product(range(2), range(2000))}
    assert all(CLOCKS[clock].duration(w, n) == drawn[w, n] for w, n in [*drawn][::-97])
    values = np.array([*drawn.values()]).reshape(2, -1)
    np.testing.assert_allclose(values.mean(1), 1.0, atol=0.1)
    assert abs(np.corrcoef(values)[0, 1]) < 0.1 and abs(np.corrcoef(values[0, 1:], values[0, :-1])[0, 1]) < 0.1
    spread = {"exponential": 1.0}.get(clock, 0.4 / 12**0.5)
    np.testing.assert_allclose(values.std(1), spread, rtol=0.1)
    assert CLOCKS[clock].duration(2, 0) != CLOCKS[clock].duration(0, 0)


def test_wrong_clocks_are_refused_in_a_sentence() -> None:
    for make, sentence in (
        (lambda: Constant(0.0), "Constant: seconds must be a finite number above 0, not 0.0"),
        (lambda: Exponential(float("inf")), "Exponential: mean must be a finite number above 0, not inf"),
        (lambda: Jitter(2.0, 1.0), "Jitter: high must not lie below low, 2.0, but is 1.0"),
        (lambda: Slow(Constant(), (), -1.0), "Slow: factor must be a finite number above 0, not -1.0"),
        (lambda: Recorded({0: []}), "Recorded: there is no duration of worker 0"),
        (lambda: Recorded({1: [-1.0]}), "Recorded: a duration of worker 1 must be a finite number above 0, not -1.0"),
        (lambda: Recorded({1: [1.0]}).duration(0, 0), "Recorded: there is no duration of worker 0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            make()

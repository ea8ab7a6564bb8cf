"""What is said of samples, on samples made up by hand, and the plain method beside the machine."""

import math

import pytest
import torch

from untuned.systems.ising import (
    CIM,
    BoxQP,
    Ising,
    Samples,
    active_sets,
    brute_force,
    diversity,
    gaps,
    multi_start,
    roundtrip_fraction,
    running_gaps,
    sherrington_kirkpatrick,
    sparse_boxqp,
    success,
    time_to_target,
)

PROBLEM = BoxQP(torch.zeros(2, 2), torch.tensor([-60.0, -40.0]), optimum=-100.0)


def made(
    history: list[list[float]], x: list[list[float]] | None = None, diverged: list[bool] | None = None, step: int = 10
) -> Samples:
    """Samples of `PROBLEM` with this history, [R, S], recorded every `step` round trips."""
    values = torch.tensor(history, dtype=torch.float64)
    lost = torch.tensor(diverged or [False] * values.shape[1])
    points = torch.tensor(x or [[0.0, 0.0]] * values.shape[1])
    best = values.min(0).values.masked_fill(lost, math.inf)
    rounds = torch.arange(1, len(values) + 1) * step
    return Samples(PROBLEM, points, values[-1], best, rounds, values, lost, lost, points, points)


def test_gaps_are_relative_to_the_optimum() -> None:
    assert gaps(PROBLEM, torch.tensor([-100.0, -75.0, 50.0, math.inf])).tolist() == [0, 0.25, 1.5, math.inf]
    with pytest.raises(ValueError, match="BoxQP: a gap needs the optimum, which is not known"):
        gaps(BoxQP(torch.eye(1), torch.ones(1)), torch.zeros(1))
    with pytest.raises(ValueError, match="BoxQP: the gap is relative to the optimum, which is 0"):
        gaps(BoxQP(torch.eye(1), torch.ones(1), optimum=0.0), torch.zeros(1))


def test_success_is_the_best_gap_on_the_way_and_counts_the_diverged() -> None:
    found = made(
        [[-99.95, -99.0, -99.95, -100.0], [-90.0, -99.89, math.inf, -100.0]], diverged=[False, False, True, False]
    )
    assert success(found) == 2 / 4
    assert success(found, target=0.02) == 3 / 4
    running = running_gaps(found)
    assert running[1, 0].item() == pytest.approx(0.0005) and running[:, 2].isinf().all()


def test_time_to_target() -> None:
    assert time_to_target(0.01, 10.0) == pytest.approx(10 * math.log(0.01) / math.log(0.99))
    assert time_to_target(0.999, 10.0) == 10 == time_to_target(1.0, 10.0)
    assert time_to_target(0.0, 10.0) == math.inf
    with pytest.raises(ValueError, match="probability"):
        time_to_target(1.1, 1.0)


def test_roundtrip_fractions_by_hand() -> None:
    # medians of running minima (of two, the lower): fast -99, -100, -100; slow -50, -50, -98
    fast = made([[-99, -10], [-100, -10], [-10, -10]])
    slow = made([[-50, 0], [-50, 0], [-98, 0]])
    assert roundtrip_fraction(fast, slow, [50]) == {50: 10 / 30}  # the common gap is that of -98
    assert roundtrip_fraction(slow, fast, [50]) == {50: 3.0}
    assert roundtrip_fraction(fast, fast) == dict.fromkeys([5, 10, 25, 50], 1.0)
    lost = made([[-99, -99], [math.inf, -99], [math.inf, -99]], diverged=[True, False])
    assert roundtrip_fraction(lost, fast, [50, 100]) == {50: 1.0, 100: None}


def test_diversity_by_hand() -> None:
    x = [[0.0, 0.0], [0.1, 0.0], [1.0, 1.0], [math.nan, math.nan]]
    found = made([[-100.0, -96.0, -98.0, math.inf]], x, [False, False, False, True])
    of = diversity(found)
    assert (of.samples, of.distinct) == (3, 2) and diversity(found, decimals=1).distinct == 3
    assert of.distance == pytest.approx((0.1 + math.sqrt(2) + math.hypot(0.9, 1)) / 3 / math.sqrt(2))
    assert of.gap_spread == pytest.approx(math.sqrt(((0.02**2) * 2) / 3))
    none = diversity(made([[math.inf]], [[math.nan, math.nan]], [True]))
    assert (none.samples, none.distinct) == (0, 0) and math.isnan(none.distance) and math.isnan(none.gap_spread)


# ---------------------------------------------------------------- the plain method


def test_many_starts_find_the_optimum_and_stay_there() -> None:
    problem = sparse_boxqp(8, 0.8, torch.Generator().manual_seed(4))
    least, x = active_sets(problem)
    found = multi_start(problem, 32, 400, dtype=torch.float64)
    assert found.value.min().item() == pytest.approx(least, rel=1e-9)
    torch.testing.assert_close(found.x[found.value.argmin()], x, atol=1e-4, rtol=0)
    moved = (x - problem.gradient(x) / 100).clamp(0, 1)
    torch.testing.assert_close(moved, x, atol=1e-9, rtol=0)  # an optimum is a fixed point of the projected gradient
    assert (found.history.diff(dim=0)[5:] <= 1e-9).all() and not found.diverged.any()
    again = multi_start(problem, 32, 400, dtype=torch.float64)
    assert torch.equal(found.history, again.history) and torch.equal(found.x, again.x)
    assert (problem.value(found.x) == found.value).all() and (found.best <= found.value).all()


def test_a_sample_that_rests_starts_again() -> None:
    # two local minima, x = 0 with -0.2 and x = 1 with -1: every sample reaches the better one by restarts
    problem = BoxQP(torch.tensor([[-2.0]]), torch.tensor([1.2]), optimum=-0.8)
    few, many = (multi_start(problem, 64, steps, every=5) for steps in (12, 400))
    assert 0 < success(few) < 1 and success(many) == 1


def test_many_starts_round_spins() -> None:
    problem = sherrington_kirkpatrick(10, torch.Generator().manual_seed(0))
    energy, states = brute_force(problem)
    found = multi_start(problem, 16, 600)
    assert found.value.min().item() == energy and set(found.x.flatten().tolist()) == {0.0, 1.0}
    s = problem.spins(found.x[found.value.argmin()])
    assert (states == s * s[-1]).all(1).any()
    with pytest.raises(ValueError, match="from 1 on"):
        multi_start(problem, 0)


@pytest.mark.parametrize("feedback", ["gradient", "momentum", "adam"])
def test_the_machine_finds_ground_states(feedback: str) -> None:
    problem = sherrington_kirkpatrick(12, torch.Generator().manual_seed(0))
    known = Ising(problem.J, optimum=brute_force(problem)[0])
    found = CIM(feedback, samples=32, steps=2000, strength=550.0 * (20 if feedback != "adam" else 1)).solve(known)
    assert success(found) > 0.1

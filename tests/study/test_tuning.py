"""The grid of learning rates grows until every neighbour of every near-best rate has run."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from untuned.study.tuning import missing, on_grid

NAN = math.nan


def grown(function, lrs, tolerance=0.1, **options) -> list[float]:
    """All rates tried once `missing` asks for no more."""
    lrs = sorted(lrs)
    for _ in range(200):
        more = missing(lrs, [function(lr) for lr in lrs], tolerance, **options)
        if not more:
            return lrs
        assert not set(more) & set(lrs)
        lrs = sorted([*lrs, *more])
    raise AssertionError("does not come to an end")


def powers(*k: int, per_decade: int = 2) -> list[float]:
    return [on_grid(i, per_decade) for i in k]


def test_the_grid_prints_well_and_has_exact_decades():
    assert powers(-7, -6, -5, -1, 0, 1, 2) == [0.000316228, 0.001, 0.00316228, 0.316228, 1.0, 3.16228, 10.0]
    assert powers(1, 2, 3, per_decade=3) == [2.15443, 4.64159, 10.0]
    assert powers(-8, 0, 4, per_decade=1) == [1e-8, 1.0, 1e4]


@pytest.mark.parametrize("per_decade", [1, 2, 3, 4, 10])
def test_steps_along_the_grid_meet_it_exactly(per_decade: int):
    ratio = 10 ** (1 / per_decade)
    for k in range(-7 * per_decade, 3 * per_decade):
        assert missing([on_grid(k, per_decade)], [0.0], 0.0, ratio) == powers(k - 1, k + 1, per_decade=per_decade)


def test_best_in_the_middle_of_a_valley_is_finished():
    assert missing(powers(-6, -5, -4), [2.0, 1.0, 2.0], 0.1) == []
    assert missing(powers(-6, -5, -4), [2.0, 1.0, NAN], 0.1) == []
    assert missing(powers(-6, -5, -4), [2.0, 1.0, math.inf], 0.1) == []


def test_best_at_an_edge_asks_for_the_next_rate():
    assert missing(powers(-6, -5, -4), [1.0, 2.0, 3.0], 0.1) == powers(-7)
    assert missing(powers(-6, -5, -4), [3.0, 2.0, 1.0], 0.1) == powers(-3)
    assert missing(powers(-6, -5, -4), [0.5, 0.7, 0.9], 0.1, maximize=True) == powers(-3)


def test_a_near_best_rate_at_the_edge_counts_like_the_best():
    assert missing(powers(-6, -5, -4), [1.05, 1.0, 2.0], 0.1) == powers(-7)
    assert missing(powers(-6, -5, -4), [1.15, 1.0, 2.0], 0.1) == []
    assert missing(powers(-6, -5, -4), [1.0, 1.0, 1.0], 0.0) == powers(-7, -3)


def test_gaps_in_the_grid_are_filled_beside_near_best_rates_only():
    assert missing(powers(-8, -6, -4, -2), [5.0, 1.0, 5.0, 5.0], 0.1) == powers(-7, -5)
    assert missing(powers(-8, -6, -4), [1.0, 1.0, 1.0], 0.0) == powers(-9, -7, -5, -3)  # -7 and -5 once


def test_where_nothing_learned_the_grid_goes_downwards():
    assert missing(powers(-2, -1, 0), [NAN] * 3, 0.1) == powers(-3)
    assert grown(lambda lr: NAN, powers(-2, -1), limit=(1e-3, 1.0)) == powers(-6, -5, -4, -3, -2, -1)
    assert missing([100.0], [NAN], 0.1, limit=(1e-3, 1.0)) == [1.0]
    found = grown(lambda lr: abs(math.log10(lr) + 5) if lr < 1e-4 else NAN, powers(0))
    assert found == powers(*range(-11, 1))


def test_a_rate_written_with_one_digit_counts_as_its_grid_point():
    assert missing([1e-3, 3e-3, 1e-2], [2.0, 1.0, 2.0], 0.1) == []
    assert missing([1e-3, 3e-3, 1e-2], [1.0, 2.0, 3.0], 0.1) == powers(-7)
    assert missing([2e-3], [1.0], 0.1) == [0.000632456, 0.00632456]


def test_limit_ends_belong_to_it():
    assert missing([1e-7], [1.0], 0.1, ratio=10, limit=(1e-8, 1e-7)) == [1e-8]
    assert missing([1e-8], [1.0], 0.1, ratio=10, limit=(1e-8, 1e-7)) == [1e-7]
    assert missing([1e-8, 1e-7], [1.0, 1.0], 0.1, ratio=10, limit=(1e-8, 1e-7)) == []
    assert grown(lambda lr: 1.0, powers(0)) == powers(*range(-16, 9))  # flat: the whole default limit


@pytest.mark.parametrize("optimum", [-6.3, -3.0, -2.74, 0.6, 3.9])
@pytest.mark.parametrize("start", [(-6, -5), (0,), (-12, -11, -10)])
def test_a_valley_is_found_from_anywhere_and_tried_no_further_than_needed(optimum: float, start: tuple[int, ...]):
    def valley(lr: float) -> float:
        return (math.log10(lr) - optimum) ** 2

    grid = {k: valley(on_grid(k)) for k in range(-16, 9)}
    near = [k for k, value in grid.items() if value <= min(grid.values()) + 0.1]
    found = grown(valley, powers(*start))
    needed = set(powers(*range(min(near) - 1, min(max(near) + 1, 8) + 1)))
    assert needed <= set(found)
    assert set(found) <= set(powers(*range(min(*near, *start) - 1, max(*near, *start) + 2)))


@pytest.mark.parametrize("optimum", [-6.3, -2.74, 3.9])
def test_a_valley_is_found_from_two_far_rates(optimum: float):
    found = grown(lambda lr: (math.log10(lr) - optimum) ** 2, powers(-16, 8))
    assert min(abs(math.log10(lr) - optimum) for lr in found) <= 0.25 + 1e-6 and len(found) < 25


@given(
    st.lists(st.one_of(st.just(NAN), st.just(math.inf), st.floats(-2, 2)), min_size=25, max_size=25),
    st.sets(st.integers(0, 24), min_size=1, max_size=6),
    st.floats(0, 1),
    st.booleans(),
)
def test_any_function_comes_to_an_end_with_all_neighbours_tried(values, start, tolerance, maximize):
    table = dict(zip(powers(*range(-16, 9)), values, strict=True))
    grid = list(table)
    lrs = grown(table.__getitem__, [grid[i] for i in start], tolerance, maximize=maximize)
    results = np.array([table[lr] if math.isfinite(table[lr]) else NAN for lr in lrs])
    if np.isnan(results).all():
        assert lrs[0] == grid[0]
        return
    best = np.nanmax(results) if maximize else np.nanmin(results)
    for lr, result in zip(lrs, results, strict=True):
        if abs(result - best) <= tolerance:
            i = grid.index(lr)
            assert {grid[max(i - 1, 0)], grid[min(i + 1, 24)]} <= set(lrs)


@pytest.mark.parametrize(
    ("lrs", "means", "options", "reason"),
    [
        ([], [], {}, "one mean"),
        ([1.0], [1.0, 2.0], {}, "one mean"),
        ([1.0, 0.1], [1.0, 2.0], {}, "ascending"),
        ([0.0, 0.1], [1.0, 2.0], {}, "positive"),
        ([1.0], [1.0], {"ratio": 1.0}, "ratio"),
        ([1.0], [1.0], {"tolerance": -1.0}, "tolerance"),
        ([1.0], [1.0], {"limit": (1.0, 0.1)}, "limit"),
    ],
)
def test_refused_arguments(lrs, means, options, reason):
    with pytest.raises(ValueError, match=reason):
        missing(lrs, means, **{"tolerance": 0.1, **options})

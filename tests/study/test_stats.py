"""Closed forms of the study's statistics."""

import numpy as np
import pytest

from untuned.study.stats import Outcome, best, interval, median, plateau, seed_mean, summarize

LRS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
X = np.log10(LRS)


def outcome(method: str, finals: np.ndarray, diverged: np.ndarray | None = None, step_us: float = np.nan) -> Outcome:
    finals = np.asarray(finals, dtype=float)
    gone = np.zeros(finals.shape, dtype=bool) if diverged is None else diverged
    return Outcome(method, LRS, finals, gone, np.where(np.isnan(finals), np.nan, step_us))


def accuracy(*outcomes: Outcome) -> list:
    return summarize(outcomes, maximize=True, chance=0.1, tolerance=0.02)


def test_means_and_medians_leave_out_missing_values():
    np.testing.assert_array_equal(seed_mean(np.array([[1.0, np.nan, 2.0], [np.nan] * 3])), [1.5, np.nan])
    assert median(np.array([[9.0, np.nan], [1.0, 2.0]])) == 2.0
    assert np.isnan(median(np.array([np.nan])))


def test_interval_is_none_for_one_seed_and_the_range_for_two_or_three():
    assert interval(np.array([0.5])) is None
    assert interval(np.array([0.7, 0.5])) == pytest.approx((0.5, 0.7))
    assert interval(np.array([0.3, 0.1, 0.2])) == pytest.approx((0.1, 0.3))
    assert interval(np.array([0.4] * 5)) == pytest.approx((0.4, 0.4))


def test_interval_of_coin_flips_has_the_binomial_quantiles():
    # The bootstrap mean of 50 zeros and 50 ones is Binomial(100, 1/2) / 100, with 2.5 % and 97.5 % quantiles 40 and 60.
    flips = np.repeat([0.0, 1.0], 50)
    assert interval(flips) == pytest.approx((0.40, 0.60), abs=0.0051)
    low, high = interval(flips, level=0.5)  # quartiles 47 and 53
    assert (low, high) == pytest.approx((0.47, 0.53), abs=0.0051)


def test_interval_depends_on_the_set_of_values_not_on_their_order():
    values = np.random.default_rng(1).standard_normal(7)
    assert interval(values) == interval(values[::-1]) == interval(np.roll(values, 3))


def test_best_takes_the_smallest_learning_rate_of_a_tie_and_skips_missing_ones():
    assert best(np.array([np.nan, 0.8, 0.9, 0.9]), maximize=True) == 2
    assert best(np.array([3.0, 2.0, np.nan, 2.0]), maximize=False) == 1
    assert best(np.array([np.nan]), maximize=True) is None


@pytest.mark.parametrize("sign", [1, -1])
def test_plateau_of_a_tent_interpolates_on_log_lr(sign: int):
    # One unit lower per decade: within 0.3 of the top for 0.3 decades to each side.
    found = plateau(LRS, sign * (5 - abs(X + 1)), sign * 4.7, maximize=sign == 1)
    assert found is not None and not found.censored
    assert found.low == pytest.approx(10**-1.3) and found.high == pytest.approx(10**-0.7)
    assert found.decades == pytest.approx(0.6)


def test_plateau_spans_grid_points_and_slopes_of_both_sides():
    # Falls by 0.1 then 0.9: the left edge is half-way down the second segment, the right one 1/4 into the first.
    found = plateau(LRS, np.array([0.0, 0.8, 0.9, 0.1, 0.1]), 0.7, maximize=True)
    assert found is not None
    assert np.log10([found.low, found.high]) == pytest.approx([-2 - 0.1 / 0.8, -1 + 0.2 / 0.8])


def test_plateau_that_touches_an_end_or_a_missing_result_is_a_lower_bound():
    flat = plateau(LRS, np.full(5, 0.9), 0.88, maximize=True)
    assert flat is not None and flat.decades == pytest.approx(4) and flat.open_low and flat.open_high
    right = plateau(LRS, np.array([0.0, 0.0, 0.9, 0.9, 0.9]), 0.45, maximize=True)
    assert right is not None and (right.open_low, right.open_high) == (False, True)
    assert right.decades == pytest.approx(2.5)
    gap = plateau(LRS, np.array([np.nan, 0.9, 0.9, 0.0, 0.0]), 0.45, maximize=True)
    assert gap is not None and (gap.open_low, gap.open_high) == (True, False)
    assert gap.low == pytest.approx(1e-2) and gap.decades == pytest.approx(1.5)


def test_plateau_is_the_unbroken_range_around_the_best_and_may_be_empty():
    two_hills = np.array([0.89, 0.0, 0.0, 0.9, 0.0])
    found = plateau(LRS, two_hills, 0.45, maximize=True)
    assert found is not None and found.low == pytest.approx(10**-0.5)
    assert plateau(LRS, two_hills, 0.91, maximize=True) is None
    assert plateau(LRS, np.full(5, np.nan), 0.5, maximize=True) is None


def test_summary_measures_plateaus_from_the_own_best_and_from_the_best_of_all():
    sharp = np.stack([0.9 - 0.1 * abs(X + 1)] * 3, axis=1) + np.array([-0.001, 0.0, 0.001])
    broad = np.stack([0.89 - 0.01 * abs(X + 1)] * 3, axis=1)
    a, b = accuracy(outcome("sharp", sharp), outcome("broad", broad))
    assert (a.best_lr, a.n, a.runs) == (0.1, 3, 15)
    assert a.mean == pytest.approx(0.9) and a.interval == pytest.approx((0.899, 0.901))
    assert a.own.decades == pytest.approx(0.4) and a.overall == a.own
    assert b.own.decades == pytest.approx(4) and b.own.censored
    assert b.overall.decades == pytest.approx(2) and not b.overall.censored


def test_summary_of_a_method_that_learns_nothing_has_no_plateau():
    good = outcome("good", np.full((5, 1), 0.8))
    dead = outcome("dead", np.full((5, 2), 0.1), np.ones((5, 2), dtype=bool))
    poor = outcome("poor", np.full((5, 1), 0.119))
    absent = outcome("absent", np.full((5, 2), np.nan))
    _, d, p, a = accuracy(good, dead, poor, absent)
    assert (d.best_lr, d.mean, d.n, d.own, d.overall, d.diverged, d.runs) == (1e-3, 0.1, 2, None, None, 10, 10)
    assert p.own is None
    assert (a.n, a.runs, a.interval, a.own) == (0, 0, None, None) and np.isnan([a.best_lr, a.mean]).all()


def test_summary_with_a_minimised_metric():
    loss = np.stack([2.0 + abs(X + 1)] * 2, axis=1)
    (s,) = summarize([outcome("sgd", loss)], maximize=False, chance=6.0, tolerance=0.25)
    assert s.best_lr == 0.1 and s.mean == 2.0 and s.own.decades == pytest.approx(0.5) and s.overall == s.own


def test_step_cost_is_relative_to_adam_or_else_to_the_cheapest():
    ones = np.full((5, 1), 0.5)
    methods = [outcome("sgd", ones, step_us=50), outcome("adam", ones, step_us=100), outcome("new", ones, step_us=150)]
    assert [s.step_ratio for s in accuracy(*methods)] == [0.5, 1.0, 1.5]
    assert [s.step_ratio for s in accuracy(methods[0], methods[2])] == [1.0, 3.0]
    unmeasured = accuracy(outcome("adam", ones), methods[2])
    assert np.isnan(unmeasured[0].step_ratio) and unmeasured[1].step_ratio == 1.0

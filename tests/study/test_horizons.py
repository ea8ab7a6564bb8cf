"""Share of the budget reached, tuning-free regret and the exchange rate: closed forms and invariances."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import curve_fit

from untuned.study.horizons import fit_exchange_rate, regret, share_reached

H = np.array([1 / 16, 1 / 8, 1 / 4, 1 / 2, 1])
L = np.array([3.0, 2.5, 2.0, 1.8, 1.7])
UNTRAINED = 4.0

LOSSES = st.lists(st.floats(-3, 3), min_size=5, max_size=5)
LOSS = st.floats(-4, 4)


def power_law(a: float, b: float, c: float, h=H):
    return a * np.asarray(h) ** -b + c


# ---------------------------------------------------------------- share of the budget


def test_share_meets_its_nodes_exactly():
    np.testing.assert_array_equal(share_reached(H, L, UNTRAINED, L), H)
    np.testing.assert_array_equal(regret(H, L, UNTRAINED, L), 1 - H)
    assert share_reached(H, L, UNTRAINED, UNTRAINED) == 0


@given(st.lists(st.integers(1, 999), min_size=1, max_size=6, unique=True))
def test_share_meets_the_nodes_of_any_horizons_exactly(thousandths):
    horizons = np.array([*sorted(thousandths), 1000]) / 1000
    losses = np.linspace(3, 1, len(horizons))
    np.testing.assert_array_equal(share_reached(horizons, losses, UNTRAINED, losses), horizons)
    above = share_reached(horizons, losses, UNTRAINED, np.nextafter(losses, 9))
    assert (above <= horizons).all()


def test_share_between_nodes_is_linear_in_the_logarithm_and_below_the_first_in_the_horizon():
    assert share_reached(H, L, UNTRAINED, 3.75) == pytest.approx(1 / 64)
    assert share_reached(H, L, UNTRAINED, 2.75) == pytest.approx(1 / 16 * 2**0.5)
    assert share_reached(H, L, UNTRAINED, 1.725) == pytest.approx(0.5 * 2**0.75)


def test_share_of_losses_that_fall_with_the_logarithm_is_exact_everywhere():
    horizons = np.geomspace(1e-3, 1, 300)
    losses = 2 - 0.3 * np.log(H)
    np.testing.assert_allclose(
        share_reached(H, losses, 9.0, 2 - 0.3 * np.log(horizons))[horizons >= H[0]],
        horizons[horizons >= H[0]],
        rtol=1e-12,
    )


def test_share_of_what_learned_nothing_is_0_and_of_what_beats_tuned_adamw_1():
    nothing = [4.0, 5.0, np.nan, np.inf, -np.inf]
    np.testing.assert_array_equal(share_reached(H, L, UNTRAINED, nothing), np.zeros(5))
    np.testing.assert_array_equal(share_reached(H, L, UNTRAINED, [1.7, 1.6, -1e300]), np.ones(3))
    assert regret(H, L, UNTRAINED, np.nan) == 1 and regret(H, L, UNTRAINED, 1.0) == 0


def test_share_on_a_flat_stretch_is_the_earliest_horizon():
    assert share_reached(H, [3, 2, 2, 2, 2], UNTRAINED, 2.0) == 1 / 8
    assert share_reached(H, [3, 2, 2, 2, 2], UNTRAINED, 1.999) == 1
    assert share_reached(H, [3, 2, 2, 2, 1], UNTRAINED, 1.5) == pytest.approx(0.5 * 2**0.5)
    assert share_reached(H, [4, 4, 4, 4, 4], UNTRAINED, 4.0) == 0
    assert share_reached(H, [4, 4, 4, 4, 4], UNTRAINED, 3.9) == 1


def test_a_longer_horizon_that_ended_worse_or_diverged_counts_with_the_best_before():
    risen = share_reached(H, [3, 2, 2.5, 5, 1], UNTRAINED, [2.7, 2.2, 1.5])
    np.testing.assert_array_equal(risen, share_reached(H, [3, 2, 2, 2, 1], UNTRAINED, [2.7, 2.2, 1.5]))
    gone = share_reached(H, [np.nan, 2, -np.inf, np.inf, 1], UNTRAINED, [3.0, 1.5])
    assert gone == pytest.approx([1 / 16 * 2**0.5, 0.5 * 2**0.5])
    assert share_reached(H, [5, 6, 7, 8, 9], UNTRAINED, [3.9, 4.0]).tolist() == [1, 0]


def test_share_with_two_horizons_and_with_one():
    assert share_reached([0.25, 1], [2, 1], 3, [2.5, 2, 1.5, 1]).tolist() == pytest.approx([0.125, 0.25, 0.5, 1])
    assert share_reached([1], [1], 3, [3, 2, 1, 0]).tolist() == [0, 0.5, 1, 1]


def test_share_keeps_the_shape_of_the_losses():
    grid = np.linspace(1, 5, 24).reshape(2, 3, 4)
    found = share_reached(H, L, UNTRAINED, grid)
    assert found.shape == grid.shape and share_reached(H, L, UNTRAINED, 2.0).shape == ()
    np.testing.assert_array_equal(found.ravel(), [share_reached(H, L, UNTRAINED, x) for x in grid.ravel()])


@given(LOSSES, st.floats(-3, 3), st.lists(LOSS, min_size=2, max_size=20))
def test_share_is_monotone_and_lies_between_0_and_1(losses, untrained, wanted):
    shares = share_reached(H, losses, untrained, np.sort(wanted))
    assert (np.diff(shares) <= 0).all() and (shares >= 0).all() and (shares <= 1).all()
    at_nodes = share_reached(H, losses, untrained, losses)
    assert (at_nodes <= H).all()  # reached at its own horizon at the latest


@given(LOSSES, LOSS, st.integers(-20, 20), st.integers(-4, 4))
def test_share_does_not_change_with_shift_and_scale_of_the_loss(losses, loss, power, shift):
    losses, loss = np.round(losses, 3), np.round(loss, 3)
    scale = 2.0**power
    moved = share_reached(H, scale * losses + shift * scale, scale * (4 + shift), scale * (loss + shift))
    # A level met exactly may be missed by a rounding after the shift, which on a flat stretch is another horizon.
    if np.min(np.abs(losses - loss)) > 0 or shift == 0:
        assert moved == pytest.approx(share_reached(H, losses, 4.0, loss), rel=1e-8)


@pytest.mark.parametrize(
    ("horizons", "losses", "untrained", "reason"),
    [
        ([0.5, 0.25, 1], [3, 2, 1], 4, "rise"),
        ([0.0, 1], [3, 2], 4, "rise"),
        ([0.25, 0.5], [3, 2], 4, "rise"),
        ([0.5, 1], [3, 2, 1], 4, "one loss"),
        ([], [], 4, "one loss"),
        ([0.5, 1], [3, 2], np.nan, "untrained"),
    ],
)
def test_refused_horizons(horizons, losses, untrained, reason):
    with pytest.raises(ValueError, match=reason):
        share_reached(horizons, losses, untrained, 2.0)


# ---------------------------------------------------------------- exchange rate


@pytest.mark.parametrize("h", [H, H[2:], np.geomspace(0.01, 1, 12)])
@given(a=st.floats(0.05, 5), b=st.floats(0.1, 1.5), c=st.floats(-3, 3))
def test_a_power_law_gives_back_its_own_horizons(h, a, b, c):
    fit = fit_exchange_rate(h, power_law(a, b, c, h))
    assert fit.useful, fit
    assert (fit.a, fit.b, fit.c) == pytest.approx((a, b, c), rel=1e-4, abs=1e-4)
    asked = np.array([0.05, 0.3, 1.0, 2.0])
    np.testing.assert_allclose(fit.effective(power_law(a, b, c, asked)), asked, rtol=1e-4)
    np.testing.assert_allclose(fit.loss(asked), power_law(a, b, c, asked), rtol=1e-4, atol=1e-4)
    assert fit.residual < 1e-6


def test_speed_up_is_the_effective_share_over_the_share_spent():
    fit = fit_exchange_rate(H, power_law(0.5, 0.4, 1.0))
    assert fit.speed_up(power_law(0.5, 0.4, 1.0, 1.4)) == pytest.approx(1.4)
    assert fit.speed_up(power_law(0.5, 0.4, 1.0, 1.4), spent=0.5) == pytest.approx(2.8)
    assert fit.speed_up(power_law(0.5, 0.4, 1.0, [0.25, 0.5]), [0.25, 0.5]) == pytest.approx([1, 1])


def test_effective_share_of_losses_outside_the_law():
    fit = fit_exchange_rate(H, power_law(0.5, 0.4, 1.0))
    np.testing.assert_array_equal(fit.effective([fit.c, 0.0, np.nan, np.inf, -np.inf]), [np.inf, np.inf, 0, 0, 0])
    assert 0 <= fit.effective(1e300) < 1e-100


@given(st.lists(LOSS, min_size=2, max_size=20))
def test_effective_share_falls_with_the_loss(wanted):
    fit = fit_exchange_rate(H, power_law(0.5, 0.4, 1.0))
    found = fit.effective(np.sort(wanted))
    assert (found[:-1] >= found[1:]).all() and (found >= 0).all()


@given(st.floats(1e-3, 1e3), st.floats(-10, 10), st.integers(0, 20))
def test_fit_follows_shift_and_scale_of_the_loss(scale, shift, seed):
    losses = power_law(0.5, 0.4, 1.0) + 0.01 * np.random.default_rng(seed).standard_normal(5)
    fit, moved = fit_exchange_rate(H, losses), fit_exchange_rate(H, scale * losses + shift)
    assert moved.b == pytest.approx(fit.b, rel=1e-3)
    assert moved.residual == pytest.approx(scale * fit.residual, rel=1e-3)
    assert moved.effective(scale * 1.6 + shift) == pytest.approx(fit.effective(1.6), rel=1e-3, nan_ok=True)


def test_noise_shows_in_residual_and_error_of_the_floor():
    h = np.geomspace(0.01, 1, 30)
    truth = power_law(0.3, 0.5, 1.0, h)
    found = [fit_exchange_rate(h, truth + 0.02 * np.random.default_rng(s).standard_normal(30)) for s in range(60)]
    assert np.mean([fit.residual for fit in found]) == pytest.approx(0.02 * np.sqrt(27 / 30), rel=0.05)
    pulls = [(fit.c - 1.0) / fit.c_error for fit in found]
    assert 0.7 < np.std(pulls) < 1.3 and all(fit.useful for fit in found)


@pytest.mark.parametrize("seed", range(3))
def test_fit_and_error_of_the_floor_are_those_of_a_general_fitter(seed):
    h = np.geomspace(0.01, 1, 8)
    losses = power_law(0.3, 0.5, 1.0, h) + 0.02 * np.random.default_rng(seed).standard_normal(8)
    fit = fit_exchange_rate(h, losses)
    values, covariance = curve_fit(lambda x, a, b, c: a * x**-b + c, h, losses, p0=(0.3, 0.5, 1.0))
    assert (fit.a, fit.b, fit.c) == pytest.approx(values, rel=1e-4)
    assert fit.c_error == pytest.approx(covariance[2, 2] ** 0.5, rel=1e-3)


def test_missing_horizons_are_left_out():
    losses = power_law(0.5, 0.4, 1.0)
    losses[1] = np.nan
    losses[3] = np.inf
    fit = fit_exchange_rate(H, losses)
    assert fit.c == pytest.approx(1.0, rel=1e-4) and np.isnan(fit.c_error)
    with pytest.raises(ValueError, match="three horizons, not 2"):
        fit_exchange_rate([0.5, 1], [2, 1])
    with pytest.raises(ValueError, match="three horizons, not 2"):
        fit_exchange_rate(H, [3, np.nan, np.nan, np.nan, 1])


@pytest.mark.parametrize(
    ("losses", "problem"),
    [
        ([2, 2, 2, 2, 2], "do not fall"),
        ([1, 2, 3, 4, 5], "do not fall"),
        (2 - 0.3 * np.log(H), "like a logarithm"),
        ([5.0, 4.9, 4.5, 3.5, 1.0], "do not follow"),
        ([9.0, 1.0, 1.0, 1.0, 1.0], "reached their floor"),
        ([3.0, 2.0, 1.9, 1.9, 1.9], "reached their floor"),
        ([3, 1, 3, 1, 2], "do not follow"),
        (2 * H**-0.1 + [0.0, 0.02, -0.01, -0.01, 0.0], "its error is larger"),
    ],
)
def test_a_useless_fit_says_why_and_answers_nothing(losses, problem):
    fit = fit_exchange_rate(H, losses)
    assert not fit.useful
    assert re.search(problem, fit.problem), fit
    assert np.isnan(fit.effective([1.0, 2.0])).all() and np.isnan(fit.speed_up(1.0))

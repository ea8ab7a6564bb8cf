"""Aggregates over tasks and seeds: closed forms, symmetries and the coverage of the intervals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binom, mannwhitneyu, trim_mean

from untuned.study.aggregate import (
    compare,
    iqm,
    largest_task_mean,
    mean,
    paired,
    performance_profile,
    probability_of_improvement,
    smallest_task_mean,
    stratified_interval,
)
from untuned.study.rules import Rule

NAN = np.nan
SCORES = arrays(
    float, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=st.floats(-5, 5).map(lambda x: x + 0.0)
)


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def shuffled(a: np.ndarray, seed: int = 0) -> np.ndarray:
    """Tasks in another order, and seeds in another order within each task."""
    rng = np.random.default_rng(seed)
    return rng.permuted(a, axis=1)[rng.permutation(len(a))]


# ---------------------------------------------------------------- statistics


@given(SCORES)
def test_statistics_of_complete_scores(scores: np.ndarray):
    assert mean(scores) == pytest.approx(np.mean(scores))
    assert iqm(scores) == pytest.approx(trim_mean(scores, 0.25, axis=None))
    assert largest_task_mean(scores) == pytest.approx(scores.mean(axis=1).max())
    assert smallest_task_mean(scores) == pytest.approx(scores.mean(axis=1).min())


def test_statistics_take_any_number_of_leading_axes():
    scores = noise(0, 2, 3, 4, 5)
    scores[0, 1, 2, 3:] = NAN
    for statistic in (mean, iqm, largest_task_mean, smallest_task_mean):
        each = [[statistic(scores[i, j]) for j in range(3)] for i in range(2)]
        np.testing.assert_allclose(statistic(scores), each, rtol=1e-14)


def test_missing_runs_and_tasks_are_left_out():
    scores = np.array([[1.0, NAN, NAN], [2.0, 4.0, NAN], [NAN, NAN, NAN]])
    assert mean(scores) == 2.0  # tasks weigh the same: (1 + 3) / 2
    assert iqm(np.array([[0.0, 1.0, NAN], [3.0, NAN, 100.0]])) == 2.0
    assert (largest_task_mean(scores), smallest_task_mean(scores)) == (3.0, 1.0)
    empty = np.full((2, 2), NAN)
    assert np.isnan([mean(empty), iqm(empty), largest_task_mean(empty), smallest_task_mean(empty)]).all()


def test_interquartile_mean_is_deaf_to_the_outer_quarters():
    scores = np.arange(8.0).reshape(2, 4)
    wild = np.array([[-1e9, -1e9, 2, 3], [4, 5, 1e9, 1e9]])
    assert iqm(scores) == iqm(wild) == 3.5


@given(SCORES, st.integers(0, 9))
def test_probability_of_improvement_is_mann_whitney(scores: np.ndarray, seed: int):
    scores = np.round(scores)  # with ties
    other = shuffled(scores, seed)[:, : 1 + seed % scores.shape[1]]
    pairs = scores.shape[1] * other.shape[1]
    expected = [mannwhitneyu(x, y).statistic / pairs for x, y in zip(scores, other, strict=True)]
    found = probability_of_improvement(scores, other)
    assert found == pytest.approx(np.mean(expected))
    assert probability_of_improvement(scores, other, higher_is_better=False) == pytest.approx(1 - found)


# ---------------------------------------------------------------- intervals


def test_interval_over_seeds_of_coin_flips_has_the_binomial_quantiles():
    flips = np.tile([0.0, 1.0], (4, 25))  # resampled within four tasks of 50 runs: Binomial(200, 1/2) / 200
    expected = binom.ppf([0.025, 0.975], 200, 0.5) / 200
    assert stratified_interval(flips, mean) == pytest.approx(expected, abs=0.0051)
    assert stratified_interval(flips, mean, level=0.5) == pytest.approx(
        binom.ppf([0.25, 0.75], 200, 0.5) / 200, abs=0.0051
    )


def test_interval_over_seeds_does_not_see_how_tasks_differ_and_that_over_tasks_does():
    scores = np.repeat([[0.0], [1.0]] * 10, 5, axis=1)  # no noise within 20 tasks, ten at 0 and ten at 1
    assert stratified_interval(scores, mean) == (0.5, 0.5)
    expected = binom.ppf([0.025, 0.975], 20, 0.5) / 20
    assert stratified_interval(scores, mean, tasks=True) == pytest.approx(expected, abs=0.051)


@pytest.mark.parametrize("tasks", [False, True])
def test_intervals_do_not_depend_on_the_order_of_tasks_and_seeds(tasks: bool):
    scores = noise(1, 6, 4)
    scores[2, 1:3] = NAN
    gap = np.concatenate([scores, np.full((1, 4), NAN)])
    for statistic in (mean, iqm, largest_task_mean):
        found = {stratified_interval(shuffled(gap, seed), statistic, tasks=tasks) for seed in range(4)}
        assert found == {stratified_interval(scores, statistic, tasks=tasks)}


@pytest.mark.parametrize("tasks", [False, True])
def test_intervals_move_with_shift_and_scale(tasks: bool):
    scores = noise(2, 5, 4)
    for statistic in (mean, iqm, smallest_task_mean):
        low, high = stratified_interval(scores, statistic, tasks=tasks)
        moved = stratified_interval(3 * scores - 7, statistic, tasks=tasks)
        assert moved == pytest.approx((3 * low - 7, 3 * high - 7))


def test_interval_is_none_where_the_spread_cannot_be_seen():
    assert stratified_interval([[1.0], [2.0], [3.0]], mean) is None
    assert stratified_interval([[1.0, 2.0], [2.0, NAN]], mean) is None
    assert stratified_interval([[1.0, 2.0]], mean, tasks=True) is None
    assert stratified_interval(np.full((3, 2), NAN), mean) is None
    assert stratified_interval([[1.0], [2.0], [3.0]], mean, tasks=True) == pytest.approx((1.0, 3.0))


def test_interval_over_seeds_covers_as_often_as_it_says():
    # 10 seeds on 5 tasks with means of their own: the resampled mean has 0.9 of the variance, so 95 % becomes 93.7 %.
    truth, hits = np.arange(5.0), 0
    for seed in range(200):
        low, high = stratified_interval(truth[:, None] + noise(seed, 5, 10), mean)
        hits += low <= truth.mean() <= high
    assert binom.ppf(0.001, 200, 0.937) <= hits <= binom.ppf(0.999, 200, 0.937)


def test_refused_scores():
    with pytest.raises(ValueError, match=r"\(tasks, seeds\)"):
        stratified_interval([1.0, 2.0], mean)
    with pytest.raises(ValueError, match="finite"):
        stratified_interval([[1.0, np.inf]], mean)
    with pytest.raises(ValueError, match="same tasks and seeds"):
        compare(np.zeros((2, 3)), np.zeros((2, 2)))


# ---------------------------------------------------------------- profiles


def test_profile_counts_runs_and_below_is_its_complement():
    scores = np.array([[0.0, 1.0, NAN], [1.0, 2.0, 3.0]])
    above = performance_profile(scores, [-1.0, 0.0, 1.0, 2.5, 3.0])
    np.testing.assert_allclose(above.share, [1, (1 / 2 + 1) / 2, (0 + 2 / 3) / 2, 1 / 6, 0])
    below = performance_profile(scores, above.thresholds, above=False)
    np.testing.assert_allclose(below.share, 1 - above.share)
    np.testing.assert_allclose(below.low, 1 - above.high, atol=1e-12)


@pytest.mark.parametrize("tasks", [False, True])
def test_profile_falls_and_lies_in_its_band(tasks: bool):
    profile = performance_profile(noise(3, 6, 5), np.linspace(-3, 3, 21), tasks=tasks)
    for curve in (profile.share, profile.low, profile.high):
        assert (np.diff(curve) <= 1e-12).all() and (curve >= -1e-12).all() and (curve <= 1 + 1e-12).all()
    assert (profile.low <= profile.share + 1e-12).all() and (profile.share <= profile.high + 1e-12).all()
    assert (profile.high - profile.low).max() > 0.1


def test_profile_band_is_that_of_the_mean_of_the_indicator():
    scores = noise(4, 6, 5)
    profile = performance_profile(scores, [0.3])
    low, high = stratified_interval(np.where(scores > 0.3, 1.0, 0.0), mean)
    assert (profile.low[0], profile.high[0]) == pytest.approx((low, high), abs=0.04)
    assert np.isnan(performance_profile([[1.0], [2.0]], 0.0).low).all()


# ---------------------------------------------------------------- two methods


def test_what_a_seed_does_to_both_methods_cancels():
    luck = 10 * noise(5, 6, 4)
    found = paired(luck + 0.1 + 0.01 * noise(6, 6, 4), luck)
    assert found.mean.interval == pytest.approx((0.1, 0.1), abs=0.02)
    alone = stratified_interval(luck, mean, tasks=True)
    assert alone[1] - alone[0] > 100 * (found.mean.interval[1] - found.mean.interval[0])


def test_paired_comparison_counts_tasks_and_uses_runs_that_both_have():
    a = np.array([[1.0, 3.0], [5.0, 5.0], [2.0, 100.0], [NAN, NAN]])
    b = np.array([[2.0, 4.0], [5.0, 5.0], [1.0, NAN], [0.0, 0.0]])
    found = paired(a, b)
    assert (found.won, found.tied, found.lost, found.tasks, found.runs) == (1, 1, 1, 3, 5)
    assert found.mean.value == pytest.approx((2 + 5 + 2) / 3 - (3 + 5 + 1) / 3)
    assert found.iqm.value == iqm(np.array([[1, 3, 5, 5, 2.0]])) - iqm(np.array([[2, 4, 5, 5, 1.0]]))
    assert found.probability.value == pytest.approx((3 / 4 + 1 / 2 + 0) / 3)
    assert paired(a, b, higher_is_better=True).won == 1
    assert (paired(a, b, margin=1.0).tied, paired(b[:1], a[:1], higher_is_better=True).won) == (3, 1)


@given(SCORES, st.sampled_from(["mean", "iqm", "probability"]), st.booleans())
def test_exchanging_the_methods_turns_the_comparison_around(scores: np.ndarray, statistic: str, tasks: bool):
    a, b = np.round(scores), np.round(shuffled(scores + 0.4))
    there, back = compare(a, b, statistic, tasks=tasks), compare(b, a, statistic, tasks=tasks)
    whole = 1.0 if statistic == "probability" else 0.0
    assert there.value == pytest.approx(whole - back.value)
    assert (there.interval is None) == (back.interval is None)
    if there.interval and back.interval:
        assert there.interval == pytest.approx((whole - back.interval[1], whole - back.interval[0]))


def test_comparison_does_not_depend_on_order():
    a, b = noise(7, 5, 4), noise(8, 5, 4)
    b[3, 2] = NAN
    order = np.random.default_rng(0).permutation(5)
    for statistic in ("mean", "iqm", "probability"):
        found = compare(a, b, statistic)
        moved = compare(a[order][:, ::-1], b[order][:, ::-1], statistic)
        assert moved.interval == found.interval and moved.value == pytest.approx(found.value)


def test_probability_of_methods_that_never_meet():
    a, b = noise(9, 6, 3), noise(10, 6, 3) + 100
    assert paired(a, b).probability.value == 1.0 and paired(a, b).probability.interval == (1.0, 1.0)
    assert paired(a, b, higher_is_better=True).probability.interval == (0.0, 0.0)


def test_probability_draws_the_runs_of_the_two_methods_independently():
    # Drawn in pairs, equal runs tie in every resample; independently, both of a's may be 0 and both of b's 1 (1 in 16).
    found = compare([[0.0, 1.0]], [[0.0, 1.0]], "probability", tasks=False)
    assert found.value == 0.5 and found.interval == (0.0, 1.0)


# ---------------------------------------------------------------- the rule

A, B = noise(11, 8, 3) * 0.01, noise(12, 8, 3) * 0.01


@pytest.mark.parametrize("statistic", ["mean", "iqm"])
def test_rule_has_four_answers(statistic: str):
    rule = Rule(statistic, margin=0.05)
    assert rule.verdict(A, B + 0.1) == "better" and rule.verdict(A + 0.1, B) == "worse"
    assert rule.verdict(A, B) == "no difference of more than the margin"
    assert rule.verdict(A, B + 0.05) == "cannot be told"
    assert Rule(statistic, margin=0.05, higher_is_better=True).verdict(A, B + 0.1) == "worse"


def test_rule_of_the_probability():
    assert Rule("probability", 0.2).verdict(A, B + 0.1) == "better"
    assert Rule("probability", 0.2, higher_is_better=True).verdict(A, B + 0.1) == "worse"
    assert Rule("probability", 0.49).verdict(A, B) == "no difference of more than the margin"
    assert Rule("probability", 0.0).verdict(A, B) == "cannot be told"


def test_rule_without_enough_runs_cannot_tell():
    assert Rule(tasks=True).verdict(A[:1], B[:1] + 1) == "cannot be told"
    assert Rule(tasks=False).verdict(A[:, :1], B[:, :1] + 1) == "cannot be told"
    assert Rule(tasks=True).verdict(A[:, :1], B[:, :1] + 1) == "better"
    assert Rule().verdict(A, np.full_like(A, NAN)) == "cannot be told"


def test_rule_gives_opposite_verdicts_to_the_two_methods():
    opposite = {"better": "worse", "worse": "better"}
    for shift in np.linspace(-0.03, 0.03, 7):
        for statistic in ("mean", "iqm", "probability"):
            rule = Rule(statistic, margin=0.01)
            there, back = rule.verdict(A, B + shift), rule.verdict(B + shift, A)
            assert back == opposite.get(there, there)


def test_a_wide_difference_among_tasks_is_a_finding_about_these_tasks_only():
    a = np.array([[-0.3] * 5, [0.02] * 5, [0.01] * 5]) + 0.001 * noise(13, 3, 5)
    b = 0.001 * noise(14, 3, 5)
    assert Rule(tasks=False).verdict(a, b) == "better"
    assert Rule(tasks=True).verdict(a, b) == "cannot be told"


def test_rule_states_itself_in_a_sentence():
    assert str(Rule("iqm", 0.05)) == (
        "A method is better than another if the 95 % interval of its interquartile mean's lead over the other's lies "
        "above 0.05, worse if it lies below -0.05, not different by more than the margin if it lies from -0.05 to "
        "0.05, and else it cannot be told (smaller scores are better; stratified bootstrap over tasks and seeds, "
        "10000 resamples)."
    )
    probability = str(Rule("probability", 0.1, level=0.9, higher_is_better=True, tasks=False))
    assert "90 % interval of the probability that its run beats the other's on the same task lies above 0.6" in (
        probability
    )
    assert "from 0.4 to 0.6" in probability and "larger scores" in probability and "seeds within each" in probability
    assert "below 0, not different by more than the margin if it lies at 0" in str(Rule())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"statistic": "median"}, "mean, iqm, probability"),
        ({"margin": -0.1}, "margin"),
        ({"margin": float("nan")}, "margin"),
        ({"statistic": "probability", "margin": 0.5}, "margin"),
        ({"level": 95}, "level"),
    ],
)
def test_rule_refuses_what_it_cannot_mean(options: dict, reason: str):
    with pytest.raises(ValueError, match=reason):
        Rule(**options)

"""Refined schedules, the bound, its minimiser and the shapes: what arXiv 2310.07831 implies, in closed form."""

import itertools
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import untuned
from untuned.schedules import SHAPES, Schedule, bound, numeric, refine
from untuned.schedules.refine import from_weights, median_filter, resample, window_of
from untuned.schedules.shapes import sampled

positive = st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=60)


# ---------------------------------------------------------------- refinement


@pytest.mark.parametrize("power", [1, 2, 0.5])
@pytest.mark.parametrize("norm", [1.0, 1e-3, 7.7e150, 3e-300])
@pytest.mark.parametrize("count", [2, 3, 10, 997])
def test_constant_norms_give_linear_decay_exactly(count: int, norm: float, power: float) -> None:
    found = refine([norm] * count, power)
    assert found.tolist() == [(count - s) / count for s in range(count)]
    assert from_weights(np.full(count, 3.0)) == pytest.approx(
        [(count - 1 - i) / (count - 1) for i in range(count)], abs=1e-15
    )
    assert resample(found, 13) == pytest.approx([(13 - s) / 13 for s in range(13)], abs=1e-15)


def test_falling_norms_warm_up() -> None:
    """G_t = t^-1/2: w_t = t, and the peak is at T / sqrt(3)."""
    t = np.arange(1, 51)
    wanted = t * (50 * 51 - t * (t + 1)) / 2
    assert from_weights(t) == pytest.approx(wanted / wanted.max(), rel=1e-14)
    found = refine(t**-0.5, power=2, tau=0.0)
    wanted = t * (50 * 51 - t * (t + 1) + 100) / 2  # the last norm counts twice
    assert found == pytest.approx(wanted / wanted.max(), rel=1e-13)
    assert int(found.argmax()) + 1 == 29


@given(positive, st.floats(1e-6, 1e6), st.sampled_from([1, 2]))
@settings(max_examples=60, deadline=None)
def test_the_scale_of_the_norms_does_not_matter(norms: list[float], scale: float, power: int) -> None:
    found = refine(norms, power)
    assert refine(np.array(norms) * scale, power) == pytest.approx(found, rel=1e-12)
    assert found.max() == 1
    assert (found > 0).all()


def test_more_samples_of_the_same_time_converge_to_the_same_schedule() -> None:
    norms = 1 + 0.5 * np.sin(np.arange(40) / 5)
    curves = {r: refine(np.repeat(norms, r), 2, tau=0.0)[r - 1 :: r] for r in (4, 16, 64, 256)}
    errors = [np.abs(curves[r] - curves[256]).max() for r in (4, 16, 64)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 2e-3


def test_the_schedule_makes_sgd_the_schedule_free_average() -> None:
    """y of Schedule-Free with beta_t = W_{1:t} / W_{1:T} is plain SGD under the schedule (1.2)."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(5, 5))
    quadratic, gamma, steps = root @ root.T / 5, 0.1, 30
    w = rng.uniform(0.1, 2.0, steps)
    total = np.cumsum(w)
    eta = from_weights(w) * (w * (total[-1] - total) / total[-1]).max()
    start = rng.normal(size=5)
    z = x = y = plain = start
    for t in range(steps):
        assert y == pytest.approx(plain, abs=1e-13)
        step = w[t] * (quadratic @ y)
        plain = plain - gamma * eta[t] * (quadratic @ plain)
        z = z - gamma * step
        if t + 1 < steps:
            share = w[t + 1] / total[t + 1]
            beta = total[t + 1] / total[-1]
            x = (1 - share) * x + share * z
            y = (1 - beta) * z + beta * x
    assert x == pytest.approx(y, abs=1e-13)  # the last point is the average


def test_the_weights_are_the_best() -> None:
    rng = np.random.default_rng(1)
    G, D = rng.uniform(0.2, 3.0, 20), 1.7
    S = (G**-2.0).sum()

    def value(w: Any) -> float:
        return (D**2 / 2 + (w**2 * G**2).sum() / 2) / w.sum()

    best = D * G**-2.0 / np.sqrt(S)
    assert value(best) == pytest.approx(D / np.sqrt(S), rel=1e-14)
    assert all(value(best * np.exp(0.1 * rng.normal(size=20))) > value(best) for _ in range(1000))


def test_another_horizon_keeps_the_shape() -> None:
    norms = np.exp(-((np.arange(200) / 100 - 0.7) ** 2))
    found = refine(norms, 2)
    assert refine(norms, 2, steps=200).tolist() == found.tolist()
    longer = refine(norms, 2, steps=800)
    assert len(longer) == 800
    assert longer[::4] == pytest.approx(found, rel=1e-12)
    assert len(refine(norms, 2, steps=1)) == 1
    assert refine(norms, 2, steps=7).max() == 1


# ---------------------------------------------------------------- the median filter


def test_the_median_filter_repeats_on_the_left_and_reflects_on_the_right() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 9.0]  # windows: 5 5 1, 5 1 4, 1 4 2, 4 2 9, 2 9 2
    assert median_filter(values, 3).tolist() == [5, 4, 2, 4, 2]
    assert median_filter(values, 1).tolist() == values
    assert median_filter(values, 5).tolist() == [5, 4, 4, 2, 4]  # 5 5 5 1 4, 5 5 1 4 2, 5 1 4 2 9, 1 4 2 9 2, 4 2 9 2 4


@given(positive, st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_the_median_filter_is_that_of_scipy(values: list[float], tau: float) -> None:
    from scipy.ndimage import median_filter as scipys

    window = window_of(tau, len(values))
    padded = np.pad(values, (0, 2 * window), mode="reflect")
    assert median_filter(values, window).tolist() == scipys(padded, size=window, mode="nearest")[: len(values)].tolist()


@given(positive, st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_what_is_monotone_stays_so(values: list[float], tau: float) -> None:
    rising = median_filter(sorted(values), window_of(tau, len(values)))
    assert (np.diff(rising) >= 0).all()


@pytest.mark.parametrize("height", [1e-9, 10.0, 1e300])
def test_one_spike_changes_nothing(height: float) -> None:
    norms = np.full(100, 2.0)
    norms[40] = height
    assert refine(norms, 2, tau=0.03).tolist() == refine(np.full(100, 2.0), 2, tau=0.03).tolist()
    assert refine(norms, 2, tau=0.0).tolist() != refine(np.full(100, 2.0), 2).tolist()


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("norms", "options", "sentence"),
    [
        ([], {}, "refine: needs the gradient norms of at least two steps, one number a step, not 0."),
        ([1.0], {}, "refine: needs the gradient norms of at least two steps, one number a step, not 1."),
        ([[1.0, 2.0]], {}, "not an array of shape (1, 2)."),
        ([1.0, 2.0, float("nan")], {}, "a norm must be positive and finite; that of step 3 is nan."),
        ([1.0, float("inf"), 1.0], {}, "that of step 2 is inf."),
        ([0.0, 1.0], {}, "that of step 1 is 0.0."),
        ([1.0, -1.0], {}, "that of step 2 is -1.0."),
        ([1.0, 1.0], {"tau": 1.5}, "tau, the fraction of the run that is smoothed over, must be in [0, 1], not 1.5."),
        ([1.0, 1.0], {"tau": float("nan")}, "must be in [0, 1], not nan."),
        ([1.0, 1.0], {"power": 0}, "power must be 2 (SGD, L2 norms) or 1 (Adam, L1), or positive, not 0."),
        ([1.0, 1.0], {"power": "l2"}, "or positive, not 'l2'."),
        (["a", 1.0], {}, "refine: norms must be numbers, one a step, not ['a', 1.0]."),
        ([[1.0], [1.0, 2.0]], {}, "refine: norms must be numbers, one a step, not [[1.0], [1.0, 2.0]]."),
        ({"l2": [1.0]}, {}, "refine: norms must be numbers, one a step, not {'l2': [1.0]}."),
        ([1e200, 1.0, 1e200], {"tau": 0.0}, "refine: norms from 1 to 1e+200 are too far apart for a schedule."),
        ([1.0, 1.0], {"steps": 0}, "steps must be a whole number of at least 1, not 0."),
        ([1.0, 1.0], {"steps": 2.0}, "steps must be a whole number of at least 1, not 2.0."),
    ],
)
def test_refusals_are_one_sentence(norms: Any, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=r"^refine: [^\n]*\.$") as caught:
        refine(norms, **{"power": 2} | options)
    assert sentence in str(caught.value)


def test_a_window_as_long_as_the_run_is_allowed() -> None:
    assert refine([1.0, 5.0], 2, tau=1.0).tolist() == [1.0, 0.5]
    assert len(refine(np.arange(1.0, 8.0), 1, tau=1.0)) == 7


# ---------------------------------------------------------------- the bound

TABLE = {  # best-scale bound times sqrt(T) / (D G) with constant norms, at T = 100, 400, 1600
    ("constant",): (2.485, 2.751, 2.992),
    ("inverse_sqrt",): (2.253, 2.445, 2.633),
    ("step",): (2.555, 2.503, 2.494),
    ("wsd",): (2.230, 2.186, 2.169),
    ("polynomial", ("power", 0.5)): (2.111, 2.119, 2.121),
    ("polynomial", ("power", 2.0)): (2.149, 2.128, 2.123),
    ("cosine",): (2.091, 2.068, 2.062),
    ("linear",): (2.036, 2.013, 2.004),
}


@pytest.mark.parametrize("row", TABLE)
def test_the_table_of_bounds(row: Any) -> None:
    for steps, wanted in zip((100, 400, 1600), TABLE[row], strict=True):
        value, _ = bound(sampled(row[0], steps, **dict(row[1:])), np.full(steps, 3.0), distance=0.25)
        assert value * np.sqrt(steps) / (0.25 * 3.0) == pytest.approx(wanted, abs=5.1e-4)


def test_the_constant_schedule_in_closed_form() -> None:
    steps, G, D = 50, 2.0, 3.0
    harmonic = (1 / np.arange(1, steps)).sum()
    a, b = D**2 / (2 * steps), G**2 / 2 * (1 + harmonic)
    assert bound(np.ones(steps), np.full(steps, G), D) == pytest.approx((2 * np.sqrt(a * b), np.sqrt(a / b)), rel=1e-13)


def test_the_scale_returned_is_the_best() -> None:
    """(1.4) itself, term by term, at that scale and beside it."""
    rng = np.random.default_rng(2)
    s, G, D = rng.uniform(0, 1, 30), rng.uniform(0.5, 2, 30), 1.3

    def at(c: float) -> float:
        eta = c * s
        S = [eta[k:].sum() for k in range(30)]
        V = [(eta[k:] ** 2 * G[k:] ** 2).sum() for k in range(30)]
        mixed = sum(eta[k] / S[k + 1] * V[k] / S[k] for k in range(29))
        return D**2 / (2 * S[0]) + V[0] / (2 * S[0]) + mixed / 2

    value, c = bound(s, G, D)
    assert value == pytest.approx(at(c), rel=1e-13)
    assert min(at(0.9 * c), at(1.1 * c)) > value
    assert bound(5 * s, G, D) == pytest.approx((value, c / 5), rel=1e-13)
    assert bound(s, G * 1e200, D)[0] == pytest.approx(value * 1e200, rel=1e-13)


@pytest.mark.parametrize(
    ("schedule", "norms", "distance", "sentence"),
    [
        ([1.0, 1.0], [1.0, 0.0], 1.0, "bound: a norm must be positive and finite; that of step 2 is 0.0."),
        ([1.0], [1.0, 1.0], 1.0, "bound: the schedule needs a multiplier for each of the 2 norms"),
        ([1.0, 0.0], [1.0, 1.0], 1.0, "and the last must be positive."),
        ([-1.0, 1.0], [1.0, 1.0], 1.0, "must be finite and not negative"),
        ([1.0, 1.0], [1.0, 1.0], 0.0, "bound: distance must be positive and finite, not 0.0."),
        ([1.0, 1.0], [1.0, 1.0], "1", "bound: distance must be positive and finite, not '1'."),
        ("linear", [1.0, 1.0], 1.0, "bound: multipliers must be numbers, one a step, not 'linear'."),
    ],
)
def test_bounds_that_do_not_exist(schedule: Any, norms: Any, distance: float, sentence: str) -> None:
    with pytest.raises(ValueError, match=r"^bound: [^\n]*\.$") as caught:
        bound(schedule, norms, distance)
    assert sentence in str(caught.value)


def test_the_numeric_schedule_is_linear_until_it_turns_up_on_the_last_step() -> None:
    found = numeric(np.ones(40))
    slope, start = np.polyfit(np.arange(34), found[:34], 1)
    assert (start, slope) == pytest.approx((1, -1 / 40), rel=0.05)
    assert found[:34] == pytest.approx(start + slope * np.arange(34), abs=0.01)
    assert 0.22 < found[-1] < 0.27
    assert bound(found, np.ones(40))[0] < bound(sampled("linear", 40), np.ones(40))[0]


def test_nothing_beats_the_numeric_schedule_on_its_norms() -> None:
    rng = np.random.default_rng(3)
    norms = np.exp(0.3 * rng.normal(size=200)) / np.sqrt(1 + np.arange(200) / 20)
    best = bound(numeric(norms), norms)[0]
    others = [sampled(name, 200) for name in SHAPES]
    others += [refine(norms, 2, tau) for tau in (0.0, 0.1)]
    assert best < min(bound(schedule, norms)[0] for schedule in others)


# ---------------------------------------------------------------- shapes


@pytest.mark.parametrize(
    ("shape", "options", "wanted"),
    [
        ("constant", {}, [1, 1, 1, 1]),
        ("linear", {}, [1, 3 / 4, 2 / 4, 1 / 4]),
        ("polynomial", {}, [1, 9 / 16, 4 / 16, 1 / 16]),
        ("cosine", {}, [1, (1 + 0.5**0.5) / 2, 1 / 2, (1 - 0.5**0.5) / 2]),
        ("cosine", {"final": 0.5}, [1, (3 + 0.5**0.5) / 4, 3 / 4, (3 - 0.5**0.5) / 4]),
        ("wsd", {"decay": 0.5}, [1, 1, 1, 1 / 2]),
        ("power_cooldown", {"power": 2.0, "decay": 0.5, "end": 1.5}, [1, 1, 1, 9 / 16]),
        ("step", {}, [1, 1, 0.1, 0.01]),
        ("inverse_sqrt", {}, [1, 2**-0.5, 3**-0.5, 1 / 2]),
        ("inverse_sqrt", {"alpha": 4.0}, [1, (4 / 5) ** 0.5, (4 / 6) ** 0.5, (4 / 7) ** 0.5]),
    ],
)
@pytest.mark.parametrize("warmup", [0, 2])
def test_shapes_behind_a_warm_up(shape: str, options: dict[str, Any], wanted: list[float], warmup: int) -> None:
    optimizer = untuned.SGD([nn.Parameter(torch.ones(1))], lr=2.0)
    schedule = Schedule(optimizer, shape, 4 + warmup, warmup, **options)
    used = []
    for _ in range(4 + warmup):
        used.append(optimizer.param_groups[0]["lr"] / 2)
        optimizer.step()
        schedule.step()
    assert used == pytest.approx([(i + 1) / warmup for i in range(warmup)] + wanted, abs=1e-14)
    before = schedule.state_dict()
    with pytest.raises(ValueError, match=rf"^Schedule: the schedule has {4 + warmup} steps and ends here: [^\n]*\.$"):
        schedule.step()
    assert schedule.state_dict() == before


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_multipliers(shape: str) -> None:
    values = sampled(shape, 200)
    assert values[0] == 1
    assert all(1 >= a >= b > 0 for a, b in itertools.pairwise(values))


def test_shapes_without_an_end_go_on() -> None:
    optimizer = untuned.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    schedule = Schedule(optimizer, "inverse_sqrt", warmup=3)
    for _ in range(102):
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


@pytest.mark.filterwarnings("ignore:The epoch parameter")
def test_a_step_to_a_time_past_the_end_is_refused() -> None:
    """Linear decay would go on below zero there."""
    optimizer = untuned.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    schedule = Schedule(optimizer, "linear", 4)
    schedule.step(3)
    assert optimizer.param_groups[0]["lr"] == 0.25
    with pytest.raises(ValueError, match=r"^Schedule: the schedule has 4 steps and ends here: "):
        schedule.step(5)
    assert optimizer.param_groups[0]["lr"] == 0.25


@pytest.mark.parametrize("given", [torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([1, 2]).bfloat16()])
def test_norms_may_be_any_tensor(given: torch.Tensor) -> None:
    assert refine(given, 2).tolist() == refine([1.0, 2.0], 2).tolist()


def test_the_numeric_schedule_of_norms_that_are_too_far_apart() -> None:
    with pytest.raises(ValueError, match=r"^numeric: norms from 1e-200 to 1e\+200 are too far apart for a schedule\.$"):
        numeric([1e200, 1e-200, 1.0])
    with pytest.raises(ValueError, match=r"^numeric: rounds must be a whole number of at least 0, not -1\.$"):
        numeric([1.0, 1.0], -1)


def test_a_schedule_is_pickled_and_resumes() -> None:
    optimizer = untuned.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    schedule = Schedule(optimizer, "wsd", 10, 2, decay=0.5)
    for _ in range(7):
        optimizer.step()
        schedule.step()
    again = pickle.loads(pickle.dumps(schedule))
    other = untuned.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    resumed = Schedule(other, "linear", 20)
    resumed.load_state_dict(schedule.state_dict())
    other.load_state_dict(optimizer.state_dict())
    for one in (schedule, again, resumed):
        one.step()
        assert one.get_last_lr() == [0.5]
        one.step()
        one.step()
        with pytest.raises(ValueError, match="has 10 steps"):
            one.step()


@pytest.mark.parametrize(
    ("shape", "arguments", "options", "sentence"),
    [
        ("cosin", (10,), {}, "Schedule: no shape is called 'cosin'; there are constant, linear,"),
        ("linear", (), {}, "Schedule: 'linear' ends, so it needs steps="),
        ("linear", (10, 10), {}, "Schedule: needs whole numbers 0 <= warmup < steps, not 10 and 10."),
        ("linear", (1.5,), {}, "not 0 and 1.5."),
        ("constant", (None, -1), {}, "not -1 and None."),
        ("linear", (10,), {"power": 2}, "Schedule: 'linear' has no option 'power'; it has none."),
        (["linear"], (10,), {}, "Schedule: no shape is called ['linear']; there are constant, linear,"),
        ("wsd", (10,), {"decay": 0}, "Schedule: decay of 'wsd' must be a number in (0, 1], not 0."),
        ("wsd", (10,), {"decay": "0.1"}, "not '0.1'."),
        (
            "cosine",
            (10,),
            {"final": float("nan")},
            "final of 'cosine' must be a number in [0, inf), not nan.",
        ),
        ("cosine", (10,), {"final": -1.0}, "not -1.0."),
        ("polynomial", (10,), {"power": -1}, "Schedule: power of 'polynomial' must be a number in [0, inf), not -1."),
        ("power_cooldown", (10,), {"end": 0.5}, "Schedule: end of 'power_cooldown' must be a number in [1, inf)"),
        ("step", (10,), {"at": 0.5}, "Schedule: at of 'step' must be numbers in [0, inf), not 0.5."),
        ("step", (10,), {"factor": -0.1}, "Schedule: factor of 'step' must be a number in [0, inf), not -0.1."),
        (
            "inverse_sqrt",
            (),
            {"alpha": 0.0},
            "alpha of 'inverse_sqrt' must be a number in (0, inf), not 0.0.",
        ),
        ("wsd", (10,), {"decai": 2}, "Schedule: 'wsd' has no option 'decai'; it has decay."),
    ],
)
def test_wrong_schedules_are_one_sentence(shape: str, arguments: Any, options: Any, sentence: str) -> None:
    optimizer = untuned.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    with pytest.raises((ValueError, TypeError), match=r"^Schedule: [^\n]*\.$") as caught:
        Schedule(optimizer, shape, *arguments, **options)
    assert sentence in str(caught.value)
    assert optimizer.param_groups[0]["lr"] == 1.0

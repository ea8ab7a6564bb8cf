"""Closed forms and invariances of the adaptive heavy ball and of AM-MSGD."""

from math import inf, sqrt

import numpy as np
import pytest
import torch
from test_closed_forms import START, assert_close, follow, linear, logistic, noise, path

import untuned


def parabola(*curvatures):
    h = torch.tensor(curvatures, dtype=torch.float64)
    return lambda params, k: (h * params[0] ** 2).sum() / 2


@pytest.mark.parametrize(("curvature", "lr"), [(2.0, 0.05), (0.3, 1.0), (40.0, 0.02), (1.0, 0.999)])
def test_the_best_momentum_on_a_parabola(curvature, lr):
    """A double root r of the characteristic polynomial: x_k = (a + b k) r^k, after a first step of gradient descent."""
    r = 1 - sqrt(lr * curvature)
    points, numbers, _ = follow(lambda p: untuned.AdaptiveHeavyBall(p, lr=lr), parabola(curvature), [[3.0, -1.0]], 20)
    assert_close(numbers["adaptive_beta"][1:8], r * r, 1e-12)
    x = points[1:8, 0]
    k = np.arange(7)
    assert_close(x, (x[0] + (x[1] / r - x[0]) * k) * r**k, 1e-12)


def test_a_step_of_one_over_the_curvature_ends_at_the_minimum():
    points, numbers, _ = follow(lambda p: untuned.AdaptiveHeavyBall(p, lr=0.25), parabola(4.0), [[3.0]], 4)
    assert_close(points[1:], 0.0)
    assert (numbers["adaptive_beta"] == 0).all()  # and nothing moves from then on


def test_on_an_uneven_parabola_the_smallest_curvature_is_found():
    lr = 0.1
    numbers = follow(lambda p: untuned.AdaptiveHeavyBall(p, lr=lr), parabola(0.05, 1.0, 4.0), [[1.0, 1.0, 1.0]], 120)[1]
    best = (1 - sqrt(lr * 0.05)) ** 2
    assert abs(numbers["adaptive_beta"][-30:] - best).max() < 0.02 < abs(numbers["adaptive_beta"][1] - best)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_with_a_low_cap_it_is_the_heavy_ball(decay):
    """lr lambda is always the cap then, which is 0.01: momentum 0.81."""
    ours, numbers, _ = follow(
        lambda p: untuned.AdaptiveHeavyBall(p, lr=0.1, cap=0.01, weight_decay=decay), noise, START, 20
    )
    assert_close(numbers["adaptive_beta"][1:], 0.81)
    assert_close(ours, path(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.81, weight_decay=decay), noise))


@pytest.mark.parametrize(
    ("curvature", "cap", "beta"),
    [(0.0, 1.0, 0.99), (25.0, inf, 0.99), (25.0, 1.0, 0.0), (9.0, inf, (1 - sqrt(1.8)) ** 2)],
    ids=["no curvature", "too much", "too much, capped", "much"],
)
def test_both_ends(curvature, cap, beta):
    """At lr 0.2; the ends are 0 and 1 - delta, and without a cap a large curvature gives momentum again."""
    loss = parabola(curvature) if curvature else linear([1.0])
    numbers = follow(lambda p: untuned.AdaptiveHeavyBall(p, lr=0.2, delta=0.01, cap=cap), loss, [[1.0]], 3)[1]
    assert_close(numbers["adaptive_beta"], [0.0, beta, beta])


@pytest.mark.parametrize("name", ["ahb_sgd", "ahb_adam"])
def test_where_the_origin_lies_does_not_matter(name):
    make = lambda p: untuned.create(p, name, lr=0.05, weight_decay=0.0)  # noqa: E731
    there = [a + 7.0 for a in START]
    moved = path(make, lambda params, k: logistic([p - 7.0 for p in params], k), there)
    assert_close(moved - 7.0, path(make))


@pytest.mark.parametrize("name", ["ahb_sgd", "am_msgd"])
def test_rotations_and_the_scale_of_the_loss_do_not_matter(name):
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(8, 8)))[0]
    whole = np.concatenate([a.ravel() for a in START])

    def turned(params, k):
        x = torch.tensor(turn) @ params[0]
        return logistic([x[:6].reshape(3, 2), x[6:]], k)

    def at(lr):
        return lambda p: untuned.create(p, name, lr=lr, weight_decay=0.0)

    one = path(at(0.2))
    assert_close(path(at(0.2), turned, [turn.T @ whole]) @ turn.T, one, 1e-11)
    assert_close(path(at(0.2 / 64), lambda p, k: 64 * logistic(p, k)), one)


def test_momentum_shortens_the_way_down_a_narrow_valley():
    """At one lr: the loss after 100 steps is less than a hundredth of that of gradient descent."""
    start, valley = [[1.0, 1.0]], parabola(0.01, 1.0)
    ours = path(lambda p: untuned.AdaptiveHeavyBall(p, lr=1.0), valley, start, 100)[-1]
    plain = path(lambda p: torch.optim.SGD(p, lr=1.0), valley, start, 100)[-1]
    assert (ours**2 * [0.01, 1.0]).sum() < 0.01 * (plain**2 * [0.01, 1.0]).sum()


def test_noise_gives_momentum_only_without_the_cap():
    """Independent gradients: |difference| / |step| is about sqrt(2) / lr, beyond what a curvature could be."""
    start = [np.zeros(50)]
    capped = follow(lambda p: untuned.AdaptiveHeavyBall(p, lr=0.1), noise, start, 60)[1]["adaptive_beta"]
    free = follow(lambda p: untuned.AdaptiveHeavyBall(p, lr=0.1, cap=inf), noise, start, 60)[1]["adaptive_beta"]
    assert np.median(capped) < np.median(free) < 0.2
    assert capped.max() < 0.2


# ---------------------------------------------------------------- AM-MSGD


def by_the_text(gradients, penalty, beta_max):
    """The averages, with beta and the division by 1 + penalty, as arXiv 2510.04988 writes them."""
    d, found = gradients[0], []
    for k, g in enumerate(gradients):
        gap = d - g
        dd = gap @ gap
        if k:
            beta = ((1 + penalty) * (g @ d) - gap @ (g + penalty * d)) / dd
            beta = np.clip(beta, 0.0, beta_max)
            d = ((beta + penalty) * d + (1 - beta) * g) / (1 + penalty)
        found.append(d)
    return np.array(found)


@pytest.mark.parametrize(("penalty", "beta_max"), [(0.1, 0.9), (0.0, 0.9), (2.0, 0.5), (0.01, 0.0)])
def test_the_short_form_is_that_of_the_text(penalty, beta_max):
    gradients = np.random.default_rng(0).normal(size=(30, 7)) + np.sin(np.arange(30) / 5)[:, None]
    loss = lambda params, k: (torch.tensor(gradients[k]) * params[0]).sum()  # noqa: E731
    ours = path(lambda p: untuned.AMMSGD(p, 1.0, penalty, beta_max), loss, [[0.0] * 7], 30)
    assert_close(-np.diff(ours, axis=0), by_the_text(gradients, penalty, beta_max), 1e-13)


def test_steady_gradients_are_their_average():
    ours = path(lambda p: untuned.AMMSGD(p, lr=0.3), linear(START[0], [3.0, -7.0]))
    assert_close(ours, path(lambda p: torch.optim.SGD(p, lr=0.3), linear(START[0], [3.0, -7.0])))


def test_a_gradient_that_turns_round_keeps_a_quarter():
    loss = lambda params, k: (params[0] * (-1.0) ** k).sum()  # noqa: E731
    numbers = follow(lambda p: untuned.AMMSGD(p, lr=0.1), loss, [[0.0, 0.0]], 2)[1]
    assert_close(numbers["kept"], [0.0, 0.25])


def test_what_is_kept_has_the_bounds_of_the_text():
    numbers = follow(lambda p: untuned.AMMSGD(p, lr=0.1), noise, START, 200)[1]["kept"][1:]
    assert numbers.min() >= 1 / 11 - 1e-15
    assert numbers.max() <= 10 / 11 + 1e-15
    assert len(np.unique(numbers.round(3))) > 50

"""NGN: closed forms, limits and reductions. Spec: arXiv 2407.04358; momentum recalled."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_closed_forms import START, assert_close, follow, linear, logistic, path

import untuned
from untuned import directions, step_sizes

EXECUTIONS = pytest.mark.parametrize("execution", ["reference", "native"])
LOSS = st.floats(1e-12, 1e12)


def one_step(lr, loss, gradient, lb=0.0):
    """-> gamma of one step from 0."""
    w = torch.nn.Parameter(torch.zeros(len(gradient), dtype=torch.float64))
    optimizer = untuned.NGN([w], lr=lr, lb=lb, execution="reference")
    w.grad = torch.tensor(gradient, dtype=torch.float64)
    optimizer.step(loss=torch.tensor(loss, dtype=torch.float64))
    return (-w.detach() @ w.grad / (w.grad @ w.grad)).item()


@EXECUTIONS
@pytest.mark.parametrize("curvature", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("lr", [1e-3, 1.0, 1e9])
def test_on_a_parabola_every_step_shrinks_by_the_same_factor(lr, curvature, execution):
    """f = a w^2 / 2: |g|^2 / (2 f) = a, gamma = lr / (1 + lr a), and 1 - a gamma = 1 / (1 + lr a)."""
    make = lambda p: untuned.NGN(p, lr=lr, execution=execution)  # noqa: E731
    points, numbers, _ = follow(make, lambda p, k: curvature / 2 * (p[0] ** 2).sum(), [[1.0, 2.0]], 4)
    factor = 1 / (1 + lr * curvature)
    assert np.abs(points - [np.array([1, 2]) * factor**k for k in range(5)]).max() <= 1e-14
    assert_close(numbers["lr_effective"], lr * factor, 1e-13)


@settings(max_examples=100)
@given(lr=st.floats(1e-8, 1e8), loss=LOSS, norm=st.floats(1e-6, 1e6))
def test_the_step_lies_above_0_and_below_lr_and_twice_polyaks(lr, loss, norm):
    gamma = one_step(lr, loss, [0.6 * norm, 0.8 * norm])
    assert 0 < gamma <= lr * (1 + 1e-14)
    assert gamma <= 2 * loss / norm**2 * (1 + 1e-14)
    assert gamma == pytest.approx(lr / (1 + lr * norm**2 / (2 * loss)), rel=1e-12)


def test_limits():
    assert one_step(1e-9, 0.3, [1.0, 2.0]) / 1e-9 == pytest.approx(1, abs=1e-7)
    assert one_step(1e12, 0.3, [1.0, 2.0]) == pytest.approx(2 * 0.3 / 5, rel=1e-10)


@pytest.mark.parametrize("lr", [0.1, 3.0])
def test_the_step_minimises_the_damped_gauss_newton_model(lr):
    """(r + <r', d>)^2 + |d|^2 / (2 lr) with r = sqrt(f - lb), r' = g / (2 r)."""
    g, f, lb = np.array([1.0, -2.0]), 1.3, 0.4
    r = np.sqrt(f - lb)
    step = -one_step(lr, f, g, lb) * g

    def model(d):
        return (r + d @ g / (2 * r)) ** 2 + d @ d / (2 * lr)

    away = np.random.default_rng(0).normal(size=(200, 2)) * 0.1
    assert all(model(step + a) >= model(step) + a @ a / (2 * lr) * (1 - 1e-9) for a in away)


@EXECUTIONS
@pytest.mark.parametrize("loss", [0.5, 0.2, -3.0])
def test_at_the_bound_and_below_it_nothing_moves(loss, execution):
    w = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = untuned.NGN([w], lb=0.5, execution=execution)
    w.grad = torch.ones_like(w)
    optimizer.step(loss=torch.tensor(loss))
    assert w.tolist() == [1.0, 1.0]
    assert optimizer.metrics()["theta"] == 0


def test_a_zero_gradient_does_not_move():
    w = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = untuned.NGN([w])
    for loss in (1.0, 0.0):
        w.grad = torch.zeros_like(w)
        optimizer.step(loss=torch.tensor(loss))
    assert w.tolist() == [1.0, 1.0]


@EXECUTIONS
def test_groups_share_one_denominator(execution):
    """gamma_i = lr_i / (1 + sum lr_j |g_j|^2 / (2 (f - lb)))."""
    lrs, lb = [2.0, 0.3], -0.5
    groups = lambda p: [{"params": [q], "lr": lr} for q, lr in zip(p, lrs, strict=True)]  # noqa: E731
    make = lambda p: untuned.NGN(groups(p), lb=lb, execution=execution)  # noqa: E731
    points, _, _ = follow(make, logistic, START, 20)
    x = [torch.tensor(a, requires_grad=True) for a in START]
    for k in range(20):
        loss = logistic(x, k)
        grads = torch.autograd.grad(loss, x)
        slope = sum(lr * (g * g).sum() for lr, g in zip(lrs, grads, strict=True))
        theta = 1 / (1 + slope / (2 * (loss.detach() - lb)))
        x = [(a - lr * theta * g).detach().requires_grad_() for lr, a, g in zip(lrs, x, grads, strict=True)]
        assert_close(points[k + 1], np.concatenate([a.detach().numpy().ravel() for a in x]), 1e-13)


@EXECUTIONS
@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_momentum_is_heavy_ball(momentum, execution):
    """x <- x - (1 - momentum) gamma g + momentum (x - x_before), gamma at x."""
    lr = 2.0
    make = lambda p: untuned.NGN(p, lr=lr, momentum=momentum, execution=execution)  # noqa: E731
    points, _, _ = follow(make, logistic, START, 20)
    x, before = ([torch.tensor(a, requires_grad=True) for a in START] for _ in range(2))
    for k in range(20):
        loss = logistic(x, k)
        grads = torch.autograd.grad(loss, x)
        gamma = lr / (1 + lr * sum((g * g).sum() for g in grads) / (2 * loss.detach()))
        new = [
            (a - (1 - momentum) * gamma * g + momentum * (a - b)).detach().requires_grad_()
            for a, b, g in zip(x, before, grads, strict=True)
        ]
        x, before = new, x
        assert_close(points[k + 1], np.concatenate([a.detach().numpy().ravel() for a in x]), 1e-13)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_invariances(momentum):
    """Of the loss's scale at 1 / lr, its level with lb, and of where the parameters lie."""

    def run(loss=logistic, start=START, lr=2.0, lb=-0.3):
        return path(lambda p: untuned.NGN(p, lr=lr, momentum=momentum, lb=lb), loss, start)

    expected = run()
    assert_close(run(lambda p, k: logistic(p, k) + 7.0, lb=6.7), expected)
    assert_close(run(lambda p, k: 50 * logistic(p, k), lr=2.0 / 50, lb=-0.3 * 50), expected)
    assert_close(run(lambda p, k: logistic([a - 3.0 for a in p], k), [a + 3.0 for a in START]) - 3.0, expected)


def test_a_small_lr_is_gradient_descent():
    theirs = path(lambda p: torch.optim.SGD(p, lr=1e-8))
    ours = path(lambda p: untuned.NGN(p, lr=1e-8))
    assert_close((ours - ours[0]) * 1e8, (theirs - theirs[0]) * 1e8, 1e-6)


def test_a_direction_that_climbs_is_followed_no_farther_than_lr():
    """<g, u> < 0, as momentum may have it: 2 gap + slope must not come near 0."""
    w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    rule = step_sizes.NGN(1.0)
    optimizer = untuned.compose([w], directions.Momentum(0.9), rule, execution="reference")
    for g in (10.0, -1.0):
        w.grad = torch.full_like(w, g)
        optimizer.step(loss=torch.tensor(4.0))
    assert optimizer.metrics()["theta"] == 1.0


def test_coupled_decay_is_part_of_the_loss():
    """The gradient of weight_decay |x|^2 / 2 comes with its loss."""
    ours = path(lambda p: untuned.NGN(p, lr=2.0, weight_decay=0.3))
    penalty = lambda p, k: logistic(p, k) + 0.15 * sum((a * a).sum() for a in p)  # noqa: E731
    assert_close(ours, path(lambda p: untuned.NGN(p, lr=2.0), penalty), 1e-13)


def test_on_a_linear_loss_it_stops_before_it_crosses_the_bound_twice():
    """f = w from 1 at lr 1: gamma = 1 / (1 + 1 / (2 f)), f <- f - gamma = f (2 f - 1) / (2 f + 1)."""
    points = path(lambda p: untuned.NGN(p, lr=1.0), linear([1.0]), [[1.0]], 2)
    assert_close(points[:, 0], [1, 1 / 3, 1 / 3 * (-1 / 3) / (5 / 3)], 1e-14)

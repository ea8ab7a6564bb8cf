"""Random scaling: the lemma it stands on, its numbers, and what they depend on. Spec: arXiv 2405.09742."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_closed_forms import START, assert_close, follow, linear, logistic, noise, path

import untuned
from untuned.around import RandomScaling, random_scaling
from untuned.directions import Adam, Gradient
from untuned.iterates import RandomPoint, random_point
from untuned.parts import uniform
from untuned.step_sizes import Fixed, Prodigy
from untuned.weight_decay import Decoupled

EXECUTIONS = pytest.mark.parametrize("execution", ["reference", "native"])
NAMES = pytest.mark.parametrize("name", ["random_scaling_sgd", "random_scaling_adamw", "random point"])
LR = {"random_scaling_sgd": 0.5, "random_scaling_adamw": 0.05, "random point": 0.5}
BASES = {
    "random_scaling_sgd": lambda p: untuned.SGD(p, lr=0.5),
    "random_scaling_adamw": lambda p: untuned.AdamW(p, lr=0.05),
    "random point": lambda p: untuned.SGD(p, lr=0.5),
}


def made(name, params, seed=0, **engine):
    if name == "random point":
        return untuned.compose(params, Gradient(), Fixed(LR[name]), RandomPoint(seed), **engine)
    options = {"beta": 0.0} if name == "random_scaling_sgd" else {}
    return untuned.create(params, name, lr=LR[name], seed=seed, **options, **engine)


def number(optimizer):
    numbers = optimizer.metrics()
    return numbers["random_scale"] if "random_scale" in numbers else numbers["random_point"]


@NAMES
@EXECUTIONS
def test_a_factor_of_1_is_the_base_method(name, execution, monkeypatch):
    monkeypatch.setattr(random_scaling, "log", lambda q: 0.0 * q - 1.0)
    monkeypatch.setattr(random_point, "uniform", lambda seed, k: 0.0 * k + 1.0)
    ours = path(lambda p: made(name, p, execution=execution))
    assert_close(ours, path(BASES[name]), 1e-14)


@EXECUTIONS
def test_online_mirror_descent_is_averaged_momentum(execution):
    """Delta <- (Delta - eta g) beta / (1 + eta mu) and x <- x + s Delta, equation 13.1."""
    beta, eta, mu, seed = 0.95, 0.3, 0.1, 5
    b = beta / (1 + eta * mu)
    options = {"lr": b * eta / (1 - b), "beta": b, "seed": seed, "execution": execution}
    ours, numbers, _ = follow(lambda p: untuned.RandomScalingSGD(p, **options), logistic, START, 20)
    x = [torch.tensor(a, requires_grad=True) for a in START]
    delta, expected = [torch.zeros_like(a) for a in x], []
    for k, s in enumerate(-np.log(1 - uniform(seed, np.arange(1, 21)))):
        grads = torch.autograd.grad(logistic(x, k), x)
        delta = [(d - eta * g) * b for d, g in zip(delta, grads, strict=True)]
        x = [(a + s * d).detach().requires_grad_() for a, d in zip(x, delta, strict=True)]
        expected.append(np.concatenate([a.detach().numpy().ravel() for a in x]))
        assert numbers["random_scale"][k] == pytest.approx(s, rel=1e-15)
    assert_close(ours[1:], expected, 1e-13)


@EXECUTIONS
def test_the_uniform_point_lies_on_the_step_of_an_unscaled_sequence(execution):
    """z <- z - lr (g + decay p), and p between the old z and the new one; g is taken at p."""
    lr, decay, seed = 0.5, 0.1, 3
    parts = Gradient(), Fixed(lr), RandomPoint(seed), Decoupled(decay)
    make = lambda p: untuned.compose(p, *parts, execution=execution)  # noqa: E731
    ours, numbers, optimizer = follow(make, logistic, START, 20)
    z = [torch.tensor(a) for a in START]
    x, expected = [a.clone().requires_grad_() for a in z], []
    for k, s in enumerate(uniform(seed, np.arange(1, 21))):
        grads = torch.autograd.grad(logistic(x, k), x)
        new = [a - lr * (g + decay * b.detach()) for a, b, g in zip(z, x, grads, strict=True)]
        x = [(a + s * (b - a)).requires_grad_() for a, b in zip(z, new, strict=True)]
        z = new
        expected.append(np.concatenate([a.detach().numpy().ravel() for a in x]))
        assert numbers["random_point"][k] == pytest.approx(s, rel=1e-15)
    assert_close(ours[1:], expected, 1e-13)
    assert_close(optimizer.state[optimizer.param_groups[0]["params"][0]]["z"], z[0], 1e-13)


# ---------------------------------------------------------------- the lemma


def mean_along(name, monkeypatch, values, weights):
    """Means over s of F(x + s D) - F(x) and of F'(x + s D) D, F = sin x + x^2 / 10, x = 0.7, D = 0.4, and F(x + D) -
    F(x); the points x + s D are those of the optimizer."""
    x, step = 0.7, 0.4

    def points():
        for s in values:
            monkeypatch.setattr(random_scaling, "log", lambda q, s=s: 0.0 * q - s)
            monkeypatch.setattr(random_point, "uniform", lambda seed, k, s=s: 0.0 * k + s)
            w = torch.nn.Parameter(torch.tensor(x, dtype=torch.float64))
            optimizer = made(name, [w], execution="reference")
            w.grad = torch.tensor(-step / LR[name], dtype=torch.float64)
            optimizer.step()
            yield w.item()

    def F(q):
        return np.sin(q) + q * q / 10

    at = np.array(list(points()))
    slopes = (np.cos(at) + at / 5) * step
    return weights @ (F(at) - F(x)), weights @ slopes, F(x + step) - F(x)


def test_the_mean_slope_is_the_mean_change_of_the_loss(monkeypatch):
    """With s ~ Exp(1), by Gauss-Laguerre quadrature."""
    change, slope, whole = mean_along("random_scaling_sgd", monkeypatch, *np.polynomial.laguerre.laggauss(60))
    assert change == pytest.approx(0.262881, abs=1e-6)
    assert slope == pytest.approx(change, rel=1e-12)
    assert abs(slope - whole) > 1e-3  # which is what the uniform point gives


def test_at_the_uniform_point_it_is_the_change_over_the_step(monkeypatch):
    nodes, weights = np.polynomial.legendre.leggauss(30)
    change, slope, whole = mean_along("random point", monkeypatch, (1 + nodes) / 2, weights / 2)
    assert slope == pytest.approx(whole, rel=1e-12)
    assert abs(slope - change) > 1e-3  # the lemma of Exp(1) needs Exp(1)


# ---------------------------------------------------------------- the numbers


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_mean_and_variance_of_many_draws(seed):
    n = 100_000
    c = SimpleNamespace(seed=seed, k=np.arange(1, n + 1))
    RandomScaling().decide(c)
    s = c.s
    assert s.min() > 0
    assert abs(s.mean() - 1) < 4 / np.sqrt(n)
    assert abs(s.var() - 1) < 4 * np.sqrt(8 / n)  # the variance of (s - 1)^2 is 8
    assert abs(np.corrcoef(s[1:], s[:-1])[0, 1]) < 4 / np.sqrt(n)
    RandomPoint().decide(c)
    assert abs(c.s.mean() - 1 / 2) < 4 * np.sqrt(1 / 12 / n)
    assert abs(c.s.var() - 1 / 12) < 4 * np.sqrt(1 / 180 / n)


@NAMES
def test_on_a_linear_loss_the_mean_path_is_that_of_the_base(name):
    """Of 400 seeds; the uniform point is half a step behind its base."""
    paths = np.array([path(lambda p, i=i: made(name, p, i), linear([1.0, -2.0]), [[0.0, 0.0]], 6) for i in range(400)])
    base = path(BASES[name], linear([1.0, -2.0]), [[0.0, 0.0]], 6)
    if name == "random point":
        base[1:] -= (base[1:] - base[:-1]) / 2
    error = paths.std(0)[1:] / np.sqrt(len(paths))
    assert (np.abs(paths.mean(0) - base)[1:] < 4 * error).all()
    assert (error < np.abs(base[1:]) / 10).all()


@NAMES
def test_seeds_differ_and_a_seed_repeats(name):
    first, again, other = (path(lambda p, i=i: made(name, p, i), noise) for i in (0, 0, 1))
    assert np.array_equal(first, again)
    assert np.abs(first - other)[1:].max(1).min() > 1e-4


@NAMES
def test_the_global_generator_is_neither_read_nor_moved(name):
    state = torch.get_rng_state()
    first = path(lambda p: made(name, p))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(12345)
    np.random.seed(1)
    assert np.array_equal(path(lambda p: made(name, p)), first)


@NAMES
@EXECUTIONS
def test_one_number_scales_all_tensors_of_all_groups(name, execution):
    def groups(p):
        return [{"params": p[:1]}, {"params": p[1:], "lr": LR[name] / 4, "weight_decay": 0.2}]

    scaled, numbers, _ = follow(lambda p: made(name, groups(p), 7, execution=execution), logistic, START, 1)
    parts = made(name, [torch.nn.Parameter(torch.ones(1))]).recipe.parts
    base = [parts[role] for role in ("direction", "step_size")]
    plain = path(lambda p: untuned.compose(groups(p), *base, decay=Decoupled(parts["decay"].weight_decay)), steps=1)
    (s,) = numbers.get("random_scale", numbers.get("random_point"))
    assert_close(scaled[1] - scaled[0], s * (plain[1] - plain[0]), 1e-13)


@NAMES
@EXECUTIONS
def test_skipped_steps_use_no_number_and_a_resumed_run_goes_on(name, execution):
    def grads(params, k):
        for p in params:
            p.grad = torch.full_like(p, float(k))

    params = [torch.nn.Parameter(torch.tensor(a)) for a in START]
    optimizer, seen = made(name, params, 9, execution=execution), []
    for k in range(1, 5):
        grads(params, k)
        optimizer.step()
        seen.append(number(optimizer))
        params[0].grad.fill_(torch.nan)
        optimizer.step()
        assert number(optimizer) == seen[-1]
        if k == 2:
            other = [torch.nn.Parameter(p.detach().clone()) for p in params]
            resumed = made(name, other, execution=execution)  # the seed is in the checkpoint
            resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        if k > 2:
            grads(other, k)
            resumed.step()
            assert number(resumed) == seen[-1]
            assert all(torch.equal(p, q) for p, q in zip(params, other, strict=True))
    u = uniform(9, np.arange(1, 5))
    assert seen == pytest.approx(list(u if name == "random point" else -np.log(1 - u)), rel=1e-15)


def test_empty_steps_use_no_number():
    w = torch.nn.Parameter(torch.ones(2))
    optimizer = untuned.RandomScalingSGD([w])
    optimizer.step()  # no gradient
    w.grad = torch.ones(2)
    optimizer.step()
    assert number(optimizer) == pytest.approx(-np.log(1 - uniform(0, np.arange(1, 2)))[0], rel=1e-15)


@EXECUTIONS
def test_estimates_of_distance_look_at_the_sequence_of_the_random_point(execution):
    """With s = 1 always both are the same; else Prodigy measures at z, not at the parameters."""
    w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    rule = Prodigy(d0=0.1, beta3=0.0)
    optimizer = untuned.compose([w], Adam(), rule, RandomPoint(1), execution=execution)
    for _ in range(2):
        w.grad = torch.ones(1, dtype=torch.float64)
        optimizer.step()
        z = optimizer.state[w]["z"].item()
        if optimizer.metrics()["steps"] == 1:
            before = z
    assert optimizer.metrics()["d_hat"] == pytest.approx(-before, rel=1e-12)  # g = 1, x0 = 0
    assert abs(w.item() - z) > 1e-4

"""SGD with momentum as primal averaging: its map to heavy ball and back, and its Lyapunov function."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_closed_forms import START, assert_close, follow, logistic, noise, path

import untuned
from untuned.around import RandomScaling
from untuned.directions import Adam, Gradient
from untuned.gradients import AdaRem, Norms
from untuned.iterates import PrimalAverage
from untuned.schedules import MomentumDecay
from untuned.spa import LyapunovMonitor, lyapunov, sgdm_from_spa, spa_descent_margin, spa_from_sgdm
from untuned.step_sizes import Fixed
from untuned.weight_decay import Coupled

seeds = st.integers(0, 2**32 - 1)


def walk_spa(gradient, x, etas, cs):
    """-> x_0, x_1, ... and z_0, z_1, ..., as rows."""
    xs, zs = [x], [x]
    for k, (eta, c) in enumerate(zip(etas, cs, strict=True)):
        zs.append(zs[-1] - eta * gradient(xs[-1], k))
        xs.append((1 - c) * xs[-1] + c * zs[-1])
    return np.array(xs), np.array(zs)


def walk_sgdm(gradient, x, alphas, betas):
    """-> x_0, x_1, ... and m_0, m_1, ..., as rows."""
    xs, ms = [x], [0 * x]
    for k, (alpha, beta) in enumerate(zip(alphas, betas, strict=True)):
        ms.append(beta * ms[-1] + gradient(xs[-1], k))
        xs.append(xs[-1] - alpha * ms[-1])
    return np.array(xs), np.array(ms)


def noisy(seed):
    """Gradients of a bounded loss, with noise of the step."""
    return lambda x, k: np.sin(3 * x) + np.random.default_rng([seed, k]).normal(size=x.shape)


# ---------------------------------------------------------------- the map


@settings(max_examples=50)
@given(seeds)
def test_spa_is_heavy_ball_with_the_converted_schedule(seed):
    rng = np.random.default_rng(seed)
    etas, cs = rng.uniform(0.1, 1, 20), rng.uniform(0.05, 1, 20)
    alphas, betas = sgdm_from_spa(etas, cs)
    xs, zs = walk_spa(noisy(seed), np.ones(3), etas, cs)
    ys, ms = walk_sgdm(noisy(seed), np.ones(3), alphas, betas)
    assert_close(ys, xs, 1e-12)
    before = (1 / cs[:-1] - 1) * alphas[:-1]  # z_k = x_k - (1 / c_k - 1) alpha_{k-1} m_k
    assert_close(ys[1:-1] - before[:, None] * ms[1:-1], zs[1:-1], 1e-11)


@settings(max_examples=50)
@given(seeds)
def test_heavy_ball_is_spa_with_the_converted_schedule(seed):
    rng = np.random.default_rng(seed)
    alphas, betas = rng.uniform(0.01, 0.2, 20), rng.uniform(0.3, 1.1, 20)
    etas, cs = spa_from_sgdm(alphas, betas)
    assert ((cs > 0) & (cs <= 1)).all()
    expected, _ = walk_sgdm(noisy(seed), np.ones(3), alphas, betas)
    scale = max(etas.max(), 1.0)  # z is that much farther away than x
    assert_close(walk_spa(noisy(seed), np.ones(3), etas, cs)[0], expected, 1e-13 * scale)


def test_the_form_is_not_unique():
    alphas, betas = np.full(20, 0.1), np.full(20, 0.8)
    forms = [spa_from_sgdm(alphas, betas, eta0) for eta0 in (None, 0.5, 0.7, 5.0)]
    assert_close(forms[0], forms[1], 1e-13)
    assert forms[1][0][-1] < forms[2][0][-1] < forms[3][0][-1]
    expected, _ = walk_sgdm(noisy(0), np.ones(3), alphas, betas)
    for etas, cs in forms:
        assert_close(walk_spa(noisy(0), np.ones(3), etas, cs)[0], expected, 1e-12 * etas[-1])


@settings(max_examples=50)
@given(seeds)
def test_converted_there_and_back(seed):
    rng = np.random.default_rng(seed)
    etas, cs = rng.uniform(0.5, 1, 8), rng.uniform(0.05, 0.7, 8)
    alphas, betas = sgdm_from_spa(etas, cs)
    back = spa_from_sgdm(alphas, betas, eta0=etas[0])
    assert_close(back, (etas, cs), 1e-8)
    there = sgdm_from_spa(*back)
    assert_close(there[0], alphas, 1e-12)
    assert_close(there[1], betas, 1e-7)


def test_constants_stay_constant_however_long_the_run():
    """Recovered step by step, c drifts away from 1 - beta by a factor 1 / beta a step."""
    etas, cs = spa_from_sgdm(np.full(5000, 0.1), np.full(5000, 0.9))
    assert_close(etas, 1.0, 1e-15)
    assert_close(cs, 0.1, 1e-15)
    alphas, betas = sgdm_from_spa(etas, cs)
    assert_close(alphas, 0.1, 1e-15)
    assert_close(betas[1:], 0.9, 1e-15)
    for alpha, beta in np.random.default_rng(0).uniform([0.01, 0.5], [1, 0.99], (20, 2)):
        etas, cs = spa_from_sgdm(np.full(2000, alpha), np.full(2000, beta))
        assert (etas == etas[0]).all()
        assert_close(cs, 1 - beta, 1e-14)


def test_the_smallest_feasible_eta_where_the_natural_one_is_not():
    """A growing alpha: a warm-up."""
    alphas, betas = np.linspace(0.01, 0.5, 30), np.full(30, 0.9)
    etas, cs = spa_from_sgdm(alphas, betas)
    assert etas[0] > alphas[0] / 0.1
    assert cs[-1] == 1
    assert (cs <= 1).all()
    assert_close(etas[0], np.sum(alphas * 0.9 ** np.arange(30)), 1e-14)
    assert_close(spa_from_sgdm(alphas, betas, eta0=etas[0]), (etas, cs), 0)
    with pytest.raises(ValueError, match=r"leads at step \d+ to .* in \(0, 1\]; the smallest eta0 that fits is"):
        spa_from_sgdm(alphas, betas, eta0=0.99 * etas[0])
    larger, _ = spa_from_sgdm(alphas, betas, eta0=1.01 * etas[0])
    assert (larger > etas).all()


def test_without_momentum_c_is_1():
    alphas = [0.1, 0.3, 0.2]
    etas, cs = spa_from_sgdm(alphas, [0.0] * 3)
    assert (etas.tolist(), cs.tolist()) == (alphas, [1.0] * 3)
    etas, cs = spa_from_sgdm([0.1] * 6, [0.9, 0.9, 0.9, 0.0, 0.9, 0.9])  # momentum is thrown away once
    assert cs[2] == 1
    expected, _ = walk_sgdm(noisy(0), np.ones(3), [0.1] * 6, [0.9, 0.9, 0.9, 0.0, 0.9, 0.9])
    assert_close(walk_spa(noisy(0), np.ones(3), etas, cs)[0], expected)


# ---------------------------------------------------------------- studies: what a drop of the learning rate is


def test_a_drop_of_heavy_balls_lr_is_a_drop_of_c():
    """alpha x 0.1 at beta 0.9: c falls from 0.1 to 0.01 while eta stays; then c shrinks, eta grows, none comes back."""
    alphas = np.repeat([0.05, 0.005], [10, 21])
    etas, cs = spa_from_sgdm(alphas, np.full(31, 0.9))
    assert_close(etas[:11], 0.5, 1e-14)
    assert_close(cs[:10], 0.1, 1e-14)
    assert_close(cs[10], 0.01, 1e-14)
    assert (np.diff(etas[10:]) > 0).all()
    assert etas[-1] == pytest.approx(3.4, rel=0.2)
    assert (etas[11:] / etas[10:-1] <= 1 / 0.9).all()
    assert (spa_descent_margin(etas[:11], cs[:11], L=1 / 0.5) > 0).all()


def test_a_drop_of_eta_is_one_large_beta():
    alphas, betas = sgdm_from_spa(np.repeat([1.0, 0.1], 5), np.full(10, 0.1))
    assert_close(betas[1:], [0.9] * 4 + [9.0] + [0.9] * 4)
    assert_close(alphas, np.repeat([0.1, 0.01], 5))
    _, betas = sgdm_from_spa([1.0, 0.1], [0.274, 0.274])
    assert betas[1] == pytest.approx(7.26, abs=1e-12)


def test_recovering_c_while_training_drifts():
    """c -> c beta / (1 - c) has the fixed point 1 - beta with multiplier 1 / beta."""
    betas = np.full(40, 0.9)
    for start, wanted in ((0.1, [0.1, 0.1, 0.1]), (0.01, [0.00909, 0.00826, 0.0075])):
        _, cs = spa_from_sgdm(np.full(40, 0.1), betas, eta0=0.1 / start)
        assert_close(cs[1:], 0.9 * cs[:-1] / (1 - cs[:-1]), 1e-12)
        assert cs[1:4] == pytest.approx(wanted, rel=2e-3)
    _, cs = spa_from_sgdm(np.full(60, 0.1), betas=np.full(60, 0.9), eta0=0.1 / 0.0999)
    assert (np.diff(cs) < 0).all()
    off = np.abs(cs - 0.1)
    assert off[1] / off[0] == pytest.approx(1 / 0.9, rel=2e-3)
    assert cs[-1] < 0.07


# ---------------------------------------------------------------- the optimizer


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_sgd_spa_is_torchs_sgd_with_constant_options(momentum, decay):
    ours = path(lambda p: untuned.SGDSPA(p, lr=0.5, momentum=momentum, weight_decay=decay), steps=50)
    alpha = 0.5 * (1 - momentum)
    theirs = path(lambda p: torch.optim.SGD(p, lr=alpha, momentum=momentum, weight_decay=decay), steps=50)
    assert_close(ours, theirs, 1e-13)


def test_sgd_spa_without_momentum_is_gradient_descent():
    ours = path(lambda p: untuned.SGDSPA(p, lr=0.5, momentum=0.0), steps=20)
    assert_close(ours, path(lambda p: torch.optim.SGD(p, lr=0.5), steps=20), 1e-15)


def scheduled(etas, cs, loss, **options):
    """SGDSPA with lr etas[k] and momentum 1 - cs[k] at step k -> the points, and z after every step."""
    anchors = []

    def make(params):
        optimizer = untuned.SGDSPA(params, lr=1.0, momentum=0.5, **options)
        steps = iter(cs)

        def before(*_):
            c = next(steps)
            for group in optimizer.param_groups:
                group["momentum"] = 1 - c

        def after(*_):
            anchors.append(np.concatenate([optimizer.state[p]["z"].numpy().ravel() for p in params]))

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)
        return optimizer

    points, _, _ = follow(make, loss, START, len(etas), schedule=etas)
    return points, np.array(anchors)


def test_sgd_spa_follows_any_schedule_of_both():
    rng = np.random.default_rng(0)
    etas, cs = rng.uniform(0.1, 1, 20), rng.uniform(0.05, 1, 20)
    points, anchors = scheduled(etas, cs, logistic)

    def gradient(x, k):
        params = [torch.tensor(x[:6].reshape(3, 2), requires_grad=True), torch.tensor(x[6:], requires_grad=True)]
        return np.concatenate([g.numpy().ravel() for g in torch.autograd.grad(logistic(params, k), params)])

    xs, zs = walk_spa(gradient, points[0], etas, cs)
    assert_close(points, xs, 1e-13)
    assert_close(anchors, zs[1:], 1e-13)
    assert_close(points, walk_sgdm(gradient, points[0], *sgdm_from_spa(etas, cs))[0], 1e-11)


def test_sgd_spa_with_c_of_the_harmonic_series_holds_the_mean_of_z():
    """c_{k+1} = 1 / (k + 2): x_k is the mean of z_0, ..., z_k."""
    T = 30
    points, anchors = scheduled([0.3] * T, 1 / np.arange(2.0, T + 2), noise)
    zs = np.concatenate([points[:1], anchors])
    assert_close(points, np.cumsum(zs, 0) / np.arange(1, T + 2)[:, None], 1e-13)


# ---------------------------------------------------------------- descent


@settings(max_examples=200)
@given(seeds)
def test_one_step_inequality_of_convex_quadratics(seed):
    """Exact gradients: |z' - x*|^2 + 2 eta / c gap <= |z - x*|^2 + 2 eta (1 / c - 1) gap_before + eta^2 |g|^2."""
    rng = np.random.default_rng(seed)
    A, eta, solution = rng.normal(size=(4, 4)), rng.uniform(0.01, 0.5), rng.normal(size=4)
    A, cs = A.T @ A, np.append(rng.uniform(0.05, 1, 20), 1.0)[::-1]  # c_0 = 1, c_1, ...
    xs, zs = walk_spa(lambda x, k: A @ (x - solution), rng.normal(size=4), np.full(20, eta), cs[1:])
    gaps = np.einsum("ki,ij,kj->k", xs - solution, A, xs - solution) / 2
    far, gradients = np.sum((zs - solution) ** 2, 1), (xs - solution) @ A
    before = np.append(gaps[0], gaps[:-1])
    left = far[1:] + 2 * eta / cs[:-1] * gaps[:-1]
    terms = [far[:-1], 2 * eta * (1 / cs[:-1] - 1) * before[:-1], eta**2 * np.sum(gradients[:-1] ** 2, 1)]
    assert (left <= sum(terms) * (1 + 1e-12)).all()


def wavy(rng, n=5):
    """A non-convex loss, cosines on an indefinite quadratic -> f, its gradient, and a bound L of its curvature."""
    Q = rng.normal(size=(n, n))
    Q, b, W, s = (Q + Q.T) / 2, rng.normal(size=n), rng.normal(size=(3, n)), rng.normal(size=3)
    L = np.abs(np.linalg.eigvalsh(Q)).max() + np.linalg.eigvalsh(W.T @ (np.abs(s)[:, None] * W)).max()
    return (
        lambda x: x @ Q @ x / 2 + b @ x + s @ np.cos(W @ x),
        lambda x, k=0: Q @ x + b - W.T @ (s * np.sin(W @ x)),
        L,
    )


SCHEDULES = {
    "constant": lambda rng, L: (np.full(60, rng.uniform(0.1, 2.2) / L), np.full(60, rng.uniform(0.02, 1))),
    "falling c": lambda rng, L: (
        np.full(60, rng.uniform(0.1, 2.0) / L),
        np.sort(rng.uniform(0.01, 1, 60))[::-1],
    ),
    "falling eta": lambda rng, L: (np.sort(rng.uniform(0.05, 2.0, 60))[::-1] / L, np.full(60, rng.uniform(0.02, 1))),
    "any": lambda rng, L: (rng.uniform(0.05, 2.0, 60) / L, rng.uniform(0.02, 1, 60)),
}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_the_lyapunov_function_falls_by_its_bound_on_losses_that_are_not_convex(kind):
    falls = rises = 0
    for seed in range(75):
        rng = np.random.default_rng(seed)
        f, gradient, L = wavy(rng)
        etas, cs = SCHEDULES[kind](rng, L)
        start = 0.1 * rng.normal(size=5)
        xs, _ = walk_spa(gradient, start, etas, cs)
        before = np.append(1.0, cs)  # c_k made x_k
        V = [lyapunov(f(xs[0]), xs[0], xs[0], etas[0], 1.0)]
        assert V[0] == f(start)
        V += [
            lyapunov(f(xs[k]), xs[k], xs[k - 1], etas[min(k, 59)], before[k])  # as `spa_descent_margin`: eta stays
            for k in range(1, 61)
        ]
        moved, margin = np.sum(np.diff(xs, axis=0) ** 2, 1), spa_descent_margin(etas, cs, L)
        size = np.abs(V[:-1]) + np.abs(V[1:]) + np.abs(margin) * moved + 1
        assert (np.diff(V) <= -margin * moved + 1e-11 * size).all()
        assert (np.diff(V)[margin >= 0] <= 1e-11 * size[margin >= 0]).all()
        falls, rises = falls + np.sum(margin >= 0), rises + np.sum(np.diff(V) > 1e-9 * size)
    assert falls > 1000
    assert (rises > 0) == (kind in ("any", "falling eta"))  # where margins are negative V may rise, and does


def test_the_margin_of_constants_is_that_of_gradient_descent():
    for c in (0.01, 0.1, 1.0):
        assert_close(spa_descent_margin([0.5] * 5, [c] * 5, L=3.0)[1:], 1 / 0.5 - 3.0 / 2, 1e-12)
    assert_close(spa_descent_margin([0.5], [1.0], L=3.0), [0.5], 1e-12)  # at c = 1 from the first step on


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99])
def test_sgd_spa_is_stable_up_to_two_over_the_curvature_whatever_the_momentum(momentum):
    def run(eta):
        return monitored([1.0, -2.0], lambda p, k: 4.0 * (p[0] ** 2).sum() / 2, eta / 4.0, momentum, 3000)

    points, _, monitor = run(1.99)
    assert (np.diff(monitor.values) <= 0).all()
    assert np.abs(points[-1]).max() < 1e-6
    for eta, positive in ((1.99, True), (2.01, False)):
        assert (spa_descent_margin([eta / 4.0] * 2, [1 - momentum] * 2, L=4.0)[1] > 0) == positive
    # On a parabola heavy ball lasts to alpha < 2 (1 + beta) / L, here eta < 2 (1 + beta) / (1 - beta) / L.
    limit = 2 * (1 + momentum) / (1 - momentum)
    assert np.abs(run(0.99 * limit)[0][-1]).max() < 1e-4
    assert not np.abs(run(1.01 * limit)[0][-1]).max() < 1e6


@settings(max_examples=100)
@given(seeds)
def test_at_fixed_eta_lowering_c_never_hurts(seed):
    rng = np.random.default_rng(seed)
    eta, cs = rng.uniform(0.01, 2), np.sort(rng.uniform(1e-4, 1, 30))[::-1]
    margin = spa_descent_margin(np.full(30, eta), cs, L=1.0)[1:]
    assert (margin >= 1 / eta - 0.5 - 1e-9 / eta / cs[1:]).all()
    inverse = 1 / cs
    assert_close(margin * eta, 1 + (inverse[1:] - inverse[:-1]) / 2 - eta / 2, 1e-9)


@pytest.mark.parametrize("eta", [0.1, 1.0, 1.9])
def test_c_may_rise_as_fast_as_the_margin_allows(eta):
    for old in (0.02, 0.1, 0.3):
        limit = 1 / (1 / old - (2 - eta))  # 1 / c_{k+1} = 1 / c_k - (2 - eta L)
        for factor, good in ((0.999, True), (1.001, False)):
            margin = spa_descent_margin([eta] * 3, [old, old, limit * factor], L=1.0)
            assert (margin[2] >= 0) == good


@pytest.mark.parametrize(("eta", "wanted"), [(1e-9, 0.818), (1.0, 0.9)])
def test_eta_may_fall_as_fast_as_the_margin_allows(eta, wanted):
    c = 0.1
    limit = (1 - c) / (1 + c - c * eta)
    assert limit == pytest.approx(wanted, abs=5e-4)
    for ratio, good in ((limit * 1.0001, True), (limit * 0.9999, False), (0.1, False)):
        assert (spa_descent_margin([eta, eta, ratio * eta], [c] * 3, L=1.0)[1] >= 0) == good
    assert (spa_descent_margin([eta] * 3, [c, c, 0.1 * c], L=1.0) >= 0).all()  # a tenfold drop of c


def monitored(start, loss, eta, momentum, steps, change=lambda group, k: None, **options):
    p = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = untuned.SGDSPA([p], lr=eta, momentum=momentum, **options)
    monitor, points, losses = LyapunovMonitor(optimizer), [], []
    for k in range(steps):
        change(optimizer.param_groups[0], k)
        points.append(p.detach().numpy().copy())
        optimizer.zero_grad()
        value = loss([p], k)
        value.backward()
        monitor.record(value)
        losses.append(value.item())
        optimizer.step()
    return np.array(points), np.array(losses), monitor


def test_the_monitor_records_the_lyapunov_function():
    rng = np.random.default_rng(1)
    etas, cs = rng.uniform(0.1, 0.3, 20), rng.uniform(0.1, 1, 20)
    cs[7] = 1.0

    def change(group, k):
        group["lr"], group["momentum"] = etas[k], 1 - cs[k]

    def loss(p, k):
        return (p[0] ** 4 - p[0] ** 2 + torch.cos(3 * p[0])).sum()

    points, losses, monitor = monitored([0.5, -1.0], loss, 0.1, 0.5, 20, change, weight_decay=0.2)
    assert monitor.values[0] == pytest.approx(losses[0] + 0.1 * np.sum(points[0] ** 2), rel=1e-14)
    for k in range(1, 20):
        f = losses[k] + 0.1 * np.sum(points[k] ** 2)
        assert monitor.values[k] == pytest.approx(lyapunov(f, points[k], points[k - 1], etas[k], cs[k - 1]), rel=1e-11)


def test_the_monitor_in_several_groups_and_over_a_skipped_step():
    params = [torch.nn.Parameter(torch.tensor(a)) for a in START]
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.1, "momentum": 0.5}]
    optimizer = untuned.SGDSPA(groups, lr=0.3)
    monitor = LyapunovMonitor(optimizer)
    before = [p.detach().clone() for p in params]
    for k in range(6):
        optimizer.zero_grad()
        loss = logistic(params, 0)
        loss.backward()
        expected = loss.item()
        for p, q, eta, c in zip(params, before, (0.3, 0.1), (0.1, 0.5), strict=True):
            expected += (1 - c) / (2 * c * eta) * (p - q).square().sum().item()
        assert monitor.record(loss) == pytest.approx(expected, rel=1e-12)
        before = [p.detach().clone() for p in params] if k != 3 else before
        if k == 3:
            params[0].grad[0, 0] = torch.nan
            optimizer.param_groups[0]["momentum"] = 0.1  # of a step that never was
        optimizer.step()
        optimizer.param_groups[0]["momentum"] = 0.9
    assert (np.diff(monitor.values) <= 0).all()


def test_a_drop_of_c_descends_where_a_drop_of_eta_does_not():
    """On a slope of constant direction with a bend: the run behind the claim, from the same point with the same V."""

    def loss(p, k):
        return torch.log(torch.cosh(p[0])).sum()  # curvature at most 1

    def dropped(key, factor):
        def change(group, k):
            if k == 10:
                group[key] = 1 - 0.1 * factor if key == "momentum" else group[key] * factor

        return monitored([6.0], loss, 1.0, 0.9, 60, change)[2].values

    assert (np.diff(dropped("momentum", 0.1)) <= 0).all()
    assert np.diff(dropped("lr", 0.1))[9] > 1  # V rises at the drop: what moves already has ten times the weight


def test_descent_under_momentum_decay():
    p = torch.nn.Parameter(torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64))
    optimizer = untuned.SGDSPA([p], lr=0.4)
    schedule, monitor = MomentumDecay(optimizer, 50, final_c=0.01), LyapunovMonitor(optimizer)
    for _ in range(60):
        optimizer.zero_grad()
        loss = torch.cos(1.5 * p).sum() + (p**2).sum() / 8
        loss.backward()
        monitor.record(loss)
        optimizer.step()
        schedule.step()
    assert (np.diff(monitor.values) <= 1e-15).all()


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: spa_from_sgdm([0.1, 0.1], [0.9]), r"^spa_from_sgdm: both sequences .* 2 alphas and 1 betas\.$"),
        (lambda: spa_from_sgdm([], []), r"alphas must be a sequence of at least one number, not of shape \(0,\)\.$"),
        (lambda: spa_from_sgdm(0.1, 0.9), r"alphas must be a sequence of at least one number, not of shape \(\)\.$"),
        (lambda: spa_from_sgdm([0.1, np.nan], [0.9] * 2), r"alphas must be finite; at step 1 there is nan\.$"),
        (lambda: spa_from_sgdm([0.1] * 2, [0.9, np.inf]), r"betas must be finite; at step 1 there is inf\.$"),
        (lambda: spa_from_sgdm([0.1, -0.1], [0.9] * 2), r"alphas must be positive; at step 1 there is -0\.1\.$"),
        (lambda: spa_from_sgdm([0.1, 0.0], [0.9] * 2), r"alphas must be positive; at step 1 there is 0\.$"),
        (lambda: spa_from_sgdm([0.1] * 2, [0.9, -1]), r"betas must not be negative; at step 1 there is -1\.$"),
        (lambda: spa_from_sgdm([0.1] * 2, [0.9] * 2, eta0=-1.0), r"eta0 must be a positive number, not -1\.0\.$"),
        (lambda: spa_from_sgdm([0.1] * 2, [0.9] * 2, eta0=np.nan), r"eta0 must be a positive number, not nan\.$"),
        (lambda: spa_from_sgdm([0.1] * 2, [0.9] * 2, eta0=0.05), r"step 0 to c = alpha / eta = 2, and c must be in"),
        (lambda: spa_from_sgdm([0.1] * 9, [0.9] * 9, eta0=0.3), r"eta0 = 0\.3 leads at step 3 to .* fits is 0\.61"),
        (lambda: spa_from_sgdm([0.1] * 4, [0.9, 0.9, 0.0, 0.9], eta0=1.0), r"eta0 = 1 leads at step 2 to eta = nan"),
        (
            lambda: sgdm_from_spa([1.0, 1.0], [0.1, 1.1]),
            r"^sgdm_from_spa: cs must be in \(0, 1\]; at step 1 .* 1\.1",
        ),
        (lambda: sgdm_from_spa([1.0], [0.0]), r"cs must be in \(0, 1\]; at step 0 there is 0\.$"),
        (lambda: sgdm_from_spa([1.0], [-0.1]), r"cs must be in \(0, 1\]; at step 0 there is -0\.1\.$"),
        (lambda: sgdm_from_spa([-1.0], [0.1]), r"etas must be positive; at step 0 there is -1\.$"),
        (lambda: sgdm_from_spa([1.0], [0.1, 0.1]), r"there are 1 etas and 2 cs\.$"),
        (lambda: sgdm_from_spa([1.0], [np.nan]), r"cs must be finite; at step 0 there is nan\.$"),
        (lambda: spa_descent_margin([1.0], [0.1], -1.0), r"^spa_descent_margin: L must be .* at least 0, not -1\.0\.$"),
        (lambda: spa_descent_margin([1.0], [2.0], 1.0), r"^spa_descent_margin: cs must be in \(0, 1\]"),
        (lambda: lyapunov(1.0, [1.0], [1.0], 0.1, 1.5), r"^lyapunov: cs must be in \(0, 1\]"),
    ],
)
def test_bad_sequences_are_refused_in_a_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_bad_input_changes_nothing():
    alphas, betas = np.array([0.1, -0.1]), np.array([0.9, 0.9])
    with pytest.raises(ValueError, match="alphas"):
        spa_from_sgdm(alphas, betas)
    assert (alphas.tolist(), betas.tolist()) == ([0.1, -0.1], [0.9, 0.9])
    good = np.array([0.1, 0.1])
    spa_from_sgdm(good, betas)
    sgdm_from_spa(good, betas)
    assert (good.tolist(), betas.tolist()) == ([0.1, 0.1], [0.9, 0.9])
    with pytest.raises(TypeError, match=r"^spa_from_sgdm: alphas must be numbers\.$"):
        spa_from_sgdm(["fast"], [0.9])
    other = untuned.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.9)
    with pytest.raises(TypeError, match=r"^LyapunovMonitor: V is that of SGDSPA and of no other optimizer, not SGD\.$"):
        LyapunovMonitor(other)
    assert not other._optimizer_step_post_hooks


def test_points_of_two_shapes_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"^lyapunov: x and x_prev must be of one shape, not \(2,\) and \(1,\)\.$"):
        lyapunov(1.0, [1.0, 2.0], [1.0], 0.5, 0.5)
    with pytest.raises(TypeError, match=r"^lyapunov: x must be numbers\.$"):
        lyapunov(1.0, ["a"], [1.0], 0.5, 0.5)


@pytest.mark.filterwarnings("error")
def test_sequences_may_be_tensors_of_a_graph():
    given = torch.tensor([0.5, 0.25], requires_grad=True), torch.tensor([0.5, 0.5], dtype=torch.bfloat16)
    wanted = spa_from_sgdm([0.5, 0.25], [0.5, 0.5])
    for found, numbers in zip(spa_from_sgdm(*given), wanted, strict=True):
        assert found.tolist() == numbers.tolist()


def test_the_lyapunov_function_is_not_that_of_transforms_or_other_directions():
    p, q = [torch.nn.Parameter(torch.ones(1)) for _ in "pq"]
    for options, name in (({"around": [RandomScaling()]}, "RandomScaling"), ({"gradient": [AdaRem()]}, "AdaRem")):
        with pytest.raises(TypeError, match=rf"^LyapunovMonitor: V is that of [^\n]* not SGDSPA with {name}\.$"):
            LyapunovMonitor(untuned.SGDSPA([p], **options))
    groups = [{"params": [p], "label": "a"}, {"params": [q], "label": "b"}]
    parts = {"a": Gradient(), "b": Adam()}, Fixed(0.1), PrimalAverage(), Coupled()
    with pytest.raises(TypeError, match=r"^LyapunovMonitor: V is that of "):
        LyapunovMonitor(untuned.compose(groups, *parts))
    monitor = LyapunovMonitor(untuned.SGDSPA([p], gradient=[Norms()]))
    assert monitor.record(2.0) == 2.0

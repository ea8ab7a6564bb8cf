"""What the papers' equations imply in closed form, checked on the optimizers themselves."""

from fractions import Fraction
from math import sqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import untuned
from untuned import directions, iterates, step_sizes, weight_decay
from untuned.schedules import LinearDecay

START = [np.array([[0.3, -1.2], [0.8, 0.1], [-0.4, 1.5]]), np.array([0.2, -0.7])]
NO_EPS = 1e-300


def logistic(params, k):
    """Two logistic regressions on a batch that changes with the step."""
    rng = np.random.default_rng(k)
    inputs, labels = torch.tensor(rng.normal(size=(5, 3))), torch.tensor(np.sign(rng.normal(size=(5, 2))))
    return torch.nn.functional.softplus(-labels * (inputs @ params[0] + params[1])).sum() / 5


def linear(*slopes):
    return lambda params, k: sum(
        (torch.tensor(g, dtype=torch.float64) * p).sum() for g, p in zip(slopes, params, strict=True)
    )


def square(params, k):
    return (params[0] ** 2).sum()


def noise(params, k):
    """Gradients that do not depend on the parameters, but on the step."""
    rng = np.random.default_rng(k)
    return sum((torch.tensor(rng.normal(size=p.shape)) * p).sum() for p in params)


def follow(make, loss, start, steps, schedule=None):
    """-> the flattened parameters before the first and after every step [steps + 1, n], `metrics()` after every step
    with its values in rows, and the optimizer. `schedule` multiplies lr."""
    params = [torch.nn.Parameter(torch.tensor(a, dtype=torch.float64)) for a in start]
    optimizer = make(params)
    lrs = [group["lr"] for group in optimizer.param_groups]
    points, numbers = [], []
    for k in range(steps + 1):
        points.append(np.concatenate([p.detach().numpy().ravel() for p in params]))
        if k == steps:
            break
        for group, lr in zip(optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr * (1.0 if schedule is None else schedule[k])
        optimizer.zero_grad()
        value = loss(params, k)
        value.backward()
        if isinstance(optimizer, untuned.Optimizer):
            optimizer.step(loss=value, sample_ids=[0, 5, 2, 2])
            numbers.append(optimizer.metrics())
        else:
            optimizer.step()
    return (
        np.array(points),
        {key: np.array([n[key] for n in numbers]) for key in numbers[0]} if numbers else {},
        optimizer,
    )


def path(make, loss=logistic, start=START, steps=20, schedule=None):
    return follow(make, loss, start, steps, schedule)[0]


def assert_close(left, right, tolerance=1e-12):
    np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance)


# ---------------------------------------------------------------- MoMo


@pytest.mark.parametrize("curvature", [0.01, 1.0, 300.0])
def test_momo_halves_any_parabola(curvature):
    points, numbers, _ = follow(
        lambda p: untuned.MoMo(p, lr=1e9, beta=0.0),
        lambda p, k: curvature / 2 * (p[0] ** 2).sum(),
        [[1.0, 2.0, 3.0]],
        5,
    )
    assert_close(points, [np.array([1, 2, 3]) / 2**k for k in range(6)], 1e-14)
    assert_close(numbers["lr_effective"] * curvature, 0.5, 1e-14)


def exact_momo(steps, lb=0, online=False):
    """MoMo on x^2 from 1 with beta = 9/10 and no cap, in fractions: -> (x, L) after every step."""
    x, d, F, G, L, rows = Fraction(1), None, None, None, Fraction(lb), []
    for _ in range(steps):
        f, g = x * x, 2 * x
        keep = Fraction(9, 10) if d is not None else Fraction(0)
        d, F, G = (keep * (a or 0) + (1 - keep) * b for a, b in ((d, g), (F, f), (G, g * x)))
        model = F - G + d * x
        if online and model < L:
            L = max(model / 2, Fraction(lb))
        tau = max(model - L, Fraction(0)) / (d * d) if d else Fraction(0)
        if online:
            L = max(model - tau * d * d / 2, Fraction(lb))
        x -= tau * d
        rows.append((x, L))
    return rows


def test_momo_on_a_parabola_in_fractions():
    exact = exact_momo(8)
    assert [x for x, _ in exact[:3]] == [Fraction(1, 2), Fraction(37, 76), Fraction(247271, 521968)]
    points = path(lambda p: untuned.MoMo(p, lr=1e9), square, [[1.0]], 8)
    assert_close(points[1:, 0], [float(x) for x, _ in exact], 1e-13)


def test_momo_star_on_a_parabola_in_fractions():
    exact = exact_momo(6, lb=-1, online=True)
    assert exact[:3] == [(0, 0), (0, Fraction(-9, 10)), (Fraction(-1, 18), Fraction(-171, 200))]
    assert exact[3] == (Fraction(-10181, 117198), Fraction(-3371, 4050))
    points, numbers, _ = follow(lambda p: untuned.MoMo(p, lr=1e9, lb=-1.0, use_fstar=True), square, [[1.0]], 6)
    assert_close(points[1:, 0], [float(x) for x, _ in exact], 1e-13)
    assert_close(numbers["lower_bound"], [float(L) for _, L in exact], 1e-13)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda p: untuned.MoMo(p, lr=0.01), lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, dampening=0.9)),
        (lambda p: untuned.MoMoAdam(p, lr=1e-3), lambda p: torch.optim.Adam(p, lr=1e-3)),
        (
            lambda p: untuned.MoMoAdam(p, lr=1e-3, weight_decay=0.5, divide=False),
            lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.5),
        ),
    ],
    ids=["momo-sgd", "momo_adam-adam", "momo_adam-adamw"],
)
def test_momo_whose_cap_binds_is_torchs_optimizer(ours, theirs):
    points, numbers, optimizer = follow(ours, logistic, START, 30)
    assert_close(numbers["lr_effective"], optimizer.param_groups[0]["lr"], 1e-15)
    assert_close(points, path(theirs, steps=30), 1e-14)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_momo_without_memory_is_the_proximal_polyak_step(decay):
    eta, bound, c = 2.0, 0.5, 1 + 2.0 * decay
    params = [torch.tensor(a, requires_grad=True) for a in START]
    expected, capped = [], set()
    for k in range(20):
        value = logistic(params, k)
        grads = torch.autograd.grad(value, params)
        along = sum((g * p).sum() for g, p in zip(grads, params, strict=True))
        tau = max(c * (value - bound) - eta * decay * along, 0.0) / sum((g * g).sum() for g in grads)
        capped.add(bool(tau > eta))
        params = [((p - min(tau, eta) * g) / c).detach().requires_grad_() for p, g in zip(params, grads, strict=True)]
        expected.append(torch.cat([p.flatten() for p in params]).detach().numpy())
    assert capped == {True, False}
    assert_close(path(lambda p: untuned.MoMo(p, lr=eta, beta=0.0, lb=bound, weight_decay=decay))[1:], expected, 1e-13)


MODELS = {
    "first sample": (lambda: directions.Momentum(0.9, dampening=0.9), "momentum_buffer"),
    "bias correction": (lambda: directions.Momentum(0.9, dampening=0.9, correct=True), "momentum_buffer"),
    "heavy ball": (lambda: directions.Momentum(0.9), "momentum_buffer"),
    "adam": (directions.Adam, "exp_avg"),
    "tam": (lambda: directions.TAM(scope="model"), "momentum_buffer"),
}


@pytest.mark.parametrize("direction", MODELS)
@pytest.mark.parametrize(("lr", "bound"), [(1e-3, 0.0), (30.0, 0.3), (1.0, 5.0)], ids=["capped", "between", "still"])
def test_momo_step_minimises_its_model_over_all_groups(direction, lr, bound):
    """Two groups with lr and decay of their own: strong convexity bounds the objective elsewhere from below."""
    make, key = MODELS[direction]
    etas, decays = [lr, 0.3 * lr], [0.0, 0.2]

    def optimizer(params):
        groups = [{"params": [p], "lr": e, "weight_decay": d} for p, e, d in zip(params, etas, decays, strict=True)]
        return untuned.compose(groups, make(), step_sizes.MoMo(lr, bound), decay=weight_decay.Proximal())

    points, numbers, opt = follow(optimizer, logistic, START, 4)
    x, y = points[-2:]
    held = [opt.state[group["params"][0]] for group in opt.param_groups]
    slope = np.concatenate([h[key].numpy().ravel() for h in held])
    level = numbers["loss_avg"][-1] - sum((h["mx"] - h["model_offset"]).item() for h in held)
    rho, theta = numbers["weights"][-1], numbers["theta"][-1]
    D = np.ones(8)
    if direction == "adam":
        D = np.concatenate([np.sqrt(h["exp_avg_sq"].numpy().ravel() / (1 - 0.999**4)) + 1e-8 for h in held])
    eta, decay = (np.repeat(v, [6, 2]) for v in (etas, decays))
    regime = "capped" if theta == 1 / rho else "still" if theta == 0 else "between"
    assert regime == {1e-3: "capped", 30.0: "between", 1.0: "still"}[lr]

    def objective(z):
        return max((level + slope @ z) / rho, bound) + (D * ((z - x) ** 2 / eta + decay * z**2)).sum() / 2

    def is_minimum(y):
        away = np.geomspace(1e-4, 10, 500)[:, None] * np.random.default_rng(0).normal(size=(500, 8))
        gaps = [objective(y + a) - objective(y) for a in away]
        bends = (D * (1 / eta + decay) * away**2).sum(1) / 2
        return bool((gaps >= bends * (1 - 1e-9) - 1e-12).all())

    assert is_minimum(y)
    if regime == "between":
        assert (level + slope @ y) / rho == pytest.approx(bound, rel=1e-12)  # uncapped, the model meets its bound
        assert not is_minimum(x / (1 + eta * decay) - theta * eta * slope / D)  # decay left off its own move


def test_momo_invariances():
    def run(loss=logistic, start=START, lr=2.0, lb=0.3):
        return path(lambda p: untuned.MoMo(p, lr=lr, lb=lb), loss, start)

    expected = run()
    moved = run(lambda p, k: logistic([a - 3.0 for a in p], k), [a + 3.0 for a in START])
    assert_close(moved - 3.0, expected)
    assert_close(run(lambda p, k: logistic(p, k) + 7.0, lb=7.3), expected)
    assert_close(run(lambda p, k: 50 * logistic(p, k), lr=2.0 / 50, lb=0.3 * 50), expected)


@pytest.mark.parametrize("lr", [1e-2, 1e3])
def test_momo_averaging_variants_share_the_first_step(lr):
    first, a, _ = follow(lambda p: untuned.MoMo(p, lr=lr), logistic, START, 1)
    corrected, b, _ = follow(lambda p: untuned.MoMo(p, lr=lr, bias_correction=True), logistic, START, 1)
    assert b["theta"][0] == pytest.approx(10 * a["theta"][0], rel=1e-14)
    assert b["lr_effective"][0] == pytest.approx(a["lr_effective"][0], rel=1e-14)
    assert_close(first, corrected, 1e-14)


# ---------------------------------------------------------------- D-Adaptation and Prodigy


def test_dadapt_adam_on_a_constant_gradient():
    """With s = S g and v = V g^2 in every element, d_hat is the same for all gradients."""
    sb, S1, S2 = sqrt(0.999), 1 - sqrt(0.999), 1 - 0.999
    second = 1 / (sqrt(1 - 0.999) * (1 + sb))
    r2 = (1 - sb) * S1 / sqrt(1 - 0.999)
    r3 = sb * r2 + (1 - sb) * second * S2 / sqrt(1 - 0.999**2)
    third = r3 / ((1 - sb) * (sb * S2 + (1 - sb) * second))
    _, numbers, _ = follow(
        lambda p: untuned.DAdaptAdam(p, d0=1.0, eps=NO_EPS), linear([1.0, -2.0], [3.0]), [[0, 0], [0]], 3
    )
    assert_close(numbers["d"], [1, second, third])


def test_dadapt_adam_that_may_not_grow_is_adam_without_bias_correction():
    ours, numbers, _ = follow(
        lambda p: untuned.DAdaptAdam(p, d0=0.02, growth_rate=1.0, decouple=True, weight_decay=0.3), logistic, START, 20
    )
    adam = path(
        lambda p: untuned.compose(
            p, directions.Adam(correct=False), step_sizes.Fixed(0.02), decay=weight_decay.Decoupled(0.3)
        )
    )
    assert set(numbers["d"]) == {0.02}
    assert_close(ours, adam)


@pytest.mark.parametrize("corrected", [False, True])
def test_prodigy_first_step(corrected):
    points, numbers, _ = follow(
        lambda p: untuned.Prodigy(p, lr=0.5, d0=1e-3, eps=NO_EPS, use_bias_correction=corrected),
        linear([1.0, -7.0]),
        [[0, 0]],
        1,
    )
    length = 0.5 * 1e-3 * (1.0 if corrected else (1 - 0.9) / sqrt(1 - 0.999))
    assert_close(points[1] / length, [-1, 1])
    assert numbers["d"][0] == 1e-3


def test_prodigy_on_a_constant_gradient():
    _, numbers, _ = follow(lambda p: untuned.Prodigy(p, d0=1.0, eps=NO_EPS), linear([1.0]), [[0.0]], 6)
    assert_close(numbers["d"][:2], [1, sqrt(10) / (1 + sqrt(0.999))])
    assert_close(numbers["d"], [1, 1.58153431, 4.82240946, 13.49609886, 34.50971252, 88.58526688], 1e-9)


def test_prodigy_that_may_not_adapt_is_adam():
    ours, numbers, _ = follow(
        lambda p: untuned.Prodigy(p, d0=0.01, d_coef=0.0, eps=NO_EPS, use_bias_correction=True), logistic, START, 30
    )
    assert set(numbers["d"]) == {0.01}
    assert_close(ours, path(lambda p: torch.optim.Adam(p, lr=0.01, eps=NO_EPS), steps=30), 1e-13)


def test_prodigy_scales_with_the_parameters_and_not_with_the_loss():
    def run(loss=logistic, unit=1.0, shift=0.0):
        start = [unit * a + shift for a in START]
        points, numbers, _ = follow(lambda p: untuned.Prodigy(p, d0=unit * 1e-3, eps=NO_EPS), loss, start, 30)
        return (points - points[0]) / unit, numbers["d"] / unit

    moves, d = run()
    assert d[-1] > 10 * d[0]
    for other in [
        run(lambda p, k: logistic([a / 50 for a in p], k), unit=50.0),
        run(lambda p, k: logistic([a - 3.0 for a in p], k), shift=3.0),
        run(lambda p, k: 1e3 * logistic(p, k)),
    ]:
        assert_close(other[0], moves, 1e-10)
        assert_close(other[1] / d, 1.0, 1e-10)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    d_coef=st.floats(0.1, 3.0),
    d0=st.sampled_from([1e-6, 1e-2]),
    options=st.fixed_dictionaries(
        {}, optional={"weight_decay": st.floats(0, 0.1), "use_bias_correction": st.booleans()}
    ),
    beta1=st.floats(0.0, 0.99),
    fraction=st.floats(0.1, 1.0),
)
def test_prodigy_estimate_stays_below_the_distance_on_convex_losses(seed, d_coef, d0, options, beta1, fraction):
    """Whatever the schedule: d is at most the largest coordinate of the way to the solution, times d_coef.

    A group at a fraction of the lr measures its way in units of that fraction.
    """
    rng = np.random.default_rng(seed)
    A, solution, start = rng.normal(size=(12, 4)), rng.normal(size=4), rng.normal(size=4)
    A_, b_ = torch.tensor(A), torch.tensor(A @ solution)
    _, numbers, _ = follow(
        lambda p: untuned.Prodigy(
            [{"params": p[:1]}, {"params": p[1:], "lr": fraction}],
            d0=d0,
            d_coef=d_coef,
            betas=(beta1, 0.999),
            **options,
        ),
        lambda p, k: ((A_ @ torch.cat(p) - b_) ** 2).sum() / 2,
        np.split(start, [2]),
        60,
        schedule=rng.uniform(0.0, 2.0, 60),
    )
    d = numbers["d"]
    way = np.abs(start - solution) / np.repeat([1.0, fraction], 2)
    assert (np.diff(d) >= 0).all()
    assert d0 < d[-1] <= max(d0, d_coef * way.max())


def test_prodigy_growth_rate():
    _, numbers, _ = follow(lambda p: untuned.Prodigy(p, d0=1e-4, growth_rate=1.2), logistic, START, 40)
    d, d_max = numbers["d"], numbers["d_max"]
    first = np.flatnonzero(np.diff(d) > 0)[0] + 1
    growth = d[first + 1 :] / d[first:-1]
    ahead = d_max[first + 1 :] > 1.2 * d[first:-1]
    assert ahead.sum() > 5
    assert_close(growth[ahead], 1.2)
    assert (growth <= 1.2 * (1 + 1e-12)).all()
    assert (growth >= 1).all()


def test_prodigy_without_momentum_is_the_limit_of_little_momentum():
    none, numbers, _ = follow(lambda p: untuned.Prodigy(p, d0=1e-3, betas=(0.0, 0.999)), logistic, START, 40)
    assert numbers["d"][-1] > 10 * numbers["d"][0]
    assert_close(none, path(lambda p: untuned.Prodigy(p, d0=1e-3, betas=(1e-13, 0.999)), steps=40), 1e-10)


@pytest.mark.parametrize("make", [untuned.Prodigy, untuned.DAdaptAdam])
def test_resting_tensor_does_not_raise_the_estimate(make):
    """Its share leaves the numerator with it, as it leaves the denominator; else d would jump, and never come back."""

    def run(schedule):
        params = [torch.nn.Parameter(torch.zeros(n, dtype=torch.float64)) for n in (100, 1)]
        optimizer = make(params, d0=1e-2)
        for active in schedule:
            for p in params[: 1 + active] if active else params[1:]:
                p.grad = torch.ones_like(p)
            optimizer.step()
            optimizer.zero_grad()
        return optimizer.metrics()["d"]

    both, alone = run([1, 1, 1, 1]), run([1, 1, 1, 0])
    assert alone == pytest.approx(both, rel=1e-9)  # per coordinate all is alike, so the estimate is too


# ---------------------------------------------------------------- Mechanic

DECAYS = 1 - 10.0 ** -np.arange(1, 7)


def test_mechanic_first_step():
    points, numbers, _ = follow(lambda p: untuned.MechanicAdamW(p, lr=0.1), logistic, START, 1)
    assert numbers["mechanic_S"][0] == pytest.approx(1e-6 * DECAYS.mean(), rel=1e-14)
    base = path(lambda p: untuned.AdamW(p, lr=0.1, weight_decay=0.0), steps=1)
    assert_close((points[1] - points[0]) / numbers["mechanic_S"][0], base[1] - base[0], 1e-8)


@pytest.mark.parametrize("make", [untuned.MechanicSGD, untuned.MechanicAdamW])
def test_mechanic_without_displacement_keeps_the_parameters(make):
    points, numbers, _ = follow(make, linear(0 * START[0], 0 * START[1]), START, 5)
    assert (points == points[0]).all()
    assert (numbers["mechanic_S"] > 0).all()


@pytest.mark.parametrize("factor", [1e-3, 100.0])
def test_mechanic_learns_the_unit_of_lr(factor):
    """lr times c, s_init over c: the same steps with S over c, up to Mechanic's own eps, where s_decay is 0."""

    def run(c, s_decay=0.0):
        points, numbers, _ = follow(
            lambda p: untuned.MechanicSGD(p, lr=c, s_decay=s_decay, s_init=1e-4 / c), logistic, START, 60
        )
        return points, c * numbers["mechanic_S"]

    points, S = run(1.0)
    assert np.abs(points[-1] - points[0]).max() > 0.1
    scaled_points, scaled_S = run(factor)
    assert_close(scaled_points, points, 1e-4)
    assert_close(scaled_S / S, 1.0, 1e-4)
    pull, scaled_pull = (np.abs(run(c, 0.5)[0][-1] - points[-1]).max() for c in (1.0, factor))
    assert pull > 1e-3
    assert (scaled_pull > 3 * pull) if factor < 1 else (scaled_pull < pull / 3)  # it grows as lr falls


def test_mechanic_on_a_constant_gradient():
    """Around SGD the displacement is -k g, so the first three S follow by hand, and S only grows."""
    points, numbers, _ = follow(lambda p: untuned.MechanicSGD(p, momentum=0.0, s_decay=0.0), linear([1.0]), [[0.0]], 40)
    S = numbers["mechanic_S"]
    s1 = 1e-6 * DECAYS / 6
    s2 = (1e-8 / 6 + s1) / (1 + 1e-8)
    s3 = (2e-8 / 6 + DECAYS * s1 + 2 * s2) / (np.sqrt(DECAYS**2 + 4) + 1e-8)
    assert_close(S[:3] / [s1.sum(), s2.sum(), s3.sum()], 1.0)
    assert_close(points[1:, 0], -S * np.arange(1, 41))
    assert (np.diff(S) >= 0).all()
    assert S[-1] == pytest.approx(0.056, abs=5e-4)


def test_mechanic_pulls_towards_0_at_the_point_after_the_base_step():
    """The base step crosses 0, where the pull s_decay S |g| sign(x) turns."""
    points, numbers, _ = follow(
        lambda p: untuned.MechanicSGD(p, lr=3.0, momentum=0.0, s_init=1e-4, s_decay=0.5), linear([0.5]), [[1.0]], 2
    )
    S = numbers["mechanic_S"][0]
    assert points[1, 0] > 0 > points[1, 0] - 3.0 * 0.5
    h = -3.0 * 0.5 * (0.5 - 0.5 * S * 0.5)
    s1 = S * DECAYS / DECAYS.sum()
    expected = (1e-4 * abs(h) / 6 - s1 * h) / (abs(h) + 1e-8)
    assert numbers["mechanic_S"][1] == pytest.approx(expected.sum(), rel=1e-12)


# ---------------------------------------------------------------- TAM


def tam_momentum(t, beta, gamma):
    return sum(beta ** (t - i) * (1 - gamma ** (i - 1) / 2) for i in range(1, t + 1))


@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_tam_on_a_constant_gradient(scope):
    slopes = [np.array([[1.0, -2.0], [0.5, 0.0], [1.0, 3.0]]), np.array([-1.0, 0.2])]
    points, numbers, _ = follow(
        lambda p: untuned.TAM(p, lr=0.1, momentum=0.8, decay=0.7, floor=0.0, scope=scope), linear(*slopes), START, 30
    )
    g = np.concatenate([s.ravel() for s in slopes])
    assert_close(numbers["cosine"], 1 - 0.7 ** np.arange(30))
    assert_close(-np.diff(points, axis=0) / 0.1, [tam_momentum(t, 0.8, 0.7) * g for t in range(1, 31)], 1e-11)
    closed = (1 - 0.9**30) / 0.1 - 30 * 0.9**29 / 2
    assert tam_momentum(30, 0.9, 0.9) == pytest.approx(closed, rel=1e-13)


@pytest.mark.parametrize("scope", ["tensor", "model"])
@pytest.mark.parametrize("gain", [1.0, 0.5])
def test_tam_of_constant_gain_is_heavy_ball(scope, gain):
    """decay=1 keeps the averaged cosine at 0, so the gain is 1/2 plus the floor."""
    ours = path(lambda p: untuned.TAM(p, lr=0.1, decay=1.0, floor=gain - 0.5, scope=scope), steps=30)
    heavy_ball = path(lambda p: untuned.SGD(p, lr=0.1 * gain, momentum=0.9), steps=30)
    assert (ours == heavy_ball).all() if gain == 1.0 else np.abs(ours - heavy_ball).max() < 1e-13


@pytest.mark.parametrize("scope", ["tensor", "model"])
@pytest.mark.parametrize(
    ("make", "unit"),
    [(untuned.TAM, 100.0), (lambda p, **o: untuned.AdaTAM(p, eps=NO_EPS, **o), 1.0)],
    ids=["tam", "adatam"],
)
def test_tam_scales_its_buffer_with_the_loss(make, unit, scope):
    quiet, a, _ = follow(lambda p: make(p, scope=scope), noise, START, 20)
    loud, b, _ = follow(lambda p: make(p, scope=scope), lambda p, k: 100 * noise(p, k), START, 20)
    assert np.abs(a["cosine"]).max() > 0.05
    assert_close(a["cosine"], b["cosine"], 1e-11)
    assert_close((loud - loud[0]) / unit, quiet - quiet[0], 1e-11)


def test_tam_over_the_model_turns_with_the_coordinates():
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))
    turn_ = torch.tensor(turn)

    def flat(params, k):
        return logistic([params[0][:6].reshape(3, 2), params[0][6:]], k)

    def run(loss, start, scope):
        return path(lambda p: untuned.TAM(p, lr=0.3, scope=scope), loss, start, 30)

    x0 = np.concatenate([a.ravel() for a in START])
    straight = run(flat, [x0], "model")
    assert_close(run(lambda p, k: flat([turn_.T @ p[0]], k), [turn @ x0], "model"), straight @ turn.T)
    assert_close(run(logistic, START, "model"), straight)
    assert np.abs(run(logistic, START, "tensor") - straight).max() > 1e-3


@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_tam_of_alternating_gradients(scope):
    """The second buffer is 0 but for rounding; what is left of it must not count as a direction."""
    points, numbers, _ = follow(
        lambda p: untuned.TAM(p, lr=1.0, floor=0.0, scope=scope), lambda p, k: (-1) ** k * p[0].sum(), [[0.0]], 6
    )
    assert_close(-np.diff(points[:, 0]), [0.5, 0, 0.455, 0, 0.41855, 0], 1e-14)
    assert_close(numbers["cosine"][:3], [0, -0.1, -0.09])


def test_adatam_on_a_constant_gradient():
    slopes = [np.array([1.0, -2.0, 0.5])]
    points = path(lambda p: untuned.AdaTAM(p, lr=0.01, eps=NO_EPS, floor=0.0), linear(*slopes), [[0.0] * 3], 100)
    steps = -np.diff(points, axis=0) / 0.01
    for t, published in [(1, 15.8), (2, 22), (10, 46), (22, 53), (100, 32)]:
        ratio = tam_momentum(t, 0.9, 0.9) / sqrt(1 - 0.999**t)
        assert ratio == pytest.approx(published, rel=0.02)
        assert_close(steps[t - 1], ratio * np.sign(slopes[0]), 1e-10)


def test_steps_of_adatam_in_those_of_adam():
    """What its docstring says of lr: on noise, and on a steady gradient, where Adam's steps are lr."""

    def longer(loss, start):
        theirs, ours = (path(make, loss, start, 30) for make in (untuned.Adam, untuned.AdaTAM))
        lengths = [np.linalg.norm(np.diff(points, axis=0), axis=1) for points in (theirs, ours)]
        return lengths[1] / lengths[0] * 1e-3 / 1e-4  # at the same lr

    steady, loud = longer(linear([1.0]), [[0.0]]), longer(noise, [np.zeros(500)])
    assert steady[0] == pytest.approx(16, abs=0.5) == pytest.approx(loud[0], abs=0.5)
    assert (steady.argmax() + 1, round(steady.max())) == (22, 53)
    assert 9 <= loud.argmax() + 1 <= 15 and loud.max() == pytest.approx(33, abs=2)
    assert tam_momentum(9999, 0.9, 0.9) / sqrt(1 - 0.999**9999) == pytest.approx(10, abs=0.01)  # 5 on noise, by half


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_first_steps_of_gradagrad_have_the_length_of_lr(momentum):
    points = path(lambda p: untuned.GradaGrad(p, lr=0.01, momentum=momentum), steps=1)
    assert np.linalg.norm(points[1] - points[0]) == pytest.approx((1 - momentum) * 0.01, rel=1e-12)
    points = path(lambda p: untuned.DiagonalGradaGrad(p, lr=0.01, momentum=momentum), steps=1)
    assert_close(abs(points[1] - points[0]), (1 - momentum) * 0.01)


@pytest.mark.parametrize(("decay", "equal"), [(weight_decay.Coupled, True), (weight_decay.Decoupled, False)])
def test_primal_averaging_is_heavy_ball_with_coupled_decay(decay, equal):
    parts = directions.Gradient(), step_sizes.Fixed(0.5), iterates.PrimalAverage(0.8), decay(0.1)
    averaged = path(lambda p: untuned.compose(p, *parts))
    heavy_ball = path(lambda p: untuned.SGD(p, lr=0.1, momentum=0.8, weight_decay=0.1))
    assert (np.abs(averaged - heavy_ball).max() < 1e-14) == equal


# ---------------------------------------------------------------- Schedule-Free, linear decay

AVERAGING = [
    lambda p, **o: untuned.SGDScheduleFree(p, lr=0.3, **o),
    lambda p, **o: untuned.AdamWScheduleFree(p, lr=0.3, **o),
]


def follow_averages(make, loss, steps, schedule=None):
    """-> x and z after every step, as rows."""
    averages, anchors = [], []

    def watched(params):
        optimizer = make(params)

        def record(*_):
            anchors.append(np.concatenate([optimizer.state[p]["z"].numpy().ravel() for p in params]))
            with optimizer.averaged_parameters():
                averages.append(np.concatenate([p.detach().numpy().ravel() for p in params]))

        optimizer.register_step_post_hook(record)
        return optimizer

    follow(watched, loss, START, steps, schedule)
    return np.array(averages), np.array(anchors)


@pytest.mark.parametrize("make", AVERAGING, ids=["sgd", "adamw"])
def test_schedule_free_average_is_the_weighted_mean_of_z(make):
    decay = (30 - np.arange(30)) / 30
    x, z = follow_averages(lambda p: make(p, warmup_steps=10, r=0.5), logistic, 30, decay)
    rates = 0.3 * decay * np.minimum(1, np.arange(1, 31) / 10)
    weights = np.sqrt(np.arange(1, 31)) * np.maximum.accumulate(rates) ** 2
    assert_close(x, np.cumsum(weights[:, None] * z, 0) / np.cumsum(weights)[:, None], 1e-12)


def test_schedule_free_of_growing_beta_is_linear_decay():
    """With beta_t = t / T the point y is SGD with linear decay, for gradients that do not depend on it."""
    T = 20
    x, z = follow_averages(lambda p: untuned.SGDScheduleFree(p, lr=0.3), noise, T)

    params = [torch.nn.Parameter(torch.tensor(a)) for a in START]
    optimizer = untuned.SGD(params, lr=0.3)
    schedule = LinearDecay(optimizer, T)
    for t in range(T):
        optimizer.zero_grad()
        noise(params, t).backward()
        optimizer.step()
        schedule.step()
        beta = (t + 1) / T
        assert_close((1 - beta) * z[t] + beta * x[t], np.concatenate([p.detach().numpy().ravel() for p in params]))


@pytest.mark.parametrize(
    ("make", "base"),
    [
        (lambda p: untuned.SGDScheduleFree(p, 0.3, 1e-12, 0.1), lambda p: torch.optim.SGD(p, 0.3, weight_decay=0.1)),
        (
            lambda p: untuned.AdamWScheduleFree(p, 0.03, (1e-12, 0.999), weight_decay=0.1),
            lambda p: torch.optim.AdamW(p, 0.03, (0.0, 0.999), weight_decay=0.1),
        ),
    ],
    ids=["sgd", "adamw"],
)
def test_schedule_free_without_beta_walks_like_the_plain_optimizer(make, base):
    assert_close(path(make, steps=30), path(base, steps=30), 1e-10)


@pytest.mark.parametrize("make", AVERAGING, ids=["sgd", "adamw"])
def test_schedule_free_at_lr_0_stands_still(make):
    points = path(lambda p: make(p, warmup_steps=3), schedule=[0.0] * 20)
    assert (points == points[0]).all()
    late = path(
        lambda p: make(p, warmup_steps=3),
        lambda p, k: logistic(p, abs(k - 5)),
        steps=20,
        schedule=[0.0] * 5 + [1.0] * 15,
    )
    assert_close(late[5:], path(lambda p: make(p, warmup_steps=3), steps=15), 1e-14)


# ---------------------------------------------------------------- SGDF


@pytest.mark.parametrize(
    ("options", "loss", "steps"),
    [
        ({}, logistic, 1),  # the average is the first gradient
        ({}, linear(START[0], [3.0, -7.0]), 20),  # and stays it, if all are alike
        ({"betas": (0.0, 0.9)}, logistic, 20),
        ({"gamma": 1e-300}, logistic, 20),  # a gain of 1
    ],
    ids=["first step", "constant gradients", "no average", "full gain"],
)
def test_sgdf_is_gradient_descent_where_it_has_nothing_to_filter(options, loss, steps):
    ours = path(lambda p: untuned.SGDF(p, lr=0.3, weight_decay=0.0, **options), loss, steps=steps)
    assert_close(ours, path(lambda p: torch.optim.SGD(p, lr=0.3), loss, steps=steps))


def test_sgdf_without_gain_is_the_corrected_average():
    ours = path(lambda p: untuned.SGDF(p, lr=0.3, eps=1e100, weight_decay=0.1))
    momentum, decay = directions.Momentum(0.9, 0.9, correct=True), weight_decay.Coupled(0.1)
    average = path(lambda p: untuned.compose(p, momentum, step_sizes.Fixed(0.3), decay=decay))
    assert_close(ours, average)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), beta1=st.floats(0.0, 0.99), gamma=st.floats(0.1, 5.0))
def test_sgdf_lies_between_the_average_and_the_gradient(seed, beta1, gamma):
    gradients = np.random.default_rng(seed).normal(size=(12, 3))
    loss = lambda params, k: (torch.tensor(gradients[k]) * params[0]).sum()  # noqa: E731
    used = -np.diff(path(lambda p: untuned.SGDF(p, 1.0, (beta1, 0.9), gamma=gamma), loss, [[0.0] * 3], 12), axis=0)
    m = np.zeros(3)
    for t, (g, u) in enumerate(zip(gradients, used, strict=True), 1):
        m = beta1 * m + (1 - beta1) * g
        ends = np.sort([m / (1 - beta1**t), g], axis=0)
        assert (ends[0] - 1e-12 <= u).all() and (u <= ends[1] + 1e-12).all()


def test_sgdf_scales_with_the_loss():
    one = path(lambda p: untuned.SGDF(p, lr=0.3, eps=0.0))
    assert_close(path(lambda p: untuned.SGDF(p, lr=0.3 / 50, eps=0.0), lambda p, k: 50 * logistic(p, k)), one)
    assert np.abs(one - path(lambda p: untuned.SGDF(p, lr=0.3, eps=0.1))).max() > 1e-3
    still = path(lambda p: untuned.SGDF(p, eps=0.0), linear([0.0]), [[1.0]])
    assert (still == 1.0).all()


# ---------------------------------------------------------------- weight decay of dual averaging


def decayed(make, steps=400):
    """What weight decay alone leaves of a weight of 1: its gradient is 0."""
    return path(make, linear([0.0]), [[1.0]], steps)[-1, 0]


def forgetful(iterate, decay=weight_decay.Decoupled, sum_of=directions.CubeRootDA):
    return lambda p: untuned.compose(p, sum_of(), step_sizes.Fixed(0.1), iterate, decay(0.1))


FORGETS = "hardly decays: each step starts from x0 again"


@pytest.mark.parametrize(
    ("make", "left"),
    [
        (lambda p: untuned.MADGRAD(p, 0.1, 0.0, 0.1, decouple_decay=True), 1 / 1.01),
        (lambda p: untuned.MADGRAD([{"params": p, "weight_decay": 0.1}], 0.1, 0.0, decouple_decay=True), 1 / 1.01),
        (lambda p: untuned.MADGRAD([{"params": p, "momentum": 0.0}], 0.1, 0.9, 0.1, decouple_decay=True), 1 / 1.01),
        (forgetful(iterates.FromStart(), weight_decay.Proximal), 1 / 1.01),
        (forgetful(iterates.Resetting(), sum_of=directions.Gradient), 1 / 1.01),
        (forgetful(iterates.Resetting(), weight_decay.Proximal, directions.Gradient), 1 / 1.01),
    ],
)
def test_decay_that_every_step_forgets_is_warned_of(make, left):
    with pytest.warns(UserWarning, match=FORGETS):
        assert decayed(make) == pytest.approx(left, rel=1e-12)


@pytest.mark.parametrize(
    ("make", "left"),
    [
        (lambda p: untuned.MADGRAD(p, 0.1, 0.9, 0.1, decouple_decay=True), 0.1 / 0.11),
        (lambda p: untuned.MADGRAD(p, 0.1, 0.0, 0.0, decouple_decay=True), 1.0),
        (lambda p: untuned.AdamW(p, 0.1, weight_decay=0.1), 0.99**400),
        (lambda p: untuned.MirrorMADGRAD(p, 0.1, 0.0, 0.1, decouple_decay=True), 0.99**400),
        (forgetful(iterates.ResettingGD(), sum_of=directions.Gradient), 0.99**400),
    ],
)
def test_what_other_decays_leave(make, left):
    """Nothing to warn of: a warning is an error here."""
    assert decayed(make) == pytest.approx(left, rel=1e-11)


def test_a_warning_made_an_error_adds_no_group():
    p, q = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    optimizer = untuned.MADGRAD([p], momentum=0.0, decouple_decay=True)
    with pytest.raises(UserWarning, match=FORGETS):
        optimizer.add_param_group({"params": [q], "weight_decay": 0.1})
    assert [group["params"] for group in optimizer.param_groups] == [[p]]
    p.grad = torch.ones(1)
    optimizer.step()


def test_decay_in_the_gradient_is_not_forgotten():
    assert decayed(lambda p: untuned.MADGRAD(p, 0.1, 0.0, 0.1)) < 0.05
    assert decayed(lambda p: untuned.Resetting(p, weight_decay=0.1, d0=1.0)) < 0.9


# ---------------------------------------------------------------- every method

# Options under which every method moves visibly within 20 steps; the cosine spans the model so that tensors may split.
VISIBLE = {
    "sgd": {"lr": 0.1, "momentum": 0.9},
    "adam": {"lr": 0.05},
    "adamw": {"lr": 0.05},
    "momo": {"lr": 3.0, "use_fstar": True, "lb": -1.0},
    "momo_adam": {"lr": 3.0},
    "prodigy": {"d0": 1e-2},
    "dadapt_adam": {"d0": 1e-2},
    "mechanic_sgd": {"s_init": 1e-4},
    "mechanic_adamw": {"s_init": 1e-4},
    "tam": {"lr": 0.1, "scope": "model"},
    "adatam": {"lr": 0.01, "scope": "model"},
    "adatamw": {"lr": 0.01, "scope": "model"},
    "sps": {"lr": 0.5},
    "dec_sps": {"lr": 0.5},
    "prox_sps": {"lr": 0.5},
    "sp": {"lr": 0.5},
    "alig": {"lr": 0.5},
    "taps": {"samples": 7},
    "motaps": {"samples": 7, "target_lr": 0.5, "momentum": 0.5},
    "dadapt_sgd": {"d0": 1e-2, "momentum": 0.5},
    "dadapt_adagrad": {"d0": 1e-2},
    "dadapt_lion": {"d0": 1e-2},
    "dadapt_adan": {"d0": 1e-2, "growth_rate": 1.1},
    "dadapt_da": {"d0": 0.1},
    "dadapt_gd": {"d0": 0.1},
    "prodigy_da": {"d0": 0.1},
    "prodigy_gd": {"d0": 0.1},
    "resetting": {"d0": 0.2},
    "resetting_gd": {"d0": 0.2},
    "dog": {"reps_rel": 1e-2},
    "dowg": {"eps": 1e-2},
    "gradagrad": {"lr": 0.05, "momentum": 0.5},
    "gradagrad_diagonal": {"lr": 0.05, "momentum": 0.5},
    "madgrad": {"lr": 0.05},
    "mirror_madgrad": {"lr": 0.05},
    "multiplicative_sgd": {"lr": 0.1, "momentum": 0.5, "mix": 0.5},
    "multiplicative_adam": {"lr": 0.05},
    "mda": {"lr": 0.5},
    "ahb_adam": {"lr": 0.05},
    "ahb_sgd": {"lr": 0.1},
    "am_msgd": {"lr": 0.1},
    "sgd_spa": {"lr": 0.5},
    "sgdf": {"lr": 0.1},
    "sngm": {"lr": 0.05},
    "schedule_free_sgd": {"lr": 0.5, "warmup_steps": 5},
    "schedule_free_adamw": {"lr": 0.05, "r": 1.0},
    "gpa_adamw": {"lr": 0.05, "keep": 0.8},
    "ngn": {"lr": 0.5},
    "ormo": {"lr": 0.1, "num_workers": 3},
    "prodigy_schedule_free": {"d0": 1e-2},
    "random_scaling_adamw": {"lr": 0.05},
    "random_scaling_sgd": {"lr": 0.5},
    "relative_muon": {"lr": 0.1},
}


@pytest.mark.parametrize("name", VISIBLE)
def test_how_the_parameters_are_split_does_not_matter(name):
    """One tensor, or three."""
    whole = np.concatenate([a.ravel() for a in START])
    options = VISIBLE[name] | {"weight_decay": 0.1}

    def merged(params, k):
        x = torch.cat([p.flatten() for p in params])
        return logistic([x[:6].reshape(3, 2), x[6:]], k)

    one = path(lambda p: untuned.create(p, name, **options), merged, [whole])
    assert np.abs(one[-1] - one[0]).max() > 1e-2
    assert_close(path(lambda p: untuned.create(p, name, **options), merged, np.split(whole, [1, 5])), one, 1e-9)

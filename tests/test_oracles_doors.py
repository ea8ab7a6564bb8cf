"""The oracles of AdaRem, SGDF, random scaling, projection, Muon, steps in shares of the weights, OrMo, GPA and
step sizes under Schedule-Free.

They are held to closed forms, reductions to oracles that have tests of their own, invariances and torch.optim.
"""

from functools import partial
from math import sqrt

import numpy as np
import pytest
import torch

from untuned.testing import oracles

START = [np.array([[0.3, -1.2], [0.8, 0.1], [-0.4, 1.5]]), np.array([0.2, -0.7])]
MATRICES = [START[0], START[1][None]]
WAVE = [0.5 + 0.4 * np.sin(k) for k in range(40)]
NOISE = [[np.random.default_rng([k, i]).normal(size=a.shape) for i, a in enumerate(START)] for k in range(60)]
FACTORS = np.random.default_rng(5).exponential(size=40).tolist()
NO_EPS = 1e-300
POLAR = (2.0, -1.5, 0.5)  # Newton and Schulz's steps with these take every singular value to 1


def logistic(x, k):
    """Two logistic regressions on a batch that changes with k; the biases are a vector or a matrix of one row."""
    rng = np.random.default_rng(k)
    inputs, labels = rng.normal(size=(5, 3)), np.sign(rng.normal(size=(5, 2)))
    margins = labels * (inputs @ x[0] + x[1])
    slopes = -labels / (1 + np.exp(margins)) / 5
    return float(np.log1p(np.exp(-margins)).sum() / 5), [inputs.T @ slopes, slopes.sum(0).reshape(x[1].shape)]


def noise(x, k):
    return 1.0, NOISE[k - 1][: len(x)]


def given(*gradients):
    """A problem of one tensor with this gradient at each step."""
    return lambda x, k: (0.0, [np.asarray(gradients[k - 1], dtype=float)])


def vector(iterates):
    return np.array([np.concatenate([a.ravel() for a in x]) for x in iterates])


def assert_same(left, right, tolerance=1e-12):
    np.testing.assert_allclose(vector(left), vector(right), rtol=tolerance, atol=tolerance)


def apart(left, right):
    return np.abs(vector(left) - vector(right)).max()


def base_points(iterates, averaged, share):
    """z of y = (1 - share) z + share x."""
    return (vector(iterates) - share * vector(averaged)) / (1 - share)


# Every oracle of this file that has steps, with options under which it moves visibly within 20 steps.
SF = {"momentum": 0.7, "r": 0.5}
PRODIGY = {"d0": 1e-2, "weight_decay": 0.1, **SF}
EVERY = {
    "adarem": (oracles.adarem, {"weight_decay": 0.1}),
    "sgdf": (oracles.sgdf, {"weight_decay": 0.1}),
    "sgdf decoupled": (oracles.sgdf, {"weight_decay": 0.1, "weight_decouple": True, "gamma": 1.0}),
    "random_scaled": (oracles.random_scaled, {"factors": FACTORS, "weight_decay": 0.1}),
    "random_scaled_schedule_free": (
        oracles.random_scaled_schedule_free,
        {"factors": FACTORS, "lr": 0.3, "weight_decay": 0.1},
    ),
    "project sgd": (oracles.normalize_and_project, {"base": "sgd", "lr": 0.2, "momentum": 0.9, "weight_decay": 0.1}),
    "project adamw rows": (oracles.normalize_and_project, {"base": "adamw", "lr": 0.05, "rows": True}),
    "hyperball sgd rows": (
        oracles.normalize_and_project,
        {"base": "sgd", "lr": 0.05, "rows": True, "normalize_update": True},
    ),
    "hyperball adamw": (oracles.normalize_and_project, {"base": "adamw", "lr": 0.05, "normalize_update": True}),
    "muon": (oracles.muon, {"lr": 0.05}),
    "muon exact": (oracles.muon, {"lr": 0.05, "exact": True, "nesterov": False, "adjust_lr_fn": "match_rms_adamw"}),
    "muon_momo": (oracles.muon_momo, {"lr": 0.3, "weight_decay": 0.1}),
    "muon_momo first sample": (
        oracles.muon_momo,
        {"lr": 0.3, "weight_decay": 0.1, "bias_correction": False, "divide": False, "exact": True},
    ),
    "relative sgd": (oracles.relative, {"base": "sgd", "lr": 0.5, "momentum": 0.5, "weight_decay": 0.1}),
    "relative adam": (oracles.relative, {"base": "adam", "lr": 0.05, "own": 0.5, "floor": 0.3}),
    "relative_muon": (oracles.relative_muon, {"lr": 0.1, "weight_decay": 0.1}),
    "gpa sgd": (oracles.gpa, {"base": "sgd", "lr": 0.3, "momentum": 0.5, "mu_x": 0.9, "weight_decay": 0.1}),
    "gpa adamw": (oracles.gpa, {"base": "adamw", "lr": 0.1, "mu_x": 0.9, "weight_decay": 0.1, "decay_at": "y"}),
    "sps z": (oracles.sps_schedule_free, {"lr": 3.0, "weight_decay": 0.1, **SF}),
    "sps y": (oracles.sps_schedule_free, {"lr": 3.0, "look": "y", "weigh": "step", **SF}),
    "momo z": (oracles.momo_schedule_free, {"lr": 3.0, "weight_decay": 0.1, "bias_correction": True, **SF}),
    "momo y": (oracles.momo_schedule_free, {"lr": 3.0, "look": "y", "weigh": "step", **SF}),
    "prodigy z": (oracles.prodigy_schedule_free, {"use_bias_correction": True, **PRODIGY}),
    "prodigy y": (oracles.prodigy_schedule_free, {"look": "y", "weigh": "step", "safeguard_warmup": True, **PRODIGY}),
}
every_oracle = pytest.mark.parametrize("name", EVERY)
WHOLE_TENSOR = ["adarem", "project sgd", "hyperball adamw", "muon", "muon exact"]
WHOLE_TENSOR += ["relative sgd", "relative adam", "relative_muon"]


def case(name):
    """-> the oracle, its options, and a start it can take."""
    oracle, options = EVERY[name]
    return oracle, options, MATRICES if oracle is oracles.muon else START


@every_oracle
def test_tensor_with_lr_0_is_as_if_it_were_a_constant_of_the_loss(name):
    oracle, options, start = case(name)
    frozen = [{"indices": [1], "lr": 0.0, "weight_decay": 0.5}]
    whole, _ = oracle(start, logistic, 20, groups=frozen, schedule=WAVE, **options)

    def constant(x, k):
        loss, grads = logistic([x[0], start[1]], k)
        return loss, grads[:1]

    part, _ = oracle(start[:1], constant, 20, schedule=WAVE, **options)
    assert all((x[1] == start[1]).all() for x in whole)
    assert_same([x[:1] for x in whole], part)
    assert np.abs(vector(part)[-1] - start[0].ravel()).max() > 1e-2


@every_oracle
def test_step_with_lr_0_everywhere_does_not_happen(name):
    oracle, options, start = case(name)
    acting = [0, 2, 3, 7, 8]
    paused, _ = oracle(start, logistic, 9, schedule=[float(s in acting) for s in range(9)], **options)
    steady, _ = oracle(start, lambda x, k: logistic(x, acting[k - 1] + 1), len(acting), **options)
    assert_same([paused[s] for s in acting], steady, tolerance=0)
    assert_same(paused[3:7], [paused[3]] * 4, tolerance=0)


@every_oracle
def test_tensor_paused_mid_run_stands_still(name):
    oracle, options, start = case(name)
    # Where rows keep their norms, an element of a vector moves only with its sign.
    index = 0 if options.get("rows") else 1
    pause = [{"indices": [index], "schedule": [1.0] * 5 + [0.0] * 5 + [1.0] * 5}]
    iterates, _ = oracle(start, logistic, 15, groups=pause, **options)
    moves = np.diff(vector([[x[index]] for x in iterates]), axis=0).any(axis=1)
    assert moves.tolist() == [True] * 4 + [False] * 5 + [True] * 5


@every_oracle
def test_groups_alike_are_one_group(name):
    oracle, options, start = case(name)
    options = {"lr": 1.0, "weight_decay": 0.0, **options}
    alike = [{"indices": [i], "lr": options["lr"], "weight_decay": options["weight_decay"]} for i in (1, 0)]
    whole, _ = oracle(start, logistic, 20, schedule=WAVE, **options)
    split, _ = oracle(start, logistic, 20, schedule=WAVE, groups=alike, **{**options, "lr": 0.7, "weight_decay": 9.0})
    assert_same(split, whole, tolerance=1e-13)


@every_oracle
def test_splitting_a_tensor_matters_where_tensors_count_as_a_whole(name):
    oracle, options, start = case(name)
    rows = [start[0][:1], start[0][1:], start[1]]

    def split(x, k):
        loss, grads = logistic([np.vstack(x[:2]), x[2]], k)
        return loss, [grads[0][:1], grads[0][1:], grads[1]]

    parts, whole = oracle(rows, split, 20, **options)[0], oracle(start, logistic, 20, **options)[0]
    if name in WHOLE_TENSOR or oracle is oracles.muon_momo:
        assert apart(parts, whole) > 1e-3
    else:
        assert_same(parts, whole, tolerance=1e-10)


# AdaRem


def test_adarem_begins_as_sgd_and_is_sgd_with_lam_0():
    plain, _ = oracles.sgd(START, logistic, 10, lr=0.4, weight_decay=0.1)
    ours, _ = oracles.adarem(START, logistic, 10, weight_decay=0.1)
    assert_same(ours[:1], plain[:1])
    assert apart(ours, plain) > 1e-3
    assert_same(oracles.adarem(START, logistic, 10, lam=0.0, weight_decay=0.1)[0], plain)


def test_adarem_of_a_scalar_depends_on_the_signs_alone():
    gradients = [2.0, 3.0, 0.5, -4.0, 0.0, 1.0]
    averages = [0.0, 0.2, 0.48, 0.482, 0.0338, 0.03042]
    lr, lam = 0.1, 0.8
    expected = [
        -lr * (1 + lam**t * np.sign(g) * np.sign(m)) * g
        for t, (g, m) in enumerate(zip(gradients, averages, strict=True))
    ]
    iterates, _ = oracles.adarem([np.array([1.0])], given(*[[g] for g in gradients]), 6, lr=lr, lam=lam, eps=0.0)
    np.testing.assert_allclose(np.diff(vector(iterates)[:, 0], prepend=1.0), expected, rtol=1e-13, atol=1e-15)


def test_adarem_gains_stay_within_their_bounds_and_reach_one():
    _, scalars = oracles.adarem([START[0]], noise, 30, lam=0.9, eps=0.0)
    for t, [(smallest, largest)] in enumerate(scalars["gain"]):
        assert 1 - 0.9**t - 1e-15 <= smallest <= largest <= 1 + 0.9**t + 1e-15
        # The coordinate with the largest average has exactly one of the two.
        assert t == 0 or max(1 - smallest, largest - 1) == pytest.approx(0.9**t, rel=1e-12)


def test_adarem_gain_does_not_depend_on_the_gradients_scale():
    ours, left = oracles.adarem(START, noise, 30, lr=0.1, eps=0.0)
    theirs, right = oracles.adarem(START, lambda x, k: (0.0, [7.0 * g for g in NOISE[k - 1]]), 30, lr=0.1 / 7, eps=0.0)
    assert_same(ours, theirs)
    np.testing.assert_allclose(left["gain"], right["gain"], rtol=1e-12, atol=1e-12)


def test_adarems_decay_has_no_gain():
    """From one state the step with decay is the step without it and lr wd x more, whatever the gains are."""
    plain, _ = oracles.adarem([START[0]], noise, 10, lr=0.1)
    decayed, _ = oracles.adarem([START[0]], noise, 10, lr=0.1, weight_decay=0.3)
    before = vector([START[:1], *decayed[:-1]])
    expected = np.diff(vector([START[:1], *plain]), axis=0) - 0.1 * 0.3 * before
    np.testing.assert_allclose(np.diff(vector([START[:1], *decayed]), axis=0), expected, rtol=1e-11, atol=1e-13)


# Random scaling


def test_random_scaling_by_1_is_the_base():
    ours, _ = oracles.random_scaled(START, logistic, 20, factors=lambda n: 1.0, lr=0.2, beta=0.8)
    # torch's heavy ball with dampening averages as well, but begins at the first gradient: a zero gradient comes first.
    base, _ = oracles.sgd(
        START,
        lambda x, k: logistic(x, k - 1) if k > 1 else (0.0, [0 * a for a in x]),
        21,
        lr=0.2,
        momentum=0.8,
        dampening=0.8,
    )
    assert_same(ours, base[1:])
    options = {"lr": 0.3, "momentum": 0.8, "weight_decay": 0.1, "r": 1.0, "schedule": WAVE}
    ours, scalars = oracles.random_scaled_schedule_free(START, logistic, 20, factors=[1.0] * 20, **options)
    base, expected = oracles.schedule_free_sgd(START, logistic, 20, **options)
    assert_same(ours, base, tolerance=0)
    assert_same(scalars["averaged"], expected["averaged"], tolerance=0)


def test_random_scaling_is_exponentiated_online_to_nonconvex():
    """Delta_{n+1} = (Delta_n - eta g_n) beta / (1 + eta mu), x_n = x_{n-1} + s_n Delta_n, gradients at x_n."""
    eta, mu, beta = 0.3, 0.4, 0.95
    discount = beta / (1 + eta * mu)
    x, delta, expected = START, [0 * a for a in START], []
    for n in range(1, 31):
        delta = [(d - eta * g) * discount for d, g in zip(delta, logistic(x, n)[1], strict=True)]
        x = [a + FACTORS[n - 1] * d for a, d in zip(x, delta, strict=True)]
        expected.append(x)
    lr = discount * eta / (1 - discount)
    assert_same(oracles.random_scaled(START, logistic, 30, factors=FACTORS, lr=lr, beta=discount)[0], expected)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_random_scaling_multiplies_the_whole_step_decay_included(decay):
    ours, _ = oracles.random_scaled(START, noise, 30, factors=lambda n: FACTORS[n - 1], weight_decay=decay)
    before = vector([START, *ours[:-1]])
    for k, (x, y) in enumerate(zip(before, vector(ours), strict=True)):
        m = sum(0.1 * 0.9 ** (k - j) * vector([NOISE[j]])[0] for j in range(k + 1))
        np.testing.assert_allclose(y - x, -FACTORS[k] * 0.1 * (m + decay * x), rtol=1e-10, atol=1e-13)


def test_random_scaled_schedule_free_scales_z_and_leaves_the_weights():
    ours, scalars = oracles.random_scaled_schedule_free(
        START, noise, 30, factors=FACTORS, lr=0.3, r=1.0, weight_decay=0.1, schedule=WAVE
    )
    z, y = base_points(ours, scalars["averaged"], 0.9), vector([START, *ours[:-1]])
    steps = -np.diff(z, axis=0, prepend=vector([START])) / (vector(NOISE[:30]) + 0.1 * y)
    rates = 0.3 * np.array(WAVE[:30])
    np.testing.assert_allclose(steps, np.outer(FACTORS[:30] * rates, np.ones(8)), rtol=1e-9)
    weights = np.arange(1, 31) * np.maximum.accumulate(rates) ** 2
    mean = np.cumsum(weights[:, None] * z, axis=0) / np.cumsum(weights)[:, None]
    np.testing.assert_allclose(vector(scalars["averaged"]), mean, rtol=1e-11, atol=1e-12)


# Normalize-and-Project, Hyperball


def norms(a, rows):
    return np.linalg.norm(a.reshape(len(a) if rows and a.ndim > 1 else 1, -1), axis=1)


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("normalize_update", [False, True])
@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_projection_keeps_norms_to_rounding(base, normalize_update, rows):
    start = [np.random.default_rng(0).normal(size=(4, 3, 2)), np.array([0.2, -0.7])]
    iterates, _ = oracles.normalize_and_project(
        start,
        lambda x, k: (0.0, [np.random.default_rng([k, i]).normal(size=a.shape) for i, a in enumerate(x)]),
        200,
        base=base,
        lr=0.1,
        momentum=0.9,
        weight_decay=0.1,
        rows=rows,
        normalize_update=normalize_update,
    )
    for x in iterates:
        for a, a0 in zip(x, start, strict=True):
            np.testing.assert_allclose(norms(a, rows), norms(a0, rows), rtol=4e-16)
    assert apart(iterates[-1:], [start]) > 0.1


def test_projection_happens_after_the_plain_step():
    for base, plain, options in [
        ("sgd", oracles.sgd, {"weight_decay": 0.1, "momentum": 0.9}),
        ("adamw", oracles.adamw, {"weight_decay": 0.1}),
    ]:
        ours, _ = oracles.normalize_and_project(START, logistic, 1, base=base, lr=0.1, **options)
        theirs, _ = plain(START, logistic, 1, lr=0.1, **options)
        for a, b, a0 in zip(ours[0], theirs[0], START, strict=True):
            np.testing.assert_allclose(a, b / np.linalg.norm(b) * np.linalg.norm(a0), rtol=1e-14)


@pytest.mark.parametrize(("base", "power"), [("sgd", 2), ("adamw", 1)])
def test_projection_of_a_scale_invariant_loss_is_the_plain_run_at_another_lr(base, power):
    """The same function at eta_l (rho_l / ||W_l||)^2, or ^1 of Adam's step, where ||W_l|| is of the plain run."""

    def invariant(x, k):
        grads = []
        for a, direction in zip(x, NOISE[k - 1], strict=True):
            size = np.linalg.norm(a)
            grads.append((direction - (direction * a).sum() * a / size**2) / size)
        return 0.0, grads

    lr = 0.37
    # With b1 = 0 and b2 = 0 Adam's direction is the sign of the gradient, which has no memory of another scale.
    options = {"betas": (0.0, 0.0), "eps": 0.0} if base == "adamw" else {}
    plain, _ = getattr(oracles, base)(START, invariant, 30, lr=lr, weight_decay=0.0, **options)
    sizes = [[np.linalg.norm(a) for a in x] for x in [START, *plain]]
    scaled = [{"indices": [i], "schedule": [(sizes[0][i] / sizes[k][i]) ** power for k in range(30)]} for i in range(2)]
    ours, _ = oracles.normalize_and_project(START, invariant, 30, base=base, lr=lr, groups=scaled, **options)
    rescaled = [[a / s * s0 for a, s, s0 in zip(x, sizes[k + 1], sizes[0], strict=True)] for k, x in enumerate(plain)]
    assert_same(ours, rescaled, tolerance=1e-10)
    assert sizes[-1][0] > 1.1 * sizes[0][0]


@pytest.mark.parametrize("rows", [False, True])
def test_hyperballs_lr_is_an_angle(rows):
    """With u orthogonal to W the rotation is arctan(lr), and the scale of u plays no part."""
    W = START[0]
    u = NOISE[0][0]
    if rows:
        u = u - (u * W).sum(1, keepdims=True) / (W * W).sum(1, keepdims=True) * W
    else:
        u = u - (u * W).sum() / (W * W).sum() * W
    for scale in (1.0, 1e-3, 1e5):
        [[after]], _ = oracles.normalize_and_project(
            [W], given(scale * u), 1, base="sgd", lr=0.3, rows=rows, normalize_update=True
        )
        cosines = (after * W).reshape(3 if rows else 1, -1).sum(1) / norms(W, rows) ** 2
        np.testing.assert_allclose(np.arccos(cosines), np.arctan(0.3), rtol=1e-13)


def test_projection_leaves_zero_rows_and_tensors_alone():
    start = [np.array([[0.0, 0.0], [3.0, 4.0]]), np.zeros(2)]
    g = [np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([1.0, -1.0])]
    for normalize_update in (False, True):
        options = {"base": "sgd", "lr": 0.5, "normalize_update": normalize_update}
        [x], _ = oracles.normalize_and_project(start, lambda x, k: (0.0, g), 1, rows=True, **options)
        assert_same([x], [[np.array([[-0.5, -1.0], [3.0, 4.0]]), np.array([-0.5, 0.5])]])
    # A step into zero is not undone.
    [[x]], _ = oracles.normalize_and_project([np.array([3.0, 4.0])], given([3.0, 4.0]), 1, base="sgd", lr=1.0)
    assert (x == 0).all()


# Muon


def run_torch_muon(start, steps, groups, **options):
    parameters = [torch.tensor(a, requires_grad=True) for a in start]
    optimizer = torch.optim.Muon([{**g, "params": [parameters[i] for i in g["indices"]]} for g in groups], **options)
    lrs = [group["lr"] for group in optimizer.param_groups]
    iterates = []
    for k in range(1, steps + 1):
        _, grads = logistic([p.detach().numpy() for p in parameters], k)
        for p, g in zip(parameters, grads, strict=True):
            p.grad = torch.tensor(g)
        for group, lr in zip(optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr * WAVE[k - 1]
        optimizer.step()
        iterates.append([p.detach().clone().numpy() for p in parameters])
    return iterates


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"nesterov": False, "momentum": 0.8, "weight_decay": 0.5},
        {"adjust_lr_fn": "match_rms_adamw", "ns_steps": 3, "ns_coefficients": POLAR},
        {"adjust_lr_fn": "original", "eps": 10.0},
    ],
)
def test_muon_is_torchs_but_for_bfloat16(options, monkeypatch):
    groups = [{"indices": [0], "lr": 0.3, "weight_decay": 0.2}, {"indices": [1]}]
    ours, _ = oracles.muon(MATRICES, logistic, 30, groups=groups, schedule=WAVE, **{"lr": 0.1, **options})
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "bfloat16", lambda self: self.clone())
        theirs = run_torch_muon(MATRICES, 30, groups, **{"lr": 0.1, **options})
    assert_same(ours, theirs, tolerance=1e-11)
    rounded = run_torch_muon(MATRICES, 30, groups, **{"lr": 0.1, **options})
    assert 1e-6 < apart(ours, rounded) < 0.1  # each step is rounded to 2^-8, and other points have other gradients


def test_newton_and_schulz_come_to_the_polar_factor():
    options = {"lr": 0.1, "weight_decay": 0.0}
    exact, _ = oracles.muon(MATRICES, logistic, 20, exact=True, **options)
    near, _ = oracles.muon(MATRICES, logistic, 20, ns_coefficients=POLAR, ns_steps=30, **options)
    assert_same(near, exact, tolerance=1e-9)
    # The default's singular values are about 1 only.
    assert apart(oracles.muon(MATRICES, logistic, 20, **options)[0], exact) > 1e-3


def test_muons_first_step():
    """K of 2 U V' is U V', for tall, wide and singular matrices, times lr and what its shape says."""
    rng = np.random.default_rng(0)
    for rows, columns, rank in [(5, 2, 2), (2, 5, 2), (4, 4, 3)]:
        U, V = np.linalg.qr(rng.normal(size=(rows, rank)))[0], np.linalg.qr(rng.normal(size=(columns, rank)))[0]
        start = [np.zeros((rows, columns))]
        step = partial(oracles.muon, start, given(2 * U @ V.T), 1, lr=0.1, exact=True)
        np.testing.assert_allclose(step()[0][0][0], -0.1 * sqrt(max(1, rows / columns)) * U @ V.T, atol=1e-14)
        adjusted = step(adjust_lr_fn="match_rms_adamw")[0][0][0]
        np.testing.assert_allclose(adjusted, -0.02 * sqrt(max(rows, columns)) * U @ V.T, atol=1e-14)
    [[still]], _ = oracles.muon([START[0]], given(0 * START[0]), 1, exact=True, weight_decay=0.0)
    assert (still == START[0]).all()


def test_muon_takes_matrices_only():
    with pytest.raises(ValueError, match="matrices only"):
        oracles.muon(START, logistic, 1)


@pytest.mark.parametrize("divide", [True, False])
def test_muon_momo_without_matrices_is_momo_adam(divide):
    def columns(x, k):
        loss, grads = logistic([x[0].reshape(3, 2), x[1]], k)
        return loss, [grads[0].ravel(), grads[1]]

    start = [START[0].ravel(), START[1]]
    groups = [{"indices": [0], "lr": 2.0, "weight_decay": 0.3}]
    options = {"lr": 3.0, "weight_decay": 0.01, "divide": divide, "groups": groups, "schedule": WAVE, "lb": 0.1}
    ours, scalars = oracles.muon_momo(start, columns, 30, **options)
    theirs, expected = oracles.momo_adam(start, columns, 30, **options)
    assert_same(ours, theirs)
    for name in expected:
        np.testing.assert_allclose(scalars[name], expected[name], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("bias_correction", [True, False])
def test_muon_momo_at_the_cap_is_muon_and_adam_side_by_side(bias_correction):
    options = {"lr": 1e-3, "betas": (0.8, 0.99), "lb": -1e3}
    iterates, scalars = oracles.muon_momo(START, noise, 20, bias_correction=bias_correction, **options)
    rho = 1 - 0.8 ** np.arange(1, 21) if bias_correction else np.ones(20)
    np.testing.assert_allclose(scalars["theta"], 1 / rho, rtol=1e-12)
    matrix, _ = oracles.muon(START[:1], noise, 1, lr=1e-3, momentum=0.8, nesterov=False, weight_decay=0.0)
    assert_same([x[:1] for x in iterates[:1]], matrix)
    if bias_correction:
        matrix, _ = oracles.muon(START[:1], noise, 20, lr=1e-3, momentum=0.8, nesterov=False, weight_decay=0.0)
        rest, _ = oracles.adam(START[1:], lambda x, k: (0.0, NOISE[k - 1][1:]), 20, lr=1e-3, betas=(0.8, 0.99))
        assert_same([x[:1] for x in iterates], matrix)
        assert_same([x[1:] for x in iterates], rest)


@pytest.mark.parametrize("bias_correction", [True, False])
def test_muon_momos_denominator_is_the_nuclear_norm(bias_correction):
    """The first step, exactly: gap / (lr (a nuc(g) + |g|_1)) of both tensors, far below the cap and then at it."""
    f, g = 0.5, NOISE[0]
    a = sqrt(3 / 2)
    dual = a * np.linalg.svd(g[0], compute_uv=False).sum() + np.abs(g[1]).sum()
    U, _, V = np.linalg.svd(g[0], full_matrices=False)
    for lr in (10.0, 1e-3):
        tau = min(lr, f / dual)
        [x], _ = oracles.muon_momo(
            START, lambda x, k: (f, g), 1, lr=lr, eps=0.0, exact=True, bias_correction=bias_correction
        )
        assert_same([x], [[START[0] - tau * a * U @ V, START[1] - tau * np.sign(g[1])]])
        # The model's value there is the bound, where the cap allows it.
        left = f + sum(float((b * (p - q)).sum()) for b, p, q in zip(g, x, START, strict=True))
        assert left == pytest.approx(0.0 if lr > 1 else f - lr * dual, abs=1e-12)


# Steps in shares of the weights


@pytest.mark.parametrize("base", ["sgd", "adam"])
def test_relative_is_its_base_where_every_size_is_the_least(base):
    """The bound of the size of the model from below is then the size of every tensor."""
    same = {"lr": 1e-3, "weight_decay": 0.0}
    ours, _ = oracles.relative(START, logistic, 20, base=base, own=0.0, least=10.0, **same)
    plain = oracles.sgd if base == "sgd" else oracles.adam
    theirs, _ = plain(START, logistic, 20, **{**same, "lr": 1e-2})  # 10 times as long: every size is 10
    assert_same(ours, theirs)


def test_sizes_of_relative_in_numbers():
    """Steps of one, from weights of rms 5 and 1 and zeros: rms of all is sqrt((50 + 1) / 5)."""
    start = [np.array([1.0, 7.0]), np.array([1.0]), np.zeros(2)]
    ones = lambda x, k: (0.0, [np.ones_like(a) for a in x])  # noqa: E731
    R = sqrt(51 / 5)
    [x], scalars = oracles.relative(start, ones, 1, base="sgd", lr=1.0, floor=0.5)
    assert_same([[a - 5, b - 0.5 * R, c - 0.5 * R] for a, b, c in [start]], [x])
    assert scalars["rms_of_model"] == pytest.approx([R], rel=1e-15)
    [x], _ = oracles.relative(start, ones, 1, base="sgd", lr=1.0, floor=0.0, own=[0.0, 0.25, 1.0], least=4.0)
    assert_same([[a - 4, b - (0.25 + 0.75 * 4), c] for a, b, c in [start]], [x])
    with pytest.raises(ValueError, match="give 'sgd' or 'adam'"):
        oracles.relative(start, ones, 1, base="muon")


def test_relative_muons_directions_are_those_of_muon_and_adam():
    """One step from weights of size 1: Muon's and Adam's steps; rows, columns and both kinds of tables go with Adam.

    All weights are 1, so those whose step goes down decay by lr weight_decay, and the others do not.
    """
    matrices = [(3, 4), (16, 2), (2, 16), (2, 2, 3)]
    start = [np.ones(shape) for shape in [*matrices, (1, 4), (4, 1), (17, 2), (2, 17), (2, 3, 6), (3,)]]
    rng = np.random.default_rng(0)
    gradients, up = [rng.normal(size=a.shape) for a in start], 0
    [x], _ = oracles.relative_muon(start, lambda x, k: (0.0, gradients), 1, lr=0.1, weight_decay=0.3)
    for i, (a, b, g) in enumerate(zip(start, x, gradients, strict=True)):
        if i < len(matrices):
            rows = [a.reshape(len(a), -1)], given(g.reshape(len(g), -1))
            options = {"adjust_lr_fn": "match_rms_adamw", "nesterov": False, "weight_decay": 0.0}
            [[plain]], _ = oracles.muon(*rows, 1, lr=0.1, **options)
        else:
            [[plain]], _ = oracles.adamw([a], given(g), 1, lr=0.1, weight_decay=0.0, eps=NO_EPS)
        expected = plain - np.where(plain <= 1, 0.1 * 0.3, 0.0)
        np.testing.assert_allclose(b, expected.reshape(a.shape), rtol=1e-12)
        up += int((plain > 1).sum())
    assert 0.3 < up / sum(a.size for a in start) < 0.7


@pytest.mark.parametrize(("unit", "scale"), [(100.0, 1.0), (0.03, 1.0), (7.0, 1e-3)])
def test_relative_muon_takes_the_same_steps_in_all_units(unit, scale):
    def other(x, k):
        loss, grads = logistic([a / unit for a in x], k)
        return scale * loss, [scale / unit * g for g in grads]

    here, _ = oracles.relative_muon(START, logistic, 30, weight_decay=0.1)
    there, _ = oracles.relative_muon([unit * a for a in START], other, 30, weight_decay=0.1)
    assert_same([[a / unit for a in x] for x in there], here, tolerance=1e-9)


# GPA


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_gpa_without_average_is_the_base(base):
    options = {"lr": 0.1, "weight_decay": 0.1, "schedule": WAVE}
    plain, _ = getattr(oracles, base)(START, logistic, 30, **options)
    for decay_at in ("z", "y"):
        ours, scalars = oracles.gpa(START, logistic, 30, base=base, mu_x=0.0, decay_at=decay_at, **options)
        assert_same(ours, plain)
        assert_same(scalars["averaged"], plain)


def test_gpa_at_its_average_is_heavy_ball():
    """mu_y = 1: primal averaging with c = 1 - mu_x, which is momentum mu_x and lr c. The buffer begins at c g."""
    ours, scalars = oracles.gpa(START, logistic, 30, base="sgd", lr=0.5, mu_y=1.0, mu_x=0.8)
    heavy, _ = oracles.sgd(START, logistic, 30, lr=0.1, momentum=0.8)
    assert_same(ours, heavy)
    assert_same(scalars["averaged"], heavy)


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_gpa_of_a_uniform_average_is_schedule_free(base):
    def uniform(t):
        return (t - 1) / t

    options = {"lr": 0.1, "weight_decay": 0.1, "schedule": WAVE}
    beta = {"betas": (0.7, 0.99)} if base == "adamw" else {"momentum": 0.7}
    theirs, expected = getattr(oracles, f"schedule_free_{base}")(
        START, logistic, 30, weight_lr_power=0.0, **beta, **options
    )
    options = {"mu_y": 0.7, "mu_x": uniform, "betas": (0.0, 0.99), **options}
    ours, scalars = oracles.gpa(START, logistic, 30, base=base, decay_at="y", **options)
    assert_same(ours, theirs)
    assert_same(scalars["averaged"], expected["averaged"])
    assert apart(oracles.gpa(START, logistic, 30, base=base, **options)[0], theirs) > 1e-5


def test_gpa_averages_are_exponential():
    ours, scalars = oracles.gpa(START, logistic, 30, base="adamw", lr=0.1, weight_decay=0.1, mu_y=0.6, mu_x=0.9)
    x, z = vector(scalars["averaged"]), base_points(ours, scalars["averaged"], 0.6)
    for t in range(1, 31):
        weights = 0.1 * 0.9 ** np.arange(t - 1, -1, -1)
        np.testing.assert_allclose(x[t - 1], weights @ z[:t] + 0.9**t * vector([START])[0], rtol=1e-11, atol=1e-12)
    # z takes AdamW's steps, with the gradients of y.
    y = [START, *ours]
    adam, _ = oracles.adamw(START, lambda _, k: logistic(y[k - 1], k), 30, lr=0.1, weight_decay=0.1)
    np.testing.assert_allclose(z, vector(adam), rtol=1e-11, atol=1e-11)


# Step sizes under Schedule-Free

COMPOSED = {
    "sps": (oracles.sps_schedule_free, oracles.sps, {"lr": 3.0, "lb": 0.1, "c": 0.7, "weight_decay": 0.1}, "theta"),
    "momo": (oracles.momo_schedule_free, oracles.momo, {"lr": 30.0, "lb": 0.1, "weight_decay": 0.01}, "theta"),
    "momo corrected": (oracles.momo_schedule_free, oracles.momo, {"lr": 3.0, "bias_correction": True}, "theta"),
    "prodigy": (
        oracles.prodigy_schedule_free,
        oracles.prodigy,
        {"d0": 1e-2, "weight_decay": 0.1, "use_bias_correction": True, "growth_rate": 1.5},
        "d",
    ),
}
composed = pytest.mark.parametrize(("oracle", "plain", "options", "scalar"), COMPOSED.values(), ids=list(COMPOSED))


@composed
@pytest.mark.parametrize("look", ["z", "y"])
def test_where_y_is_z_the_composite_is_the_plain_method(oracle, plain, options, scalar, look):
    groups = [{"indices": [1], "lr": 0.5}]
    theirs, expected = plain(START, logistic, 30, schedule=WAVE, groups=groups, **options)
    ours, scalars = oracle(START, logistic, 30, momentum=0.0, look=look, schedule=WAVE, groups=groups, **options)
    assert_same(ours, theirs)
    np.testing.assert_allclose(scalars[scalar], expected[scalar], rtol=1e-11)


@composed
def test_the_points_differ_where_y_is_not_z(oracle, plain, options, scalar):
    at_z, _ = oracle(START, logistic, 30, **options)
    at_y, _ = oracle(START, logistic, 30, look="y", **options)
    assert_same(at_z[:1], at_y[:1])
    assert apart(at_z, at_y) > 1e-4


@composed
@pytest.mark.parametrize("look", ["z", "y"])
@pytest.mark.parametrize("weigh", ["lr", "step"])
def test_composites_average_z_by_their_weights(oracle, plain, options, scalar, look, weigh):
    options = {**options, "weight_decay": 0.0, "use_bias_correction": False} if scalar == "d" else options
    iterates, scalars = oracle(START, logistic, 30, look=look, weigh=weigh, r=0.5, schedule=WAVE, **options)
    z = base_points(iterates, scalars["averaged"], 0.9)
    rates = options.get("lr", 1.0) * np.array(WAVE[:30])
    if weigh == "step":
        chosen = np.array(scalars["theta"] if scalar == "theta" else [options["d0"], *scalars["d"][:-1]])
        rates = rates * chosen * (1 - 0.9 ** np.arange(1, 31) if options.get("bias_correction") else 1.0)
    weights = np.sqrt(np.arange(1, 31)) * np.maximum.accumulate(rates) ** 2
    mean = np.cumsum(weights[:, None] * z, axis=0) / np.cumsum(weights)[:, None]
    np.testing.assert_allclose(vector(scalars["averaged"]), mean, rtol=1e-9, atol=1e-10)


def test_without_a_step_chosen_nothing_is_averaged():
    for oracle in (oracles.sps_schedule_free, oracles.momo_schedule_free):
        for weigh in ("lr", "step"):
            iterates, scalars = oracle(START, logistic, 5, lb=1e3, weigh=weigh)
            assert_same(iterates, [START] * 5, tolerance=1e-15)
            assert scalars["theta"] == [0.0] * 5


@pytest.mark.parametrize("look", ["z", "y"])
def test_capped_composites_are_schedule_free(look):
    """With a bound far below, Polyak's and MoMo's step is lr; with d at 1, Prodigy's is Adam's."""
    options = {"lr": 0.1, "r": 0.5, "schedule": WAVE}
    sgd, _ = oracles.schedule_free_sgd(START, logistic, 30, momentum=0.7, **options)
    decayed, _ = oracles.schedule_free_sgd(START, logistic, 30, momentum=0.7, weight_decay=0.1, **options)
    adamw, _ = oracles.schedule_free_adamw(START, logistic, 30, betas=(0.7, 0.99), eps=NO_EPS, **options)
    options = {"momentum": 0.7, "look": look, **options}
    ours, _ = oracles.sps_schedule_free(START, logistic, 30, lb=-1e3, weight_decay=0.1, **options)
    assert_same(ours, decayed)
    ours, _ = oracles.momo_schedule_free(START, logistic, 30, beta=0.0, lb=-1e3, **options)
    assert_same(ours, sgd)
    ours, scalars = oracles.prodigy_schedule_free(
        START, logistic, 30, betas=(0.0, 0.99), eps=NO_EPS, d0=1.0, d_coef=1e-9, use_bias_correction=True, **options
    )
    assert set(scalars["d"]) == {1.0}
    assert_same(ours, adamw)


@pytest.mark.parametrize("look", ["z", "y"])
def test_decay_under_polyaks_step_is_an_l2_penalty_at_y(look):
    def penalised(x, k):
        loss, grads = logistic(x, k)
        penalty = sum(0.05 * float((a * a).sum()) for a in x)
        return loss + penalty, [g + 0.1 * a for a, g in zip(x, grads, strict=True)]

    options = {"lr": 3.0, "look": look}
    ours, scalars = oracles.sps_schedule_free(START, logistic, 30, weight_decay=0.1, **options)
    assert_same(ours, oracles.sps_schedule_free(START, penalised, 30, **options)[0])
    assert len({theta for theta in scalars["theta"] if 0 < theta < 1}) > 5


def test_decay_under_momo_and_prodigy_is_of_z_and_of_y():
    """Without gradients of the first tensor, which the second one's steps take along."""

    def problem(x, k):
        return 1.0, [0 * x[0], NOISE[k - 1][1]]

    options = {"momentum": 0.7, "weight_decay": 0.1}
    ours, scalars = oracles.momo_schedule_free(START, problem, 20, lr=0.5, **options)
    z = base_points([x[:1] for x in ours], [x[:1] for x in scalars["averaged"]], 0.7)
    np.testing.assert_allclose(z, np.outer(1.05 ** -np.arange(1.0, 21), START[0].ravel()), rtol=1e-11)
    ours, scalars = oracles.prodigy_schedule_free(START, problem, 20, d0=0.5, d_coef=1e-9, **options)
    z = base_points([x[:1] for x in ours], [x[:1] for x in scalars["averaged"]], 0.7)
    y = vector([START[:1], *[x[:1] for x in ours[:-1]]])
    np.testing.assert_allclose(np.diff(z, axis=0, prepend=START[0].reshape(1, -1)), -0.05 * y, rtol=1e-9, atol=1e-13)


def test_polyak_at_z_solves_the_linear_model_there():
    """Uncapped, f(y) + <g, z+ - y> is the bound; at y it is the bound plus <g, z - y>."""
    for look in ("z", "y"):
        iterates, scalars = oracles.sps_schedule_free(START, logistic, 20, lr=1e6, lb=0.01, momentum=0.6, look=look)
        y, z = [START, *iterates], base_points(iterates, scalars["averaged"], 0.6)
        z = np.vstack([vector([START]), z])
        solved = []
        for k in range(20):
            f, grads = logistic(y[k], k + 1)
            g, point = vector([grads])[0], vector([y[k]])[0]
            lead = g @ (z[k] - point)
            if scalars["theta"][k] > 0:
                solved.append(k)
                value = f + g @ (z[k + 1] - point)
                assert value == pytest.approx(0.01 + (lead if look == "y" else 0.0), abs=1e-9)
            else:
                assert f - 0.01 + (lead if look == "z" else 0.0) <= 1e-12
        assert len(solved) > 5


def test_momo_at_z_is_the_average_of_the_models_that_touch_at_y():
    """F - G + <d, z> is the weighted mean of f(y_j) + <g_j, z - y_j>; the uncapped step takes it to the bound."""
    beta = 0.8
    iterates, scalars = oracles.momo_schedule_free(START, logistic, 20, lr=1e6, beta=beta, momentum=0.6, lb=0.01)
    y, z = vector([START, *iterates]), base_points(iterates, scalars["averaged"], 0.6)
    z = np.vstack([vector([START]), z])
    solved = 0
    for k in range(20):
        weights = (1 - beta) * beta ** np.arange(k, -1, -1.0)
        weights[0] = beta**k
        model = 0.0
        for j in range(k + 1):
            f, grads = logistic([START, *iterates][j], j + 1)
            model += weights[j] * (f + vector([grads])[0] @ (z[k + 1] - y[j]))
        if scalars["theta"][k] > 0:
            solved += 1
            assert model == pytest.approx(0.01, abs=1e-9)
    assert solved > 5


def test_prodigy_at_z_knows_the_distance_of_its_own_steps():
    """d_hat of a first move: step 2 sees <g_2, x_0 - z_1>, or at y its part <g_2, x_0 - y_1>."""
    g1, g2, d0 = np.array([1.0, -2.0]), np.array([3.0, 1.0]), 0.5
    for look in ("z", "y"):
        iterates, scalars = oracles.prodigy_schedule_free(
            [np.zeros(2)], given(g1, g2), 2, d0=d0, betas=(0.0, 0.25), eps=0.0, momentum=0.9, look=look
        )
        z1 = -d0 * g1 / np.sqrt(0.75 * g1**2)
        np.testing.assert_allclose(iterates[0][0], z1, rtol=1e-13)  # the first average is z itself, and so is y
        s = 0.5 * d0 * g1 + d0 * g2
        assert scalars["d_hat"][1] == pytest.approx(d0 * (g2 @ -z1) / np.abs(s).sum(), rel=1e-13)


# OrMo


def arrivals(workers, count, seed):
    """Indexes as an asynchronous scheduler hands them out: whoever is answered after gradient t has w_{t+1}."""
    rng = np.random.default_rng(seed)
    holding, indexes = [0] * workers, []
    for t in range(count):
        worker = rng.integers(workers)
        indexes.append(holding[worker])
        holding[worker] = t + 1
    return indexes


@pytest.mark.parametrize("workers", [1, 3, 4])
def test_ordered_momentum_is_its_closed_form(workers):
    groups = [{"indices": [1], "lr": 0.05, "weight_decay": 0.2}]
    options = {"workers": workers, "lr": 0.02, "momentum": 0.8, "weight_decay": 0.1, "groups": groups}
    indexes = arrivals(workers, 40, seed=workers)
    loop, left = oracles.ordered_momentum(START, logistic, indexes, schedule=WAVE, **options)
    sums, right = oracles.ordered_momentum_closed_form(START, logistic, indexes, schedule=WAVE, **options)
    assert_same(loop, sums)
    assert_same(left["momentum"], right["momentum"])
    assert left["lag"] == right["lag"]
    assert (max(left["lag"]) > 0) == (workers > 1) and min(left["lag"]) == 0
    assert apart(loop[-1:], [START]) > 1e-2


def test_one_worker_is_heavy_ball():
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    ours, scalars = oracles.ordered_momentum(START, logistic, range(40), workers=1, **options)
    assert_same(ours, oracles.sgd(START, logistic, 40, **options)[0])
    assert set(scalars["lag"]) == {0}


def test_ordered_momentum_ends_alike_in_any_order_of_arrival():
    indexes = arrivals(4, 40, seed=0)
    options = {"workers": 4, "lr": 0.1, "momentum": 0.8, "schedule": WAVE}
    expected, scalars = oracles.ordered_momentum(START, noise, indexes, **options)
    rng = np.random.default_rng(1)
    orders = 0
    for _ in range(5):
        # Neighbours change places where the model that a gradient was taken at is there in time.
        order = list(range(40))
        for _ in range(400):
            t = rng.integers(39)
            if indexes[order[t + 1]] <= t:
                order[t], order[t + 1] = order[t + 1], order[t]
        ours, found = oracles.ordered_momentum(
            START, lambda x, k, order=order: noise(x, order[k - 1] + 1), [indexes[j] for j in order], **options
        )
        assert_same(ours[-1:], expected[-1:])
        assert_same(found["momentum"][-1:], scalars["momentum"][-1:])
        orders += apart(ours[:-1], expected[:-1]) > 1e-3
    assert orders == 5


def test_synchronous_workers_are_nesterovs_momentum_of_the_mean_gradient():
    """All K gradients of a round are of one model: torch's Nesterov with lr / K a gradient, at the rounds' ends."""
    K, rounds = 4, 10
    indexes = [K * (t // K) for t in range(K * rounds)]
    ours, _ = oracles.ordered_momentum(START, logistic, indexes, workers=K, lr=0.2 / K, momentum=0.8)
    x, m = START, [0 * a for a in START]
    for r in range(rounds):
        grads = [logistic(x, K * r + j + 1)[1] for j in range(K)]
        g = [sum(column) / K for column in zip(*grads, strict=True)]
        m = [0.8 * a + b for a, b in zip(m, g, strict=True)]
        x = [a - 0.2 * (b + 0.8 * c) for a, b, c in zip(x, g, m, strict=True)]
        assert_same([ours[K * (r + 1) - 1]], [x])


@pytest.mark.parametrize("indexes", [[0, 0, 0, 0, 1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 4, 4, 4, 4, 8, 8]])
def test_momentum_halves_from_bucket_to_bucket(indexes):
    """Of four workers at beta 1/2, asynchronous or not: 1/4 of the first four, 1/2 of the next and all of the last.

    These are the coefficients of the paper's figure 1; the tenth gradient opens a bucket, so that all are halved.
    """
    _, scalars = oracles.ordered_momentum(
        [np.zeros(10)], lambda x, k: (0.0, [np.eye(10)[k - 1]]), indexes, workers=4, lr=1.0, momentum=0.5
    )
    powers = np.array([0.25] * 4 + [0.5] * 4 + [1.0] * 2)
    np.testing.assert_allclose(scalars["momentum"][8][0], [*powers[:9], 0.0])
    np.testing.assert_allclose(scalars["momentum"][9][0], powers / 2)


def test_ordered_momentum_without_momentum_is_asynchronous_sgd():
    indexes = arrivals(3, 30, seed=2)
    ours, _ = oracles.ordered_momentum(START, logistic, indexes, workers=3, lr=0.1, momentum=0.0)
    models = [START]
    for t, index in enumerate(indexes):
        models.append([a - 0.1 * g for a, g in zip(models[-1], logistic(models[index], t + 1)[1], strict=True)])
    assert_same(ours, models[1:])


def test_ordered_momentum_of_a_frozen_tensor_is_that_of_the_others():
    indexes = arrivals(3, 30, seed=3)
    options = {"workers": 3, "lr": 0.1, "schedule": WAVE}
    frozen = [{"indices": [1], "lr": 0.0, "weight_decay": 0.5}]
    whole, _ = oracles.ordered_momentum(START, logistic, indexes, groups=frozen, **options)

    def constant(x, k):
        loss, grads = logistic([x[0], START[1]], k)
        return loss, grads[:1]

    part, _ = oracles.ordered_momentum(START[:1], constant, indexes, **options)
    assert all((x[1] == START[1]).all() for x in whole)
    assert_same([x[:1] for x in whole], part)

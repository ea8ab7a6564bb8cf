"""The oracles of SGDF's versions, AdaRem's momentum, adaptive momentum, SPA, multiplicative updates, random scaling and
points, NGN, decays of AdamW, and extrapolation.

They are held to closed forms, reductions to oracles that have tests of their own, invariances and torch.optim.
"""

from functools import partial
from math import inf, sqrt

import numpy as np
import pytest
import test_oracles as laws
import torch
from test_oracles import START, WAVE, assert_same, logistic, run_torch, vector
from test_oracles_doors import FACTORS, NOISE, apart, given, noise

from untuned.testing import oracles

GROUPS = [{"indices": [1], "lr": 0.05, "weight_decay": 0.2}]
LATE = [{"indices": [1], "schedule": [float(k not in (0, 1, 2, 7, 8)) for k in range(40)]}]


def shards(x0, problem, steps, **options):
    """Two workers, whose losses are a half and three halves of the problem's."""

    def weighed(weight, x, k):
        loss, grads = problem(x, k)
        return weight * loss, [weight * g for g in grads]

    return oracles.extrapolated(x0, [partial(weighed, 0.5), partial(weighed, 1.5)], steps, **options)


def gaussian(n, worker, x):
    return [np.random.default_rng([n, worker, i]).normal(size=a.shape) for i, a in enumerate(x)]


# Options under which each moves visibly within 20 steps.
DECAYED = {"lr": 0.05, "weight_decay": 0.1}
EVERY = {
    "adarem momentum": (oracles.adarem, {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.1}),
    "sgdf v2025-03": (oracles.sgdf, {"version": "v2025-03", "weight_decay": 0.1}),
    "sgdf v2024-04": (oracles.sgdf, {"version": "v2024-04", "weight_decay": 0.1}),
    "sgdf v2024-03": (oracles.sgdf, {"version": "v2024-03", "weight_decay": 0.1, "weight_decouple": True}),
    "ahb_sgd": (oracles.ahb_sgd, {"weight_decay": 0.1}),
    "ahb_sgd uncapped": (oracles.ahb_sgd, {"lr": 1.0, "delta": 0.05, "cap": inf}),
    "ahb_adam": (oracles.ahb_adam, DECAYED),
    "ahb_adam uncapped": (oracles.ahb_adam, {"lr": 0.01, "beta2": 0.9, "delta": 0.05, "cap": inf}),
    "am_msgd": (oracles.am_msgd, {"weight_decay": 0.1}),
    "sgd_spa": (oracles.sgd_spa, {"lr": 0.5, "weight_decay": 0.1}),
    "multiplicative sgd": (oracles.multiplicative, {"base": "sgd", "lr": 0.1, "nesterov": True, "weight_decay": 0.1}),
    "multiplicative adam": (oracles.multiplicative, {"base": "adam", **DECAYED}),
    "hybrid sgd": (oracles.multiplicative, {"base": "sgd", "lr": 0.1, "mix": 0.5, "additive": 0.3}),
    "hybrid adam": (oracles.multiplicative, {"base": "adam", "lr": 0.05, "mix": 0.5, "eta_in": 2.0}),
    "power sgd": (oracles.multiplicative, {"base": "sgd", "lr": 0.1, "rule": "power"}),
    "power adam": (oracles.multiplicative, {"base": "adam", "rule": "power", **DECAYED}),
    "random_scaled adamw": (oracles.random_scaled, {"factors": FACTORS, "base": "adamw", **DECAYED}),
    "random_point sgd": (oracles.random_point, {"factors": WAVE, "weight_decay": 0.1}),
    "random_point adamw": (oracles.random_point, {"factors": WAVE, "base": "adamw", **DECAYED}),
    "ngn": (oracles.ngn, {"weight_decay": 0.1, "lb": -0.5}),
    "ngn momentum": (oracles.ngn, {"lr": 3.0, "momentum": 0.8, "weight_decay": 0.1}),
    "anchored": (oracles.adamw_decay, {"kind": "anchored", "lr": 0.05}),
    "anchored root": (oracles.adamw_decay, {"kind": "anchored", "lr": 0.05, "power": 0.5}),
    "cautious": (oracles.adamw_decay, {"kind": "cautious", **DECAYED}),
    "independent": (oracles.adamw_decay, {"kind": "independent", **DECAYED}),
    "extrapolated sgd": (shards, {"base": "sgd", "inner_lr": 0.1, "weight_decay": 0.1}),
    "extrapolated nesterov": (shards, {"base": "sgd", "inner_lr": 0.1, "direction": "global", "nesterov": True}),
    "extrapolated adam": (shards, {"base": "adam", "inner_lr": 0.1, **DECAYED}),
    "extrapolated noise": (shards, {"base": "sgd", "inner_lr": 0.1, "direction": "noise", "noise": gaussian}),
}
WHOLE_TENSOR = ["adarem momentum", "extrapolated noise"]


@pytest.mark.parametrize(
    "law",
    [
        laws.test_tensor_with_lr_0_is_as_if_it_were_a_constant_of_the_loss,
        laws.test_step_with_lr_0_everywhere_does_not_happen,
        laws.test_tensor_paused_mid_run_stands_still,
        laws.test_groups_alike_are_one_group,
    ],
    ids=lambda law: law.__name__.removeprefix("test_"),
)
@pytest.mark.parametrize("name", EVERY)
def test_law_of_all_oracles(law, name):
    law(*EVERY[name])


@pytest.mark.parametrize("name", EVERY)
def test_splitting_a_tensor_matters_where_tensors_count_as_a_whole(name):
    if name in WHOLE_TENSOR:
        with pytest.raises(AssertionError):
            laws.test_splitting_a_tensor_changes_nothing(*EVERY[name])
    else:
        laws.test_splitting_a_tensor_changes_nothing(*EVERY[name])


def of_penalty(loss, x):
    return loss + 0.05 * sum(float((a**2).sum()) for a in x)


@pytest.mark.parametrize("name", ["sgdf v2025-03", "ahb_sgd", "am_msgd", "sgd_spa", "multiplicative sgd", "power adam"])
def test_coupled_decay_is_the_gradient_of_an_l2_penalty(name):
    oracle, options = EVERY[name]
    laws.test_coupled_decay_is_the_gradient_of_an_l2_penalty(
        oracle, {k: v for k, v in options.items() if k != "weight_decay"}
    )


def test_pause_deletes_the_steps_of_a_tensor_that_shares_nothing():
    """Also before its first step: the counters of a tensor that comes late start then."""
    acting = [2, 3, 7, 8]
    groups = [{"indices": [1], "schedule": [float(s in acting) for s in range(9)]}]
    for name in EVERY:
        oracle, options = EVERY[name]
        if name.startswith(("ahb", "am_msgd", "ngn", "random", "extrapolated noise")):
            continue
        paused, _ = oracle(START, noise, 9, groups=groups, **options)
        steady, _ = oracle(START, lambda x, k: noise(x, acting[k - 1] + 1), 4, **options)
        assert_same([paused[s][1:] for s in acting], [x[1:] for x in steady], tolerance=0)


def steps_of(iterates, start=START):
    return np.diff(vector([start, *iterates]), axis=0)


# AdaRem's momentum


def test_adarems_momentum_is_a_heavy_ball_of_the_gained_gradients():
    plain, _ = oracles.adarem(START, noise, 20, lr=1.0)
    ours, _ = oracles.adarem(START, noise, 20, lr=0.1, momentum=0.7, weight_decay=0.3)
    gained, before = -steps_of(plain), vector([START, *ours[:-1]])
    for k in range(20):
        ball = 0.7 ** np.arange(k, -1, -1.0) @ gained[: k + 1]
        np.testing.assert_allclose(steps_of(ours)[k], -0.1 * (ball + 0.3 * before[k]), rtol=1e-11, atol=1e-13)


def test_adarem_with_momentum_and_lam_0_is_torchs_sgd():
    theirs = run_torch(torch.optim.SGD, logistic, 20, lr=0.1, momentum=0.8)
    assert_same(oracles.adarem(START, logistic, 20, lr=0.1, lam=0.0, momentum=0.8)[0], theirs)


# SGDF

VERSIONS = ["final", "v2025-03", "v2024-04", "v2024-03"]


def test_sgdf_knows_its_versions_only():
    with pytest.raises(ValueError, match="v2024-04"):
        oracles.sgdf(START, logistic, 1, version="v2024-05")


@pytest.mark.parametrize("version", VERSIONS)
def test_sgdf_is_sgd_where_the_average_is_the_gradient(version):
    """In its first step, without an average, and on constant gradients; and on any with gain 1."""
    sgd, _ = oracles.sgd(START, logistic, 20, lr=0.5, weight_decay=0.1)
    ours, _ = oracles.sgdf(START, logistic, 20, version=version, weight_decay=0.1)
    assert_same(ours[:1], sgd[:1])
    assert apart(ours, sgd) > 1e-3
    assert_same(oracles.sgdf(START, logistic, 20, version=version, betas=(0.0, 0.9), weight_decay=0.1)[0], sgd)
    constant = [np.ones((3, 2)), np.array([2.0, -3.0])]
    ours, _ = oracles.sgdf(START, lambda x, k: (0.0, constant), 20, version=version)
    assert_same(ours, oracles.sgd(START, lambda x, k: (0.0, constant), 20, lr=0.5)[0])
    if version == "final":
        assert_same(oracles.sgdf(START, logistic, 20, gamma=0.0, weight_decay=0.1)[0], sgd)


@pytest.mark.parametrize("version", VERSIONS)
def test_sgdf_without_gain_is_the_corrected_average(version):
    ours, _ = oracles.sgdf(START, noise, 20, version=version, eps=1e300)
    g = vector(NOISE[:20])
    for k in range(20):
        weights = 0.9 ** np.arange(k, -1, -1.0)
        np.testing.assert_allclose(steps_of(ours)[k], -0.5 * weights @ g[: k + 1] / weights.sum(), rtol=1e-10)


def test_sgdfs_versions_differ_by_their_gains():
    sgdf = partial(oracles.sgdf, START, noise, 30)
    final, half = sgdf()[0], sgdf(gamma=1.0)[0]
    assert_same(half, sgdf(version="v2024-04")[0], tolerance=0)
    average, doubled = sgdf(eps=1e300)[0], sgdf(version="v2025-03")[0]
    np.testing.assert_allclose(vector(doubled), 2 * vector(half) - vector(average), rtol=1e-11, atol=1e-11)
    naive = sgdf(version="v2024-03")[0]
    assert min(apart(final, half), apart(half, naive), apart(half, doubled)) > 1e-2
    for version in VERSIONS:
        _, scalars = sgdf(version=version)
        smallest, largest = np.array(scalars["gain"]).T
        assert (smallest >= 0).all()
        assert largest.max() > 1.2 if version == "v2025-03" else largest.max() <= 1


def test_sgdfs_variance_is_that_of_an_average_but_for_the_first_version():
    """The odds K / (1 - K) of both, without eps, differ by the sum of the squared weights in the average."""
    start = [np.zeros(1)]
    gains = {}
    for version in ("v2024-04", "v2024-03"):
        _, scalars = oracles.sgdf(start, lambda x, k: (0.0, [NOISE[k - 1][1][:1]]), 20, version=version, eps=0.0)
        gains[version] = np.array(scalars["gain"])[1:, 0, 0]
    odds = {version: K / (1 - K) for version, K in gains.items()}
    squares = [((0.1 * 0.9 ** np.arange(t)) ** 2).sum() for t in range(2, 21)]
    np.testing.assert_allclose(odds["v2024-04"] / odds["v2024-03"], squares, rtol=1e-9)


@pytest.mark.parametrize(
    ("version", "gain"),
    [("v2024-03", 9 / 13), ("v2024-04", 45 / 109), ("v2025-03", 90 / 109), ("final", sqrt(45 / 109))],
)
def test_sgdfs_second_step_by_hand(version, gain):
    options = {"lr": 1.0, "betas": (0.5, 0.75), "eps": 0.0, "version": version}
    iterates, scalars = oracles.sgdf([np.zeros(1)], given([1.0], [3.0]), 2, **options)
    assert scalars["gain"][1][0] == pytest.approx((gain, gain), rel=1e-14)
    assert iterates[1][0] - iterates[0][0] == pytest.approx(-(7 / 3 + gain * 2 / 3), rel=1e-14)


@pytest.mark.parametrize("version", VERSIONS)
def test_sgdf_is_homogeneous(version):
    ours, _ = oracles.sgdf(START, noise, 20, lr=0.5, version=version, eps=0.0)
    scaled = oracles.sgdf(
        START, lambda x, k: (0.0, [7 * g for g in NOISE[k - 1]]), 20, lr=0.5 / 7, version=version, eps=0.0
    )
    assert_same(ours, scaled[0])


# Adaptive heavy ball


def bowl(curvature, x, k):
    return float((curvature * x[0] ** 2).sum()) / 2, [curvature * x[0]]


@pytest.mark.parametrize("gamma", [0.02, 0.3, 0.9])
def test_adaptive_heavy_ball_has_a_double_root_on_a_round_bowl(gamma):
    """beta is (1 - sqrt(lr lam))^2 from the second step on, and x_k = (a + b k) r^k."""
    lam, start = 3.0, np.array([1.0, -2.0, 0.5])
    iterates, scalars = oracles.ahb_sgd([start], partial(bowl, lam), 15, lr=gamma / lam)
    r = 1 - sqrt(gamma)
    k = np.arange(1, 16)[:, None]
    expected = (start + ((1 - gamma) / r - 1) * start * k) * r**k
    np.testing.assert_allclose(vector(iterates), expected, rtol=1e-8, atol=1e-14)
    np.testing.assert_allclose(scalars["beta"], [0.0] + [r**2] * 14, rtol=1e-7)


def test_adaptive_heavy_ball_knows_newtons_step():
    iterates, scalars = oracles.ahb_sgd([np.array([1.0, -2.0])], partial(bowl, 4.0), 3, lr=0.25)
    assert (vector(iterates) == 0).all() and scalars["beta"] == [0.0] * 3


def test_adaptive_heavy_balls_ratio_tends_to_the_smallest_curvature():
    _, scalars = oracles.ahb_sgd([np.array([1.0, 1.0, 1.0])], partial(bowl, np.array([1.0, 3.0, 10.0])), 100, lr=0.1)
    assert scalars["beta"][-1] == pytest.approx((1 - sqrt(0.1)) ** 2, rel=1e-3)
    assert scalars["beta"][1] < 0.3


def test_adaptive_heavy_ball_is_torchs_at_the_upper_end():
    """On constant gradients the ratio is 0; on ones that grow and turn the formula as printed has more than 1, too."""
    constant = [np.ones((3, 2)), np.array([2.0, -3.0])]
    turning = [[(-10.0) ** k * g for g in constant] for k in range(8)]
    for gradients, cap in [([constant] * 8, 1.0), (turning, inf)]:

        def problem(x, k, gradients=gradients):
            return 0.0, gradients[k - 1]

        ours, scalars = oracles.ahb_sgd(START, problem, 8, lr=0.1, delta=0.1, cap=cap)
        assert scalars["beta"] == [0.0] + [0.9] * 7
        assert_same(ours, run_torch(torch.optim.SGD, problem, 8, lr=0.1, momentum=0.9))
    # The cap takes noise for what it is.
    ours, scalars = oracles.ahb_sgd(START, lambda x, k: (0.0, turning[k - 1]), 8, lr=0.1)
    assert scalars["beta"] == [0.0] * 8
    assert_same(ours, oracles.sgd(START, lambda x, k: (0.0, turning[k - 1]), 8, lr=0.1)[0])


def check_betas(iterates, betas, grads, rates, acting, delta, cap):
    """beta at every step from the iterates: over the tensors that act now and did before, at their last steps."""
    points, known, interior = [START, *iterates], 0, 0
    for k in range(len(iterates)):
        change = way = 0.0
        for i in range(2):
            past = [j for j in range(k) if acting[j][i]]
            if acting[k][i] and past:
                j = past[-1]
                change += rates[k][i] ** 2 * ((grads[k][i] - grads[j][i]) ** 2).sum()
                way += ((points[j + 1][i] - points[j][i]) ** 2).sum()
        if way > 0:
            known += 1
            expected = min((1 - min(change / way, cap**2) ** 0.25) ** 2, 1 - delta)
            assert betas[k] == pytest.approx(expected, rel=1e-8, abs=1e-10)
            interior += 0 < expected < 1 - delta
        else:
            assert betas[k] == (betas[k - 1] if k else 0.0)
    assert known > 15 and interior > 3


@pytest.mark.parametrize("cap", [1.0, inf])
def test_adaptive_heavy_balls_steps_from_all_points(cap):
    """Groups, a tensor that comes late and pauses, and decay: each in units of its own lr of the step."""
    groups = [{**LATE[0], "lr": 0.03, "weight_decay": 0.2}]
    options = {"lr": 0.1, "weight_decay": 0.1, "groups": groups, "schedule": WAVE}
    iterates, scalars = oracles.ahb_sgd(START, logistic, 30, cap=cap, **options)
    points, betas = [START, *iterates], scalars["beta"]
    rates = [[0.1 * WAVE[k], 0.03 * LATE[0]["schedule"][k]] for k in range(30)]
    acting = [[rate > 0 for rate in row] for row in rates]
    grads = [
        [g + wd * a for g, a, wd in zip(logistic(x, k + 1)[1], x, (0.1, 0.2), strict=True)]
        for k, x in enumerate(points[:-1])
    ]
    check_betas(iterates, betas, grads, rates, acting, 1e-3, cap)
    for i in range(2):
        own = [k for k in range(30) if acting[k][i]]
        for j, k in zip([None, *own], own, strict=False):
            ball = 0.0 if j is None else betas[k] * (points[j + 1][i] - points[j][i])
            np.testing.assert_allclose(
                points[k + 1][i] - points[k][i], ball - rates[k][i] * grads[k][i], rtol=1e-9, atol=1e-13
            )


def test_adaptive_heavy_ball_keeps_beta_where_nothing_is_known():
    groups = [{"indices": [0], "schedule": [1.0] * 6 + [0.0] * 4}, {"indices": [1], "schedule": [0.0] * 6 + [1.0] * 4}]
    for oracle in (oracles.ahb_sgd, oracles.ahb_adam):
        _, scalars = oracle(START, lambda x, k: logistic(x, 1), 10, lr=0.01, groups=groups)
        assert scalars["beta"][6] == scalars["beta"][5] > 0
        assert scalars["beta"][7] != scalars["beta"][6]
    still = given([0.0], [0.0], [1.0], [1.0], [1.0])
    _, scalars = oracles.ahb_sgd([np.array([1.0])], still, 5)
    assert scalars["beta"] == [0.0, 0.0, 0.0, 0.999, 0.999]


def flat(problem, start=START):
    def flattened(x, k):
        cut = start[0].size
        loss, grads = problem([x[0][:cut].reshape(start[0].shape), x[0][cut:]], k)
        return loss, [np.concatenate([g.ravel() for g in grads])]

    return flattened, [np.concatenate([a.ravel() for a in start])]


@pytest.mark.parametrize(
    "run", [oracles.ahb_sgd, oracles.am_msgd, oracles.sgd_spa, oracles.ngn], ids=lambda run: run.__name__
)
def test_rotating_and_moving_the_space_moves_the_run_along(run):
    problem, [start] = flat(logistic)
    Q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))
    offset = np.arange(8.0)

    def turned(y, k):
        loss, [g] = problem([Q.T @ (y[0] - offset)], k)
        return loss, [Q @ g]

    ours, _ = run([start], problem, 20)
    theirs, _ = run([Q @ start + offset], turned, 20)
    np.testing.assert_allclose((vector(theirs) - offset) @ Q, vector(ours), rtol=1e-9, atol=1e-9)


def test_adaptive_heavy_ball_knows_no_unit():
    """x = 3 y with lr / 9 is the same run: lr ||dg|| / ||dx|| has no unit."""
    groups = [{"indices": [1], "lr": 0.02 / 9}]
    ours, left = oracles.ahb_sgd(START, logistic, 20, lr=0.1, groups=[{"indices": [1], "lr": 0.02}])
    theirs, right = oracles.ahb_sgd(
        [a / 3 for a in START],
        lambda y, k: (0.0, [3 * g for g in logistic([3 * a for a in y], k)[1]]),
        20,
        lr=0.1 / 9,
        groups=groups,
    )
    np.testing.assert_allclose(3 * vector(theirs), vector(ours), rtol=1e-10)
    np.testing.assert_allclose(right["beta"], left["beta"], rtol=1e-7, atol=1e-9)


def test_adaptive_adam_without_momentum_is_adamw():
    """Large gradients that are noise: the ratio is at the cap, beta 0, in every step."""

    def loud(x, k):
        return 0.0, [100 * g for g in NOISE[k - 1]]

    ours, scalars = oracles.ahb_adam(START, loud, 20, lr=0.1, beta2=0.99, weight_decay=0.3)
    assert scalars["beta"] == [0.0] * 20
    assert_same(ours, run_torch(torch.optim.AdamW, loud, 20, lr=0.1, betas=(0.0, 0.99), weight_decay=0.3))


def test_adaptive_adam_on_a_constant_gradient():
    ours, scalars = oracles.ahb_adam(START, lambda x, k: (0.0, NOISE[0]), 20, lr=0.1, eps=0.0)
    assert scalars["beta"] == [0.0] + [0.999] * 19
    expected = -0.1 * np.outer(np.ones(20), np.sign(vector(NOISE[:1])))
    np.testing.assert_allclose(steps_of(ours), expected, rtol=1e-12)


@pytest.mark.parametrize("cap", [1.0, inf])
def test_adaptive_adams_steps_from_all_points(cap):
    """Its first moment is the mean of a tensor's gradients, in which g_j has the weight (1 - beta_j) beta_{j+1} ...."""
    groups = [{**LATE[0], "lr": 0.003, "weight_decay": 0.2}]
    options = {"lr": 0.01, "beta2": 0.95, "eps": 1e-4, "weight_decay": 0.1, "groups": groups, "schedule": WAVE}
    iterates, scalars = oracles.ahb_adam(START, logistic, 30, cap=cap, **options)
    points, betas = [START, *iterates], scalars["beta"]
    rates = [[0.01 * WAVE[k], 0.003 * LATE[0]["schedule"][k]] for k in range(30)]
    acting = [[rate > 0 for rate in row] for row in rates]
    grads = [logistic(x, k + 1)[1] for k, x in enumerate(points[:-1])]
    check_betas(iterates, betas, grads, rates, acting, 1e-3, cap)
    for i, wd in enumerate((0.1, 0.2)):
        own = [k for k in range(30) if acting[k][i]]
        for n, k in enumerate(own):
            past = own[: n + 1]
            first = [(1 - betas[j]) * np.prod([betas[h] for h in past if h > j]) for j in past]
            second = [0.95 ** (n - h) for h in range(n + 1)]
            m = sum(w * grads[j][i] for w, j in zip(first, past, strict=True)) / sum(first)
            v = sum(w * grads[j][i] ** 2 for w, j in zip(second, past, strict=True)) / sum(second)
            expected = -rates[k][i] * (m / (np.sqrt(v) + 1e-4) + wd * points[k][i])
            np.testing.assert_allclose(points[k + 1][i] - points[k][i], expected, rtol=1e-9, atol=1e-13)
    assert betas[3] > 0  # so the late tensor's first weight is not 1


# AM-MSGD


@pytest.mark.parametrize("penalty", [0.1, 0.7])
def test_am_msgd_is_as_published(penalty):
    """beta = clip([(1 + l) <g, d> - <d - g, g + l d>] / |d - g|^2, 0, beta_max), d <- ((beta + l) d + (1 - beta) g) /
    (1 + l)."""
    x, d, expected, betas = vector([START])[0], None, [], []
    problem, _ = flat(logistic)
    for k in range(1, 31):
        g = problem([x], k)[1][0]
        if d is None:
            d = g
        else:
            ratio = ((1 + penalty) * (g @ d) - (d - g) @ (g + penalty * d)) / ((d - g) @ (d - g))
            betas.append(min(max(ratio, 0.0), 0.9))
            d = ((betas[-1] + penalty) * d + (1 - betas[-1]) * g) / (1 + penalty)
        x = x - 0.1 * d
        expected.append([x])
    ours, scalars = oracles.am_msgd(START, logistic, 30, penalty=penalty)
    assert_same(ours, expected)
    np.testing.assert_allclose(scalars["kept"], [0.0, *((np.array(betas) + penalty) / (1 + penalty))], rtol=1e-10)
    assert sum(0 < b < 0.9 for b in betas) > 5


def test_am_msgd_of_a_gradient_that_turns_around_keeps_a_quarter():
    _, scalars = oracles.am_msgd([np.zeros(2)], given([1.0, 2.0], [-1.0, -2.0]), 2)
    assert scalars["kept"] == [0.0, 0.25]


def test_am_msgd_on_constant_gradients_is_sgd():
    ours, scalars = oracles.am_msgd(START, lambda x, k: (0.0, NOISE[0]), 20)
    assert_same(ours, oracles.sgd(START, lambda x, k: (0.0, NOISE[0]), 20, lr=0.1)[0])
    assert scalars["kept"][1] == 0.1 / 1.1
    _, scalars = oracles.am_msgd(START, lambda x, k: (0.0, [0 * a for a in x]), 3)
    assert scalars["kept"] == [0.0, 0.1 / 1.1, 0.1 / 1.1]


def test_am_msgd_with_one_theta_is_torchs_heavy_ball():
    theta = 0.3 / 1.3
    groups = [{"indices": [0]}, {"indices": [1], "lr": 0.05, "weight_decay": 0.2}]
    ours, _ = oracles.am_msgd(START, logistic, 20, penalty=0.3, beta_max=0.0, groups=groups, schedule=WAVE)
    theirs = run_torch(torch.optim.SGD, logistic, 20, groups, WAVE, lr=0.1, momentum=theta, dampening=theta)
    assert_same(ours, theirs)


def test_am_msgds_theta_has_no_unit_and_a_late_tensor_starts_at_0():
    ours, left = oracles.am_msgd(START, noise, 20)
    theirs, right = oracles.am_msgd(START, lambda x, k: (0.0, [7 * g for g in NOISE[k - 1]]), 20, lr=0.1 / 7)
    assert_same(ours, theirs)
    np.testing.assert_allclose(left["kept"], right["kept"], rtol=1e-12)
    assert sum(0.1 < theta < 0.9 for theta in left["kept"]) > 5
    ours, scalars = oracles.am_msgd(START, noise, 4, beta_max=2.0, groups=LATE)
    theta, d = scalars["kept"][3], vector([START[:1]]) - vector([x[:1] for x in ours])
    np.testing.assert_allclose(ours[3][1] - START[1], -0.1 * (1 - theta) * NOISE[3][1], rtol=0, atol=1e-15)
    before, now = (d[2] - d[1]) / 0.1, [g.ravel() for g in NOISE[3]]
    size = sum(g @ g for g in now)
    gap = (before - now[0]) @ (before - now[0]) + now[1] @ now[1]
    assert theta == pytest.approx(size / gap, rel=1e-10)


# SPA


def test_sgd_spa_is_torchs_sgd():
    theirs = run_torch(
        torch.optim.SGD, logistic, 30, [{"indices": [0]}, *GROUPS], lr=0.1, momentum=0.8, weight_decay=0.1
    )
    groups = [{**GROUPS[0], "lr": 0.05 / 0.2}]
    ours, scalars = oracles.sgd_spa(START, logistic, 30, lr=0.1 / 0.2, momentum=0.8, weight_decay=0.1, groups=groups)
    assert_same(ours, theirs)
    # z = x - (1 / c - 1) alpha m, where alpha m is the step.
    np.testing.assert_allclose(vector(scalars["z"]), vector(ours) + 4 * steps_of(ours), rtol=1e-10, atol=1e-10)


def test_sgd_spa_is_generalized_primal_averaging_where_y_is_x():
    options = {"lr": 0.5, "weight_decay": 0.1, "groups": GROUPS, "schedule": WAVE}
    theirs, _ = oracles.gpa(START, logistic, 30, base="sgd", mu_y=1.0, mu_x=0.8, decay_at="y", **options)
    assert_same(oracles.sgd_spa(START, logistic, 30, momentum=0.8, **options)[0], theirs)


def test_sgd_spa_without_momentum_is_sgd_and_with_c_falling_the_mean():
    ours, _ = oracles.sgd_spa(START, logistic, 20, lr=0.3, momentum=0.0, weight_decay=0.1, schedule=WAVE)
    assert_same(ours, oracles.sgd(START, logistic, 20, lr=0.3, weight_decay=0.1, schedule=WAVE)[0])
    ours, scalars = oracles.sgd_spa(START, logistic, 20, lr=0.3, momentum=lambda t: t / (t + 1))
    z = np.vstack([vector([START]), vector(scalars["z"])])
    np.testing.assert_allclose(vector(ours), np.cumsum(z, axis=0)[1:] / np.arange(2, 22)[:, None], rtol=1e-11)


def test_sgd_spa_maps_to_heavy_ball_with_any_schedules():
    """alpha_k = eta_k c_{k+1} and beta_k = (1 - c_k) eta_{k-1} / eta_k."""
    rng = np.random.default_rng(0)
    etas, cs = rng.uniform(0.1, 0.5, size=30), rng.uniform(0.1, 1.0, size=31)
    ours, _ = oracles.sgd_spa(START, logistic, 30, momentum=lambda t: 1 - cs[t], schedule=etas.tolist())
    x, m, expected = START, [0 * a for a in START], []
    for k in range(30):
        beta = (1 - cs[k]) * etas[k - 1] / etas[k]
        m = [beta * a + g for a, g in zip(m, logistic(x, k + 1)[1], strict=True)]
        x = [a - etas[k] * cs[k + 1] * b for a, b in zip(x, m, strict=True)]
        expected.append(x)
    assert_same(ours, expected)


def test_sgd_spas_step_on_convex_functions_is_bounded():
    """|z_{k+1} - x*|^2 + 2 eta / c_k f_k <= |z_k - x*|^2 + 2 eta (1 / c_k - 1) f_{k-1} + eta^2 |g_k|^2 from f* = 0."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        A = rng.normal(size=(4, 4))
        H, eta, cs = A @ A.T, rng.uniform(0.01, 0.3), [1.0, *rng.uniform(0.05, 1.0, size=20)]

        def convex(x, k, H=H):
            return float(x[0] @ H @ x[0]) / 2, [H @ x[0]]

        start = [rng.normal(size=4)]
        ours, scalars = oracles.sgd_spa(start, convex, 20, lr=eta, momentum=lambda t, cs=cs: 1 - cs[t])
        x, z = [start[0], *(a for [a] in ours)], [start[0], *(a for [a] in scalars["z"])]
        f = [convex([a], 0)[0] for a in x]
        for k in range(20):
            g, before = H @ x[k], f[max(k - 1, 0)]
            left = z[k + 1] @ z[k + 1] + 2 * eta / cs[k] * f[k]
            right = z[k] @ z[k] + 2 * eta * (1 / cs[k] - 1) * before + eta**2 * g @ g
            assert left <= right * (1 + 1e-12)


@pytest.mark.parametrize("case", ["constant", "c falls", "eta falls"])
def test_sgd_spas_lyapunov_function_falls(case):
    """V = f + (1 - c) / (2 c eta) |x_k - x_{k-1}|^2 loses q |x_{k+1} - x_k|^2 at least, also where f is not convex."""
    steps, tight = 40, inf
    for seed in range(10):
        rng = np.random.default_rng(seed)
        S, W = rng.normal(size=(4, 4)), rng.normal(size=(6, 4))
        H = (S + S.T) / 2
        L = np.abs(np.linalg.eigvalsh(H)).max() + np.linalg.norm(W.T @ W, 2)

        def f(x, H=H, W=W):
            return float(x @ H @ x) / 2 + float(np.cos(W @ x).sum())

        def problem(x, k, H=H, W=W, f=f):
            return f(x[0]), [H @ x[0] - W.T @ np.sin(W @ x[0])]

        cs = 0.1 ** (np.arange(steps + 2) / steps) if case == "c falls" else np.full(steps + 2, 0.3)
        etas = 0.9 ** np.arange(steps + 1) / L if case == "eta falls" else np.full(steps + 1, 1.2 / L)
        start = [rng.normal(size=4)]
        ours, _ = oracles.sgd_spa(start, problem, steps, momentum=lambda t, cs=cs: 1 - cs[t], schedule=etas.tolist())
        x = [start[0], start[0], *(a for [a] in ours)]  # x[k + 1] is x_k
        V = [
            f(x[k + 1]) + (1 - cs[k]) / (2 * cs[k] * etas[k]) * ((x[k + 1] - x[k]) ** 2).sum() for k in range(steps + 1)
        ]
        for k in range(steps):
            q = (
                1 / (etas[k] * cs[k + 1])
                - L / 2
                - (1 - cs[k]) / (2 * cs[k] * etas[k])
                - (1 - cs[k + 1]) / (2 * cs[k + 1] * etas[k + 1])
            )
            loss = q * ((x[k + 2] - x[k + 1]) ** 2).sum()
            assert V[k] - V[k + 1] >= loss > 0
            tight = min(tight, (V[k] - V[k + 1]) / loss)
    assert tight < 2  # a bound twice as strong does not hold


# Multiplicative updates

BASES = {
    "sgd": ({"base": "sgd", "momentum": 0.8}, oracles.sgd, {"momentum": 0.8}),
    "nesterov": (
        {"base": "sgd", "momentum": 0.8, "nesterov": True},
        oracles.sgd,
        {"momentum": 0.8, "nesterov": True},
    ),
    "adam": ({"base": "adam", "betas": (0.8, 0.99)}, oracles.adam, {"betas": (0.8, 0.99)}),
}
bases = pytest.mark.parametrize(("ours", "base", "theirs"), BASES.values(), ids=list(BASES))


@bases
def test_hybrid_without_its_multiplicative_part_is_the_base(ours, base, theirs):
    options = {"weight_decay": 0.1, "groups": GROUPS, "schedule": WAVE}
    plain, _ = base(START, logistic, 20, lr=0.1, **theirs, **options)
    assert_same(oracles.multiplicative(START, logistic, 20, lr=0.1, mix=0.0, **ours, **options)[0], plain)
    slow = [{**GROUPS[0], "lr": 0.05 * 0.3}]
    plain, _ = base(START, logistic, 20, lr=0.03, **theirs, **{**options, "groups": slow})
    found, _ = oracles.multiplicative(START, logistic, 20, lr=0.1, mix=0.0, additive=0.3, **ours, **options)
    assert_same(found, plain)


def test_multiplicative_hybrid_is_torchs_optimizers_without_its_multiplicative_part():
    for options, optimizer, base in [
        ({"momentum": 0.9, "nesterov": True}, torch.optim.SGD, "sgd"),
        ({"betas": (0.7, 0.99)}, torch.optim.Adam, "adam"),
    ]:
        theirs = run_torch(optimizer, logistic, 20, lr=0.05, weight_decay=0.1, **options)
        ours, _ = oracles.multiplicative(START, logistic, 20, base=base, lr=0.05, mix=0.0, weight_decay=0.1, **options)
        assert_same(ours, theirs)


@bases
def test_hybrids_step_is_a_mean_of_both(ours, base, theirs):
    """On noise the direction knows nothing of x: the steps of each from one point."""
    plain, _ = base(START, noise, 20, lr=0.1, **theirs)
    mixed, _ = oracles.multiplicative(START, noise, 20, lr=0.1, mix=0.3, additive=0.5, eta_in=2.0, **ours)
    d = -steps_of(plain) / 0.1
    corrected = 1 - 0.8 ** np.arange(1, 21)[:, None] if ours["base"] == "adam" else 1.0
    before = vector([START, *mixed[:-1]])
    expected = -0.3 * 0.1 / corrected * np.abs(before) * np.tanh(2.0 * d * corrected) - 0.7 * 0.5 * 0.1 * d
    np.testing.assert_allclose(steps_of(mixed), expected, rtol=1e-10, atol=1e-13)


@bases
def test_power_rule_adds_to_the_logarithm(ours, base, theirs):
    plain, _ = base(START, noise, 20, lr=0.1, **theirs)
    powers, _ = oracles.multiplicative(START, noise, 20, lr=0.1, rule="power", **ours)
    d = -steps_of(plain) / 0.1
    corrected = 1 - 0.8 ** np.arange(1, 21)[:, None] if ours["base"] == "adam" else 1.0
    logarithms = np.log2(np.abs(vector([START, *powers])))
    expected = -np.sign(vector([START])) * 0.1 / corrected * np.tanh(d * corrected)
    np.testing.assert_allclose(np.diff(logarithms, axis=0), expected, rtol=1e-9, atol=1e-13)
    assert (np.sign(vector(powers)) == np.sign(vector([START]))).all()


def test_multiplicative_step_by_hand():
    step = partial(oracles.multiplicative, [np.array([2.0, 0.0, -2.0])], given([1.0, 1.0, 1.0]), 1, lr=0.1)
    [[x]], _ = step(base="sgd")
    np.testing.assert_allclose(x, [1.847681, 0.0, -2.152319], atol=5e-7)
    # Adam's first d is (1 - b1) sign(g), and lr is 1 / (1 - b1) times as large.
    [[x]], _ = step(base="adam", eps=0.0)
    np.testing.assert_allclose(x, [2 - 2 * np.tanh(0.1), 0.0, -2 - 2 * np.tanh(0.1)], rtol=1e-14)
    [[x]], _ = step(base="sgd", rule="power")
    np.testing.assert_allclose(x, [2 * 2 ** (-0.1 * np.tanh(1)), 0.0, -2 * 2 ** (0.1 * np.tanh(1))], rtol=1e-14)


@pytest.mark.parametrize("base", ["sgd", "adam"])
@pytest.mark.parametrize("rule", ["abs", "power"])
def test_multiplicative_steps_keep_signs_and_zeros_and_are_relative(base, rule):
    start = [np.where(START[0] > 0.5, 0.0, START[0]), START[1]]
    options = {"base": base, "rule": rule, "lr": 0.09}  # Adam's is 0.9 in its first step
    ours, _ = oracles.multiplicative(start, noise, 20, **options)
    assert (np.sign(vector(ours)) == np.sign(vector([start]))).all()
    scaled, _ = oracles.multiplicative([7 * a for a in start], noise, 20, **options)
    np.testing.assert_allclose(vector(scaled), 7 * vector(ours), rtol=1e-12)


def test_multiplicative_limits_of_the_inner_rate():
    run = partial(oracles.multiplicative, START, noise, 1, base="sgd")
    x, d = vector([START])[0], vector(NOISE[:1])[0]
    np.testing.assert_allclose(vector(run(lr=0.1, eta_in=1e9)[0])[0], x - 0.1 * np.abs(x) * np.sign(d), rtol=1e-13)
    small = 1e-3
    moved = vector(run(lr=0.1 / small, eta_in=small)[0])[0]
    np.testing.assert_allclose(moved, x - 0.1 * np.abs(x) * d, atol=1e-6)
    assert np.abs(moved - (x - 0.1 * np.abs(x) * d)).max() > 1e-9


def test_power_rule_has_no_hybrid():
    with pytest.raises(ValueError, match="no hybrid"):
        oracles.multiplicative(START, noise, 1, base="sgd", rule="power", mix=0.5)


# Random scaling and random points


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_random_scaling_is_the_base_with_a_random_schedule(base):
    """No state knows lr, and the factor multiplies the decay as well."""
    options = {"lr": 0.1, "weight_decay": 0.1, "groups": GROUPS}
    ours, _ = oracles.random_scaled(START, logistic, 30, base=base, factors=FACTORS, schedule=WAVE, **options)
    product = [s * w for s, w in zip(FACTORS, WAVE, strict=True)]
    if base == "adamw":
        theirs, _ = oracles.adamw(START, logistic, 30, schedule=product, **options)
    else:
        theirs, _ = oracles.random_scaled(START, logistic, 30, factors=[1.0] * 30, schedule=product, **options)
    assert_same(ours, theirs)
    with pytest.raises(ValueError, match="adamw"):
        oracles.random_scaled(START, logistic, 1, base="adam", factors=FACTORS)


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_random_points_at_1_are_the_base_and_at_0_one_step_behind(base):
    options = {"base": base, "lr": 0.1, "groups": GROUPS, "schedule": WAVE}
    plain, _ = oracles.random_scaled(START, logistic, 20, factors=[1.0] * 20, weight_decay=0.1, **options)
    ours, scalars = oracles.random_point(START, logistic, 20, factors=lambda n: 1.0, weight_decay=0.1, **options)
    assert_same(ours, plain, tolerance=1e-14)
    assert_same(scalars["unscaled"], plain, tolerance=1e-14)
    ours, scalars = oracles.random_point(START, logistic, 20, factors=[0.0] * 20, **options)
    assert_same(ours, [START, *scalars["unscaled"][:-1]], tolerance=0)


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_random_points_lie_beside_the_path_of_the_base(base):
    uniform = np.random.default_rng(0).uniform(size=30).tolist()
    ours, scalars = oracles.random_point(START, logistic, 30, base=base, factors=uniform, lr=0.1)
    x, w = [START, *scalars["unscaled"]], [START, *ours]
    theirs, _ = oracles.random_scaled(
        START, lambda _, k: logistic(w[k - 1], k), 30, base=base, factors=[1.0] * 30, lr=0.1
    )
    assert_same(x[1:], theirs)
    between = vector(x[:-1]) + np.array(uniform)[:, None] * np.diff(vector(x), axis=0)
    np.testing.assert_allclose(vector(ours), between, rtol=1e-13, atol=1e-14)
    assert apart(ours, scalars["unscaled"]) > 1e-2


def test_random_points_decay_where_they_are():
    ours, scalars = oracles.random_point(
        START, lambda x, k: (0.0, [0 * a for a in x]), 20, factors=WAVE, lr=0.5, weight_decay=0.3
    )
    held = vector([START, *ours[:-1]])
    np.testing.assert_allclose(steps_of(scalars["unscaled"]), -0.15 * held, rtol=1e-10, atol=1e-14)


def test_gradients_at_random_points_are_a_step_in_the_mean():
    """E F'(x + s D) D = F(x + D) - F(x), s uniform on (0, 1), by Gauss and Legendre; of no other distribution."""

    def problem(x, k):
        return 0.0, [np.cos(x[0]) + 0.2 * x[0]]

    def F(x):
        return np.sin(x[0]) + 0.1 * x[0] ** 2

    nodes, weights = np.polynomial.legendre.leggauss(20)
    start, total = [np.array([0.7])], 0.0
    for node, weight in zip(nodes, weights, strict=True):
        ours, scalars = oracles.random_point(start, problem, 2, factors=[(node + 1) / 2, 1.0], lr=0.4, beta=0.0)
        D = scalars["unscaled"][0][0] - start[0]
        gradient = (scalars["unscaled"][0][0] - scalars["unscaled"][1][0]) / 0.4
        total += weight / 2 * gradient * D
    np.testing.assert_allclose(total, F(scalars["unscaled"][0]) - F(start), rtol=1e-13)
    assert abs(D) > 0.1 and ours


# NGN


@pytest.mark.parametrize("c", [0.1, 1.0, 20.0])
def test_ngn_is_the_proximal_step_on_a_round_bowl(c):
    ours, scalars = oracles.ngn([np.array([1.0, -2.0])], partial(bowl, 3.0), 10, lr=c)
    shrunk = np.outer((1 + 3 * c) ** -np.arange(1.0, 11), [1.0, -2.0])
    np.testing.assert_allclose(vector(ours), shrunk, rtol=1e-12)
    np.testing.assert_allclose(scalars["theta"], [1 / (1 + 3 * c)] * 10, rtol=1e-12)


def test_ngn_lies_between_its_cap_and_twice_polyaks_step():
    """1 / gamma is 1 / c and the inverse of Polyak's 2 (f - lb) / |g|^2, added: of each group in its own unit."""
    options = {"weight_decay": 0.1, "lb": 0.1, "groups": [{"indices": [1], "lr": 4e9}], "schedule": WAVE}
    ours, _ = oracles.ngn(START, logistic, 20, lr=1e10, **options)
    theirs, scalars = oracles.sps(START, logistic, 20, lr=1e10, c=0.5, **options)
    assert max(scalars["theta"]) < 1
    assert_same(ours, theirs, tolerance=1e-6)
    options["groups"] = [{"indices": [1], "lr": 0.05}]
    ours, scalars = oracles.ngn(START, logistic, 20, lr=0.1, **{**options, "lb": -1e10})
    theirs, _ = oracles.sgd(START, logistic, 20, lr=0.1, weight_decay=0.1, groups=options["groups"], schedule=WAVE)
    assert_same(ours, theirs, tolerance=1e-8)
    options["groups"] = [{"indices": [1], "lr": 1.3}]
    ours, scalars = oracles.ngn(START, logistic, 20, lr=2.0, **options)
    points = [START, *ours]
    for k, theta in enumerate(scalars["theta"]):
        f, grads = logistic(points[k], k + 1)
        gap = of_penalty(f, points[k]) - 0.1
        rates = [2.0 * WAVE[k], 1.3 * WAVE[k]]
        size = sum(c * ((g + 0.1 * a) ** 2).sum() for c, g, a in zip(rates, grads, points[k], strict=True))
        assert 1 / theta == pytest.approx(1 + size / (2 * gap), rel=1e-12)
        assert 0 < theta < 1


def test_ngns_decay_is_an_l2_penalty_in_the_loss():
    def penalised(x, k):
        loss, grads = logistic(x, k)
        return of_penalty(loss, x), [g + 0.1 * a for a, g in zip(x, grads, strict=True)]

    for momentum in (0.0, 0.8):
        ours, _ = oracles.ngn(START, logistic, 20, momentum=momentum, weight_decay=0.1)
        assert_same(ours, oracles.ngn(START, penalised, 20, momentum=momentum)[0])


def test_ngn_stands_still_at_its_bound_and_takes_the_cap_where_the_gradient_is_0():
    for lb in (1.0, 2.0):
        ours, scalars = oracles.ngn(START, noise, 5, lb=lb, momentum=0.5)
        assert_same(ours, [START] * 5, tolerance=1e-15)
        assert scalars["theta"] == [0.0] * 5
    _, scalars = oracles.ngn(START, lambda x, k: (1.0, [0 * a for a in x]), 5)
    assert scalars["theta"] == [1.0] * 5


def test_ngns_momentum_is_a_heavy_ball_of_its_steps():
    ours, scalars = oracles.ngn(START, logistic, 20, lr=3.0, momentum=0.8, schedule=WAVE)
    points = vector([START, START, *ours])
    for k, theta in enumerate(scalars["theta"]):
        x = [START, *ours][k]
        step = theta * 3.0 * WAVE[k] * vector([logistic(x, k + 1)[1]])[0]
        expected = points[k + 1] - 0.2 * step + 0.8 * (points[k + 1] - points[k])
        np.testing.assert_allclose(points[k + 2], expected, rtol=1e-10, atol=1e-12)
    low, _ = oracles.ngn(START, logistic, 20, lr=0.5, momentum=0.8, lb=-1e10, weight_decay=0.1)
    assert_same(low, oracles.sgd_spa(START, logistic, 20, lr=0.5, momentum=0.8, weight_decay=0.1)[0], tolerance=1e-8)


@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_ngns_fraction_of_lr_is_another_unit(momentum):
    """A group with a quarter of lr moves as with all of it, in units twice as long."""
    ours, left = oracles.ngn(START, logistic, 20, lr=2.0, momentum=momentum, groups=[{"indices": [1], "lr": 0.5}])
    theirs, right = oracles.ngn(
        [START[0], 2 * START[1]],
        lambda y, k: (lambda f, g: (f, [g[0], g[1] / 2]))(*logistic([y[0], y[1] / 2], k)),
        20,
        lr=2.0,
        momentum=momentum,
    )
    assert_same(ours, [[x[0], x[1] / 2] for x in theirs])
    np.testing.assert_allclose(left["theta"], right["theta"], rtol=1e-11)


# Decays of AdamW


@pytest.mark.parametrize("kind", ["cautious", "independent"])
def test_without_decay_adamw_decays_are_adam(kind):
    theirs = run_torch(torch.optim.Adam, logistic, 20, lr=0.05, betas=(0.8, 0.99), schedule=WAVE)
    ours, _ = oracles.adamw_decay(START, logistic, 20, kind=kind, lr=0.05, betas=(0.8, 0.99), schedule=WAVE)
    assert_same(ours, theirs)


def test_anchor_of_power_0_is_adam_and_no_decay_or_lr_moves_it():
    theirs, _ = oracles.adam(START, logistic, 20, lr=0.05)
    ours, _ = oracles.adamw_decay(START, logistic, 20, kind="anchored", lr=0.05, power=0.0, weight_decay=3.0)
    assert_same(ours, theirs)
    ours, _ = oracles.adamw_decay(START, lambda x, k: (0.0, [0 * a for a in x]), 20, kind="anchored")
    assert_same(ours, [START] * 20, tolerance=0)


@pytest.mark.parametrize("power", [1.0, 0.5, 2.0])
def test_anchored_decay_is_dual_averaging(power):
    """x_t = x_0 - (t + 1)^-p sum_i lr_i (i + 1)^p u_i: weights of the steps that grow, and no other pull."""
    adam, _ = oracles.adam(START, noise, 30, lr=1.0)
    u = -steps_of(adam)
    ours, _ = oracles.adamw_decay(
        START, noise, 30, kind="anchored", lr=0.1, power=power, schedule=WAVE, groups=[{"indices": [1], "lr": 0.03}]
    )
    rates = np.outer(WAVE[:30], [0.1] * 6 + [0.03] * 2)
    growing = np.arange(2, 32)[:, None] ** power
    expected = vector([START]) - np.cumsum(growing * rates * u, axis=0) / growing
    np.testing.assert_allclose(vector(ours), expected, rtol=1e-10, atol=1e-11)


def test_anchored_decay_is_sodas():
    """x <- x + step + (x_0 - x) / (k + 2), k = 0, 1, ..., with Adam's step on the run's own gradients."""
    ours, _ = oracles.adamw_decay(START, logistic, 30, kind="anchored", lr=0.05)
    points = [START, *ours]
    adam, _ = oracles.adam(START, lambda _, k: logistic(points[k - 1], k), 30, lr=0.05)
    for k, step in enumerate(steps_of(adam)):
        x, start = vector([points[k]])[0], vector([START])[0]
        np.testing.assert_allclose(vector(ours)[k], x + step + (start - x) / (k + 2), rtol=1e-11, atol=1e-12)


def test_cautious_decay_is_where_the_step_shrinks():
    options = {"lr": 0.1, "weight_decay": 0.5, "groups": GROUPS, "schedule": WAVE}
    ours, _ = oracles.adamw_decay(START, noise, 30, kind="cautious", **options)
    base = steps_of(oracles.adam(START, noise, 30, lr=0.1, groups=[{"indices": [1], "lr": 0.05}], schedule=WAVE)[0])
    before = vector([START, *ours[:-1]])
    rates = np.outer(WAVE[:30], [0.1 * 0.5] * 6 + [0.05 * 0.2] * 2)
    shrinks = base * before <= 0
    np.testing.assert_allclose(steps_of(ours), base - np.where(shrinks, rates * before, 0.0), rtol=1e-9, atol=1e-13)
    assert 0.2 < shrinks.mean() < 0.8
    # An element without a step decays.
    still, _ = oracles.adamw_decay(START, lambda x, k: (0.0, [0 * a for a in x]), 9, kind="cautious", **options)
    theirs, _ = oracles.adamw(START, lambda x, k: (0.0, [0 * a for a in x]), 9, **options)
    assert_same(still, theirs)


def test_independent_decay_does_not_know_lr():
    decayed, _ = oracles.adamw_decay(START, logistic, 20, kind="independent", lr=0.05, weight_decay=0.02)
    theirs = run_torch(torch.optim.AdamW, logistic, 20, lr=0.05, weight_decay=0.4)
    assert_same(decayed, theirs)
    groups = [{"indices": [1], "lr": 1e-3, "weight_decay": 0.2}]
    options = {"lr": 7.0, "weight_decay": 0.1, "groups": groups, "schedule": WAVE}
    still, _ = oracles.adamw_decay(START, lambda x, k: (0.0, [0 * a for a in x]), 9, kind="independent", **options)
    expected = [[START[0] * 0.9**k, START[1] * 0.8**k] for k in range(1, 10)]
    assert_same(still, expected)


def test_adamw_decay_knows_its_kinds_only():
    with pytest.raises(ValueError, match="cautious"):
        oracles.adamw_decay(START, logistic, 1, kind="coupled")


# Extrapolation

EXTRAPOLATED = {
    "sgd": ({"base": "sgd", "momentum": 0.8}, torch.optim.SGD, {"momentum": 0.8}),
    "adam": ({"base": "adam", "betas": (0.8, 0.99)}, torch.optim.Adam, {"betas": (0.8, 0.99)}),
}


def worker(w, x, k):
    """Other data at every worker; their mean is ``both``."""
    return logistic(x, 1000 * w + k)


def both(x, k):
    losses, grads = zip(*(worker(w, x, k) for w in range(2)), strict=True)
    return sum(losses) / 2, [sum(pair) / 2 for pair in zip(*grads, strict=True)]


TWO = [partial(worker, 0), partial(worker, 1)]


@pytest.mark.parametrize("direction", ["local", "global", "noise"])
@pytest.mark.parametrize(("ours", "optimizer", "theirs"), EXTRAPOLATED.values(), ids=list(EXTRAPOLATED))
def test_without_inner_lr_extrapolation_is_the_base_on_the_mean_gradient(ours, optimizer, theirs, direction):
    groups = [{"indices": [0]}, *GROUPS]
    options = {"lr": 0.1, "weight_decay": 0.1}
    plain = run_torch(optimizer, both, 20, groups, WAVE, **options, **theirs)
    found, scalars = oracles.extrapolated(
        START,
        TWO,
        20,
        inner_lr=0.0,
        direction=direction,
        noise=gaussian,
        groups=groups,
        schedule=WAVE,
        **options,
        **ours,
    )
    assert_same(found, plain)
    np.testing.assert_allclose(scalars["loss"], [both(x, k)[0] for k, x in enumerate([START, *found[:-1]], 1)])


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("direction", ["local", "global"])
def test_extrapolation_by_its_equations(direction, nesterov):
    options = {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.1}
    ours, scalars = oracles.extrapolated(
        START, TWO, 20, base="sgd", inner_lr=0.3, direction=direction, nesterov=nesterov, schedule=WAVE, **options
    )
    w, v, q = vector([START])[0], 0.0, [0.0, 0.0]
    problems = [flat(p)[0] for p in TWO]
    for k in range(20):
        lead = w - 0.1 * WAVE[k] * 0.8 * v if nesterov else w
        points = [lead - 0.3 * (q[j] if direction == "local" else (q[0] + q[1]) / 2) for j in range(2)]
        np.testing.assert_allclose(vector(scalars["points"][k]), points, rtol=1e-11, atol=1e-12)
        q = [problems[j]([points[j]], k + 1)[1][0] for j in range(2)]
        v = 0.8 * v + (q[0] + q[1]) / 2 + 0.1 * w
        w = w - 0.1 * WAVE[k] * v
        np.testing.assert_allclose(vector(ours)[k], w, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("base", ["sgd", "adam"])
def test_local_is_global_of_one_worker_and_of_workers_alike(base):
    run = partial(oracles.extrapolated, START, base=base, inner_lr=0.2, lr=0.05)
    one, _ = run(problem=[logistic], steps=20)
    for workers in (1, 3):
        for direction in ("local", "global"):
            assert_same(run(problem=logistic, steps=20, workers=workers, direction=direction)[0], one)
    local, other = run(problem=TWO, steps=20)[0], run(problem=TWO, steps=20, direction="global")[0]
    assert_same(local[:1], other[:1])
    assert apart(local, other) > 1e-4


def test_workers_have_no_order():
    run = partial(oracles.extrapolated, START, steps=20, base="adam", inner_lr=0.2)
    assert_same(run(problem=TWO)[0], run(problem=TWO[::-1])[0])


def test_extrapolation_of_adam_takes_adams_steps_on_the_gradients_ahead():
    groups = [{**LATE[0], "lr": 0.02}]
    options = {"lr": 0.05, "weight_decay": 0.1, "groups": groups}
    ours, scalars = oracles.extrapolated(START, TWO, 20, base="adam", inner_lr=0.3, **options)

    def ahead(_, k):
        pair = [worker(w, scalars["points"][k - 1][w], k)[1] for w in range(2)]
        return 0.0, [(a + b) / 2 for a, b in zip(*pair, strict=True)]

    assert_same(ours, oracles.adam(START, ahead, 20, **options)[0])
    # Where each looks: by its own gradient at the tensor's last step; a tensor that rests stays where it is.
    points = [START, *ours]
    for w in range(2):
        for i, acting in enumerate([range(20), [k for k in range(20) if LATE[0]["schedule"][k]]]):
            for k in range(20):
                past = [j for j in acting if j < k]
                look = np.zeros_like(START[i])
                if k in acting and past:
                    look = worker(w, scalars["points"][past[-1]][w], past[-1] + 1)[1][i]
                np.testing.assert_allclose(
                    scalars["points"][k][w][i], points[k][i] - 0.3 * look, rtol=1e-12, atol=1e-14
                )


def test_nesterovs_point_is_torchs_parameter():
    """With no inner step the gradients are taken at torch's iterates, a step of the momentum ahead."""
    theirs = run_torch(torch.optim.SGD, both, 20, lr=0.1, momentum=0.8, nesterov=True)
    _, scalars = oracles.extrapolated(START, TWO, 21, base="sgd", inner_lr=0.0, nesterov=True, lr=0.1, momentum=0.8)
    assert_same([points[0] for points in scalars["points"]], [START, *theirs])
    with pytest.raises(ValueError, match="Nesterov"):
        oracles.extrapolated(START, TWO, 1, base="adam", inner_lr=0.0, nesterov=True)


def test_noise_is_as_long_as_the_tensor_and_worker_by_worker():
    ours, scalars = oracles.extrapolated(
        START, TWO, 20, base="sgd", inner_lr=0.1, direction="noise", noise=gaussian, groups=LATE
    )
    points = [START, *ours]
    for k in range(20):
        for w in range(2):
            for i, xi in enumerate(gaussian(k + 1, w, START)):
                offset = scalars["points"][k][w][i] - points[k][i]
                if i == 1 and not LATE[0]["schedule"][k]:
                    assert (offset == 0).all()
                    continue
                length = np.linalg.norm(points[k][i])
                np.testing.assert_allclose(np.linalg.norm(offset), 0.1 * length, rtol=1e-12)
                assert (offset * xi).sum() == pytest.approx(-0.1 * length * np.linalg.norm(xi), rel=1e-11)


def test_extrapolation_solves_the_bilinear_game():
    def game(w, k):
        return float(w[0][0] * w[0][1]), [np.array([w[0][1], -w[0][0]])]

    run = partial(oracles.extrapolated, [np.ones(2)], game, 200, base="sgd", lr=0.3, momentum=0.0, workers=1)
    assert np.linalg.norm(run(inner_lr=0.0)[0][-1]) == pytest.approx(sqrt(2) * 1.09**100, rel=1e-10)
    assert np.linalg.norm(run(inner_lr=0.3)[0][-1]) == pytest.approx(4.2e-5, rel=0.02)


@pytest.mark.parametrize(("inner_lr", "largest"), [(0.0, 2.0), (0.1, 1.8), (0.3, 1.4), (0.5, 1.0)])
def test_extrapolations_largest_stable_rate(inner_lr, largest):
    """On a bowl of curvature 1: lr + 2 inner_lr < 2."""
    run = partial(
        oracles.extrapolated, [np.array([1.0])], partial(bowl, 1.0), 400, base="sgd", inner_lr=inner_lr, momentum=0.0
    )
    assert abs(run(lr=largest - 0.05)[0][-1][0][0]) < 1e-3
    assert abs(run(lr=largest + 0.05)[0][-1][0][0]) > 1e2


@pytest.mark.parametrize(("inner_lr", "variance"), [(0.0, 0.0526), (0.1, 0.0481), (0.3, 0.0414), (0.5, 0.0370)])
def test_extrapolations_stationary_variance(inner_lr, variance):
    """On a bowl with noise of variance 1 in each gradient: the squares of what one unit of noise leaves, summed."""

    def kicked(x, k):
        return 0.0, [x[0] + float(k == 1)]

    ours, _ = oracles.extrapolated(
        [np.zeros(1)], kicked, 500, base="sgd", inner_lr=inner_lr, lr=0.1, momentum=0.0, workers=1
    )
    assert (vector(ours) ** 2).sum() == pytest.approx(variance, abs=6e-5)

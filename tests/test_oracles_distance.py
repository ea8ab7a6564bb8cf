"""The oracles of D-Adaptation, Prodigy and DoG against closed forms, their papers' bounds and the laws of oracles."""

from functools import partial
from math import log2, sqrt

import numpy as np
import pytest
import test_oracles as laws
from test_oracles import NO_EPS, START, WAVE, assert_same, logistic, slope, vector

from untuned.testing import oracles

# Options under which each moves visibly within 20 steps.
EVERY = {
    "dadapt_da": (oracles.dadapt_da, {"d0": 0.1}),
    "dadapt_gd": (oracles.dadapt_gd, {"d0": 0.1, "G": 0.5, "weight_decay": 0.1}),
    "dadapt_sgd": (oracles.dadapt_sgd, {"d0": 0.01, "weight_decay": 0.1}),
    "dadapt_sgd momentum": (oracles.dadapt_sgd, {"d0": 0.01, "momentum": 0.9, "growth_rate": 1.5}),
    "dadapt_adagrad": (oracles.dadapt_adagrad, {"d0": 0.1, "momentum": 0.5, "weight_decay": 0.1}),
    "dadapt_lion": (oracles.dadapt_lion, {"d0": 0.01, "weight_decay": 0.1}),
    "dadapt_adan": (oracles.dadapt_adan, {"d0": 0.01}),
    "dadapt_adan no_prox": (oracles.dadapt_adan, {"d0": 0.1, "no_prox": True, "growth_rate": 1.1}),
    "prodigy_gd": (oracles.prodigy_gd, {"d0": 0.1, "G": 0.5}),
    "prodigy_da": (oracles.prodigy_da, {"d0": 0.1, "weight_decay": 0.1}),
    "resetting": (oracles.resetting, {"d0": 0.02, "weight_decay": 0.1}),
    "resetting_gd": (oracles.resetting_gd, {"d0": 0.05, "G": 0.5}),
    "dog": (oracles.dog, {"reps_rel": 0.05, "weight_decay": 0.1}),
    "dowg": (oracles.dowg, {"eps": 0.01, "weight_decay": 0.1}),
    "prodigy frozen": (oracles.prodigy, {"d0": 0.01, "freeze_after": 4}),
    "dadapt_adam frozen": (oracles.dadapt_adam, {"d0": 0.01, "freeze_after": 4}),
}
APART = {
    "ldog": (oracles.ldog, {"reps_rel": 0.05}),
    "prodigy tensor": (oracles.prodigy, {"d0": 0.01, "scope": "tensor"}),
    "dadapt_adam tensor": (oracles.dadapt_adam, {"d0": 0.01, "scope": "tensor"}),
    "prodigy sliced": (oracles.prodigy, {"d0": 0.01, "slice_p": 2}),
}
COUPLED = [
    *("dadapt_da", "dadapt_gd", "dadapt_sgd momentum", "dadapt_adagrad", "prodigy_gd", "prodigy_da"),
    *("resetting", "resetting_gd", "dog", "dowg", "ldog"),
]


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
@pytest.mark.parametrize("name", [*EVERY, *APART])
def test_law_of_all_oracles(law, name):
    law(*(EVERY | APART)[name])


@pytest.mark.parametrize("name", EVERY)
def test_splitting_a_tensor_changes_nothing(name):
    laws.test_splitting_a_tensor_changes_nothing(*EVERY[name])


@pytest.mark.parametrize("name", COUPLED)
def test_coupled_decay_is_the_gradient_of_an_l2_penalty(name):
    oracle, options = (EVERY | APART)[name]
    laws.test_coupled_decay_is_the_gradient_of_an_l2_penalty(
        oracle, {k: v for k, v in options.items() if k != "weight_decay"}
    )


@pytest.mark.parametrize(
    ("oracle", "options"),
    [
        (oracles.dadapt_adagrad, {"growth_rate": 1.0}),
        (oracles.dadapt_lion, {}),
        (oracles.dadapt_adan, {"growth_rate": 1.0}),
    ],
)
def test_tensor_paused_mid_run_leaves_every_sum_with_its_past(oracle, options):
    laws.test_tensor_paused_mid_run_leaves_every_sum_with_its_past(oracle, {"lr": 1e-3, "d0": 50.0, **options}, "d_hat")


@pytest.mark.parametrize("name", ["dadapt_da", "dadapt_gd", "prodigy_gd", "prodigy_da", "resetting", "resetting_gd"])
def test_paused_tensor_leaves_root_and_estimate_with_its_past(name):
    """The third gradient of two tensors is seen by the first alone, whose gradients are 3, 3, 3."""
    pause = [{"indices": [1], "schedule": [1.0, 1.0, 0.0]}]
    iterates, scalars = getattr(oracles, name)(
        [np.zeros(1), np.zeros(1)], slope([3.0], [4.0]), 3, d0=1.0, lr=1.0, groups=pause
    )
    assert scalars["d"] == [1.0] * 3
    if "gd" in name:
        steps = 3 / np.sqrt([25, 50, 27])
        expected, way = -np.cumsum(steps), steps.sum()
        d_hat = (way**2 - steps @ steps) / (2 * way)
    else:
        expected = [-3 / 5, -6 / sqrt(50), -9 / sqrt(27)]
        d_hat = 3 * (3 / 5 + 6 / sqrt(50)) / 9
    if name == "dadapt_da":
        d_hat = (81 / sqrt(27) - 9 * (1 / 5 + 1 / 5 + 1 / sqrt(18))) / (2 * 9)
    np.testing.assert_allclose([x[0][0] for x in iterates], expected, rtol=1e-14)
    assert scalars["d_hat"][-1] == pytest.approx(d_hat, rel=1e-13)


def test_paused_tensor_leaves_dadapt_sgd_with_its_past():
    pause = [{"indices": [1], "schedule": [1.0, 1.0, 0.0]}]
    _, scalars = oracles.dadapt_sgd([np.zeros(1), np.zeros(1)], slope([3.0], [4.0]), 3, d0=1.0, groups=pause)
    assert scalars["d_hat"] == pytest.approx([0, 1, 1.2], rel=1e-13)


def test_paused_tensor_leaves_dog_with_its_past():
    """All but the largest distance so far, here that of the first tensor alone."""
    pause = [{"indices": [1], "schedule": [1.0, 1.0, 0.0]}]
    iterates, scalars = oracles.dog(
        [np.zeros(1), np.zeros(1)], slope([3.0], [4.0]), 3, reps_rel=1.0, eps=NO_EPS, groups=pause
    )
    rbar = 3 / 5 + 3 / sqrt(50)
    np.testing.assert_allclose(scalars["rbar"], [1, 1, rbar], rtol=1e-14)
    np.testing.assert_allclose([x[0][0] for x in iterates], [-3 / 5, -rbar, -rbar - 3 * rbar / sqrt(27)], rtol=1e-14)


def test_paused_tensor_leaves_dowg_with_its_past():
    """eps = 1 adds 1 to every root, and no distance is above the first rbar, 1."""
    pause = [{"indices": [1], "schedule": [1.0, 1.0, 0.0]}]
    iterates, scalars = oracles.dowg([np.zeros(1), np.zeros(1)], slope([3.0], [4.0]), 3, eps=1.0, groups=pause)
    assert scalars["rbar"] == [1.0] * 3
    np.testing.assert_allclose([x[0][0] for x in iterates], -np.cumsum(3 / (np.sqrt([25, 50, 27]) + 1)), rtol=1e-14)


@pytest.mark.parametrize("name", [n for n in EVERY if n != "dadapt_sgd"] + ["ldog"])
def test_zero_gradients_before_the_first_leave_no_trace(name):
    oracle, options = (EVERY | APART)[name]
    options = {**options, "weight_decay": 0.0}
    late, scalars = oracle(
        START, lambda x, k: logistic(x, k - 3) if k > 3 else (0.0, [0 * a for a in x]), 13, **options
    )
    prompt, _ = oracle(START, logistic, 10, **options)
    assert_same(late[:3], [START] * 3, tolerance=0)
    assert_same(late[3:], prompt, tolerance=1e-13)
    if "d" in scalars:
        assert scalars["d"][:3] == [options["d0"]] * 3
        assert scalars["d_hat"][:3] == [0.0] * 3


# Units


NORMALISED = {
    "dadapt_adagrad",
    "dadapt_lion",
    "dadapt_adan",
    "dadapt_adan no_prox",
    "prodigy frozen",
    "dadapt_adam frozen",
}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("fraction", [0.2, 0.7])
def test_a_fraction_of_lr_is_another_unit(name, fraction):
    """y = x / f where each coordinate is normalised, else y = x / sqrt(f); the loss is loud, so that no eps is seen."""
    oracle, options = EVERY[name]
    unit = fraction if name in NORMALISED else sqrt(fraction)
    options = {**options, "weight_decay": 0.0}
    if "frozen" in name or "adan" in name:
        options["eps"] = NO_EPS

    def loud(x, k):
        return 0.0, [1e9 * g for g in logistic(x, k)[1]]

    def rescaled(y, k):
        grads = loud([y[0], unit * y[1]], k)[1]
        return 0.0, [grads[0], unit * grads[1]]

    slowed, a = oracle(START, loud, 20, groups=[{"indices": [1], "lr": fraction}], schedule=WAVE, **options)
    straight, b = oracle([START[0], START[1] / unit], rescaled, 20, schedule=WAVE, **options)
    full, _ = oracle(START, loud, 20, schedule=WAVE, **options)
    assert_same(slowed, [[x[0], unit * x[1]] for x in straight], 1e-9)
    for scalar in a:
        np.testing.assert_allclose(a[scalar], b[scalar], rtol=1e-9)
    assert np.abs(vector(slowed) - vector(full)).max() > 1e-3


def test_estimate_with_groups_stays_below_the_distance_in_their_units():
    rng = np.random.default_rng(0)
    A, solution = rng.normal(size=(20, 4)), rng.normal(size=4)

    def problem(x, k):
        residual = A @ (np.concatenate(x) - solution)
        return float(residual @ residual) / 2, [A.T[:2] @ residual, A.T[2:] @ residual]

    x0 = [np.zeros(2), np.zeros(2)]
    distance = sqrt(float(solution[:2] @ solution[:2]) + float(solution[2:] @ solution[2:]) / 0.04)
    for oracle in BOUNDED.values():
        _, scalars = oracle(x0, problem, 300, d0=1e-2, groups=[{"indices": [1], "lr": 0.04}])
        assert 0.1 * distance < scalars["d"][-1] <= distance


# From the whole history


def before(scalar, start):
    return np.array([start, *scalar[:-1]])


STEPS = 80
RATES = 0.8 + 0.4 * np.sin(np.arange(STEPS))
RNG = np.random.default_rng(0)
DRIFT = [[1 + 0.5 * RNG.normal(size=a.shape) for a in START] for _ in range(STEPS)]


def drift(x, k):
    """Gradients that do not depend on the parameters: a direction, and noise."""
    return 0.0, DRIFT[k - 1]


@pytest.mark.parametrize(
    ("name", "G"),
    [(n, 0.0) for n in ("dadapt_da", "dadapt_gd", "dadapt_sgd", "prodigy_gd", "prodigy_da")]
    + [(n, 3.0) for n in ("dadapt_gd", "prodigy_gd", "prodigy_da")],
)
def test_estimate_and_step_from_all_gradients(name, G):
    """The equations with their sums written out, given the d of the steps before."""
    d0, x0 = 0.1, vector([START])[0]
    options = {"G": G} if G else {}
    iterates, scalars = getattr(oracles, name)(START, drift, STEPS, d0=d0, lr=0.5, schedule=RATES, **options)
    g, x, lr = vector(DRIFT), vector([START, *iterates]), 0.5 * RATES
    d, new_d = before(scalars["d"], d0), np.array(scalars["d"])
    assert new_d[-1] > 1.5 * d0
    squares = (g**2).sum(1)
    to_origin = (g * (x0 - x[:-1])).sum(1)
    for k in range(1, STEPS + 1):
        if name == "dadapt_da":
            w = d[:k] * lr[:k]
            gamma = 1 / np.sqrt(squares[0] + np.array([squares[1:i].sum() for i in range(k)] + [squares[1:k].sum()]))
            s = w @ g[:k]
            d_hat = (gamma[k] * s @ s - (gamma[:k] * w**2 * squares[:k]).sum()) / (2 * np.linalg.norm(s))
            point = x0 - gamma[k] * s
        elif name == "prodigy_da":
            w = d[:k] ** 2 * lr[:k]
            d_hat = w @ to_origin[:k] / np.linalg.norm(w @ g[:k])
            point = x0 - w @ g[:k] / sqrt((new_d[k - 1] * G) ** 2 + d[:k] ** 2 @ squares[:k])
        else:
            if name == "dadapt_gd":
                eta = d * lr / np.sqrt(G**2 + np.cumsum(squares))
            elif name == "dadapt_sgd":
                eta = d * lr / sqrt(squares[0])
            else:
                eta = d**2 * lr / np.sqrt(d**2 * G**2 + np.cumsum(d**2 * squares))
            point = x0 - eta[:k] @ g[:k]
            # Equal to sum eta_i <g_i, x_0 - x_i> by telescoping: the two published forms of DAdaptSGD are one.
            distance = np.linalg.norm(point - x0)
            d_hat = (distance**2 - eta[:k] ** 2 @ squares[:k]) / distance * (1 if name == "dadapt_sgd" else 0.5)
        np.testing.assert_allclose(x[k], point, rtol=1e-10, atol=1e-13)
        assert scalars["d_hat"][k - 1] == pytest.approx(d_hat, rel=1e-9, abs=1e-14)
        assert scalars["d"][k - 1] == max(d[k - 1], scalars["d_hat"][k - 1])


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_dadapt_adagrad_from_all_gradients(momentum):
    iterates, scalars = oracles.dadapt_adagrad(
        START, drift, STEPS, d0=0.1, lr=0.5, eps=0.1, momentum=momentum, schedule=RATES
    )
    g, x, w = vector(DRIFT), vector([START, *iterates]), before(scalars["d"], 0.1) * 0.5 * RATES
    A = np.sqrt(1e-6 + np.cumsum(g**2, axis=0)) + 0.1
    for k in range(1, STEPS + 1):
        s = w[:k] @ g[:k]
        d_hat = ((s**2 / A[k - 1]).sum() - (w[:k, None] ** 2 * g[:k] ** 2 / A[:k]).sum()) / np.abs(s).sum()
        assert scalars["d_hat"][k - 1] == pytest.approx(d_hat, rel=1e-9, abs=1e-14)
        z = x[0] - s / A[k - 1]
        np.testing.assert_allclose(x[k], momentum * x[k - 1] + (1 - momentum) * z, rtol=1e-10, atol=1e-13)
    assert scalars["d"][-1] > 0.2


@pytest.mark.parametrize(
    ("oracle", "options", "start"),
    [
        (oracles.dog, {"reps_rel": 0.1, "eps": 0.5}, 0.1 * (1 + np.linalg.norm(vector([START])))),
        (oracles.dowg, {"eps": 0.09}, 0.3),
    ],
)
def test_dog_and_dowg_from_all_gradients(oracle, options, start):
    g, x0 = vector(DRIFT), vector([START])[0]
    iterates, scalars = oracle(START, drift, STEPS, lr=0.5, schedule=RATES, **options)
    x = vector([START, *iterates])
    rbar = np.maximum.accumulate(np.maximum(np.linalg.norm(x[:-1] - x0, axis=1), start))
    np.testing.assert_allclose(scalars["rbar"], rbar, rtol=1e-12)
    assert rbar[1] == start < rbar[-1]
    if oracle is oracles.dog:
        eta = rbar / np.sqrt(np.cumsum((g**2).sum(1)) + 0.5)
    else:
        eta = rbar**2 / (np.sqrt(np.cumsum(rbar**2 * (g**2).sum(1))) + 0.09)
    eta = 0.5 * RATES * eta
    np.testing.assert_allclose(np.diff(x, axis=0), -eta[:, None] * g, rtol=1e-9, atol=1e-14)


# D-Adaptation


def test_dadapt_sgd_on_a_constant_gradient():
    _, scalars = oracles.dadapt_sgd([np.zeros(3)], slope([1.0, -2.0, 2.0]), 40, d0=1.0)
    expected = [1, 1, 2, 3.6, 6.279069767441861]
    np.testing.assert_allclose(scalars["d"][:5], expected, rtol=1e-14)
    assert scalars["d"][5] == pytest.approx(10.887777, rel=1e-7)
    assert scalars["d"][-1] / scalars["d"][-2] == pytest.approx(sqrt(3), rel=1e-9)


def test_dadapt_sgd_momentum_averages_the_points_without_it():
    """Where the gradients do not depend on the parameters."""
    averaged, a = oracles.dadapt_sgd(START, drift, STEPS, d0=0.1, momentum=0.7, schedule=RATES)
    points, b = oracles.dadapt_sgd(START, drift, STEPS, d0=0.1, schedule=RATES)
    assert a == b
    expected = vector([START])[0]
    for x, z in zip(vector(averaged), vector(points), strict=True):
        expected = 0.7 * expected + 0.3 * z
        np.testing.assert_allclose(x, expected, rtol=1e-12)


def test_dadapt_sgd_decay_counts_in_the_first_norm():
    """At zero loss gradient only the decay pulls, and its size cancels in the first step."""
    iterates, _ = oracles.dadapt_sgd([np.array([3.0, 4.0])], slope([0.0, 0.0]), 1, d0=0.5, weight_decay=7.0)
    np.testing.assert_allclose(iterates[0][0], [3.0 - 0.5 * 0.6, 4.0 - 0.5 * 0.8], rtol=1e-14)


def absolute(x, k):
    return float(np.abs(x[0]).sum()), [np.sign(x[0])]


def test_dual_averaging_on_the_absolute_value():
    _, scalars = oracles.dadapt_da([np.ones(1)], absolute, 100, d0=0.1)
    expected = [0, 0.02071, 0.04148, 0.05894, 0.07396, 0.08721]
    np.testing.assert_allclose(scalars["d_hat"][:6], expected, atol=5e-6)
    assert scalars["d_hat"][1] == pytest.approx(0.1 * (sqrt(2) - 1) / 2, rel=1e-13)
    assert scalars["d"][:6] == [0.1] * 6
    assert scalars["d"][-1] == pytest.approx(0.50032, abs=5e-6)


def test_gradient_descent_forms_on_a_constant_gradient():
    """While d stays: steps 1, 1/sqrt 2, 1/sqrt 3 of d, so that the estimates follow by hand."""
    second = 1 + 1 / sqrt(2)
    numerator = 1 / sqrt(2) + second / sqrt(3)
    for oracle in (oracles.dadapt_gd, oracles.prodigy_gd):
        iterates, scalars = oracle([np.zeros(2)], slope([3.0, 4.0]), 3, d0=0.5)
        distances = [0.5 * a for a in (1, second, second + 1 / sqrt(3))]
        np.testing.assert_allclose(np.linalg.norm(vector(iterates), axis=1), distances, rtol=1e-14)
        expected = [0, 0.5 * (sqrt(2) - 1), 0.5 * numerator / (second + 1 / sqrt(3))]
        np.testing.assert_allclose(scalars["d_hat"], expected, rtol=1e-13)
    iterates, _ = oracles.prodigy_gd([np.zeros(2)], slope([3.0, 4.0]), 1, d0=0.5, lr=0.1, G=12.0)
    np.testing.assert_allclose(iterates[0][0], -0.1 * 0.5 * np.array([3.0, 4.0]) / 13, rtol=1e-14)


def test_dadapt_lion_on_a_constant_gradient():
    """u = sign g always, so every sum is of powers of sqrt b2 = 0.9, each with its lr."""
    iterates, scalars = oracles.dadapt_lion(
        [np.ones(2)],
        slope([5.0, -0.1]),
        3,
        d0=1.0,
        lr=0.5,
        betas=(0.9, 0.81),
        weight_decay=0.1,
        schedule=[1.0, 2.0, 1.0],
    )
    s1, s2, s3 = 0.5, 0.9 * 0.5 + 1.0, 0.81 * 0.5 + 0.9 * 1.0 + 0.5
    np.testing.assert_allclose(scalars["d_hat"], [0, 1.0 * s1 / s2, (0.9 * 1.0 * s1 + 0.5 * s2) / s3], rtol=1e-13)
    x = [1.0, 1.0]
    for h, point in zip([0.5, 1.0, 0.5], iterates, strict=True):
        x = [(1 - 0.1 * h) * x[0] - h, (1 - 0.1 * h) * x[1] + h]
        np.testing.assert_allclose(point[0], x, rtol=1e-14)


@pytest.mark.parametrize(("c", "sign"), [(0.044, 1.0), (0.046, -1.0)])
def test_dadapt_lion_momentum_is_scaled_by_d_and_its_gradient_is_not(c, sign):
    grads = [1.0, -c]
    iterates, _ = oracles.dadapt_lion([np.zeros(1)], lambda x, k: (0.0, [np.array([grads[k - 1]])]), 2, d0=0.5)
    np.testing.assert_allclose(vector(iterates)[:, 0], [-0.5, -0.5 - 0.5 * sign], rtol=1e-14)


def test_decoupled_decay_goes_with_the_lr_of_its_group():
    """Where no gradient pulls, the step is the decay alone."""
    groups = [{"indices": [1], "lr": 0.5, "weight_decay": 0.4}]
    for oracle, kept in [
        (oracles.dadapt_lion, 1 - 0.1 * 0.5 * 0.4),
        (oracles.dadapt_adan, 1 / (1 + 0.1 * 0.5 * 0.4)),
        (partial(oracles.dadapt_adan, no_prox=True), 1 - 0.1 * 0.5 * 0.4),
    ]:
        iterates, _ = oracle([np.ones(1), np.ones(1)], slope([1.0], [0.0]), 1, d0=0.1, groups=groups)
        assert iterates[0][1][0] == pytest.approx(kept, rel=1e-14)


@pytest.mark.parametrize("no_prox", [False, True])
def test_dadapt_adan_first_three_steps(no_prox):
    """From the weights of each average, at a constant d and an lr that changes."""
    g, change, h, decay = np.array([1.0, 3.0, -2.0]), np.array([0.0, 2.0, -5.0]), np.array([0.05, 0.15, 0.1]), 0.4
    b1, b2, b3 = betas = (0.9, 0.8, 0.96)
    iterates, scalars = oracles.dadapt_adan(
        [np.array([2.0])],
        lambda x, k: (0.0, [g[k - 1 : k]]),
        3,
        d0=0.1,
        lr=0.5,
        betas=betas,
        eps=0.01,
        weight_decay=decay,
        no_prox=no_prox,
        growth_rate=1.0,
        schedule=[1.0, 3.0, 2.0],
    )
    x, A, s, r = 2.0, 0.01, 0.0, 0.0
    for k in (1, 2, 3):
        ago = np.arange(k)[::-1]
        r = b3 * r + (1 - b3) * h[k - 1] * g[k - 1] * s / A
        s = (1 - b3) * b3**ago @ (h * g)[:k]
        A = sqrt((1 - b3) * b3**ago @ ((g + b2 * change) ** 2)[:k]) + 0.01
        m, n = (1 - b1) * b1**ago @ (h * g)[:k], (1 - b2) * b2**ago @ (h * change)[:k]
        step, shrink = (m + b2 * n) / A, h[k - 1] * decay
        x = (1 - shrink) * x - step if no_prox else (x - step) / (1 + shrink)
        assert iterates[k - 1][0][0] == pytest.approx(x, rel=1e-13)
        assert scalars["d_hat"][k - 1] == pytest.approx(2 * b3 / (1 - b3) * r / abs(s), rel=1e-13)


def test_dadapt_adam_estimate_weighs_each_gradient_with_its_lr():
    """The constant gradient 1 at d = 0.1, lr 0.5 and 1.5."""
    _, scalars = oracles.dadapt_adam([np.zeros(1)], slope([1.0]), 2, d0=0.1, lr=0.5, eps=0.01, schedule=[1.0, 3.0])
    sb = sqrt(0.999)
    s1, s2 = (1 - sb) * 0.05, (1 - sb) * (sb * 0.05 + 0.15)
    assert scalars["d_hat"] == pytest.approx([0, 0.15 * s1 / (sqrt(0.001) + 0.01) / s2], rel=1e-11)


@pytest.mark.parametrize(
    ("oracle", "options", "tolerance"),
    [
        (oracles.dadapt_sgd, {"momentum": 0.9}, 1e-12),
        (oracles.dadapt_lion, {}, 1e-12),
        (oracles.dadapt_da, {}, 1e-12),
        (oracles.dadapt_gd, {}, 1e-12),
        (oracles.dadapt_adan, {"eps": NO_EPS}, 1e-10),
        (oracles.prodigy_gd, {}, 1e-12),
        (oracles.prodigy_da, {}, 1e-12),
        (oracles.resetting, {}, 1e-12),
        (oracles.resetting_gd, {}, 1e-12),
        (oracles.dog, {"eps": NO_EPS}, 1e-12),
        (oracles.ldog, {"eps": NO_EPS}, 1e-12),
    ],
)
def test_scale_of_the_loss_is_ignored(oracle, options, tolerance):
    def louder(x, k):
        return 1e3 * logistic(x, k)[0], [1e3 * g for g in logistic(x, k)[1]]

    start = {"reps_rel": 0.05} if "eps" in options and oracle is not oracles.dadapt_adan else {"d0": 0.05}
    quiet, _ = oracle(START, logistic, 30, **start, **options)
    loud, _ = oracle(START, louder, 30, **start, **options)
    assert np.abs(vector(quiet)[-1] - vector([START])).max() > 1e-2
    assert_same(loud, quiet, tolerance)


GROWING = ["dadapt_da", "dadapt_gd", "dadapt_sgd", "dadapt_adagrad", "dadapt_adan", "prodigy_gd", "prodigy_da"]


@pytest.mark.parametrize("name", GROWING)
def test_growth_rate_bounds_every_rise(name):
    _, scalars = getattr(oracles, name)([np.zeros(3)], slope([1.0, -2.0, 2.0]), 40, d0=1e-2, growth_rate=1.05)
    d, d_hat = before(scalars["d"], 1e-2), np.array(scalars["d_hat"])
    np.testing.assert_allclose(scalars["d"], np.maximum(d, np.minimum(d_hat, 1.05 * d)), rtol=1e-14)
    assert (d_hat > 1.05 * d).sum() > 5


# What convexity promises


BOUNDED = {
    "dadapt_da": oracles.dadapt_da,
    "dadapt_gd": oracles.dadapt_gd,
    "dadapt_gd G": partial(oracles.dadapt_gd, G=1.0),
    "prodigy_gd": oracles.prodigy_gd,
    "prodigy_gd G": partial(oracles.prodigy_gd, G=1.0),
    "prodigy_da": oracles.prodigy_da,
    "prodigy_da G": partial(oracles.prodigy_da, G=1.0),
    "resetting": oracles.resetting,
    "resetting_gd": oracles.resetting_gd,
    "resetting G": partial(oracles.resetting, G=1.0),
}


def least_squares(A, solution, x, k):
    residual = A @ (x[0] - solution)
    return float(residual @ residual) / 2, [A.T @ residual]


def sloped(inputs, labels, x, k):
    margins = labels * (inputs @ x[0])
    slopes = -labels / (1 + np.exp(margins)) / len(labels)
    return float(np.log1p(np.exp(-margins)).mean()) + 0.05 * float(x[0] @ x[0]), [inputs.T @ slopes + 0.1 * x[0]]


def convex_problems():
    """-> problem, x0, distance to its solution."""
    yield absolute, np.array([1.0]), 1.0
    for seed in range(3):
        rng = np.random.default_rng(seed)
        A, solution, x0 = rng.normal(size=(20, 4)), rng.normal(size=4), rng.normal(size=4)
        yield partial(least_squares, A, solution), x0, float(np.linalg.norm(x0 - solution))
        inputs, labels = rng.normal(size=(30, 4)), np.sign(rng.normal(size=30))
        problem = partial(sloped, inputs, labels)
        minimiser = np.zeros(4)
        for _ in range(3000):
            minimiser = minimiser - 0.2 * problem([minimiser], 0)[1][0]
        yield problem, x0, float(np.linalg.norm(x0 - minimiser))


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("name", BOUNDED)
def test_estimate_stays_below_the_distance_on_convex_losses(name, scheduled):
    for problem, x0, distance in convex_problems():
        lrs = np.random.default_rng(9).uniform(0.05, 2.0, 300) if scheduled else None
        d0 = 1e-2 * distance
        _, scalars = BOUNDED[name]([x0], problem, 300, d0=d0, schedule=lrs)
        d = np.array(scalars["d"])
        assert (np.diff(d) >= 0).all()
        assert 0.05 * distance < d[-1] <= distance * (1 + 1e-12)
        if "resets" in scalars:
            assert 1 <= scalars["resets"][-1] <= log2(distance / d0) + 1


def test_dadapt_sgd_estimate_stays_below_twice_the_distance():
    reached = []
    for problem, x0, distance in convex_problems():
        _, scalars = oracles.dadapt_sgd([x0], problem, 300, d0=1e-2 * distance)
        reached.append(scalars["d"][-1] / distance)
    assert max(reached) <= 2
    assert min(reached) > 0.3


# Resetting


@pytest.mark.parametrize("oracle", [oracles.resetting, oracles.resetting_gd])
def test_a_reset_is_a_fresh_start_with_the_estimate(oracle):
    def problem(x, k):
        return logistic(x, k % 3)

    options = {"lr": 3.0, "weight_decay": 0.1, "G": 0.3}
    iterates, scalars = oracle(START, problem, STEPS, d0=0.005, **options)
    d, resets = before(scalars["d"], 0.005), np.diff([0, *scalars["resets"]])
    at = np.flatnonzero(resets)
    assert len(at) >= 2
    assert at[-1] < STEPS - 5
    assert set(resets) == {0, 1}
    assert (np.array(scalars["d"])[resets == 0] == d[resets == 0]).all()
    for k in at:
        assert_same([iterates[k]], [START], tolerance=0)
        assert scalars["d"][k] == scalars["d_hat"][k] > 2 * d[k]
        fresh, again = oracle(
            START, lambda x, j, k=k: problem(x, j + k + 1), STEPS - 1 - k, d0=scalars["d"][k], **options
        )
        assert_same(iterates[k + 1 :], fresh, tolerance=0)
        assert scalars["d"][k + 1 :] == again["d"]


def test_resetting_moves_by_dual_averaging_within_an_epoch():
    """d_hat from gamma_i lr_i <g_i, s_i>, at an lr so small that no reset comes."""
    lr = 0.2 * RATES
    iterates, scalars = oracles.resetting(START, drift, STEPS, d0=5.0, lr=0.2, schedule=RATES, G=2.0)
    assert scalars["resets"][-1] == 0
    g = vector(DRIFT)
    s = np.cumsum(lr[:, None] * g, axis=0)
    gamma = 5.0 / np.sqrt(4.0 + np.cumsum((g**2).sum(1)))
    np.testing.assert_allclose(vector(iterates), vector([START]) - gamma[:, None] * s, rtol=1e-11, atol=1e-13)
    terms = np.concatenate([[0.0], gamma[:-1] * lr[1:] * (g[1:] * s[:-1]).sum(1)])
    np.testing.assert_allclose(scalars["d_hat"], np.cumsum(terms) / np.linalg.norm(s, axis=1), rtol=1e-10, atol=1e-14)


def test_resetting_by_gradient_descent_is_dadapt_gd_within_an_epoch():
    options = {"d0": 5.0, "lr": 0.2, "G": 2.0, "schedule": RATES, "groups": [{"indices": [0], "lr": 0.1}]}
    ours, a = oracles.resetting_gd(START, drift, STEPS, **options)
    theirs, b = oracles.dadapt_gd(START, drift, STEPS, growth_rate=1.0, **options)
    assert a["resets"][-1] == 0
    assert_same(ours, theirs, tolerance=0)
    assert a["d_hat"] == b["d_hat"]


# Prodigy and D-Adapt Adam: scope, freezing, slices


def separable(x, k):
    """Each tensor has a loss of its own: a noisy quadratic of another curvature."""
    rng = np.random.default_rng(k)
    return 0.0, [10.0**-i * (a - 1) + 0.3 * rng.normal(size=a.shape) for i, a in enumerate(x)]


THREE = [*START, np.array([2.0, -3.0, 0.5])]


@pytest.mark.parametrize(
    ("oracle", "options"),
    [
        (oracles.prodigy, {"d0": 1e-2, "use_bias_correction": True, "weight_decay": 0.1}),
        (oracles.dadapt_adam, {"d0": 1e-2, "decouple": True, "weight_decay": 0.1, "freeze_after": 9}),
        (oracles.dog, {"reps_rel": 0.05}),
    ],
)
@pytest.mark.parametrize("scope", ["tensor", "group"])
def test_scope_is_a_method_for_each(oracle, options, scope):
    groups = [{"indices": [2, 0], "lr": 0.5, "schedule": [1.0] * 5 + [0.0] * 3 + [1.0] * 12}]
    spans = [[0], [1], [2]] if scope == "tensor" else [[2, 0], [1]]
    together, scalars = oracle(THREE, separable, 20, scope=scope, groups=groups, **options)
    for a, span in enumerate(spans):
        lr = {"lr": 0.5, "schedule": groups[0]["schedule"]} if 1 not in span else {}

        def part(x, k, span=span):
            whole = [x[span.index(i)] if i in span else np.zeros_like(b) for i, b in enumerate(THREE)]
            return 0.0, [separable(whole, k)[1][i] for i in span]

        alone, expected = oracle([THREE[i] for i in span], part, 20, **lr, **options)
        assert_same([[x[i] for i in span] for x in together], alone, 1e-13)
        for name in scalars:
            np.testing.assert_allclose([row[a] for row in scalars[name]], expected[name], rtol=1e-12)
    estimates = scalars["rbar" if oracle is oracles.dog else "d"]
    assert len(estimates[-1]) == len(set(estimates[-1])) == len(spans)
    model, _ = oracle(THREE, separable, 20, groups=groups, **options)
    assert np.abs(vector(model) - vector(together)).max() > 1e-3


@pytest.mark.parametrize("oracle", [oracles.prodigy, oracles.dadapt_adam])
def test_freeze_after_stops_the_estimate_and_nothing_else(oracle):
    """Steps are counted by the estimate: one with lr 0 everywhere is none."""
    rests = [0.0 if k in (3, 4) else 1.0 for k in range(30)]
    free, a = oracle(START, drift, 30, d0=1e-3, schedule=rests)
    frozen, b = oracle(START, drift, 30, d0=1e-3, schedule=rests, freeze_after=8)
    assert b["d"][:10] == a["d"][:10]
    assert set(b["d"][9:]) == {a["d"][9]}
    assert b["d_hat"][11] > b["d"][11]
    assert a["d"][10] > a["d"][9] > a["d"][8]
    # The step itself uses the d from before, so that the first frozen d moves the parameters one step later.
    assert_same(frozen[:10], free[:10], tolerance=0)
    assert np.abs(vector(frozen)[-1] - vector(free)[-1]).max() > 1e-3
    _, c = oracle(START, drift, 30, d0=1e-3, freeze_after=0)
    assert set(c["d"]) == {1e-3}


@pytest.mark.parametrize("slice_p", [2, 3, 7, 11])
def test_prodigy_slices_of_equal_entries_give_the_same_estimate(slice_p):
    def alike(x, k):
        return 0.0, [np.full_like(a, a.flat[0] - 1 - i) for i, a in enumerate(x)]

    x0 = [np.zeros((33, 7)), np.zeros(77)]
    whole, a = oracles.prodigy(x0, alike, 40, d0=1e-3)
    sliced, b = oracles.prodigy(x0, alike, 40, d0=1e-3, slice_p=slice_p)
    assert a["d"][-1] > 100 * a["d"][0]
    if 77 % slice_p == 0:
        # 231 = 3 * 77, so that both tensors keep the same part: the weights of the two stay.
        np.testing.assert_allclose(b["d"], a["d"], rtol=1e-12)
        assert_same(sliced, whole, 1e-12)
    one, c = oracles.prodigy(x0[:1], alike, 40, d0=1e-3)
    part, d = oracles.prodigy(x0[:1], alike, 40, d0=1e-3, slice_p=slice_p)
    np.testing.assert_allclose(d["d"], c["d"], rtol=1e-12)
    assert_same(part, one, 1e-12)


def test_prodigy_estimate_sees_only_its_slice():
    rng = np.random.default_rng(0)
    noise = [1 + rng.normal(size=(3, 4)) for _ in range(20)]
    unseen = np.ones(12)
    unseen[::5] = 0
    other = [g + 9 * rng.normal(size=(3, 4)) * unseen.reshape(3, 4) for g in noise]
    runs = [
        oracles.prodigy([np.zeros((3, 4))], lambda x, k, n=n: (0.0, [n[k - 1]]), 20, d0=1e-3, slice_p=5)
        for n in (noise, other)
    ]
    assert runs[0][1] == runs[1][1]
    assert runs[0][1]["d"][-1] > 2e-3
    # The elements 0, 5, 10 are a tensor of their own.
    alone, scalars = oracles.prodigy([np.zeros(3)], lambda x, k: (0.0, [noise[k - 1].ravel()[::5]]), 20, d0=1e-3)
    assert scalars["d"] == pytest.approx(runs[0][1]["d"], rel=1e-13)
    np.testing.assert_allclose(vector(runs[0][0])[:, ::5], vector(alone), rtol=1e-12)
    assert np.abs(vector(runs[0][0]) - vector(runs[1][0])).max() > 1e-4


# DoG


def test_dog_on_a_constant_gradient():
    """The distance grows by 1 + 1/sqrt(k) a step."""
    start = 0.1 * (1 + 5)
    iterates, scalars = oracles.dog([np.array([3.0, 4.0])], slope([0.6, 0.8]), 30, reps_rel=0.1, eps=NO_EPS)
    distances = np.linalg.norm(vector(iterates) - [3.0, 4.0], axis=1)
    growth = 1 + 1 / np.sqrt(np.arange(2, 31))
    np.testing.assert_allclose(distances, start * np.cumprod([1, *growth]), rtol=1e-12)
    np.testing.assert_allclose(scalars["rbar"][1:], distances[:-1], rtol=1e-12)
    np.testing.assert_allclose(scalars["G"], np.arange(1, 31), rtol=1e-12)


def test_dowg_on_a_constant_gradient():
    """The first two steps start at rbar = 0.1 = sqrt(eps), the third at the distance."""
    iterates, scalars = oracles.dowg([np.zeros(1)], slope([2.0]), 3, eps=0.01)
    first, second = 0.02 / (0.2 + 0.01), 0.02 / (sqrt(0.08) + 0.01)
    assert first < 0.1 < first + second
    rbar = first + second
    v = [0.04, 0.08, 0.08 + 4 * rbar**2]
    np.testing.assert_allclose(scalars["v"], v, rtol=1e-12)
    third = 2 * rbar**2 / (sqrt(v[2]) + 0.01)
    np.testing.assert_allclose(vector(iterates)[:, 0], [-first, -rbar, -rbar - third], rtol=1e-12)


def test_eps_of_dog_is_under_the_root():
    iterates, _ = oracles.dog([np.zeros(1)], slope([2.0]), 1, reps_rel=0.1, eps=12.0)
    assert iterates[0][0][0] == pytest.approx(-0.1 * 2 / 4, rel=1e-14)


def test_ldog_is_dog_for_each_tensor():
    assert_same(oracles.ldog(START, logistic, 20)[0], oracles.dog(START, logistic, 20, scope="tensor")[0], tolerance=0)


def test_dog_finds_the_solution():
    rng = np.random.default_rng(0)
    A, solution = rng.normal(size=(20, 4)), rng.normal(size=4)
    for oracle, options in [(oracles.dog, {"reps_rel": 1e-3}), (oracles.ldog, {"reps_rel": 1e-3}), (oracles.dowg, {})]:
        iterates, _ = oracle([np.zeros(4)], partial(least_squares, A, solution), 2000, **options)
        np.testing.assert_allclose(iterates[-1][0], solution, atol=1e-3)

"""The oracles of Polyak's steps, of dual averaging and of mechanize against closed forms and invariances."""

from functools import partial
from math import sqrt
from typing import Any

import numpy as np
import pytest

from untuned.testing import oracles

START = [np.array([[0.3, -1.2], [0.8, 0.1], [-0.4, 1.5]]), np.array([0.2, -0.7])]
WAVE = [0.5 + 0.4 * np.sin(k) for k in range(40)]
NOISE = [[np.random.default_rng([k, i]).normal(size=a.shape) for i, a in enumerate(START)] for k in range(40)]
IDS = [np.random.default_rng([7, k]).integers(0, 6, size=3) for k in range(40)]
RECORDED = {"samples": 7, "ids": IDS}
FAR: dict[str, Any] = {"samples": 1000}  # never seen in full, so that the target equation stays out of the way


def logistic(x, k):
    """Two logistic regressions on a batch that changes with k."""
    rng = np.random.default_rng(k)
    inputs, labels = rng.normal(size=(5, 3)), np.sign(rng.normal(size=(5, 2)))
    margins = labels * (inputs @ x[0] + x[1])
    slopes = -labels / (1 + np.exp(margins)) / 5
    return float(np.log1p(np.exp(-margins)).sum() / 5), [inputs.T @ slopes, slopes.sum(0)]


def noise(x, k):
    return 1.0, NOISE[k - 1][: len(x)]


def bowl(x, k, curvature=1.0):
    return curvature / 2 * float(x[0] @ x[0]), [curvature * x[0]]


def given(*gradients):
    """A problem of one tensor with this gradient at each step."""
    return lambda x, k: (0.0, [np.asarray(gradients[k - 1], dtype=float)])


def vector(iterates):
    return np.array([np.concatenate([a.ravel() for a in x]) for x in iterates])


def moves(iterates, start):
    return np.diff(np.vstack([vector([start]), vector(iterates)]), axis=0)


def assert_same(left, right, tolerance=1e-12):
    np.testing.assert_allclose(vector(left), vector(right), rtol=tolerance, atol=tolerance)


# Every oracle, with options under which it moves visibly within 20 steps.
EVERY = {
    "sps": (oracles.sps, {"lr": 3.0, "c": 0.7, "weight_decay": 0.1}),
    "dec_sps": (oracles.dec_sps, {"lr": 9.0, "c0": 1.5, "weight_decay": 0.1}),
    "prox_sps": (oracles.prox_sps, {"lr": 3.0, "weight_decay": 0.1}),
    "sp": (oracles.sp, {"lr": 0.7, "lb": 0.2, "weight_decay": 0.1}),
    "alig": (oracles.alig, {"lr": 3.0, "eps": 0.1, "weight_decay": 0.1}),
    "taps": (oracles.taps, {**RECORDED, "target": 0.3, "weight_decay": 0.1}),
    "motaps": (oracles.motaps, {**RECORDED, "lr": 0.5, "target_lr": 0.3, "momentum": 0.5}),
    "gradagrad": (oracles.gradagrad, {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.1}),
    "gradagrad tensor": (oracles.gradagrad, {"lr": 0.1, "r": 0.5, "scope": "tensor"}),
    "gradagrad_diagonal": (oracles.gradagrad_diagonal, {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.1}),
    "madgrad": (oracles.madgrad, {"lr": 0.1, "weight_decay": 0.1}),
    "madgrad decoupled": (oracles.madgrad, {"lr": 0.1, "weight_decay": 0.1, "decouple_decay": True}),
    "mirror_madgrad": (oracles.mirror_madgrad, {"lr": 0.1, "weight_decay": 0.1, "eps": 1e-3}),
    "mirror_madgrad decoupled": (oracles.mirror_madgrad, {"lr": 0.1, "weight_decay": 0.1, "decouple_decay": True}),
    "mda": (oracles.mda, {"lr": 0.5, "weight_decay": 0.1}),
    "sngm": (oracles.sngm, {"weight_decay": 0.1}),
    "sngm tensor": (oracles.sngm, {"scope": "tensor"}),
    "mechanize sgd": (oracles.mechanize, {"base": "sgd", "momentum": 0.9, "s_init": 1e-3, "weight_decay": 0.1}),
    "mechanize adamw": (oracles.mechanize, {"base": "adamw", "lr": 0.1, "s_init": 1e-2, "weight_decay": 0.1}),
}
every_oracle = pytest.mark.parametrize(("oracle", "options"), EVERY.values(), ids=list(EVERY))
POLYAK = ["sps", "dec_sps", "prox_sps", "sp", "alig", "taps", "motaps"]


@every_oracle
def test_tensor_with_lr_0_is_as_if_it_were_a_constant_of_the_loss(oracle, options):
    frozen = [{"indices": [1], "lr": 0.0, "weight_decay": 0.5}]
    whole, _ = oracle(START, logistic, 20, groups=frozen, schedule=WAVE, **options)

    def first_alone(x, k):
        loss, grads = logistic([x[0], START[1]], k)
        return loss, grads[:1]

    part, _ = oracle(START[:1], first_alone, 20, schedule=WAVE, **options)
    assert all((x[1] == START[1]).all() for x in whole)
    assert_same([x[:1] for x in whole], part)
    assert np.abs(vector(part)[-1] - START[0].ravel()).max() > 1e-2


@every_oracle
def test_step_with_lr_0_everywhere_does_not_happen(oracle, options):
    acting = [0, 2, 3, 7, 8]
    paused, _ = oracle(START, logistic, 9, schedule=[float(s in acting) for s in range(9)], **options)
    if "ids" in options:
        options = {**options, "ids": [IDS[s] for s in acting]}
    steady, _ = oracle(START, lambda x, k: logistic(x, acting[k - 1] + 1), len(acting), **options)
    assert_same([paused[s] for s in acting], steady, tolerance=0)
    assert_same(paused[3:7], [paused[3]] * 4, tolerance=0)


@every_oracle
def test_tensor_paused_mid_run_stands_still(oracle, options):
    pause = [{"indices": [1], "schedule": [1.0] * 5 + [0.0] * 5 + [1.0] * 5}]
    iterates, _ = oracle(START, logistic, 15, groups=pause, **options)
    moved = np.diff(vector([x[1:] for x in iterates]), axis=0).any(axis=1)
    assert moved.tolist() == [True] * 4 + [False] * 5 + [True] * 5
    assert np.diff(vector([x[:1] for x in iterates]), axis=0).any(axis=1).all()


SHARES_NOTHING = ["gradagrad tensor", "gradagrad_diagonal", "madgrad", "mirror_madgrad", "mda", "sngm tensor"]


@pytest.mark.parametrize("name", SHARES_NOTHING)
def test_pause_deletes_the_steps_of_a_tensor_that_shares_nothing(name):
    """Also before its first step: the counters of a tensor that comes late start then."""
    oracle, options = EVERY[name]
    acting = [2, 3, 7, 8]
    groups = [{"indices": [1], "schedule": [float(s in acting) for s in range(9)]}]
    paused, _ = oracle(START, noise, 9, groups=groups, **options)
    steady, _ = oracle(START, lambda x, k: noise(x, acting[k - 1] + 1), 4, **options)
    assert_same([paused[s][1:] for s in acting], [x[1:] for x in steady], tolerance=0)


@every_oracle
def test_groups_alike_are_one_group(oracle, options):
    options = {"lr": 1.0, "weight_decay": 0.0, **options}
    alike = [{"indices": [i], "lr": options["lr"], "weight_decay": options["weight_decay"]} for i in (1, 0)]
    whole, _ = oracle(START, logistic, 20, schedule=WAVE, **options)
    split, _ = oracle(START, logistic, 20, schedule=WAVE, groups=alike, **{**options, "lr": 0.7, "weight_decay": 9.0})
    assert_same(split, whole, tolerance=0)


@pytest.mark.parametrize(
    ("oracle", "options"), [pytest.param(*case, id=name) for name, case in EVERY.items() if "tensor" not in name]
)
def test_splitting_a_tensor_changes_nothing(oracle, options):
    rows = [START[0][:1], START[0][1:], START[1]]

    def split(x, k):
        loss, grads = logistic([np.vstack(x[:2]), x[2]], k)
        return loss, [grads[0][:1], grads[0][1:], grads[1]]

    assert_same(oracle(rows, split, 20, **options)[0], oracle(START, logistic, 20, **options)[0], tolerance=1e-9)


@pytest.mark.parametrize("name", [n for n in EVERY if n != "prox_sps" and "decoupled" not in n and "adamw" not in n])
def test_coupled_decay_is_that_of_an_l2_penalty_in_the_loss(name):
    oracle, options = EVERY[name]

    def penalised(x, k):
        loss, grads = logistic(x, k)
        return loss + 0.05 * sum(float((a**2).sum()) for a in x), [g + 0.1 * a for a, g in zip(x, grads, strict=True)]

    decayed, _ = oracle(START, logistic, 20, **{**options, "weight_decay": 0.1})
    plain, _ = oracle(START, penalised, 20, **{**options, "weight_decay": 0.0})
    if oracle is oracles.mechanize:
        # Mechanic sees the raw gradient, before its base adds the decay: the two must part.
        assert np.abs(vector(decayed) - vector(plain)).max() > 1e-6
    else:
        assert_same(decayed, plain)


@pytest.mark.parametrize("name", [*POLYAK, "gradagrad"])
def test_group_with_a_fraction_of_lr_is_in_longer_units(name):
    """y = x / sqrt(fraction): the group goes the fraction of its way, every number of the model stays."""
    oracle, options = EVERY[name]
    options = {"lr": 1.0, **options, "weight_decay": 0.0}
    root = sqrt(0.3)

    def longer(y, k):
        loss, grads = logistic([y[0], root * y[1]], k)
        return loss, [grads[0], root * grads[1]]

    groups = [{"indices": [1], "lr": 0.3 * options["lr"]}]
    ours, scalars = oracle(START, logistic, 20, groups=groups, schedule=WAVE, **options)
    theirs, expected = oracle([START[0], START[1] / root], longer, 20, schedule=WAVE, **options)
    assert_same(ours, [[y[0], root * y[1]] for y in theirs])
    for key, values in scalars.items():
        np.testing.assert_allclose(values, expected[key], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("oracle", "options", "scalars"),
    [
        (oracles.gradagrad, {"lr": 0.1, "momentum": 0.5}, ["alpha", "gamma"]),
        (oracles.sngm, {}, []),
        (oracles.mechanize, {"base": "sgd", "s_init": 1e-3}, ["S", "h"]),
    ],
    ids=["gradagrad", "sngm", "mechanize"],
)
def test_scope_makes_groups_or_tensors_models_of_their_own(oracle, options, scalars):
    x0 = [START[1], START[0], START[1] + 1]
    gradients = [[b, a, b[::-1]] for a, b in NOISE]

    def alone(members):
        return oracle(
            [x0[i] for i in members], lambda x, k: (0.0, [gradients[k - 1][i] for i in members]), 9, **options
        )

    for scope, spans in {"tensor": [[0], [1], [2]], "group": [[2, 0], [1]]}.items():
        together, numbers = oracle(
            x0, lambda x, k: (0.0, gradients[k - 1]), 9, scope=scope, groups=[{"indices": [2, 0]}], **options
        )
        for place, span in enumerate(spans):
            iterates, expected = alone(span)
            assert_same([[x[i] for i in span] for x in together], iterates)
            for key in scalars:
                np.testing.assert_allclose([row[place] for row in numbers[key]], expected[key], rtol=1e-12)


# Polyak's steps


@pytest.mark.parametrize("curvature", [0.01, 1.0, 300.0])
def test_polyak_step_halves_any_quadratic(curvature):
    problem, x0 = partial(bowl, curvature=curvature), [np.array([1.0, 2.0, 3.0])]
    halves = x0[0] * 0.5 ** np.arange(1, 6)[:, None]
    for iterates, scalars in (
        oracles.sps(x0, problem, 5, lr=1e9, c=1.0),
        oracles.prox_sps(x0, problem, 5, lr=1e9),
        oracles.alig(x0, problem, 5, lr=1e9, eps=0.0),
    ):
        np.testing.assert_allclose(vector(iterates), halves, rtol=1e-14)
        np.testing.assert_allclose(scalars["theta"], 1 / (2 * curvature) / 1e9, rtol=1e-12)
    np.testing.assert_allclose(vector(oracles.sp(x0, problem, 5)[0]), halves, rtol=1e-14)
    # A relaxation of 2 and c = 1/2 each reach the minimum at once, and then stand still there.
    np.testing.assert_allclose(vector(oracles.sp(x0, problem, 5, lr=2.0)[0]), 0.0, atol=1e-14)
    iterates, scalars = oracles.sps(x0, problem, 5, lr=1e9)
    np.testing.assert_allclose(vector(iterates), 0.0, atol=1e-14)


@pytest.mark.parametrize("oracle", [oracles.sps, oracles.dec_sps, oracles.prox_sps, oracles.alig])
def test_cap_of_a_polyak_step_is_lr(oracle):
    iterates, scalars = oracle(START, logistic, 1, lr=1e-3)
    assert scalars["theta"] == [1.0]
    assert_same(iterates, oracles.sgd(START, logistic, 1, lr=1e-3)[0], tolerance=1e-15)


@pytest.mark.parametrize("oracle", [oracles.sps, oracles.dec_sps, oracles.prox_sps, oracles.sp, oracles.alig])
def test_polyak_step_stands_still_at_its_bound_and_at_a_zero_gradient(oracle):
    for problem in (lambda x, k: (0.3, NOISE[0]), lambda x, k: (0.7, [0 * a for a in x])):
        iterates, _ = oracle(START, problem, 3, lr=0.5, lb=0.5 if problem(START, 1)[0] < 0.5 else 0.0)
        assert_same(iterates, [START] * 3, tolerance=0)


@pytest.mark.parametrize(
    ("oracle", "options", "scaled"),
    [
        (oracles.sps, {"lr": 3.0}, {"lr": 3.0 / 50}),
        (oracles.dec_sps, {"lr": 9.0}, {"lr": 9.0 / 50}),
        (oracles.prox_sps, {"lr": 3.0}, {"lr": 3.0 / 50}),
        (oracles.sp, {}, {}),
        (oracles.alig, {"lr": 3.0, "eps": 0.1}, {"lr": 3.0 / 50, "eps": 0.1 * 50**2}),
    ],
    ids=["sps", "dec_sps", "prox_sps", "sp", "alig"],
)
def test_polyak_step_knows_neither_the_height_nor_the_unit_of_the_loss(oracle, options, scaled):
    def raised(x, k):
        return logistic(x, k)[0] + 7.0, logistic(x, k)[1]

    def in_another_unit(x, k):
        return 50 * logistic(x, k)[0], [50 * g for g in logistic(x, k)[1]]

    expected, scalars = oracle(START, logistic, 20, lb=0.3, **options)
    theta = np.array(scalars["theta"])
    assert_same(oracle(START, raised, 20, lb=7.3, **options)[0], expected, 1e-11)
    assert_same(oracle(START, in_another_unit, 20, lb=0.3 * 50, **{**options, **scaled})[0], expected, 1e-11)
    assert oracle is oracles.sp or (theta[1:] < 1).any()  # not all steps are plain


@pytest.mark.parametrize(("lr", "c0"), [(20.0, 0.5), (20.0, 1.0), (20.0, 3.0), (2.0, 3.0)])
def test_dec_sps_is_the_least_polyak_step_so_far_over_c_k(lr, c0):
    """c_k gamma_k = min(c_{k-1} gamma_{k-1}, polyak_k) unrolled."""
    x0, lb = START, 0.1
    iterates, scalars = oracles.dec_sps(x0, logistic, 30, lr=lr, c0=c0, lb=lb)
    least, bindings = c0 * lr, 0
    for k, x in enumerate([x0, *iterates[:-1]], 1):
        f, g = logistic(x, k)
        polyak = (f - lb) / sum(float((a**2).sum()) for a in g)
        bindings += polyak < least
        least = min(least, polyak)
        assert scalars["theta"][k - 1] * lr == pytest.approx(least / (c0 * sqrt(k)), rel=1e-12)
    assert bindings >= (2 if lr == 20 else 1)


def test_dec_sps_obeys_the_bounds_of_its_paper():
    """Lemma 1: min(1 / (2 c_k L_max), c_0 gamma_b / c_k) <= gamma_k <= c_0 gamma_b / c_k."""
    curvatures = np.random.default_rng(0).uniform(1.0, 9.0, size=50)
    gammas = np.array(
        oracles.dec_sps([START[1]], lambda x, k: bowl(x, k, curvatures[k - 1]), 50, lr=5.0, c0=2.0)[1]["theta"]
    )
    c = 2 * np.sqrt(np.arange(1, 51))
    assert (gammas * 5.0 <= 2 * 5.0 / c + 1e-15).all()
    assert (gammas * 5.0 >= np.minimum(1 / (2 * c * curvatures.max()), 2 * 5.0 / c) - 1e-15).all()
    assert gammas[-1] * 5.0 == pytest.approx(1 / (2 * c[-1] * curvatures.max()))


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_prox_sps_step_size(decay):
    eta, bound, c = 2.0, 0.5, 1 + 2.0 * decay
    x, expected, taus = START, [], []
    for k in range(1, 21):
        f, g = logistic(x, k)
        cross = sum(float((a * b).sum()) for a, b in zip(g, x, strict=True))
        square = sum(float((a**2).sum()) for a in g)
        taus.append(min(eta, max(c * (f - bound) - eta * decay * cross, 0.0) / square))
        x = [(a - taus[-1] * b) / c for a, b in zip(x, g, strict=True)]
        expected.append(x)
    ours, scalars = oracles.prox_sps(START, logistic, 20, lr=eta, lb=bound, weight_decay=decay)
    assert_same(ours, expected)
    np.testing.assert_allclose(np.array(scalars["theta"]) * eta, taus, rtol=1e-12, atol=1e-15)
    assert max(taus) == eta > min(taus) > 0


def test_prox_sps_is_momo_without_memory():
    groups = [{"indices": [0], "lr": 9.0, "weight_decay": 0.1}, {"indices": [1]}]
    options = {"lr": 3.0, "lb": 0.2, "weight_decay": 0.02, "groups": groups, "schedule": WAVE}
    assert_same(
        oracles.prox_sps(START, logistic, 30, **options)[0], oracles.momo(START, logistic, 30, beta=0.0, **options)[0]
    )


def test_alig_step_size():
    lr, eps, x = 2.0, 0.05, START
    iterates, _ = oracles.alig(START, logistic, 20, lr=lr, eps=eps)
    sizes = []
    for k in range(1, 21):
        f, g = logistic(x, k)
        sizes.append(min(lr, f / (sum(float((a**2).sum()) for a in g) + eps)))
        x = [a - sizes[-1] * b for a, b in zip(x, g, strict=True)]
        assert_same([iterates[k - 1]], [x])
    assert max(sizes) == lr > min(sizes)


# TAPS and MOTAPS


def test_taps_and_motaps_by_hand():
    """Two samples x^2 / 2 from x = 1, one a step; then mean(alpha) = 43/200 goes to the target."""
    run = {"x0": [np.array([1.0])], "problem": bowl, "steps": 2, "samples": 2, "ids": [np.array([0]), np.array([1])]}
    iterates, scalars = oracles.taps(**run, target=0.1)
    np.testing.assert_allclose(scalars["q"], [1 / 4, 9 / 50], rtol=1e-14)
    np.testing.assert_allclose(vector(iterates)[:, 0], [3 / 4, 123 / 200], rtol=1e-14)
    np.testing.assert_allclose(scalars["alpha"], [[1 / 4, 0], [1 / 4 - 23 / 200, 9 / 50 - 23 / 200]], rtol=1e-14)
    assert scalars["target"] == [0.1, 0.1]

    iterates, scalars = oracles.motaps(**run, target_lr=0.5)
    shift = 43 / 600 - 43 / 200
    np.testing.assert_allclose(vector(iterates)[:, 0], [3 / 4, 123 / 200], rtol=1e-14)
    np.testing.assert_allclose(scalars["alpha"], [[1 / 4, 0], [1 / 4 + shift, 9 / 50 + shift]], rtol=1e-13)
    np.testing.assert_allclose(scalars["target"], [0, 43 / 600], rtol=1e-14)

    # With momentum z and the records take whole steps, x half of them.
    iterates, scalars = oracles.taps(**run, target=0.1, momentum=0.5)
    z, q = 3 / 4 - 49 / 226 * 7 / 8, 49 / 226
    np.testing.assert_allclose(vector(iterates)[:, 0], [7 / 8, (7 / 8 + z) / 2], rtol=1e-14)
    shift = 0.1 - (1 / 4 + q) / 2
    np.testing.assert_allclose(scalars["alpha"], [[1 / 4, 0], [1 / 4 + shift, q + shift]], rtol=1e-13)


@pytest.mark.parametrize("batch", [[4], [4, 2, 9], [4, 2, 4, 4, 9]])
def test_taps_projection_solves_the_equation_of_a_linear_loss(batch):
    a = np.random.default_rng(0).normal(size=(10, 2))
    b = np.arange(10.0)

    def linear(x, k):
        return float((a[batch] @ x[0] + b[batch]).mean()), [a[batch].mean(axis=0)]

    def residuals(lr):
        iterates, scalars = oracles.taps([START[1]], linear, 1, **FAR, ids=[np.array(batch)], lr=lr)
        return [linear(iterates[0], 1)[0] - scalars["alpha"][0][batch].mean(), linear([START[1]], 1)[0]]

    assert residuals(1.0)[0] == pytest.approx(0.0, abs=1e-14)
    left, whole = residuals(0.3)
    assert left == pytest.approx(0.7 * whole, rel=1e-13)


def test_taps_projection_is_the_nearest_solution_in_parameters_and_records():
    """The step in (x, alpha) is parallel to the gradient of the equation in them."""
    batch = np.array([4, 2, 4, 4, 9])
    iterates, scalars = oracles.taps(START, logistic, 1, **FAR, ids=[batch])
    normal = np.concatenate([vector([logistic(START, 1)[1]])[0], -np.bincount(batch, minlength=1000) / 5])
    step = np.concatenate([moves(iterates, START)[0], scalars["alpha"][0]])
    np.testing.assert_allclose(step, -scalars["q"][0] * normal, rtol=1e-12, atol=1e-15)
    assert np.abs(step[:-1000]).max() > 0.1


@pytest.mark.parametrize("lr", [1.0, 0.4])
def test_taps_target_equation(lr):
    """It moves all records alike, once per 10 samples seen, those of whole batches counted on; id 9 is never drawn."""
    ids = [np.random.default_rng(k).integers(0, 9, size=4) for k in range(10)]
    options = {"samples": 10, "ids": ids, "lr": lr, "target": 0.3}
    _, scalars = oracles.taps(START, logistic, 10, **options)
    alpha = np.vstack([np.zeros(10), scalars["alpha"]])
    assert (np.flatnonzero(np.diff(alpha[:, 9])) + 1).tolist() == [3, 5, 8, 10]
    for k in (3, 5, 8, 10):
        share = np.bincount(ids[k - 1], minlength=10) / 4
        before = alpha[k - 1] + lr * scalars["q"][k - 1] * share
        np.testing.assert_allclose(alpha[k] - before, lr * (0.3 - before.mean()), rtol=1e-10)
        if lr == 1:
            assert alpha[k].mean() == pytest.approx(0.3, rel=1e-13)


def test_motaps_target_follows_the_records():
    _, scalars = oracles.motaps(START, logistic, 40, **RECORDED, target_lr=0.3)
    alpha, target = np.array(scalars["alpha"]), np.array([0.0, *scalars["target"]])
    shifts = np.flatnonzero(np.diff(target)) + 1
    assert shifts.tolist() == [k for k in range(1, 41) if 3 * k // 7 > 3 * (k - 1) // 7]
    before = alpha[shifts - 2] + np.array(
        [scalars["q"][k - 1] * np.bincount(IDS[k - 1], minlength=7) / 3 for k in shifts]
    )
    np.testing.assert_allclose(target[shifts], 0.7 * target[shifts - 1] + 0.3 * 7 / 8 * before.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(alpha[shifts - 1].mean(axis=1), target[shifts], rtol=1e-12)


@pytest.mark.parametrize("oracle", [oracles.taps, oracles.motaps])
def test_taps_rests_where_all_losses_are_on_record(oracle):
    a = np.random.default_rng(0).normal(size=(7, 2))

    def interpolated(x, k):
        return float((a[IDS[k - 1]] @ (x[0] - START[1])).mean()), [a[IDS[k - 1]].mean(axis=0)]

    iterates, scalars = oracle([START[1]], interpolated, 20, **RECORDED)
    assert_same(iterates, [[START[1]]] * 20, tolerance=0)
    assert not np.any(scalars["alpha"])


def test_taps_on_copies_of_one_sample_is_one_sample():
    copies, one = (
        oracles.taps(START, logistic, 20, **FAR, ids=[np.array([k % 3] * b) for k in range(20)]) for b in (4, 1)
    )
    assert_same(copies[0], one[0])
    np.testing.assert_allclose(copies[1]["alpha"], one[1]["alpha"], rtol=1e-12, atol=1e-15)


def test_taps_in_a_large_unit_of_the_loss_is_sp():
    """The record's 1 beside ||g||^2, and what it learns, vanish."""

    def large(x, k):
        return 1e7 * logistic(x, k)[0], [1e7 * g for g in logistic(x, k)[1]]

    taps, _ = oracles.taps(START, large, 20, **FAR, ids=IDS, lr=0.5)
    assert_same(taps, oracles.sp(START, logistic, 20, lr=0.5)[0], 1e-10)
    assert np.abs(vector(taps) - vector(oracles.taps(START, logistic, 20, **FAR, ids=IDS, lr=0.5)[0])).max() > 0.1


# GradaGrad


@pytest.mark.parametrize("oracle", [oracles.gradagrad, oracles.gradagrad_diagonal])
@pytest.mark.parametrize(("rho", "r", "growth"), [(2, 1, 2), (2, 0.5, 1.5), (1.5, 1, 1.5), (3, 1, 2), (2, 0, 1)])
def test_gradagrad_grows_on_a_constant_gradient(oracle, rho, r, growth):
    iterates, _ = oracle([np.zeros(1)], given(*[[1.0]] * 6), 6, lr=0.01, rho=rho, r=r)
    np.testing.assert_allclose(
        -moves(iterates, [np.zeros(1)])[:, 0], 0.01 * np.sqrt(growth) ** np.arange(6), rtol=1e-13
    )


def test_gradagrad_falls_on_an_alternating_gradient():
    g = np.array([3.0, -4.0])
    iterates, scalars = oracles.gradagrad([np.zeros(2)], given(g, -g, g, -g), 4, lr=0.1)
    np.testing.assert_allclose(scalars["alpha"], [25, 100, 175, 250], rtol=1e-14)
    np.testing.assert_allclose(scalars["gamma"], 1.0, rtol=0)
    np.testing.assert_allclose(
        np.linalg.norm(moves(iterates, [np.zeros(2)]), axis=1), 0.1 / np.sqrt([1, 4, 7, 10]), rtol=1e-13
    )


def test_gradagrad_without_correlation_is_adagrad_norm():
    lr, x, total = 0.3, START, 0.0
    iterates, _ = oracles.gradagrad(START, logistic, 20, lr=lr, rho=0.0)
    for k in range(1, 21):
        _, g = logistic(x, k)
        total += sum(float((a**2).sum()) for a in g)
        x = [a - lr / sqrt(total) * b for a, b in zip(x, g, strict=True)]
        assert_same([iterates[k - 1]], [x])

    across = given([1, 0, 0], [0, 2, 0], [0, 0, 3], [4, 0, 0])
    assert_same(*(oracles.gradagrad([np.zeros(3)], across, 4, rho=rho)[0] for rho in (2.0, 0.0)), tolerance=0)


@pytest.mark.parametrize("name", ["gradagrad", "gradagrad tensor", "gradagrad_diagonal"])
def test_gradagrad_is_free_of_the_scale_of_the_gradient(name):
    oracle, options = EVERY[name]
    options = {**options, "weight_decay": 0.0}
    scaled, _ = oracle(START, lambda x, k: (0.0, [1e3 * g for g in logistic(x, k)[1]]), 20, **options)
    assert_same(scaled, oracle(START, logistic, 20, **options)[0])


@pytest.mark.parametrize("r", [0.3, 1.0])
def test_gradagrad_bounds_its_growth(r):
    _, scalars = oracles.gradagrad(START, logistic, 40, lr=1e-3, r=r)
    sizes = np.array(scalars["gamma"]) / np.sqrt(scalars["alpha"])
    ratios = sizes[1:] / sizes[:-1]
    assert ratios.max() <= sqrt(1 + r) * (1 + 1e-14)
    assert ratios.max() > 1.01 and ratios.min() < 0.99


def test_diagonal_gradagrad_has_each_coordinate_to_itself():
    apart = [np.array([a]) for a in START[1]]

    def coordinates(x, k):
        return 0.0, [np.array([g]) for g in logistic([START[0], np.concatenate(x)], k)[1][1]]

    alone, _ = oracles.gradagrad(apart, coordinates, 20, lr=0.1, momentum=0.5, scope="tensor")
    together, _ = oracles.gradagrad_diagonal(
        [START[1]], lambda x, k: (0.0, logistic([START[0], x[0]], k)[1][1:]), 20, lr=0.1, momentum=0.5
    )
    assert_same(together, alone)


@pytest.mark.parametrize("name", ["gradagrad", "gradagrad_diagonal"])
def test_gradagrad_waits_for_a_gradient(name):
    oracle, _ = EVERY[name]
    zero = [0.0, 0.0]
    late, _ = oracle([START[1]], given(zero, zero, [1, -2], [3, 1], zero, [1, 1]), 6, lr=0.1)
    assert_same(late[:2], [[START[1]]] * 2, tolerance=0)
    assert_same(late[2:], oracle([START[1]], given([1, -2], [3, 1], zero, [1, 1]), 4, lr=0.1)[0], tolerance=0)


@pytest.mark.parametrize("name", ["gradagrad", "gradagrad_diagonal", "madgrad", "mirror_madgrad", "mda"])
def test_momentum_averages_the_iterates(name):
    oracle, _ = EVERY[name]
    plain, _ = oracle(START, noise, 20, lr=0.1, momentum=0.0)
    averaged, _ = oracle(START, noise, 20, lr=0.1, momentum=0.7)
    x, expected = vector([START])[0], []
    for z in vector(plain):
        x = 0.7 * x + 0.3 * z
        expected.append(x)
    np.testing.assert_allclose(vector(averaged), expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", ["gradagrad", "mda", "sngm"])
def test_rotation_of_the_parameters_rotates_the_path(name):
    oracle, options = EVERY[name]
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    x0, A = np.array([1.0, -2.0, 0.5]), np.diag([1.0, 4.0, 0.2])
    straight, _ = oracle([x0], lambda x, k: (0.0, [A @ x[0]]), 20, **options)
    turned, _ = oracle([Q @ x0], lambda x, k: (0.0, [Q @ A @ Q.T @ x[0]]), 20, **options)
    assert_same(turned, [[Q @ x[0]] for x in straight])


# MADGRAD and MirrorMADGRAD


@pytest.mark.parametrize(
    ("oracle", "power"), [(oracles.madgrad, 2 / 3), (oracles.mirror_madgrad, 1.0)], ids=["madgrad", "mirror_madgrad"]
)
def test_madgrad_powers(oracle, power):
    """The first step, and how every displacement goes with lr and the gradient."""

    def way(steps=15, scale=1.0, **options):
        def problem(x, k):
            return 0.0, [scale * g for g in NOISE[k - 1]]

        return vector(oracle(START, problem, steps, **{"lr": 0.01, "eps": 0.0, **options})[0]) - vector([START])

    g = vector([NOISE[0]])
    np.testing.assert_allclose(way(1, momentum=0.7), -0.3 * 0.01**power * np.sign(g) * np.cbrt(np.abs(g)), rtol=1e-12)
    np.testing.assert_allclose(way(lr=0.08), 8**power * way(), rtol=1e-10)
    np.testing.assert_allclose(way(scale=8.0), 2 * way(), rtol=1e-10)


def test_madgrad_in_sums():
    rates = 0.1 * np.array(WAVE)[:20] * np.sqrt(np.arange(1, 21))
    g = vector(NOISE[:20])
    s, nu = np.cumsum(rates[:, None] * g, axis=0), np.cumsum(rates[:, None] * g**2, axis=0)
    iterates, _ = oracles.madgrad(START, noise, 20, lr=0.1, momentum=0.0, eps=1e-3, schedule=WAVE)
    np.testing.assert_allclose(vector(iterates), vector([START]) - s / (np.cbrt(nu) + 1e-3), rtol=1e-12)


def test_mirror_madgrad_is_mirror_descent_with_the_denominators_of_madgrad():
    weights = 0.1**1.5 * np.sqrt(np.arange(1, 21))[:, None]
    g = vector(NOISE[:20])
    increments = weights * g / np.cbrt(np.cumsum(weights * g**2, axis=0))
    iterates, _ = oracles.mirror_madgrad(START, noise, 20, lr=0.1, momentum=0.0)
    np.testing.assert_allclose(vector(iterates), vector([START]) - np.cumsum(increments, axis=0), rtol=1e-12)
    first, _ = oracles.mirror_madgrad(START, noise, 1, lr=0.1, momentum=0.0, eps=0.5)
    np.testing.assert_allclose(moves(first, START)[0], -0.1 * g[0] / (np.cbrt(g[0] ** 2) + 0.5), rtol=1e-12)


@pytest.mark.parametrize("oracle", [oracles.madgrad, oracles.mirror_madgrad])
def test_madgrad_leaves_coordinates_that_never_had_a_gradient(oracle):
    iterates, _ = oracle([START[1]], given([0, 1], [0, -2], [0, 1]), 3, eps=0.0)
    assert (vector(iterates)[:, 0] == START[1][0]).all()
    assert np.isfinite(vector(iterates)).all() and (moves(iterates, [START[1]])[:, 1] != 0).all()


def test_decoupled_decay_without_gradients():
    still = given(*[[0.0, 0.0]] * 30)
    options = {"lr": 0.1, "momentum": 0.6, "weight_decay": 0.5, "decouple_decay": True}
    # MADGRAD's decay leaves x_0 as it is: x goes to the point between x_0 and 0 where both pulls are even.
    rest = 0.4 / (0.4 + 0.05)
    expected = (rest + (1 - rest) * (0.6 - 0.05) ** np.arange(1, 31)[:, None]) * START[1]
    np.testing.assert_allclose(vector(oracles.madgrad([START[1]], still, 30, **options)[0]), expected, rtol=1e-12)
    # Mirror's decays z, and x follows.
    x, expected = START[1], []
    for k in range(1, 31):
        x = 0.6 * x + 0.4 * 0.95**k * START[1]
        expected.append(x)
    np.testing.assert_allclose(
        vector(oracles.mirror_madgrad([START[1]], still, 30, **options)[0]), expected, rtol=1e-12
    )


# MDA


def test_mda_is_primal_averaging_pulled_to_the_start():
    z = x = vector([START])[0]
    expected = []
    for k in range(20):
        z = z - 0.5 * WAVE[k] * vector([NOISE[k]])[0] + (1 - sqrt(k / (k + 1))) * (vector([START])[0] - z)
        x = 0.8 * x + 0.2 * z
        expected.append(x)
    iterates, _ = oracles.mda(START, noise, 20, lr=0.5, momentum=0.8, schedule=WAVE)
    np.testing.assert_allclose(vector(iterates), expected, rtol=1e-12, atol=1e-14)


def test_mda_on_a_constant_gradient_that_stops():
    g = np.array([1.0, -2.0])
    problem = given(*[g] * 8, *[0 * g] * 20)
    way = vector(oracles.mda([START[1]], problem, 28, lr=0.1, momentum=0.0)[0]) - START[1]
    n = np.arange(1, 29)
    np.testing.assert_allclose(way[:8], -0.1 * np.outer(np.cumsum(np.sqrt(n)) / np.sqrt(n), g)[:8], rtol=1e-12)
    np.testing.assert_allclose(way[8:], np.outer(np.sqrt(8 / n[8:]), way[7]), rtol=1e-12)


def test_mda_begins_as_sgd_and_is_linear_in_the_gradients():
    first, _ = oracles.mda(START, noise, 1, lr=0.5, momentum=0.9)
    assert_same(first, oracles.sgd(START, noise, 1, lr=0.05)[0], 1e-14)
    threefold, _ = oracles.mda(START, lambda x, k: (0.0, [3 * g for g in NOISE[k - 1]]), 20)
    way = vector(oracles.mda(START, noise, 20)[0]) - vector([START])
    np.testing.assert_allclose(vector(threefold) - vector([START]), 3 * way, rtol=1e-11)


# SNGM


def test_sngm_is_heavy_ball_on_normalised_gradients():
    def normalised(x, k):
        _, g = logistic(x, k)
        norm = sqrt(sum(float((a**2).sum()) for a in g))
        return 0.0, [a / norm for a in g]

    ours, _ = oracles.sngm(START, logistic, 20, momentum=0.8, schedule=WAVE)
    assert_same(ours, oracles.sgd(START, normalised, 20, lr=0.1, momentum=0.8, schedule=WAVE)[0])


def test_sngm_step_lengths():
    plain, _ = oracles.sngm(START, logistic, 20, momentum=0.0)
    np.testing.assert_allclose(np.linalg.norm(moves(plain, START), axis=1), 0.1, rtol=1e-12)
    bounds = 0.1 * (1 - 0.9 ** np.arange(1, 21)) / (1 - 0.9)
    heavy, _ = oracles.sngm(START, logistic, 20)
    assert (np.linalg.norm(moves(heavy, START), axis=1) <= bounds * (1 + 1e-12)).all()
    straight, _ = oracles.sngm([START[1]], given(*[[3.0 * k, -4.0 * k] for k in range(1, 21)]), 20)
    np.testing.assert_allclose(np.linalg.norm(moves(straight, [START[1]]), axis=1), bounds, rtol=1e-12)


def test_sngm_on_a_cone_keeps_its_speed():
    def cone(x, k):
        return float(np.linalg.norm(x[0])), [x[0] / np.linalg.norm(x[0])]

    iterates, _ = oracles.sngm([np.array([3.0, 4.0])], cone, 40, momentum=0.0)
    np.testing.assert_allclose(np.linalg.norm(vector(iterates), axis=1), 5 - 0.1 * np.arange(1, 41), rtol=1e-12)


def test_sngm_is_free_of_the_scale_of_the_loss_and_of_zero_gradients():
    scaled, _ = oracles.sngm(START, lambda x, k: (0.0, [1e-9 * g for g in logistic(x, k)[1]]), 20)
    assert_same(scaled, oracles.sngm(START, logistic, 20)[0])
    coasting, _ = oracles.sngm([START[1]], given([3, 4], [0, 0], [0, 0]), 3)
    np.testing.assert_allclose(moves(coasting, [START[1]]), -0.1 * np.outer([1, 0.9, 0.81], [0.6, 0.8]), rtol=1e-12)


# mechanize


def test_mechanize_first_steps():
    """S begins at s_init; the clip to the eps that the first step left keeps it there for one step more."""
    for base in ("sgd", "adamw"):
        _, scalars = oracles.mechanize(START, logistic, 3, base=base)
        np.testing.assert_allclose(scalars["S"][0], 1e-6, rtol=1e-12)
        np.testing.assert_allclose(scalars["S"][1], 1e-6, rtol=1e-4)
        assert scalars["h"][0] == 0 > scalars["h"][1]


@pytest.mark.parametrize("beta", [0.8, 1.0])
def test_mechanize_tuner_is_weighted_sums_over_the_past(beta):
    swing = given(*[[g] for g in (1, -3, 1, 0.5, 1, 2, *[1] * 14)])
    _, scalars = oracles.mechanize([np.zeros(1)], swing, 20, base="sgd", betas=[beta], s_init=1e-3, eps=1e-6)
    h, S = np.array(scalars["h"]), np.array([1e-3, *scalars["S"]])
    age = np.arange(20)[:, None] - np.arange(20)
    weights = np.where(age >= 0, beta ** np.maximum(age, 0.0), 0.0)
    m = (weights * (np.abs(h) + 1e-6)).max(axis=1)
    clip = np.array([0.0, *m[:-1]])
    reward = -weights @ (S[:-1] * np.clip(h, -clip, clip))
    wealth = 1e-3 * m + np.maximum(reward, 0.0)
    np.testing.assert_allclose(S[1:], wealth / (np.sqrt(weights**2 @ h**2) + 1e-6), rtol=1e-10)
    assert reward.min() < 0 < reward.max() and (np.abs(h) > clip).sum() > 1


def test_mechanize_product():
    """h = <D, g + s_decay S ||g|| / ||x|| x> at the parameters before the step, D = (x - x_0) / S."""
    iterates, scalars = oracles.mechanize(START, logistic, 20, base="adamw", lr=0.1, s_init=1e-2, s_decay=0.5)
    for k in range(2, 21):
        x, S = vector(iterates[k - 2 : k - 1])[0], scalars["S"][k - 2]
        g = vector([logistic(iterates[k - 2], k)[1]])[0]
        pull = 0.5 * S * np.linalg.norm(g) / np.linalg.norm(x)
        h = (x - vector([START])[0]) / S @ (g + pull * x)
        assert scalars["h"][k - 1] == pytest.approx(h, rel=1e-7)


def test_mechanize_undoes_the_lr_of_its_base():
    def run(c):
        options = {"lr": 0.1 * c, "s_init": 1e-2 / c, "eps": 1e-8 * c, "s_decay": 0.0}
        return oracles.mechanize(START, logistic, 40, base="sgd", momentum=0.9, **options)

    (one, a), (other, b) = run(1.0), run(1e3)
    assert_same(one, other, 1e-9)
    np.testing.assert_allclose(np.array(b["S"]) * 1e3, a["S"], rtol=1e-9)


def test_mechanize_on_a_linear_loss_only_grows():
    _, scalars = oracles.mechanize([START[1]], given(*[[1.0, -2.0]] * 40), 40, base="sgd", s_decay=0.0)
    assert max(scalars["h"]) <= 0
    assert (np.diff(scalars["S"]) > -1e-12).all() and scalars["S"][-1] > 1e3 * scalars["S"][0]
    still, scalars = oracles.mechanize([START[1]], given(*[[0.0, 0.0]] * 5), 5, base="sgd")
    assert_same(still, [[START[1]]] * 5, tolerance=0)


def test_mechanize_refuses_other_bases():
    with pytest.raises(ValueError, match="mechanize: base is 'lion'"):
        oracles.mechanize(START, logistic, 1, base="lion")  # pyright: ignore[reportArgumentType]

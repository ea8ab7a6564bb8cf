"""The oracles against closed forms, invariances and torch.optim: what makes them fit to judge the optimizers."""

from functools import partial
from math import sqrt

import numpy as np
import pytest
import torch
from terms import assert_near

from untuned.testing import oracles
from untuned.testing.oracles import linear_decay

START = [np.array([[0.3, -1.2], [0.8, 0.1], [-0.4, 1.5]]), np.array([0.2, -0.7])]
WAVE = [0.5 + 0.4 * np.sin(k) for k in range(40)]
NO_EPS = 1e-300


def logistic(x, k):
    """Two logistic regressions on a batch that changes with k."""
    rng = np.random.default_rng(k)
    inputs, labels = rng.normal(size=(5, 3)), np.sign(rng.normal(size=(5, 2)))
    margins = labels * (inputs @ x[0] + x[1])
    slopes = -labels / (1 + np.exp(margins)) / 5
    return float(np.log1p(np.exp(-margins)).sum() / 5), [inputs.T @ slopes, slopes.sum(0)]


def square(x, k):
    return float(x[0] @ x[0]), [2 * x[0]]


def slope(*g):
    """The linear loss with these constant gradients."""
    grads = [np.asarray(a, dtype=float) for a in g]
    return lambda x, k: (sum(float((a * b).sum()) for a, b in zip(x, grads, strict=True)), grads)


def vector(iterates):
    return np.array([np.concatenate([a.ravel() for a in x]) for x in iterates])


def assert_same(left, right, tolerance=1e-12):
    np.testing.assert_allclose(vector(left), vector(right), rtol=tolerance, atol=tolerance)


def run_torch(optimizer_class, problem, steps, groups=None, schedule=None, **options):
    parameters = [torch.tensor(a, requires_grad=True) for a in START]
    groups = groups or [{"indices": range(len(START))}]
    optimizer = optimizer_class(
        [{**group, "params": [parameters[i] for i in group["indices"]]} for group in groups], **options
    )
    lrs = [group["lr"] for group in optimizer.param_groups]
    iterates = []
    for k in range(1, steps + 1):
        _, grads = problem([p.detach().numpy() for p in parameters], k)
        for p, g in zip(parameters, grads, strict=True):
            p.grad = torch.tensor(g)
        for group, lr in zip(optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr * (1.0 if schedule is None else schedule[k - 1])
        optimizer.step()
        iterates.append([p.detach().clone().numpy() for p in parameters])
    return iterates


# Every oracle, with options under which it moves visibly within 20 steps.
EVERY = {
    "sgd": (oracles.sgd, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    "adam": (oracles.adam, {"lr": 0.05, "weight_decay": 0.1}),
    "adamw": (oracles.adamw, {"lr": 0.05, "weight_decay": 0.1}),
    "momo": (oracles.momo, {"lr": 3.0, "weight_decay": 0.01, "bias_correction": True}),
    "momo first sample": (oracles.momo, {"lr": 3.0, "use_fstar": True, "lb": -1.0}),
    "momo_adam": (oracles.momo_adam, {"lr": 3.0, "weight_decay": 0.01, "use_fstar": True, "lb": -1.0}),
    "prodigy": (oracles.prodigy, {"d0": 1e-2, "weight_decay": 0.1, "use_bias_correction": True}),
    "prodigy slow": (oracles.prodigy, {"d0": 1e-2, "growth_rate": 1.1, "safeguard_warmup": True}),
    "dadapt_adam": (oracles.dadapt_adam, {"d0": 1e-2, "weight_decay": 0.1, "use_bias_correction": True}),
    "mechanic sgd": (oracles.mechanic, {"base": "sgd", "momentum": 0.9, "s_init": 1e-4, "weight_decay": 0.1}),
    "mechanic adamw": (oracles.mechanic, {"base": "adamw", "lr": 0.1, "s_init": 1e-4}),
    "tam": (oracles.tam, {"lr": 0.1, "weight_decay": 0.1}),
    "tam model": (oracles.tam, {"lr": 0.1, "weight_decay": 0.1, "scope": "model"}),
    "adatam": (oracles.adatam, {"lr": 1e-2, "weight_decay": 0.1}),
    "adatamw model": (oracles.adatamw, {"lr": 1e-2, "weight_decay": 0.1, "scope": "model"}),
    "schedule_free_sgd": (oracles.schedule_free_sgd, {"lr": 0.5, "warmup_steps": 5, "weight_decay": 0.1}),
    "schedule_free_adamw": (oracles.schedule_free_adamw, {"lr": 0.05, "warmup_steps": 5, "r": 1.0}),
}
every_oracle = pytest.mark.parametrize(("oracle", "options"), EVERY.values(), ids=list(EVERY))


@every_oracle
def test_tensor_with_lr_0_is_as_if_it_were_a_constant_of_the_loss(oracle, options):
    frozen = [{"indices": [1], "lr": 0.0, "weight_decay": 0.5}]
    whole, _ = oracle(START, logistic, 20, groups=frozen, schedule=WAVE, **options)
    part, _ = oracle(
        START[:1],
        lambda x, k: (logistic([x[0], START[1]], k)[0], logistic([x[0], START[1]], k)[1][:1]),
        20,
        schedule=WAVE,
        **options,
    )
    assert all((x[1] == START[1]).all() for x in whole)
    assert_same([x[:1] for x in whole], part)
    assert np.abs(vector(part)[-1] - START[0].ravel()).max() > 1e-2


@every_oracle
def test_step_with_lr_0_everywhere_does_not_happen(oracle, options):
    acting = [0, 2, 3, 7, 8]
    paused, _ = oracle(START, logistic, 9, schedule=[float(s in acting) for s in range(9)], **options)
    steady, _ = oracle(START, lambda x, k: logistic(x, acting[k - 1] + 1), len(acting), **options)
    assert_same([paused[s] for s in acting], steady, tolerance=0)
    assert_same(paused[3:7], [paused[3]] * 4, tolerance=0)


@every_oracle
def test_tensor_paused_mid_run_stands_still(oracle, options):
    pause = [{"indices": [1], "schedule": [1.0] * 5 + [0.0] * 5 + [1.0] * 5}]
    iterates, _ = oracle(START, logistic, 15, groups=pause, **options)
    moves = np.diff(vector([x[1:] for x in iterates]), axis=0).any(axis=1)
    assert moves.tolist() == [True] * 4 + [False] * 5 + [True] * 5
    assert np.diff(vector([x[:1] for x in iterates]), axis=0).any(axis=1).all()


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "tam", "adatam", "schedule_free_sgd", "schedule_free_adamw"])
def test_pause_deletes_the_steps_of_a_tensor_that_shares_nothing(name):
    oracle, options = EVERY[name]
    acting = [0, 2, 3, 7, 8]
    rng = np.random.default_rng(0)
    noise = [[rng.normal(size=a.shape) for a in START] for _ in range(9)]
    groups = [{"indices": [1], "schedule": [float(s in acting) for s in range(9)]}]
    paused, _ = oracle(START, lambda x, k: (0.0, noise[k - 1]), 9, groups=groups, **options)
    steady, _ = oracle(START, lambda x, k: (0.0, noise[acting[k - 1]]), 5, **options)
    assert_same([paused[s][1:] for s in acting], [x[1:] for x in steady], tolerance=0)


@pytest.mark.parametrize(
    ("oracle", "options", "scalar"),
    [
        (oracles.momo, {"lr": 1e-3}, "t"),
        (oracles.momo, {"lr": 1e-3, "bias_correction": True}, "t"),
        (oracles.momo_adam, {"lr": 1e-3}, "t"),
        (oracles.prodigy, {"lr": 1e-3, "d0": 50.0}, "d_hat"),
        (oracles.dadapt_adam, {"lr": 1e-3, "d0": 50.0, "growth_rate": 1.0}, "d_hat"),
    ],
)
def test_tensor_paused_mid_run_leaves_every_sum_with_its_past(oracle, options, scalar):
    """Cap and d0 are such that the first tensor moves alike with and without the second: their sums must then agree."""
    rng = np.random.default_rng(0)
    noise = [rng.normal(size=2) for _ in range(20)]

    def problem(x, k):
        return float((x[0] ** 2).sum()) / 2, [x[0], noise[k - 1]][: len(x)]

    pause = [{"indices": [1], "schedule": [1.0] * 10 + [0.0] * 10}]
    both, scalars = oracle(START, problem, 20, groups=pause, **options)
    alone, expected = oracle(START[:1], problem, 20, **options)
    assert_same([x[:1] for x in both], alone, 1e-14)
    np.testing.assert_allclose(scalars[scalar][10:], expected[scalar][10:], rtol=1e-12)
    assert (np.abs(np.subtract(scalars[scalar], expected[scalar]))[1:10] > 1e-6).all()


@every_oracle
def test_groups_alike_are_one_group(oracle, options):
    options = {"lr": 1.0, "weight_decay": 0.0, **options}
    alike = [{"indices": [i], "lr": options["lr"], "weight_decay": options["weight_decay"]} for i in (1, 0)]
    whole, _ = oracle(START, logistic, 20, schedule=WAVE, **options)
    split, _ = oracle(START, logistic, 20, schedule=WAVE, groups=alike, **{**options, "lr": 0.7, "weight_decay": 9.0})
    assert_same(split, whole, tolerance=0)


@pytest.mark.parametrize(
    ("oracle", "options"),
    [pytest.param(*case, id=name) for name, case in EVERY.items() if name not in ("tam", "adatam")],
)
def test_splitting_a_tensor_changes_nothing(oracle, options):
    rows = [START[0][:1], START[0][1:], START[1]]

    def split(x, k):
        loss, grads = logistic([np.vstack(x[:2]), x[2]], k)
        return loss, [grads[0][:1], grads[0][1:], grads[1]]

    assert_same(oracle(rows, split, 20, **options)[0], oracle(START, logistic, 20, **options)[0], tolerance=1e-10)


@pytest.mark.parametrize(
    ("oracle", "options"),
    [
        (oracles.sgd, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        (oracles.adam, {"lr": 0.05}),
        (oracles.prodigy, {"d0": 1e-2, "decouple": False}),
        (oracles.dadapt_adam, {"d0": 1e-2}),
        (oracles.mechanic, {"base": "sgd", "s_init": 1e-4, "s_decay": 0.0, "momentum": 0.9}),
        (oracles.tam, {}),
        (oracles.adatam, {"lr": 1e-2}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_coupled_decay_is_the_gradient_of_an_l2_penalty(oracle, options):
    def penalised(x, k):
        loss, grads = logistic(x, k)
        return loss, [g + 0.1 * a for a, g in zip(x, grads, strict=True)]

    decayed, _ = oracle(START, logistic, 20, weight_decay=0.1, **options)
    plain, _ = oracle(START, penalised, 20, **options)
    if oracle is oracles.mechanic:
        # Mechanic sees the raw gradient, before its base adds the decay: the two must part.
        assert np.abs(vector(decayed) - vector(plain)).max() > 1e-6
    else:
        assert_same(decayed, plain)


def test_linear_decay():
    assert linear_decay(4) == [1, 3 / 4, 2 / 4, 1 / 4]
    assert linear_decay(6, warmup=2) == [1 / 2, 1, 1, 3 / 4, 2 / 4, 1 / 4]


# torch.optim


@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 0.0, "dampening": 0.5},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9, "dampening": 0.9, "weight_decay": 0.1},
    ],
)
def test_sgd_is_torchs(options):
    groups = [{"indices": [0], "lr": 0.3, "weight_decay": 0.2}, {"indices": [1]}]
    theirs = run_torch(torch.optim.SGD, logistic, 30, groups, WAVE, lr=0.1, **options)
    assert_same(oracles.sgd(START, logistic, 30, groups=groups, schedule=WAVE, lr=0.1, **options)[0], theirs)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_adam_is_torchs(name):
    groups = [{"indices": [0], "lr": 0.3, "weight_decay": 0.2}, {"indices": [1]}]
    options = {"lr": 0.1, "betas": (0.8, 0.99), "eps": 1e-4}
    theirs = run_torch(getattr(torch.optim, name), logistic, 30, groups, WAVE, **options)
    ours, _ = getattr(oracles, name.lower())(START, logistic, 30, groups=groups, schedule=WAVE, **options)
    assert_same(ours, theirs)


# MoMo


def explicit_model(iterates, beta, bias_correction, k):
    """-> F, d, Gamma at step k of logistic from the averages' weights, and the parameters before that step."""
    before = [START, *iterates]
    weights = [(1 - beta) * beta ** (k - j) for j in range(1, k + 1)]
    if not bias_correction:
        weights[0] = beta ** (k - 1)
    F, d, gamma = 0.0, [0.0, 0.0], 0.0
    for j, w in enumerate(weights, 1):
        f, grads = logistic(before[j - 1], j)
        F += w * f
        d = [a + w * g for a, g in zip(d, grads, strict=True)]
        gamma += w * sum(float((g * x).sum()) for g, x in zip(grads, before[j - 1], strict=True))
    return F, d, gamma, before[k - 1]


def adam_norm(iterates, b2, eps, k):
    before = [START, *iterates]
    grads = [logistic(before[j - 1], j)[1] for j in range(1, k + 1)]
    weights = [b2 ** (k - j) * (1 - b2) / (1 - b2**k) for j in range(1, k + 1)]
    return [np.sqrt(sum(w * g[i] ** 2 for w, g in zip(weights, grads, strict=True))) + eps for i in range(2)]


def inner(a, b):
    return sum(float((p * q).sum()) for p, q in zip(a, b, strict=True))


def test_momo_halves_any_quadratic():
    def bowl(curvature, x, k):
        return curvature / 2 * float(x[0] @ x[0]), [curvature * x[0]]

    for curvature in (0.01, 1.0, 300.0):
        iterates, _ = oracles.momo([np.array([1.0, 2.0, 3.0])], partial(bowl, curvature), 5, lr=1e9, beta=0.0)
        np.testing.assert_allclose(iterates[-1][0], [0.03125, 0.0625, 0.09375], rtol=1e-14)


def test_momo_rational_trace():
    iterates, _ = oracles.momo([np.array([1.0])], square, 3, lr=1e9)
    np.testing.assert_allclose(vector(iterates)[:, 0], [1 / 2, 37 / 76, 247271 / 521968], rtol=1e-14)


def test_momo_star_rational_trace():
    iterates, scalars = oracles.momo([np.array([1.0])], square, 4, lr=1e9, lb=-1.0, use_fstar=True)
    np.testing.assert_allclose(vector(iterates)[:, 0], [0, 0, -1 / 18, -10181 / 117198], rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(scalars["lower_bound"], [0, -9 / 10, -171 / 200, -3371 / 4050], rtol=1e-13, atol=1e-15)


def test_momo_whose_cap_binds_is_torchs_optimizer():
    ours, scalars = oracles.momo(START, logistic, 30, lr=0.01)
    assert min(scalars["t"]) > 1
    assert_same(ours, run_torch(torch.optim.SGD, logistic, 30, lr=0.01, momentum=0.9, dampening=0.9), 1e-14)
    ours, scalars = oracles.momo_adam(START, logistic, 30, lr=1e-3)
    assert min(scalars["t"]) > 10
    assert_same(ours, run_torch(torch.optim.Adam, logistic, 30, lr=1e-3), 1e-14)
    np.testing.assert_allclose(scalars["tau"], 1e-3 / (1 - 0.9 ** np.arange(1, 31)), rtol=1e-14)
    ours, _ = oracles.momo_adam(START, logistic, 30, lr=1e-3, weight_decay=0.5, divide=False)
    assert_same(ours, run_torch(torch.optim.AdamW, logistic, 30, lr=1e-3, weight_decay=0.5), 1e-14)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_momo_without_memory_is_proxsps(decay):
    eta, bound, c = 2.0, 0.5, 1 + 2.0 * decay
    x, expected, steps = START, [], []
    for k in range(1, 21):
        f, g = logistic(x, k)
        polyak = max(c * (f - bound) - eta * decay * inner(g, x), 0.0) / inner(g, g)
        steps.append(min(eta, polyak))
        x = [(a - steps[-1] * b) / c for a, b in zip(x, g, strict=True)]
        expected.append(x)
    ours, scalars = oracles.momo(START, logistic, 20, lr=eta, beta=0.0, lb=bound, weight_decay=decay)
    assert_same(ours, expected)
    np.testing.assert_allclose(scalars["tau"], steps, rtol=1e-12, atol=1e-15)
    assert max(steps) == eta > min(steps) > 0


@pytest.mark.parametrize("variant", ["first sample", "bias correction", "adam"])
@pytest.mark.parametrize(
    ("lr", "bound", "regime"), [(0.01, 0.0, "capped"), (30.0, 0.3, "between"), (1.0, 5.0, "still")]
)
def test_momo_step_minimises_its_model_over_all_groups(variant, lr, bound, regime):
    """Also where lr and decay differ by group: strong convexity bounds every other point's objective from below."""
    adam, bias_correction = variant == "adam", variant != "first sample"
    steps, beta = 3, 0.9
    etas, decays = [lr, 0.3 * lr], [0.0, 0.2]
    groups = [{"indices": [0], "weight_decay": 0.0}, {"indices": [1], "lr": etas[1], "weight_decay": 0.2}]
    if adam:
        iterates, scalars = oracles.momo_adam(START, logistic, steps, lr=lr, lb=bound, groups=groups)
        D = adam_norm(iterates, 0.999, 1e-8, steps)
    else:
        iterates, scalars = oracles.momo(
            START, logistic, steps, lr=lr, lb=bound, groups=groups, bias_correction=bias_correction
        )
        D = [np.ones_like(a) for a in START]
    F, d, gamma, x = explicit_model(iterates, beta, bias_correction, steps)
    rho = 1 - beta**steps if bias_correction else 1.0
    theta = scalars["theta"][-1]
    assert {"capped": theta == 1 / rho, "between": 0 < theta < 0.99 / rho, "still": theta == 0}[regime]

    def objective(y):
        fit = max((F + inner(d, y) - gamma) / rho, bound)
        for i in range(2):
            fit += float((D[i] * (y[i] - x[i]) ** 2).sum()) / (2 * etas[i])
            fit += decays[i] / 2 * float((D[i] * y[i] ** 2).sum())
        return fit

    def assert_is_minimum(y):
        rng = np.random.default_rng(0)
        for scale in np.geomspace(1e-4, 10, 300):
            away = [scale * rng.normal(size=a.shape) for a in y]
            bend = sum((1 / etas[i] + decays[i]) / 2 * float((D[i] * away[i] ** 2).sum()) for i in range(2))
            gap = objective([a + b for a, b in zip(y, away, strict=True)]) - objective(y)
            assert gap >= bend * (1 - 1e-9) - 1e-13

    assert_is_minimum(iterates[-1])
    if regime == "between":
        # The step that leaves the decay off its own move is another point, and the check sees it.
        undecayed = [x[i] / (1 + etas[i] * decays[i]) - theta * etas[i] * d[i] / D[i] for i in range(2)]
        with pytest.raises(AssertionError):
            assert_is_minimum(undecayed)
        # Uncapped, the model meets its bound exactly.
        assert (F - gamma + inner(d, iterates[-1])) / rho == pytest.approx(bound, rel=1e-12)


@pytest.mark.parametrize("lb", [-9.0, 1.5])
@pytest.mark.parametrize("variant", ["first sample", "bias correction", "adam"])
def test_momo_star_moves_its_bound_by_the_model(variant, lb):
    """Over groups of different lr and decay: before a step, a bound above the model at the point that only decays
    falls to half that model (where an uncapped step then ends); after it, the bound is the model half way through."""
    groups = [{"indices": [0], "lr": 2.0, "weight_decay": 0.05}, {"indices": [1]}]
    options = {"lr": 20.0, "lb": lb, "use_fstar": True, "groups": groups}
    if variant == "adam":
        iterates, scalars = oracles.momo_adam(START, logistic, 40, **options)
    else:
        iterates, scalars = oracles.momo(START, logistic, 40, bias_correction=variant != "first sample", **options)
    halved = floored = 0
    for k in range(1, 41):
        F, d, gamma, x = explicit_model(iterates, 0.9, variant != "first sample", k)
        rho = 1.0 if variant == "first sample" else 1 - 0.9**k

        def model(y, F=F, d=d, gamma=gamma, rho=rho):
            return (F - gamma + inner(d, y)) / rho

        moved = iterates[k - 1]
        undecayed = [1.1 * moved[0], moved[1]]
        middle = [(a + b) / 2 for a, b in zip(x, undecayed, strict=True)]
        assert scalars["lower_bound"][k - 1] == pytest.approx(max(model(middle), lb), rel=1e-9)

        before = lb if k == 1 else scalars["lower_bound"][k - 2]
        decayed = model([x[0] / 1.1, x[1]])
        bound = before if decayed >= before else max(decayed / 2, lb)
        halved += bound == decayed / 2
        floored += bound == lb < before
        if decayed < bound:
            assert scalars["theta"][k - 1] == 0
        elif scalars["theta"][k - 1] < 1 / rho:
            assert model(moved) == pytest.approx(bound, rel=1e-9)
    assert (halved if lb < 0 else floored) >= 2


def test_momo_invariances():
    def run(problem=logistic, x0=START, lr=2.0, lb=0.3):
        return vector(oracles.momo(x0, problem, 20, lr=lr, lb=lb)[0])

    expected = run()
    shift = [np.full_like(a, 3.0) for a in START]

    def translated(x, k):
        return logistic([a - s for a, s in zip(x, shift, strict=True)], k)

    def raised(x, k):
        return logistic(x, k)[0] + 7.0, logistic(x, k)[1]

    def scaled(x, k):
        return 50 * logistic(x, k)[0], [50 * g for g in logistic(x, k)[1]]

    moved = [a + s for a, s in zip(START, shift, strict=True)]
    np.testing.assert_allclose(run(translated, moved) - 3.0, expected, atol=1e-12)
    np.testing.assert_allclose(run(raised, lb=7.3), expected, atol=1e-12)
    np.testing.assert_allclose(run(scaled, lr=2.0 / 50, lb=0.3 * 50), expected, atol=1e-12)


@pytest.mark.parametrize("lr", [1e-2, 1e3])
def test_momo_averaging_variants_share_the_first_step(lr):
    first, a = oracles.momo(START, logistic, 2, lr=lr)
    corrected, b = oracles.momo(START, logistic, 2, lr=lr, bias_correction=True)
    assert b["t"][0] == pytest.approx(a["t"][0] / 0.1, rel=1e-13)
    assert_same(first[:1], corrected[:1], 1e-13)


def test_momo_at_zero_gradient_stands_still():
    for oracle in (oracles.momo, oracles.momo_adam):
        iterates, scalars = oracle(START, slope(0 * START[0], 0 * START[1]), 3)
        assert_same(iterates, [START] * 3, tolerance=0)
        assert scalars["t"] == [0.0, 0.0, 0.0]


# Prodigy


@pytest.mark.parametrize("corrected", [False, True])
def test_prodigy_first_step(corrected):
    options = {"lr": 0.5, "d0": 1e-3, "eps": NO_EPS, "weight_decay": 0.1, "use_bias_correction": corrected}
    iterates, scalars = oracles.prodigy(START, logistic, 1, **options)
    q = sqrt(1 - 0.999) / (1 - 0.9) if corrected else 1.0
    ratio = 0.5 * 1e-3 * q * (1 - 0.9) / sqrt(1 - 0.999)
    grads = logistic(START, 1)[1]
    for x0, x1, g in zip(START, iterates[0], grads, strict=True):
        assert_near(x0 - x1, ratio * np.sign(g) + 0.1 * 0.5 * 1e-3 * q * x0, terms=abs(x0) + abs(x1))
    assert scalars["d"] == [1e-3]


def test_prodigy_on_a_constant_gradient():
    _, scalars = oracles.prodigy([np.zeros(1)], slope([1.0]), 6, d0=1.0, eps=NO_EPS)
    expected = [1, sqrt(10) / (1 + sqrt(0.999)), 4.82240946, 13.49609886, 34.50971252, 88.58526688]
    np.testing.assert_allclose(scalars["d"][:2], expected[:2], rtol=1e-12)
    np.testing.assert_allclose(scalars["d"], expected, rtol=1e-9)


def test_prodigy_eps_and_beta3():
    """On the constant gradient 1 with d0 = 1: eps is multiplied by the new d, and only s decays by beta3."""
    iterates, scalars = oracles.prodigy([np.zeros(1)], slope([1.0]), 2, d0=1.0, eps=0.01, beta3=0.5)
    first = 0.1 / (sqrt(0.001) + 0.01)
    d = first / (0.5 + 1)
    second = 0.19 / (sqrt(0.001999) + d * 0.01)
    assert scalars["d"] == pytest.approx([1.0, d], rel=1e-12)
    assert d > 1.5
    np.testing.assert_allclose(vector(iterates)[:, 0], [-first, -first - second], rtol=1e-12)


def test_prodigy_safeguard_takes_lr_out_of_the_denominator():
    second = {
        (safeguard, lr): oracles.prodigy(
            [np.zeros(1)], slope([1.0]), 2, d0=1.0, lr=lr, eps=NO_EPS, safeguard_warmup=safeguard
        )[1]["d_hat"][1]
        for safeguard in (False, True)
        for lr in (1.0, 2.0)
    }
    assert second[True, 1.0] == pytest.approx(second[False, 1.0], rel=1e-14)
    assert second[False, 2.0] == pytest.approx(2 * second[False, 1.0], rel=1e-14)
    assert second[True, 2.0] == pytest.approx(4 * second[False, 1.0], rel=1e-14)


def test_prodigy_that_may_not_adapt_is_adam():
    ours, scalars = oracles.prodigy(
        START, logistic, 30, d0=0.01, d_coef=0.0, eps=NO_EPS, use_bias_correction=True, schedule=WAVE
    )
    assert set(scalars["d"]) == {0.01}
    assert_same(ours, run_torch(torch.optim.Adam, logistic, 30, schedule=WAVE, lr=0.01, eps=NO_EPS), 1e-13)


def test_prodigy_scales_with_the_parameters_and_not_with_the_loss():
    a, shift = 50.0, [np.full_like(x, 3.0) for x in START]

    def stretched(x, k):
        loss, grads = logistic([b / a for b in x], k)
        return loss, [g / a for g in grads]

    def translated(x, k):
        return logistic([b - s for b, s in zip(x, shift, strict=True)], k)

    def louder(x, k):
        return 1e3 * logistic(x, k)[0], [1e3 * g for g in logistic(x, k)[1]]

    def run(problem, x0, d0):
        iterates, scalars = oracles.prodigy(x0, problem, 30, d0=d0, eps=NO_EPS)
        return vector(iterates) - vector([x0]), np.array(scalars["d"])

    moves, d = run(logistic, START, 1e-3)
    assert d[-1] > 10 * d[0]
    for problem, x0, unit, tolerance in [
        (stretched, [a * x for x in START], a, 1e-10),
        (translated, [x + s for x, s in zip(START, shift, strict=True)], 1.0, 1e-10),
        (louder, START, 1.0, 1e-10),
    ]:
        other_moves, other_d = run(problem, x0, unit * 1e-3)
        np.testing.assert_allclose(other_d, unit * d, rtol=tolerance)
        np.testing.assert_allclose(other_moves, unit * moves, rtol=tolerance, atol=unit * 1e-12)


@pytest.mark.parametrize("d_coef", [1.0, 0.3])
def test_prodigy_estimate_stays_below_the_distance_on_convex_losses(d_coef):
    def least_squares(A, solution, x, k):
        residual = A @ (x[0] - solution)
        return float(residual @ residual) / 2, [A.T @ residual]

    reached = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        A, solution, x0 = rng.normal(size=(20, 4)), rng.normal(size=4), rng.normal(size=4)
        distance = np.abs(x0 - solution).max()
        lrs = rng.uniform(0.05, 2.0, 200)
        _, scalars = oracles.prodigy(
            [x0], partial(least_squares, A, solution), 200, d_coef=d_coef, schedule=lrs, weight_decay=0.01
        )
        reached.append(scalars["d"][-1] / (d_coef * distance))
        assert reached[-1] <= 1
    assert min(reached) > 0.1


def test_prodigy_growth_rate():
    _, scalars = oracles.prodigy(START, logistic, 40, d0=1e-4, growth_rate=1.2)
    d, d_max = np.array(scalars["d"]), np.array(scalars["d_max"])
    rises = np.flatnonzero(np.diff(d) > 0)
    after_first = slice(rises[0] + 1, None)
    growth = d[1:] / d[:-1]
    assert (growth >= 1).all()
    assert len(rises) > 5
    # The first rise takes d to the estimate at once; from then on the rate binds while the estimate is ahead.
    assert d[rises[0] + 1] == pytest.approx(min(d_max[rises[0] + 1], 1.2 * max(1e-4, scalars["d_hat"][rises[0] + 1])))
    ahead = d_max[1:] > 1.2 * d[:-1]
    assert ahead[after_first].sum() > 5
    np.testing.assert_allclose(growth[after_first][ahead[after_first]], 1.2, rtol=1e-12)
    assert (growth[after_first] <= 1.2 * (1 + 1e-12)).all()


def test_prodigy_without_momentum_is_the_limit_of_little_momentum():
    none, _ = oracles.prodigy(START, logistic, 40, d0=1e-3, betas=(0.0, 0.999))
    little, scalars = oracles.prodigy(START, logistic, 40, d0=1e-3, betas=(1e-13, 0.999))
    assert scalars["d"][-1] > 10 * scalars["d"][0]
    assert_same(none, little, 1e-10)


def test_prodigy_and_dadapt_at_zero_gradient_count_nothing():
    for oracle in (oracles.prodigy, oracles.dadapt_adam):
        late, scalars = oracle(
            START,
            lambda x, k: logistic(x, k - 3) if k > 3 else (0.0, [0 * a for a in x]),
            13,
            use_bias_correction=True,
            decouple=True,
            weight_decay=0.1,
            d0=1e-2,
        )
        prompt, _ = oracle(START, logistic, 10, use_bias_correction=True, decouple=True, weight_decay=0.1, d0=1e-2)
        assert_same(late[:3], [START] * 3, tolerance=0)
        assert scalars["d"][:3] == [1e-2] * 3
        assert_same(late[3:], prompt, 1e-13)


# D-Adaptation


def test_dadapt_adam_on_a_constant_gradient():
    _, scalars = oracles.dadapt_adam([np.zeros(3)], slope([1.0, -2.0, 3.0]), 3, d0=1.0, eps=NO_EPS)
    b2 = 0.999
    sb = sqrt(b2)
    # With s = S g and v = V g^2: dhat = r / ((1-sb) S |g|_1), and r gains (1-sb) d S_old / sqrt(V_old) |g|_1.
    second = 1 / (sqrt(1 - b2) * (1 + sb))
    S1, S2 = 1 - sb, 1 - b2
    r2 = (1 - sb) * S1 / sqrt(1 - b2)
    r3 = sb * r2 + (1 - sb) * second * S2 / sqrt(1 - b2**2)
    third = r3 / ((1 - sb) * (sb * S2 + (1 - sb) * second))
    np.testing.assert_allclose(scalars["d"], [1, second, third], rtol=1e-12)
    np.testing.assert_allclose(scalars["d_hat"][0], 0, atol=0)


def test_dadapt_adam_first_two_steps():
    """On the constant gradient 1: eps is added to both roots, the bias correction sits inside the momentum."""
    iterates, scalars = oracles.dadapt_adam(
        [np.zeros(1)], slope([1.0]), 2, d0=0.1, lr=0.5, eps=0.01, use_bias_correction=True
    )
    h1 = 0.1 * 0.5 * sqrt(0.001) / 0.1
    h2 = 0.1 * 0.5 * sqrt(1 - 0.999**2) / (1 - 0.9**2)
    first = 0.1 * h1 / (sqrt(0.001) + 0.01)
    second = 0.1 * (0.9 * h1 + h2) / (sqrt(1 - 0.999**2) + 0.01)
    np.testing.assert_allclose(vector(iterates)[:, 0], [-first, -first - second], rtol=1e-11)
    sb = sqrt(0.999)
    d_hat = h2 * h1 * (1 - sb) / (sqrt(0.001) + 0.01) / ((1 - sb) * (sb * h1 + h2))
    assert scalars["d_hat"] == pytest.approx([0.0, d_hat], rel=1e-11)


def test_dadapt_adam_that_may_not_grow_is_adam_without_bias_correction():
    d, decay, x, expected = 0.02, 0.3, START, []
    m, v = [0 * a for a in START], [0 * a for a in START]
    for k in range(1, 21):
        g = logistic(x, k)[1]
        m = [0.9 * a + 0.1 * b for a, b in zip(m, g, strict=True)]
        v = [0.999 * a + 0.001 * b**2 for a, b in zip(v, g, strict=True)]
        x = [(1 - d * decay) * a - d * b / (np.sqrt(c) + 1e-8) for a, b, c in zip(x, m, v, strict=True)]
        expected.append(x)
    ours, scalars = oracles.dadapt_adam(START, logistic, 20, d0=d, growth_rate=1.0, decouple=True, weight_decay=decay)
    assert set(scalars["d"]) == {d}
    assert max(scalars["d_hat"]) > d
    assert_same(ours, expected)


def test_dadapt_adam_ignores_the_scale_of_the_loss():
    def louder(x, k):
        return 1e3 * logistic(x, k)[0], [1e3 * g for g in logistic(x, k)[1]]

    quiet, scalars = oracles.dadapt_adam(START, logistic, 30, d0=1e-3, eps=NO_EPS)
    loud, _ = oracles.dadapt_adam(START, louder, 30, d0=1e-3, eps=NO_EPS)
    assert scalars["d"][-1] > 10 * scalars["d"][0]
    assert_same(loud, quiet, 1e-10)


# Mechanic


MECHANIC_BASES = [
    ("sgd", oracles.sgd, {}),
    ("sgd", oracles.sgd, {"momentum": 0.9}),
    ("sgd", oracles.sgd, {"momentum": 0.8, "nesterov": True}),
    ("sgd", oracles.sgd, {"momentum": 0.9, "dampening": 0.5}),
    ("sgd", oracles.sgd, {"momentum": 0.0, "dampening": 0.5}),
    ("adamw", oracles.adamw, {}),
]


@pytest.mark.parametrize(("base", "oracle", "options"), MECHANIC_BASES)
def test_mechanic_first_step(base, oracle, options):
    options = {"lr": 0.1, "weight_decay": 0.3, **options}
    iterates, scalars = oracles.mechanic(START, logistic, 1, base=base, s_init=1e-3, **options)
    S = 1e-3 / 1e-8 * 1e-6 * (1 - (0.1 + 0.01 + 0.001 + 1e-4 + 1e-5 + 1e-6) / 6)
    assert scalars["S"][0] == pytest.approx(S, rel=1e-13)
    displacement = vector(oracle(START, logistic, 1, **options)[0]) - vector([START])
    np.testing.assert_allclose(vector(iterates) - vector([START]), S * displacement, rtol=1e-11)


@pytest.mark.parametrize(("base", "oracle", "options"), MECHANIC_BASES)
def test_mechanic_scales_what_its_base_would_have_moved(base, oracle, options):
    """Where the gradients do not depend on the parameters, the base moves as if it were alone."""
    rng = np.random.default_rng(0)
    noise = [[1 + rng.normal(size=a.shape) for a in START] for _ in range(20)]
    options = {"lr": 0.1, "weight_decay": 0.0, **options}

    def problem(x, k):
        return (0.0, noise[k - 1])

    iterates, scalars = oracles.mechanic(START, problem, 20, base=base, s_init=1e-2, schedule=WAVE, **options)
    alone = vector(oracle(START, problem, 20, schedule=WAVE, **options)[0]) - vector([START])
    S = np.array(scalars["S"])[:, None]
    np.testing.assert_allclose(vector(iterates) - vector([START]), S * alone, rtol=1e-9, atol=1e-12)


def test_mechanic_refuses_an_unknown_base():
    with pytest.raises(ValueError, match="base is 'adam'"):
        oracles.mechanic(START, logistic, 1, base="adam")


def test_mechanic_without_displacement_keeps_the_parameters():
    for base in ("sgd", "adamw"):
        iterates, scalars = oracles.mechanic(START, slope(0 * START[0], 0 * START[1]), 5, base=base)
        assert_same(iterates, [START] * 5, tolerance=0)
        assert min(scalars["S"]) > 0


def test_mechanic_on_a_constant_gradient():
    """Around SGD the displacement is k g, so h and the first three S follow by hand."""
    iterates, scalars = oracles.mechanic([np.zeros(1)], slope([1.0]), 40, base="sgd", s_decay=0.0)
    steps = np.arange(1, 41)
    np.testing.assert_allclose(scalars["h"], 1.0 - steps, rtol=1e-12)
    S = np.array(scalars["S"])
    np.testing.assert_allclose(vector(iterates)[:, 0], -S * steps, rtol=1e-12)

    beta = 1 - 10.0 ** -np.arange(1, 7)
    s1 = 1e-6 * beta / 6
    s2 = (1e-8 / 6 + s1) / (1 + 1e-8)
    s3 = (2e-8 / 6 + beta * s1 + 2 * s2) / (np.sqrt(beta**2 + 4) + 1e-8)
    np.testing.assert_allclose(S[:3], [s1.sum(), s2.sum(), s3.sum()], rtol=1e-12)
    assert (np.diff(S) >= 0).all()
    assert S[-1] == pytest.approx(0.056, abs=5e-4)


def test_mechanic_pull_uses_the_parameters_after_the_base_step():
    """The base step crosses 0, where the pull turns."""
    options = {"lr": 3.0, "s_decay": 10.0, "s_init": 0.1, "eps": 0.1}
    iterates, scalars = oracles.mechanic([np.array([1.0])], slope([0.5]), 2, base="sgd", **options)
    S, after = scalars["S"][0], iterates[0][0][0] - 3.0 * 0.5
    assert after < 0 < iterates[0][0][0]
    pull = 10.0 * S * 0.5 / (abs(after) + 0.1) * after
    assert scalars["h"][1] == pytest.approx(-3.0 * 0.5 * (0.5 + pull), rel=1e-14)


# TAM


def tam_momentum(t, beta, gamma):
    return sum(beta ** (t - i) * (1 - gamma ** (i - 1) / 2) for i in range(1, t + 1))


@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_tam_on_a_constant_gradient(scope):
    g = [np.array([[1.0, -2.0], [0.5, 0.0], [1.0, 3.0]]), np.array([-1.0, 0.2])]
    iterates, scalars = oracles.tam(START, slope(*g), 30, lr=0.1, beta=0.8, gamma=0.7, gain_floor=0.0, scope=scope)
    buffers = -np.diff(vector([START, *iterates]), axis=0) / 0.1
    for t in range(1, 31):
        np.testing.assert_allclose(scalars["alignment"][t - 1], 1 - 0.7 ** (t - 1), atol=1e-13)
        np.testing.assert_allclose(buffers[t - 1], vector([g])[0] * tam_momentum(t, 0.8, 0.7), rtol=1e-11, atol=1e-13)
    closed = (1 - 0.9**30) / 0.1 - 30 * 0.9**29 / 2
    assert tam_momentum(30, 0.9, 0.9) == pytest.approx(closed, rel=1e-13)


@pytest.mark.parametrize("scope", ["tensor", "model"])
@pytest.mark.parametrize("gain", [1.0, 0.5])
def test_tam_of_constant_gain_is_heavy_ball(scope, gain):
    ours, _ = oracles.tam(START, logistic, 30, lr=0.1, gamma=1.0, gain_floor=gain - 0.5, scope=scope, schedule=WAVE)
    assert_same(ours, run_torch(torch.optim.SGD, logistic, 30, schedule=WAVE, lr=0.1 * gain, momentum=0.9), 1e-13)


def test_tam_scales_its_buffer_with_the_loss():
    for oracle, unit in ((oracles.tam, 100.0), (oracles.adatam, 1.0)):
        eps = {"eps": NO_EPS} if oracle is oracles.adatam else {}
        rng = np.random.default_rng(0)
        noise = [[rng.normal(size=a.shape) for a in START] for _ in range(20)]
        quiet, a = oracle(START, lambda x, k, n=noise: (0.0, n[k - 1]), 20, **eps)
        loud, b = oracle(START, lambda x, k, n=noise: (0.0, [100 * g for g in n[k - 1]]), 20, **eps)
        assert_near(a["alignment"], b["alignment"], terms=1.0, roundings=64)  # averages of 20 cosines of either sign
        moves = vector(quiet) - vector([START])
        np.testing.assert_allclose(vector(loud) - vector([START]), unit * moves, rtol=1e-10, atol=1e-12)


def test_tam_over_the_model_turns_with_the_coordinates():
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(rng.normal(size=(8, 8)))

    def flat(x, k):
        loss, grads = logistic([x[0][:6].reshape(3, 2), x[0][6:]], k)
        return loss, [np.concatenate([g.ravel() for g in grads])]

    def turned(x, k):
        loss, grads = flat([turn.T @ x[0]], k)
        return loss, [turn @ grads[0]]

    x0 = vector([START])[0]
    straight, _ = oracles.tam([x0], flat, 30, lr=0.3)
    rotated, _ = oracles.tam([turn @ x0], turned, 30, lr=0.3)
    np.testing.assert_allclose(vector(rotated), vector(straight) @ turn.T, atol=1e-12)
    whole, _ = oracles.tam(START, logistic, 30, lr=0.3, scope="model")
    np.testing.assert_allclose(vector(whole), vector(straight), atol=1e-13)
    apart, _ = oracles.tam(START, logistic, 30, lr=0.3, scope="tensor")
    assert np.abs(vector(apart) - vector(whole)).max() > 1e-3


def test_tam_of_alternating_gradients():
    """The second buffer is 0 but for rounding; what is left of it must not count as a direction."""
    iterates, scalars = oracles.tam(
        [np.zeros(1)], lambda x, k: (0.0, [np.array([(-1.0) ** (k - 1)])]), 6, lr=1.0, gain_floor=0.0
    )
    buffers = -np.diff([0.0, *vector(iterates)[:, 0]])
    np.testing.assert_allclose(buffers, [0.5, 0, 0.455, 0, 0.41855, 0], atol=1e-15)
    np.testing.assert_allclose([a[0] for a in scalars["alignment"]][:3], [0, -0.1, -0.09], rtol=1e-12)


def test_tam_floor_is_relative():
    """A buffer below 1e-6 of the gradient has no direction; one above has, at every scale of the loss."""
    for scale in (1e-3, 1e3):
        for ratio, cosine in [(0.99e-6, 0.0), (1.01e-6, 1.0)]:
            grads = [[2 * ratio * scale], [scale]]

            def problem(x, k, g=grads):
                return (0.0, [np.array(g[k - 1])])

            _, scalars = oracles.tam([np.zeros(1)], problem, 2, gain_floor=0.0)
            assert scalars["alignment"][1] == pytest.approx([0.1 * cosine], rel=1e-12)


@pytest.mark.parametrize(("scope", "cosines"), [("tensor", 2), ("model", 1)])
def test_adatam_on_a_constant_gradient(scope, cosines):
    g, decay = [np.array([[1.0, -2.0], [0.5, 1.0], [1.0, 3.0]]), np.array([-1.0, 0.2])], 0.3
    options = {"lr": 0.01, "eps": NO_EPS, "gain_floor": 0.0, "weight_decay": decay, "scope": scope}
    iterates, scalars = oracles.adatamw(START, slope(*g), 1000, **options)
    np.testing.assert_allclose(scalars["alignment"][9], [1 - 0.9**9] * cosines, rtol=1e-12)
    x = vector([START, *iterates])
    steps = (x[:-1] * (1 - 0.01 * decay) - x[1:]) / 0.01
    for t, published in [(1, 15.8), (2, 22), (10, 46), (100, 32), (1000, 12.6)]:
        ratio = tam_momentum(t, 0.9, 0.9) / sqrt(1 - 0.999**t)
        assert ratio == pytest.approx(published, rel=0.02)
        np.testing.assert_allclose(steps[t - 1], np.sign(vector([g])[0]) * ratio, rtol=1e-9)


def test_adatam_first_step():
    x0, g = 1.0, 2.0
    iterates, _ = oracles.adatam([np.array([x0])], slope([g]), 1, lr=0.1, eps=0.1, gain_floor=0.01)
    assert iterates[0][0][0] == pytest.approx(x0 - 0.1 * 0.51 * g / (sqrt(0.001) * g + 0.1), rel=1e-14)


# Schedule-Free


@pytest.mark.parametrize("warmup", [0, 5])
def test_schedule_free_sgd_is_its_two_buffer_form(warmup):
    lr, beta, decay, r = 0.5, 0.8, 0.1, 1.0
    z, y, total, largest, expected, averages = START, START, 0.0, 0.0, [], []
    for t in range(1, 31):
        rate = lr * WAVE[t - 1] * (min(1.0, t / warmup) if warmup else 1.0)
        u = [g + decay * a for a, g in zip(y, logistic(y, t)[1], strict=True)]
        largest = max(largest, rate)
        total += t**r * largest**2
        c = t**r * largest**2 / total
        y = [a + c * (b - a) + rate * (beta * (1 - c) - 1) * d for a, b, d in zip(y, z, u, strict=True)]
        z = [b - rate * d for b, d in zip(z, u, strict=True)]
        expected.append(y)
        averages.append([a + (1 - 1 / beta) * (b - a) for a, b in zip(y, z, strict=True)])
    ours, scalars = oracles.schedule_free_sgd(
        START, logistic, 30, lr=lr, momentum=beta, weight_decay=decay, r=r, warmup_steps=warmup, schedule=WAVE
    )
    assert_same(ours, expected)
    assert_same(scalars["averaged"], averages)


@pytest.mark.parametrize("oracle", [oracles.schedule_free_sgd, oracles.schedule_free_adamw])
def test_schedule_free_average_is_the_weighted_mean_of_z(oracle):
    iterates, scalars = oracle(START, logistic, 30, lr=0.3, warmup_steps=10, r=0.5, schedule=linear_decay(30))
    y, x = vector(iterates), vector(scalars["averaged"])
    z = (y - 0.9 * x) / 0.1
    rates = 0.3 * np.array(linear_decay(30)) * np.minimum(1, np.arange(1, 31) / 10)
    weights = np.sqrt(np.arange(1, 31)) * np.maximum.accumulate(rates) ** 2
    for t in range(1, 31):
        np.testing.assert_allclose(x[t - 1], weights[:t] @ z[:t] / weights[:t].sum(), rtol=1e-11, atol=1e-12)


def test_schedule_free_of_growing_beta_is_linear_decay():
    """With beta_t = t/T, y is SGD with linear decay, for any gradients: so also for those taken at y."""
    T = 20
    rng = np.random.default_rng(0)
    noise = [[rng.normal(size=a.shape) for a in START] for _ in range(T)]
    iterates, scalars = oracles.schedule_free_sgd(START, lambda x, k: (0.0, noise[k - 1]), T, lr=0.3, momentum=0.0)
    z, x = vector(iterates), vector(scalars["averaged"])
    beta = np.arange(1, T + 1)[:, None] / T
    decayed, _ = oracles.sgd(START, lambda x, k: (0.0, noise[k - 1]), T, lr=0.3, schedule=linear_decay(T))
    np.testing.assert_allclose((1 - beta) * z + beta * x, vector(decayed), rtol=1e-12, atol=1e-13)


def test_schedule_free_without_beta_is_the_plain_optimizer():
    ours, _ = oracles.schedule_free_sgd(START, logistic, 30, lr=0.3, momentum=0.0, weight_decay=0.1)
    assert_same(ours, run_torch(torch.optim.SGD, logistic, 30, lr=0.3, weight_decay=0.1))
    ours, _ = oracles.schedule_free_adamw(START, logistic, 30, lr=0.03, betas=(0.0, 0.999), weight_decay=0.1)
    assert_same(ours, run_torch(torch.optim.AdamW, logistic, 30, lr=0.03, betas=(0.0, 0.999), weight_decay=0.1))

"""The oracles against the authors' own packages, in float64, wherever those packages do what their papers say."""

import numpy as np
import pytest
import torch

from untuned.testing import oracles

pytestmark = pytest.mark.parity

STEPS = 60
WAVE = [0.5 + 0.4 * np.sin(k) for k in range(STEPS)]
START = [np.array([[0.3, -1.2], [0.8, 0.1], [-0.4, 1.5]]), np.array([0.2, -0.7])]


def logistic(x, k):
    """Two logistic regressions with a shared batch that changes with k."""
    rng = np.random.default_rng(k)
    inputs, labels = rng.normal(size=(5, 3)), np.sign(rng.normal(size=(5, 2)))
    margins = labels * (inputs @ x[0] + x[1])
    slopes = -labels / (1 + np.exp(margins)) / 5
    return float(np.log1p(np.exp(-margins)).sum() / 5), [inputs.T @ slopes, slopes.sum(0)]


@pytest.fixture(autouse=True)
def _float64():
    """The packages keep their averages in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def run_package(optimizer_class, *, schedule=None, passes_loss=False, **options):
    parameters = [torch.tensor(a, requires_grad=True) for a in START]
    optimizer = optimizer_class(parameters, **options)
    if hasattr(optimizer, "train"):
        optimizer.train()
    lr = optimizer.param_groups[0]["lr"]
    iterates, numbers = [], []
    for k in range(1, STEPS + 1):
        loss, grads = logistic([p.detach().numpy() for p in parameters], k)
        for p, g in zip(parameters, grads, strict=True):
            p.grad = torch.tensor(g)
        optimizer.param_groups[0]["lr"] = lr * (1.0 if schedule is None else schedule[k - 1])
        optimizer.step(**({"loss": torch.tensor(loss, dtype=torch.float64)} if passes_loss else {}))
        iterates.append([p.detach().clone().numpy() for p in parameters])
        numbers.append(optimizer.param_groups[0].get("d"))
    return iterates, numbers, optimizer, parameters


def assert_same(ours, theirs, tolerance=1e-10):
    moved = max(np.abs(a - b).max() for a, b in zip(ours[-1], START, strict=True))
    assert moved > 1e-3, "the comparison says nothing: the parameters did not move"
    for k, (left, right) in enumerate(zip(ours, theirs, strict=True), 1):
        for a, b in zip(left, right, strict=True):
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=f"step {k}")


@pytest.mark.parametrize("lr", [0.05, 1.0, 1e3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.01},
        {"bias_correction": True},
        {"lb": 0.5, "weight_decay": 0.01},
        {"use_fstar": True},
        {"use_fstar": True, "lb": -2.0, "bias_correction": True, "weight_decay": 0.01, "beta": 0.8},
    ],
)
def test_momo(options, lr):
    momo = pytest.importorskip("momo")
    theirs, *_ = run_package(momo.Momo, passes_loss=True, schedule=WAVE, lr=lr, **options)
    assert_same(oracles.momo(START, logistic, STEPS, schedule=WAVE, lr=lr, **options)[0], theirs)


@pytest.mark.parametrize("lr", [0.01, 1.0, 1e3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.01},
        {"weight_decay": 1e-5, "divide": False, "lb": 0.4},
        {"betas": (0.8, 0.95), "eps": 1e-3},
        {"use_fstar": True},
        {"use_fstar": True, "lb": -2.0, "weight_decay": 0.01},
    ],
)
def test_momo_adam(options, lr):
    momo = pytest.importorskip("momo")
    theirs, *_ = run_package(momo.MomoAdam, passes_loss=True, schedule=WAVE, lr=lr, **options)
    assert_same(oracles.momo_adam(START, logistic, STEPS, schedule=WAVE, lr=lr, **options)[0], theirs)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_bias_correction": True, "weight_decay": 0.1},
        {"decouple": False, "weight_decay": 0.1},
        {"safeguard_warmup": True, "use_bias_correction": True, "d_coef": 3.0, "lr": 2.0},
        {"growth_rate": 1.3, "lr": 0.5},
        {"betas": (0.8, 0.99), "beta3": 0.9, "eps": 1e-3},
    ],
)
def test_prodigy(options):
    prodigyopt = pytest.importorskip("prodigyopt")
    options = {"d0": 1e-3, **options}
    theirs, theirs_d, *_ = run_package(prodigyopt.Prodigy, schedule=WAVE, **options)
    ours, scalars = oracles.prodigy(START, logistic, STEPS, schedule=WAVE, **options)
    assert_same(ours, theirs)
    np.testing.assert_allclose(scalars["d"], theirs_d, rtol=1e-10)
    assert scalars["d"][-1] > 10 * scalars["d"][0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_bias_correction": True, "weight_decay": 0.1},
        {"decouple": True, "weight_decay": 0.1},
        {"growth_rate": 1.3, "lr": 0.5},
        {"betas": (0.8, 0.99), "eps": 1e-3},
    ],
)
def test_dadapt_adam(options):
    dadaptation = pytest.importorskip("dadaptation")
    options = {"d0": 1e-3, **options}
    theirs, theirs_d, *_ = run_package(dadaptation.DAdaptAdam, schedule=WAVE, **options)
    ours, scalars = oracles.dadapt_adam(START, logistic, STEPS, schedule=WAVE, **options)
    assert_same(ours, theirs)
    np.testing.assert_allclose(scalars["d"], theirs_d, rtol=1e-10)
    assert scalars["d"][-1] > 10 * scalars["d"][0]


@pytest.mark.parametrize(
    ("base", "base_options", "options"),
    [
        ("SGD", {"lr": 0.1}, {}),
        ("SGD", {"lr": 1.0, "momentum": 0.9, "weight_decay": 0.1}, {"s_decay": 0.1}),
        ("SGD", {"lr": 1.0, "momentum": 0.9, "nesterov": True}, {"s_decay": 0.0, "betas": (0.9, 0.99)}),
        ("AdamW", {"lr": 1.0, "weight_decay": 0.0}, {}),
        ("AdamW", {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.99)}, {"s_init": 1e-6}),
    ],
)
def test_mechanic(base, base_options, options):
    mechanic_pytorch = pytest.importorskip("mechanic_pytorch")
    options = {"s_init": 1e-4, **options}
    packaged = mechanic_pytorch.mechanize(getattr(torch.optim, base), store_delta=True, **options)
    theirs, *_ = run_package(packaged, schedule=WAVE, **base_options)
    renamed = {"adam_betas" if name == "betas" else name: value for name, value in base_options.items()}
    ours, _ = oracles.mechanic(START, logistic, STEPS, base=base.lower(), schedule=WAVE, **renamed, **options)
    assert_same(ours, theirs)


@pytest.mark.parametrize("algorithm", ["SGD", "AdamW"])
@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.5},
        {"lr": 0.5, "warmup_steps": 20},
        {"lr": 0.1, "weight_decay": 0.1, "warmup_steps": 5, "r": 1.0, "weight_lr_power": 1.0},
    ],
)
def test_schedule_free(algorithm, options):
    schedulefree = pytest.importorskip("schedulefree")
    theirs, _, optimizer, parameters = run_package(
        getattr(schedulefree, f"{algorithm}ScheduleFree"), schedule=WAVE, **options
    )
    ours, scalars = getattr(oracles, f"schedule_free_{algorithm.lower()}")(
        START, logistic, STEPS, schedule=WAVE, **options
    )
    assert_same(ours, theirs)
    optimizer.eval()
    assert_same(scalars["averaged"][-1:], [[p.detach().numpy() for p in parameters]])

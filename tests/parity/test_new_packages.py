"""D-Adaptation's forms, MADGRAD, DoG, DoWG, Polyak steps and SNGM beside the published packages, in float64.

First the same steps, then a test for every place where a package goes another way, with the equation that decides.
DecSPS, TAPS, MOTAPS, GradaGrad, MDA, the convex and the resetting forms are in no package. Not installed here for what
they bring along: optax (JAX) and timm (torchvision).
"""

import contextlib
import importlib
import io
import math
import warnings

import numpy as np
import pytest
import torch
from test_packages import START, WAVE, loss_of, parameters, vector

import untuned
from untuned import directions, step_sizes
from untuned.weight_decay import Coupled, Decoupled

pytestmark = pytest.mark.parity

ADAN_IP = "dadaptation.experimental.dadapt_adan_ip.DAdaptAdanIP"
PO_NAMES = {
    "decouple": "weight_decouple",
    "decouple_decay": "weight_decouple",
    "use_bias_correction": "bias_correction",
}


@pytest.fixture(autouse=True)
def _float64():
    """The packages keep their averages in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def published(name, params, **options):
    """An optimizer of a package, by its dotted name; several print when they are built."""
    module, _, cls = name.rpartition(".")
    if module == "pytorch_optimizer":
        options = {PO_NAMES.get(option, option): value for option, value in options.items()}
    with contextlib.redirect_stdout(io.StringIO()):
        optimizer = getattr(importlib.import_module(module), cls)(params, **options)
    if hasattr(optimizer, "train"):
        optimizer.train()
    return optimizer


def step(optimizer, params, k, penalty=0.0):
    """One step on batch k; `penalty` is an L2 term in the loss itself."""
    optimizer.zero_grad()
    loss = loss_of(params, k) + penalty / 2 * sum((p**2).sum() for p in params)
    loss.backward()
    optimizer.step(lambda: loss.detach())


def run(make, steps=200, schedule=None, plus=0.0, penalty=0.0):
    """-> the parameters after each step, and the optimizer; every lr is lr * schedule + plus."""
    params = parameters()
    optimizer = make(params)
    lrs = [group.get("lr", 0.0) for group in optimizer.param_groups]
    points = []
    for k in range(steps):
        for group, lr in zip(optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr * (schedule[k] if schedule else 1.0) + plus
        step(optimizer, params, k, penalty)
        points.append(vector(params))
    return np.array(points), optimizer


def gap(ours, theirs, steps=200, **how):
    """The largest difference over all steps, as a share of the way that theirs goes."""
    expected = run(theirs, steps, **how)[0]
    way = np.abs(expected - vector(parameters())).max()
    assert way > 0.01
    return np.abs(run(ours, steps, **how)[0] - expected).max() / way


def ours(name, **options):
    return lambda params: untuned.create(params, name, **options)


def theirs(name, **options):
    return lambda params: published(name, params, **options)


def two_groups(params, **second):
    return [{"params": params[:1]}, {"params": params[1:], **second}]


# ---------------------------------------------------------------- the same steps

# our name, theirs, what theirs is told besides, options
STEADY = [
    (
        "dadapt_sgd",
        "dadaptation.DAdaptSGD",
        {},
        [{"lr": 0.5}, {"d0": 1e-3, "momentum": 0.9}, {"d0": 1e-3, "growth_rate": 1.02}],
    ),
    (
        "dadapt_adagrad",
        "dadaptation.DAdaptAdaGrad",
        {},
        [{"d0": 0.1}, {"d0": 0.1, "momentum": 0.9, "weight_decay": 0.1}, {"d0": 0.1, "growth_rate": 1.02, "eps": 1e-3}],
    ),
    (
        "dadapt_lion",
        "dadaptation.DAdaptLion",
        {},
        [{}, {"d0": 1e-3, "weight_decay": 0.1}, {"betas": (0.5, 0.9)}],
    ),
    (
        "dadapt_adan",
        ADAN_IP,
        {},
        [
            {},
            {"d0": 1e-3, "weight_decay": 0.1},
            {"no_prox": True, "weight_decay": 0.1},
            {"betas": (0.5, 0.9, 0.9)},
            {"d0": 1e-3, "growth_rate": 1.02, "lr": 0.5},
        ],
    ),
    ("dog", "dog.DoG", {}, [{"reps_rel": 1e-2, "weight_decay": 0.1}, {"reps_rel": 1e-2, "lr": 0.5, "eps": 1e-2}]),
    ("ldog", "dog.LDoG", {}, [{"reps_rel": 1e-2, "weight_decay": 0.1}, {"reps_rel": 1e-2, "lr": 0.5, "eps": 1e-2}]),
    ("sps", "momo.Momo", {"beta": 0.0}, [{"lr": 0.5}, {"lr": 5.0, "lb": 0.3}]),
    (
        "prox_sps",
        "momo.Momo",
        {"beta": 0.0},
        [
            {"lr": 0.5},
            {"lr": 5.0, "lb": 0.3},
            {"lr": 0.5, "weight_decay": 0.1},
            {"lr": 5.0, "weight_decay": 0.1, "lb": 0.3},
        ],
    ),
    (
        "dadapt_adagrad",
        "pytorch_optimizer.DAdaptAdaGrad",
        {"eps": 1e-6},
        [{"d0": 0.1}, {"d0": 0.1, "momentum": 0.9, "weight_decay": 0.1}],
    ),
    (
        "dadapt_lion",
        "pytorch_optimizer.DAdaptLion",
        {"betas": (0.9, 0.99), "weight_decouple": True},
        [{}, {"d0": 1e-3, "weight_decay": 0.1}],
    ),
    (
        "dadapt_adam",
        "pytorch_optimizer.DAdaptAdam",
        {},
        [{"d0": 1e-3, "use_bias_correction": True, "weight_decay": 0.1, "lr": 0.5}, {"d0": 1e-3, "decouple": True}],
    ),
    ("prodigy", "pytorch_optimizer.Prodigy", {}, [{}, {"d0": 1e-3, "use_bias_correction": True}]),
    ("schedule_free_sgd", "pytorch_optimizer.ScheduleFreeSGD", {}, [{"lr": 0.5, "weight_decay": 0.1}]),
    ("schedule_free_adamw", "pytorch_optimizer.ScheduleFreeAdamW", {}, [{"lr": 0.05, "weight_decay": 0.1}]),
]
# From a small d0, or with a step that no cap binds, the run amplifies rounding: within 1e-10 up to the step given.
UNSTEADY = [
    (150, "dadapt_sgd", "dadaptation.DAdaptSGD", {}, [{}]),
    (110, "dadapt_sgd", "dadaptation.DAdaptSGD", {}, [{"momentum": 0.9}]),
    (30, "sps", "momo.Momo", {"beta": 0.0}, [{"lr": 50.0}]),
    (30, "prox_sps", "momo.Momo", {"beta": 0.0}, [{"lr": 50.0}, {"lr": 50.0, "weight_decay": 0.1, "lb": 0.3}]),
]


@pytest.mark.parametrize(
    ("horizon", "tolerance", "name", "package", "besides", "options"),
    [
        pytest.param(horizon, tolerance, name, package, besides, options, id=f"{name}-{package}-{options}")
        for table, tolerance in (([(200, *row) for row in STEADY], 1e-12), (UNSTEADY, 1e-10))
        for horizon, name, package, besides, rows in table
        for options in rows
    ],
)
def test_steps_are_those_of_the_package(horizon, tolerance, name, package, besides, options):
    """`horizon` steps on a varying lr, to `tolerance` of the way gone."""
    own = {"c": 1.0} if name == "sps" else {}
    expected, reference = run(theirs(package, **options, **besides), horizon, WAVE)
    points, optimizer = run(ours(name, **options, **own), horizon, WAVE)
    way = np.abs(expected - vector(parameters())).max()
    assert way > 0.01
    assert np.abs(points - expected).max() <= tolerance * way
    if "d" in reference.param_groups[0]:
        assert optimizer.metrics()["d"] == pytest.approx(float(reference.param_groups[0]["d"]), rel=tolerance)


class NormalisedSGD(torch.optim.SGD):
    """Heavy ball on gradients divided by the norm of them all."""

    def step(self, closure=None):
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        norm = torch.cat([g.flatten() for g in grads]).norm()
        for g in grads:
            g /= norm
        return super().step(closure)


@pytest.mark.parametrize(
    ("mine", "reference", "horizon", "tolerance"),
    [
        pytest.param(ours("sngm", lr=0.05), lambda p: NormalisedSGD(p, lr=0.05, momentum=0.9), 200, 1e-12, id="sngm"),
        pytest.param(ours("sp"), theirs("momo.Momo", lr=1e9, beta=0.0), 20, 1e-10, id="sp"),
        pytest.param(
            lambda p: untuned.compose(p, directions.Lion(), step_sizes.Fixed(1e-2), decay=Decoupled(0.1)),
            theirs("pytorch_optimizer.Lion", lr=1e-2, weight_decay=0.1),
            200,
            1e-12,
            id="lion",
        ),
        pytest.param(
            lambda p: untuned.compose(p, directions.AdaGrad(), step_sizes.Fixed(0.1), decay=Coupled(0.1)),
            theirs("torch.optim.Adagrad", lr=0.1, weight_decay=0.1),
            200,
            1e-12,
            id="adagrad",
        ),
        pytest.param(
            lambda p: untuned.compose(p, directions.Adan(), step_sizes.Fixed(1e-2), decay=Decoupled(0.1)),
            theirs(ADAN_IP, d0=1e-2, growth_rate=1.0, no_prox=True, weight_decay=0.1),
            200,
            1e-12,
            id="adan",
        ),
    ],
)
def test_parts_are_those_of_the_package(mine, reference, horizon, tolerance):
    """Polyak's uncapped step amplifies rounding after 20 steps. Adan is DAdaptAdanIP whose d may not grow."""
    assert gap(mine, reference, horizon) <= tolerance


# ---------------------------------------------------------------- other steps, on purpose: dadaptation

SGD = ("dadaptation.DAdaptSGD", "dadapt_sgd", {"d0": 1e-3, "momentum": 0.9})
ADAGRAD = ("dadaptation.DAdaptAdaGrad", "dadapt_adagrad", {"d0": 0.1})
LION = ("dadaptation.DAdaptLion", "dadapt_lion", {"d0": 1e-3})
ADAN = (ADAN_IP, "dadapt_adan", {"d0": 1e-4})
MADGRAD = ("madgrad.MADGRAD", "madgrad", {"lr": 0.05})
MIRROR = ("madgrad.MirrorMADGRAD", "mirror_madgrad", {"lr": 0.05})
DOG = ("dog.DoG", "dog", {"reps_rel": 1e-2})
LDOG = ("dog.LDoG", "ldog", {"reps_rel": 1e-2})


@pytest.mark.parametrize("package", ["dadaptation.DAdaptSGD", "pytorch_optimizer.DAdaptSGD"])
def test_norm_of_the_first_gradient_is_that_of_the_objective(package):
    """arXiv 2301.07733, SGD form: lambda_k = d_k gamma_k / |g_0|, g_k being the gradient of the objective.

    Weight decay is a term of the objective, and written into the loss it gives the packages our steps; given as an
    option, they leave it out of |g_0|. (pytorch_optimizer takes |g_0| in float32, hence the tolerance.)
    """
    options = {"d0": 1e-3, "momentum": 0.9}
    told = run(theirs(package, weight_decay=0.1, **options), 50)[0]
    written = run(theirs(package, **options), 50, penalty=0.1)[0]
    mine = run(ours("dadapt_sgd", weight_decay=0.1, **options), 50)[0]
    way = np.abs(written - vector(parameters())).max()
    assert np.abs(told - written).max() > 0.05 * way
    assert np.abs(mine - written).max() < (1e-10 if package.startswith("dadaptation") else 1e-5) * way


def test_each_group_decays_by_its_own_weight_decay():
    """DAdaptSGD of the package takes that of the first group for all. The objective has one term per group."""

    def gap_of_the_second_term(make):
        plain = run(lambda p: make(two_groups(p)), 20)[0]
        return np.abs(run(lambda p: make(two_groups(p, weight_decay=0.1)), 20)[0] - plain).max()

    package, name, options = SGD
    assert gap_of_the_second_term(theirs(package, **options)) == 0
    assert gap_of_the_second_term(ours(name, **options)) > 1e-4


@pytest.mark.parametrize(("package", "name", "options"), [SGD, LION, ADAGRAD, ADAN])
def test_groups_keep_their_lr(package, name, options):
    """The packages refuse lrs that differ (SGD, Lion), or take the first group's for all (AdaGrad, Adan).

    arXiv 2301.07733 has one gamma_k; ours for a group at f of it is the same method in units 1 / f (in 1 / sqrt(f) for
    plain gradients), so a run on rescaled parameters decides.
    """

    def build(params):
        return published(package, two_groups(params, lr=0.1), **options)

    if name in ("dadapt_sgd", "dadapt_lion"):
        with pytest.raises(RuntimeError, match="different lr values"):
            run(build, 1)
    else:
        assert np.array_equal(run(build, 20)[0], run(theirs(package, **options), 20)[0])

    scale = math.sqrt(0.1) if name == "dadapt_sgd" else 0.1

    def rescaled(make, steps):
        """The tensors of the second group in the units in which they move as the others do."""
        params = parameters()
        inner = [params[0], *(torch.nn.Parameter(p.detach() / scale) for p in params[1:])]
        optimizer = make(inner)
        for k in range(steps):
            optimizer.zero_grad()
            seen = [inner[0], *(p * scale for p in inner[1:])]
            loss = loss_of(seen, k)
            loss.backward()
            optimizer.step(lambda loss=loss: loss.detach())
        return vector([inner[0], *(p * scale for p in inner[1:])])

    exact = options | ({} if name in ("dadapt_sgd", "dadapt_lion") else {"eps": 1e-14})
    there = rescaled(theirs(package, **exact), 50)
    here = run(lambda p: untuned.create(two_groups(p, lr=0.1), name, **exact), 50)[0][-1]
    print(np.abs(here - there).max() / np.abs(there - vector(parameters())).max())
    assert np.abs(here - there).max() < 1e-6 * np.abs(there - vector(parameters())).max()


@pytest.mark.parametrize(("package", "name", "options"), [SGD, ADAGRAD, LION, ADAN, MADGRAD, MIRROR])
def test_group_at_lr_0_stays(package, name, options):
    """In the packages it goes on towards its average or, where the first group's lr serves all, as if it had an lr."""

    def drift(make):
        params = parameters()
        optimizer = make(two_groups(params))
        for k in range(60):
            optimizer.param_groups[1]["lr"] = optimizer.param_groups[0]["lr"] if k < 40 else 0.0
            step(optimizer, params, k)
            if k == 40:
                before = vector(params)
        return np.abs(vector(params) - before)[6:].max()

    assert drift(theirs(package, **options)) > 1e-3
    assert drift(ours(name, **options)) == 0


def test_zero_gradient_is_no_error():
    """DAdaptSGD of the package divides by |g_0| and by |s|. Algorithm 1 of arXiv 2301.07733 stays if g_0 = 0."""

    def rest(optimizer, params):
        for p in params:
            p.grad = torch.zeros_like(p)
        optimizer.step()
        assert np.array_equal(vector(params), vector(parameters()))
        step(optimizer, params, 0)
        return np.abs(vector(params) - vector(parameters())).max()

    params = parameters()
    with pytest.raises(ZeroDivisionError):
        rest(published("dadaptation.DAdaptSGD", params), params)
    params = parameters()
    assert rest(untuned.DAdaptSGD(params, d0=1e-3), params) == pytest.approx(
        np.abs(run(ours("dadapt_sgd", d0=1e-3), 1)[0] - vector(parameters())).max(), rel=1e-12
    )


@pytest.mark.parametrize(("package", "name", "options"), [SGD, LION])
def test_tensor_that_rests_does_not_raise_the_estimate(package, name, options):
    """The packages keep its share of the numerator over a norm of s without it.

    arXiv 2301.07733, Theorem 1: d <= |x0 - x*| of the problem at hand, which is here 1, within the factor 2 of the
    SGD form, once the tensor that had 100 to go is left out.
    """

    def estimate(make):
        far, near = (torch.nn.Parameter(torch.tensor([way])) for way in (100.0, 1.0))
        optimizer = make([far, near])
        for k in range(60):
            far.grad = far.detach().sign() if k < 20 else None
            near.grad = near.detach().sign()
            optimizer.step()
        return float(optimizer.param_groups[0]["d"])

    print(estimate(theirs(package, **options)), estimate(ours(name, **options)))
    assert 0

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


def gap(mine, reference, steps=200, **how):
    """The largest difference over all steps, as a share of the way that the reference goes."""
    expected = run(reference, steps, **how)[0]
    way = np.abs(expected - vector(parameters())).max()
    assert way > 0.01
    return np.abs(run(mine, steps, **how)[0] - expected).max() / way


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
    own = {"c": 1.0} if name == "sps" else {}  # ours is 1/2
    expected, reference = run(theirs(package, **options, **besides), horizon, WAVE)
    points, optimizer = run(ours(name, **options, **own), horizon, WAVE)
    way = np.abs(expected - vector(parameters())).max()
    assert way > 0.01
    assert np.abs(points - expected).max() <= tolerance * way
    if "d" in reference.param_groups[0]:
        assert optimizer.param_groups[0]["d"] == pytest.approx(float(reference.param_groups[0]["d"]), rel=tolerance)


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

    arXiv 2301.07733 has one gamma_k for all coordinates. A group at a share f of it moves f times as far, as the method
    does on the group's parameters over f (over sqrt(f) for plain gradients): the package, run so, takes our steps. The
    constants eps and 1e-6 in the roots have no units.
    """

    def build(params):
        return published(package, two_groups(params, lr=0.1), **options)

    plain = name in ("dadapt_sgd", "dadapt_lion")
    if plain:
        with pytest.raises(RuntimeError, match="different lr values"):
            run(build, 1)
    else:
        assert np.array_equal(run(build, 20)[0], run(theirs(package, **options), 20)[0])

    unit = math.sqrt(0.1) if name == "dadapt_sgd" else 0.1
    options = options | ({} if plain else {"eps": 1e-14, "weight_decay": 0.0})
    inner = [torch.nn.Parameter(p.detach() / u) for p, u in zip(parameters(), (1.0, unit, unit), strict=True)]
    optimizer = published(package, inner, **options)
    for k in range(50):
        optimizer.zero_grad()
        loss_of([inner[0], inner[1] * unit, inner[2] * unit], k).backward()
        optimizer.step()
    expected = vector([inner[0], inner[1] * unit, inner[2] * unit])
    mine = run(lambda p: untuned.create(two_groups(p, lr=0.1), name, **options), 50)[0][-1]
    tolerance = 1e-3 if name == "dadapt_adagrad" else 1e-9
    assert np.abs(mine - expected).max() < tolerance * np.abs(expected - vector(parameters())).max()


@pytest.mark.parametrize(("package", "name", "options"), [SGD, ADAGRAD, LION, ADAN, MADGRAD, MIRROR])
def test_group_at_lr_0_stays(package, name, options):
    """In the packages it goes on towards its average or, where the first group's lr serves all, as if it had an lr.

    No paper has groups; that lr 0 freezes is our rule for all methods.
    """

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
    """DAdaptSGD of the package divides by |g_0| and |s|. arXiv 2301.07733, Algorithm 1: if g_0 = 0, x_0 is returned."""

    def rest(optimizer, params):
        for p in params:
            p.grad = torch.zeros_like(p)
        optimizer.step()
        assert np.array_equal(vector(params), vector(parameters()))
        step(optimizer, params, 0)
        return vector(params)

    params = parameters()
    with pytest.raises(ZeroDivisionError):
        rest(published("dadaptation.DAdaptSGD", params), params)
    params = parameters()
    np.testing.assert_array_equal(rest(untuned.DAdaptSGD(params), params), run(ours("dadapt_sgd"), 1)[0][0])


@pytest.mark.parametrize(
    ("package", "name", "options", "until"),
    [
        ("dadaptation.DAdaptSGD", "dadapt_sgd", {"d0": 1e-3}, 14),
        ("dadaptation.DAdaptAdam", "dadapt_adam", {"d0": 1e-3}, 8),
        (ADAN_IP, "dadapt_adan", {"d0": 1e-4, "weight_decay": 0.0}, 14),
    ],
)
def test_tensor_that_rests_does_not_raise_the_estimate(package, name, options, until):
    """The packages keep its part of the numerator, over a norm of s without it.

    arXiv 2301.07733, Algorithm 1: d_hat is a lower bound of the distance, here 1 for the tensor that goes on alone (2
    in the SGD form, which doubles the bound). AdaGrad's package keeps both parts, ours neither.
    """

    def estimates(make):
        far, near = (torch.nn.Parameter(torch.tensor([way])) for way in (100.0, 1.0))
        optimizer = make([far, near])
        for k in range(300):
            far.grad = 10 * far.detach().sign() if k < until else None
            near.grad = 0.1 * near.detach().sign()
            optimizer.step()
            if k == until - 1:
                before = float(optimizer.param_groups[0]["d"])
        return before, float(optimizer.param_groups[0]["d"])

    before, after = estimates(theirs(package, **options))
    assert after > 20 * max(before, 2.0)
    before, after = estimates(ours(name, **options))
    assert after <= max(before, 2.0)


@pytest.mark.parametrize(
    ("package", "name", "options"),
    [
        ("dadaptation.DAdaptAdan", "dadapt_adan", {"d0": 1e-2}),
        ("dadaptation.experimental.dadapt_adam_preprint.DAdaptAdamPreprint", "dadapt_adam", {"d0": 1e-2}),
    ],
)
def test_estimate_sums_inner_products(package, name, options):
    """These classes have the earlier numerator |s|^2 / A - sum of h^2 |g|^2 / A, ours the later sum of h <g, s> / A.

    arXiv 2301.07733, the tighter bound of its appendix, which the authors' DAdaptAdam and DAdaptAdanIP have too: it
    dominates the earlier one. The first steps, at d0, are the same.
    """
    earlier, reference = run(theirs(package, **options), 40)
    later, optimizer = run(ours(name, **options), 40)
    np.testing.assert_allclose(later[:2], earlier[:2], rtol=1e-12)
    assert optimizer.param_groups[0]["d"] > 1.1 * reference.param_groups[0]["d"]


def test_closure_may_call_backward():
    """DAdaptAdanIP calls it with gradients disabled."""

    def first(make):
        params = parameters()
        optimizer = make(params)

        def closure():
            optimizer.zero_grad()
            loss = loss_of(params, 0)
            loss.backward()
            return loss

        optimizer.step(closure)
        return vector(params)

    with pytest.raises(RuntimeError, match="does not require grad"):
        first(theirs(ADAN_IP))
    np.testing.assert_array_equal(first(ours("dadapt_adan")), run(ours("dadapt_adan"), 1)[0][0])


# ---------------------------------------------------------------- other steps, on purpose: madgrad

MADGRADS = [
    ("madgrad", "madgrad.MADGRAD", 1e-6),
    ("mirror_madgrad", "madgrad.MirrorMADGRAD", 0.0),
    ("madgrad", "pytorch_optimizer.MADGRAD", 1e-6),
]


@pytest.mark.parametrize(("name", "package", "eps"), MADGRADS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.0},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "decouple_decay": True},
        {"eps": 1e-3, "momentum": 0.5},
    ],
    ids=str,
)
def test_lr_of_madgrad_is_taken_as_it_is(name, package, eps, options):
    """The packages add eps to lr, which is 0 in MirrorMADGRAD unless told otherwise; told lr - eps, they agree.

    arXiv 2101.11075, Algorithm 1: lambda_k = gamma sqrt(k + 1).
    """
    eps = options.get("eps", eps)
    points = run(ours(name, lr=0.05, **options), 200, WAVE)[0]
    way = np.abs(points - vector(parameters())).max()
    assert way > 0.1
    assert np.abs(run(theirs(package, lr=0.05, **options), 200, WAVE, plus=-eps)[0] - points).max() < 1e-12 * way
    if eps > 0:
        assert np.abs(run(theirs(package, lr=0.05, **options), 20, WAVE)[0] - points[:20]).max() > eps * way


@pytest.mark.filterwarnings("ignore:.*hardly decays")
@pytest.mark.parametrize("package", ["madgrad.MADGRAD", "pytorch_optimizer.MADGRAD"])
def test_madgrad_without_momentum_keeps_its_start(package):
    """The packages then rebuild x_0 from the parameters, which decoupled weight decay has moved.

    arXiv 2101.11075, Algorithm 1: z_{k+1} = x_0 - s_{k+1} / v^(1/3), x_0 being the first point; with a small momentum
    the packages have it so.
    """

    def to_the_limit(make):
        decay = {"lr": 0.05, "weight_decay": 0.1, "decouple_decay": True}
        none, little = (run(make(momentum=momentum, **decay), 40)[0] for momentum in (0.0, 1e-13))
        return np.abs(none - little).max()

    assert to_the_limit(lambda **o: theirs(package, **o)) > 0.1
    assert to_the_limit(lambda **o: ours("madgrad", **o)) < 1e-9


@pytest.mark.parametrize(("name", "package"), [(name, package) for name, package, _ in MADGRADS])
def test_tensor_that_joins_late_starts_at_step_1(name, package):
    """The packages count the steps of the run, so that its first step, at step 125, is cbrt(125) = 5 times too long.

    arXiv 2101.11075, Algorithm 1: lambda_0 = gamma. The iterates of the tensor begin when it does.
    """

    def first_step(make):
        early, late = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
        optimizer = make([early, late])
        for k in range(125):
            early.grad = torch.ones(2)
            late.grad = torch.ones(2) if k == 124 else None
            optimizer.step()
        return 1 - late.detach().numpy()

    options = {"lr": 1e-3, "eps": 0.0, "momentum": 0.5}
    right = 0.5 * (1e-3 if name == "mirror_madgrad" else 1e-2)
    np.testing.assert_allclose(first_step(theirs(package, **options)), 5 * right, rtol=1e-12)
    np.testing.assert_allclose(first_step(ours(name, **options)), right, rtol=1e-12)


def test_madgrad_without_eps_and_momentum_is_finite():
    """The package rebuilds x_0 from s / v^(1/3) = 0 / 0. arXiv 2101.11075, Algorithm 1: x_0 is given."""
    options = {"lr": 0.05, "eps": 0.0, "momentum": 0.0}
    assert np.isnan(run(theirs("madgrad.MADGRAD", **options), 1)[0]).all()
    assert gap(ours("madgrad", **options), theirs("pytorch_optimizer.MADGRAD", **options), schedule=WAVE) < 1e-12


# ---------------------------------------------------------------- other steps, on purpose: dog and dowg


def test_dog_has_one_distance_for_all_groups():
    """The package has one per group. arXiv 2302.12022, equation (DoG): x is one vector; L-DoG is the form in parts.

    `scope="group"` gives the package's steps.
    """

    def mine(scope):
        rule = step_sizes.DoG(reps_rel=1e-2, scope=scope)
        return lambda p: untuned.compose(two_groups(p, weight_decay=0.1), directions.Gradient(), rule, decay=Coupled())

    def cut(params):
        return published("dog.DoG", two_groups(params, weight_decay=0.1), reps_rel=1e-2)

    assert gap(mine("model"), cut) > 0.01
    assert gap(mine("group"), cut, schedule=WAVE) < 1e-12
    assert gap(lambda p: untuned.DoG(two_groups(p), reps_rel=1e-2), theirs("dog.DoG", reps_rel=1e-2)) < 1e-12


@pytest.mark.parametrize(("package", "name", "options"), [DOG, LDOG])
def test_dog_lets_a_tensor_without_gradient_rest(package, name, options):
    """The package raises: its sum of squared gradients needs one of every tensor."""

    def late(make):
        params = parameters()
        optimizer = make(params)
        (params[0] ** 2).sum().backward()
        optimizer.step()
        assert torch.equal(params[1], parameters()[1])

    with pytest.raises((AttributeError, TypeError), match="NoneType"):
        late(theirs(package, **options))
    late(ours(name, **options))


@pytest.mark.parametrize("eps", [1e-4, 1e-2])
def test_dowg_starts_near_and_does_not_clip(eps):
    """dowg takes 1 - eps for its eps and clips each coordinate of the gradient at 1/2.

    arXiv 2305.16284, Algorithm 1: r_{-1} = r_eps, a small number, and the step is along the gradient. Told so, it
    agrees.
    """
    mine = ours("dowg", eps=eps)
    assert gap(mine, theirs("dowg.ScalarDoWG", eps=1 - eps, clip=math.inf)) < 1e-12
    assert gap(mine, theirs("dowg.ScalarDoWG", eps=1 - eps), 40) > 1e-3
    assert gap(mine, theirs("dowg.ScalarDoWG", eps=eps, clip=math.inf), 40) > 0.1


# ---------------------------------------------------------------- other steps, on purpose: Polyak


def test_prox_sps_minimises_its_model_over_groups():
    """momo-opt with beta = 0 computes the step once per group as if its weight decay were that of all.

    arXiv 2301.04935: the step minimises max(f + <g, y - x>, 0) + |y - x|^2 / (2 lr) + the decay terms of y.
    """

    def model(make):
        params = parameters()
        loss = loss_of(params, 0)
        grads = torch.autograd.grad(loss, params)
        with warnings.catch_warnings(action="ignore"):  # it warns of several groups
            y = run(lambda p: make(two_groups(p, weight_decay=0.1)), 1)[0][0]
        x, g = vector(params), torch.cat([g.flatten() for g in grads]).numpy()
        distance, decayed = ((y - x) ** 2).sum(), (y[6:] ** 2).sum()
        return max(loss.item() + g @ (y - x), 0.0) + distance / (2 * 100.0) + 0.1 / 2 * decayed

    assert model(theirs("momo.Momo", lr=100.0, beta=0.0)) > 1.5 * model(ours("prox_sps", lr=100.0))


def test_alig_has_the_authors_delta():
    """pytorch_optimizer has 1e-6, beside a |g|^2 in float32, and steps uphill on a negative loss.

    arXiv 1906.05661, Algorithm 1: gamma = min(loss / (|g|^2 + delta), eta), with delta = 1e-5 in the authors' code, for
    losses that are not negative. With eps=1e-6 the steps agree to the float32.
    """

    def move(make, loss, slope):
        p = torch.nn.Parameter(torch.zeros(1))
        optimizer = make([p])
        p.grad = torch.full_like(p, slope)
        optimizer.step(lambda: torch.tensor(loss))
        return -p.item()

    there, here, same = (
        theirs("pytorch_optimizer.AliG", max_lr=3.0),
        ours("alig", lr=3.0),
        ours("alig", lr=3.0, eps=1e-6),
    )
    assert move(there, 1e-6, 1e-3) == pytest.approx(1e-3 * 1e-6 / 2e-6, rel=1e-6)
    assert move(here, 1e-6, 1e-3) == pytest.approx(1e-3 * 1e-6 / 1.1e-5, rel=1e-12)
    assert move(there, -1.0, 1.0) == pytest.approx(-1.0, rel=1e-5)
    assert move(here, -1.0, 1.0) == 0
    assert gap(same, there) < 1e-4
    assert gap(ours("alig", lr=0.3), theirs("pytorch_optimizer.AliG", max_lr=0.3)) < 1e-12


# ---------------------------------------------------------------- other steps, on purpose: pytorch_optimizer


def test_norm_of_the_first_gradient_is_no_float32():
    """pytorch_optimizer rounds |g_0| of DAdaptSGD to float32 whatever the parameters are; else the steps are the same.

    arXiv 2301.07733, SGD form: G = |g_0|.
    """
    make = theirs("pytorch_optimizer.DAdaptSGD", lr=0.5, momentum=0.9)
    norm = run(make, 1)[1].param_groups[0]["g0_norm"]
    params = parameters()
    loss_of(params, 0).backward()
    exact = float(torch.cat([p.grad.flatten() for p in params]).norm())
    assert 1e-12 < abs(norm / exact - 1) < 1e-7
    assert run(ours("dadapt_sgd"), 1)[1].param_groups[0]["g0_norm"] == pytest.approx(exact, rel=1e-14)
    assert gap(ours("dadapt_sgd", lr=0.5, momentum=0.9), make, schedule=WAVE) < 1e-5


def test_adan_squares_its_gradients_once():
    """pytorch_optimizer's DAdaptAdan squares them twice, so that the step grows as the gradient shrinks.

    arXiv 2208.06677, Algorithm 1: n_k averages (g_k + ...)^2. The first step is along the signs.
    """
    params = parameters()
    loss_of(params, 0).backward()
    g = torch.cat([p.grad.flatten() for p in params]).numpy()
    options = {"d0": 1e-2, "weight_decay": 0.0}
    there = vector(parameters()) - run(theirs("pytorch_optimizer.DAdaptAdan", **options), 1)[0][0]
    here = vector(parameters()) - run(ours("dadapt_adan", **options), 1)[0][0]
    np.testing.assert_allclose(there, 1e-2 * 0.02 * g / (0.1 * g**2 + 1e-8), rtol=1e-10)
    np.testing.assert_allclose(here, 1e-2 * 0.02 * g / (0.1 * np.abs(g) + 1e-8), rtol=1e-10)


def test_coupled_decay_of_prodigy_enters_the_gradient():
    """pytorch_optimizer adds it to the gradient after the last use of the gradient: nothing changes.

    arXiv 2306.06101, Algorithm 4: g_k is the gradient of the objective, of which coupled decay is a term.
    """
    options = {"d0": 1e-3, "decouple": False}

    def change(make):
        return np.abs(run(make(weight_decay=0.1), 20)[0] - run(make(weight_decay=0.0), 20)[0]).max()

    assert change(lambda **o: theirs("pytorch_optimizer.Prodigy", **options, **o)) == 0
    assert change(lambda **o: ours("prodigy", **options, **o)) > 1e-6
    told = run(ours("prodigy", weight_decay=0.1, **options), 20)[0]
    written = run(theirs("pytorch_optimizer.Prodigy", **options), 20, penalty=0.1)[0]
    np.testing.assert_allclose(told, written, rtol=1e-12)


@pytest.mark.parametrize(("package", "name"), [("TAM", "tam"), ("AdaTAM", "adatam")])
def test_tam_has_one_cosine_per_tensor(package, name):
    """pytorch_optimizer multiplies normalised columns elementwise, so that every coordinate has its own damping.

    arXiv 2412.18790: s_t averages <m, g> / (|m| |g|), one number, from s_0 = 0 and m_0 = 0, and m takes (1 + s_t) / 2
    of g. For a tensor of one element AdaTAM agrees; TAM there begins at m = g, hence with 0.9 g + 0.55 g for g / 2.
    """
    there, here = theirs(f"pytorch_optimizer.{package}", lr=0.01), ours(name, lr=0.01)
    assert gap(here, there, 20) > 0.05
    if name == "adatam":
        assert gap(lambda p: here(p[2:]), lambda p: there(p[2:])) < 1e-12
        return
    params = parameters()
    loss_of(params, 0).backward()
    first = [(START[2] - run(lambda p, make=make: make(p[2:]), 1)[0][0, 8:]).item() for make in (there, here)]
    assert np.array(first) / params[2].grad.item() == pytest.approx([0.0145, 0.005], rel=1e-6)


def test_adan_starts_from_zero_averages():
    """pytorch_optimizer corrects the bias of the averages; ours has the form of the D-Adaptation package, without.

    arXiv 2208.06677, Algorithm 1, is on its side: it starts the averages at g_0 and g_0^2, so that the first step is
    lr. Ours is (1 - beta1) / sqrt(1 - beta3) of that, as is the package's.
    """
    params = parameters()
    loss_of(params, 0).backward()
    g = torch.cat([p.grad.flatten() for p in params]).numpy()

    def first(make):
        return vector(parameters()) - run(make, 1)[0][0]

    def mine(params):
        return untuned.compose(params, directions.Adan(), step_sizes.Fixed(1e-2), decay=Decoupled(0.0))

    full, small = 1e-2 * g / (np.abs(g) + 1e-8), 1e-2 * 0.02 * g / (0.1 * np.abs(g) + 1e-8)
    np.testing.assert_allclose(first(theirs("pytorch_optimizer.Adan", lr=1e-2)), full, rtol=1e-10)
    np.testing.assert_allclose(first(theirs(ADAN_IP, d0=1e-2, weight_decay=0.0)), small, rtol=1e-10)
    np.testing.assert_allclose(first(mine), small, rtol=1e-10)


# ---------------------------------------------------------------- other steps, on purpose: all of them


@pytest.mark.parametrize(
    ("package", "name", "options"),
    [
        SGD,
        ADAGRAD,
        LION,
        ADAN,
        MADGRAD,
        MIRROR,
        DOG,
        LDOG,
        ("dowg.ScalarDoWG", "dowg", {}),
        ("momo.Momo", "prox_sps", {"lr": 0.5}),
        ("pytorch_optimizer.AliG", "alig", {}),
    ],
)
def test_nan_gradient_does_not_end_the_run(package, name, options):
    """In the packages the weights are lost, or never move again (Lion), or an assertion fails (DoG).

    No paper says what to do; ours goes on as if that step had not been.
    """

    def points(make, poisoned):
        params = parameters()
        optimizer = make(params)
        for k in range(10):
            if k == 5:
                before = vector(params)
            if k == 5 and poisoned:
                for p in params:
                    p.grad = torch.full_like(p, math.nan)
                optimizer.step(lambda: torch.tensor(1.0))
            step(optimizer, params, k)
        return before, vector(params)

    fails = pytest.raises(AssertionError, match="strictly positive")
    with fails if package.startswith("dog.") else contextlib.nullcontext():
        before, after = points(theirs(package, **options), poisoned=True)
        assert np.isnan(after).any() or np.array_equal(after, before)
    mine = ours(name, **options)
    np.testing.assert_array_equal(points(mine, poisoned=True), points(mine, poisoned=False))


@pytest.mark.parametrize(("package", "name", "options"), [SGD, ADAGRAD, MADGRAD, MIRROR, DOG, LDOG])
def test_gradients_are_left_as_they_are(package, name, options):
    """The packages add the weight decay to `p.grad` in place."""

    def changed(make):
        params = parameters()
        optimizer = make(params)
        loss_of(params, 0).backward()
        before = [p.grad.clone() for p in params]
        optimizer.step()
        return not all(torch.equal(p.grad, g) for p, g in zip(params, before, strict=True))

    assert changed(theirs(package, weight_decay=0.1, **options))
    assert not changed(ours(name, weight_decay=0.1, **options))

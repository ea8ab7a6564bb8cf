"""The optimizers beside the published packages in float64: the same steps, and where they differ on purpose."""

import contextlib
import copy
import io
import math
import warnings

import numpy as np
import pytest
import torch

import untuned

pytestmark = pytest.mark.parity

START = [np.array([[0.3, -1.2], [0.8, 0.1], [-0.4, 1.5]]), np.array([0.2, -0.7]), np.array([0.5])]
WAVE = [0.6 + 0.4 * math.sin(k) for k in range(200)]


@pytest.fixture(autouse=True)
def _float64():
    """The packages keep their averages in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def raises(error, match=None):
    """`pytest.raises` that undoes what mechanic-pytorch leaves behind: gradients disabled everywhere."""
    try:
        with pytest.raises(error, match=match):
            yield
        assert not torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(True)


def parameters(dtype=torch.float64):
    return [torch.nn.Parameter(torch.tensor(a, dtype=dtype)) for a in START]


def loss_of(params, k):
    """A tanh layer with a common gain and two logistic losses, on a batch that changes with the step."""
    rng = np.random.default_rng(k)
    inputs = torch.tensor(rng.normal(size=(5, 3)), dtype=params[0].dtype)
    labels = torch.tensor(np.sign(rng.normal(size=(5, 2))), dtype=params[0].dtype)
    return torch.nn.functional.softplus(-labels * (params[2] * torch.tanh(inputs @ params[0]) + params[1])).sum() / 5


def published(name, params, **options):
    """An optimizer of a package, by its dotted name; several print when they are built."""
    module, _, cls = name.rpartition(".")
    made = getattr(pytest.importorskip(module), cls)
    with contextlib.redirect_stdout(io.StringIO()):
        optimizer = made(params, **options)
    if hasattr(optimizer, "train"):
        optimizer.train()
    return optimizer


def mechanized(base, params, s_decay=1e-2, s_init=1e-8, store_delta=True, **options):
    mechanize = pytest.importorskip("mechanic_pytorch").mechanize
    made = mechanize(getattr(torch.optim, base), s_decay=s_decay, s_init=s_init, store_delta=store_delta)
    return made(params, **options)


def vector(params):
    return torch.cat([p.detach().flatten() for p in params]).numpy().copy()


def walk(optimizer, params, steps, schedule=None):
    """-> the parameters after each step; `steps` are the numbers of the batches."""
    lrs = [group["lr"] for group in optimizer.param_groups]
    takes_loss = isinstance(optimizer, untuned.Optimizer) or type(optimizer).__name__.startswith("Momo")
    points = []
    for k in steps:
        for group, lr in zip(optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr * (schedule[k] if schedule else 1.0)
        optimizer.zero_grad()
        loss = loss_of(params, k)
        loss.backward()
        optimizer.step(**({"loss": loss} if takes_loss else {}))
        points.append(vector(params))
    for group, lr in zip(optimizer.param_groups, lrs, strict=True):
        group["lr"] = lr
    return np.array(points)


# ---------------------------------------------------------------- the same steps

THEIRS = {
    "sgd": lambda p, **o: published("torch.optim.SGD", p, **o),
    "adam": lambda p, **o: published("torch.optim.Adam", p, **o),
    "adamw": lambda p, **o: published("torch.optim.AdamW", p, **o),
    "momo": lambda p, **o: published("momo.Momo", p, **o),
    "momo_adam": lambda p, **o: published("momo.MomoAdam", p, **o),
    "prodigy": lambda p, **o: published("prodigyopt.Prodigy", p, **o),
    "dadapt_adam": lambda p, **o: published("dadaptation.DAdaptAdam", p, **o),
    "mechanic_sgd": lambda p, **o: mechanized("SGD", p, **({"lr": 1.0, "momentum": 0.9} | o)),
    "mechanic_adamw": lambda p, **o: mechanized("AdamW", p, **({"lr": 1.0, "weight_decay": 0.0} | o)),
    "schedule_free_sgd": lambda p, **o: published("schedulefree.SGDScheduleFree", p, **o),
    "schedule_free_adamw": lambda p, **o: published("schedulefree.AdamWScheduleFree", p, **o),
}
STEADY = {
    "sgd": [
        {"lr": 0.1},
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
        {"lr": 0.1, "momentum": 0.9, "nesterov": True},
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.3},
    ],
    "adam": [{}, {"weight_decay": 0.1}, {"betas": (0.5, 0.9), "eps": 1e-3}],
    "adamw": [{}, {"weight_decay": 0.1}, {"betas": (0.5, 0.9), "eps": 1e-3}],
    "momo": [{}, {"weight_decay": 0.1}, {"bias_correction": True, "beta": 0.5}, {"lb": 0.3, "use_fstar": True}],
    "momo_adam": [
        {},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "divide": False, "lb": 0.3},
        {"betas": (0.5, 0.9), "eps": 0.1, "use_fstar": True},
    ],
    "prodigy": [
        {},
        {"d0": 1e-3, "use_bias_correction": True, "weight_decay": 0.1},
        {"d0": 1e-3, "decouple": False, "weight_decay": 0.1},
        {"d0": 1e-3, "safeguard_warmup": True, "use_bias_correction": True, "d_coef": 3.0},
        {"d0": 1e-3, "growth_rate": 1.02, "lr": 0.5},
        {"d0": 1e-3, "betas": (0.8, 0.99), "beta3": 0.9, "eps": 1e-3},
    ],
    "dadapt_adam": [
        {},
        {"d0": 1e-3, "use_bias_correction": True, "weight_decay": 0.1},
        {"d0": 1e-3, "decouple": True, "weight_decay": 0.1},
        {"d0": 1e-3, "growth_rate": 1.02, "lr": 0.5},
        {"d0": 1e-3, "betas": (0.8, 0.99), "eps": 1e-3},
    ],
    "mechanic_sgd": [{}, {"weight_decay": 0.1}, {"momentum": 0.0}, {"s_init": 1e-4, "s_decay": 0.1}],
    "mechanic_adamw": [
        {},
        {"weight_decay": 0.1},
        {"betas": (0.5, 0.9), "eps": 1e-3},
        {"lr": 0.01, "s_init": 1e-4, "s_decay": 0.1},
    ],
    "schedule_free_sgd": [
        {},
        {"warmup_steps": 50, "momentum": 0.5},
        {"weight_decay": 0.1, "r": 1.0, "weight_lr_power": 1.0},
    ],
    "schedule_free_adamw": [
        {},
        {"warmup_steps": 50, "betas": (0.5, 0.9), "eps": 1e-3},
        {"weight_decay": 0.1, "r": 1.0, "weight_lr_power": 1.0},
    ],
}
# Where no cap binds, Polyak steps amplify rounding: 1e-15 at step 20 is up to 1e-9 at step 50 and 1 at step 200.
UNSTEADY = {
    "momo": [
        {"lr": 50.0},
        {"lr": 50.0, "lb": 0.5},
        {"lr": 50.0, "use_fstar": True},
        {"lr": 50.0, "use_fstar": True, "lb": -2.0, "weight_decay": 0.01, "beta": 0.8, "bias_correction": True},
    ],
    "momo_adam": [
        {"lr": 50.0},
        {"lr": 50.0, "lb": 0.5},
        {"lr": 50.0, "use_fstar": True},
        {"lr": 50.0, "use_fstar": True, "lb": -2.0, "weight_decay": 0.01},
    ],
    "prodigy": [{"d0": 1e-3}],
}


@pytest.mark.parametrize(
    ("name", "options", "horizon", "tolerance"),
    [
        pytest.param(name, options, horizon, tolerance, id=f"{name}-{options}")
        for table, horizon, tolerance in ((STEADY, 200, 1e-12), (UNSTEADY, 30, 1e-10))
        for name, rows in table.items()
        for options in rows
    ],
)
def test_steps_are_those_of_the_package(name, options, horizon, tolerance):
    """`horizon` steps on a varying lr, to `tolerance` of the way gone."""
    ours, theirs = parameters(), parameters()
    optimizer, reference = untuned.create(ours, name, **options), THEIRS[name](theirs, **options)
    expected = walk(reference, theirs, range(horizon), WAVE)
    points = walk(optimizer, ours, range(horizon), WAVE)
    way = np.abs(expected - vector(parameters())).max()
    assert way > 0.01
    assert np.abs(points - expected).max() <= tolerance * way
    if "d" in reference.param_groups[0]:
        assert optimizer.metrics()["d"] == pytest.approx(reference.param_groups[0]["d"], rel=tolerance)
    if optimizer.recipe.has_modes:
        optimizer.eval()
        reference.eval()
        assert np.abs(vector(ours) - vector(theirs)).max() <= tolerance * way


# ---------------------------------------------------------------- other steps, on purpose


def test_momo_resumes():
    """momo-opt keeps the averages of the loss, k and the bound outside its state dict."""

    def gap(make):
        params = parameters()
        optimizer = make(params)
        walk(optimizer, params, range(10))
        resumed = copy.deepcopy(params)
        other = make(resumed)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        return np.abs(walk(optimizer, params, range(10, 12)) - walk(other, resumed, range(10, 12))).max()

    assert gap(lambda p: published("momo.Momo", p, lr=50.0)) > 1e-2
    assert gap(lambda p: untuned.MoMo(p, lr=50.0)) == 0


def test_momo_forgets_a_nan_loss():
    """momo-opt's average of the losses is NaN from then on, and its step silently the cap."""

    def last(make, losses):
        params = parameters()
        optimizer = make(params)
        for k, nan in enumerate(losses):
            optimizer.zero_grad()
            loss = loss_of(params, k)
            loss.backward()
            optimizer.step(loss=loss * math.nan if nan else loss)
        return vector(params), optimizer

    theirs, optimizer = last(lambda p: published("momo.Momo", p, lr=1e3), [False, True, False, False])
    assert math.isnan(optimizer.loss_avg)
    assert np.abs(theirs).max() > 100
    ours, optimizer = last(lambda p: untuned.MoMo(p, lr=1e3), [False, True, False, False])
    assert optimizer.metrics()["skipped"] == 1
    assert np.abs(ours).max() < 100


def test_momo_takes_a_number_as_loss_and_a_gradient_that_comes_late():
    """momo-opt raises AttributeError for both."""

    def late(optimizer, params):
        (params[0] ** 2).sum().backward()
        optimizer.step(loss=2.0)
        ((params[0] ** 2).sum() + (params[1] ** 2).sum()).backward()
        optimizer.step(loss=2.0)

    params = parameters()
    with pytest.raises(AttributeError):
        late(published("momo.Momo", params), params)
    params = parameters()
    before = params[1].detach().clone()
    late(untuned.MoMo(params), params)
    assert not torch.equal(params[1], before)


def test_momo_star_does_not_depend_on_how_groups_are_cut():
    """momo-opt moves the estimated bound once per group."""

    def gap(make):
        whole, cut = parameters(), parameters()
        with warnings.catch_warnings(action="ignore"):  # it warns of several groups
            one = walk(make(whole), whole, range(20))
            two = walk(make([{"params": cut[:1]}, {"params": cut[1:]}]), cut, range(20))
        return np.abs(one - two).max()

    options = {"lr": 50.0, "use_fstar": True, "lb": -2.0}
    assert gap(lambda p: published("momo.Momo", p, **options)) > 0.1
    assert gap(lambda p: untuned.MoMo(p, **options)) < 1e-12


DISTANCE = [("prodigyopt.Prodigy", "prodigy"), ("dadaptation.DAdaptAdam", "dadapt_adam")]


@pytest.mark.parametrize(("package", "name"), DISTANCE)
def test_groups_may_have_their_own_lr(package, name):
    """The packages take one lr and 0."""

    def groups(params):
        return [{"params": params[:1]}, {"params": params[1:], "lr": 0.5}]

    params = parameters()
    with pytest.raises(RuntimeError, match="different lr"):
        walk(published(package, groups(params), d0=1e-3), params, range(1))
    walk(untuned.create(groups(params), name, d0=1e-3), params, range(1))
    moves = vector(parameters()) - vector(params)
    np.testing.assert_allclose(np.abs(moves[6:] / moves[0]), 0.5, rtol=1e-3)  # first steps are lr times one length


@pytest.mark.parametrize(("package", "name"), DISTANCE)
def test_group_at_lr_0_stays(package, name):
    """In the packages a group set to lr 0 keeps its decoupled weight decay and the momentum it had."""

    def drift(make):
        params = parameters()
        optimizer = make([{"params": params[:1]}, {"params": params[1:]}])
        walk(optimizer, params, range(40))
        optimizer.param_groups[1]["lr"] = 0.0
        points = walk(optimizer, params, range(40, 60))
        return np.abs(points[-1, 6:] - points[0, 6:]).max()

    options = {"d0": 1e-2, "weight_decay": 0.1, "decouple": True}
    assert drift(lambda p: published(package, p, **options)) > 0.1
    assert drift(lambda p: untuned.create(p, name, **options)) == 0


@pytest.mark.parametrize(("package", "name"), DISTANCE)
def test_nan_gradient_does_not_end_the_run(package, name):
    """In the packages it makes the numerator NaN: the weights are lost, or the estimate is frozen without a word."""

    def run(optimizer, params):
        walk(optimizer, params, range(5))
        for p in params:
            p.grad = torch.full_like(p, math.nan)
        optimizer.step()
        walk(optimizer, params, range(5, 10))
        return vector(params)

    params = parameters()
    assert np.isnan(run(published(package, params, d0=1e-3), params)).any()
    params = parameters()
    optimizer = untuned.create(params, name, d0=1e-3)
    assert np.isfinite(run(optimizer, params)).all()
    clean = parameters()
    np.testing.assert_array_equal(vector(params), walk(untuned.create(clean, name, d0=1e-3), clean, range(10))[-1])


def test_prodigy_without_momentum_uses_the_d_from_before():
    """prodigyopt with beta1 = 0 takes the new one, so that it is not the limit of a small beta1."""

    def gap(make):
        none, little = parameters(), parameters()
        return np.abs(
            walk(make(none, betas=(0.0, 0.999), d0=1e-3), none, range(40))
            - walk(make(little, betas=(1e-13, 0.999), d0=1e-3), little, range(40))
        ).max()

    assert gap(lambda p, **o: published("prodigyopt.Prodigy", p, **o)) > 1e-2
    assert gap(untuned.Prodigy) < 1e-9


@pytest.mark.parametrize(
    ("package", "name", "options"),
    [
        ("prodigyopt.Prodigy", "prodigy", {"decouple": False}),
        ("dadaptation.DAdaptAdam", "dadapt_adam", {"decouple": False}),
        ("schedulefree.SGDScheduleFree", "schedule_free_sgd", {}),
        ("schedulefree.AdamWScheduleFree", "schedule_free_adamw", {}),
    ],
)
def test_gradients_are_left_as_they_are(package, name, options):
    """The packages add the weight decay to `p.grad`, or scale it, in place."""

    def changed(make):
        params = parameters()
        optimizer = make(params, weight_decay=0.1, **options)
        loss_of(params, 0).backward()
        before = [p.grad.clone() for p in params]
        optimizer.step()
        return not all(torch.equal(p.grad, g) for p, g in zip(params, before, strict=True))

    assert changed(lambda p, **o: published(package, p, **o))
    assert not changed(lambda p, **o: untuned.create(p, name, **o))


@pytest.mark.parametrize("name", ["schedule_free_sgd", "schedule_free_adamw"])
def test_tensor_that_joins_late_is_averaged_from_its_own_start(name):
    """schedulefree counts the steps of its group, so that a late tensor's average barely leaves its start."""

    def way(make):
        params = parameters()
        optimizer = make(params)
        params[1].requires_grad_(False)
        walk(optimizer, params, range(100))
        params[1].requires_grad_(True)
        walk(optimizer, params, range(100, 110))
        optimizer.eval()
        return float((params[1].detach() - torch.tensor(START[1])).abs().max())

    assert way(lambda p: untuned.create(p, name, lr=0.1)) > 2 * way(lambda p: THEIRS[name](p, lr=0.1))


def test_mechanic_takes_a_closure():
    """mechanic-pytorch calls it with gradients disabled, and leaves them disabled when it fails."""
    params = parameters()

    def closure():
        optimizer.zero_grad()
        loss = loss_of(params, 0)
        loss.backward()
        return loss

    optimizer = mechanized("SGD", params, lr=1.0)
    with raises(RuntimeError, match="does not require grad"):
        optimizer.step(closure)
    optimizer = untuned.MechanicSGD(params, s_init=1e-2)
    assert optimizer.step(closure) == loss_of(parameters(), 0)
    assert np.abs(vector(params) - vector(parameters())).max() > 1e-3
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)
    assert torch.is_grad_enabled()


def test_mechanic_resumes_grows_and_rests():
    """mechanic-pytorch raises KeyError after a checkpoint and with a new group, and TypeError without gradients."""

    def lifetimes(make, refusal):
        params = parameters()
        optimizer = make(params)
        with refusal(TypeError):
            optimizer.step()
        assert np.array_equal(vector(params), vector(parameters()))
        walk(optimizer, params, range(3))
        resumed = copy.deepcopy(params)
        other = make(resumed)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        with refusal(KeyError):
            assert np.array_equal(walk(other, resumed, range(3, 6)), walk(optimizer, params, range(3, 6)))
        added = torch.nn.Parameter(torch.ones(2))
        optimizer.add_param_group({"params": [added]})
        added.grad = torch.ones(2)
        with refusal(KeyError):
            optimizer.step()
        return added

    def no_refusal(_):
        return contextlib.nullcontext()

    lifetimes(lambda p: mechanized("SGD", p, lr=1.0), raises)
    assert (lifetimes(lambda p: untuned.MechanicSGD(p, s_init=1e-2), no_refusal) < 1).all()


def test_mechanic_keeps_its_displacement():
    """mechanic-pytorch by default recomputes it as (x - ref) / (S + 1e-8), with S = 1e-6 at first: off by a percent in
    float64; in float32, where S times a small lr is lost beside weights of size 1, the run never begins."""

    def moves(dtype, make, steps):
        torch.set_default_dtype(dtype)
        params = parameters(dtype)
        start = vector(params)
        return walk(make(params, lr=1e-3, weight_decay=0.0), params, range(steps))[-1] - start

    def stored(p, **o):
        return mechanized("AdamW", p, **o)

    def recomputed(p, **o):
        return mechanized("AdamW", p, store_delta=False, **o)

    early = moves(torch.float64, untuned.MechanicAdamW, 5)
    np.testing.assert_allclose(
        moves(torch.float64, stored, 5), early, rtol=1e-5, atol=2 * 2.0**-52
    )  # of weights of size 1
    assert np.abs(moves(torch.float64, recomputed, 5) / early - 1).max() > 3e-3

    late = moves(torch.float32, untuned.MechanicAdamW, 200)
    assert np.abs(late).max() > 0.02
    np.testing.assert_allclose(
        moves(torch.float32, stored, 200), late, rtol=1e-3, atol=10 * 2.0**-23
    )  # of 200 roundings
    assert (moves(torch.float32, recomputed, 200) == 0).all()

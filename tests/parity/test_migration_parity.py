"""Runs begun with a published package and continued here, beside the same runs continued there, in float64."""

import contextlib
import copy
import io

import numpy as np
import pytest
import torch

import untuned
from untuned.migration import migrate

pytestmark = pytest.mark.parity

START = [np.array([[0.3, -1.2], [0.8, 0.1], [-0.4, 1.5]]), np.array([0.2, -0.7]), np.array([0.0])]
TOLERANCE = 1e-10


@pytest.fixture(autouse=True)
def _float64():
    """The packages keep their averages in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def parameters():
    return [torch.nn.Parameter(torch.tensor(a)) for a in START]


def in_two(params, **second):
    return [{"params": params[:1]}, {"params": params[1:], **second}]


def loss_of(params, k):
    """A tanh layer with a common gain and two logistic losses, on a batch that changes with the step."""
    rng = np.random.default_rng(k)
    inputs = torch.tensor(rng.normal(size=(5, 3)))
    labels = torch.tensor(np.sign(rng.normal(size=(5, 2))))
    gained = (params[2] + 1) * torch.tanh(inputs @ params[0])
    return torch.nn.functional.softplus(-labels * (gained + params[1])).sum() / 5


def published(name, params, **options):
    """An optimizer of a package, by its dotted name; several print when they are built."""
    module, _, cls = name.rpartition(".")
    made = getattr(pytest.importorskip(module), cls)
    with contextlib.redirect_stdout(io.StringIO()):
        optimizer = made(params, **options)
    if hasattr(optimizer, "train"):
        optimizer.train()
    return optimizer


def walk(optimizer, params, steps):
    """-> the parameters after each step; `steps` are the numbers of the batches."""
    takes_loss = isinstance(optimizer, untuned.Optimizer) or type(optimizer).__name__.startswith("Momo")
    points = []
    for k in steps:
        optimizer.zero_grad()
        loss = loss_of(params, k)
        loss.backward()
        optimizer.step(**({"loss": loss} if takes_loss else {}))
        points.append(torch.cat([p.detach().flatten() for p in params]))
    return torch.stack(points)


def saved(state_dict):
    """The checkpoint as it comes back from a file."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


MOMO = ("loss_avg", "_number_steps")  # attributes that momo-opt leaves out of its state dict


def checkpoint(optimizer):
    return saved(optimizer.state_dict() | {key: getattr(optimizer, key) for key in MOMO if hasattr(optimizer, key)})


# package, our name, options there, options here that shape the method, options of a second group there
ONE_MODEL = {}  # momo-opt minimises another model with every group that differs
ADAN = "dadaptation.experimental.dadapt_adan_ip.DAdaptAdanIP"
SECOND = {"weight_decay": 0.02}
CASES = [
    ("torch.optim.SGD", "sgd", {"lr": 0.1}, {}, SECOND),
    (
        "torch.optim.SGD",
        "sgd",
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
        {"momentum": 0.5},
        {"momentum": 0.0},
    ),
    (
        "torch.optim.SGD",
        "sgd",
        {"lr": 0.1, "momentum": 0.9, "nesterov": True},
        {"momentum": 0.5, "nesterov": True},
        {"lr": 0.2},
    ),
    (
        "torch.optim.Adam",
        "adam",
        {"lr": 0.01, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.1},
        {},
        {"betas": (0.9, 0.9)},
    ),
    ("torch.optim.AdamW", "adamw", {"lr": 0.01, "weight_decay": 0.1}, {}, SECOND),
    ("momo.Momo", "momo", {"lr": 0.5}, {}, ONE_MODEL),
    ("momo.Momo", "momo", {"lr": 50.0, "weight_decay": 0.01}, {}, ONE_MODEL),
    (
        "momo.Momo",
        "momo",
        {"lr": 50.0, "bias_correction": True, "beta": 0.8},
        {"bias_correction": True, "beta": 0.8},
        ONE_MODEL,
    ),
    ("momo.Momo", "momo", {"lr": 50.0, "use_fstar": True, "lb": -2.0}, {"use_fstar": True, "lb": -2.0}, None),
    ("momo.MomoAdam", "momo_adam", {"lr": 0.5}, {}, ONE_MODEL),
    ("momo.MomoAdam", "momo_adam", {"lr": 50.0, "use_fstar": True, "lb": -2.0}, {"use_fstar": True, "lb": -2.0}, None),
    (
        "momo.MomoAdam",
        "momo_adam",
        {"betas": (0.5, 0.9), "eps": 0.1, "weight_decay": 0.1, "divide": False, "lb": 0.1},
        {"divide": False, "lb": 0.1},
        ONE_MODEL,
    ),
    ("prodigyopt.Prodigy", "prodigy", {}, {}, SECOND),
    (
        "prodigyopt.Prodigy",
        "prodigy",
        {"d0": 1e-3, "weight_decay": 0.1, "d_coef": 2.0, "betas": (0.8, 0.99)},
        {},
        {"eps": 1e-3},
    ),
    (
        "prodigyopt.Prodigy",
        "prodigy",
        {"d0": 1e-3, "use_bias_correction": True, "safeguard_warmup": True, "growth_rate": 1.02, "beta3": 0.9},
        {"use_bias_correction": True, "safeguard_warmup": True},
        SECOND,
    ),
    (
        "prodigyopt.Prodigy",
        "prodigy",
        {"d0": 1e-3, "decouple": False, "weight_decay": 0.1},
        {"decouple": False},
        SECOND,
    ),
    ("prodigyopt.Prodigy", "prodigy", {"d0": 1e-3, "slice_p": 2}, {"slice_p": 2}, SECOND),
    ("prodigyopt.Prodigy", "prodigy", {"d0": 1e-3, "slice_p": 11, "weight_decay": 0.1}, {"slice_p": 11}, {}),
    ("dadaptation.DAdaptAdam", "dadapt_adam", {}, {}, SECOND),
    (
        "dadaptation.DAdaptAdam",
        "dadapt_adam",
        {"d0": 1e-3, "weight_decay": 0.1, "betas": (0.8, 0.99)},
        {},
        {"eps": 1e-3},
    ),
    ("dadaptation.DAdaptAdam", "dadapt_adam", {"d0": 1e-9, "weight_decay": 0.1}, {}, {"layer_scale": 3.0}),
    (
        "dadaptation.DAdaptAdam",
        "dadapt_adam",
        {"d0": 1e-3, "decouple": True, "weight_decay": 0.1, "use_bias_correction": True, "growth_rate": 1.02},
        {"decouple": True, "use_bias_correction": True},
        {"layer_scale": 3.0},
    ),
    ("dadaptation.DAdaptSGD", "dadapt_sgd", {"d0": 1e-2}, {}, {}),
    (
        "dadaptation.DAdaptSGD",
        "dadapt_sgd",
        {"d0": 1e-2, "momentum": 0.9, "weight_decay": 0.1, "growth_rate": 1.1},
        {"momentum": 0.5},
        SECOND,
    ),
    ("dadaptation.DAdaptAdaGrad", "dadapt_adagrad", {"d0": 1e-2}, {}, SECOND),
    (
        "dadaptation.DAdaptAdaGrad",
        "dadapt_adagrad",
        {"d0": 1e-2, "momentum": 0.9, "weight_decay": 0.1, "eps": 1e-2, "growth_rate": 1.1},
        {},
        {"eps": 1e-3},
    ),
    ("dadaptation.DAdaptLion", "dadapt_lion", {"d0": 1e-3}, {}, SECOND),
    ("dadaptation.DAdaptLion", "dadapt_lion", {"d0": 1e-3, "weight_decay": 0.1, "betas": (0.8, 0.9)}, {}, SECOND),
    (ADAN, "dadapt_adan", {"d0": 1e-4}, {}, SECOND),
    (
        ADAN,
        "dadapt_adan",
        {"d0": 1e-4, "betas": (0.9, 0.8, 0.9), "no_prox": True, "eps": 1e-3, "growth_rate": 1.1},
        {"no_prox": True},
        SECOND,
    ),
    ("madgrad.MADGRAD", "madgrad", {}, {}, SECOND),
    ("madgrad.MADGRAD", "madgrad", {"momentum": 0.0, "weight_decay": 0.1, "eps": 1e-3}, {}, {"lr": 0.02}),
    (
        "madgrad.MADGRAD",
        "madgrad",
        {"momentum": 0.5, "weight_decay": 0.1, "eps": 0.0, "decouple_decay": True},
        {"decouple_decay": True},
        SECOND,
    ),
    ("madgrad.MirrorMADGRAD", "mirror_madgrad", {}, {}, SECOND),
    (
        "madgrad.MirrorMADGRAD",
        "mirror_madgrad",
        {"momentum": 0.5, "weight_decay": 0.1, "eps": 1e-3, "decouple_decay": True},
        {"decouple_decay": True},
        {"lr": 0.02},
    ),
    (
        "schedulefree.SGDScheduleFree",
        "schedule_free_sgd",
        {"weight_decay": 0.1, "momentum": 0.5},
        {},
        {"momentum": 0.9},
    ),
    (
        "schedulefree.SGDScheduleFree",
        "schedule_free_sgd",
        {"warmup_steps": 30, "r": 1.0, "weight_lr_power": 1.0},
        {},
        {"warmup_steps": 0},
    ),
    ("schedulefree.AdamWScheduleFree", "schedule_free_adamw", {"lr": 0.05, "betas": (0.5, 0.9)}, {}, SECOND),
    (
        "schedulefree.AdamWScheduleFree",
        "schedule_free_adamw",
        {"lr": 0.05, "weight_decay": 0.1, "warmup_steps": 30, "eps": 1e-3},
        {},
        {"lr": 0.1},
    ),
]
RUNS = [
    pytest.param(package, name, options, shape, second, id=f"{name}-{options}-{second}")
    for package, name, options, shape, other in CASES
    for second in ([None] if other is None else [None, other])
]


def begun(package, name, options, shape, second=None):
    """Twenty steps of the package, and an untouched optimizer of ours at the same point."""
    theirs = parameters()
    reference = published(package, theirs if second is None else in_two(theirs, **second), **options)
    walk(reference, theirs, range(20))
    ours = copy.deepcopy(theirs)
    return reference, theirs, untuned.create(ours if second is None else in_two(ours), name, **shape), ours


@pytest.mark.filterwarnings("ignore:More than one param group")
@pytest.mark.parametrize(("package", "name", "options", "shape", "second"), RUNS)
def test_run_goes_on(package, name, options, shape, second):
    """Twenty steps there, then twenty there and twenty here."""
    reference, theirs, optimizer, ours = begun(package, name, options, shape, second)
    migrate(optimizer, checkpoint(reference))
    expected, points = (walk(o, p, range(20, 40)) for o, p in ((reference, theirs), (optimizer, ours)))
    assert (expected[-1] - expected[0]).abs().max() > 1e-3
    difference = (points - expected).abs().max().item()
    assert difference < TOLERANCE
    if "d" in reference.param_groups[0] and "layer_scale" not in (second or {}):
        assert optimizer.metrics()["d"] == pytest.approx(float(reference.param_groups[0]["d"]), rel=TOLERANCE)
    if optimizer.recipe.has_modes:
        optimizer.eval()
        reference.eval()
        assert all(torch.allclose(p, q, rtol=0, atol=TOLERANCE) for p, q in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("options", [{}, {"bias_correction": True}, {"use_fstar": True, "lb": -2.0}])
def test_momo_without_its_averages_starts_them_anew(options):
    """As momo-opt does after loading; but the estimated bound is in its checkpoint, and is taken from there."""
    reference, theirs, optimizer, ours = begun("momo.Momo", "momo", {"lr": 50.0, **options}, options)
    held = saved(reference.state_dict())
    resumed = published("momo.Momo", theirs, lr=50.0, **options)
    resumed.load_state_dict(held)
    resumed.lb = held["state"].get("fstar", resumed.lb)
    with pytest.warns(UserWarning, match="averages of losses and gradients start anew"):
        migrate(optimizer, held)
    expected, points = walk(resumed, theirs, range(20, 40)), walk(optimizer, ours, range(20, 40))
    assert (expected[-1] - expected[0]).abs().max() > 1e-2
    assert (points - expected).abs().max() < TOLERANCE


def test_momo_adam_without_its_averages_keeps_the_squares():
    """The averages start anew together, in which momo-opt keeps those of the gradients and loses that of the losses."""
    reference, theirs, optimizer, ours = begun("momo.MomoAdam", "momo_adam", {"lr": 50.0}, {})
    with pytest.warns(UserWarning, match="averages of losses and gradients start anew"):
        migrate(optimizer, saved(reference.state_dict()))
    loss = loss_of(theirs, 20)
    gradients = torch.autograd.grad(loss, theirs)
    squares = [
        0.999 * reference.state[p]["grad_avg_sq"] + 0.001 * g * g for p, g in zip(theirs, gradients, strict=True)
    ]
    scaled = [g / ((v / (1 - 0.999**21)).sqrt() + 1e-8) for g, v in zip(gradients, squares, strict=True)]
    size = loss / sum((g * u).sum() for g, u in zip(gradients, scaled, strict=True))
    assert 0 < size < 50
    walk(optimizer, ours, range(20, 21))
    for p, q, u in zip(ours, theirs, scaled, strict=True):
        torch.testing.assert_close(p, q - size * u, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("package", "name"),
    [("schedulefree.SGDScheduleFree", "schedule_free_sgd"), ("schedulefree.AdamWScheduleFree", "schedule_free_adamw")],
)
def test_schedule_free_run_goes_on_from_the_averaged_weights(package, name):
    theirs = parameters()
    reference = published(package, theirs, lr=0.1)
    walk(reference, theirs, range(20))
    reference.eval()
    ours = copy.deepcopy(theirs)
    optimizer = untuned.create(ours, name)
    migrate(optimizer, checkpoint(reference))
    with pytest.raises(RuntimeError, match="needs training mode"):
        walk(optimizer, ours, range(1))
    for o in (reference, optimizer):
        o.train()
    expected, points = walk(reference, theirs, range(20, 40)), walk(optimizer, ours, range(20, 40))
    assert (points - expected).abs().max() < TOLERANCE


def test_prodigy_without_momentum_goes_on_as_with_little():
    """prodigyopt with beta1 = 0 takes the d after the update, with any other the one before, as in Algorithm 4."""
    options = {"d0": 1e-3, "growth_rate": 1.02, "betas": (0.0, 0.999)}
    reference, theirs, optimizer, ours = begun("prodigyopt.Prodigy", "prodigy", options, {})
    held = checkpoint(reference)
    migrate(optimizer, held)
    others = copy.deepcopy(theirs)
    little = published("prodigyopt.Prodigy", others)
    for i, p in enumerate(others):
        held["state"][i]["exp_avg"] = torch.zeros_like(p)
    held["param_groups"][0]["betas"] = (1e-14, 0.999)
    little.load_state_dict(held)
    points, expected = walk(optimizer, ours, range(20, 40)), walk(little, others, range(20, 40))
    assert (points - expected).abs().max() < TOLERANCE
    assert (points - walk(reference, theirs, range(20, 40))).abs().max() > 1e-4


def test_madgrad_without_momentum_goes_on_as_with_little():
    """With decoupled decay, madgrad at momentum 0 recovers x0 from decayed weights, so that x0 decays as well."""
    options = {"weight_decay": 0.5, "decouple_decay": True}
    reference, theirs, optimizer, ours = begun(
        "madgrad.MADGRAD", "madgrad", options | {"momentum": 0.0}, {"decouple_decay": True}
    )
    held = checkpoint(reference)
    migrate(optimizer, held)
    others = copy.deepcopy(theirs)
    little = published("madgrad.MADGRAD", others, **options)
    for i, p in enumerate(ours):
        held["state"][i]["x0"] = optimizer.state[p]["x0"].clone()
    held["param_groups"][0]["momentum"] = 1e-14
    little.load_state_dict(held)
    points, expected = walk(optimizer, ours, range(20, 40)), walk(little, others, range(20, 40))
    assert (points - expected).abs().max() < TOLERANCE
    assert (points - walk(reference, theirs, range(20, 40))).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("package", "name", "options", "shape", "message"),
    [
        ("prodigyopt.Prodigy", "prodigy", {}, {"decouple": False}, "decouple=True, this optimizer has decouple=False"),
        (
            "prodigyopt.Prodigy",
            "prodigy",
            {},
            {"use_bias_correction": True},
            "use_bias_correction=False, this optimizer",
        ),
        ("prodigyopt.Prodigy", "prodigy", {"safeguard_warmup": True}, {}, "safeguard_warmup=True, this optimizer"),
        ("prodigyopt.Prodigy", "prodigy", {"slice_p": 2}, {}, "slice_p=2, this optimizer has slice_p=1: build it with"),
        ("prodigyopt.Prodigy", "prodigy", {}, {"scope": "tensor"}, "scope='model', this optimizer has scope='tensor'"),
        ("prodigyopt.Prodigy", "dadapt_adam", {}, {}, "not a checkpoint of dadaptation.DAdaptAdam: a group has no"),
        ("dadaptation.DAdaptAdam", "dadapt_adam", {}, {"decouple": True}, "decouple=False, this optimizer"),
        ("dadaptation.DAdaptSGD", "dadapt_sgd", {"momentum": 0.9}, {}, "momentum=0.9, this optimizer"),
        ("dadaptation.DAdaptLion", "dadapt_lion", {}, {"scale_average": False}, "scale_average=True, this optimizer"),
        ("dadaptation.DAdaptAdan", "dadapt_adan", {}, {}, "DAdaptAdanIP: a group has no 'numerator_weighted'"),
        (ADAN, "dadapt_adan", {}, {"no_prox": True}, "no_prox=False, this optimizer"),
        ("momo.Momo", "momo", {}, {"use_fstar": True}, "use_fstar=False, this optimizer has use_fstar=True"),
        ("momo.Momo", "momo", {"bias_correction": True}, {}, "bias_correction=True, this optimizer"),
        ("momo.Momo", "momo_adam", {}, {}, "not a checkpoint of momo.MomoAdam: a group has no 'betas'"),
        ("momo.MomoAdam", "momo", {}, {}, "not a checkpoint of momo.Momo: the state of parameter 0 has a foreign"),
        ("madgrad.MADGRAD", "madgrad", {}, {"decouple_decay": True}, "decouple_decay=False, this optimizer"),
        ("madgrad.MADGRAD", "mirror_madgrad", {}, {}, "not a checkpoint of madgrad.MirrorMADGRAD: the state of"),
        ("schedulefree.RAdamScheduleFree", "schedule_free_adamw", {}, {}, "a group has no 'warmup_steps'"),
        ("schedulefree.SGDScheduleFree", "schedule_free_adamw", {}, {}, "a group has no 'betas'"),
    ],
)
def test_other_method_is_refused_and_nothing_changes(package, name, options, shape, message):
    reference, _, optimizer, _ = begun(package, name, options, shape)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=message):
        migrate(optimizer, saved(reference.state_dict()))
    assert str(optimizer.state_dict()) == str(before)


@pytest.mark.parametrize(("package", "name"), [("momo.Momo", "momo"), ("momo.MomoAdam", "momo_adam")])
@pytest.mark.parametrize("shape", [{}, {"bias_correction": True}, {"use_fstar": True, "lb": -2.0}])
def test_state_is_that_of_a_run_of_our_own(package, name, shape):
    if name == "momo_adam":
        shape = {key: v for key, v in shape.items() if key != "bias_correction"}
    reference, _, optimizer, _ = begun(package, name, {"lr": 50.0, **shape}, shape)
    migrate(optimizer, checkpoint(reference))
    params = parameters()
    native = untuned.create(params, name, lr=50.0, **shape)
    walk(native, params, range(20))
    for p, q in zip(params, optimizer.state, strict=True):
        held, wanted = dict(optimizer.state[q]), dict(native.state[p])
        for one in (held, wanted):  # at whichever weights mx was taken: what lasts is the average of <g, p>
            if "model_offset" in one:
                one["model_offset"] = one["model_offset"] - one.pop("mx")
        torch.testing.assert_close(held, wanted, rtol=1e-10, atol=1e-10)
    for key in ("steps", "loss_avg", "weights", "lower_bound"):
        torch.testing.assert_close(optimizer.param_groups[0][key], native.param_groups[0][key], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("package", "name", "numerator", "second", "weights"),
    [
        ("prodigyopt.Prodigy", "prodigy", "d_numerator", {}, [1, 1, 1]),
        ("dadaptation.DAdaptAdam", "dadapt_adam", "numerator_weighted", {"layer_scale": 0.5}, [1, 0.5, 0.5]),
    ],
)
def test_numerator_is_divided_so_that_no_tensor_matters_to_the_estimate(package, name, numerator, second, weights):
    reference, _, optimizer, ours = begun(package, name, {"d0": 1e-3}, {}, second)
    migrate(optimizer, checkpoint(reference))
    parts = torch.stack([optimizer.state[p][numerator] for p in ours])
    norms = torch.stack([w * optimizer.state[p]["s"].abs().sum() for p, w in zip(ours, weights, strict=True)])
    assert parts.sum().item() == pytest.approx(reference.param_groups[0][numerator], rel=1e-14)
    torch.testing.assert_close(parts / norms, (parts.sum() / norms.sum()).expand(3), rtol=1e-12, atol=0)


@pytest.mark.filterwarnings("ignore:More than one param group")
def test_groups_that_one_decision_cannot_serve_are_refused():
    reference, _, optimizer, _ = begun("momo.MomoAdam", "momo_adam", {}, {}, {"betas": (0.5, 0.999)})
    with pytest.raises(ValueError, match=r"betas must be equal in all groups"):
        migrate(optimizer, checkpoint(reference))
    assert optimizer.param_groups[1]["betas"] == (0.9, 0.999)


def test_groups_in_different_modes_are_refused():
    theirs = parameters()
    reference = published("schedulefree.SGDScheduleFree", in_two(theirs))
    reference.param_groups[1]["train_mode"] = False
    with pytest.raises(ValueError, match="some groups of the run are in training mode and others in evaluation"):
        migrate(untuned.SGDScheduleFree(in_two(parameters())), reference.state_dict())

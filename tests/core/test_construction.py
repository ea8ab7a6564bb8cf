"""What a constructor refuses, in which words, and that a refusal changes nothing."""

import inspect
import re
from math import inf, nan
from typing import Any

import numpy as np
import pytest
import torch
from problems import COMPOSITIONS, DIVIDING, EVERY, OPTIONS, different, everything, net, train
from torch import nn

import untuned
from untuned.around import Project
from untuned.directions import TAM, Adam, Gradient, Momentum
from untuned.gradients import Norms
from untuned.iterates import Mechanic, Plain, ScheduleFree
from untuned.parts import StepSize, hyper
from untuned.step_sizes import DAdaptation, Fixed, MoMo, Prodigy


def weight(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values or (1.0, 2.0)))


WRONG_TYPES = {float: ["0.1", None, True, 1j, (0.1,), torch.tensor(0.1)], bool: ["no", 0, None], str: []}
WRONG_VALUES = {float: [nan, -1.0, np.float32(-1)], bool: [], str: ["layer", None]}
WRONG_TYPES[tuple] = ["0.9, 0.999", None, 0.9, (0.9, "0.999"), (True, 0.999)]
WRONG_TYPES[type] = ["10", None, 1j]  # an option without a default: the number of samples
WRONG_VALUES[type] = [0, nan, -1]
WRONG_VALUES[tuple] = [(0.9,), (0.9, 0.99, 0.999), (0.9, 1.0), (-0.1, 0.999), (nan, 0.999)]


def wrong_options() -> list[Any]:
    cases: list[Any] = []
    for name in untuned.list():
        for option, parameter in inspect.signature(untuned.get(name).optimizer).parameters.items():
            if option in ("params", "engine"):
                continue
            kind = {int: float, type(None): float}.get(type(parameter.default), type(parameter.default))
            for error, values in ((TypeError, WRONG_TYPES), (ValueError, WRONG_VALUES)):
                for value in values[kind]:
                    fits_lr = option == "lr" and isinstance(value, torch.Tensor)
                    fits_lb = option in ("lb", "target") and isinstance(value, float | np.floating) and value == value
                    fits = (
                        fits_lr or fits_lb or (name == "dadapt_adan" and isinstance(value, tuple) and len(value) == 3)
                    )
                    if not (fits or value is parameter.default):
                        cases.append(pytest.param(name, option, value, error, id=f"{name}-{option}-{value}"))
    return cases


@pytest.mark.parametrize(("name", "option", "value", "error"), wrong_options())
def test_wrong_options(name: str, option: str, value: Any, error: type[Exception]) -> None:
    wanted = rf"^\w+: \w+ must be (True|one of|(a|a whole|two|3) numbers? in) ?.*, not {re.escape(repr(value))}\.$"
    if "schedule_free" in name and option in ("momentum", "betas"):  # one of betas is that of ScheduleFree
        wanted = r"must be .* in [\[(]0, 1\), not "
    needed = {"samples": 3} if name in ("taps", "motaps") else {}
    with pytest.raises(error, match=wanted):
        untuned.create([weight()], name, **needed | {option: value})


@pytest.mark.parametrize("value", [torch.tensor(-1.0), torch.tensor(nan), torch.ones(2)])
def test_an_lr_tensor_is_checked_at_construction(value: torch.Tensor) -> None:
    with pytest.raises(
        ValueError, match=r"Fixed: lr must be a number or a one-element tensor in \[0, inf\), not tensor"
    ):
        untuned.SGD([weight()], lr=value)
    with pytest.raises(TypeError, match=r"Fixed: lr must be a number in \[0, inf\), not tensor\(1\)"):
        untuned.SGD([weight()], lr=torch.tensor(1))


def test_the_sentence_of_the_design() -> None:
    with pytest.raises(ValueError, match=r"^Adam: betas must be two numbers in \[0, 1\), not \(0\.9, 1\.0\)\.$"):
        untuned.AdamW([weight()], betas=(0.9, 1.0))


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("maximize", 1, TypeError),
        ("skip_nonfinite", "yes", TypeError),
        ("slot_dtype", "float32", TypeError),
        ("slot_dtype", torch.int32, TypeError),
        ("slot_dtype", torch.float16, TypeError),  # in which the squares of gradients vanish
        ("slot_dtype", torch.float8_e4m3fn, TypeError),
        ("execution", "fast", ValueError),
    ],
)
def test_wrong_engine_options(option: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"^SGD: {option} must be .*, not {re.escape(repr(value))}\.$"):
        untuned.SGD([weight()], **{option: value})


CHANGES_NOTHING = [("fused", None), ("fused", False), ("fused", True), ("foreach", None), ("foreach", False)]
CHANGES_NOTHING += [("foreach", True), ("capturable", False), ("capturable", True), ("differentiable", False)]
CHANGES_NOTHING += [("amsgrad", False)]


@pytest.mark.parametrize("name", EVERY)
def test_options_of_torch_that_change_nothing_are_accepted(name: str) -> None:
    """By the optimizer and by its groups, which do not keep them."""
    expected = everything(EVERY[name]([weight()]))
    decoupled = ("decoupled_weight_decay", type(EVERY[name]([weight()]).parts["decay"]).__name__ != "Coupled")
    for option, value in (*CHANGES_NOTHING, decoupled):
        for optimizer in (
            EVERY[name]([weight()], **{option: value}),
            EVERY[name]([{"params": [weight()], option: value}]),
        ):
            assert option not in optimizer.param_groups[0].keys() | optimizer.defaults.keys()
            assert different(expected, everything(optimizer)) == []


@pytest.mark.parametrize("name", ["adam", "prodigy", "momo_adam", "compose"])
@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [
        ("differentiable", True, "False"),
        ("amsgrad", True, "False"),
        ("decoupled_weight_decay", None, "(True|False)"),
    ],
)
def test_options_of_torch_that_would_change_something_are_refused(
    name: str, option: str, value: Any, wanted: str
) -> None:
    def build(params: Any, **options: Any) -> Any:
        return untuned.compose(params, **options) if name == "compose" else untuned.create(params, name, **options)

    sentence = rf"^\w+: {option} is always {wanted} here, not {re.escape(repr(value))}\. Leave it out\.$"
    with pytest.raises(ValueError, match=sentence):
        build([weight()], **{option: value})
    with pytest.raises(ValueError, match=sentence):
        build([{"params": [weight()]}, {"params": [weight()], option: value}])


def test_decoupled_weight_decay_is_that_of_the_class() -> None:
    for cls, other in ((untuned.Adam, True), (untuned.SGD, True), (untuned.AdamW, False), (untuned.MoMoAdam, False)):
        with pytest.raises(ValueError, match=rf"decoupled_weight_decay is always {not other} here, not {other}\."):
            cls([weight()], decoupled_weight_decay=other)
    assert untuned.Prodigy([weight()], decouple=False, decoupled_weight_decay=False)
    with pytest.raises(ValueError, match=r"decoupled_weight_decay is always False here, not True"):
        untuned.Prodigy([weight()], decouple=False, decoupled_weight_decay=True)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_groups_of_torch_are_taken_with_the_options_that_their_optimizer_put_there(name: str) -> None:
    given = {"lr": 0.25, "weight_decay": 0.125} | ({"momentum": 0.5} if name == "SGD" else {"eps": 0.5})
    theirs = getattr(torch.optim, name)([weight()], **given)
    ours = getattr(untuned, name)(theirs.param_groups, **({"momentum": 0.5} if name == "SGD" else {}))
    assert {key: ours.param_groups[0][key] for key in given} == given
    assert not ours.param_groups[0].keys() & {"fused", "foreach", "capturable", "differentiable", "amsgrad"}
    added = getattr(torch.optim, name)([weight()], **given).param_groups[0]
    ours.add_param_group(added)
    assert {key: ours.param_groups[1][key] for key in given} == given


def test_unknown_options_are_named_with_those_there_are() -> None:
    options = (
        "amsgrad, around, betas, capturable, clip_grad_norm, decoupled_weight_decay, differentiable, eps, execution, "
    )
    with pytest.raises(TypeError, match=rf"^AdamW has no option 'beta1'; it has {options}.*, weight_decay\.$"):
        untuned.AdamW([weight()], beta1=0.9)
    with pytest.raises(TypeError, match=r"^compose has no option 'lr'; it has amsgrad, .*, step_size, "):
        untuned.compose([weight()], lr=0.1)


def test_numbers_of_numpy_are_kept_as_pythons() -> None:
    optimizer = untuned.AdamW([weight()], lr=np.float32(0.5), betas=[np.float64(0.5), 0.25], eps=np.int64(1))
    values = [optimizer.param_groups[0][key] for key in ("lr", "betas", "eps")]
    assert values == [0.5, (0.5, 0.25), 1]
    assert [type(v) for v in values] == [float, tuple, int]
    assert type(values[1][0]) is float
    optimizer.add_param_group({"params": [weight()], "lr": np.float64(2)})
    assert type(optimizer.param_groups[1]["lr"]) is float


# ---------------------------------------------------------------- parameters


@pytest.mark.parametrize("params", [[], iter([]), ()])
def test_no_parameters(params: Any) -> None:
    with pytest.raises(ValueError, match="optimizer got an empty parameter list"):
        untuned.Prodigy(params)


@pytest.mark.parametrize(
    ("params", "shown"),
    [
        (None, "a NoneType"),
        (3, "a int"),
        ("weights", "a str"),
        (weight(), "a Parameter"),
        (torch.ones(2), "a Tensor"),
        ({weight()}, "a set"),
        ({"params": []}, "a dict"),
        (nn.Linear(1, 1), "a Linear"),
    ],
)
def test_params_of_a_wrong_kind(params: Any, shown: str) -> None:
    with pytest.raises(
        TypeError, match=rf"params must be a list or .*, not {shown}: use model\.parameters\(\) or \[p\]"
    ):
        untuned.Adam(params)


@pytest.mark.parametrize(
    ("wrong", "error", "sentence"),
    [
        (
            torch.ones(2, dtype=torch.complex64, requires_grad=True),
            TypeError,
            "Adam: parameters must be float64, 32, 16 or bfloat16, not torch.complex64",
        ),
        (torch.ones(2).to(torch.float8_e5m2).requires_grad_(), TypeError, "not torch.float8_e5m2"),
        ("weight", TypeError, "Adam: parameters must be tensors, not 'weight'"),
        (nn.Linear(1, 1), TypeError, "Adam: parameters must be tensors, not Linear"),
        (None, TypeError, "Adam: parameters must be tensors, not None"),
        (("w",), TypeError, r"Adam: parameters must be tensors, not \('w',\)"),
        (("w", "b"), TypeError, "Adam: parameters must be tensors, not 'b'"),
        (weight() * 2, ValueError, "can't optimize a non-leaf Tensor"),
        ([weight()], TypeError, "Adam: parameters must be tensors, not \\["),
    ],
)
def test_parameters_of_a_wrong_kind(wrong: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        untuned.Adam([weight(), wrong])
    with pytest.raises(error, match=sentence):
        untuned.Adam([{"params": [weight()]}, {"params": [wrong]}])


def test_a_parameter_twice() -> None:
    twice = weight()
    for params in ([twice, twice], [{"params": [twice]}, {"params": [weight(), twice]}], [("a", twice), ("b", twice)]):
        with pytest.raises(ValueError, match=r"SGD: a parameter of shape \(2,\) was given twice"):
            untuned.SGD(params)


def test_an_empty_group_and_a_group_without_parameters() -> None:
    for empty in ([{"params": []}], [{"params": []}, {"params": iter(())}]):
        with pytest.raises(
            ValueError, match=r"SGD: no group has a parameter\. Give it those to train: model\.parameters"
        ):
            untuned.SGD(empty)
    with pytest.raises(ValueError, match="SGD: a parameter group has its parameters under 'params'"):
        untuned.SGD([{"lr": 0.1}])
    with pytest.raises(TypeError, match="SGD: a parameter group must be a dict, not tensor"):
        untuned.SGD([{"params": [weight()]}, torch.ones(1)])


@pytest.mark.parametrize("name", [name for name in EVERY if name not in DIVIDING])
def test_a_group_may_be_empty_and_filled_later(name: str) -> None:
    """Trainers build one for biases, whether there are any or not; the results are those without it."""
    late = [None, "first", "second"]
    runs = []
    for which in late:
        model = net()
        first, second = [*model.parameters()][:3], [*model.parameters()][3:]
        groups = [{"params": first}, {"params": second}] if which is None else [{"params": first}]
        groups = groups if which != "second" else [{"params": []}, *groups, {"params": []}]
        optimizer = EVERY[name](groups)
        if which == "first":
            optimizer.add_param_group({"params": []})
            optimizer.param_groups[1]["params"].extend(second)
        elif which == "second":
            optimizer.param_groups[2]["params"] += second
        train(model, optimizer, range(3))
        assert len(optimizer.state) == len([*model.parameters()])
        optimizer.load_state_dict(optimizer.state_dict())
        train(model, optimizer, range(3, 5))
        runs.append([p.detach() for p in model.parameters()])
        assert optimizer.metrics()["steps"] == 5
    for p, *others in zip(*runs, strict=True):
        assert all(torch.equal(p, q) for q in others)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.complex64, torch.bool])
def test_frozen_parameters_may_be_of_any_dtype(dtype: torch.dtype) -> None:
    """As the quantised weights beneath LoRA are; what needs no gradient is not trained."""
    frozen, p = nn.Parameter(torch.ones(4).to(dtype), requires_grad=False), weight()
    optimizer = untuned.Prodigy([frozen, p])
    for _ in range(3):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert set(optimizer.state_dict()["state"]) == {1}
    other = untuned.Prodigy([frozen, p])
    other.load_state_dict(optimizer.state_dict())
    assert other.metrics()["d"] == optimizer.metrics()["d"] > 1e-6


def test_one_tensor_is_a_group_as_in_torch() -> None:
    optimizer = untuned.SGD([{"params": weight()}, {"params": iter([weight(), weight()])}])
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 2]


def test_named_parameters_are_named_in_the_groups() -> None:
    optimizer = untuned.MoMoAdam(net().named_parameters())
    assert optimizer.param_groups[0]["param_names"][:2] == ["0.weight", "0.bias"]
    with pytest.raises(ValueError, match="with/without names"):
        untuned.MoMoAdam([("a", weight()), weight()])


# ---------------------------------------------------------------- parts that do not fit


def refused(**parts: Any) -> str:
    with pytest.raises(TypeError) as caught:
        untuned.compose([weight()], **parts)
    return str(caught.value)


def test_momo_needs_one_average_of_the_model() -> None:
    assert refused(direction=TAM(), step_size=MoMo()) == (
        "MoMo cannot use TAM: it needs 'average' (one scalar weight per past gradient); TAM damps each tensor "
        "differently; scope='model' gives one damping for the whole model. Use AdaGrad, AdaGradDA, Adam, "
        "AdaptiveAdam, AdaptiveMemory, CubeRoot, "
        "CubeRootDA, DualAverage, Gradient, Momentum, Muon, RMSProp or SNGM."
    )
    assert refused(direction=TAM(scope="group"), step_size=MoMo()) == refused(direction=TAM(), step_size=MoMo())
    untuned.compose([weight()], direction=TAM(scope="model"), step_size=MoMo())


def test_momo_needs_a_plain_average() -> None:
    assert refused(direction=Momentum(nesterov=True), step_size=MoMo()) == (
        "MoMo cannot use Momentum: it needs 'average' (one scalar weight per past gradient); Nesterov momentum steps "
        "along a mixture of the average and the current gradient. Use AdaGrad, AdaGradDA, Adam, "
        "AdaptiveAdam, AdaptiveMemory, CubeRoot, CubeRootDA, "
        "DualAverage, Gradient, Momentum, Muon, RMSProp or SNGM."
    )


def test_dadaptation_needs_a_scale() -> None:
    assert refused(direction=Momentum(), step_size=DAdaptation()) == (
        "DAdaptation cannot use Momentum: it needs 'diagonal' (a diagonal scale D that the direction divides by); "
        "Momentum does not give it. Use AdaGrad, AdaGradDA, AdaTAM, Adam, Adan, "
        "AdaptiveAdam, CubeRoot, CubeRootDA or RMSProp."
    )


class Clashing(StepSize):
    """A step size with a hyper-parameter that Momentum has too."""

    lr: float = hyper(default=1.0, within="[0, inf)")
    momentum: float = hyper(default=0.5, within="[0, 1)")

    def size(self, x: Any) -> tuple[Any, Any]:
        return x.lr * x.momentum, x.lr


def test_two_parts_cannot_share_a_name() -> None:
    assert refused(direction=Momentum(), step_size=Clashing()) == (
        "Clashing and Momentum both declare the group entry 'momentum': they cannot share one optimizer. "
        "Rename it in one of them, or use another part."
    )
    assert untuned.compose([weight()], direction=Adam(), step_size=DAdaptation(), iterate=ScheduleFree())


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"direction": MoMo()}, r"direction must be a Direction part, not MoMo\("),
        ({"direction": Adam}, "direction must be a Direction part, not <class .*Adam'>"),
        ({"step_size": 0.1}, r"step_size must be a StepSize part, not 0\.1\."),
        ({"iterate": "plain"}, r"iterate must be a Iterate part, not 'plain'\."),
        ({"decay": Plain()}, "decay must be a WeightDecay part"),
    ],
)
def test_a_part_in_the_wrong_place(parts: dict[str, Any], sentence: str) -> None:
    assert re.match(sentence, refused(**parts))


def test_equal_letters_of_two_parts_do_not_meet() -> None:
    """TAM's s is the cosine, Prodigy's s a slot; Mechanic's m and s are numbers."""
    w = weight()
    optimizer = untuned.compose([w], direction=TAM(), step_size=Prodigy(), iterate=Mechanic())
    w.grad = torch.ones(2)
    optimizer.step()
    assert set(optimizer.state[w]) == {
        "step",
        "momentum_buffer",
        "cosine",
        "s",
        "p0",
        "d_numerator",
        "delta",
        "mechanic_last",
    }
    assert {"d", "d_max", "mechanic_s", "mechanic_m"} <= set(optimizer.param_groups[0])


# ---------------------------------------------------------------- groups


SHARED = [
    ("prodigy", "beta3", 0.5),
    ("prodigy", "d0", 1e-3),
    ("prodigy", "d_coef", 2.0),
    ("prodigy", "growth_rate", 2.0),
    ("dadapt_adam", "d0", 1e-4),
    ("dadapt_adam", "growth_rate", 2.0),
    ("dadapt_adam", "beta3", 0.5),
    ("momo", "lb", -1.0),
    ("momo", "momentum", 0.5),
    ("momo", "dampening", 0.5),
    ("momo_adam", "lb", -1.0),
    ("momo_adam", "betas", (0.8, 0.999)),
    ("mechanic_sgd", "s_decay", 0.5),
    ("mechanic_adamw", "s_init", 0.5),
    ("momo on tam of the model", "decay", 0.5),
    ("momo on tam of the model", "momentum", 0.5),
    ("momo on tam of the model", "floor", 0.5),
    ("mechanic on momo_adam", "lb", -1.0),
]


@pytest.mark.parametrize(("name", "key", "value"), SHARED)
def test_what_one_decision_reads_is_equal_in_all_groups(name: str, key: str, value: Any) -> None:
    one, other = {"params": [weight()]}, {"params": [weight()], key: value}
    sentence = (
        rf"^\w+: {key} must be equal in all groups, since one decision .*, not .* and {re.escape(repr(value))}\.$"
    )
    with pytest.raises(ValueError, match=sentence):
        EVERY[name]([one, other])
    optimizer = EVERY[name]([one])
    with pytest.raises(ValueError, match=sentence):
        optimizer.add_param_group(other)
    if name in OPTIONS and key in inspect.signature(untuned.get(name).optimizer).parameters:
        EVERY[name]([one, other], **{key: value})  # equal to the default is equal
    before = everything(optimizer)
    optimizer.add_param_group({"params": [weight()]})
    optimizer.param_groups[1][key] = value
    for group in optimizer.param_groups:
        group["params"][0].grad = torch.ones(2)
    with pytest.raises(ValueError, match=sentence):
        optimizer.step(loss=1.0)
    after = everything(optimizer)
    assert different(before, {k: v for k, v in after.items() if k[1] == 0}) == []


@pytest.mark.parametrize("name", EVERY)
def test_every_group_may_have_its_own_lr_and_weight_decay(name: str) -> None:
    own = {"lr": 0.25, "weight_decay": 0.5}
    optimizer = EVERY[name]([{"params": [weight()]}, {"params": [weight()]} | own])
    assert {key: optimizer.param_groups[1][key] for key in own} == own


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("sgd", "nesterov", True),
        ("tam", "scope", "model"),
        ("momo_adam", "online", False),
        ("prodigy", "safeguard_warmup", True),
        ("adam", "correct", False),
        ("adam", "maximize", True),
        ("adam", "skip_nonfinite", False),
        ("adam", "slot_dtype", torch.float64),
    ],
)
def test_what_shapes_the_method_is_the_same_in_all_groups(name: str, key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{key} shapes the method and is .* for all groups, not {value!r} in one"):
        EVERY[name]([{"params": [weight()]}, {"params": [weight()], key: value}])


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("momo", "beta"),
        ("momo", "use_fstar"),
        ("momo", "bias_correction"),
        ("momo_adam", "divide"),
        ("prodigy", "decouple"),
        ("schedule_free_sgd", "momentum"),
        ("schedule_free_adamw", "betas"),
        ("sgd", "loss_group"),
        ("sgd", "execution"),
    ],
)
def test_options_that_no_group_has_are_not_ignored(name: str, key: str) -> None:
    with pytest.raises(
        ValueError, match=rf"{key} is an option of the optimizer, not of a group; a group may have .*lr"
    ):
        EVERY[name]([{"params": [weight()], key: 0.5}])


def test_momentum_of_a_group_needs_momentum_in_the_optimizer() -> None:
    with pytest.raises(ValueError, match="SGD: momentum is an option of the optimizer, not of a group"):
        untuned.SGD([{"params": [weight()], "momentum": 0.9}])


@pytest.mark.parametrize("name", ["prodigy", "momo", "schedule_free_adamw", "mechanic on tam"])
def test_a_refused_group_changes_nothing(name: str) -> None:
    model = net()
    optimizer = EVERY[name](model.parameters())
    train(model, optimizer, range(2))
    before, groups = everything(optimizer), [dict(g) for g in optimizer.param_groups]
    wrong: list[Any] = [
        {"params": [weight()], "lr": -1.0},
        {"params": [weight()], "lr": "0.1"},
        {"params": [weight()], "weight_decay": None},
        {"params": [weight(), next(model.parameters())]},
        {"params": [weight(), weight() * 2]},
        {"params": [("w", weight())]},
        {"params": [torch.ones(1, dtype=torch.complex64, requires_grad=True)]},
        {"lr": 0.1},
        [weight()],
    ]
    for group in wrong:
        shown = repr(group)
        with pytest.raises((TypeError, ValueError)):
            optimizer.add_param_group(group)
        assert repr(group) == shown
    assert different(before, everything(optimizer)) == []
    assert [list(g) for g in optimizer.param_groups] == [list(g) for g in groups]
    assert len(optimizer.state) == 6


def test_the_groups_of_another_optimizer_start_afresh() -> None:
    """Wrappers rebuild an optimizer from its groups; the numbers in them belong to the old one."""
    model = net()
    old = EVERY["prodigy"](model.parameters(), d0=1e-3)
    train(model, old, range(5))
    assert float(old.param_groups[0]["d"]) > 1e-3
    new = EVERY["prodigy"](old.param_groups, d0=1e-3)
    values = {key: float(new.param_groups[0][key]) for key in ("d", "d_max", "steps", "skipped")}
    assert values == {"d": 1e-3, "d_max": 1e-3, "steps": 0.0, "skipped": 0.0}
    assert float(old.param_groups[0]["steps"]) == 5


@pytest.mark.parametrize("momentum", [None, False, "0"])
def test_no_momentum_is_the_number_zero(momentum: Any) -> None:
    for build in (untuned.SGD, untuned.MechanicSGD):
        with pytest.raises(TypeError, match=rf"Momentum: momentum must be a number in \[0, 1\), not {momentum!r}"):
            build([weight()], momentum=momentum)
        assert isinstance(build([weight()], momentum=0).parts["direction"], Gradient)


def test_infinite_values_where_they_mean_something() -> None:
    untuned.Prodigy([weight()], growth_rate=inf)
    with pytest.raises(ValueError, match=r"Prodigy: d0 must be a number in \(0, inf\), not inf"):
        untuned.Prodigy([weight()], d0=inf)


def test_a_composition_and_a_class_are_the_same_method() -> None:
    one, other = net(), net()
    named = untuned.SGD(one.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    composed = untuned.compose(
        other.parameters(),
        direction=Momentum(0.9),
        step_size=Fixed(0.1),
        decay=untuned.weight_decay.Coupled(0.01),
    )
    assert train(one, named, range(5)) == train(other, composed, range(5))
    assert different(everything(named), everything(composed)) == []


def test_the_table_of_methods_is_whole() -> None:
    assert sorted(OPTIONS) == untuned.list()
    assert not COMPOSITIONS.keys() & OPTIONS.keys()


@pytest.mark.parametrize("value", [0, "", 1, "yes"])
def test_kahan_sum_is_true_false_or_none(value: Any) -> None:
    with pytest.raises(TypeError, match=rf"^AdamW: kahan_sum must be True or False, not {re.escape(repr(value))}\.$"):
        untuned.AdamW([weight()], kahan_sum=value)


OWN_TRANSFORM = ["adarem", "multiplicative_adam", "multiplicative_sgd", "random_scaling_adamw", "random_scaling_sgd"]


@pytest.mark.parametrize("role", ["gradient", "around"])
@pytest.mark.parametrize("given", [None, 3, Norms(), Project()], ids=str)
@pytest.mark.parametrize("name", ["adamw", *OWN_TRANSFORM])
def test_what_is_no_list_of_transforms_is_refused_in_a_sentence(name: str, given: Any, role: str) -> None:
    kind = {"gradient": "GradientTransform", "around": "StepTransform"}[role]
    with pytest.raises(TypeError, match=re.escape(f"{role} must be a list of {kind} parts, not {given!r}.")):
        untuned.create([nn.Parameter(torch.ones(2, 2))], name, **{role: given})


@pytest.mark.parametrize("name", ["adamw", *OWN_TRANSFORM])
def test_transforms_by_label_join_those_of_the_method_in_every_label(name: str) -> None:
    """A label without further transforms is served as if none had been given."""
    found = []
    for options in ({}, {"gradient": {"a": [Norms()], "b": []}, "around": {"a": [Project()], "b": []}}):
        params = [nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, -4.0]])) for _ in "ab"]
        groups = [{"params": [p], "label": label} for p, label in zip(params, "ab", strict=True)]
        groups = groups if options else [{"params": [p]} for p in params]
        optimizer = untuned.create(groups, name, **options)
        for _ in range(3):
            for p in params:
                p.grad = p.detach() / 2
            optimizer.step()
        found.append([p.detach().clone() for p in params])
    (a, b), (projected, same) = found
    assert torch.equal(b, same)
    assert projected.norm().item() == pytest.approx(30**0.5) != pytest.approx(a.norm().item())


def test_composing_without_transforms_may_say_so() -> None:
    params = [nn.Parameter(torch.ones(2))]
    assert repr(untuned.compose(params, gradient=None, around=None)) == repr(untuned.compose(params))

"""What a study trains with: reading and writing it, building it, following its schedule."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import untuned
from untuned import around, directions, gradients, iterates, registry, step_sizes, weight_decay
from untuned.schedules import SHAPES, NormRecorder, Schedule, refine, tables
from untuned.study.building import ROLES, create, default_lr, follow, records_samples
from untuned.study.methods import RANGE_TEST, MethodSpec, label, parse_methods, parse_schedule
from untuned.study.syntax import StudyError


def one(text: str) -> MethodSpec:
    [method] = parse_methods(text)
    return method


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def trained(
    make: Callable[[nn.Module], torch.optim.Optimizer], steps: int = 12, lrs: list[float] | None = None
) -> torch.Tensor:
    """All weights after some steps on a regression; with `lrs`, the lr of each step."""
    generator = torch.Generator().manual_seed(1)
    model = network()
    optimizer = make(model)
    ours = isinstance(optimizer, untuned.Optimizer)
    for step in range(steps):
        for group in optimizer.param_groups if lrs else []:
            group["lr"] = lrs[step]
        x, y = torch.randn(8, 3, generator=generator), torch.randn(8, 2, generator=generator)
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step(**({"loss": loss.detach()} if ours else {}))
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


# --- Reading and writing.

TEXTS = {
    "adam": MethodSpec("adam", {}),
    "adam()": MethodSpec("adam", {}),
    "adam(betas=(0.9, 0.95), eps=1e-6)": MethodSpec("adam", {"betas": (0.9, 0.95), "eps": 1e-6}),
    "adam(betas=[0.9, 0.95])": MethodSpec("adam", {"betas": (0.9, 0.95)}),
    "sgd(lr=(1, 0.1, 1))": MethodSpec("sgd", {}, (0.1, 1.0)),
    "sgd(lr=[1, 0.1])": MethodSpec("sgd", {}, (0.1, 1.0)),
    "adam(schedule=linear, warmup=0.05)": MethodSpec("adam", {}, None, "linear", 0.05),
    "adam(schedule='linear')": MethodSpec("adam", {}, None, "linear"),
    "adam(schedule=linear())": MethodSpec("adam", {}, None, "linear"),
    "adam(schedule=constant, warmup=0)": MethodSpec("adam", {}, None, "", 0.0),
    "adam(schedule=wsd(decay=0.1), eps=1e-6)": MethodSpec("adam", {"eps": 1e-6}, None, "wsd(decay=0.1)"),
    "adam(schedule=step(at=[0.5, 0.9], factor=0.2))": MethodSpec(
        "adam", {}, None, "step(at=(0.5, 0.9), factor=0.2)"
    ),
    "adamw(warmup=0.123456789, budget=0.25)": MethodSpec("adamw", {}, None, None, 0.123456789, 0.25),
    "adamw(budget=1)": MethodSpec("adamw", {}),
    "adamw(lr=range_test)": MethodSpec("adamw", {}, (1.0,), probe="range_test"),
    "adamw(lr=range_test())": MethodSpec("adamw", {}, (1.0,), probe="range_test"),
    "adamw(lr = range_test(rule='valley', steps=60), eps=1e-6)": MethodSpec(
        "adamw", {"eps": 1e-6}, (1.0,), probe="range_test(rule='valley', steps=60)"
    ),
    "range-test": MethodSpec("adamw", {}, (1.0,), "linear", 0.05, 1.0, "range_test(steps=60)"),
    "range_test": MethodSpec("adamw", {}, (1.0,), "linear", 0.05, 1.0, "range_test(steps=60)"),
    "compose(adam)": MethodSpec("compose(adam)", {}),
    "compose(adam(), schedule_free())": MethodSpec("compose(adam, schedule_free)", {}),
    "compose(adam, momo(lr=0.5, lb=1.0), schedule_free)": MethodSpec(
        "compose(adam, momo(lb=1.0), schedule_free)", {}, (0.5,)
    ),
    "compose(adam(betas=(0.9, 0.99)), lr=(1, 2), schedule=cosine, capturable=True)": MethodSpec(
        "compose(adam(betas=(0.9, 0.99)))", {"capturable": True}, (1.0, 2.0), "cosine"
    ),
    "compose(adam, fixed(lr=range_test(steps=20)))": MethodSpec(
        "compose(adam, fixed)", {}, (1.0,), probe="range_test(steps=20)"
    ),
    "compose(schedule=linear)": MethodSpec("compose()", {}, None, "linear"),
    "torch.optim:NAdam": MethodSpec("torch.optim:NAdam", {}),
    "prodigyopt:Prodigy(lr=1, weight_decay=0.01, schedule=cosine)": MethodSpec(
        "prodigyopt:Prodigy", {"weight_decay": 0.01}, (1.0,), "cosine"
    ),
    "tiny:Line(note='range-test, a:b - c')": MethodSpec("tiny:Line", {"note": "range-test, a:b - c"}),
}  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_methods_are_read(text: str) -> None:
    assert one(text) == TEXTS[text]


@pytest.mark.parametrize("text", TEXTS)
def test_labels_are_read_as_what_they_label(text: str) -> None:
    found = one(text)
    again = one(found.label)
    usual = {"schedule": found.schedule or None, "warmup": found.warmup or None}  # what is usual is not said
    assert again == found._replace(lrs=found.lrs if found.probe else None, **usual)
    assert again.label == found.label


def test_methods_are_separated_by_commas() -> None:
    several = [text for text in TEXTS if text != "adam"]
    assert parse_methods(", ".join(several)) == [TEXTS[text] for text in several]
    assert [m.name for m in parse_methods("range-test,adam,range_test")] == ["adamw", "adam", "adamw"]


NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers()
VALUES = st.recursive(
    NUMBERS | st.booleans() | st.none() | st.text(), lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=4
)
SCHEDULES = st.sampled_from(["", "linear", "cosine", "inverse_sqrt(alpha=3.0)"]) | st.floats(
    0, 1, exclude_min=True
).map(lambda decay: f"wsd(decay={decay!r})")
PROBES = st.sampled_from(["", "range_test", "range_test(steps=60)", "range_test(rule='valley', low=1e-05)"])
NAMES = st.sampled_from(["adam", "prodigy", "compose(adam, momo(lb=1.0))", "compose()", "torch.optim:Adam", "a.b:C"])


@given(
    name=NAMES,
    options=st.dictionaries(st.sampled_from(["betas", "eps", "foo"]), VALUES),
    schedule=SCHEDULES,
    warmup=st.floats(0, 1, exclude_max=True),
    budget=st.floats(0, 1, exclude_min=True),
    probe=PROBES,
)
def test_every_label_is_read_as_what_it_labels(
    name: str, options: dict[str, Any], schedule: str, warmup: float, budget: float, probe: str
) -> None:
    written = label(name, options, schedule, warmup, budget, probe)
    expected = MethodSpec(name, options, (1.0,) if probe else None, schedule or None, warmup or None, budget, probe)
    assert one(written) == expected
    assert parse_methods(f"sgd,{written},{written}")[1:] == [expected, expected]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("compose(adm)", "compose: 'adm' is no part; parts are named as in adam, momo(lb=1.0), schedule_free; did you"),
        ("compose(qqqqqqqq)", "'qqqqqqqq' is no part; .* did you mean those of `untuned list`?"),
        ("compose(adam(0.9))", "'adam(0.9)' is no part"),
        ("compose('adam')", "\"'adam'\" is no part"),
        ("compose(untuned.adam)", "'untuned.adam' is no part"),
        ("compose(*adam)", "is no part"),
        ("compose(adam, momo(lr=1), lr=2)", "compose(adam, momo(lr=1), lr=2): lr is given twice"),
        ("compose(adam, momo(lr=1), warmed_up(lr=2))", "lr is given twice"),
        ("compose(adam, momo(lr=-1))", "a learning rate must be positive and finite, not -1"),
        ("compose(adam, momo(lb=print))", "option lb must be a number, string"),
        ("adam(eps=1, eps=2)", "adam(eps=1, eps=2): eps is given twice"),
        ("adam(warmup=1)", "adam: warmup is a part of the run, positive and below 1, not 1"),
        ("adam(warmup=-0.1)", "not -0.1"),
        ("adam(warmup=True)", "not True"),
        ("adam(warmup='x')", "not 'x'"),
        ("adam(budget=0)", "adam: budget is a part of the run, positive and at most 1, not 0"),
        ("adam(budget=1.1)", "not 1.1"),
        ("adam(budget=None)", "not None"),
        ("adam(schedule=lineer)", "schedule: 'lineer' is none of constant, linear, polynomial, cosine,"),
        ("adam(schedule=linear(2))", "'linear(2)' is none of"),
        ("adam(schedule=linear(warmup=2))", "warmup is an option of the method, as in adam(schedule=linear, warmup"),
        ("adam(schedule=linear(last_epoch=1))", "schedule: linear has no option 'last_epoch'; it has none"),
        ("adam(schedule=wsd(steps=5))", "schedule: wsd has no option 'steps'; it has decay"),
        ("adam(schedule=wsd(decay=2))", "decay of 'wsd' must be a number in (0, 1], not 2"),
        ("adam(schedule=wsd(decay=x))", "schedule: cannot read 'wsd(decay=x)'"),
        ("adam(schedule=wsd(decay={[]: 1}))", "schedule: cannot read"),
        ("adam(schedule=refined)", "schedule: refined takes the file of a schedule or log, and power and tau"),
        ("adam(schedule=refined(3))", "schedule: refined takes the file"),
        ("adam(schedule=refined('nowhere.csv', peak=3))", "schedule: refined takes the file"),
        ("adam(schedule=refined('nowhere.csv'))", "schedule: .*nowhere.csv"),
        ("adam(lr=range_test(60))", "methods: range_test: options need names, as in range_test(steps=60)"),
        ("adam(lr=range_test(stps=60))", "range_test has no option 'stps'; it has steps, low, high, rule"),
        ("adam(lr=range_test(steps=9))", "range_test needs steps >= 10, 0 < low < high and a rule of steepest, valley"),
        ("adam(lr=range_test(steps=60.5))", "range_test needs steps >= 10"),
        ("adam(lr=range_test(low=0))", "range_test needs"),
        ("adam(lr=range_test(low=2, high=1))", "range_test needs"),
        ("adam(lr=range_test(low='x'))", "range_test needs"),
        ("adam(lr=range_test(high=None))", "range_test needs"),
        ("adam(lr=range_test(rule='flat'))", "range_test needs"),
        ("adam(lr=range_test(low=x))", "range_test: option low must be a number"),
        ("adam(lr=linear)", "adam: option lr must be a number, string, boolean, None or tuple of those, not linear"),
        ("range_tst", "no method is called 'range_tst'"),
        ("compose", "no method is called 'compose'"),
        ("torch.optim.Adam", "no method is called 'torch.optim.Adam'"),
        ("torch.optim:Adam(1e-3)", "torch.optim:Adam(0.001): options need names"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_in_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(StudyError) as caught:
        parse_methods(text)
    said = str(caught.value)
    assert all(part in said for part in sentence.split(".*")) and "\n" not in said


# --- Building.


COMPOSITIONS: dict[str, tuple[float, dict[str, Callable[[], Any]]]] = {
    "compose(adam)": (0.01, {"direction": directions.Adam, "step_size": lambda: step_sizes.Fixed(lr=0.01)}),
    "compose(adam(betas=(0.8, 0.9), eps=1e-3), momo(lb=0.3), schedule_free(beta=0.8))": (
        0.1,
        {
            "direction": lambda: directions.Adam(betas=(0.8, 0.9), eps=1e-3),
            "step_size": lambda: step_sizes.MoMo(lr=0.1, lb=0.3),
            "iterate": lambda: iterates.ScheduleFree(beta=0.8),
        },
    ),
    "compose(Prodigy(d0=1e-3), ADAM)": (
        2.0,
        {"direction": directions.Adam, "step_size": lambda: step_sizes.Prodigy(lr=2.0, d0=1e-3)},
    ),
    "compose(momentum(momentum=0.5), mechanic)": (
        1.0,
        {
            "direction": lambda: directions.Momentum(momentum=0.5),
            "step_size": lambda: step_sizes.Fixed(lr=1.0),
            "iterate": iterates.Mechanic,
        },
    ),
    "compose(ada_rem, momentum, multiplicative(mix=0.5), random_scaling(seed=3))": (
        0.05,
        {
            "gradient": lambda: [gradients.AdaRem()],
            "direction": directions.Momentum,
            "step_size": lambda: step_sizes.Fixed(lr=0.05),
            "around": lambda: [around.Multiplicative(mix=0.5), around.RandomScaling(seed=3)],
        },
    ),
    "compose(lion)": (0.01, {"direction": directions.Lion, "step_size": lambda: step_sizes.Fixed(lr=0.01)}),
}  # fmt: skip


@pytest.mark.parametrize("text", COMPOSITIONS)
def test_a_composition_steps_as_that_of_the_same_parts(text: str) -> None:
    lr, chosen = COMPOSITIONS[text]
    name = one(text).name
    found = trained(lambda model: create(model, name, lr, {}))
    expected = trained(lambda model: untuned.compose(model.parameters(), **{k: make() for k, make in chosen.items()}))
    assert torch.equal(found, expected)
    assert not torch.equal(found, trained(lambda model: create(model, name, lr / 2, {})))


def test_an_lr_inside_a_part_is_that_of_the_run() -> None:
    inside, outside = one("compose(adam, momo(lr=0.5, lb=1.0))"), one("compose(adam, momo(lb=1.0), lr=0.5)")
    assert inside == outside
    optimizer = create(network(), inside.name, 0.03, {})
    assert {group["lr"] for group in optimizer.param_groups} == {0.03}


def test_options_beside_the_parts_are_those_of_compose() -> None:
    """As in torch, `maximize` turns the gradient round."""
    name, options = one("compose(adam, maximize=True)")[:2]
    assert options == {"maximize": True}
    up = trained(lambda model: create(model, name, 0.01, options), steps=1)
    down = trained(lambda model: create(model, name, 0.01, {}), steps=1)
    start = torch.cat([parameter.detach().flatten() for parameter in network().parameters()])
    torch.testing.assert_close(up - start, start - down)
    with pytest.raises(TypeError, match="foo"):
        create(network(), name, 0.01, {"foo": 1})


@pytest.mark.parametrize("decay", ["decoupled", "coupled", "proximal"])
def test_biases_are_in_a_group_without_weight_decay_if_there_is_any(decay: str) -> None:
    name = f"compose(adam, {decay}(weight_decay=0.1))"
    optimizer = create(network(), name, 0.01, {})
    assert [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups] == [(2, 0.1), (2, 0.0)]
    assert {p.dim() for p in optimizer.param_groups[0]["params"]} == {2}

    def by_hand(model: nn.Module) -> torch.optim.Optimizer:
        kinds = [[p for p in model.parameters() if (p.dim() > 1) == matrix] for matrix in (True, False)]
        groups = [{"params": kinds[0]}, {"params": kinds[1], "weight_decay": 0.0}]
        part = getattr(weight_decay, decay.capitalize())(weight_decay=0.1)
        return untuned.compose(groups, direction=directions.Adam(), step_size=step_sizes.Fixed(lr=0.01), decay=part)

    assert torch.equal(trained(lambda model: create(model, name, 0.01, {})), trained(by_hand))
    for without in (f"compose(adam, {decay})", f"compose(adam, {decay}(weight_decay=0.0))", "compose(adam)"):
        assert len(create(network(), without, 0.01, {}).param_groups) == 1


@pytest.mark.parametrize(
    ("text", "role"),
    [
        ("compose(adam, momentum)", "direction"),
        ("compose(adam, fixed, momo)", "step size"),
        ("compose(adam, schedule_free, mechanic)", "iterate"),
        ("compose(adam, coupled, decoupled)", "decay"),
    ],
)
def test_two_parts_for_a_role_are_refused(text: str, role: str) -> None:
    message = re.escape(f"methods: {text} has two parts for {role}; it takes one")
    with pytest.raises(StudyError, match=message):
        create(network(), one(text).name, 0.1, {})


def test_parts_that_refuse_their_options_are_named() -> None:
    with pytest.raises(StudyError, match=r"methods: compose\(adam, momo\(bl=1\)\): .*bl"):
        create(network(), one("compose(adam, momo(bl=1))").name, 0.1, {})
    with pytest.raises(StudyError, match=r"methods: compose\(adam\(eps=-1\)\): .*eps"):
        create(network(), one("compose(adam(eps=-1))").name, 0.1, {})


def test_no_part_hides_another_of_the_same_name() -> None:
    """Names lose underscores and capitals."""
    rooms = (directions, step_sizes, iterates, weight_decay, gradients, around)
    kinds = tuple(ROLES.values())
    found: dict[str, type] = {}
    for cls in {value for room in rooms for value in vars(room).values() if isinstance(value, type)}:
        if issubclass(cls, kinds) and cls not in kinds:
            assert found.setdefault(cls.__name__.lower(), cls) is cls
    for cls in found.values():
        assert sum(issubclass(cls, kind) for kind in kinds) == 1
        assert one(f"compose({cls.__name__})").name == f"compose({cls.__name__})"


def test_norms_are_watched_beside_transforms_of_the_gradient(tmp_path: Path) -> None:
    optimizer = create(network(), "compose(ada_rem, momentum)", 0.1, {}, gradient=[gradients.Norms()])
    recorder = NormRecorder(optimizer, tmp_path / "norms")
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        parameter.grad = torch.full_like(parameter, 2.0)
    optimizer.step(loss=torch.tensor(1.0))
    recorder.close()
    count = sum(p.numel() for p in network().parameters())
    assert tables.column(tmp_path / "norms", tables.read(tmp_path / "norms"), "l1") == pytest.approx([2.0 * count])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("torch.optim:Adam", {"betas": (0.8, 0.9)}),
        ("torch.optim:SGD", {"momentum": 0.9, "nesterov": True}),
        ("torch.optim:NAdam", {}),
        ("torch.optim:RMSprop", {"alpha": 0.9}),
        ("torch.optim:Adagrad", {}),
        ("torch.optim:AdamW", {"weight_decay": 0.1}),
    ],
)
def test_optimizers_of_other_packages_step_like_themselves(name: str, options: dict[str, Any]) -> None:
    cls = getattr(torch.optim, name.partition(":")[2])
    found = trained(lambda model: create(model, name, 0.01, options, gradient=[gradients.Norms()]))
    assert torch.equal(found, trained(lambda model: cls(model.parameters(), lr=0.01, **options)))


def test_what_needs_no_gradient_is_left_out() -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    for name in ("adam", "compose(adam)", "torch.optim:Adam"):
        assert sum(len(group["params"]) for group in create(model, name, 0.1, {}).param_groups) == 3


MODULE = """
import torch
Missing = __import__("package_that_is_not_there")
"""
BROKEN = "raise OSError('no licence')"
OWN = """
import torch

class Own(torch.optim.SGD):
    pass

class Bare(torch.optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {})
"""


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("package_that_is_not_there:Adam", "methods: package_that_is_not_there:Adam: package_that_is_not_there is not"),
        ("torch.optima:Adam", "methods: torch.optima:Adam: torch.optima is not installed"),
        ("torch.optim:Adum", "methods: torch.optim:Adum: AttributeError: .*Adum"),
        ("needs_what_is_not_there:Own", "package_that_is_not_there is not installed"),
        ("is_broken:Own", "methods: is_broken:Own: OSError: no licence"),
        ("torch:Tensor", "methods: torch:Tensor is no torch.optim.Optimizer"),
        ("math:pi", "methods: math:pi is no torch.optim.Optimizer"),
        ("torch.optim:LBFGS", "methods: torch.optim:LBFGS evaluates the loss itself, by a closure, which a study does"),
    ],
)
def test_what_is_no_optimizer_of_another_package_is_refused(
    name: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "needs_what_is_not_there.py").write_text(MODULE)
    (tmp_path / "is_broken.py").write_text(BROKEN)
    with pytest.raises(StudyError, match=sentence):
        create(network(), one(name).name, 0.1, {})


# --- Learning rates by default, samples.


def test_default_learning_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_defaults.py").write_text(OWN)
    expected = {
        "adam": 1e-3,
        "momo": 1.0,
        "prodigy": 1.0,
        "compose(adam)": 1e-3,
        "compose(adam, schedule_free)": 1e-3,
        "compose(adam, momo(lb=1.0))": 1.0,
        "compose(alig, momentum)": 0.1,
        "compose(from_start, dual_average, madgrad)": 0.01,
        "torch.optim:Adam": 1e-3,
        "torch.optim:NAdam": 2e-3,
        "torch.optim:Adadelta": 1.0,
        "own_defaults:Own": 1e-3,
        "own_defaults:Bare": None,
    }
    assert {name: default_lr(name) for name in expected} == expected
    assert default_lr("adamw", probe="range_test") == 1.0  # times what it finds
    assert all(default_lr(name) == registry.get(name).lr for name in registry.names())


def test_methods_that_record_samples() -> None:
    names = ("taps", "motaps", "adam", "compose(adam)", "torch.optim:Adam")
    assert [records_samples(name) for name in names] == [True, True, False, False, False]


# --- Schedules.


def optimizer_of(lr: float = 2.0) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=lr)


def followed(schedule: str, warmup: float, steps: int, lr: float = 2.0) -> list[float]:
    """The lr of each step, and that after the last."""
    optimizer = optimizer_of(lr)
    scheduler = follow(optimizer, schedule, warmup, steps)
    used = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        used.append(optimizer.param_groups[0]["lr"])
    return used


@pytest.mark.parametrize("options", [{}, {"decay": 0.3}, {"power": 3.0}, {"final": 0.1}, {"at": (0.2, 0.6)}])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("warmup", "steps", "expected"), [(0.0, 20, 0), (0.25, 20, 5), (0.24, 20, 5), (0.99, 3, 2)])
def test_follow_is_the_schedule_of_the_library(
    shape: str, options: dict[str, Any], warmup: float, steps: int, expected: int
) -> None:
    written = f"{shape}({', '.join(f'{key}={value!r}' for key, value in options.items())})"
    try:
        schedule = parse_schedule(written)
    except StudyError:
        with pytest.raises(TypeError):
            Schedule(optimizer_of(), shape, steps, **options)
        return
    assert schedule == ("" if shape == "constant" else written.removesuffix("()"))
    optimizer = optimizer_of()
    library = Schedule(optimizer, shape, steps, warmup=expected, **options)
    lrs = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        optimizer.step()
        library.step()
        lrs.append(optimizer.param_groups[0]["lr"])
    assert followed(schedule, warmup, steps) == lrs


def test_a_warm_up_leaves_a_step_for_the_schedule() -> None:
    assert followed("linear", 0.999, 4)[:4] == [2 / 3, 4 / 3, 2.0, 2.0]
    assert followed("", 0.5, 1) == [2.0, 2.0]
    assert follow(optimizer_of(), "", 0.0, 5) is None


NORMS = 1 + 0.5 * np.sin(np.arange(40.0))


def log(path: Path, norms: np.ndarray = NORMS) -> Path:
    tables.write(path, {"step": np.arange(1, len(norms) + 1), "l1": 10 / norms, "l2": norms})
    return path


@pytest.mark.parametrize("name", ["norms.csv", "my - norms:a.csv", "range-test"])
def test_a_refined_schedule_is_named_with_a_hash_of_its_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "range-test":  # a folder, as a recorder leaves it
        Path(name).mkdir()
        file = log(Path(name) / "000000000001.parquet")
    else:
        file = log(Path(name))
    method = one(f"adam(schedule=refined({name!r}, tau=0.2), eps=1e-6)")
    assert re.fullmatch(rf"refined\('{name}', tau=0.2, sha256='[0-9a-f]{{16}}'\)", method.schedule)
    assert one(method.label) == method
    # The last steps of the schedule of the whole run: what is left after a range test has fewer.
    found = followed(one(f"sgd(schedule=refined({name!r}, power=2, tau=0.2))").schedule, 0.0, 25)
    np.testing.assert_allclose(found[:-1], 2 * refine(NORMS, 2, 0.2, 25), rtol=1e-12)
    asked = followed(method.schedule, 0.0, 25)  # of SGD, whose power is 2
    assert asked == found

    log(file, NORMS + 1)
    with pytest.raises(StudyError, match=rf"schedule: {name} has changed since the study began"):
        one(method.label)
    with pytest.raises(StudyError, match=rf"schedule: {name} has changed since the study began"):
        follow(optimizer_of(), method.schedule, 0.0, 25)
    assert one(f"adam(schedule=refined({name!r}, tau=0.2), eps=1e-6)").schedule != method.schedule
    file.unlink()
    with pytest.raises(StudyError, match="schedule: "):
        one(method.label)


def test_a_refined_schedule_has_a_warm_up_of_its_own(tmp_path: Path) -> None:
    path = log(tmp_path / "norms.csv")
    with pytest.raises(StudyError, match="adam: a refined schedule has a warm-up of its own; leave out warmup"):
        one(f"adam(schedule=refined({str(path)!r}), warmup=0.1)")
    with pytest.raises(StudyError, match=r"schedule: .*tau"):
        one(f"adam(schedule=refined({str(path)!r}, tau=7))")


def test_the_range_test_of_the_table_is_what_people_do() -> None:
    """60 steps, then linear decay behind 5 % of warm-up."""
    assert one("range-test").label == RANGE_TEST
    assert one("range-test") == one(RANGE_TEST)


def test_a_schedule_and_a_composition_go_together() -> None:
    """Bitwise the steps of the parts with the multipliers set by hand."""
    name = "compose(adam, momo(lb=0.3), schedule_free)"
    lrs = followed("cosine", 0.25, 12, lr=0.1)[:-1]

    def scheduled(model: nn.Module) -> torch.optim.Optimizer:
        optimizer = create(model, name, 0.1, {})
        scheduler = follow(optimizer, "cosine", 0.25, 12)
        optimizer.register_step_post_hook(lambda *_: scheduler.step())
        return optimizer

    by_hand = trained(lambda model: create(model, name, 0.1, {}), lrs=lrs)
    assert torch.equal(trained(scheduled), by_hand)
    assert not torch.equal(by_hand, trained(lambda model: create(model, name, 0.1, {})))

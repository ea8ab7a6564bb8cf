"""Random configurations through constructor and three steps: a sentence that says what is wrong, or finite numbers.

A few hundred by default, always the same; 10,000 of them are slow (`make test-slow`). Gradients do not depend on the
parameters, so that nothing can grow out of bounds unless a method divides by what it should not.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import traceback
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from problems import everything
from torch import nn

import untuned
from untuned import around, directions, gradients, iterates, registry, step_sizes, weight_decay
from untuned.optimizer.options import EngineOptions
from untuned.parts import WeightDecay
from untuned.parts import fit as capabilities

pytestmark = pytest.mark.filterwarnings("ignore:.*hardly decays")  # dual averaging without momentum, once in a while

ROOMS = {"direction": directions, "step_size": step_sizes, "iterate": iterates}
PARTS = {role: [getattr(room, name) for name in room.__all__] for role, room in ROOMS.items()}
PARTS["decay"] = [kind for kind in vars(weight_decay).values() if kind in WeightDecay.__subclasses__()]
LIBRARY = Path(untuned.__file__).parent
REST = object()  # an option that is left at its default

RIGHT = [0.0, 1e-8, 1e-3, 0.1, 0.5, 0.9, 1.0, 2.0, 10.0, 1e3]  # larger ones may rightly leave the range of float32
WRONG = [-1.0, -1e-30, float("nan"), float("-inf"), None, "0.1", True, [0.1], 1j, torch.ones(2)]
NUMBERS = st.sampled_from([*[0.0, 0.1, 0.5, 0.9] * 8, *RIGHT * 2, *WRONG, float("inf"), 1, 3])
PAIRS = st.tuples(*[st.sampled_from([*[0.0, 0.5, 0.9, 0.999] * 3, 1.0, -0.1, float("nan")])] * 2)
ODD = st.sampled_from([None, "many", (0.9,), 0.9, [0.9, 0.99], ("a", "b")])
WHOLE = st.sampled_from([*[0, 1, 2, 5] * 4, -1, 2.5, "5", True, None])
FLAGS = st.sampled_from([*[True, False] * 5, 1, None, "yes"])
WORDS = st.sampled_from([*["model", "group", "tensor"] * 5, "layer", "", None, 1])


def values(name: str, default: Any) -> st.SearchStrategy[Any]:
    """What to give an option with this default."""
    if name == "lr":
        return st.sampled_from([*RIGHT * 5, *WRONG, *[torch.tensor(0.1), torch.tensor(0.0)] * 4, float("inf")])
    if isinstance(default, bool):
        return FLAGS
    if isinstance(default, str):
        return WORDS
    if isinstance(default, tuple):
        triples = st.tuples(*[st.sampled_from([0.0, 0.9, 0.98, 0.5, 0.99, 1.0])] * len(default))
        return st.one_of(triples, triples, PAIRS, ODD)
    return WHOLE if isinstance(default, int) else NUMBERS


def options(defaults: dict[str, Any], most: int = 3) -> st.SearchStrategy[dict[str, Any]]:
    """A few options at unusual values; the others rest."""
    few = st.lists(st.sampled_from(sorted(defaults)), max_size=most, unique=True) if defaults else st.just([])
    return few.flatmap(lambda names: st.fixed_dictionaries({name: values(name, defaults[name]) for name in names}))


def chains(room: Any, other: Any) -> st.SearchStrategy[Any]:
    """Lists of up to two transforms of a room, seldom one of another room or no list."""
    kinds = [getattr(room, name) for name in room.__all__]
    lists = st.lists(st.sampled_from(kinds).map(lambda kind: kind()), max_size=2)
    return st.one_of(*[lists] * 4, st.sampled_from([None, "none", kinds[0], kinds[0](), [None], [other()]]))


ENGINE: dict[str, st.SearchStrategy[Any]] = {
    "gradient": chains(gradients, around.Project),
    "around": chains(around, gradients.Norms),
    "maximize": FLAGS,
    "skip_nonfinite": FLAGS,
    "slot_dtype": st.sampled_from([*[None, torch.float32, torch.float64, torch.bfloat16] * 2, torch.int32, "float32"]),
    "kahan_sum": st.sampled_from([*[None, True, False] * 3, 1, "yes"]),
    "stochastic_rounding": FLAGS,
    "clip_grad_norm": st.sampled_from([*[None, 1e-3, 1.0, 100.0] * 3, 0.0, -1.0, float("nan"), "1", True]),
    "loss_group": st.sampled_from(["world", None]),
    "shard_group": st.sampled_from(["world", None]),
    "execution": st.sampled_from([*["reference"] * 6, "fast", None]),
    "fused": st.sampled_from([None, True, False]),
    "foreach": st.sampled_from([None, True, False]),
    "capturable": FLAGS,
    "differentiable": FLAGS,
    "amsgrad": FLAGS,
    "decoupled_weight_decay": FLAGS,
}
assert ENGINE.keys() == EngineOptions.__annotations__.keys()
engine = st.lists(st.sampled_from(sorted(ENGINE)), max_size=2, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: ENGINE[name] for name in names})
)

SHAPES = st.sampled_from([(), (1,), (3,), (2, 3), (0,), (2, 0), (1, 1, 2)])
DTYPES = st.sampled_from([torch.float64, torch.float32, torch.bfloat16])
tensors = st.lists(
    st.tuples(SHAPES, DTYPES, st.sampled_from(["", "", "", "frozen", "without gradient"])), min_size=1, max_size=3
)
GRADIENTS = {
    "usual": lambda g: g,
    "large": lambda g: g * 1e10,
    "small": lambda g: g * 1e-12,
    "zero": torch.zeros_like,
    "mostly zero": lambda g: torch.where(g > 0.5, g, 0.0),
}
gradients = st.lists(st.sampled_from([*GRADIENTS]), min_size=3, max_size=3)
losses = st.lists(st.sampled_from([1.0, 0.5, 0.0, -1.0, 1e-12, 1e6]), min_size=3, max_size=3)


@dataclasses.dataclass
class Problem:
    """Parameters in one or two groups, and what three steps bring."""

    groups: list[list[tuple[tuple[int, ...], torch.dtype, str]]]
    gradients: list[str]
    losses: list[float]

    def params(self, changes: dict[str, Any]) -> list[dict[str, Any]]:
        """The groups, the last of them with options of its own; every tensor holds numbers between -1 and 1."""
        found: list[dict[str, Any]] = []
        for group in self.groups:
            params = []
            for shape, dtype, kind in group:
                count = torch.Size(shape).numel()
                p = nn.Parameter(((torch.arange(count) * 37 % 19 - 9) / 10).to(dtype).reshape(shape))
                p.resting = bool(kind)  # pyright: ignore[reportAttributeAccessIssue]
                params.append(p.requires_grad_(kind != "frozen"))
            found.append({"params": params})
        found[-1] |= changes
        return found

    def fill(self, optimizer: untuned.Optimizer, k: int) -> None:
        for group in optimizer.param_groups:
            for p in group["params"]:
                grad = ((torch.arange(p.numel()) * 23 + 7 * k) % 17 - 8).reshape(p.shape) / 8.0
                p.grad = GRADIENTS[self.gradients[k]](grad).to(p.dtype) if not p.resting else None


problems_ = st.builds(Problem, st.lists(tensors, min_size=1, max_size=2), gradients, losses)


def refusal(error: Exception) -> str:
    """What is wrong with an error: its type, or that it was not the library that raised it."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    if not isinstance(error, TypeError | ValueError):
        return f"{type(error).__name__}: {error}"
    if LIBRARY not in Path(frame.filename).parents or "raise" not in (frame.line or ""):
        return f"{type(error).__name__} from {frame.filename}:{frame.lineno}, not a sentence of the library: {error}"
    return "" if len(str(error).split()) >= 4 else f"not a sentence: {error}"


def judge(build: Any, problem: Problem) -> str:
    """Constructor and three steps; -> what is wrong, "" if nothing."""
    try:
        optimizer = build()
        for k, loss in enumerate(problem.losses):
            problem.fill(optimizer, k)
            optimizer.step(loss=loss, sample_ids=[0])
    except Exception as error:  # the test is about which it is
        return refusal(error)
    with warnings.catch_warnings(action="ignore"):  # an estimate that has not moved yet is no news
        shown = optimizer.metrics()
    spoiled = {key for key, value in everything(optimizer).items() if not value.isfinite().all()}
    spoiled |= {key for key, value in shown.items() if value != value}
    return f"not finite after three steps: {sorted(map(str, spoiled))}" if spoiled else ""


def defaults_of(cls: Any) -> dict[str, Any]:
    known = inspect.signature(cls).parameters
    return {name: p.default for name, p in known.items() if p.kind is p.POSITIONAL_OR_KEYWORD and name != "params"}


METHODS = {name: defaults_of(registry.get(name).optimizer) for name in untuned.list()}
methods = st.sampled_from(sorted(METHODS)).flatmap(
    lambda name: st.tuples(st.just(name), options(METHODS[name]), engine, options(METHODS[name], most=1))
)


def part(cls: Any) -> st.SearchStrategy[tuple[Any, dict[str, Any]]]:
    return st.tuples(st.just(cls), st.one_of(st.just({}), options(defaults_of(cls), most=1)))


def fit(*classes: Any) -> bool:
    try:
        capabilities.check({role: cls() for role, cls in zip(PARTS, classes, strict=True)})
    except TypeError:
        return False
    return True


FITTING = [classes for classes in itertools.product(*PARTS.values()) if fit(*classes)]
any_parts = st.tuples(*[st.sampled_from(classes) for classes in PARTS.values()])
recipes = st.one_of(*[st.sampled_from(FITTING)] * 3, any_parts).flatmap(
    lambda classes: st.fixed_dictionaries({role: part(cls) for role, cls in zip(PARTS, classes, strict=True)})
)


def check_method(configuration: Any, problem: Problem) -> None:
    name, chosen, of_engine, of_group = configuration
    samples = {"samples": 5} if registry.get(name).records_samples and "samples" not in chosen else {}
    note(f"untuned.create(..., {name!r}, **{samples | chosen | of_engine}), the last group with {of_group}")

    def build() -> untuned.Optimizer:
        given = {"execution": "reference"} | samples | chosen | of_engine
        return untuned.create(problem.params(of_group), name, **given)

    assert judge(build, problem) == ""


def check_recipe(recipe: Any, of_engine: dict[str, Any], problem: Problem) -> None:
    note(f"compose({ {role: f'{cls.__name__}(**{given})' for role, (cls, given) in recipe.items()} }, **{of_engine})")

    def build() -> untuned.Optimizer:
        parts = {role: cls(**given) for role, (cls, given) in recipe.items()}
        return untuned.compose(problem.params({}), **parts, **({"execution": "reference"} | of_engine))

    assert judge(build, problem) == ""


FEW = settings(max_examples=200, deadline=None, derandomize=True)
MANY = settings(FEW, max_examples=5_000, suppress_health_check=[HealthCheck.too_slow])


@FEW
@given(methods, problems_)
def test_methods(configuration: Any, problem: Problem) -> None:
    check_method(configuration, problem)


@FEW
@given(recipes, engine, problems_)
def test_compositions(recipe: Any, of_engine: dict[str, Any], problem: Problem) -> None:
    check_recipe(recipe, of_engine, problem)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@MANY
@given(methods, problems_)
def test_methods_at_length(configuration: Any, problem: Problem) -> None:
    check_method(configuration, problem)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@MANY
@given(recipes, engine, problems_)
def test_compositions_at_length(recipe: Any, of_engine: dict[str, Any], problem: Problem) -> None:
    check_recipe(recipe, of_engine, problem)

"""Random configurations: each is refused in a sentence that names part and value, or runs and stays finite."""

import inspect
import math
import re
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from problems import COMPOSITIONS, EVERY, everything
from torch import nn

import untuned

pytestmark = pytest.mark.filterwarnings("ignore:.*hardly decays")  # dual averaging without momentum, once in a while

FITTING = st.one_of(st.sampled_from([1e-8, 1e-3, 0.25, 0.5, 0.9]), st.floats(1e-6, 0.999))
NUMBERS = st.one_of(FITTING, st.sampled_from([0, 0.0, 1, 1.0, 2.0, 5, -1.0, -1e-9, math.nan, math.inf, -math.inf]))
PAIRS = st.one_of(st.tuples(FITTING, FITTING), st.tuples(NUMBERS, NUMBERS), st.lists(NUMBERS, max_size=3))
WRONG = st.sampled_from(["0.1", None, True, (), [1.0], b"1", torch.ones(2), {}])
CHOICES = {
    "scope": ["tensor", "group", "model"],
    "version": ["final", "v2025-03", "v2024-04", "v2024-03"],
    "rule": ["abs", "power"],
    "open_rule": ["index", "lazy"],
    "late_step": ["ordered", "vanilla"],
}
Configuration = tuple[str, dict[str, Any], list[dict[str, Any]]]


def defaults_of(name: str) -> dict[str, Any]:
    if name in COMPOSITIONS:
        return {"lr": 1.0}
    parameters = inspect.signature(untuned.get(name).optimizer).parameters
    return {
        key: 7 if p.default is p.empty else p.default
        for key, p in parameters.items()
        if key not in ("params", "engine")
    }


def fitting(option: str, default: Any) -> st.SearchStrategy[Any]:
    if isinstance(default, bool):
        return st.booleans()
    if isinstance(default, str):
        return st.sampled_from(CHOICES[option])
    if isinstance(default, tuple):
        return st.tuples(*[FITTING] * len(default))
    if option in ("num_workers", "samples", "seed", "slice_p", "warmup_steps"):
        return st.integers(6, 9)
    return FITTING.map(lambda v: 1 + v) if option in ("delay_cap", "growth_rate") else FITTING


def anything(option: str, default: Any) -> st.SearchStrategy[Any]:
    kinds = {bool: st.booleans(), str: st.sampled_from(["tensor", "layer"]), tuple: PAIRS}
    return st.one_of(kinds.get(type(default), NUMBERS), kinds.get(type(default), NUMBERS), WRONG)


@st.composite
def configurations(draw: st.DrawFn, value_of: Any, group_options: Any) -> Configuration:
    name = draw(st.sampled_from(sorted(EVERY)))
    defaults = defaults_of(name)

    def some(keys: set[str]) -> dict[str, Any]:
        chosen = draw(st.lists(st.sampled_from(sorted(keys)), max_size=3, unique=True))
        return {key: draw(value_of(key, defaults.get(key, 0.0))) for key in chosen}

    groups = [some(group_options(defaults)) for _ in range(draw(st.integers(1, 3)))]
    return name, some(set(defaults)), groups


def build(configuration: Configuration, seed: int) -> tuple[untuned.Optimizer, torch.Generator]:
    name, options, groups = configuration
    generator = torch.Generator().manual_seed(seed)
    params = [{"params": [nn.Parameter(torch.randn(2, generator=generator))]} for _ in groups]
    return EVERY[name]([p | group for p, group in zip(params, groups, strict=True)], **options), generator


def run(optimizer: untuned.Optimizer, generator: torch.Generator) -> None:
    for k in range(3):
        for p in optimizer.state:
            p.grad = torch.randn(2, generator=generator) / (k + 1)
        optimizer.step(loss=torch.rand((), generator=generator))
    assert [key for key, value in everything(optimizer).items() if not torch.isfinite(value).all()] == []
    assert all(math.isfinite(value) for value in optimizer.metrics().values())
    assert optimizer.metrics()["skipped"] == 0


@settings(max_examples=250, suppress_health_check=[HealthCheck.too_slow])
@given(configurations(fitting, lambda defaults: {"lr", "weight_decay"}), st.integers(0, 2**16))
def test_values_within_their_ranges_run_and_stay_finite(configuration: Configuration, seed: int) -> None:
    assume(not configuration[1].get("nesterov"))  # which refuses a dampening
    run(*build(configuration, seed))


@settings(max_examples=250, suppress_health_check=[HealthCheck.too_slow])
@given(configurations(anything, set), st.integers(0, 2**16))
def test_any_value_is_refused_in_words_or_runs_and_stays_finite(configuration: Configuration, seed: int) -> None:
    try:
        optimizer, generator = build(configuration, seed)
    except (TypeError, ValueError) as error:
        # What part, what is wrong, the value: "Fixed: lr must be a number in [0, inf), not -1.0."
        sentence = str(error)
        assert re.fullmatch(r"\w+: \w+ (must|shapes|is|needs) .*\.", sentence)
        _, options, groups = configuration
        values = [*options.values(), *(value for group in groups for value in group.values())]
        elements = [v for value in values if isinstance(value, tuple | list) for v in value]
        assert any(repr(v) in sentence for v in values + elements) or "not of a group" in sentence
    else:
        run(optimizer, generator)

"""Stochastic rounding of bfloat16."""

import io
from typing import Any

import pytest
import torch
from problems import OPTIONS

import untuned
from untuned.memory import rounding


def test_the_hash_is_that_of_its_definition() -> None:
    def mixed(x: int) -> int:  # in Python's integers
        x = ((x ^ (x >> 16)) * 0x7FEB352D) % 2**32
        x = ((x ^ (x >> 15)) * 0x846CA68B) % 2**32
        return x ^ (x >> 16)

    values = [0, 1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xDEADBEEF]
    assert rounding.mixed(torch.tensor(values)).tolist() == [mixed(x) for x in values]


@pytest.mark.parametrize("value", [1.0, -1.0, 1e-3, 3.14159, -2.7e20, 1e-40, 0.0])
def test_the_mean_of_many_roundings_is_the_value(value: float) -> None:
    n = 200_000
    many = torch.full((n,), value)
    rounded = rounding.to_bfloat16(many, torch.tensor(12345), "p")
    ends = rounded.unique().float()
    assert len(ends) <= 2
    gap = float(ends[-1] - ends[0])
    assert abs(float(rounded.double().mean()) - float(many[0])) <= 4 * gap / 2 / n**0.5  # four standard errors
    if float(many[:1].bfloat16()) == float(many[0]):
        assert len(ends) == 1  # what bfloat16 can hold stays


def test_infinities_and_nan_stay() -> None:
    value = torch.tensor([float("inf"), -float("inf"), float("nan")])
    rounded = rounding.to_bfloat16(value, torch.tensor(1), "p").tolist()
    assert rounded[:2] == [float("inf"), -float("inf")]
    assert rounded[2] != rounded[2]


@pytest.mark.parametrize("execution", ["native", "reference"])
def test_steps_below_half_an_ulp_add_up(execution: str) -> None:
    moved = {}
    for at_random in (False, True):
        p = torch.nn.Parameter(torch.ones(20_000, dtype=torch.bfloat16))
        optimizer = untuned.SGD([p], lr=1e-4, stochastic_rounding=at_random, execution=execution)
        p.grad = torch.ones_like(p)
        for _ in range(50):
            optimizer.step()
        moved[at_random] = float(1 - p.detach().double().mean())
    assert moved[False] == 0.0
    assert moved[True] == pytest.approx(50e-4, rel=0.05)


def two_halves(name: str, stop: bool, **engine: Any) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(s, generator=generator).bfloat16()) for s in ((4, 3), (50,))]
    options = OPTIONS.get(name, {}) | {"stochastic_rounding": True, "slot_dtype": torch.bfloat16} | engine
    optimizer = untuned.create(params, name, **options)
    for k in range(6):
        if stop and k == 3:
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            optimizer = untuned.create(params, name, **options)
            optimizer.load_state_dict(torch.load(file, weights_only=True))
        for p in params:
            p.grad = torch.sin(p.detach() + k)
        optimizer.step(loss=torch.tensor(1.0), sample_ids=torch.tensor([0, 1]))
    return [p.detach() for p in params]


KERNELS = ["sgd", "momo_adam", "tam", "schedule_free_adamw"]


@pytest.mark.parametrize(
    ("name", "execution"),
    [
        *((name, "reference") for name in untuned.list()),
        *((name, "auto") for name in KERNELS),
        *(pytest.param(name, "auto", marks=pytest.mark.slow) for name in untuned.list() if name not in KERNELS),
    ],
)
def test_resume_repeats_the_same_bits(name: str, execution: str) -> None:
    straight, resumed = (two_halves(name, broken, execution=execution) for broken in (False, True))
    assert all(torch.equal(p, q) for p, q in zip(straight, resumed, strict=True))


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_round_as_the_reference(name: str) -> None:
    ours, theirs = (two_halves(name, False, execution=execution) for execution in ("native", "reference"))
    for p, q in zip(ours, theirs, strict=True):
        assert int((p != q).sum()) <= 1  # of equal float32 numbers up to an ulp, one in 2^16 may round apart
        torch.testing.assert_close(p.float(), q.float(), rtol=2**-6, atol=1e-6)


def test_it_takes_the_place_of_kahan_sum() -> None:
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    assert "compensation" not in untuned.Prodigy([p], stochastic_rounding=True).state_dict()["state"][0]
    assert "compensation" in untuned.Prodigy([p]).state_dict()["state"][0]
    with pytest.raises(ValueError, match="choose one of them"):
        untuned.Prodigy([p], stochastic_rounding=True, kahan_sum=True)

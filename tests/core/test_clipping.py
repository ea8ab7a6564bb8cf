"""Clipping by the norm of all gradients inside the step."""

import copy
from typing import Any

import pytest
import torch
from problems import OPTIONS

import untuned

KERNELS = ["sgd", "momo_adam", "prodigy", "mechanic_adamw", "ldog"]  # the factor is a row of their table like any other


def trained(
    name: str, inside: bool, clip: float, steps: int = 6, execution: str = "auto"
) -> tuple[list[torch.Tensor], untuned.Optimizer]:
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in ((4, 3), (5,))]
    groups = [{"params": params[:1]}, {"params": params[1:]}]
    engine: dict[str, Any] = {"execution": execution} | ({"clip_grad_norm": clip} if inside else {})
    optimizer = untuned.create(groups, name, **OPTIONS.get(name, {}), **engine)
    for k in range(steps):
        for p in params:
            p.grad = (p.detach() - 1) * (0.1 if k % 2 else 3.0)  # below the bound in every other step
        if not inside:
            torch.nn.utils.clip_grad_norm_(params, clip)
        optimizer.step(loss=torch.tensor(1.0), sample_ids=torch.tensor([0, 1]))
    return [p.detach() for p in params], optimizer


@pytest.mark.parametrize(
    ("name", "execution"),
    [
        *((name, "reference") for name in untuned.list()),
        *((name, "auto") for name in KERNELS),
        *(pytest.param(name, "auto", marks=pytest.mark.slow) for name in untuned.list() if name not in KERNELS),
    ],
)
def test_clipping_inside_equals_clipping_before(name: str, execution: str) -> None:
    ours, _ = trained(name, True, 1.0, execution=execution)
    theirs, _ = trained(name, False, 1.0, execution=execution)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-13)


def test_it_changes_the_step_and_says_the_norm() -> None:
    p = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = untuned.SGD([p], lr=1.0, clip_grad_norm=1.0)
    p.grad = torch.tensor([3.0, 4.0], dtype=torch.float64)
    optimizer.step()
    assert optimizer.metrics()["grad_norm"] == 5.0
    torch.testing.assert_close(p.detach(), -torch.tensor([0.6, 0.8], dtype=torch.float64), rtol=1e-6, atol=0)
    assert p.grad.tolist() == [3.0, 4.0]


def test_frozen_groups_are_not_in_the_norm() -> None:
    a, b = (torch.nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(2))
    groups = [{"params": [a]}, {"params": [b], "lr": torch.tensor(0.0)}]
    optimizer = untuned.SGD(groups, lr=1.0, clip_grad_norm=1.0)
    a.grad, b.grad = torch.full_like(a, 2.0), torch.full_like(b, 100.0)
    optimizer.step()
    assert optimizer.metrics()["grad_norm"] == 2.0
    assert b.item() == 0.0


def test_without_the_guard_it_clips_too() -> None:
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = untuned.SGD([p], lr=1.0, clip_grad_norm=1.0, skip_nonfinite=False)
    p.grad = torch.full_like(p, 10.0)
    optimizer.step()
    assert p.item() == pytest.approx(-1.0, rel=1e-6)


def test_copies_keep_it() -> None:
    _, optimizer = trained("adamw", True, 0.5)
    assert copy.deepcopy(optimizer).recipe.clip_grad_norm == 0.5


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), "1", True])
def test_bad_bounds_are_refused(bad: object) -> None:
    with pytest.raises(ValueError, match="clip_grad_norm must be None or a number above 0"):
        untuned.SGD([torch.nn.Parameter(torch.ones(1))], clip_grad_norm=bad)


def test_a_norm_that_overflows_skips_the_step() -> None:
    p = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))
    optimizer = untuned.SGD([p], lr=1.0, clip_grad_norm=1.0)
    p.grad = torch.full_like(p, 1e154)  # every square is finite, their sum is not
    p.grad *= 1.2
    optimizer.step()
    assert optimizer.metrics()["skipped"] == 1
    assert p.tolist() == [0.0] * 4

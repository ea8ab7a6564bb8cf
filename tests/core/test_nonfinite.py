"""Gradients and losses that are not finite, too large, too small or zero."""

from math import inf, nan
from typing import Any

import pytest
import torch
from problems import EVERY, LOSS_DRIVEN, different, everything, loss_of, net, train, vector
from torch import nn

import untuned

# A method whose step is proportional to the gradient follows a large one; all others must stay near.
PROPORTIONAL = {
    "madgrad",
    "mda",
    "mirror_madgrad",
    "sp",  # and without a cap it goes far on a small gradient
    "sgd",
    "ahb_sgd",
    "am_msgd",
    "sgd_spa",
    "ormo",
    "sgdf",
    "random_scaling_sgd",
    "adarem",
    "multiplicative_sgd",  # its additive part
    "tam",
    "tam of the group",
    "schedule_free_sgd",
    "mechanic_sgd",
    "mechanic on tam",
    "prodigy on momentum",
}


def without_skipped(found: dict[tuple[Any, ...], torch.Tensor]) -> dict[tuple[Any, ...], torch.Tensor]:
    return {key: value for key, value in found.items() if key[-1] != "skipped"}


def step_with(model: nn.Module, optimizer: untuned.Optimizer, k: int, spoil: Any, loss_value: Any = None) -> None:
    optimizer.zero_grad()
    loss = loss_of(model, k)
    loss.backward()
    spoil(list(model.parameters()))
    optimizer.step(loss=loss if loss_value is None else loss_value)


SPOILS = {
    "NaN in a bias": lambda params: params[3].grad.view(-1)[-1:].fill_(nan),
    "infinity in a weight": lambda params: params[0].grad[1, 2:].fill_(inf),
    "all minus infinity": lambda params: [p.grad.fill_(-inf) for p in params],
}


@pytest.mark.parametrize(
    ("spoil", "dtype"),
    [
        ("NaN in a bias", torch.float64),
        ("infinity in a weight", torch.float32),
        ("all minus infinity", torch.bfloat16),
    ],
)
@pytest.mark.parametrize("name", EVERY)
def test_a_bad_step_never_was(name: str, spoil: str, dtype: torch.dtype) -> None:
    """At the first step, in the middle and twice in a row: the run equals one without these steps, bitwise."""
    model, other = net(dtype), net(dtype)
    hurt, sound = EVERY[name](model.parameters()), EVERY[name](other.parameters())
    for k in range(6):
        if k in (0, 3, 4):
            step_with(model, hurt, k, SPOILS[spoil])
        else:
            assert train(model, hurt, range(k, k + 1)) == train(other, sound, range(k, k + 1))
    assert different(without_skipped(everything(hurt)), without_skipped(everything(sound))) == []
    assert hurt.metrics() == sound.metrics() | {"skipped": 3.0}
    assert sound.metrics()["skipped"] == 0


@pytest.mark.parametrize("value", [nan, inf, -inf])
@pytest.mark.parametrize("name", LOSS_DRIVEN)
def test_a_bad_loss_never_was(name: str, value: float) -> None:
    model, other = net(), net()
    hurt, sound = EVERY[name](model.parameters()), EVERY[name](other.parameters())
    for k in range(5):
        if k in (0, 3):
            step_with(model, hurt, k, lambda params: None, value)
        else:
            train(model, hurt, range(k, k + 1))
            train(other, sound, range(k, k + 1))
    assert different(without_skipped(everything(hurt)), without_skipped(everything(sound))) == []
    assert hurt.metrics()["skipped"] == 2


@pytest.mark.parametrize("name", ["sgd", "prodigy", "mechanic on tam"])
def test_methods_that_do_not_read_the_loss_do_not_judge_it(name: str) -> None:
    model, other = net(), net()
    optimizer, twin = EVERY[name](model.parameters()), EVERY[name](other.parameters())
    step_with(model, optimizer, 0, lambda params: None, nan)
    train(other, twin, range(1))
    assert different(everything(optimizer), everything(twin)) == []


def test_a_bad_recorded_loss_is_forgotten_with_its_step() -> None:
    model, other = net(), net()
    hurt, sound = EVERY["momo"](model.parameters()), EVERY["momo"](other.parameters())
    loss_of(model, 0).backward()
    for loss in (1.0, nan, 2.0):
        hurt.record_loss(loss)
    hurt.step()
    train(model, hurt, range(2))
    train(other, sound, range(2))
    assert torch.equal(vector(model), vector(other))
    assert hurt.metrics()["skipped"] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", EVERY)
def test_a_gradient_whose_square_overflows_is_not_finite(name: str, dtype: torch.dtype) -> None:
    """1e30 in float32: its square would make an average of squares infinite, and its weight still, for good."""
    model, other = net(dtype), net(dtype)
    hurt, sound = EVERY[name](model.parameters()), EVERY[name](other.parameters())
    train(model, hurt, range(2))
    train(other, sound, range(2))
    step_with(model, hurt, 2, lambda params: params[2].grad.fill_(1e30))
    assert hurt.metrics()["skipped"] == 1
    assert train(model, hurt, range(3, 6)) == train(other, sound, range(3, 6))
    assert different(without_skipped(everything(hurt)), without_skipped(everything(sound))) == []


@pytest.mark.parametrize("size", [1e18, 1e-30, 0.0])
@pytest.mark.parametrize("name", EVERY)
def test_large_small_and_zero_gradients_leave_finite_estimates(name: str, size: float) -> None:
    """In float32, at the start and in the middle; the run goes on afterwards."""
    model = net(torch.float32)
    optimizer = EVERY[name](model.parameters())
    for k in range(4):
        before = vector(model)
        if k in (0, 2):
            step_with(model, optimizer, k, lambda params: [p.grad.sign_().mul_(size) for p in params])
        else:
            train(model, optimizer, range(k, k + 1))
        assert all(torch.isfinite(value).all() for value in everything(optimizer).values())
        if size <= 1e-30 and k == 0 and name != "sp":  # nothing, or at most the step of a normalised method
            assert (vector(model) - before).abs().max() < 0.1
    if (name, size) == (
        "mechanic_sgd",
        1e18,
    ):  # S = 9.8 took the weights to 1e20, where squares overflow: all is skipped
        assert optimizer.metrics()["skipped"] > 0
    else:
        assert optimizer.metrics()["steps"] == 4
    if name not in PROPORTIONAL:
        assert (vector(model) - vector(net())).abs().max() < 10


@pytest.mark.parametrize("name", EVERY)
def test_zero_gradients_do_not_move(name: str) -> None:
    """Without weight decay; and estimates of a distance do not grow."""
    w = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = EVERY[name]([{"params": [w], "weight_decay": 0.0}])
    for _ in range(3):
        w.grad = torch.zeros(2)
        optimizer.step(loss=1.0)
    assert w.tolist() == [1.0, -2.0]
    assert all(torch.isfinite(value).all() for value in everything(optimizer).values())
    assert optimizer.metrics()["steps"] == 3
    if "d" in optimizer.param_groups[0]:
        assert optimizer.metrics()["d"] == optimizer.param_groups[0]["d0"]
    w.grad = torch.ones(2)
    optimizer.step(loss=1.0)
    assert all(torch.isfinite(value).all() for value in everything(optimizer).values())


@pytest.mark.parametrize("name", EVERY)
def test_without_the_check_nothing_is_checked(name: str) -> None:
    model, other = net(), net()
    unchecked, checked = EVERY[name](model.parameters(), skip_nonfinite=False), EVERY[name](other.parameters())
    assert train(model, unchecked, range(3)) == train(other, checked, range(3))
    assert different(everything(unchecked), everything(checked)) == []
    step_with(model, unchecked, 3, SPOILS["all minus infinity"])
    assert unchecked.metrics()["skipped"] == 0
    assert unchecked.metrics()["steps"] == 4
    spoiled = {key[0] for key, value in everything(unchecked).items() if not torch.isfinite(value).all()}
    assert spoiled & {"parameter", "state"}


def test_the_sums_of_finite_gradients_may_overflow() -> None:
    """<g, x> overflows in float32: nothing moves, and the estimates keep their values."""
    w = nn.Parameter(torch.full((4,), 1e25))
    optimizer = untuned.MoMo([w], execution="reference")
    w.grad = torch.full((4,), 1e16)
    before = {key: value.clone() for key, value in optimizer.param_groups[0].items() if torch.is_tensor(value)}
    optimizer.step(loss=1.0)
    assert torch.equal(w, torch.full((4,), 1e25))
    for key in ("loss_avg", "theta", "weights", "lower_bound"):
        assert torch.equal(optimizer.param_groups[0][key], before[key])
    with torch.no_grad():
        w.fill_(1.0)
    w.grad = torch.full((4,), 1.0)
    optimizer.step(loss=1.0)
    assert all(torch.isfinite(value).all() for value in everything(optimizer).values())

"""Weights, gradients and slots of different precision."""

import pytest
import torch
from problems import EVERY, everything, loss_of, net, train, vector
from torch import nn

import untuned


def mixed() -> nn.Module:
    """A bfloat16 layer between float64 ones."""

    class Cast(nn.Module):
        def __init__(self, dtype: torch.dtype) -> None:
            super().__init__()
            self.dtype = dtype

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.to(self.dtype)

    first, tanh, second, other, third = net()
    middle = nn.Sequential(Cast(torch.bfloat16), second.to(torch.bfloat16), Cast(torch.float64))
    return nn.Sequential(first, tanh, middle, other, third)


@pytest.mark.parametrize("name", EVERY)
def test_one_group_of_mixed_precision_follows_the_exact_run(name: str) -> None:
    model, exact = mixed(), net()
    with torch.no_grad():
        for p, q in zip(exact.parameters(), model.parameters(), strict=True):
            p.copy_(q)
    optimizer, reference = EVERY[name](model.parameters()), EVERY[name](exact.parameters())
    start = vector(exact)
    slots = {"exp_avg", "exp_avg_sq", "momentum_buffer", "s", "p0", "z", "ref", "delta"}
    for p, held in optimizer.state.items():
        wanted = torch.float32 if p.dtype == torch.bfloat16 else torch.float64
        assert {value.dtype for key, value in held.items() if key in slots} <= {wanted}
    train(model, optimizer, range(2))
    train(exact, reference, range(2))
    moved = (vector(exact) - start).abs().max()
    assert (vector(model) - vector(exact)).abs().max() < 0.01 + 0.2 * moved


@pytest.mark.parametrize("name", EVERY)
def test_float16_weights(name: str) -> None:
    model = net(torch.float16)
    optimizer = EVERY[name](model.parameters())
    start = vector(model)
    train(model, optimizer, range(3))
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    for held in optimizer.state.values():
        assert {value.dtype for value in held.values() if value.dim()} <= {torch.float32}
    assert all(torch.isfinite(value).all() for value in everything(optimizer).values())
    assert (vector(model) - start).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["prodigy", "momo_adam", "schedule_free_sgd", "mechanic on tam"])
@pytest.mark.parametrize("slots", [torch.float64, torch.bfloat16])
def test_slots_of_another_precision(name: str, slots: torch.dtype) -> None:
    model, plain = net(torch.float32), net(torch.float32)
    optimizer = EVERY[name](model.parameters(), slot_dtype=slots)
    for held in optimizer.state.values():
        totals = {slots, torch.float32} if slots == torch.bfloat16 and "delta" in held else {slots}
        assert {value.dtype for value in held.values() if value.dim()} == totals
    train(model, optimizer, range(3))
    train(plain, EVERY[name](plain.parameters()), range(3))
    moved = (vector(plain) - vector(net(torch.float32))).abs().max()
    error = (vector(model) - vector(plain)).abs().max()
    assert error < {torch.float64: 1e-5, torch.bfloat16: 0.1}[slots] * moved
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_small_updates_of_bfloat16_weights_are_not_lost_in_float32_slots() -> None:
    """1 - 2^-12 is 1 in bfloat16: 64 such steps leave the weights of SGD, and arrive in z of Schedule-Free."""
    one, other = (nn.Parameter(torch.ones(1, dtype=torch.bfloat16)) for _ in range(2))
    plain = EVERY["sgd"]([one], lr=2.0**-12, momentum=0.0, weight_decay=0.0)
    averaging = EVERY["schedule_free_sgd"]([other], lr=2.0**-12, weight_decay=0.0)
    for _ in range(64):
        one.grad, other.grad = (torch.ones(1, dtype=torch.bfloat16) for _ in range(2))
        plain.step()
        averaging.step()
    assert (one.item(), averaging.state[other]["z"].item()) == (1.0, 1 - 64 * 2.0**-12)


def test_gradients_may_be_of_another_precision_than_their_weights() -> None:
    model = net(torch.bfloat16)
    for p in model.parameters():
        p.grad_dtype = None
    optimizer = EVERY["adamw"](model.parameters())
    loss_of(model, 0).backward()
    for p in model.parameters():
        p.grad = p.grad.float()
    optimizer.step()
    assert optimizer.metrics()["steps"] == 1
    assert not torch.equal(vector(model), vector(net(torch.bfloat16)))


def test_scalars_are_not_rounded_to_the_precision_of_the_weights() -> None:
    """1 - 0.999 in float32 is off by 1e-5: v after one step is 0.001 g^2 to the last bit of float32."""
    w = nn.Parameter(torch.ones(3))
    optimizer = untuned.Adam([w], execution="reference")
    w.grad = torch.tensor([1.0, 2.0, 3.0])
    optimizer.step()
    wanted = (1 - 0.999) * torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)
    assert ((optimizer.state[w]["exp_avg_sq"].double() - wanted).abs() <= wanted * 2.0**-23).all()

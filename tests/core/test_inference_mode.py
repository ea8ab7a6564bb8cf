"""What is called while `torch.inference_mode()` is on, as an evaluation loop does, leaves a run that goes on."""

import copy
from typing import Any

import pytest
import torch
from problems import EVERY, different, everything, net, train
from torch import nn


def run(name: str, inside: bool) -> tuple[Any, ...]:
    """A run with all calls that may come between two steps, under inference mode or not."""
    model, late = net(), nn.Parameter(torch.ones(3, dtype=torch.float64), requires_grad=False)
    with torch.inference_mode(inside):
        optimizer = EVERY[name]([*model.parameters(), late])
    train(model, optimizer, range(2))
    late.requires_grad_(True)
    with torch.inference_mode(inside):
        saved = optimizer.state_dict()  # makes the state of what was unfrozen
    late.grad = torch.ones_like(late)
    train(model, optimizer, range(2, 4))
    with torch.inference_mode(inside):
        optimizer.load_state_dict(copy.deepcopy(saved))
    train(model, optimizer, range(4, 6))
    with torch.inference_mode(inside):
        optimizer.eval()
        evaluated, numbers = everything(optimizer), optimizer.metrics()
    optimizer.train()
    train(model, optimizer, range(6, 8))
    added = nn.Parameter(torch.full((2,), 2.0, dtype=torch.float64))
    with torch.inference_mode(inside), optimizer.averaged_parameters():
        numbers |= optimizer.metrics()
    with torch.inference_mode(inside):
        optimizer.add_param_group({"params": [added]})
    added.grad = torch.ones_like(added)
    train(model, optimizer, range(8, 10))
    for p in (*model.parameters(), late, added):
        p.grad = torch.ones_like(p)
    with torch.inference_mode(inside):
        optimizer.record_loss(torch.ones(()))
        optimizer.step()
    train(model, optimizer, range(10, 12))
    return evaluated, numbers, everything(optimizer)


@pytest.mark.parametrize("name", EVERY)
def test_calls_under_inference_mode_do_what_they_do_outside(name: str) -> None:
    (evaluated, numbers, end), (evaluated_, numbers_, end_) = run(name, True), run(name, False)
    assert different(evaluated, evaluated_) == []
    assert numbers == numbers_
    assert different(end, end_) == []
    assert all(not value.is_inference() for value in end.values())


def test_gradients_are_recorded_in_a_closure_and_nowhere_else() -> None:
    """Ending inference mode for a step must not begin to record it; the modes are as before afterwards."""
    w = nn.Parameter(torch.ones(2))
    optimizer = EVERY["sgd"]([w])

    def closure() -> torch.Tensor:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = w.square().sum()
        loss.backward()
        return loss

    for inside in (True, False):
        with torch.inference_mode(inside), torch.set_grad_enabled(not inside):
            assert optimizer.step(closure).item() > 0
            assert (torch.is_inference_mode_enabled(), torch.is_grad_enabled()) == (inside, not inside)
    assert all(held.grad_fn is None and not held.is_inference() for held in everything(optimizer).values())
    assert w.grad_fn is None and w.is_leaf

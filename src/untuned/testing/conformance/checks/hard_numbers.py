"""Gradients that are zero, not finite, huge or tiny."""

from __future__ import annotations

import torch
from torch import Tensor

from untuned.testing.conformance.check import DoesNotApply, Harm, check
from untuned.testing.conformance.problem import gradients, loss_of, net, vector
from untuned.testing.conformance.target import Target


def _step_on(target: Target, optimizer: object, loss: float = 1.0) -> None:
    if target.can("needs_closure"):
        raise DoesNotApply("its closure computes the gradients")
    target.step(optimizer, torch.tensor(loss))


@check("a batch whose gradient is zero stops the training")
def zero_gradient(target: Target) -> None:
    """A gradient of zero, first or later, leaves all numbers finite."""
    for first in (True, False):
        optimizer = target.build(model := net(torch.float32))
        if not first:
            target.train(model, optimizer, range(3))
        gradients(model, 0.0)
        _step_on(target, optimizer)
        target.train(model, optimizer, range(3, 8))
        if not torch.isfinite(vector(model)).all():
            when = "in the first step" if first else "in the middle of a run"
            raise Harm(f"a batch whose gradient is zero, {when}, makes weights infinite or NaN")


@check("a gradient that is not a number stops the training")
def nan_gradient(target: Target) -> None:
    """One NaN in a gradient does not poison the rest of the run."""
    optimizer = target.build(model := net(torch.float32))
    target.train(model, optimizer, range(3))
    optimizer.zero_grad()
    loss = loss_of(model, 3)
    loss.backward()
    next(model.parameters()).grad[0, 0] = torch.nan  # pyright: ignore[reportOptionalSubscript]
    _step_on(target, optimizer, float(loss))
    target.train(model, optimizer, range(4, 8))
    if lost := int((~torch.isfinite(vector(model))).sum()):
        raise Harm(f"after one NaN in one gradient {lost} of {vector(model).numel()} weights are NaN for ever")


def _size(target: Target, scale: float) -> Tensor:
    optimizer = target.build(model := net(torch.float32))
    for k in range(4):
        gradients(model, scale, k)
        _step_on(target, optimizer)
    return vector(model)


@check("large gradients stop the training")
def huge_gradient(target: Target) -> None:
    """Gradients of 1e15 in float32 leave all numbers finite."""
    if not torch.isfinite(_size(target, 1e15)).all():
        raise Harm("gradients of 1e15, as loss scaling or a bad batch gives them, make weights infinite or NaN")


@check("small gradients stop the training")
def tiny_gradient(target: Target) -> None:
    """Gradients of 1e-20 in float32 leave all numbers finite."""
    if not torch.isfinite(_size(target, 1e-20)).all():
        raise Harm("gradients of 1e-20, as at the end of training, make weights infinite or NaN")

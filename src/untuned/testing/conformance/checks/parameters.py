"""Parameters out of the ordinary: frozen, late, empty, without dimensions, not contiguous."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from untuned.testing.conformance.check import DoesNotApply, Harm, check
from untuned.testing.conformance.problem import gradients, loss_of, net, relative, vector
from untuned.testing.conformance.target import Target


def _run_with(target: Target, extra: nn.Parameter, uses: bool) -> Tensor:
    """Train the net and one tensor more, which the loss may use; return where the net ends."""
    optimizer = target.build([*(model := net()).parameters(), extra])
    for k in range(6):
        optimizer.zero_grad()
        loss = loss_of(model, k)
        (loss + 0 * extra.sum() if uses else loss).backward()
        target.step(optimizer, loss.detach())
    return vector(model)


def _alone(target: Target) -> Tensor:
    target.train(model := net(), target.build(model), range(6))
    return vector(model)


@check("a model with frozen layers cannot be trained")
def frozen_parameter(target: Target) -> None:
    """A parameter with requires_grad=False stays as it is and does not matter."""
    frozen = nn.Parameter(torch.ones(3, dtype=torch.float64), requires_grad=False)
    end = _run_with(target, frozen, uses=False)
    if not torch.equal(frozen, torch.ones_like(frozen)):
        raise Harm("a frozen layer (requires_grad=False) is changed")
    if (off := relative(end, _alone(target), vector(net()))) > 1e-6:
        raise Harm(f"a frozen layer in the optimizer changes how the others train, by {off:.2g} of the way")


@check("a model with layers that the loss does not use cannot be trained")
def parameter_without_gradient(target: Target) -> None:
    """A parameter that never gets a gradient stays as it is and does not matter."""
    unused = nn.Parameter(torch.ones(3, dtype=torch.float64))
    end = _run_with(target, unused, uses=False)
    if not torch.equal(unused, torch.ones_like(unused)):
        raise Harm("a layer that the loss does not use is changed")
    if (off := relative(end, _alone(target), vector(net()))) > 1e-6:
        raise Harm(f"an unused layer in the optimizer changes how the others train, by {off:.2g} of the way")


@check("a step in which nothing has a gradient stops the training")
def no_gradient_at_all(target: Target) -> None:
    """A step without any gradient changes nothing."""
    if target.can("needs_closure"):
        raise DoesNotApply("the closure computes gradients")
    target.train(model := net(), optimizer := target.build(model), range(3))
    before = vector(model)
    optimizer.zero_grad()
    target.step(optimizer, torch.ones((), dtype=torch.float64))
    if not torch.equal(vector(model), before):
        raise Harm("a step in which nothing has a gradient moves the weights")


@check("a layer that joins later (unfreezing, mixture of experts) stops the training")
def late_gradient(target: Target) -> None:
    """A parameter whose first gradient comes late trains from then on."""
    late = nn.Parameter(torch.full((3,), 2.0, dtype=torch.float64))
    optimizer = target.build([*(model := net()).parameters(), late])
    for k in range(10):
        if k == 4 and not torch.equal(late, torch.full_like(late, 2.0)):
            raise Harm("a layer that has had no gradient yet is changed")
        optimizer.zero_grad()
        loss = loss_of(model, k) + (late.square().mean() if k >= 4 else 0)
        loss.backward()
        target.step(optimizer, loss)
    if torch.equal(late, torch.full_like(late, 2.0)):
        raise Harm("a layer whose first gradient comes late is never trained")
    if not torch.isfinite(vector([late, *model.parameters()])).all():
        raise Harm("a layer whose first gradient comes late makes weights infinite or NaN")


@check("a model with an empty tensor cannot be trained")
def empty_parameter(target: Target) -> None:
    """A parameter without elements does not matter."""
    end = _run_with(target, nn.Parameter(torch.empty(0, 3, dtype=torch.float64)), uses=True)
    off = relative(end, _alone(target), vector(net()))
    if off == torch.inf:
        raise Harm("a parameter without elements, as an empty shard is, makes weights infinite or NaN")
    if off > 1e-6:
        raise Harm(f"a parameter without elements changes how the others train, by {off:.2g} of the way")


@check("a model with a single number as parameter (a temperature, a scale) cannot be trained")
def scalar_parameter(target: Target) -> None:
    """A parameter without dimensions is trained like one with a single element."""
    ends: list[Tensor] = []
    for shape in ((), (1,)):
        scale = nn.Parameter(torch.full(shape, 1.5, dtype=torch.float64))
        optimizer = target.build([*(model := net()).parameters(), scale])
        for k in range(6):
            optimizer.zero_grad()
            loss = loss_of(model, k) * scale.square().sum()
            loss.backward()
            target.step(optimizer, loss)
        ends.append(vector([*model.parameters(), scale]))
    start = torch.cat([vector(net()), torch.tensor([1.5], dtype=torch.float64)])
    if ends[0][-1] == 1.5:
        raise Harm("a parameter without dimensions is not trained")
    if (off := relative(ends[0], ends[1], start)) > 1e-6:
        raise Harm(f"a parameter without dimensions trains otherwise than one of shape (1,), by {off:.2g} of the way")


@check("a model with transposed or sliced parameters cannot be trained")
def not_contiguous(target: Target) -> None:
    """A parameter that is not contiguous trains like one that is."""
    model = net()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(module.weight.detach().t().contiguous().t())
    target.train(model, target.build(model), range(6))
    if (off := relative(vector(model), _alone(target), vector(net()))) > 1e-6:
        raise Harm(f"a parameter that is not contiguous trains otherwise, by {off:.2g} of the way")


@check("no step can be done")
def gradients_are_kept(target: Target) -> None:
    """A step leaves the gradients as they are."""
    optimizer = target.build(model := net())
    for k in range(3):
        gradients(model, 0.1, k)
        before = vector(p.grad for p in model.parameters() if p.grad is not None)
        target.step(optimizer, torch.ones((), dtype=torch.float64))
        left = [p.grad for p in model.parameters() if p.grad is not None]
        if len(left) < 6:
            raise Harm("step() drops the gradients: what is logged or accumulated after it is lost")
        if (off := float((vector(left) - before).abs().max() / before.abs().max())) > 0:
            raise Harm(
                f"step() changes p.grad, by {off:.2g} of its size: gradient norms logged after it, and gradients "
                f"accumulated on, are wrong"
            )


@check("weight decay, which the constructor takes, does not work")
def gradients_are_kept_with_decay(target: Target) -> None:
    """A step with weight decay leaves the gradients as they are."""
    model = net()
    if target.make(model).param_groups[0].get("weight_decay") is None:
        raise DoesNotApply("it has no option weight_decay")
    gradients_are_kept(Target(target.factory, {**target.options, "weight_decay": 0.1}, target.declared))

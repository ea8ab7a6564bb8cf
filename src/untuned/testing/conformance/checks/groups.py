"""Parameter groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from untuned.testing.conformance.check import DoesNotApply, Harm, check
from untuned.testing.conformance.problem import net, relative, vector
from untuned.testing.conformance.target import Target

STEPS = range(8)


def _run(target: Target, split: Any, steps: range = STEPS) -> Tensor:
    """Train with the groups that `split` makes of the parameters."""
    if target.can("needs_closure"):
        raise DoesNotApply("it has one group")
    model = net()
    target.train(model, target.build(split(list(model.parameters()))), steps)
    return vector(model)


@check("a model with two parameter groups (no decay on biases) cannot be trained")
def two_groups(target: Target) -> None:
    """Two groups with equal options train like one."""
    off = relative(_run(target, lambda ps: [{"params": ps[:3]}, {"params": ps[3:]}]), _run(target, list), vector(net()))
    if off > 1e-6:
        raise Harm(
            f"two parameter groups with equal options (no decay on biases, say) train otherwise than one, "
            f"by {off:.2g} of the way"
        )


@check("a model with two parameter groups cannot be trained")
def order_of_groups(target: Target) -> None:
    """The order of groups and parameters does not matter."""
    split = _run(target, lambda ps: [{"params": ps[:3]}, {"params": ps[3:]}])
    turned = _run(target, lambda ps: [{"params": ps[:2:-1]}, {"params": ps[2::-1]}])
    if (off := relative(turned, split, vector(net()))) > 1e-6:
        raise Harm(f"the order in which parameter groups are listed changes the run, by {off:.2g} of the way")


@check("a group without parameters, as the Hugging Face Trainer makes for LoRA, is refused: training cannot start")
def empty_group(target: Target) -> None:
    """A group without parameters does not matter, and trains what is put into it later."""
    alone = _run(target, lambda ps: [{"params": ps}])
    start = vector(net())
    if (off := relative(_run(target, lambda ps: [{"params": ps}, {"params": []}]), alone, start)) > 1e-6:
        raise Harm(f"a group without parameters changes how the others train, by {off:.2g} of the way")
    model = net()
    first, head = list(model.parameters())[:4], list(model.parameters())[4:]
    optimizer = target.build([{"params": first}, {"params": []}])
    target.train(model, optimizer, range(4))
    optimizer.param_groups[1]["params"].extend(head)
    target.train(model, optimizer, range(4, 10))
    if not torch.isfinite(vector(model)).all():
        raise Harm("a group that was empty at first and is filled in the middle of a run makes weights infinite or NaN")
    if any(torch.equal(p, q) for p, q in zip(head, list(net().parameters())[4:], strict=True)):
        raise Harm("a group that was empty at first and is filled in the middle of a run is never trained")


def _lr(target: Target) -> float:
    lr = target.make(net()).param_groups[0].get("lr")
    if lr is None:
        raise DoesNotApply("its groups have no lr")
    return float(lr)


@check("layers with a learning rate of their own (backbone and head) cannot be had")
def lr_of_a_group(target: Target) -> None:
    """A group with a tenth of the learning rate moves more slowly."""
    default = _lr(target)

    def way(lr: float, factor: float) -> Tensor:
        groups = ({"lr": lr}, {"lr": factor * lr})
        end = _run(target, lambda ps: [{"params": ps[:4], **groups[0]}, {"params": ps[4:], **groups[1]}], range(4))
        return (end - vector(net()))[-5:].norm()  # of the second group, the last layer

    lrs = (default, default / 1000)  # where lr is a cap, a small one caps
    ratio = min(float(way(lr, 0.1) / way(lr, 1.0).clamp(min=1e-300)) for lr in lrs)
    if not ratio < 0.6:
        raise Harm(f"the lr of a group is ignored: with a tenth of it the group moves {ratio:.2g} times as far")


@check("a group cannot be frozen by lr 0")
def frozen_group(target: Target) -> None:
    """A group with lr 0 stays as it is while the other trains."""
    lr = _lr(target)
    end = _run(target, lambda ps: [{"params": ps[:4], "lr": lr}, {"params": ps[4:], "lr": 0.0}])
    moved = (end - vector(net())).abs()
    if not torch.isfinite(end).all():
        raise Harm("a group frozen by lr 0 makes weights infinite or NaN")
    if moved[-5:].max() > 0:
        raise Harm(f"a group frozen by lr 0 still moves, by {float(moved[-5:].max()):.2g}")
    if moved[:-5].max() == 0:
        raise Harm("a group frozen by lr 0 stops all others too")


@check("layers cannot be added in the middle of a run (gradual unfreezing)")
def group_added_later(target: Target) -> None:
    """A group added in the middle of a run trains."""
    if target.can("needs_closure"):
        raise DoesNotApply("it has one group")
    model = net()
    first, head = list(model.parameters())[:4], list(model.parameters())[4:]
    optimizer = target.build(first)
    target.train(model, optimizer, range(4))
    optimizer.add_param_group({"params": head})
    target.train(model, optimizer, range(4, 10))
    if not torch.isfinite(vector(model)).all():
        raise Harm("a group added in the middle of a run makes weights infinite or NaN")
    if any(torch.equal(p, q) for p, q in zip(head, list(net().parameters())[4:], strict=True)):
        raise Harm("a group added in the middle of a run is never trained")


@check("a group cannot hold parameters of another precision")
def mixed_dtypes(target: Target) -> None:
    """Parameters of two precisions in one optimizer both train."""
    if target.can("needs_closure"):
        raise DoesNotApply("it flattens all parameters into one vector")
    low = nn.Parameter(torch.full((4,), 2.0, dtype=torch.float32))
    optimizer = target.build([*(model := net()).parameters(), low])
    for _ in range(10):
        optimizer.zero_grad()
        loss = sum((p.double() - 3).square().sum() for p in [*model.parameters(), low])
        assert isinstance(loss, Tensor)
        loss.backward()
        target.step(optimizer, loss)
    if not torch.isfinite(vector([*model.parameters(), low])).all():
        raise Harm("float32 and float64 parameters together make weights infinite or NaN")
    if low.dtype != torch.float32:
        raise Harm(f"a float32 parameter beside float64 ones has become {low.dtype}")

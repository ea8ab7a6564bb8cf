"""Learning rates that change during the run."""

from __future__ import annotations

import warnings

import torch
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from untuned.testing.conformance.check import DoesNotApply, Harm, check
from untuned.testing.conformance.problem import net, relative, vector
from untuned.testing.conformance.target import Target


def _lr(target: Target) -> float:
    lr = target.make(net()).param_groups[0].get("lr")
    if lr is None:
        raise DoesNotApply("its groups have no lr")
    return float(lr)


@check("a scheduler that starts at lr 0 (every warm-up) stops the training")
def warmup_from_zero(target: Target) -> None:
    """A warm-up that starts at lr 0 stands still first and trains then."""
    _lr(target)
    optimizer = target.build(model := net())
    scheduler = LambdaLR(optimizer, lambda k: min(1.0, k / 3))
    target.train(model, optimizer, range(1))
    scheduler.step()
    if not torch.isfinite(vector(model)).all():
        raise Harm("a warm-up that starts at lr 0 makes weights NaN in the first step")
    if (moved := float((vector(model) - vector(net())).abs().max())) > 0:
        raise Harm(f"the first step of a warm-up, with lr 0, moves the weights by {moved:.2g}")
    for k in range(1, 10):
        target.train(model, optimizer, range(k, k + 1))
        scheduler.step()
    if not torch.isfinite(vector(model)).all():
        raise Harm("after a warm-up that starts at lr 0 weights are infinite or NaN")
    if torch.equal(vector(model), vector(net())):
        raise Harm("after a warm-up that starts at lr 0 nothing is ever trained")


@check("a scheduler that ends at lr 0 stops the training")
def lr_zero(target: Target) -> None:
    """With lr 0 nothing moves, in the middle of a run too."""
    _lr(target)
    optimizer = target.build(model := net())
    target.train(model, optimizer, range(4))
    before, kept = vector(model), [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    target.train(model, optimizer, range(4, 6))
    if (moved := float((vector(model) - before).abs().max())) != 0:
        raise Harm(f"with lr 0, as at the end of a schedule, the weights move on, by {moved:.2g}")
    for group, lr in zip(optimizer.param_groups, kept, strict=True):
        group["lr"] = lr
    target.train(model, optimizer, range(6, 9))
    if not torch.isfinite(vector(model)).all() or torch.equal(vector(model), before):
        raise Harm("after steps with lr 0, as between cosine restarts, it does not train on")


@check("OneCycleLR, which turns lr and momentum, cannot be used")
def one_cycle(target: Target) -> None:
    """OneCycleLR works, with its cycle of momentum where there is any."""
    lr = _lr(target)
    optimizer = target.build(model := net())
    cycles = bool(optimizer.defaults.keys() & {"momentum", "betas"})
    scheduler = OneCycleLR(optimizer, max_lr=lr, total_steps=12, cycle_momentum=cycles)
    for k in range(11):
        target.train(model, optimizer, range(k, k + 1))
        scheduler.step()
    if not torch.isfinite(vector(model)).all():
        raise Harm("under OneCycleLR weights become infinite or NaN")
    if torch.equal(vector(model), vector(net())):
        raise Harm("under OneCycleLR nothing is trained")


@check("lr cannot be a tensor, which a schedule under torch.compile needs")
def tensor_lr(target: Target) -> None:
    """lr may be a tensor, and is not changed by a step."""
    value = _lr(target)
    lr = torch.tensor(value, dtype=torch.float64)
    target.train(model := net(), optimizer := target.build(model, lr=lr), range(6))
    if float(lr) != value:
        raise Harm(f"a step changes the user's lr tensor, from {value:g} to {float(lr):g}")
    target.train(other := net(), target.build(other), range(6))
    if (off := relative(vector(model), vector(other), vector(net()))) > 1e-6:
        raise Harm(f"lr=torch.tensor({value:g}) trains otherwise than lr={value:g}, by {off:.2g} of the way")
    if not isinstance(optimizer.param_groups[0]["lr"], torch.Tensor):
        raise Harm("lr given as a tensor becomes a number: a compiled step is compiled again when it changes")


@check("lr_scheduler refuses it")
def is_an_optimizer(target: Target) -> None:
    """It is a torch.optim.Optimizer, as schedulers and trainers demand."""
    optimizer = target.make(net())
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise Harm(f"a {type(optimizer).__name__} is no torch.optim.Optimizer: schedulers and trainers refuse it")
    if "lr" in optimizer.param_groups[0]:
        with warnings.catch_warnings(action="ignore"):
            LambdaLR(optimizer, lambda k: 1.0).step()

"""What the constructor refuses, and what it accepts."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import torch
from torch import nn

from untuned.testing.conformance.check import DoesNotApply, Harm, check
from untuned.testing.conformance.problem import net, relative, vector
from untuned.testing.conformance.target import Target


def _refused(target: Target, params: Any, harm: str, **changes: Any) -> None:
    """The constructor raises an exception, of whatever class: a package may have its own."""
    try:
        target.make(params, **changes)
    except Exception:
        return
    raise Harm(harm)


def _takes_lr(target: Target) -> None:
    model = net()
    lr = target.make(model).param_groups[0].get("lr")
    try:
        target.make(model, lr=lr)
    except Exception:
        raise DoesNotApply("it has no option lr") from None


@check("no optimizer can be built")
def negative_lr_is_refused(target: Target) -> None:
    """A negative learning rate is refused."""
    _takes_lr(target)
    _refused(target, net().parameters(), "with lr=-0.1, a slip, it climbs the loss and says nothing", lr=-0.1)


@check("no optimizer can be built")
def nan_lr_is_refused(target: Target) -> None:
    """A learning rate that is not a number is refused."""
    _takes_lr(target)
    _refused(target, net().parameters(), "lr=nan is accepted and the first step turns all weights to NaN", lr=torch.nan)


@check("no optimizer can be built")
def text_lr_is_refused(target: Target) -> None:
    """A learning rate that is text is refused."""
    _takes_lr(target)
    harm = "lr='0.1', as a configuration file gives it, is accepted and fails only in the middle of a step"
    _refused(target, net().parameters(), harm, lr="0.1")


@check("no optimizer can be built")
def no_parameters_are_refused(target: Target) -> None:
    """An empty list of parameters is refused."""
    _refused(target, [], "an empty list, as from a generator read twice, is accepted and nothing is ever trained")


@check("no optimizer can be built")
def one_tensor_is_refused(target: Target) -> None:
    """One tensor in place of a list of tensors is refused."""
    harm = "a tensor given in place of [tensor] is taken apart into rows that are no parameters"
    _refused(target, nn.Parameter(torch.ones(2, 2)), harm)


@check("no optimizer can be built")
def repeated_parameter_is_refused(target: Target) -> None:
    """A parameter in two groups is refused."""
    p, q = net().parameters(), list(net().parameters())
    groups = [{"params": list(p)}, {"params": q[:3]}, {"params": q[2:]}]
    _refused(target, groups, "a parameter in two groups is accepted and moves twice in every step")


@check("model.named_parameters() is not accepted, unlike in torch.optim")
def named_parameters(target: Target) -> None:
    """Parameters may be given with their names."""
    model, named = net(), net()
    target.train(model, target.build(model.parameters()), range(3))
    target.train(named, target.build(named.named_parameters()), range(3))
    if (off := relative(vector(named), vector(model), vector(net()))) > 1e-6:
        raise Harm(f"with model.named_parameters() the run is another one, by {off:.2g} of the way")


@check("no step can be done")
def prints_nothing(target: Target) -> None:
    """Nothing is printed."""
    text = io.StringIO()
    decays = target.make(net()).param_groups[0].get("weight_decay") is not None
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        for options in ({}, {"weight_decay": 0.01}) if decays else ({},):
            target.train(model := net(), target.build(model, **options), range(3))
    if text.getvalue():
        raise Harm(f"it prints, on every rank: {text.getvalue().strip().splitlines()[0][:60]!r}")


@check("repr(optimizer) raises, and so do loggers and debuggers that show it")
def can_be_shown(target: Target) -> None:
    """repr() works before and after a step."""
    optimizer = target.build(model := net())
    repr(optimizer)
    target.train(model, optimizer, range(1))
    if not repr(optimizer):
        raise Harm("repr(optimizer) is empty")

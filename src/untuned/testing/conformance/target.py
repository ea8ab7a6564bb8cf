"""What is checked: how to build the optimizer, how to call its step, and what it can do."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import untuned
from untuned.testing.conformance.problem import ALL, ROWS, loss_of, net

CAPABILITIES = {
    "loss": "step() takes loss=",
    "needs_loss": "step() does not work without the loss",
    "sample_ids": "step() does not work without the numbers of the batch's samples, sample_ids=",
    "closure": "step() takes a closure",
    "needs_closure": "step() does not work without a closure",
    "modes": "train() and eval() exist, and a step is taken in training mode",
}
_NEEDS = ({}, {"needs_loss": True}, {"needs_loss": True, "sample_ids": True}, {"needs_closure": True})


class TargetError(ValueError):
    """There is no such optimizer, or it cannot do a single step; the message is meant for the person who asked."""


@dataclasses.dataclass(frozen=True)
class Target:
    """An optimizer to check.

    factory: the name of a method of this library, "module:factory", or anything that takes parameters and options and
    returns a `torch.optim.Optimizer`. options: given to it. declared: capabilities (keys of `CAPABILITIES`) that are
    known; the others are detected by trying.
    """

    factory: str | Callable[..., Any]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    declared: Mapping[str, bool] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        if isinstance(self.factory, str):
            return self.factory
        return getattr(self.factory, "__qualname__", repr(self.factory))

    @functools.cached_property
    def _factory(self) -> Callable[..., Any]:
        if callable(self.factory):
            return self.factory
        module_name, colon, attribute = self.factory.partition(":")
        if not colon:
            try:
                method = untuned.get(self.factory)
            except ValueError as error:
                raise TargetError(f"{error} Other optimizers are written module:factory.") from None
            samples = {"samples": ROWS} if method.records_samples else {}
            return functools.partial(untuned.create, name=method.name, **samples)
        if os.getcwd() not in sys.path:  # an installed command does not have it there, unlike `python -m`
            sys.path.insert(0, os.getcwd())
        try:
            found = getattr(importlib.import_module(module_name), attribute)
        except (ImportError, AttributeError) as error:
            raise TargetError(f"{self.factory} cannot be imported: {error}.") from error
        if not callable(found):
            raise TargetError(f"{self.factory} is {found!r}, not a class or a function that returns an optimizer.")
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def with_capabilities(self) -> Target:
        """Try what is not declared; raises `TargetError` if no way of calling the optimizer works."""
        if unknown := sorted(self.declared.keys() - CAPABILITIES):
            raise TargetError(f"no capability is called {unknown[0]!r}; there are {', '.join(CAPABILITIES)}.")
        try:
            optimizer = self.make(net().parameters())
        except TargetError:
            raise
        except Exception as error:
            raise TargetError(f"{self.name} cannot be built: {type(error).__name__}: {error}") from error
        if not callable(getattr(optimizer, "step", None)):
            what = f"a {type(optimizer).__name__}, which has no step()"
            raise TargetError(f"{self.name} returns {what}; it must return an optimizer.")
        taken = inspect.signature(optimizer.step).parameters
        found = {"loss": "loss" in taken, "closure": "closure" in taken}
        found["modes"] = callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))
        errors: list[str] = []
        for needs in _NEEDS:  # the least that a step can do with
            capabilities = dict.fromkeys(CAPABILITIES, False) | found | needs | dict(self.declared)
            attempt = dataclasses.replace(self, declared=capabilities | {"loss": capabilities["needs_loss"]})
            try:
                attempt.train(model := net(), attempt.build(model), range(1))
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}")
            else:
                return dataclasses.replace(self, declared=capabilities)
        raise TargetError(f"{self.name} cannot do a step: {errors[0]}")

    def can(self, capability: str) -> bool:
        return self.declared[capability]

    def make(self, params: Any, **changes: Any) -> Any:
        """The optimizer as its constructor leaves it."""
        if isinstance(params, nn.Module):
            params = params.parameters()
        return self._factory(params, **{**self.options, **changes})

    def build(self, params: Any, **changes: Any) -> Any:
        """The optimizer ready for a step."""
        optimizer = self.make(params, **changes)
        self.to_training(optimizer)
        return optimizer

    def to_training(self, optimizer: Any) -> None:
        if self.can("modes"):
            optimizer.train()

    def arguments(self, loss: Any, rows: slice = ALL) -> dict[str, Any]:
        """What `step` gets beside a closure."""
        given = {"loss": loss} if self.can("loss") else {}
        return given | ({"sample_ids": torch.arange(ROWS)[rows]} if self.can("sample_ids") else {})

    def step(self, optimizer: Any, loss: Any, rows: slice = ALL) -> Any:
        """One step on the gradients that are there, called as users of this optimizer call it."""
        given = self.arguments(loss, rows)
        return optimizer.step(lambda: loss, **given) if self.can("needs_closure") else optimizer.step(**given)

    def train(self, model: nn.Module, optimizer: Any, steps: Iterable[int], rows: slice = ALL) -> None:
        """A step on each of these batches."""
        for k in steps:

            def closure(k: int = k) -> Tensor:
                optimizer.zero_grad()
                loss = loss_of(model, k, rows)
                loss.backward()
                return loss

            if self.can("needs_closure"):
                optimizer.step(closure)
            else:
                self.step(optimizer, closure(), rows)

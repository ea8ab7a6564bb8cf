"""Hugging Face Accelerate: `backward` stands in for `accelerator.backward` and takes the loss to the optimizer."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from untuned.optimizer.optimizer import Optimizer


class StepLoss:
    """The loss whose gradient is in `p.grad`: added up over micro-batches, given to the next bare `step()`.

    A prepared optimizer's `step` takes no loss and may leave a step out, so the loss enters by a hook of the optimizer
    inside, together with the gradients it belongs to.
    """

    def __init__(self) -> None:
        self.losses: list[torch.Tensor] = []
        self.sample_ids: list[torch.Tensor] = []
        self.synchronised = False  # whether the last backward left its gradients in p.grad

    def begin(self, optimizer: Optimizer) -> None:
        """Before a backward: forget what a skipped step or a `zero_grad()` left behind."""
        # Under `no_sync` sharded models keep their gradients elsewhere: then p.grad says nothing.
        if self.synchronised and all(p.grad is None for group in optimizer.param_groups for p in group["params"]):
            self.losses, self.sample_ids = [], []

    def add(self, loss: torch.Tensor, sample_ids: Any, synchronised: bool) -> None:
        """After a backward of exactly this `loss`, a scalar; `sample_ids` is a vector of integers or None."""
        self.losses.append(loss.detach().double())
        if sample_ids is not None:
            self.sample_ids.append(torch.as_tensor(sample_ids))
        self.synchronised = synchronised

    def give(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The hook before `optimizer.step`."""
        if not self.losses or "loss" in kwargs:
            return None
        given: dict[str, Any] = {"loss": torch.stack(self.losses).sum()}
        if self.sample_ids:
            given["sample_ids"] = torch.cat(self.sample_ids)
        self.losses, self.sample_ids = [], []
        return args, kwargs | given


_step_losses: weakref.WeakKeyDictionary[Optimizer, StepLoss] = weakref.WeakKeyDictionary()


def inner(optimizer: Any) -> Optimizer | None:
    """The optimizer of this library inside a prepared one; None if it is another's."""
    optimizer = getattr(optimizer, "optimizer", optimizer)
    return optimizer if isinstance(optimizer, Optimizer) else None


def step_loss(optimizer: Optimizer) -> StepLoss:
    """The one `StepLoss` of this optimizer, hooked to its `step`."""
    if optimizer not in _step_losses:
        _step_losses[optimizer] = StepLoss()
        optimizer.register_step_pre_hook(_step_losses[optimizer].give)
    return _step_losses[optimizer]


def backward(accelerator: Any, optimizer: Any, loss: torch.Tensor, sample_ids: Any = None) -> None:
    """`accelerator.backward(loss)`; the next `optimizer.step()` gets the loss whose gradient it applies.

    `optimizer` is what `accelerator.prepare` returned, `loss` the scalar mean of the micro-batch. Accelerate divides
    each by `gradient_accumulation_steps`, also in a last group of fewer micro-batches, and so does this. `sample_ids`:
    for methods that record a number per sample, the batch's numbers in the data set. With an optimizer of another
    library this is `accelerator.backward(loss)`.
    """
    own = inner(optimizer)
    if own is not None:
        step_loss(own).begin(own)
    accelerator.backward(loss)
    if own is not None:
        part = loss.detach().double() / accelerator.gradient_accumulation_steps
        step_loss(own).add(part, sample_ids, accelerator.sync_gradients)

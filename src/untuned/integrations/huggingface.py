"""Hugging Face Trainer: `TrainerMixin` gives the optimizer the loss, and the log what the optimizer chose."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# transformers is an extra; a mixin's methods come from the class beside it.

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback

from untuned.integrations.accelerate import inner, step_loss


class TrainerMixin:
    """Put it before any trainer of transformers: `class Trainer(TrainerMixin, transformers.Trainer): pass`.

    The optimizer's `step` gets the loss whose gradient it applies, `optimizer.metrics()` stands in every entry of the
    log that has a learning rate, and methods that average save and leave the averaged point. Batches may carry
    `sample_ids`, the numbers of their samples in the data set, for methods that record a number per sample; the model
    does not see them. With an optimizer of another library nothing changes.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_callback(_AverageToSave())

    def training_step(self, model: torch.nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        ids = inputs.pop("sample_ids", None)
        own = inner(self.optimizer)
        if own is None:
            return super().training_step(model, inputs, *args, **kwargs)
        step_loss(own).begin(own)
        # What comes back is what was differentiated: divided by the micro-batches, or by the tokens of all of them.
        loss = super().training_step(model, inputs, *args, **kwargs)
        step_loss(own).add(loss, ids, self.accelerator.sync_gradients)
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        own = inner(self.optimizer)
        if own is not None and "learning_rate" in logs:
            logs.update(own.metrics())
        super().log(logs, *args, **kwargs)


class _AverageToSave(TrainerCallback):
    """Puts the averaged point into the parameters before they are saved and at the end; training takes it out again.

    The optimizer's checkpoint says which point the model's file holds, so both belong together on resume.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        own = inner(optimizer)
        if own is not None and control.should_save:
            own.eval()

    def on_epoch_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        own = inner(optimizer)
        if own is not None:
            own.eval()

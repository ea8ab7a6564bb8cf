"""Hugging Face Trainer: `TrainerMixin` gives the optimizer the loss, and the log what the optimizer chose.

`TrajectoryCallback` records where any optimizer takes the parameters.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# transformers is an extra; a mixin's methods come from the class beside it.

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from untuned.diagnostics import TrajectoryRecorder
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


class TrajectoryCallback(TrainerCallback):
    """Put it into `Trainer(callbacks=[...])`; `recorder` is a `TrajectoryRecorder` of the run once it has begun.

    `options` are those of the recorder. It is attached to the optimizer, so that steps left out by a gradient scaler
    do not count, and saved beside each checkpoint as trajectory.pt (trajectory_RANK.pt where there are several
    processes). Training that resumes from output_dir/checkpoint-N goes on with that file; `resume` names the folder
    if it is another. Without the file it warns, and the trajectory begins where training goes on.
    """

    def __init__(self, resume: str | Path | None = None, **options: Any) -> None:
        self.resume, self.options = resume, options
        self.recorder: TrajectoryRecorder | None = None
        self._handle: Any = None

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any
    ) -> None:
        self.recorder = TrajectoryRecorder(model, steps=state.global_step, **self.options)
        if state.global_step > 0:
            file = self._file(args, self.resume or _checkpoint(args, state))
            if file.is_file():
                self.recorder.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
            else:
                warnings.warn(
                    f"TrajectoryCallback: there is no {file}, so that the trajectory begins here.", stacklevel=2
                )
        self._handle = self.recorder.attach(optimizer)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = _checkpoint(args, state)
        if self.recorder is not None and folder.is_dir():
            torch.save(self.recorder.state_dict(), self._file(args, folder))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._handle is not None:
            self._handle.remove()

    def _file(self, args: Any, folder: str | Path) -> Path:
        return Path(folder) / ("trajectory.pt" if args.world_size == 1 else f"trajectory_{args.process_index}.pt")


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"

"""Lightning: `OptimizerCallback` gives the optimizer the loss, and the log what the optimizer chose.

`TrajectoryCallback` records where any optimizer takes the parameters.
"""

# pyright: reportMissingImports=false, reportPrivateUsage=false
# lightning is an extra; which steps are logged is known to a private object of its trainer alone.

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from untuned.diagnostics import TrajectoryRecorder
from untuned.optimizer.optimizer import Optimizer


class OptimizerCallback(Callback):
    """Put it into `Trainer(callbacks=[...])`; it serves automatic and manual optimization.

    Every `step` gets the loss whose gradient it applies: the sum of what went through `backward` since the last step,
    without a gradient scaler's scale. Lightning divides each micro-batch's loss by their number, so this is their mean.
    A loss that `training_step` gives itself, by `record_loss` or `step(loss=...)`, is left as it is. `metrics()` is
    logged every `log_every_n_steps`. Methods that average validate, save and leave the averaged point. Optimizers of
    other libraries are left alone.
    """

    def __init__(self) -> None:
        self._summed: torch.Tensor | None = None  # since the last step
        self._loss: torch.Tensor | None = None  # of the step at hand
        self._logged = 0
        self._hooks: list[Any] = []

    # ------------------------------------------------------------------ the loss

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._summed = self._loss = None
        self._logged = trainer.global_step
        self._hooks = [optimizer.register_step_pre_hook(self._give_loss) for optimizer in _own(trainer)]

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        loss = loss.detach().double()
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            loss = loss / scaler.scale(torch.ones_like(loss))
        self._summed = loss if self._summed is None else self._summed + loss

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self._loss, self._summed = self._summed, None  # also when a scaler leaves the step out

    def _give_loss(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The hook before `step`; the loss is known when Lightning's closure has run, or now if it ran already."""
        if len(args) > 1:  # args[0] is the optimizer; Lightning gives the closure by name
            return None
        closure = kwargs.get("closure")

        def then_loss() -> torch.Tensor | None:
            if closure is not None:
                closure()
            loss, self._loss = self._loss, None
            return loss

        return args, kwargs | {"closure": then_loss}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for hook in self._hooks:
            hook.remove()

    # ------------------------------------------------------------------ the log

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._logged or not trainer._logger_connector.should_update_logs:
            return
        self._logged = trainer.global_step
        own = _own(trainer)
        for i, optimizer in enumerate(own):
            prefix = f"optimizer_{i}/" if len(own) > 1 else ""
            pl_module.log_dict({prefix + k: v for k, v in optimizer.metrics().items()}, on_step=True, on_epoch=False)

    # ------------------------------------------------------------------ the averaged point

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        for optimizer in _own(trainer):
            optimizer.train()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:  # else the weights may come from a file, without the optimizer's
            self._average(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._average(trainer):  # what was collected before is of the other point
            checkpoint["state_dict"] = trainer.strategy.lightning_module_state_dict()
            checkpoint["optimizer_states"] = [trainer.strategy.optimizer_state(o) for o in trainer.optimizers]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._average(trainer)

    def _average(self, trainer: Trainer) -> bool:
        """Until the next batch; returns whether anything changed."""
        training = [o for o in _own(trainer) if o.recipe.has_modes and o.param_groups[0]["training"]]
        for optimizer in training:
            optimizer.eval()
        return bool(training)


def _own(trainer: Trainer) -> list[Optimizer]:
    return [optimizer for optimizer in trainer.optimizers if isinstance(optimizer, Optimizer)]


class TrajectoryCallback(Callback):
    """Put it into `Trainer(callbacks=[...])`; `recorder` is a `TrajectoryRecorder` of the run once it has begun.

    `options` are those of the recorder. It counts the steps of one optimizer, by number if there are several, and is
    saved and resumed with Lightning's checkpoints, in which only the first process's state is: do not resume it with
    sharded parameters.
    """

    def __init__(self, optimizer: int = 0, **options: Any) -> None:
        self.optimizer, self.options = optimizer, options
        self.recorder: TrajectoryRecorder | None = None
        self._handle: Any = None
        self._loaded: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.recorder = TrajectoryRecorder(pl_module, **self.options)
        if self._loaded:
            self.recorder.load_state_dict(self._loaded)
            self._loaded = None
        self._handle = self.recorder.attach(trainer.optimizers[self.optimizer])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._handle is not None:
            self._handle.remove()

    def state_dict(self) -> dict[str, Any]:
        return {} if self.recorder is None else self.recorder.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict

"""Ranks that run out of batches one by one, by torch.distributed's own `Join`."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.algorithms.join import Joinable, JoinHook

from untuned.memory.slots import numbers_of_model
from untuned.optimizer.optimizer import Optimizer
from untuned.run import reduce


class Joining(Joinable):
    """Lets an optimizer that averages the loss over the ranks take part in `Join`; others may, and need not.

    `DistributedDataParallel.join` knows of the model alone, and a method that reads the loss would wait there for the
    losses of ranks that have no batch any more. A rank without a batch adds no loss to the mean. Its weights are those
    of the others at the end, by the model's own hook, its state stays where it was: as with any optimizer, train on
    from a checkpoint of a rank that had the most batches. Raises `ValueError` if ranks exchange more than losses.

        with Join([model, Joining(optimizer)]):
            for inputs, targets in batches:
                ...
    """

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__()
        samples = optimizer.recipe.samples is not None
        if samples or optimizer.shard_group is not None:
            what = "the numbers of their samples" if samples else "sums over parameters (shard_group)"
            raise ValueError(
                f"{type(optimizer).__name__}: ranks exchange {what} in every step and cannot join. Give all as many "
                f"batches."
            )
        self.optimizer = optimizer

    def join_hook(self, **kwargs: Any) -> JoinHook:
        return _WithoutBatch(self.optimizer)

    @property
    def join_device(self) -> torch.device:
        return self.optimizer.device

    @property
    def join_process_group(self) -> Any:
        return reduce.process_group(self.optimizer.loss_group or "world")


class _WithoutBatch(JoinHook):
    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    def main_hook(self) -> None:
        """A rank without a batch takes part in what the others add up in a step."""
        opt = self.optimizer
        if opt.recipe.driven:
            opt.call_roll(ready=True)
            nothing = torch.zeros((), dtype=torch.float64, device=opt.device)
            numbers = numbers_of_model(opt.recipe, opt.param_groups)
            reduce.mean_over_ranks(nothing, numbers, opt.loss_group, share=0.0)

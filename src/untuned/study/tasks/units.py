"""Tasks whose parameters are stored in other units: what the learning rate of a method owes to the size of weights."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .task import Task


class InUnits(Task):
    """`task` with every trained parameter stored in units of 1/`unit`: see `ScaledModule`.

    The functions, losses and numbers are those of `task`. A gradient is `unit` times smaller and a parameter `unit`
    times larger, so that SGD needs a learning rate `unit`² times, and Adam one `unit` times, that of `task`.
    """

    def __init__(self, task: Task, unit: float, name: str) -> None:
        self.task, self.unit, self.name = task, unit, name
        self.title = f"{task.title}, parameters in units of 1/{unit:g}"
        self.metric, self.maximize, self.chance = task.metric, task.maximize, task.chance
        self.batch_size, self.epochs, self.samples = task.batch_size, task.epochs, task.samples

    def model(self, seed: int) -> nn.Module:
        return ScaledModule(self.task.model(seed), self.unit)

    def batches(self, seed: int, epoch: int) -> Iterator[Any]:
        return self.task.batches(seed, epoch)

    def ids(self, seed: int, epoch: int) -> Iterator[Tensor]:
        return self.task.ids(seed, epoch)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return self.task.loss(model, batch)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return self.task.evaluate(model)


class ScaledModule(nn.Module):
    """`inner`, called with p / unit in place of each parameter p, which starts at `unit` times its usual value.

    Buffers, among them the statistics of batch norm, and parameters that are not trained stay in their units.
    """

    def __init__(self, inner: nn.Module, unit: float) -> None:
        super().__init__()
        self.inner, self.unit = inner, unit
        self.scaled = [name for name, parameter in inner.named_parameters() if parameter.requires_grad]
        with torch.no_grad():
            for name in self.scaled:
                inner.get_parameter(name).mul_(unit)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        values = {name: self.inner.get_parameter(name) / self.unit for name in self.scaled}
        return functional_call(self.inner, values, args, kwargs)

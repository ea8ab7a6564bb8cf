"""Classification of tensors held in memory: cross-entropy and accuracy."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .task import Task, evaluating, shuffled


class Classification(Task):
    """Inputs float32 (n, ...) and class numbers int64 (n,), for training and for evaluation."""

    maximize = True

    def __init__(self, x: Tensor, y: Tensor, x_val: Tensor, y_val: Tensor) -> None:
        self.x, self.y, self.x_val, self.y_val = x, y, x_val, y_val
        self.samples = len(y)
        self.chance = float(y_val.bincount().max()) / len(y_val)

    def batches(self, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for index in shuffled(len(self.y), self.batch_size, seed, epoch):
            yield self.x.index_select(0, index), self.y.index_select(0, index)

    def ids(self, seed: int, epoch: int) -> Iterator[Tensor]:
        return shuffled(self.samples, self.batch_size, seed, epoch)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return cross_entropy(model(x), y)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        with evaluating(model):
            logits = model(self.x_val)
            loss = cross_entropy(logits, self.y_val)
            accuracy = (logits.argmax(1) == self.y_val).to(torch.float64).mean()
        return {"val_loss": loss.item(), self.metric: accuracy.item()}

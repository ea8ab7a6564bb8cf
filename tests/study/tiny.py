"""Tasks small enough that a run takes milliseconds, and tasks that misbehave; named `tiny:Line` and so on."""

import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from untuned.study.tasks import Task


class Line(Task):
    """Linear regression: 5 batches of 4 samples an epoch, dropout to make the global random state matter."""

    name = "line"
    title = "a line through 20 points"
    metric = "val_accuracy"
    maximize = True
    chance = 0.25
    batch_size = 4
    epochs = 4

    def __init__(self) -> None:
        x = torch.linspace(-1, 1, 20).unsqueeze(1)
        self.x, self.y = x, 3 * x + 1

    def model(self, seed: int) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        model = nn.Sequential(nn.Dropout(0.1), nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)
        return model

    def batches(self, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(20, generator=torch.Generator().manual_seed(1000 * seed + epoch))
        for rows in order.split(self.batch_size):
            yield self.x[rows], self.y[rows]

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.mse_loss(model(batch[0]), batch[1])

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        model.eval()
        with torch.no_grad():
            error = (model(self.x) - self.y).abs()
        model.train()
        return {"val_loss": error.square().mean().item(), "val_accuracy": (error < 0.2).float().mean().item()}


class Slow(Line):
    """A run takes a quarter of a second, so that a kill finds it at work."""

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        time.sleep(0.0125)
        return super().loss(model, batch)


class Raises(Line):
    """Fails in the third epoch of seed 1."""

    def batches(self, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        if seed == 1 and epoch == 2:
            raise RuntimeError("the third epoch is lost")
        return super().batches(seed, epoch)


class Unbuilt(Line):
    def __init__(self) -> None:
        raise KeyError("data/train.csv")


class Unbatched(Line):
    batch_size = 0


class Hopeless(Line):
    chance = float("inf")


class Mute(Line):
    """Has another metric than it says."""

    metric = "val_acc"


class Broken(Line):
    """Each run crashes, with a message of two lines."""

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        raise RuntimeError("sizes differ:\n  4 and 5")


class Undefined(Line):
    """Has no validation loss, trained or not."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {"val_loss": float("nan"), "val_accuracy": 0.0}

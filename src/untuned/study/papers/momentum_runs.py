"""What the two studies of momentum train: the small network on Fashion-MNIST, with batches drawn independently."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from untuned.study import tasks
from untuned.study.tasks.classification import Classification

TASK = "fashion-mlp"
UNTRAINED = math.log(10)  # the loss of a model that learned nothing; a diverged run counts with it


@cache
def task() -> Classification:
    """The task, loaded once in each process."""
    found = tasks.load(TASK)
    assert isinstance(found, Classification)
    return found


def drawn(model: nn.Module, batch: int, *seed: int) -> Callable[[], Tensor]:
    """The loss of the next batch of so many samples, drawn with replacement: batches are independent."""
    data, rng = task(), np.random.default_rng([batch, *seed])

    def loss() -> Tensor:
        index = torch.from_numpy(rng.integers(0, data.samples, batch))
        return cross_entropy(model(data.x[index]), data.y[index])

    return loss


def full_loss(model: nn.Module) -> Tensor:
    """The mean loss over all training data."""
    return cross_entropy(model(task().x), task().y)


def training_loss(model: nn.Module) -> float:
    """`full_loss` as a number, at most that of a model that learned nothing."""
    with torch.no_grad():
        return learned(float(full_loss(model)))


def learned(loss: float) -> float:
    return loss if loss < UNTRAINED else UNTRAINED  # also for NaN


def accuracy(model: nn.Module) -> float:
    """On the evaluation data, in percent; that of chance if a weight is not finite."""
    if not all(bool(p.isfinite().all()) for p in model.parameters()):
        return 100 * task().chance
    return 100 * task().evaluate(model)[task().metric]

"""What a study needs to know of a learning problem, and two helpers to write one with."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Task(ABC):
    """Data, model, loss and metric of one learning problem; see docs/tasks.md for a complete example.

    The constructor takes no required argument, loads the data and keeps it in memory. Everything is deterministic in
    the seeds given and leaves the global random state alone.
    """

    name: str
    """What users type: "fashion-mlp"."""
    title: str
    """One line for people."""
    metric: str
    """The entry of `evaluate()` that runs are ranked by; an accuracy is a fraction in [0, 1]."""
    maximize: bool
    """Whether a larger metric is better."""
    chance: float
    """The metric of a model that learned nothing; a diverged run counts with it."""
    batch_size: int
    epochs: int
    """Passes over the training data when a study does not say otherwise."""
    samples: int = 0
    """How many training samples `ids()` numbers, for methods that record a loss per sample; 0 if it does not."""

    @abstractmethod
    def model(self, seed: int) -> nn.Module:
        """A fresh model in training mode, initialised from `seed`."""

    @abstractmethod
    def batches(self, seed: int, epoch: int) -> Iterator[Any]:
        """The batches of one pass over the training data, in the order that (seed, epoch) gives."""

    def ids(self, seed: int, epoch: int) -> Iterator[Tensor]:
        """The numbers, 0 to samples - 1, of the samples in each of `batches(seed, epoch)`."""
        raise NotImplementedError(f"{self.name}: its samples have no numbers")

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Mean training loss of one batch: a scalar to call `backward()` on."""

    @abstractmethod
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """`val_loss` and the metric on the evaluation data; the model comes back as it was."""


def shuffled(n: int, batch_size: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """Indices 0..n-1, each once, in batches of `batch_size` (the last may be smaller)."""
    order = np.random.default_rng([seed, epoch]).permutation(n)
    yield from torch.from_numpy(order).split(batch_size)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator inside the block and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients inside the block; the model's mode is restored afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)

"""Yes-or-no predictions from names and numbers, as advertisers make them: embeddings into a small network, log loss."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from untuned.study import data

from .in_memory import InMemory
from .task import evaluating, seeded


class AdultEmbeddings(InMemory):
    """Whether a person earned more than 50,000 dollars a year, from the American census of 1994."""

    name = "adult-embeddings"
    title = "Embeddings of 8 columns and 6 numbers into an MLP 70-128-64-1 on 12,000 rows of Adult"
    metric = "val_loss"
    maximize = False
    batch_size = 64
    epochs = 2

    def __init__(self) -> None:
        arrays = data.load("adult-slice")
        self.values = [len(found) for found in data.manifest()["adult-slice"]["vocabularies"]]

        # Gains and losses of capital, columns 3 and 4, are 0 for most and span four decades for the others.
        def numbers(split: str) -> np.ndarray:
            x = arrays[f"numbers_{split}"].astype(np.float64)
            x[:, 3:5] = np.log1p(x[:, 3:5])
            return x

        mean, std = numbers("train").mean(0), numbers("train").std(0)

        def tensors(split: str) -> tuple[Tensor, ...]:
            standard = ((numbers(split) - mean) / std).astype(np.float32)
            names, y = arrays[f"names_{split}"].astype(np.int64), arrays[f"y_{split}"].astype(np.float32)
            return tuple(map(torch.from_numpy, (names, standard, y)))

        self.train, self.val = tensors("train"), tensors("val")
        self.chance = base_rate_loss(self.train[2], self.val[2])

    def model(self, seed: int) -> nn.Module:
        with seeded(seed):
            return EmbeddingMLP(self.values, width=8, numbers=6)

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        names, numbers, y = batch
        return binary_cross_entropy_with_logits(model(names, numbers), y)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        with evaluating(model):
            return {"val_loss": self.loss(model, self.val).item()}


class EmbeddingMLP(nn.Module):
    """Names int64 (n, columns) and numbers float32 (n, numbers) to logits (n,): one embedding of `width` a column."""

    def __init__(self, values: list[int], width: int, numbers: int) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(count, width) for count in values)
        self.layers = nn.Sequential(
            nn.Linear(len(values) * width + numbers, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1)
        )

    def forward(self, names: Tensor, numbers: Tensor) -> Tensor:
        embedded = [table(column) for table, column in zip(self.embeddings, names.unbind(1), strict=True)]
        return self.layers(torch.cat([*embedded, numbers], 1)).squeeze(1)


def base_rate_loss(y: Tensor, y_val: Tensor) -> float:
    """The log loss on `y_val` of whoever always predicts the share of ones in `y`."""
    logit = torch.logit(y.double().mean()).expand(len(y_val))
    return binary_cross_entropy_with_logits(logit, y_val.double()).item()

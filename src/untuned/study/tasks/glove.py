"""Word vectors by matrix factorisation: GloVe (Pennington, Socher and Manning 2014, EMNLP, equations 8 and 9)."""

import re
from collections import Counter

import numpy as np
import torch
from torch import Tensor, nn

from untuned.study import data

from .in_memory import InMemory
from .task import evaluating, seeded

WORDS, WINDOW, WIDTH = 1_500, 10, 50
X_MAX, ALPHA = 10.0, 0.75  # the paper's X_MAX is 100, for corpora of billions of words


class SotuGlove(InMemory):
    """Predict the logarithm of how often two words occur near each other; a tenth of the pairs of words is held out.

    The loss of a pair is f(X) (w_i . u_j + b_i + c_j - log X)^2 with f(X) = min(1, X / X_MAX)^ALPHA; words i and j that
    never meet are no pair. What is held out is held out in both orders, (i, j) and (j, i).
    """

    name = "sotu-glove"
    title = "GloVe: factors of the log co-occurrence counts of 1,500 words in State of the Union addresses"
    metric = "val_loss"
    maximize = False
    batch_size = 4096
    epochs = 6

    def __init__(self) -> None:
        counts = cooccurrences(data.load("sotu")["text"].tobytes().decode("ascii"))
        i, j = np.nonzero(counts)
        x = counts[i, j]
        low, high = np.minimum(i, j), np.maximum(i, j)
        held_out = np.random.default_rng(0).random((WORDS, WORDS))[low, high] < 0.1

        def tensors(chosen: np.ndarray) -> tuple[Tensor, ...]:
            weight = np.minimum(1, x[chosen] / X_MAX) ** ALPHA
            numbers = (np.log(x[chosen]).astype(np.float32), weight.astype(np.float32))
            return tuple(map(torch.from_numpy, (i[chosen], j[chosen], *numbers)))

        self.train, self.val = tensors(~held_out), tensors(held_out)
        _, _, log_x, weight = self.val
        self.chance = (weight * log_x.square()).mean().item()  # every prediction 0

    def model(self, seed: int) -> nn.Module:
        with seeded(seed):
            return Factors()

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        i, j, log_x, weight = batch
        return (weight * (model(i, j) - log_x).square()).mean()

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        with evaluating(model):
            return {"val_loss": self.loss(model, self.val).item()}


class Factors(nn.Module):
    """w_i . u_j + b_i + c_j for word numbers i and j (n,); uniform initial weights as in the authors' program."""

    def __init__(self) -> None:
        super().__init__()
        # The last column of each table is the bias.
        self.words = nn.Embedding(WORDS, WIDTH + 1)
        self.contexts = nn.Embedding(WORDS, WIDTH + 1)
        for table in (self.words, self.contexts):
            nn.init.uniform_(table.weight, -0.5 / WIDTH, 0.5 / WIDTH)

    def forward(self, i: Tensor, j: Tensor) -> Tensor:
        w, u = self.words(i), self.contexts(j)
        return (w[:, :-1] * u[:, :-1]).sum(1) + w[:, -1] + u[:, -1]


def cooccurrences(text: str) -> np.ndarray:
    """Symmetric float64 (WORDS, WORDS): the sum of 1 / distance over all places where two words of a line are at most
    WINDOW apart. Words are numbered from the commonest; rarer ones than WORDS count as places but have no row."""
    lines = [re.findall(r"[a-z']+", line) for line in text.splitlines()]
    common = Counter(word for line in lines for word in line).most_common(WORDS)
    number = {word: n for n, (word, _) in enumerate(common)}
    counts = np.zeros((WORDS, WORDS))
    for line in lines:
        codes = np.array([number.get(word, -1) for word in line])
        for distance in range(1, WINDOW + 1):
            left, right = codes[:-distance], codes[distance:]
            both = (left >= 0) & (right >= 0)
            np.add.at(counts, (left[both], right[both]), 1 / distance)
    return counts + counts.T

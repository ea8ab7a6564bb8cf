"""Word-level language model on the Penn Treebank."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from untuned.study import data

from .in_memory import InMemory
from .task import evaluating, seeded

VOCABULARY, CONTEXT, WIDTH = 2_000, 32, 96
TRAIN_WINDOWS, VAL_WINDOWS = 3_200, 240


class PtbLSTM(InMemory):
    """Predict the next word from the at most 32 before it, on the first 102,000 words of the Penn Treebank.

    The 2,000 commonest words are kept, among them "<eos>", the end of a line; all others become "<unk>", which the text
    itself has for rare words. The state starts at zero in every window; windows overlap in one word.
    """

    name = "ptb-lstm"
    title = "LSTM of width 96 on 102,000 words of the Penn Treebank, by word"
    metric = "val_loss"
    maximize = False
    batch_size = 16
    epochs = 2

    def __init__(self) -> None:
        arrays = data.load("ptb")
        words = arrays["words"].tolist()  # the commonest first
        self.unknown = words.index("<unk>")
        self.words = min(len(words), VOCABULARY)
        self.chance = math.log(self.words)
        self.train = (self._windows(torch.from_numpy(arrays["train"].astype("int64")))[:TRAIN_WINDOWS],)
        self.val = (self._windows(torch.from_numpy(arrays["valid"].astype("int64")))[:VAL_WINDOWS],)

    def _windows(self, text: Tensor) -> Tensor:
        text = text.where(text < self.words, self.unknown)
        return text.unfold(0, CONTEXT + 1, CONTEXT).contiguous()

    def model(self, seed: int) -> nn.Module:
        with seeded(seed):
            return WordLSTM(self.words)

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        (windows,) = batch
        return cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        with evaluating(model):
            return {"val_loss": self.loss(model, self.val).item()}


class WordLSTM(nn.Module):
    """Word numbers (n, length) to logits of the next word (n, length, words)."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.logits = nn.Linear(WIDTH, words)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    def forward(self, words: Tensor) -> Tensor:
        features, _ = self.lstm(self.embedding(words))
        return self.logits(features)

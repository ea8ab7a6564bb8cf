"""Translation from German to English with an encoder-decoder transformer."""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from untuned.study import data

from .in_memory import InMemory
from .task import evaluating, seeded

WIDTH, HEADS, BLOCKS = 64, 4, 2
PADDING = 0


class HelpTranslation(InMemory):
    """Predict each word of an English paragraph from the German one and the English words before it."""

    name = "help-translation"
    title = "Encoder-decoder transformer on 6,000 paragraphs of LibreOffice's help, German to English, by word"
    metric = "val_loss"
    maximize = False
    batch_size = 32
    epochs = 2

    def __init__(self) -> None:
        arrays = data.load("help-pairs")

        def tensors(split: str) -> tuple[Tensor, ...]:
            sides = (arrays[f"{language}_{split}"].astype(np.int64) for language in ("german", "english"))
            return tuple(map(torch.from_numpy, sides))

        self.train, self.val = tensors("train"), tensors("val")
        self.words = len(arrays["german_words"]), len(arrays["english_words"])
        self.chance = math.log(self.words[1])

    def model(self, seed: int) -> nn.Module:
        with seeded(seed):
            return EncoderDecoder(*self.words, length=self.train[0].shape[1])

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        german, english = batch
        following = english[:, 1:]
        present = following != PADDING
        return cross_entropy(model(german, english[:, :-1], present), following[present])

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        with evaluating(model):
            return {"val_loss": self.loss(model, self.val).item()}


class EncoderDecoder(nn.Module):
    """Word numbers, source (n, m) and target so far (n, k), to logits of the next target word (wanted, targets).

    `wanted` (n, k) is true where the next word is asked for, which saves the logits of the padding.
    """

    def __init__(self, sources: int, targets: int, length: int) -> None:
        super().__init__()
        options = {"dropout": 0.0, "batch_first": True, "norm_first": True}
        self.source_words, self.target_words = nn.Embedding(sources, WIDTH), nn.Embedding(targets, WIDTH)
        self.positions = nn.Parameter(torch.empty(length, WIDTH))
        self.encoder = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, **options) for _ in range(BLOCKS)
        )
        self.decoder = nn.ModuleList(
            nn.TransformerDecoderLayer(WIDTH, HEADS, 4 * WIDTH, **options) for _ in range(BLOCKS)
        )
        self.encoder_norm, self.decoder_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.logits = nn.Linear(WIDTH, targets)
        for table in (self.source_words.weight, self.target_words.weight, self.positions):
            nn.init.normal_(table, std=0.02)

    def forward(self, source: Tensor, target: Tensor, wanted: Tensor) -> Tensor:
        absent = source == PADDING
        # The padding of a target comes after its words: the causal mask hides it.
        later = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool, device=target.device).triu(1)
        x = self.source_words(source) + self.positions[: source.shape[1]]
        for block in self.encoder:
            x = block(x, src_key_padding_mask=absent)
        memory = self.encoder_norm(x)
        y = self.target_words(target) + self.positions[: target.shape[1]]
        for block in self.decoder:
            y = block(y, memory, tgt_mask=later, memory_key_padding_mask=absent)
        return self.logits(self.decoder_norm(y)[wanted])

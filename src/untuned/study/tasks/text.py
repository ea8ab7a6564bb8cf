"""Character-level language model on State of the Union addresses."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from untuned.study import data

from .task import Task, evaluating, seeded, shuffled

CONTEXT, WIDTH, HEADS, BLOCKS = 64, 64, 4, 2


class SotuChar(Task):
    """Predict the next character from the 64 before it. The last 5 % of the text (a speech of 1976) is held out."""

    name = "sotu-char"
    title = "Transformer, 111,000 parameters, on State of the Union addresses 1961-1976, by character"
    metric = "val_bits_per_char"
    maximize = False
    batch_size = 16
    epochs = 1

    def __init__(self) -> None:
        alphabet, codes = np.unique(data.load("sotu")["text"], return_inverse=True)
        self.symbols = len(alphabet)
        self.chance = math.log2(self.symbols)
        held_out = len(codes) // 20
        self.train = _windows(torch.from_numpy(codes[:-held_out]))
        self.val = _windows(torch.from_numpy(codes[-held_out:]))

    def model(self, seed: int) -> nn.Module:
        with seeded(seed):
            return Transformer(self.symbols)

    def batches(self, seed: int, epoch: int) -> Iterator[Tensor]:
        for index in shuffled(len(self.train), self.batch_size, seed, epoch):
            yield self.train.index_select(0, index)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        return cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        with evaluating(model):
            loss = self.loss(model, self.val).item()
        return {"val_loss": loss, "val_bits_per_char": loss / math.log(2)}


def _windows(codes: Tensor) -> Tensor:
    """Consecutive windows (count, CONTEXT + 1) that overlap in one character, so that each is predicted once."""
    return codes.unfold(0, CONTEXT + 1, CONTEXT).contiguous()


class Block(nn.Module):
    """Pre-norm transformer block of width WIDTH; with `causal`, no position sees a later one."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.norm_attention = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        heads = self.qkv(self.norm_attention(x)).view(batch, length, 3, HEADS, WIDTH // HEADS)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(x)


class Transformer(nn.Module):
    """Decoder-only transformer: characters (batch, CONTEXT) to logits (batch, CONTEXT, symbols)."""

    def __init__(self, symbols: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(symbols, WIDTH)
        self.positions = nn.Parameter(torch.empty(CONTEXT, WIDTH))
        self.blocks = nn.Sequential(*(Block(causal=True) for _ in range(BLOCKS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.logits = nn.Linear(WIDTH, symbols)
        nn.init.normal_(self.characters.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, codes: Tensor) -> Tensor:
        return self.logits(self.norm(self.blocks(self.characters(codes) + self.positions)))

"""Fine-tuning of a small pretrained transformer, whole or by low-rank adaptation (LoRA, arXiv 2106.09685)."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from untuned.study import data

from .classification import Classification
from .task import seeded

PADDING = 0
HEAD_WIDTH = 32
RANK, ALPHA = 8, 16


class MiniLM(Classification):
    """Which part of LibreOffice a paragraph of its help is about, from its at most 16 tokens.

    The embeddings and the first three of the six layers of all-MiniLM-L6-v2, without dropout, and a new linear layer on
    the mean of their features. Embeddings stay as they are.
    """

    metric = "val_accuracy"
    batch_size = 8
    epochs = 1

    def __init__(self) -> None:
        arrays = data.load("help-modules")
        self.weights = data.load("minilm")
        self.classes = len(data.manifest()["help-modules"]["classes"])

        def tensors(split: str) -> tuple[Tensor, Tensor]:
            tokens, y = (arrays[f"{kind}_{split}"].astype(np.int64) for kind in ("tokens", "y"))
            return torch.from_numpy(tokens), torch.from_numpy(y)

        super().__init__(*tensors("train"), *tensors("val"))

    def pretrained(self, seed: int) -> "Classifier":
        """The weights of all but the last layer are those of every seed."""
        with seeded(seed):
            return Classifier(Encoder(self.weights), self.classes)


class MiniLMFull(MiniLM):
    name = "minilm-full"
    title = "Three layers of MiniLM, fine-tuned whole, on 1,440 paragraphs of LibreOffice's help, 6 subjects"

    def model(self, seed: int) -> nn.Module:
        return self.pretrained(seed)


class MiniLMLoRA(MiniLM):
    """Trains the last layer and low-rank changes of the projections to queries and values, as the paper does."""

    name = "minilm-lora"
    title = "Three layers of MiniLM with LoRA of rank 8 on 1,440 paragraphs of LibreOffice's help, 6 subjects"

    def model(self, seed: int) -> nn.Module:
        model = self.pretrained(seed)
        model.encoder.requires_grad_(False)
        with seeded(seed):
            for attention in list(model.modules()):
                if isinstance(attention, nn.MultiheadAttention):
                    register_parametrization(attention, "in_proj_weight", LowRank(attention.embed_dim))
        return model


class LowRank(nn.Module):
    """Adds ALPHA / RANK B A to the query rows and to the value rows of a weight (3 width, width); B starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(2, RANK, width))
        self.b = nn.Parameter(torch.zeros(2, width, RANK))
        nn.init.uniform_(self.a, -1 / math.sqrt(width), 1 / math.sqrt(width))

    def forward(self, weight: Tensor) -> Tensor:
        queries, values = ALPHA / RANK * (self.b @ self.a)
        return weight + torch.cat([queries, torch.zeros_like(queries), values])


class Encoder(nn.Module):
    """Token numbers (n, length) to features (n, length, width): BERT with the sizes that `weights` have."""

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        tokens, width = weights["tokens.weight"].shape
        count = sum(name.endswith("linear1.weight") for name in weights)
        self.tokens = nn.Embedding(tokens, width)
        self.positions = nn.Parameter(torch.empty(weights["positions"].shape))
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                width // HEAD_WIDTH,
                len(weights["layers.0.linear1.weight"]),
                dropout=0.0,
                activation="gelu",
                layer_norm_eps=1e-12,
                batch_first=True,
            )
            for _ in range(count)
        )
        self.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
        for part in (self.tokens.weight, self.positions, *self.norm.parameters()):
            part.requires_grad_(False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.tokens(tokens) + self.positions[: tokens.shape[1]])
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=tokens == PADDING)
        return x


class Classifier(nn.Module):
    """Token numbers (n, length) to logits (n, classes)."""

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.logits = nn.Linear(encoder.tokens.embedding_dim, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        present = (tokens != PADDING).unsqueeze(2)
        return self.logits((self.encoder(tokens) * present).sum(1) / present.sum(1))

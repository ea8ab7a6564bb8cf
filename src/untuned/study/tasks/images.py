"""Small networks on Fashion-MNIST and MNIST."""

import numpy as np
import torch
from torch import Tensor, nn

from untuned.study import data

from .classification import Classification
from .task import seeded
from .text import WIDTH, Block


class Images(Classification):
    """Grey images (n, 28, 28), standardised with one mean and deviation, and ten classes."""

    metric = "val_accuracy"

    def __init__(self, source: str, mean: float, std: float, held_out: int | None = None) -> None:
        """`held_out`: evaluate on so many of the test images, the first ones, instead of on all."""
        arrays = data.load(source)

        def tensors(split: str, count: int | None = None) -> tuple[Tensor, Tensor]:
            x = torch.from_numpy(arrays[f"x_{split}"][:count]).float().div_(255).sub_(mean).div_(std)
            return x, torch.from_numpy(arrays[f"y_{split}"][:count].astype(np.int64))

        super().__init__(*tensors("train"), *tensors("test", held_out))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)
    )


class FashionMLP(Images):
    name = "fashion-mlp"
    title = "MLP 784-100-100-10 on 2,000 Fashion-MNIST images"
    batch_size = 64
    epochs = 30

    def __init__(self) -> None:
        super().__init__("fashion-slice", mean=0.2860, std=0.3530)

    def model(self, seed: int) -> nn.Module:
        with seeded(seed):
            return mlp()


class FashionCNN(Images):
    name = "fashion-cnn"
    title = "Convolutional network, 106,000 parameters, on 2,000 Fashion-MNIST images"
    batch_size = 64
    epochs = 30

    def __init__(self) -> None:
        super().__init__("fashion-slice", mean=0.2860, std=0.3530)

    def model(self, seed: int) -> nn.Module:
        with seeded(seed):
            return nn.Sequential(
                nn.Unflatten(1, (1, 28)),
                nn.Conv2d(1, 16, 5, stride=2, padding=2),
                nn.ReLU(),
                nn.Conv2d(16, 32, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Flatten(),
                nn.Linear(32 * 7 * 7, 64),
                nn.ReLU(),
                nn.Linear(64, 10),
            )


class FashionViT(Images):
    name = "fashion-vit"
    title = "Vision transformer, 105,000 parameters, on 2,000 Fashion-MNIST images"
    batch_size = 64
    epochs = 10

    def __init__(self) -> None:
        super().__init__("fashion-slice", mean=0.2860, std=0.3530, held_out=500)

    def model(self, seed: int) -> nn.Module:
        with seeded(seed):
            return VisionTransformer()


class VisionTransformer(nn.Module):
    """Images (n, 28, 28), cut into 16 patches of 7 x 7 pixels, to logits (n, 10) from the mean over the patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, 7, stride=7)
        self.positions = nn.Parameter(torch.empty(16, WIDTH))
        self.blocks = nn.Sequential(Block(causal=False), Block(causal=False))
        self.norm = nn.LayerNorm(WIDTH)
        self.logits = nn.Linear(WIDTH, 10)
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images[:, None]).flatten(2).transpose(1, 2)
        return self.logits(self.norm(self.blocks(patches + self.positions)).mean(1))


class MnistMLP(Images):
    """The MNIST study of MoMo (arXiv 2305.07583): seeds change the order of the data, never the initial weights."""

    name = "mnist-mlp"
    title = "MLP 784-100-100-10 on MNIST, 60,000 images"
    batch_size = 128
    epochs = 10

    def __init__(self) -> None:
        super().__init__("mnist", mean=0.1307, std=0.3081)

    def model(self, seed: int) -> nn.Module:
        with seeded(1234567):  # the seed of the published runs
            return mlp()

"""A residual network on a slice of CIFAR-10, which has to be fetched first."""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, relu

from untuned.study import data

from .classification import Classification
from .task import seeded

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class CifarResNet20(Classification):
    """ResNet-20 (He et al., arXiv 1512.03385, section 4.2) of half the width, 8, 16 and 32 channels.

    The images are averaged over 2 x 2 pixels, to 16 x 16, and standardised by channel.
    """

    name = "cifar-resnet20"
    title = "ResNet-20 with batch norm, 68,000 parameters, on 4,000 CIFAR-10 images of 16 x 16 pixels"
    metric = "val_accuracy"
    batch_size = 64
    epochs = 5

    def __init__(self) -> None:
        arrays = data.load("cifar-10")

        def tensors(split: str, count: int) -> tuple[Tensor, Tensor]:
            images = torch.from_numpy(arrays[f"x_{split}"][:count]).permute(0, 3, 1, 2).float().div_(255)
            x = avg_pool2d(images, 2).sub_(torch.tensor(MEAN)[:, None, None]).div_(torch.tensor(STD)[:, None, None])
            return x, torch.from_numpy(arrays[f"y_{split}"][:count].astype(np.int64))

        super().__init__(*tensors("train", 4000), *tensors("test", 500))

    def model(self, seed: int) -> nn.Module:
        with seeded(seed):
            return resnet20()


def resnet20() -> nn.Module:
    """Three stages of three blocks: images (n, 3, 16, 16) to logits (n, 10).

    The second norm of each block starts at 0 and so the block as its shortcut (Goyal et al., arXiv 1706.02677).
    """
    widths = 8, 8, 8, 8, 16, 16, 16, 32, 32, 32
    blocks = (ResidualBlock(before, after) for before, after in pairwise(widths))
    model = nn.Sequential(
        convolution(3, widths[0]), nn.BatchNorm2d(widths[0]), nn.ReLU(), *blocks,
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10),
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, ResidualBlock):
            nn.init.zeros_(module.norm2.weight)
    return model


def convolution(before: int, after: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride, padding=1, bias=False)


class ResidualBlock(nn.Module):
    """Two convolutions and the identity; where the width grows, every other pixel, and zeros for the new channels."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.stride, self.new = (1, 0) if before == after else (2, after - before)
        self.conv1, self.norm1 = convolution(before, after, self.stride), nn.BatchNorm2d(after)
        self.conv2, self.norm2 = convolution(after, after), nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm2(self.conv2(relu(self.norm1(self.conv1(x)))))
        shortcut = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new))
        return relu(hidden + shortcut)

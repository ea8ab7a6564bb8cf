"""Fashion-MNIST without its classes: an autoencoder and denoising diffusion."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits, interpolate, mse_loss, silu

from untuned.study import data

from .task import Task, evaluating, seeded, shuffled

HELD_OUT = 500


class FashionAutoencoder(Task):
    """Images (n, 784) in [0, 1] to 30 numbers and back: cross-entropy per pixel, in nats.

    A grey pixel v costs at least its entropy -v log v - (1 - v) log (1 - v), so that the loss stays well above 0.
    Deep autoencoders are hard to optimise (Martens, ICML 2010).
    """

    name = "fashion-autoencoder"
    title = "Autoencoder 784-500-250-30 and back, 1,050,000 parameters, on 2,000 Fashion-MNIST images"
    metric = "val_loss"
    maximize = False
    chance = math.log(2)
    batch_size = 64
    epochs = 15

    def __init__(self) -> None:
        arrays = data.load("fashion-slice")
        self.train = torch.from_numpy(arrays["x_train"]).flatten(1).float().div_(255)
        self.val = torch.from_numpy(arrays["x_test"][:HELD_OUT]).flatten(1).float().div_(255)
        self.samples = len(self.train)

    def model(self, seed: int) -> nn.Module:
        with seeded(seed):
            return nn.Sequential(
                nn.Linear(784, 500), nn.Tanh(), nn.Linear(500, 250), nn.Tanh(), nn.Linear(250, 30),
                nn.Linear(30, 250), nn.Tanh(), nn.Linear(250, 500), nn.Tanh(), nn.Linear(500, 784),
            )  # fmt: skip

    def batches(self, seed: int, epoch: int) -> Iterator[Tensor]:
        for index in self.ids(seed, epoch):
            yield self.train.index_select(0, index)

    def ids(self, seed: int, epoch: int) -> Iterator[Tensor]:
        return shuffled(self.samples, self.batch_size, seed, epoch)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(model(batch), batch)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        with evaluating(model):
            return {"val_loss": self.loss(model, self.val).item()}


class FashionDiffusion(Task):
    """Predict the noise e, standard normal, in cos(a) image + sin(a) e, for a in [0, pi/2]: mean squared error.

    Images are (n, 1, 14, 14), means over 2 x 2 pixels in [-1, 1], and levels a / (pi/2) in [0, 1]. This is the
    objective of denoising diffusion (Ho et al., arXiv 2006.11239) with the cosine schedule in continuous time. A batch
    carries its noise and its levels, which (seed, epoch) give; those of the validation images never change.
    """

    name = "fashion-diffusion"
    title = "Denoising diffusion, U-Net of 73,000 parameters, on 2,000 Fashion-MNIST images of 14 x 14 pixels"
    metric = "val_loss"
    maximize = False
    chance = 1.0  # no noise predicted: its variance
    batch_size = 32
    epochs = 5

    def __init__(self) -> None:
        arrays = data.load("fashion-slice")

        def images(split: str) -> Tensor:
            return avg_pool2d(torch.from_numpy(arrays[f"x_{split}"])[:, None].float(), 2).div_(127.5).sub_(1)

        self.train = images("train")
        self.samples = len(self.train)
        held_out = images("test")[:HELD_OUT]
        self.val = next(_noisy(held_out, [torch.arange(HELD_OUT)], np.random.default_rng(0)))

    def model(self, seed: int) -> nn.Module:
        with seeded(seed):
            return UNet()

    def batches(self, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        return _noisy(self.train, self.ids(seed, epoch), np.random.default_rng([seed, epoch, 1]))

    def ids(self, seed: int, epoch: int) -> Iterator[Tensor]:
        return shuffled(self.samples, self.batch_size, seed, epoch)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        noisy, level, noise = batch
        return mse_loss(model(noisy, level), noise)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        with evaluating(model):
            return {"val_loss": self.loss(model, self.val).item()}


def _noisy(images: Tensor, indices: Iterator[Tensor] | list[Tensor], random: np.random.Generator) -> Iterator:
    """For each index: noisy images (n, 1, 14, 14), their levels (n,), evenly spaced, and the noise."""
    for index in indices:
        clean = images.index_select(0, index)
        noise = torch.from_numpy(random.standard_normal(clean.shape, np.float32))
        level = (torch.arange(len(index)) + random.random()) / len(index)
        angle = (level * (math.pi / 2))[:, None, None, None]
        yield angle.cos() * clean + angle.sin() * noise, level, noise


class UNet(nn.Module):
    """Noisy images (n, 1, 14, 14) and levels (n,) in [0, 1] to the noise; resolutions 14 and 7, without attention.

    The last convolution starts at 0, so that an untrained network predicts no noise.
    """

    FINE, COARSE, FREQUENCIES = 16, 48, 16

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Sequential(nn.Linear(2 * self.FREQUENCIES, 64), nn.SiLU())
        self.inlet = nn.Conv2d(1, self.FINE, 3, padding=1)
        self.before = ResidualBlock(self.FINE)
        self.down = nn.Conv2d(self.FINE, self.COARSE, 3, stride=2, padding=1)
        self.middle = ResidualBlock(self.COARSE)
        self.up = nn.Conv2d(self.COARSE, self.FINE, 3, padding=1)
        self.after = ResidualBlock(self.FINE)
        self.norm = nn.GroupNorm(4, self.FINE)
        self.outlet = nn.Conv2d(self.FINE, 1, 3, padding=1)
        for parameter in self.outlet.parameters():
            nn.init.zeros_(parameter)

    def forward(self, noisy: Tensor, level: Tensor) -> Tensor:
        angles = level[:, None] * torch.logspace(0, 2, self.FREQUENCIES)
        condition = self.level(torch.cat([angles.sin(), angles.cos()], 1))
        fine = self.before(self.inlet(noisy), condition)
        coarse = self.middle(self.down(fine), condition)
        fine = self.after(fine + self.up(interpolate(coarse, scale_factor=2.0)), condition)
        return self.outlet(silu(self.norm(fine)))


class ResidualBlock(nn.Module):
    """x + conv(act(norm(conv(act(norm(x))) + shift))), with group norm and a shift per channel from the level."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(4, width), nn.GroupNorm(4, width)])
        self.convs = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)])
        self.shift = nn.Linear(64, width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        hidden = self.convs[0](silu(self.norms[0](x))) + self.shift(condition)[:, :, None, None]
        return x + self.convs[1](silu(self.norms[1](hidden)))

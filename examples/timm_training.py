"""A small network from timm with Prodigy, timm's parameter groups, layer decay, schedule and checkpoints.

python examples/timm_training.py --out run --opt untuned-prodigy
"""

from __future__ import annotations

import argparse
from pathlib import Path

import timm
import torch
from timm.models import resume_checkpoint
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import CheckpointSaver
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import untuned
from untuned.integrations.timm import register


def bright_quarters(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noise images, and which quarter of each is brighter."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=generator)
    images = torch.randn(count, 3, 16, 16, generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = divmod(label, 2)
        image[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 0.5
    return images, labels


def train_epoch(model: nn.Module, optimizer: untuned.Optimizer, epoch: int, batch: int = 64) -> None:
    images, labels = bright_quarters(1024, seed=epoch)
    for x, y in zip(images.split(batch), labels.split(batch), strict=True):
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step(loss=loss)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("run"))
    parser.add_argument("--opt", default="untuned-prodigy", choices=register())
    parser.add_argument("--lr", type=float, default=1.0)
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    model = timm.create_model("test_resnet", pretrained=False, num_classes=4)
    optimizer = create_optimizer_v2(model, args.opt, lr=args.lr, weight_decay=0.05, layer_decay=0.8)
    schedule = CosineLRScheduler(optimizer, t_initial=args.epochs)
    saver = CheckpointSaver(model, optimizer, checkpoint_dir=str(args.out))
    last = args.out / "last.pth.tar"
    begin = resume_checkpoint(model, str(last), optimizer) if last.exists() else 0

    for epoch in range(begin or 0, args.epochs):
        schedule.step(epoch)
        model.train()
        train_epoch(model, optimizer, epoch)
        model.eval()
        images, labels = bright_quarters(512, seed=10**6)
        with torch.no_grad(), optimizer.averaged_parameters():
            correct = (model(images).argmax(1) == labels).float().mean().item()
        saver.save_checkpoint(epoch, metric=correct)
        chosen = optimizer.metrics()["lr_effective"]
        print(f"epoch {epoch}: accuracy {correct:.3f}, lr_effective {chosen:.3g}", flush=True)


if __name__ == "__main__":
    main()

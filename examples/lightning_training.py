"""Lightning with MoMo-Adam: the loss comes by a callback, micro-batches are accumulated, a second start resumes.

python examples/lightning_training.py --out run
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

import untuned
from untuned.integrations.lightning import OptimizerCallback


class Curve(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1))

    def configure_optimizers(self) -> Any:
        return untuned.MoMoAdam(self.parameters(), lr=1.0)  # the loss of this problem comes near 0

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return mse_loss(self.network(x), y)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        self.log("validation_loss", mse_loss(self.network(x), y), prog_bar=True)


def points(count: int, seed: int) -> DataLoader[Any]:
    x = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return DataLoader(TensorDataset(x, torch.sin(3 * x[:, :1]) * x[:, 1:]), batch_size=32, shuffle=seed == 0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("run"))
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    lightning.seed_everything(0)
    last = args.out / "last.ckpt"
    trainer = lightning.Trainer(
        max_epochs=args.epochs,
        accumulate_grad_batches=2,
        log_every_n_steps=10,
        logger=CSVLogger(args.out),
        callbacks=[OptimizerCallback(), ModelCheckpoint(args.out, save_last=True)],
    )
    trainer.fit(Curve(), points(2000, seed=0), points(500, seed=1), ckpt_path=last if last.exists() else None)
    print({name: round(trainer.callback_metrics[name].item(), 5) for name in ("validation_loss", "lr_effective")})


if __name__ == "__main__":
    main()

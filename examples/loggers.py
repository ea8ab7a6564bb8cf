"""What the optimizer chose, in TensorBoard, W&B, MLflow, trackio and a list, all on this machine.

python examples/loggers.py tensorboard mlflow --out run
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

import untuned
from untuned.integrations import loggers


def open_sink(name: str, out: Path) -> loggers.Sink:
    if name == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        return loggers.tensorboard(SummaryWriter(str(out)))
    if name == "wandb":
        import wandb

        return loggers.wandb(wandb.init(project="curve", mode="offline", dir=out))
    if name == "trackio":
        import trackio

        return loggers.trackio(trackio.init(project="curve"))
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{out}/mlflow.db")
    mlflow.start_run()
    return loggers.mlflow()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("loggers", nargs="+", choices=["tensorboard", "wandb", "mlflow", "trackio"])
    parser.add_argument("--out", type=Path, default=Path("run"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    sinks = [open_sink(name, args.out) for name in args.loggers]
    sinks.append(lambda values, step: print(step, f"{values['lr_effective']:.3g}"))  # any callable is a sink

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = untuned.create(model, "momo_adam", lr=1.0)  # the loss of this problem comes near 0
    for step in range(1, 201):
        x = torch.rand(64, 2) * 2 - 1
        loss = (model(x) - torch.sin(3 * x[:, :1]) * x[:, 1:]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss)
        if step % 20 == 0:
            metrics = optimizer.metrics()
            for sink in sinks:
                sink(metrics, step)


if __name__ == "__main__":
    main()

"""Ray Train with two workers on one machine; a lost worker, or a second start, goes on from the last checkpoint.

python examples/ray_train.py --out /tmp/ray-results
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import ray
import torch
from ray import train
from ray.train.torch import TorchTrainer, prepare_model
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import untuned


def curve(seed: int) -> tuple[Tensor, Tensor]:
    x = torch.rand(64, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return x, torch.sin(3 * x[:, :1]) * x[:, 1:]


def loop(config: dict[str, Any]) -> None:
    """What every worker runs."""
    context = train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = untuned.create(network, config["optimizer"], **config["options"])
    done = 0
    checkpoint = train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            saved = torch.load(Path(folder, "state.pt"), weights_only=True)
        network.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        done = saved["step"]
    model = prepare_model(network)

    for step in range(done + 1, config["steps"] + 1):
        x, y = curve(seed=step * workers + rank)
        optimizer.zero_grad()
        loss = mse_loss(model(x), y)
        loss.backward()
        optimizer.step(loss=loss)  # each worker gives its own, the optimizer averages them
        if step % config["report_every"] == 0:
            with tempfile.TemporaryDirectory() as folder:
                if rank == 0:
                    states = {"model": network.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
                    torch.save(states, Path(folder, "state.pt"))
                kept = train.Checkpoint.from_directory(folder) if rank == 0 else None
                train.report({"step": step, "loss": loss.item()} | optimizer.metrics(), checkpoint=kept)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True, help="where runs are stored")
    parser.add_argument("--optimizer", default="momo_adam", choices=untuned.list())
    args = parser.parse_args()
    ray.init(num_cpus=2)
    trainer = TorchTrainer(
        loop,
        # lr 1 since the loss of this problem comes near 0
        train_loop_config={"optimizer": args.optimizer, "options": {"lr": 1.0}, "steps": 100, "report_every": 20},
        scaling_config=train.ScalingConfig(num_workers=2),
        run_config=train.RunConfig(
            name=args.optimizer,
            storage_path=str(args.out.resolve()),
            failure_config=train.FailureConfig(max_failures=2),
        ),
    )
    result = trainer.fit()
    print({name: result.metrics[name] for name in ("step", "loss", "lr_effective")})


if __name__ == "__main__":
    main()

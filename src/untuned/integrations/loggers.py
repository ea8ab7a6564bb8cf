"""TensorBoard, W&B, MLflow and trackio: `sink(optimizer.metrics(), step)` writes what the optimizer chose.

A sink is any callable that takes numbers by name and the step they belong to. Each function here makes one, with
`prefix` before the names; the packages are imported by those who call it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Sink = Callable[[Mapping[str, float], int], None]


def tensorboard(writer: Any, prefix: str = "optimizer/") -> Sink:
    """To a `torch.utils.tensorboard.SummaryWriter`, a curve per number."""

    def sink(values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(prefix + name, value, step)

    return sink


def wandb(run: Any, prefix: str = "optimizer/") -> Sink:
    """To what `wandb.init()` or `trackio.init()` returned.

    W&B drops what is logged for a step before its last one, so log your own numbers with `step=` too.
    """

    def sink(values: Mapping[str, float], step: int) -> None:
        run.log({prefix + name: value for name, value in values.items()}, step=step)

    return sink


def mlflow(run_id: str | None = None, prefix: str = "optimizer/") -> Sink:
    """To the MLflow run of that id, or the active one."""
    import mlflow  # pyright: ignore[reportMissingImports]

    def sink(values: Mapping[str, float], step: int) -> None:
        mlflow.log_metrics({prefix + name: value for name, value in values.items()}, step=step, run_id=run_id)

    return sink


trackio = wandb

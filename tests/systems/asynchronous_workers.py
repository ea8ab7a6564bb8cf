"""Work for the processes of the engines' tests; spawned processes import it, so it needs little."""

import functools
import os
import signal
import time

import torch

from untuned.systems.asynchronous.messages import Compute

DIM = 7


def compute(weights: torch.Tensor, draw: int) -> torch.Tensor:
    """The gradient of an ill-conditioned parabola, with noise that follows from the draw."""
    noise = torch.randn(len(weights), generator=torch.Generator().manual_seed(draw), dtype=weights.dtype)
    return torch.logspace(-2, 0, len(weights), dtype=weights.dtype) * weights + 0.1 * noise


def _computed(weights: torch.Tensor, draw: int, delay: float, dies_at: int | None) -> torch.Tensor:
    if dies_at is not None and draw >= dies_at:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(delay)
    return compute(weights, draw)


def work(worker: int) -> Compute:
    return compute


def slow_and_dying(worker: int, slow: int = 0, dying: int = 1, dies_at: int = 20, delay: float = 0.01) -> Compute:
    """Worker `slow` takes its time, worker `dying` is killed when it gets a draw from `dies_at` on."""
    return functools.partial(
        _computed, delay=delay if worker == slow else 0.0, dies_at=dies_at if worker == dying else None
    )


def failing(worker: int) -> Compute:
    raise OSError("there is no data")


def _nan(weights: torch.Tensor, draw: int) -> torch.Tensor:
    return compute(weights, draw) * (float("nan") if draw % 5 == 0 else 1.0)


def spoiling(worker: int) -> Compute:
    """Every fifth gradient is not finite."""
    return _nan


def hanging(worker: int) -> Compute:
    """Worker 1 sleeps for long at its second gradient."""
    return functools.partial(_hanging, worker=worker)


def _hanging(weights: torch.Tensor, draw: int, worker: int) -> torch.Tensor:
    time.sleep(60.0 if worker == 1 and draw > 2 else 0.002)
    return compute(weights, draw)


def raising_or_hanging(worker: int) -> Compute:
    """Workers 0 and 2 raise at a draw beyond 20, worker 1 sleeps for long there."""
    return functools.partial(_raising_or_hanging, worker=worker)


def _raising_or_hanging(weights: torch.Tensor, draw: int, worker: int) -> torch.Tensor:
    if draw > 20 and worker == 1:
        time.sleep(60.0)
    if draw > 20:
        raise OSError("the disk is gone")
    time.sleep(0.005)
    return compute(weights, draw)


def cutting(worker: int) -> Compute:
    """Worker 1 sends one number."""
    return _cutting if worker == 1 else compute


def _cutting(weights: torch.Tensor, draw: int) -> torch.Tensor:
    return compute(weights, draw)[:1]

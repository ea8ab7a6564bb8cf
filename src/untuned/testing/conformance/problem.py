"""The small problem of all checks: a net of six tensors and its batches."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

ROWS = 6
ALL = slice(None)


UNEVEN, EVEN = (5, 4, 1), (4, 4, 2)


def net(dtype: torch.dtype = torch.float64, widths: tuple[int, int, int] = UNEVEN) -> nn.Module:
    """Three layers, 49 numbers; over two processes the first has shards of 3 and 2 rows, the last of 1 and none."""
    generator = torch.Generator().manual_seed(0)
    a, b, c = widths
    model = nn.Sequential(nn.Linear(3, a), nn.Tanh(), nn.Linear(a, b), nn.Tanh(), nn.Linear(b, c)).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) / 2)
    return model


def loss_of(model: nn.Module, k: int, rows: slice = ALL) -> Tensor:
    """The mean loss on some rows of batch k, which has `ROWS`."""
    generator = torch.Generator().manual_seed(k)
    x = torch.rand(ROWS, 3, generator=generator, dtype=torch.float64) * 2 - 1
    y = torch.sin(3 * x[:, :1]) + x[:, 1:2] * x[:, 2:]
    dtype = next(model.parameters()).dtype
    return (model(x[rows].to(dtype)) - y[rows].to(dtype)).square().mean()


def vector(parameters: nn.Module | Iterable[Tensor]) -> Tensor:
    """All elements of a model or of tensors, sharded or not, as float64."""
    tensors = parameters.parameters() if isinstance(parameters, nn.Module) else parameters
    whole = (getattr(t, "full_tensor", lambda t=t: t)() for t in tensors)
    return torch.cat([t.detach().double().flatten() for t in whole]).clone()


def relative(found: Tensor, expected: Tensor, start: Tensor) -> float:
    """The largest difference in units of how far the run moved; infinite if there is NaN where none is expected."""
    way = (expected - start).abs().max().clamp(min=1e-300)
    off = (found - expected).abs().max() / way
    return float(off) if torch.isfinite(off) else torch.inf


def gradients(model: nn.Module, scale: float = 1.0, seed: int = 0) -> None:
    """Give every parameter a random gradient of this size."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = (torch.randn(p.shape, generator=generator, dtype=torch.float64) * scale).to(p.dtype)

"""Stochastic rounding to bfloat16: up or down at random, so that the mean is the value.

The random bits are 16 of a hash of the step, the tensor and the element. So they need no state but the count of steps,
which checkpoints hold, and are the same on replicas and in kernels. A parameter and its slots take other bits of one
hash: each is rounded without bias, though not independently of the others.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportPrivateImportUsage=false
# torch's stubs leave types unknown, and its multi-tensor functions have private names.

from __future__ import annotations

import zlib

import torch

from untuned.parts.math import mixed

_LOW = 0xFFFFFFFF


def keys(steps: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """A key for each tensor of a step, int64 below 2^32, from its position among all parameters."""
    return mixed((mixed(steps.long()) + positions) & _LOW)


def shift(stream: str) -> int:
    """Which bits of the hash a parameter or a slot takes: from this one on."""
    return 0 if stream == "p" else 1 + zlib.crc32(stream.encode()) % 16


def to_bfloat16(value: torch.Tensor, key: torch.Tensor, stream: str, first: int = 0) -> torch.Tensor:
    """Round at random; `first` is the place of the first element in the memory of its tensor."""
    value = value.float()
    index = torch.arange(first, first + value.numel(), device=value.device)
    if value.is_contiguous() or value.dim() != 4:
        index = index.view(value.shape)
    else:  # channels last
        n, c, h, w = value.shape
        index = index.view(n, h, w, c).permute(0, 3, 1, 2)
    noise = (mixed((key + index) & _LOW) >> shift(stream)) & 0xFFFF
    bits = ((value.contiguous().view(torch.int32).long() & _LOW) + noise) & 0xFFFF0000
    bits = torch.where(bits >= 1 << 31, bits - (1 << 32), bits).to(torch.int32)
    return torch.where(torch.isnan(value), value, bits.view(torch.float32)).to(torch.bfloat16)

"""Time of one optimizer step on the parameter lists of real models, as a ratio to torch's fused AdamW.

Every timed step stands between two steps of the reference in the same process, so that the load of the machine cancels.
A process measures one list in one dtype and holds the reference and one contender at a time.
"""

import csv
import dataclasses
import gc
import importlib.metadata
import inspect
import json
import math
import os
import platform
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

import untuned
from untuned.study.config import StudyError, label, parse_methods

Shapes = list[tuple[int, ...]]
Stopwatch = Callable[[Callable[[], object]], float]  # seconds of one call
LR = 1e-6  # small: the parameters stay where they are
FILL = 3  # steps with fresh gradients before the timed ones: averages of zeros are faster than real ones
STREAM = 2**26  # elements: 256 MiB in float32, more than caches hold
DTYPES = ("float32", "bfloat16", "float16", "float64")
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_MMAP_THRESHOLD_": str(2**34)}
ALLOCATORS = {"default": {}, "tuned": KEEP_MEMORY | {"MALLOC_TOP_PAD_": str(2**26)}}  # environment that glibc reads


def _conv(out: int, into: int, kernel: int) -> Shapes:
    return [(out, into, kernel, kernel), (out,), (out,)]  # and its batch norm


def _resnet50() -> Shapes:
    shapes, into = _conv(64, 3, 7), 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += _conv(width, into, 1) + _conv(width, width, 3) + _conv(4 * width, width, 1)
            shapes += _conv(4 * width, into, 1) if block == 0 else []
            into = 4 * width
    return [*shapes, (1000, into), (1000,)]


def _transformer(d: int, layers: int) -> Shapes:
    block = [(d,), (d,), (3 * d, d), (3 * d,), (d, d), (d,), (d,), (d,), (4 * d, d), (4 * d,), (d, 4 * d), (d,)]
    return [*block * layers, (d,), (d,)]


MODELS: dict[str, Shapes] = {
    "resnet50": _resnet50(),
    "gpt2": [(50257, 768), (1024, 768), *_transformer(768, 12)],
    "vit-b": [(1, 1, 768), (1, 197, 768), (768, 3, 16, 16), (768,), *_transformer(768, 12), (1000, 768), (1000,)],
    "lora": [(8, 4096), (4096, 8)] * 200,
    "tiny": [(64,)] * 2000,
}
_FUSED, _MOMENTUM = {"fused": True}, {"momentum": 0.9}
_PEERS: dict[str, tuple[str, list[tuple[str, dict[str, Any]]]]] = {  # distribution: module, classes with options
    "torch": (
        "torch.optim",
        [(c, o | f) for c, o in (("AdamW", {}), ("Adam", {}), ("SGD", _MOMENTUM)) for f in (_FUSED, {})],
    ),
    "momo-opt": ("momo", [("Momo", {}), ("MomoAdam", {})]),
    "prodigyopt": ("prodigyopt", [("Prodigy", {})]),
    "dadaptation": (
        "dadaptation",
        [("DAdaptSGD", _MOMENTUM), ("DAdaptAdam", {}), ("DAdaptAdaGrad", {}), ("DAdaptLion", {})],
    ),
    "schedulefree": ("schedulefree", [("AdamWScheduleFree", {}), ("SGDScheduleFree", {})]),
    "mechanic-pytorch": ("mechanic_pytorch", [("mechanize", _FUSED)]),
    "madgrad": ("madgrad", [("MADGRAD", {}), ("MirrorMADGRAD", {})]),
    "pytorch_optimizer": (
        "pytorch_optimizer",
        [(c, {}) for c in ("TAM", "AdaTAM", "Prodigy", "MADGRAD", "DAdaptAdam", "ScheduleFreeAdamW")],
    ),
    "timm": ("timm.optim", [("MADGRAD", {}), ("Lion", {}), ("Adan", {})]),
    "heavyball": ("heavyball", [("AdamW", {}), ("SFAdamW", {}), ("SGD", {})]),
}
PEERS = {
    f"{package} {label(cls, options)}": (module, cls, options)
    for package, (module, classes) in _PEERS.items()
    for cls, options in classes
}
REFERENCE = "torch AdamW(fused=True)"


@dataclasses.dataclass(frozen=True)
class Job:
    """What one process measures. `slots`: dtype of the library's slots, "" for its default."""

    model: str
    dtype: str
    slots: str
    contenders: tuple[str, ...]
    allocator: str
    guard: bool
    rounds: int
    threads: int
    device: str


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table; what does not apply is None. The first nine fields say what was measured."""

    model: str
    dtype: str
    contender: str
    allocator: str
    guard: str
    ratio: float | None = None  # contender's step / mean of the two reference steps around it: median over the rounds
    low: float | None = None  # quartiles
    high: float | None = None
    ms: float | None = None  # medians
    reference_ms: float | None = None
    gb_per_s: float | None = None  # of named bytes, in the median step
    bytes_per_param: float | None = None  # that the sweeps of a step read and write, by their programs
    state_bytes_per_param: float | None = None
    first_step_s: float | None = None  # wall clock, with compilation
    error: str = ""

    @property
    def rank(self) -> tuple[bool, bool, str]:
        """Order in tables: what the machine can do, the control, ours, theirs."""
        return (self.ms is not None and self.ratio is None, False, self.contender)

"""The reference: every verb as written, on the tensors of one parameter after the other. It runs on any device
with float64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from untuned.core.buckets import Bucket
from untuned.core.frames import ElementFrame
from untuned.core.place import Each

if TYPE_CHECKING:
    from untuned.core.engine import Optimizer

Verbs = list[tuple[str, str]]


def run(opt: Optimizer, verbs: Verbs, bucket: Bucket, i: int) -> list[torch.Tensor]:
    """Run verbs on one tensor of a bucket, store what they wrote and return their sums."""
    every = opt.parts["step_size"].every if verbs == [("step_size", "measure")] else 1
    frame = ElementFrame(opt, bucket, i, every)
    sums: list[Any] = []
    for role, verb in verbs:
        out: Any = getattr(opt.parts[role], verb)(frame.place(role))
        if out is not None:
            sums += out if isinstance(out, tuple) else (out,)
    frame.commit()
    return [(q.value if isinstance(q, Each) else q).sum(dtype=torch.float64) for q in sums]

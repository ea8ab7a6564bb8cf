"""The reference: every verb as written, on one parameter after the other. It runs on any device with float64.

On a CPU, a block of memory at a time: what the verbs compute on the way then stays in the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from untuned.core.buckets import Bucket, in_one_block, local
from untuned.core.frames import ElementFrame
from untuned.core.place import Each

if TYPE_CHECKING:
    from untuned.core.engine import Optimizer
    from untuned.core.plan import Verbs

BLOCK = 65536  # elements


def run(opt: Optimizer, verbs: Verbs, bucket: Bucket, i: int) -> list[torch.Tensor]:
    """Run verbs on one tensor of a bucket, store what they wrote and return their sums."""
    every = opt.parts["step_size"].every if verbs == [("step_size", "measure")] else 1

    def body(frame: ElementFrame) -> list[Any]:
        sums: list[Any] = []
        for role, verb in verbs:
            out: Any = getattr(opt.parts[role], verb)(frame.place(role))
            if out is not None:
                sums += out if isinstance(out, tuple) else (out,)
        frame.commit()
        return [q.value if isinstance(q, Each) else q for q in sums]

    return summed(opt, bucket, i, body, every)


def summed(
    opt: Optimizer, bucket: Bucket, i: int, body: Callable[[ElementFrame], list[Any]], every: int = 1
) -> list[torch.Tensor]:
    """The sums of what a body gives for the elements of one tensor."""
    frames = (ElementFrame(opt, bucket, i, every, block) for block in _blocks(bucket, i, every))
    sums = [[values.sum(dtype=torch.float64) for values in body(frame)] for frame in frames]
    return [torch.stack(of_blocks).sum(0) for of_blocks in zip(*sums, strict=True)]


def _blocks(bucket: Bucket, i: int, every: int) -> list[slice] | list[None]:
    """The blocks of a tensor whose streams lie in one piece of memory each, in equal order; else it is one."""
    p, held = bucket.params[i], bucket.states[i]
    if every > 1 or bucket.device.type != "cpu" or p.numel() <= BLOCK:
        return [None]
    x, streams = local(p), [local(t) for t in (p.grad, *held.values()) if t is not None and t.dim()]
    if not in_one_block(x, streams):
        return [None]
    return [slice(first, first + BLOCK) for first in range(0, x.numel(), BLOCK)]

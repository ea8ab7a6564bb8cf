"""One step, from the gradients to the new parameters.

    guard        count what is not finite, add up |g|^2                             -> go on or not, the clip factor
    look         what a transform or direction must know of the whole gradient      -> decide
    accumulate   m, v <- g, weighted by keep, take (direction) and a, b (step size)
    reform       matrix math on whole tensors
    measure      what a step size, transform of the step or iterate must know       -> decide
    move         p <- where the iterate takes it, by x.base(w) = decay(w - size u), transforms around it
    remember     what is kept for the next step

Verbs that follow each other without a decision in between are one sweep over memory (`recipe.plan`), and the rewrites
of `recipe.fuse` save more. docs/step.md has the whole order in a picture.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportPrivateImportUsage=false
# torch's stubs leave types unknown, and its multi-tensor functions have private names.

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from untuned.memory import rounding, slots
from untuned.memory.buckets import Bucket, joined, local, row_count
from untuned.memory.now import Now
from untuned.parts.math import Reduced, where
from untuned.recipe.trace import Sums
from untuned.run import reduce
from untuned.run.decide import ScalarFrame
from untuned.run.eager import ElementFrame
from untuned.run.launch import Launch

Blocks = list[torch.Tensor]  # per bucket [tensors or rows, reductions]
Found = tuple[torch.Tensor, Blocks]  # [live tensors, reductions], and per bucket [rows, reductions]


def step(now: Now, launch: Launch) -> None:
    """Do one step: the stages of the plan, with a decision on what each has reduced."""
    begin(now, launch)
    for stages, sums, deciders in launch.plan:
        found = collected(now, sums, launch.run(now, stages, sums))
        # finite gradients may overflow in a sum: nothing changes from then on; after the last sweep, all has changed
        if now.recipe.skip_nonfinite and sums and stages is not launch.plan[-1][0]:
            bad = (~torch.isfinite(found[0])).sum(dtype=torch.float64)
            now.go_on_if(reduce.over_shards(bad, now.shard_group) == 0)
        for role, verb in deciders:
            # in one order on all ranks, since decisions may have collectives
            for part in dict.fromkeys(parts.get(role) for parts in now.recipe.variants.values()):
                if hasattr(part, verb):
                    decide(now, part, role, verb, sums, found, role in launch.in_numpy)


def begin(now: Now, launch: Launch) -> None:
    """Decide whether this step may change anything, remember the numbers, and advance the counters."""
    recipe, buckets = now.recipe, now.buckets
    for bucket in buckets:
        lr = bucket.group["lr"]  # as a tensor it freezes the group, or not, by a value only the device knows
        on = (lr != 0).reshape(()).to(bucket.device) if isinstance(lr, torch.Tensor) else None
        bucket.on = on if bucket.params or bucket.on is None else bucket.on & (True if on is None else on)
    if recipe.skip_nonfinite or recipe.clip_grad_norm is not None:
        guard = launch.guard.sums
        table = collected(now, guard, launch.run(now, launch.guarded, guard))[0]
        sums = reduce.over_shards(table.sum(0), now.shard_group)
        if recipe.skip_nonfinite:
            ok = (sums[0] == 0) & torch.isfinite(sums).all()  # a norm may overflow where no square does
            for value in (*now.signals.values(), *(() if now.loss is None else (now.loss,))):
                ok = ok & torch.isfinite(value)
            now.go_on_if(ok)
        if recipe.clip_grad_norm is not None:
            now.grad_norm = sums[1].sqrt()
            now.clip = (recipe.clip_grad_norm / (now.grad_norm + 1e-6)).clamp(max=1.0)  # torch's 1e-6
    for bucket in buckets:
        if not bucket.begun:
            slots.fill_start_slots(recipe, bucket)
    now.before = slots.remember_numbers(recipe, now.groups, buckets)
    first = now.groups[0]
    first["steps"].add_(now.on_any(buckets))
    for bucket in buckets:
        on = True if bucket.on is None else bucket.on
        bucket.t = bucket.numbers["step"].add_(on).double()
        if recipe.stochastic_rounding:
            bucket.noise = rounding.keys(first["steps"].to(bucket.device), bucket.positions)
        if recipe.corrects(bucket.parts) and bucket.params:
            frame = ElementFrame(now, bucket, 0)
            keep, take = bucket.parts["direction"].weight(frame.place("direction"))
            bucket.numbers["rho"].mul_(where(on, keep, 1.0)).add_(where(on, take, 0.0))


def collected(now: Now, sums: Sums, blocks: Blocks) -> Found:
    """The reductions of a sweep over all ranks that hold shards: [live tensors, reductions], and per bucket [rows,
    reductions] if the recipe has decisions of rows. Tensors of a group whose lr is a tensor of 0 give 0 to all."""
    ones = [one for of_role in sums.values() for one in of_role]
    if not ones:
        count = sum(len(bucket.params) for bucket in now.buckets)
        return torch.zeros((count, 0)), [block.to(now.device) for block in blocks]
    for i, bucket in enumerate(now.buckets):
        if bucket.on is not None and isinstance(bucket.group["lr"], torch.Tensor):
            blocks[i] = torch.where(bucket.on, blocks[i], torch.zeros_like(blocks[i]))
    of_rows = blocks if now.recipe.by_rows else []
    if now.recipe.by_rows:
        blocks = [_of_tensors(bucket, ones, block) for bucket, block in zip(now.buckets, blocks, strict=True)]
        for bucket, block in zip(now.buckets, of_rows, strict=True):
            block.copy_(reduce.over_groups(block, bucket.row_domain, ones))
    return reduce.gather(now.buckets, blocks, now.device, ones), [block.to(now.device) for block in of_rows]


def _of_tensors(bucket: Bucket, ones: list[Reduced], block: torch.Tensor) -> torch.Tensor:
    """The reductions of tensors from those of their rows; a shard without rows gives 0."""
    rows = block.split([row_count(local(p)) for p in bucket.params])
    if not rows:
        return block
    largest = torch.stack([torch.cat([t, t.new_zeros(1, len(ones))]).amax(0) for t in rows])
    return reduce.by_kind(ones, torch.stack([t.sum(0) for t in rows]), largest)


def decide(now: Now, part: Any, role: str, verb: str, sums: Sums, found: Found, in_numpy: bool) -> None:
    """Run the decision of a part, once for all tensors that it serves or once per group."""
    (table, of_rows), ones = found, sums.get(part, [])
    first = sum(len(sums[one]) for one in itertools.takewhile(lambda one: one is not part, sums))
    blocks = of_rows if part.scope == "row" else table.split([len(bucket.params) for bucket in now.buckets])
    with np.errstate(all="ignore"):  # as torch has it: what is not finite is not written
        for group in [None] if part.scope == "model" else now.groups:
            here = (i for i, b in enumerate(now.buckets) if group is None or b.group is group)
            mine = [i for i in here if now.buckets[i].parts.get(role) is part]
            if not mine:
                continue
            frame = ScalarFrame(now, role, [now.buckets[i] for i in mine], in_numpy)
            values = joined([blocks[i] for i in mine])
            columns = [frame.as_held(values)[:, first + j] for j in range(len(ones))]
            apart = [one.each or part.scope in ("tensor", "row") for one in ones]
            added = _added(frame, [(one, c) for one, c, each in zip(ones, columns, apart, strict=True) if not each])
            given = (column if each else next(added) for column, each in zip(columns, apart, strict=True))
            getattr(part, verb)(frame.place(role), *given)
            frame.commit()


def _added(frame: ScalarFrame, columns: list[tuple[Reduced, Any]]) -> Iterator[Any]:
    """Reductions over this process's tensors, and in one collective over the ranks if these hold different tensors."""
    values = [column.max() if one.kind == "max" and len(column) else column.sum() for one, column in columns]
    if frame.now.shard_group is None or not values:
        return iter(values)
    packed, ones = torch.stack([torch.as_tensor(value) for value in values]), [one for one, _ in columns]
    return iter(frame.as_held(reduce.over_shards(packed, frame.now.shard_group, ones)))

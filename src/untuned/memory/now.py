"""What one step knows: its inputs, the tensors that take part, and the numbers from before it."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportPrivateImportUsage=false
# torch's stubs leave types unknown, and its multi-tensor functions have private names.

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from untuned.memory.buckets import Bucket, joined, number_from
from untuned.recipe.recipe import Group, Recipe


@dataclasses.dataclass(eq=False)
class Now:
    """One step in the making. `buckets`: the tensors that take part. All scalars are float64 on `device`."""

    recipe: Recipe
    groups: list[Group]
    device: torch.device
    shard_group: Any = None  # the process group whose ranks hold different parameters as plain tensors
    buckets: list[Bucket] = dataclasses.field(default_factory=list)
    loss: torch.Tensor | None = None
    ids: torch.Tensor | None = None
    signals: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    before: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)  # see memory.slots.remember_numbers
    clip: Any = 1.0  # the factor of the gradients
    grad_norm: torch.Tensor | None = None  # before clipping

    @property
    def top(self) -> Any:
        """The largest lr of all groups; a group's own lr relative to it is how fast the group is to move."""
        lrs = [group["lr"] for group in self.groups]
        if any(isinstance(lr, torch.Tensor) for lr in lrs):
            return torch.stack([number_from(lr, self.device).detach().reshape(()) for lr in lrs]).amax()
        return max(lrs)

    def on_any(self, buckets: list[Bucket]) -> Any:
        """Whether any of these buckets may change: True, or a 0-dim bool tensor."""
        flags = [b.on for b in buckets if b.on is not None]
        return torch.stack([f.to(self.device) for f in flags]).any() if len(flags) == len(buckets) else True

    def on_rows(self, buckets: list[Bucket], counts: list[int]) -> Any:
        """The same for every tensor of these buckets, or every row: True, or a bool vector of that many for each."""
        if all(b.on is None for b in buckets):
            return True
        flags = [torch.ones((), dtype=torch.bool) if b.on is None else b.on for b in buckets]
        return joined([f.to(self.device).expand(n) for f, n in zip(flags, counts, strict=True)])

    def go_on_if(self, flag: torch.Tensor) -> None:
        """Let buckets change only where the flag holds too, and count the step as skipped if it does not."""
        self.groups[0]["skipped"].add_(self.on_any(self.buckets) & ~flag)
        for bucket in self.buckets:
            here = flag.to(bucket.device)
            bucket.on = here if bucket.on is None else bucket.on & here

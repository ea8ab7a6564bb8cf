"""The parameters of a recorder as a few flat vectors, one per group and device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from untuned.diagnostics.trajectory_measures import ALL, By, grouping
from untuned.wrappers.weights import is_sharded, kind_of, local

BLOCK = 1 << 10  # elements whose squares are added up in the dtype of the vectors
PIECE = BLOCK << 12  # elements of which products are in memory at once


def parameters_of(target: Any, title: str) -> dict[str, Tensor]:
    """The parameters of a model, or those of pairs of name and parameter, each once. Raises TypeError or ValueError."""
    pairs: Iterable[Any] = target.named_parameters() if isinstance(target, nn.Module) else target
    if isinstance(pairs, Tensor | str) or not isinstance(pairs, Iterable):
        raise TypeError(f"{title} takes a model or pairs of name and parameter, not {kind_of(target)}.")
    found, seen = dict[str, Tensor](), set[int]()
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], Tensor)):
            raise TypeError(f"{title} takes a model or pairs of name and parameter, not {kind_of(pair)} among them.")
        name, p = pair
        if isinstance(p, nn.UninitializedParameter) or p.is_meta:
            raise ValueError(f"{title}: '{name}' has no values yet; initialise the model first.")
        if not (p.is_floating_point() or p.is_complex()):
            raise TypeError(f"{title}: '{name}' holds {p.dtype}, not real or complex numbers; leave it out.")
        if is_sharded(p) and any(at.is_partial() for at in p.placements):
            raise ValueError(f"{title}: '{name}' is a sum of which every rank holds a part; shard or replicate it.")
        if id(p) not in seen:
            seen.add(id(p))
            found[name] = p
    return found


def wide(x: Tensor) -> Tensor:
    """x in float64; on the CPU if its device has no float64."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def square(x: Tensor) -> Tensor:
    """|x|^2 of a vector of whole blocks, which are summed in their dtype; the blocks are added up in float64."""
    return wide(torch.linalg.vector_norm(x.view(-1, BLOCK), dim=1)).square().sum()


def product(x: Tensor, y: Tensor) -> Tensor:
    """<x, y> of two vectors of whole blocks, summed as in `square`."""
    parts = [(a * b).view(-1, BLOCK).sum(1) for a, b in zip(x.split(PIECE), y.split(PIECE), strict=True)]
    return wide(torch.cat(parts)).sum()


class Segment:
    """Parameters of one group on one device as one vector; of sharded parameters, this rank's part of it.

    Five vectors, with zeros at the end up to a whole block, are kept: `start` (theta_0), `point` (the last one),
    `update` (that led to it), `spare` and `sum` (of the unit vectors of the whole model), and `group_sum` where there
    are groups.
    """

    def __init__(self, group: str, mesh: Any, device: torch.device) -> None:
        self.group, self.mesh, self.device = group, mesh, device
        self.names: list[str] = []
        self.parameters: list[Tensor] = []

    def begin(self, grouped: bool) -> None:
        """Take the values that the parameters have now as theta_0."""
        counted = [local(p.detach()) for p in self._counted()]
        double = any(p.dtype in (torch.float64, torch.complex128) for p in self.parameters)
        size = sum(p.numel() * (2 if p.is_complex() else 1) for p in counted)
        self.size, whole = size, -(-size // BLOCK) * BLOCK
        self.start = torch.zeros(whole, dtype=torch.float64 if double else torch.float32, device=self.device)
        self.point, self.update, self.spare, self.sum = (torch.zeros_like(self.start) for _ in range(4))
        self.group_sum = torch.zeros_like(self.start) if grouped else None
        self.start.copy_(self.read())
        self.point.copy_(self.start)

    def _counted(self) -> list[Tensor]:
        """The parameters of which this rank has a part of its own: of what is replicated over ranks, one has it."""
        if self.mesh is None:
            return self.parameters
        at = self.mesh.get_coordinate()
        return [p for p in self.parameters if at is not None and _is_first(at, p)]

    def read(self) -> Tensor:
        """The point at which the parameters are now, in `spare`."""
        at = 0
        for p in self._counted():
            p = local(p.detach())
            flat = (torch.view_as_real(p) if p.is_complex() else p).reshape(-1)
            self.spare[at : at + flat.numel()].copy_(flat)
            at += flat.numel()
        return self.spare

    def move(self) -> Tensor:
        """Go on to the point in `spare`; [3]: |theta - theta_0|^2, |update|^2 and <update, update before>.

        `update` is kept with its sign turned, as the one before was, so that no vector has to be copied.
        """
        update = self.point.sub_(self.spare)
        found = [square(update), product(update, self.update)]
        self.point, self.update, self.spare = self.spare, update, self.update
        torch.sub(self.point, self.start, out=self.spare)
        return torch.stack([square(self.spare), *found])

    def add_direction(self, center: str, length: float, of_group: float) -> None:
        """Add the unit vector from the centre, of the whole model and of the group; called after `move`."""
        direction = self.point if center == "origin" else self.spare
        if length > 0:
            self.sum.add_(direction, alpha=1 / length)
        if self.group_sum is not None and of_group > 0:
            self.group_sum.add_(direction, alpha=1 / of_group)

    def sums(self) -> Tensor:
        """[2]: the squares of the sums of unit vectors, of the whole model and of the group."""
        whole = square(self.sum)
        return torch.stack([whole, whole if self.group_sum is None else square(self.group_sum)])

    def state(self) -> dict[str, Tensor]:
        named = {"start": self.start, "point": self.point, "update": self.update, "sum": self.sum}
        return named if self.group_sum is None else named | {"group_sum": self.group_sum}

    def restore(self, saved: dict[str, Tensor]) -> None:
        for name, value in saved.items():
            getattr(self, name).copy_(value)


def _is_first(at: list[int], p: Any) -> bool:
    """Whether the rank at this place of the mesh is the first of those that hold the same part of p."""
    return all(k == 0 or not where.is_replicate() for k, where in zip(at, p.placements, strict=True))


def of(parameters: dict[str, Tensor], groups: By, title: str) -> list[Segment]:
    """The parameters by group, device and mesh, in the order in which they come first."""
    group_of, found = grouping(groups, title), dict[Any, Segment]()
    for name, p in parameters.items():
        group = group_of(name)
        if group is None:
            continue
        if groups is not None and group == ALL:
            raise ValueError(f"{title}: no group may be named {ALL!r}, which is that of all parameters.")
        mesh = p.device_mesh if is_sharded(p) else None
        segment = found.setdefault((group, p.device, mesh), Segment(group, mesh, p.device))
        segment.names.append(name)
        segment.parameters.append(p)
    if not found:
        raise ValueError(f"{title} has no parameter to look at.")
    return list(found.values())


def over_ranks(segments: list[Segment], values: list[Tensor]) -> NDArray[np.float64]:
    """Numbers of each segment, [segments, numbers], added up over the ranks that share sharded ones."""
    for mesh in dict.fromkeys(segment.mesh for segment in segments if segment.mesh is not None):
        mine = [i for i, segment in enumerate(segments) if segment.mesh is mesh or segment.mesh == mesh]
        total = torch.stack([values[i] for i in mine])
        for k in range(mesh.ndim):
            dist.all_reduce(total, group=mesh.get_group(k))
        for i, value in zip(mine, total, strict=True):
            values[i] = value
    return np.stack([value.cpu().numpy() for value in values])

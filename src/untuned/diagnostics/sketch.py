"""Points in a few numbers each, from which their inner products can be read: a random-sign sketch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from untuned.diagnostics.segments import Segment, wide


class Sketch:
    """S (theta - theta_0) of each point, and S theta_0: S multiplies every element by a random sign of its own and adds
    up those whose places agree modulo `size`, so that <S x, S y> is <x, y> on average.

    The standard deviation is about sqrt((|x|^2 |y|^2 + <x, y>^2) / size) where no few elements make up x and y. S is
    linear and fixed by `seed`: what is sketched is the difference to theta_0, taken before any rounding, and the sketch
    of a vector over several tensors or ranks is the sum of theirs. At most `most` points are kept; when there are more,
    every second is dropped, and only every second, fourth, ... is taken from there on.
    """

    def __init__(self, segments: list[Segment], size: int, most: int, seed: int) -> None:
        self.segments, self.size, self.most, self.seed = segments, size, most, seed
        self.stride = 1
        self.points: list[int] = []  # which of the recorded points are kept
        self.moves: list[NDArray[np.float64]] = []

    def begin(self, start: NDArray[np.float64]) -> None:
        self.start = start

    def of_start(self) -> list[Tensor]:
        """S theta_0 of each segment, this rank's part."""
        self.signs, self.shifts = [], []
        for i, segment in enumerate(self.segments):
            rank = [] if segment.mesh is None else [int(k) + 1 for k in segment.mesh.get_coordinate() or []]
            draw = np.random.default_rng([self.seed, i, *rank])
            signs = draw.integers(0, 2, segment.start.numel(), dtype=np.int8) * 2 - 1
            self.signs.append(torch.from_numpy(signs.astype(np.int8)).to(segment.device))
            self.shifts.append(int(draw.integers(self.size)))
        return [self._of(i, segment.start) for i, segment in enumerate(self.segments)]

    def of_moves(self) -> list[Tensor]:
        """S (theta - theta_0) of each segment, which has it in `spare` after a move."""
        return [self._of(i, segment.spare) for i, segment in enumerate(self.segments)]

    def _of(self, i: int, x: Tensor) -> Tensor:
        signed, whole = x * self.signs[i], x.numel() // self.size * self.size
        found = wide(signed[:whole].view(-1, self.size).sum(0))
        found[: x.numel() - whole] += wide(signed[whole:])
        return found.roll(self.shifts[i])

    def wants(self, point: int) -> bool:
        return point % self.stride == 0

    def keep(self, move: NDArray[np.float64]) -> None:
        """Keep the sketch of the next point that is wanted."""
        self.points.append(self.points[-1] + self.stride if self.points else 0)
        self.moves.append(move)
        if len(self.points) > self.most:
            self.points, self.moves, self.stride = self.points[::2], self.moves[::2], 2 * self.stride

    def gram(self, center: str) -> NDArray[np.float64]:
        """Inner products of the kept points as seen from the centre, [points, points]."""
        points = np.stack(self.moves) + (self.start if center == "origin" else 0)
        return points @ points.T

    def state(self) -> dict[str, Any]:
        moves = torch.from_numpy(np.stack(self.moves))
        return {"stride": self.stride, "points": list(self.points), "moves": moves, "start": torch.tensor(self.start)}

    def restore(self, saved: dict[str, Any]) -> None:
        self.stride, self.points = saved["stride"], list(saved["points"])
        self.moves, self.start = list(saved["moves"].numpy().copy()), saved["start"].numpy().copy()

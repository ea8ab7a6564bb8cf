"""The two problems of arXiv 2106.02985 on which momentum leaves a saddle, with exact derivatives; runs side by side.

The parameter `w` has shape [runs, d], and every run has data and samples of its own, drawn from its seed alone: what a
run does depends neither on how many there are nor on the momentum. Numbers are float64.
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Problem(nn.Module, abc.ABC):
    """f = the mean over n samples of a loss. `forward(index)` sums it over runs, on samples [runs, batch] or on all."""

    n: int  # samples of each run
    w: nn.Parameter  # [runs, d], where the runs are

    def __init__(self, seeds: Sequence[int]) -> None:
        super().__init__()
        self.seeds = tuple(seeds)
        self._random = [np.random.default_rng(seed) for seed in self.seeds]  # data, where it starts, samples

    @abc.abstractmethod
    def arrived(self, w: Tensor) -> Tensor:
        """Which runs are where the study ends: [runs]."""

    @abc.abstractmethod
    def shown(self, w: Tensor) -> Tensor:
        """Two numbers of each run to draw: [runs, 2]."""

    @abc.abstractmethod
    def losses(self, w: Tensor, index: Tensor | None = None) -> Tensor:
        """[runs, d], on samples [runs, batch] or all -> [runs]."""

    @abc.abstractmethod
    def gradient(self, w: Tensor, index: Tensor | None = None) -> Tensor:
        """[runs, d], on samples [runs, batch] or all -> [runs, d]."""

    @abc.abstractmethod
    def hessian(self, w: Tensor) -> Tensor:
        """[runs, d] -> [runs, d, d]."""

    def forward(self, index: Tensor | None = None) -> Tensor:
        return self.losses(self.w, index).sum()

    def samples(self, batch: int = 1, block: int = 1024) -> Iterator[Tensor]:
        """Samples [runs, batch] for one step after the other, drawn with replacement; the same in every pass."""
        generators = copy.deepcopy(self._random)
        while True:
            drawn = np.stack([g.integers(self.n, size=(block, batch)) for g in generators], axis=1)
            yield from torch.from_numpy(drawn)

    def _of(self, data: Tensor, index: Tensor | None) -> Tensor:
        """The chosen samples of data [runs, n, ...] -> [runs, batch, ...]."""
        if index is None:
            return data
        return data[torch.arange(len(data))[:, None], index]

    def _keep(self, **data: Any) -> None:
        for name, array in data.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(array)))


class Saddle(Problem):
    """f = mean_i [w'Hw / 2 + b_i'w + |w|_10^10], H = diag(1, -0.1), b_i ~ N(0, diag(0.1, 0.001)), n = 10, w_0 = 0.

    `noise` multiplies the b_i. With 0 the valleys end at w = (0, +-0.01^(1/8)), where f = -0.01265.
    """

    n = 10
    b: Tensor
    curvature: Tensor
    depth: Tensor  # f in the valleys at w2 < 0 and at w2 > 0, [runs, 2]

    def __init__(self, seeds: Sequence[int], noise: float = 1.0) -> None:
        super().__init__(seeds)
        draw = [g.normal(size=(self.n, 2)) for g in self._random]
        self._keep(b=noise * np.stack(draw) * np.sqrt([0.1, 0.001]), curvature=np.array([1.0, -0.1]))
        self.w = nn.Parameter(torch.zeros(len(self.seeds), 2, dtype=torch.float64))
        ends = self.valleys()
        self._keep(depth=torch.stack([self.losses(ends[:, side]) for side in (0, 1)], dim=1).numpy())

    def losses(self, w: Tensor, index: Tensor | None = None) -> Tensor:
        return (self.curvature * w**2 / 2 + self._of(self.b, index).mean(1) * w + w**10).sum(-1)

    def gradient(self, w: Tensor, index: Tensor | None = None) -> Tensor:
        return self.curvature * w + self._of(self.b, index).mean(1) + 10 * w**9

    def hessian(self, w: Tensor) -> Tensor:
        return torch.diag_embed(self.curvature + 90 * w**8)

    def valleys(self) -> Tensor:
        """The minima of f at w2 < 0 and at w2 > 0, [runs, 2, d], by Newton's method from outside."""
        w = torch.tensor([[0.9, -0.9], [0.9, 0.9]], dtype=torch.float64).repeat(len(self.seeds), 1, 1)
        b = self.b.mean(1)[:, None]
        w[..., 0] *= -b[..., 0].sign() + (b[..., 0] == 0)  # f is convex in w1: from the side on which its minimum lies
        for _ in range(60):
            w = w - (self.curvature * w + b + 10 * w**9) / (self.curvature + 90 * w**8)
        return w

    def shown(self, w: Tensor) -> Tensor:
        return w

    def arrived(self, w: Tensor) -> Tensor:
        """Which runs have covered half of the descent from f(0) = 0 to the valley they are in: [runs]."""
        here = self.depth.gather(1, (w[:, 1] > 0).long()[:, None])[:, 0]
        return self.losses(w) <= here / 2


class PhaseRetrieval(Problem):
    """f = mean_i ((a_i'w)^2 - y_i)^2, y_i = (a_i'w*)^2, a_i ~ N(0, I), w* ~ N(0, I / d), w_0 ~ N(0, I / (10000 d))."""

    n, d = 200, 10
    a: Tensor
    y: Tensor
    solution: Tensor

    def __init__(self, seeds: Sequence[int]) -> None:
        super().__init__(seeds)
        solution = np.stack([g.normal(size=self.d) for g in self._random]) / np.sqrt(self.d)
        a = np.stack([g.normal(size=(self.n, self.d)) for g in self._random])
        self._keep(a=a, solution=solution, y=np.einsum("rnd,rd->rn", a, solution) ** 2)
        start = np.stack([g.normal(size=self.d) for g in self._random]) / np.sqrt(1e4 * self.d)
        self.w = nn.Parameter(torch.from_numpy(start))

    def _inner(self, w: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        a = self._of(self.a, index)
        return a, (a @ w[..., None])[..., 0], self._of(self.y, index)

    def losses(self, w: Tensor, index: Tensor | None = None) -> Tensor:
        _, q, y = self._inner(w, index)
        return ((q**2 - y) ** 2).mean(1)

    def gradient(self, w: Tensor, index: Tensor | None = None) -> Tensor:
        a, q, y = self._inner(w, index)
        return 4 * (((q**2 - y) * q)[..., None] * a).mean(1)

    def hessian(self, w: Tensor) -> Tensor:
        a, q, y = self._inner(w, None)
        return a.mT @ (4 * (3 * q**2 - y)[..., None] * a) / self.n

    def shown(self, w: Tensor) -> Tensor:
        """The error and f."""
        return torch.stack([self.error(w), self.losses(w)], -1)

    def arrived(self, w: Tensor) -> Tensor:
        """Which runs have an error of at most a tenth."""
        return self.error(w) <= 0.1

    def error(self, w: Tensor) -> Tensor:
        """min over the sign of |w -+ w*| / |w*|: [runs]."""
        far = torch.stack([(w - self.solution).norm(dim=-1), (w + self.solution).norm(dim=-1)])
        return far.amin(0) / self.solution.norm(dim=-1)


def growth(beta: float, eta: float, curvature: float) -> float:
    """By what share a step with momentum grows the distance from a saddle, along a direction of -`curvature`.

    The larger root of z^2 - (1 + beta + eta curvature) z + beta, minus 1; about eta curvature / (1 - beta) while that
    is far below 1 - beta.
    """
    half = (1 - beta - eta * curvature) / 2
    return (half**2 + eta * curvature) ** 0.5 - half

"""A physics-informed network: the Helmholtz equation on a square, with a known solution."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from .task import Task, evaluating, seeded

Points = tuple[Tensor, Tensor]
"""Points inside the square and on its boundary, each (n, 2)."""


class HelmholtzPINN(Task):
    """Solve Lu = u_xx + u_yy + u = f on [-1, 1]², u = 0 on the boundary, with a tanh network for u(x, y).

    f is chosen such that u = sin(pi x) sin(2 pi y), one of the problems on which Wang, Teng & Perdikaris
    (arXiv 2001.04536, with sin(4 pi y)) show why such losses are stiff: the second derivatives make them
    ill-conditioned. Loss: mean square of (Lu - f) / SCALE inside plus mean square of u on the boundary, at points drawn
    anew for every batch; SCALE, the amplitude of f, makes both of the size of u². Both vanish at the solution.
    `val_loss` is the same on a fixed grid, the metric the error of u there relative to u, in the Euclidean norm.

    The first layer starts with deviation 2 instead of torch's 0.4, so that its features vary over the square.
    """

    name = "helmholtz-pinn"
    title = "Physics-informed tanh network, 2-64-64-64-1, for a Helmholtz equation"
    metric = "val_relative_error"
    maximize = False
    chance = 1.0  # of u = 0
    batch_size = 512
    epochs = 10

    BATCHES = 50
    BOUNDARY = 128
    SCALE = 5 * math.pi**2 - 1

    def __init__(self) -> None:
        line = torch.linspace(-1, 1, 23)
        grid = torch.cartesian_prod(line, line)
        inside = grid.abs().amax(1) < 1
        self.val: Points = grid[inside], grid[~inside]

    def model(self, seed: int) -> nn.Module:
        with seeded(seed):
            first = nn.Linear(2, 64)
            nn.init.normal_(first.weight, std=2)
            nn.init.uniform_(first.bias, -2, 2)
            return nn.Sequential(
                first, nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)
            )

    def batches(self, seed: int, epoch: int) -> Iterator[Points]:
        """Uniform points: `batch_size` inside the square and BOUNDARY on its four sides."""
        random = np.random.default_rng([seed, epoch])
        for _ in range(self.BATCHES):
            inside = torch.from_numpy(random.uniform(-1, 1, (self.batch_size, 2)).astype(np.float32))
            boundary = torch.from_numpy(random.uniform(-1, 1, (self.BOUNDARY, 2)).astype(np.float32))
            side = torch.from_numpy(random.integers(4, size=self.BOUNDARY))
            boundary[torch.arange(self.BOUNDARY), side // 2] = (2 * (side % 2) - 1).float()
            yield inside, boundary

    def loss(self, model: nn.Module, batch: Points) -> Tensor:
        inside, boundary = batch
        return (residual(model, inside) / self.SCALE).square().mean() + model(boundary).square().mean()

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        with evaluating(model):
            with torch.enable_grad():  # the residual takes derivatives by x and y
                loss = self.loss(model, self.val).item()
            found, u = model(self.val[0])[:, 0], solution(self.val[0])
            return {"val_loss": loss, "val_relative_error": ((found - u).norm() / u.norm()).item()}


def solution(points: Tensor) -> Tensor:
    """u = sin(pi x) sin(2 pi y) at points (n, 2): (n,)."""
    return (math.pi * points[:, 0]).sin() * (2 * math.pi * points[:, 1]).sin()


def residual(model: nn.Module, points: Tensor) -> Tensor:
    """u_xx + u_yy + u - f at points (n, 2) for u = model(points) of shape (n, 1): (n,)."""
    points = points.detach().requires_grad_()
    u = model(points)[:, 0]
    (slope,) = torch.autograd.grad(u.sum(), points, create_graph=True)
    laplacian = sum(torch.autograd.grad(slope[:, i].sum(), points, create_graph=True)[0][:, i] for i in (0, 1))
    f = (1 - 5 * math.pi**2) * solution(points.detach())
    return laplacian + u - f

"""What a coherent Ising machine solves: quadratic functions on the unit box, and Ising problems as such functions."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


def _finite(values: Tensor, what: str) -> Tensor:
    values = torch.as_tensor(values).detach().to(dtype=torch.float64)
    if not bool(values.isfinite().all()):
        raise ValueError(f"{what} has entries that are not finite.")
    return values


def _square(matrix: Tensor, what: str) -> Tensor:
    matrix = _finite(matrix, what)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] == 0:
        raise ValueError(f"{what} must be a square matrix, not of shape {tuple(matrix.shape)}.")
    return matrix


@dataclass(frozen=True)
class BoxQP:
    """Minimise f(x) = x'Qx + V'x + constant over x in [0, 1]^n: arXiv 2401.12135, equation (2) there.

    Q: [n, n], of which only the symmetric part matters and is kept; V: [n]; both in float64. `optimum`: the least value
    of f if it is known, else None; `proven` says whether it is known for certain, or is the best that was found.
    Raises ValueError in one sentence for a matrix that is not square, a vector of another length and entries that are
    not finite.

    >>> import torch
    >>> problem = BoxQP(torch.tensor([[1.0, 0.0], [0.0, -1.0]]), torch.tensor([-1.0, 0.0]), optimum=-1.25)
    >>> problem.value(torch.tensor([[0.5, 1.0], [0.0, 0.0]])).tolist()
    [-1.25, 0.0]
    """

    Q: Tensor
    V: Tensor
    optimum: float | None = None
    constant: float = 0.0
    name: str = "BoxQP"
    proven: bool = True

    def __post_init__(self) -> None:
        Q, V = _square(self.Q, f"{self.name}: Q"), _finite(self.V, f"{self.name}: V")
        if V.shape != Q.shape[:1]:
            raise ValueError(
                f"{self.name}: V must have {len(Q)} entries as Q has rows, not the shape {tuple(V.shape)}."
            )
        object.__setattr__(self, "Q", (Q + Q.T) / 2)
        object.__setattr__(self, "V", V)

    @property
    def n(self) -> int:
        """The number of variables."""
        return len(self.V)

    def value(self, x: Tensor) -> Tensor:
        """f(x) for x of shape [..., n], in float64, of shape [...]; infinite where x is not finite."""
        x = x.to(torch.float64)
        value = ((x @ self.Q + self.V) * x).sum(-1) + self.constant
        return value.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=torch.inf)

    def gradient(self, x: Tensor) -> Tensor:
        """2 Q x + V for x of shape [..., n], in float64, of the same shape."""
        return 2 * x.to(torch.float64) @ self.Q + self.V

    def answer(self, x: Tensor) -> Tensor:
        """What a point of the box, [..., n], stands for: itself."""
        return x

    def box(self) -> BoxQP:
        """The problem on the box that a solver follows: this one."""
        return self

    def scaled(self, factor: float) -> BoxQP:
        """The same problem with every coefficient, and so every value, times `factor` > 0."""
        if not factor > 0:
            raise ValueError(f"{self.name}: the factor must be positive, not {factor!r}.")
        optimum = None if self.optimum is None else factor * self.optimum
        return replace(self, Q=factor * self.Q, V=factor * self.V, constant=factor * self.constant, optimum=optimum)


@dataclass(frozen=True)
class Ising:
    """Minimise the energy -1/2 s'Js over spins s in {-1, 1}^n. An extension: the paper solves BoxQP alone.

    J: [n, n], symmetric with a zero diagonal, float64. `optimum`: the least energy if known. Raises ValueError in one
    sentence for any other matrix. With a zero diagonal the energy is linear in each spin, so its least value over the
    cube [-1, 1]^n is that over the spins, and the problem is one on the box with s = 2x - 1: `box()`. A solver's point
    is rounded, `answer(x)`, before its value counts.

    >>> import torch
    >>> pair = Ising(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    >>> pair.energy(torch.tensor([[1, 1], [1, -1]])).tolist()
    [-1.0, 1.0]
    """

    J: Tensor
    optimum: float | None = None
    name: str = "Ising"
    proven: bool = True
    _box: BoxQP = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        J = _square(self.J, f"{self.name}: J")
        if not torch.equal(J, J.T):
            i, j = (J != J.T).nonzero()[0].tolist()
            raise ValueError(f"{self.name}: J must be symmetric, but J[{i}, {j}] and J[{j}, {i}] differ.")
        if J.diagonal().any():
            i = int(J.diagonal().nonzero()[0])
            raise ValueError(f"{self.name}: J must have a zero diagonal, but J[{i}, {i}] = {float(J[i, i]):g}.")
        object.__setattr__(self, "J", J)
        box = BoxQP(-2 * J, 2 * J.sum(1), self.optimum, -0.5 * float(J.sum()), self.name, self.proven)
        object.__setattr__(self, "_box", box)

    @property
    def n(self) -> int:
        """The number of spins."""
        return len(self.J)

    def energy(self, s: Tensor) -> Tensor:
        """-1/2 s'Js for s of shape [..., n], in float64, of shape [...]."""
        s = s.to(torch.float64)
        return -0.5 * ((s @ self.J) * s).sum(-1)

    def cut(self, s: Tensor) -> Tensor:
        """The weight of the edges between the two sides, for s of shape [..., n], where the weights are -J.

        Cut = (sum of all weights - energy) / 2, so the least energy is the largest cut.
        """
        return (-self.J.sum() / 2 - self.energy(s)) / 2

    def box(self) -> BoxQP:
        """The same problem on the unit box, with s = 2x - 1; the values are the energies."""
        return self._box

    def answer(self, x: Tensor) -> Tensor:
        """The corner of the box that a point of it, [..., n], is rounded to: 1 from 1/2 on, else 0; NaN stays."""
        return torch.where(x.isnan(), x, (x >= 0.5).to(x.dtype))

    def spins(self, x: Tensor) -> Tensor:
        """The spins, -1 or 1, that a point of the box, [..., n], is rounded to."""
        return 2 * self.answer(x) - 1


Problem = BoxQP | Ising


def max_cut(weights: Tensor, optimum_cut: float | None = None, name: str = "Max-Cut", proven: bool = True) -> Ising:
    """Max-Cut as an Ising problem: J = -weights.

    `weights`: [n, n], symmetric, zero diagonal. `optimum_cut`: the weight of the largest cut if known.

    >>> import torch
    >>> triangle = max_cut(1.0 - torch.eye(3), optimum_cut=2)
    >>> triangle.optimum, triangle.cut(torch.tensor([1, 1, -1])).item()
    (-1.0, 2.0)
    """
    problem = Ising(-torch.as_tensor(weights, dtype=torch.float64), None, name, proven)
    if optimum_cut is None:
        return problem
    return replace(problem, optimum=-float(problem.J.sum()) / 2 - 2 * optimum_cut)

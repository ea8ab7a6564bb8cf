"""Exact answers: all spins, all faces of the box, and branch and bound, which proves the optimum of sparse problems."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from untuned.systems.ising.problems import BoxQP, Ising


def brute_force(problem: Ising) -> tuple[float, Tensor]:
    """The least energy of an Ising problem of at most 20 spins, by trying all of them, and the spins that have it.

    Returns the energy and all ground states, [states, n], one of each pair s, -s (that with s_n = 1). Raises ValueError
    for more than 20 spins.
    """
    if problem.n > 20:
        raise ValueError(f"{problem.name}: brute force tries 2^(n-1) states, so n is at most 20, not {problem.n}.")
    free = torch.arange(problem.n - 1)
    energies: list[Tensor] = []
    chunks = torch.arange(2 ** (problem.n - 1)).split(2**15)
    states = [_states(codes, free) for codes in chunks]
    for s in states:
        energies.append(problem.energy(s))
    energy = torch.cat(energies)
    least = energy.min()
    tied = energy <= least + 1e-9 * (1 + least.abs())
    return float(least), torch.cat(states)[tied]


def _states(codes: Tensor, bits: Tensor) -> Tensor:
    s = 2.0 * ((codes[:, None] >> bits) & 1).double() - 1
    return torch.cat([s, s.new_ones(len(s), 1)], 1)


def active_sets(problem: BoxQP) -> tuple[float, Tensor]:
    """The least value of a BoxQP of at most 12 variables, and a point that has it, from all 3^n faces of the box.

    On a face, some variables are 0 or 1 and the others solve 2 Q_FF x_F = -(V + 2 Q_FB x_B)_F. A minimum inside a face
    with a singular Q_FF has its value at a smaller face too, so those systems are left out. Raises ValueError for more
    than 12 variables.
    """
    if problem.n > 12:
        raise ValueError(f"{problem.name}: this tries 3^n faces, so n is at most 12, not {problem.n}.")
    n, Q, V = problem.n, problem.Q, problem.V
    best, where = torch.inf, torch.zeros(n, dtype=torch.float64)
    for code in range(2**n):
        free = torch.tensor([bool(code >> i & 1) for i in range(n)])
        bound = (~free).nonzero()[:, 0]
        corners = ((torch.arange(2 ** len(bound))[:, None] >> torch.arange(len(bound))) & 1).double()
        x = torch.zeros(len(corners), n, dtype=torch.float64)
        x[:, bound] = corners
        if free.any():
            H = 2 * Q[free][:, free]
            if float(torch.linalg.eigvalsh(H)[0]) <= 1e-10 * float(Q.abs().max()):
                continue  # not a strict minimum within the face
            right = -(V[free] + 2 * corners @ Q[bound][:, free])
            x[:, free] = torch.linalg.solve(H, right.T).T
            x = x[((x >= 0) & (x <= 1)).all(1)]
        if len(x):
            values = problem.value(x)
            at = int(values.argmin())
            if float(values[at]) < best:
                best, where = float(values[at]), x[at]
    return best, where


def prove(problem: BoxQP, nodes: int = 20_000) -> tuple[float, Tensor, bool]:
    """The least value of a BoxQP, a point that has it, and whether that is proven, by branch and bound (HiGHS).

    At a minimum 2 Q x + V = y - z with y, z >= 0, y x = 0 and z (1 - x) = 0, so there f = (V'x - 1'z) / 2, which is
    linear: a mixed-integer linear problem whose switches say which of x, y and z, 1 - x are 0 (Vandenbussche and
    Nemhauser 2005). Where Q_ii <= 0 f is concave in x_i, and x_i is 0 or 1. Sparse problems of 60 variables take
    seconds. Not proven after `nodes` nodes. Needs scipy, of the extra `study`; without it, ImportError says so.
    """
    try:
        import numpy as np
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import bmat, diags_array, eye_array
    except ImportError as error:
        raise ImportError('prove() needs scipy: pip install "untuned[study]"') from error
    Q, V, n = problem.Q.numpy(), problem.V.numpy(), problem.n
    G, one, zero = 2 * Q, eye_array(n), None
    most_y = np.maximum(0, V + np.maximum(G, 0).sum(1))
    most_z = np.maximum(0, -V - np.minimum(G, 0).sum(1))
    rows: list[Any] = [  # variables: x, y, z, a (y may be positive, and x = 0), b (z may be positive, and x = 1)
        ([G, -one, one, zero, zero], -V, -V),
        ([zero, one, zero, -diags_array(most_y), zero], -np.inf, 0.0),
        ([zero, zero, one, zero, -diags_array(most_z)], -np.inf, 0.0),
        ([one, zero, zero, one, zero], -np.inf, 1.0),
        ([one, zero, zero, zero, -one], 0.0, np.inf),
    ]
    matrix = bmat([row for row, _, _ in rows], format="csr")
    low, high = (np.concatenate([np.broadcast_to(row[side], n) for row in rows]) for side in (1, 2))
    whole = np.concatenate([Q.diagonal() <= 0, np.zeros(2 * n), np.ones(2 * n)])
    limits: list[Any] = [low, high, np.zeros(5 * n), np.concatenate([np.ones(n), most_y, most_z, np.ones(2 * n)])]
    found = milp(
        np.concatenate([V / 2, np.zeros(n), -np.ones(n) / 2, np.zeros(2 * n)]),
        constraints=LinearConstraint(matrix, *limits[:2]),
        integrality=whole,
        bounds=Bounds(*limits[2:]),
        options={"node_limit": nodes, "mip_rel_gap": 1e-9},
    )
    if found.x is None:
        return torch.inf, torch.full((n,), torch.nan, dtype=torch.float64), False
    x = torch.from_numpy(found.x[:n].copy()).clamp(0, 1)
    return float(problem.value(x)), x, bool(found.status == 0)

"""Where problems come from: files that the user names, and seeded generators."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from untuned.systems.ising.problems import BoxQP, Ising, max_cut


def _numbers(path: Path) -> Iterator[tuple[int, str, float]]:
    """(line, word, value) of every word of a file; ValueError at the first word that is no finite number."""
    for line, text in enumerate(path.read_text(encoding="ascii", errors="replace").splitlines(), start=1):
        for word in text.split():
            try:
                value = float(word)
            except ValueError:
                raise ValueError(f"{path.name}, line {line}: {word!r} is not a number.") from None
            if value != value or abs(value) == float("inf"):
                raise ValueError(f"{path.name}, line {line}: {word!r} is not finite.")
            yield line, word, value


def _size(path: Path, word: str, value: float, what: str) -> int:
    if value != int(value) or value < 1:
        raise ValueError(f"{path.name}: the number of {what} must be a whole number from 1 on, not {word!r}.")
    return int(value)


def read_boxqp(path: str | Path, best: float | None = None) -> BoxQP:
    """A problem of the SPAR / BoxQP format: n, then the n numbers c, then the n rows of Q, wherever lines break.

    The file means: maximise 1/2 x'Qx + c'x on the unit box. The problem returned is to be minimised, with
    Q <- -(Q + Q')/4 and V <- -c. `best`: the value of the maximum, if known, so the optimum is -best. Raises
    FileNotFoundError, and ValueError that names the file, what was expected and what was found.
    """
    path = Path(path)
    words = list(_numbers(path))
    if not words:
        raise ValueError(f"{path.name} is empty; a BoxQP file begins with the number of variables.")
    n = _size(path, words[0][1], words[0][2], "variables")
    if len(words) != (expected := 1 + n + n * n):
        found = f"found {len(words)}"
        raise ValueError(f"{path.name}: expected 1 + n + n^2 = {expected} numbers for n = {n}, {found}.")
    values = torch.tensor([value for _, _, value in words[1:]], dtype=torch.float64)
    Q = values[n:].reshape(n, n)
    return BoxQP(-(Q + Q.T) / 4, -values[:n], None if best is None else -best, name=path.stem)


def read_best(path: str | Path) -> dict[str, float]:
    """The table of best values that lies beside the SPAR files: every line `name value`, by name; others are passed by.

    Only names of the form spar020-100-1 are taken.
    """
    lines = Path(path).read_text(encoding="ascii", errors="replace").splitlines()
    found = (re.fullmatch(r"\s*(spar\d{3}-\d{3}-\d)\s+(\S+)\s*", line) for line in lines)
    return {match[1]: float(match[2]) for match in found if match}


def read_gset(path: str | Path, optimum_cut: float | None = None) -> Ising:
    """Max-Cut on a graph of the G-set format: n and the number of edges, then a line `i j weight` per edge.

    Nodes are counted from 1; a missing weight is 1. Raises FileNotFoundError, and ValueError that names the file and
    the line: wrong counts, nodes outside 1 to n, an edge from a node to itself or one given twice.
    """
    path = Path(path)
    rows: dict[int, list[tuple[str, float]]] = {}
    for line, word, value in _numbers(path):
        rows.setdefault(line, []).append((word, value))
    if not rows or len(head := rows.pop(min(rows))) != 2:
        raise ValueError(f"{path.name}: the first line must be the numbers of nodes and of edges.")
    n = _size(path, *head[0], "nodes")
    if len(rows) != head[1][1]:
        raise ValueError(f"{path.name}: the first line says {head[1][0]} edges, found {len(rows)}.")
    weights = torch.zeros(n, n, dtype=torch.float64)
    seen = set[frozenset[int]]()
    for line, row in rows.items():
        if len(row) not in (2, 3):
            raise ValueError(f"{path.name}, line {line}: an edge is two nodes and a weight, not {len(row)} numbers.")
        i, j = (int(value) if value == int(value) else 0 for _, value in row[:2])
        if not (1 <= i <= n and 1 <= j <= n) or i == j:
            pair = f"{row[0][0]} {row[1][0]}"
            raise ValueError(f"{path.name}, line {line}: an edge joins two nodes from 1 to {n}, not {pair}.")
        if frozenset((i, j)) in seen:
            raise ValueError(f"{path.name}, line {line}: the edge {i} {j} is there twice.")
        seen.add(frozenset((i, j)))
        weights[i - 1, j - 1] = weights[j - 1, i - 1] = row[2][1] if len(row) == 3 else 1.0
    return max_cut(weights, optimum_cut, name=path.stem)


# ---------------------------------------------------------------- generators


def _symmetric(upper: Tensor) -> Tensor:
    return upper.triu(1) + upper.triu(1).T


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return 2.0 * torch.randint(0, 2, shape, generator=generator).double() - 1


def sherrington_kirkpatrick(n: int, generator: torch.Generator) -> Ising:
    """An Ising problem of n spins with every coupling -1 or 1, at random."""
    return Ising(_symmetric(_signs((n, n), generator)), name=f"SK {n}")


def erdos_renyi(n: int, p: float, generator: torch.Generator) -> Ising:
    """Max-Cut on a random graph G(n, p): every edge is there with probability p, with weight 1. p in [0, 1]."""
    if not 0 <= p <= 1:
        raise ValueError(f"The probability of an edge must be in [0, 1], not {p!r}.")
    present = torch.rand(n, n, generator=generator, dtype=torch.float64) < p
    return max_cut(_symmetric(present.double()), name=f"G({n}, {p:g})")


def sparse_boxqp(n: int, density: float, generator: torch.Generator) -> BoxQP:
    """A BoxQP of the recipe of the SPAR instances (Vandenbussche and Nemhauser 2005).

    Maximise 1/2 x'Qx + c'x, all entries whole numbers, uniform in [-50, 50]; those of Q on and above its diagonal are
    there with probability `density` in [0, 1], the others are 0; Q is symmetric. Returned as a problem to minimise, as
    `read_boxqp` does. The random numbers are not those of the published files.
    """
    if not 0 <= density <= 1:
        raise ValueError(f"The density must be in [0, 1], not {density!r}.")
    entries = torch.randint(-50, 51, (n, n), generator=generator).double()
    entries *= torch.rand(n, n, generator=generator, dtype=torch.float64) < density
    Q = _symmetric(entries) + entries.diagonal().diag()
    c = torch.randint(-50, 51, (n,), generator=generator).double()
    return BoxQP(-Q / 2, -c, name=f"BoxQP {n} at {density:.0%}")


def conditioned(n: int, kappa: float, generator: torch.Generator) -> BoxQP:
    """The conditioning family of arXiv 2401.12135: Q = D U S U' D and V = 0, with D = diag(linspace(1, kappa, n)).

    U is a random orthogonal matrix (Haar), S is 1 on the first half of its diagonal and -1 on the second. kappa >= 1.
    """
    if not kappa >= 1:
        raise ValueError(f"kappa must be at least 1, not {kappa!r}.")
    U, R = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    U = U * R.diagonal().sign()
    S = torch.ones(n, dtype=torch.float64)
    S[(n + 1) // 2 :] = -1
    D = torch.linspace(1, kappa, n, dtype=torch.float64)
    Q = D[:, None] * ((U * S) @ U.T) * D
    return BoxQP(Q, torch.zeros(n, dtype=torch.float64), name=f"conditioned {n} kappa {kappa:g}")

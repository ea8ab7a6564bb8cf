"""Torque-aware momentum."""

from functools import partial
from math import sqrt
from typing import Literal

import numpy as np

from untuned.testing.oracles.protocol import Array, Groups, Problem, Result, Schedule, _dot, _moving, _start, _zeros


def tam(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 1e-1,
    beta: float = 0.9,
    gamma: float = 0.9,
    gain_floor: float = 1e-8,
    weight_decay: float = 0.0,
    scope: Literal["tensor", "model"] = "tensor",
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """Torque-aware momentum (arXiv 2412.18790) with coupled decay; ``gain_floor`` is the paper's eps.

    ``scope`` is what one cosine spans. Scalars: ``alignment``, the averaged cosines after each step, one a tensor or
    a list of one for the model.
    """
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    m = _zeros(x)
    alignment = [0.0 for _ in x] if scope == "tensor" else [0.0]
    iterates, alignments = [], []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        g = [grads[i] + decay[i] * x[i] for i in range(len(x))]
        for a, members in _scopes(scope, rates[k]):
            S = _cosine([m[i] for i in members], [g[i] for i in members])
            alignment[a] = gamma * alignment[a] + (1 - gamma) * S
            gain = (1 + alignment[a]) / 2
            for i in members:
                m[i] = beta * m[i] + (gain_floor + gain) * g[i]
                x[i] = x[i] - rates[k][i] * m[i]
        iterates.append(list(x))
        alignments.append(list(alignment))
    return iterates, {"alignment": alignments}


def adatam(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    gamma: float = 0.9,
    gain_floor: float = 1e-8,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decouple: bool = False,
    scope: Literal["tensor", "model"] = "tensor",
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """AdaTAM (arXiv 2412.18790): neither moment is corrected nor m averaged; with ``decouple`` AdaTAMW.

    ``scope`` and scalars as for tam.
    """
    b1, b2 = betas
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    m, v = _zeros(x), _zeros(x)
    alignment = [0.0 for _ in x] if scope == "tensor" else [0.0]
    iterates, alignments = [], []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        g = [grads[i] if decouple else grads[i] + decay[i] * x[i] for i in range(len(x))]
        for a, members in _scopes(scope, rates[k]):
            S = _cosine([m[i] for i in members], [g[i] for i in members])
            alignment[a] = gamma * alignment[a] + (1 - gamma) * S
            gain = (1 + alignment[a]) / 2
            for i in members:
                m[i] = b1 * m[i] + (gain_floor + gain) * g[i]
                v[i] = b2 * v[i] + (1 - b2) * g[i] ** 2
                if decouple:
                    x[i] = (1 - rates[k][i] * decay[i]) * x[i]
                x[i] = x[i] - rates[k][i] * m[i] / (np.sqrt(v[i]) + eps)
        iterates.append(list(x))
        alignments.append(list(alignment))
    return iterates, {"alignment": alignments}


adatamw = partial(adatam, decouple=True)


def _scopes(scope: Literal["tensor", "model"], rates: list[float]) -> list[tuple[int, list[int]]]:
    """-> (place of the averaged cosine, the tensors it spans) of the cosines that take part in a step."""
    indices = [i for i, _ in _moving(rates)]
    return {"tensor": [(i, [i]) for i in indices], "model": [(0, indices)] if indices else []}[scope]


def _cosine(m: list[Array], g: list[Array]) -> float:
    """0 where m is too small beside g for its direction to be more than rounding."""
    m_norm, g_norm = sqrt(sum(_dot(a, a) for a in m)), sqrt(sum(_dot(a, a) for a in g))
    if g_norm == 0 or m_norm <= 1e-6 * g_norm:
        return 0.0
    return sum(_dot(a, b) for a, b in zip(m, g, strict=True)) / (m_norm * g_norm)

"""Normalize-and-Project and Hyperball: weights that keep the norm they began with."""

from typing import Literal

import numpy as np

from untuned.testing.oracles.protocol import Array, Groups, Problem, Result, Schedule, _moving, _start, _zeros


def normalize_and_project(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    base: Literal["sgd", "adamw"],
    lr: float = 1e-3,
    momentum: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    rows: bool = False,
    normalize_update: bool = False,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """Normalize-and-Project (arXiv 2407.01800): after each step of SGD or AdamW tensors have their first norm again.

    ``rows``: not the tensor but each slice along its first dimension, flattened, keeps its norm; a tensor with fewer
    than two dimensions is one row.
    ``normalize_update``: the direction u is first rescaled to the norm R that is kept, so that lr is an angle
    (Hyperball, arXiv 2606.16899): x - lr R u / |u|.
    A row or tensor that began at zero, or that a step takes there, is not rescaled, nor its direction. ``momentum``
    belongs to SGD, whose decay is coupled; ``betas`` and ``eps`` belong to AdamW, whose decay is decoupled.
    """
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    m, v, t = _zeros(x), _zeros(x), [0 for _ in x]
    b1, b2 = betas
    R = [_norm(a, rows) for a in x]
    iterates = []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        for i, eta in _moving(rates[k]):
            t[i] += 1
            if base == "sgd":
                m[i] = momentum * m[i] + grads[i] + decay[i] * x[i]
                u = m[i]
            elif base == "adamw":
                m[i] = b1 * m[i] + (1 - b1) * grads[i]
                v[i] = b2 * v[i] + (1 - b2) * grads[i] ** 2
                u = m[i] / (1 - b1 ** t[i]) / (np.sqrt(v[i] / (1 - b2 ** t[i])) + eps)
                x[i] = x[i] - eta * decay[i] * x[i]
            else:
                raise ValueError(f"normalize_and_project: base is {base!r}; give 'sgd' or 'adamw'")
            if normalize_update:
                u = _rescaled(u, R[i], rows)
            x[i] = _rescaled(x[i] - eta * u, R[i], rows)
        iterates.append(list(x))
    return iterates, {}


def _norm(a: Array, rows: bool) -> Array:
    """Of the tensor or of each slice along its first dimension, in a shape that multiplies it."""
    return np.sqrt(np.sum(a**2, axis=tuple(range(1 if rows and a.ndim > 1 else 0, a.ndim)), keepdims=True))


def _rescaled(a: Array, norm: Array, rows: bool) -> Array:
    """a with this norm, or as it is where either norm is 0."""
    now = _norm(a, rows)
    possible = (now > 0) & (norm > 0)
    return a * np.where(possible, norm / np.where(possible, now, 1.0), 1.0)

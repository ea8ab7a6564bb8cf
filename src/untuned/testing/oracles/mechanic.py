"""Mechanic, in the form of its paper's code and in the later one of Optax."""

from collections.abc import Sequence
from math import sqrt
from typing import Literal

import numpy as np

from untuned.testing.oracles.protocol import (
    Array,
    Groups,
    Problem,
    Result,
    Schedule,
    Scope,
    _columns,
    _dot,
    _moving,
    _per_span,
    _spans,
    _start,
    _zeros,
)


def mechanic(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    base: Literal["sgd", "adamw"],
    lr: float = 1.0,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    adam_betas: tuple[float, float] = (0.9, 0.999),
    adam_eps: float = 1e-8,
    weight_decay: float = 0.0,
    s_decay: float = 0.01,
    s_init: float = 1e-8,
    betas: Sequence[float] = (0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999),
    eps: float = 1e-8,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """Mechanic (arXiv 2306.00144) with stored displacements, around ``sgd`` or ``adamw`` as above.

    ``momentum`` to ``weight_decay`` belong to the base optimizer; ``betas`` and ``eps`` to Mechanic.
    Scalars: ``S``, the factor of the displacement after each step, and ``h``, the product that moved it.
    """
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    origin, delta = list(x), _zeros(x)
    buffer: list[Array | None] = [None for _ in x]
    a1, a2 = adam_betas
    m_adam, v_adam, t = _zeros(x), _zeros(x), [0 for _ in x]

    beta, n = np.array(betas), len(betas)
    s, m, v, r = np.zeros(n), np.full(n, 1e-6), np.zeros(n), np.zeros(n)
    iterates, rows = [], []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        moving = _moving(rates[k])
        h = 0.0
        if moving:
            new = {}
            for i, eta in moving:
                if base == "sgd":
                    g = grads[i] + decay[i] * x[i]
                    b = buffer[i]
                    b = g if b is None else momentum * b + (1 - dampening) * g
                    buffer[i] = b
                    new[i] = x[i] - eta * (g if momentum == 0 else g + momentum * b if nesterov else b)
                elif base == "adamw":
                    t[i] += 1
                    m_adam[i] = a1 * m_adam[i] + (1 - a1) * grads[i]
                    v_adam[i] = a2 * v_adam[i] + (1 - a2) * grads[i] ** 2
                    m_hat, v_hat = m_adam[i] / (1 - a1 ** t[i]), v_adam[i] / (1 - a2 ** t[i])
                    new[i] = x[i] - eta * decay[i] * x[i] - eta * m_hat / (np.sqrt(v_hat) + adam_eps)
                else:
                    raise ValueError(f"mechanic: base is {base!r}; give 'sgd' or 'adamw'")

            g_norm = sqrt(sum(_dot(grads[i], grads[i]) for i in new))
            x_norm = sqrt(sum(_dot(new[i], new[i]) for i in new))
            pull = s_decay * s.sum() * g_norm / (x_norm + eps)
            h = sum(_dot(delta[i], grads[i] + pull * new[i]) for i in new)

            m = np.maximum(beta * m, abs(h))
            v = beta**2 * v + h**2
            r = np.maximum(beta * r - s * h, 0.0)
            s = (s_init * m / n + r) / (np.sqrt(v) + eps)
            for i, moved in new.items():
                delta[i] = delta[i] + (moved - x[i])
                x[i] = origin[i] + s.sum() * delta[i]
        iterates.append(list(x))
        rows.append({"S": float(s.sum()), "h": h})
    return iterates, _columns(rows)


def mechanize(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    base: Literal["sgd", "adamw"],
    lr: float = 1.0,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    adam_betas: tuple[float, float] = (0.9, 0.999),
    adam_eps: float = 1e-8,
    weight_decay: float = 0.0,
    s_decay: float = 0.01,
    s_init: float = 1e-6,
    betas: Sequence[float] = (0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999),
    eps: float = 1e-8,
    scope: Scope = "model",
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """Mechanic as ``optax.contrib.mechanize`` computes it, but with stored displacements. Options as for mechanic.

    The reward is clipped to what it was before, only the wealth is kept positive, and the decay is that of the
    parameters before the step. Scalars as for mechanic; in another scope than the model lists, one of each a group or
    tensor.
    """
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    origin, delta = list(x), _zeros(x)
    buffer: list[Array | None] = [None for _ in x]
    a1, a2 = adam_betas
    m_adam, v_adam, t = _zeros(x), _zeros(x), [0 for _ in x]

    beta, n = np.array(betas), len(betas)
    spans = _spans(scope, x, groups)
    s, m, v, r = ([np.full(n, start) for _ in spans] for start in (s_init, 0.0, 0.0, 0.0))
    iterates, rows = [], []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        h = [0.0 for _ in spans]
        for a, span in enumerate(spans):
            moving = [(i, eta) for i, eta in _moving(rates[k]) if i in span]
            if not moving:
                continue
            new = {}
            for i, eta in moving:
                if base == "sgd":
                    g = grads[i] + decay[i] * x[i]
                    b = buffer[i]
                    b = g if b is None else momentum * b + (1 - dampening) * g
                    buffer[i] = b
                    new[i] = x[i] - eta * (g if momentum == 0 else g + momentum * b if nesterov else b)
                elif base == "adamw":
                    t[i] += 1
                    m_adam[i] = a1 * m_adam[i] + (1 - a1) * grads[i]
                    v_adam[i] = a2 * v_adam[i] + (1 - a2) * grads[i] ** 2
                    m_hat, v_hat = m_adam[i] / (1 - a1 ** t[i]), v_adam[i] / (1 - a2 ** t[i])
                    new[i] = x[i] - eta * decay[i] * x[i] - eta * m_hat / (np.sqrt(v_hat) + adam_eps)
                else:
                    raise ValueError(f"mechanize: base is {base!r}; give 'sgd' or 'adamw'")

            g_norm = sqrt(sum(_dot(grads[i], grads[i]) for i in new))
            x_norm = sqrt(sum(_dot(x[i], x[i]) for i in new))
            pull = s_decay * s[a].sum() * g_norm / (x_norm + eps)
            h[a] = sum(_dot(delta[i], grads[i] + pull * x[i]) for i in new)

            r[a] = beta * r[a] - s[a] * np.clip(h[a], -m[a], m[a])
            m[a] = np.maximum(beta * m[a], abs(h[a]) + eps)
            v[a] = beta**2 * v[a] + h[a] ** 2
            s[a] = (s_init * m[a] / n + np.maximum(r[a], 0.0)) / (np.sqrt(v[a]) + eps)
            for i, moved in new.items():
                delta[i] = delta[i] + (moved - x[i])
                x[i] = origin[i] + s[a].sum() * delta[i]
        iterates.append(list(x))
        rows.append({"S": _per_span(scope, [float(q.sum()) for q in s]), "h": _per_span(scope, h)})
    return iterates, _columns(rows)

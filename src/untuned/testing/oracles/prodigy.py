"""Prodigy and D-Adaptation with Resetting."""

from math import inf, sqrt

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


def prodigy(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    beta3: float | None = None,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decouple: bool = True,
    use_bias_correction: bool = False,
    safeguard_warmup: bool = False,
    d0: float = 1e-6,
    d_coef: float = 1.0,
    growth_rate: float = inf,
    slice_p: int = 1,
    scope: Scope = "model",
    freeze_after: float = inf,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """Prodigy in its Adam form (arXiv 2306.06101). The step uses the d from before it, but for d * eps.

    ``scope`` is what has an estimate of its own, and so a largest lr of its own. After ``freeze_after`` steps d and
    d_max stay. The estimate sees the elements 0, ``slice_p``, 2 ``slice_p``, ... of each flattened tensor.
    Scalars after each step: ``d``, ``d_max``, ``d_hat``, with another scope as lists, one a group or tensor.
    """
    b1, b2 = betas
    b3 = sqrt(b2) if beta3 is None else beta3
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    origin = list(x)
    m, v, count = _zeros(x), _zeros(x), [0 for _ in x]
    s = [np.zeros_like(a.ravel()[::slice_p]) for a in x]
    # The numerator is kept per tensor: a paused tensor leaves both sides of the ratio, with its past.
    r = [0.0 for _ in x]
    spans = _spans(scope, x, groups)
    d, d_max, d_hat, counted = [d0 for _ in spans], [d0 for _ in spans], [0.0 for _ in spans], [0 for _ in spans]
    iterates, rows = [], []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        for a, span in enumerate(spans):
            h = {}
            top = max(rates[k][i] for i in span)
            for i, eta in _moving(rates[k]):
                if i not in span:
                    continue
                t = count[i] + 1
                q = sqrt(1 - b2**t) / (1 - b1**t) if use_bias_correction else 1.0
                h[i] = d[a] * eta * q
                g = grads[i] if decouple else grads[i] + decay[i] * x[i]
                g_seen, offset = g.ravel()[::slice_p], (origin[i] - x[i]).ravel()[::slice_p]
                r[i] = b3 * r[i] + d[a] / d0 * d[a] * top * q * _dot(g_seen, offset)
                m[i] = b1 * m[i] + (1 - b1) * d[a] * g
                v[i] = b2 * v[i] + (1 - b2) * d[a] ** 2 * g**2
                s[i] = b3 * s[i] + d[a] / d0 * (d[a] * eta / top if safeguard_warmup else h[i]) * g_seen
            l1 = sum(float(np.abs(s[i]).sum()) for i in h)
            if l1 > 0:
                d_hat[a] = d_coef * sum(r[i] for i in h) / l1
                if counted[a] < freeze_after:
                    if d[a] == d0:
                        d[a] = max(d[a], d_hat[a])
                    d_max[a] = max(d_max[a], d_hat[a])
                    d[a] = min(d_max[a], d[a] * growth_rate)
                counted[a] += 1
                for i, h_i in h.items():
                    count[i] += 1
                    if decouple:
                        x[i] = x[i] - decay[i] * h_i * x[i]
                    x[i] = x[i] - h_i * m[i] / (np.sqrt(v[i]) + d[a] * eps)
        iterates.append(list(x))
        rows.append({"d": _per_span(scope, d), "d_max": _per_span(scope, d_max), "d_hat": _per_span(scope, d_hat)})
    return iterates, _columns(rows)


def prodigy_gd(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 1.0,
    weight_decay: float = 0.0,
    d0: float = 1e-6,
    growth_rate: float = inf,
    G: float = 0.0,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """Prodigy by gradient descent (arXiv 2306.06101), the last iterate; lr multiplies eta, not the root. Coupled decay.

    Scalars: ``d``, ``d_hat``.
    """
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    origin, squares, numerator = list(x), [0.0 for _ in x], [0.0 for _ in x]
    d, d_hat = d0, 0.0
    iterates, rows = [], []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        top = max(rates[k])
        f = {i: eta / top for i, eta in _moving(rates[k])}
        g = {i: grads[i] + decay[i] * x[i] for i in f}
        for i in f:
            squares[i] += d**2 * f[i] * _dot(g[i], g[i])
        root = sqrt(d**2 * G**2 + sum(squares[i] for i in f))
        if root > 0:
            step = d**2 * top / root
            for i in f:
                numerator[i] += step * _dot(g[i], origin[i] - x[i])
                x[i] = x[i] - step * f[i] * g[i]
            distance = sqrt(sum(_dot(x[i] - origin[i], x[i] - origin[i]) / f[i] for i in f))
            if distance > 0:
                d_hat = sum(numerator[i] for i in f) / distance
                d = max(d, min(d_hat, d * growth_rate))
        iterates.append(list(x))
        rows.append({"d": d, "d_hat": d_hat})
    return iterates, _columns(rows)


def prodigy_da(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 1.0,
    weight_decay: float = 0.0,
    d0: float = 1e-6,
    growth_rate: float = inf,
    G: float = 0.0,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """Prodigy by dual averaging (arXiv 2306.06101), the last iterate. Coupled decay.

    The weights are d^2 lr, without lr under the root; there G is multiplied by the d after the step.
    Scalars: ``d``, ``d_hat``.
    """
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    origin, s = list(x), _zeros(x)
    squares, numerator = [0.0 for _ in x], [0.0 for _ in x]
    d, d_hat = d0, 0.0
    iterates, rows = [], []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        top = max(rates[k])
        f = {i: eta / top for i, eta in _moving(rates[k])}
        g = {i: grads[i] + decay[i] * x[i] for i in f}
        for i in f:
            squares[i] += d**2 * f[i] * _dot(g[i], g[i])
            numerator[i] += d**2 * top * _dot(g[i], origin[i] - x[i])
            s[i] = s[i] + d**2 * top * f[i] * g[i]
        s_norm = sqrt(sum(_dot(s[i], s[i]) / f[i] for i in f))
        if s_norm > 0:
            d_hat = sum(numerator[i] for i in f) / s_norm
            d = max(d, min(d_hat, d * growth_rate))
        root = sqrt(d**2 * G**2 + sum(squares[i] for i in f))
        if root > 0:
            for i in f:
                x[i] = origin[i] - s[i] / root
        iterates.append(list(x))
        rows.append({"d": d, "d_hat": d_hat})
    return iterates, _columns(rows)


def resetting(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 1.0,
    weight_decay: float = 0.0,
    d0: float = 1e-6,
    G: float = 0.0,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """D-Adaptation with Resetting by dual averaging (arXiv 2306.06101, an early version). Coupled decay.

    d is constant until an estimate is above 2 d: then the tensors that take part go back to x_0 and forget their sums.
    gamma_i s_i of the numerator is x_0 - x_i. Scalars: ``d``, ``d_hat``, ``resets``, how many there were.
    """
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    origin, s = list(x), _zeros(x)
    squares, numerator = [0.0 for _ in x], [0.0 for _ in x]
    d, d_hat, resets = d0, 0.0, 0
    iterates, rows = [], []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        top = max(rates[k])
        f = {i: eta / top for i, eta in _moving(rates[k])}
        g = {i: grads[i] + decay[i] * x[i] for i in f}
        for i in f:
            squares[i] += f[i] * _dot(g[i], g[i])
            numerator[i] += top * _dot(g[i], origin[i] - x[i])
            s[i] = s[i] + top * f[i] * g[i]
        s_norm = sqrt(sum(_dot(s[i], s[i]) / f[i] for i in f))
        if s_norm > 0:
            d_hat = sum(numerator[i] for i in f) / s_norm
        if d_hat > 2 * d:
            d = d_hat
            resets += 1
            for i in f:
                x[i], s[i], squares[i], numerator[i] = origin[i], np.zeros_like(x[i]), 0.0, 0.0
        elif s_norm > 0:
            gamma = d / sqrt(G**2 + sum(squares[i] for i in f))
            for i in f:
                x[i] = origin[i] - gamma * s[i]
        iterates.append(list(x))
        rows.append({"d": d, "d_hat": d_hat, "resets": resets})
    return iterates, _columns(rows)


def resetting_gd(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 1.0,
    weight_decay: float = 0.0,
    d0: float = 1e-6,
    G: float = 0.0,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """D-Adaptation with Resetting by gradient descent (arXiv 2306.06101, an early version). Coupled decay.

    Resets and scalars as for ``resetting``.
    """
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    origin, squares, numerator = list(x), [0.0 for _ in x], [0.0 for _ in x]
    d, d_hat, resets = d0, 0.0, 0
    iterates, rows = [], []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        top = max(rates[k])
        f = {i: eta / top for i, eta in _moving(rates[k])}
        g = {i: grads[i] + decay[i] * x[i] for i in f}
        for i in f:
            squares[i] += f[i] * _dot(g[i], g[i])
        root = sqrt(G**2 + sum(squares[i] for i in f))
        if root > 0:
            step = d * top / root
            for i in f:
                numerator[i] += step * _dot(g[i], origin[i] - x[i])
                x[i] = x[i] - step * f[i] * g[i]
            distance = sqrt(sum(_dot(x[i] - origin[i], x[i] - origin[i]) / f[i] for i in f))
            if distance > 0:
                d_hat = sum(numerator[i] for i in f) / distance
            if d_hat > 2 * d:
                d = d_hat
                resets += 1
                for i in f:
                    x[i], squares[i], numerator[i] = origin[i], 0.0, 0.0
        iterates.append(list(x))
        rows.append({"d": d, "d_hat": d_hat, "resets": resets})
    return iterates, _columns(rows)

"""D-Adaptation of SGD, AdaGrad, Adam, Lion and Adan."""

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


def dadapt_sgd(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 1.0,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    d0: float = 1e-6,
    growth_rate: float = inf,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """D-Adapt SGD (arXiv 2301.07733, Algorithm 3) with the factor 2 and the averaging of the authors' package.

    The decay is coupled, also in the norm of the first gradient. The step uses the d from before it.
    Scalars: ``d``, ``d_hat``.
    """
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    origin, s, numerator = list(x), _zeros(x), [0.0 for _ in x]
    d, d_hat, g0_norm = d0, 0.0, 0.0
    iterates, rows = [], []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        top = max(rates[k])
        f = {i: eta / top for i, eta in _moving(rates[k])}
        g = {i: grads[i] + decay[i] * x[i] for i in f}
        if g0_norm == 0:
            g0_norm = sqrt(sum(f[i] * _dot(g[i], g[i]) for i in f))
        if g0_norm > 0:
            weight = d * top / g0_norm
            for i in f:
                numerator[i] += weight * _dot(g[i], s[i])
                s[i] = s[i] + weight * f[i] * g[i]
            s_norm = sqrt(sum(_dot(s[i], s[i]) / f[i] for i in f))
            if s_norm > 0:
                d_hat = 2 * sum(numerator[i] for i in f) / s_norm
                d = max(d, min(d_hat, d * growth_rate))
            for i in f:
                x[i] = momentum * x[i] + (1 - momentum) * (origin[i] - s[i])
        iterates.append(list(x))
        rows.append({"d": d, "d_hat": d_hat})
    return iterates, _columns(rows)


def dadapt_adagrad(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 1.0,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    eps: float = 1e-6,
    d0: float = 1e-6,
    growth_rate: float = inf,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """D-Adapt AdaGrad (arXiv 2301.07733, Algorithm 2) without its factor 1/2, averaging as the authors' package.

    The sum of squares starts at 1e-6, whatever ``eps``. The decay is coupled. Scalars: ``d``, ``d_hat``.
    """
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    origin, s, squares = list(x), _zeros(x), [np.full_like(a, 1e-6) for a in x]
    past = [0.0 for _ in x]
    d, d_hat = d0, 0.0
    iterates, rows = [], []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        top = max(rates[k])
        f = {i: eta / top for i, eta in _moving(rates[k])}
        g = {i: grads[i] + decay[i] * x[i] for i in f}
        A = {}
        for i in f:
            squares[i] = squares[i] + g[i] ** 2
            A[i] = np.sqrt(squares[i]) + eps
            s[i] = s[i] + d * top * f[i] * g[i]
            past[i] += (d * top) ** 2 * f[i] * _dot(g[i], g[i] / A[i])
        l1 = sum(float(np.abs(s[i]).sum()) for i in f)
        if l1 > 0:
            d_hat = (sum(_dot(s[i], s[i] / A[i]) / f[i] for i in f) - sum(past[i] for i in f)) / l1
            d = max(d, min(d_hat, d * growth_rate))
        for i in f:
            x[i] = momentum * x[i] + (1 - momentum) * (origin[i] - s[i] / A[i])
        iterates.append(list(x))
        rows.append({"d": d, "d_hat": d_hat})
    return iterates, _columns(rows)


def dadapt_adam(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decouple: bool = False,
    use_bias_correction: bool = False,
    d0: float = 1e-6,
    growth_rate: float = inf,
    scope: Scope = "model",
    freeze_after: float = inf,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """D-Adapt Adam (arXiv 2301.07733), the later form whose numerator sums <g, s / A>.

    ``scope`` is what has an estimate of its own, and so a largest lr of its own. After ``freeze_after`` steps d stays.
    Scalars after each step: ``d``, ``d_hat``, with another scope than the model as lists, one a group or tensor.
    """
    b1, b2 = betas
    sb = sqrt(b2)
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    m, v, s, count = _zeros(x), _zeros(x), _zeros(x), [0 for _ in x]
    # The numerator is kept per tensor: a paused tensor leaves both sides of the ratio, with its past.
    r = [0.0 for _ in x]
    spans = _spans(scope, x, groups)
    d, d_hat, counted = [d0 for _ in spans], [0.0 for _ in spans], [0 for _ in spans]
    iterates, rows = [], []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        for a, span in enumerate(spans):
            h, fraction = {}, {}
            top = max(rates[k][i] for i in span)
            for i, eta in _moving(rates[k]):
                if i not in span:
                    continue
                t = count[i] + 1
                q = sqrt(1 - b2**t) / (1 - b1**t) if use_bias_correction else 1.0
                h[i] = d[a] * eta * q
                fraction[i] = eta / top
                g = grads[i] if decouple else grads[i] + decay[i] * x[i]
                r[i] = sb * r[i] + (1 - sb) * h[i] * _dot(g, s[i] / (np.sqrt(v[i]) + eps))
                m[i] = b1 * m[i] + h[i] * (1 - b1) * g
                v[i] = b2 * v[i] + (1 - b2) * g**2
                s[i] = sb * s[i] + (1 - sb) * d[a] * top * q * g
            l1 = sum(fraction[i] * float(np.abs(s[i]).sum()) for i in h)
            if l1 > 0:
                d_hat[a] = sum(r[i] for i in h) / ((1 - sb) * l1)
                if counted[a] < freeze_after:
                    d[a] = max(d[a], min(d_hat[a], d[a] * growth_rate))
                counted[a] += 1
                for i, h_i in h.items():
                    count[i] += 1
                    if decouple:
                        x[i] = x[i] - decay[i] * h_i * x[i]
                    x[i] = x[i] - m[i] / (np.sqrt(v[i]) + eps)
        iterates.append(list(x))
        rows.append({"d": _per_span(scope, d), "d_hat": _per_span(scope, d_hat)})
    return iterates, _columns(rows)


def dadapt_lion(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
    d0: float = 1e-6,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """D-Adapt Lion as the authors of arXiv 2301.07733 ship it: the step comes before the estimate. Decoupled decay.

    The units of a group change nothing but its step: a sign has none. Scalars: ``d``, ``d_hat``.
    """
    b1, b2 = betas
    sb = sqrt(b2)
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    m, s, r = _zeros(x), _zeros(x), [0.0 for _ in x]
    d, d_hat = d0, 0.0
    iterates, rows = [], []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        top = max(rates[k])
        f = {i: eta / top for i, eta in _moving(rates[k])}
        h = d * top
        for i in f:
            u = np.sign(b1 * m[i] + (1 - b1) * grads[i])
            x[i] = (1 - f[i] * h * decay[i]) * x[i] - f[i] * h * u
            m[i] = b2 * m[i] + (1 - b2) * h * grads[i]
            r[i] = sb * r[i] + (1 - sb) * h * _dot(u, s[i])
            s[i] = sb * s[i] + (1 - sb) * h * u
        l1 = sum(float(np.abs(s[i]).sum()) for i in f)
        if l1 > 0:
            d_hat = sum(r[i] for i in f) / ((1 - sb) * l1)
            d = max(d, d_hat)
        iterates.append(list(x))
        rows.append({"d": d, "d_hat": d_hat})
    return iterates, _columns(rows)


def dadapt_adan(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 1.0,
    betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
    eps: float = 1e-8,
    weight_decay: float = 0.02,
    no_prox: bool = False,
    d0: float = 1e-6,
    growth_rate: float = inf,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """D-Adapt Adan as the authors of arXiv 2301.07733 ship it, the form whose numerator sums <g, s / A>.

    Adan is arXiv 2208.06677. The decay divides after the step or, with ``no_prox``, multiplies before it.
    Scalars: ``d``, ``d_hat``.
    """
    b1, b2, b3 = betas
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    m, n, v, s, r = _zeros(x), _zeros(x), _zeros(x), _zeros(x), [0.0 for _ in x]
    previous: list[Array | None] = [None for _ in x]
    d, d_hat = d0, 0.0
    iterates, rows = [], []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        top = max(rates[k])
        f = {i: eta / top for i, eta in _moving(rates[k])}
        h = {i: d * top * f[i] for i in f}
        for i in f:
            g, before = grads[i], previous[i]
            change = np.zeros_like(g) if before is None else g - before
            r[i] = b3 * r[i] + (1 - b3) * h[i] * _dot(g, s[i] / (np.sqrt(v[i]) + eps))
            m[i] = b1 * m[i] + (1 - b1) * h[i] * g
            n[i] = b2 * n[i] + (1 - b2) * h[i] * change
            v[i] = b3 * v[i] + (1 - b3) * (g + b2 * change) ** 2
            s[i] = b3 * s[i] + (1 - b3) * d * top * g
        l1 = sum(f[i] * float(np.abs(s[i]).sum()) for i in f)
        if l1 > 0:
            d_hat = 2 * b3 / (1 - b3) * sum(r[i] for i in f) / l1
            d = max(d, min(d_hat, d * growth_rate))
            for i in f:
                previous[i] = grads[i]
                step = (m[i] + b2 * n[i]) / (np.sqrt(v[i]) + eps)
                if no_prox:
                    x[i] = (1 - h[i] * decay[i]) * x[i] - step
                else:
                    x[i] = (x[i] - step) / (1 + h[i] * decay[i])
        iterates.append(list(x))
        rows.append({"d": d, "d_hat": d_hat})
    return iterates, _columns(rows)

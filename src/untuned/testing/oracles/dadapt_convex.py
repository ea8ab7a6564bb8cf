"""D-Adaptation for convex problems: dual averaging and gradient descent."""

from math import inf, sqrt

from untuned.testing.oracles.protocol import (
    Array,
    Groups,
    Problem,
    Result,
    Schedule,
    _columns,
    _dot,
    _moving,
    _start,
    _zeros,
)


def dadapt_da(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 1.0,
    weight_decay: float = 0.0,
    d0: float = 1e-6,
    growth_rate: float = inf,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """D-Adaptation by dual averaging (arXiv 2301.07733, Algorithm 1), weights d lr, the last iterate. Coupled decay.

    Scalars: ``d``, ``d_hat``.
    """
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    origin, s = list(x), _zeros(x)
    squares, past = [0.0 for _ in x], [0.0 for _ in x]
    d, d_hat = d0, 0.0
    iterates, rows = [], []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        top = max(rates[k])
        f = {i: eta / top for i, eta in _moving(rates[k])}
        g = {i: grads[i] + decay[i] * x[i] for i in f}
        before = sum(squares[i] for i in f)
        for i in f:
            squares[i] += f[i] * _dot(g[i], g[i])
        after = sum(squares[i] for i in f)
        if after > 0:
            gamma_old, gamma = 1 / sqrt(before or after), 1 / sqrt(after)
            for i in f:
                past[i] += gamma_old * (d * top) ** 2 * f[i] * _dot(g[i], g[i])
                s[i] = s[i] + d * top * f[i] * g[i]
            s_norm = sqrt(sum(_dot(s[i], s[i]) / f[i] for i in f))
            if s_norm > 0:
                d_hat = (gamma * s_norm**2 - sum(past[i] for i in f)) / (2 * s_norm)
                d = max(d, min(d_hat, d * growth_rate))
            for i in f:
                x[i] = origin[i] - gamma * s[i]
        iterates.append(list(x))
        rows.append({"d": d, "d_hat": d_hat})
    return iterates, _columns(rows)


def dadapt_gd(
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
    """D-Adaptation by gradient descent (arXiv 2301.07733), the last iterate. Coupled decay.

    The numerator, sum lambda_i <g_i, x_0 - x_i>, is also (||x_{k+1} - x_0||^2 - sum lambda_i^2 ||g_i||^2) / 2.
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
                d = max(d, min(d_hat, d * growth_rate))
        iterates.append(list(x))
        rows.append({"d": d, "d_hat": d_hat})
    return iterates, _columns(rows)

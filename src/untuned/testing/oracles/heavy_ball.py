"""Momentum that is chosen at each step (adaptive heavy ball, AM-MSGD), and SGD with momentum as an average (SPA)."""

from collections.abc import Callable
from math import sqrt

import numpy as np

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


def ahb_sgd(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 0.1,
    delta: float = 1e-3,
    cap: float = 1.0,
    weight_decay: float = 0.0,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """Adaptive heavy ball (arXiv 2110.09057): beta is the best for a quadratic of the curvature ||dg|| / ||dx||.

    beta = (1 - sqrt(lr ||dg|| / ||dx||))^2, at most 1 - ``delta``; ``delta`` is recalled. dg and dx are the differences
    since the tensors' last steps; a tensor without one counts in neither, and its lr scales a tensor's dg. lr ||dg|| /
    ||dx|| is at most ``cap``: 1 answers noise with beta 0, inf is the paper's formula. Where nothing moved or no tensor
    has a last step, beta stays what it was, at first 0. The decay is coupled, part of g. Scalar: ``beta``.
    """
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    before: list[Array | None] = [None for _ in x]
    dx, beta = _zeros(x), 0.0
    iterates, rows = [], []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        moving = _moving(rates[k])
        g = {i: grads[i] + decay[i] * x[i] for i, _ in moving}
        beta = _secant_beta(beta, moving, g, before, dx, delta, cap)
        for i, eta in moving:
            dx[i] = beta * dx[i] - eta * g[i]
            x[i] = x[i] + dx[i]
            before[i] = g[i]
        iterates.append(list(x))
        rows.append({"beta": beta})
    return iterates, _columns(rows)


def ahb_adam(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 1e-3,
    beta2: float = 0.999,
    eps: float = 1e-8,
    delta: float = 1e-3,
    cap: float = 1.0,
    weight_decay: float = 0.0,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """Adam whose beta1 is that of the adaptive heavy ball at each step (arXiv 2110.09057; recalled).

    beta is as for ahb_sgd, from the raw gradients and the differences of x. The first moment is divided by 1 less the
    product of the betas of the tensor's own steps. The decay is decoupled, inside lr, and not in g. Scalar: ``beta``.
    """
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    before: list[Array | None] = [None for _ in x]
    m, v, t, product = _zeros(x), _zeros(x), [0 for _ in x], [1.0 for _ in x]
    dx, beta = _zeros(x), 0.0
    iterates, rows = [], []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        moving = _moving(rates[k])
        g = {i: grads[i] for i, _ in moving}
        beta = _secant_beta(beta, moving, g, before, dx, delta, cap)
        for i, eta in moving:
            t[i] += 1
            product[i] *= beta
            m[i] = beta * m[i] + (1 - beta) * g[i]
            v[i] = beta2 * v[i] + (1 - beta2) * g[i] ** 2
            m_hat = m[i] / (1 - product[i])
            v_hat = v[i] / (1 - beta2 ** t[i])
            dx[i] = -eta * (m_hat / (np.sqrt(v_hat) + eps) + decay[i] * x[i])
            x[i] = x[i] + dx[i]
            before[i] = g[i]
        iterates.append(list(x))
        rows.append({"beta": beta})
    return iterates, _columns(rows)


def am_msgd(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 0.1,
    penalty: float = 0.1,
    beta_max: float = 0.9,
    weight_decay: float = 0.0,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """AM-MSGD (arXiv 2510.04988), simplified: d <- theta d + (1 - theta) g with theta = ||g||^2 / ||d - g||^2.

    theta lies between l / (1 + l) and (beta_max + l) / (1 + l) for l = ``penalty``, and is the lower of them where
    d = g. It is one number for the model, whose sums are not weighted by lr. The model's first step has theta 0, so
    that d = g; a tensor that comes later starts with d = 0. The decay is coupled, part of g. Scalar: ``kept``, which is
    theta, in a step without any tensor the last one's.
    """
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    lower, upper = penalty / (1 + penalty), (beta_max + penalty) / (1 + penalty)
    d, theta, begun = _zeros(x), 0.0, False
    iterates, rows = [], []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        moving = _moving(rates[k])
        g = {i: grads[i] + decay[i] * x[i] for i, _ in moving}
        if begun and moving:
            size = sum(_dot(g[i], g[i]) for i in g)
            apart = sum(_dot(d[i] - g[i], d[i] - g[i]) for i in g)
            theta = min(max(size / apart, lower), upper) if apart > 0 else lower
        for i, eta in moving:
            begun = True
            d[i] = theta * d[i] + (1 - theta) * g[i]
            x[i] = x[i] - eta * d[i]
        iterates.append(list(x))
        rows.append({"kept": theta})
    return iterates, _columns(rows)


def sgd_spa(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 1.0,
    momentum: float | Callable[[int], float] = 0.9,
    weight_decay: float = 0.0,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """SGD with momentum as primal averaging (arXiv 2010.00406): z <- z - lr g, x <- (1 - c) x + c z, c = 1 - momentum.

    Gradients are taken at x, and the decay is coupled, of x. lr is eta, which is alpha / (1 - momentum) of torch's lr
    alpha. A function ``momentum`` is asked for its value at the tensor's step 1, 2, .... Scalar: ``z``, the tensors.
    """
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    z, t = list(x), [0 for _ in x]
    iterates, points = [], []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        for i, eta in _moving(rates[k]):
            t[i] += 1
            c = 1 - (momentum(t[i]) if callable(momentum) else momentum)
            z[i] = z[i] - eta * (grads[i] + decay[i] * x[i])
            x[i] = (1 - c) * x[i] + c * z[i]
        iterates.append(list(x))
        points.append(list(z))
    return iterates, {"z": points}


def _secant_beta(
    beta: float,
    moving: list[tuple[int, float]],
    g: dict[int, Array],
    before: list[Array | None],
    dx: list[Array],
    delta: float,
    cap: float,
) -> float:
    """The adaptive heavy ball's beta at this step, or the last one where the tensors' last steps do not tell."""
    change, way = 0.0, 0.0
    for i, eta in moving:
        last = before[i]
        if last is not None:
            change += eta**2 * _dot(g[i] - last, g[i] - last)
            way += _dot(dx[i], dx[i])
    if way == 0:
        return beta
    return min((1 - sqrt(min(sqrt(change / way), cap))) ** 2, 1 - delta)

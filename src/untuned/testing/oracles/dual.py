"""Dual averaging and normalised gradients: GradaGrad, MADGRAD, MirrorMADGRAD, MDA and SNGM."""

from math import sqrt

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


def gradagrad(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 1e-3,
    momentum: float = 0.0,
    rho: float = 2.0,
    r: float = 1.0,
    weight_decay: float = 0.0,
    scope: Scope = "model",
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """GradaGrad (arXiv 2206.06900), the scalar form, with coupled decay; ``momentum`` averages the iterates.

    A group whose lr is a fraction of the largest in its scope is in other units: y = x / sqrt(fraction).
    Scalars after each step: ``alpha`` and ``gamma``, numbers; in another scope than the model lists, one of each a
    group or tensor.
    """
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    spans = _spans(scope, x, groups)
    z, before = list(x), _zeros(x)
    alpha, gamma = [0.0 for _ in spans], [1.0 for _ in spans]
    iterates, rows = [], []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        for a, span in enumerate(spans):
            moving = [(i, eta) for i, eta in _moving(rates[k]) if i in span]
            top = max(rates[k][i] for i in span)
            g = {i: grads[i] + decay[i] * x[i] for i, _ in moving}
            v = sum(eta / top * (_dot(g[i], g[i]) - rho * _dot(g[i], before[i])) for i, eta in moving)
            if v >= 0:
                alpha[a] += v
            else:
                v = max(v, -r * alpha[a])
                gamma[a] *= sqrt(1 - v / alpha[a])
            size = gamma[a] / sqrt(alpha[a]) if alpha[a] > 0 else 0.0
            for i, eta in moving:
                z[i] = z[i] - eta * size * g[i]
                x[i] = momentum * x[i] + (1 - momentum) * z[i]
                before[i] = g[i]
        iterates.append(list(x))
        rows.append({"alpha": _per_span(scope, alpha), "gamma": _per_span(scope, gamma)})
    return iterates, _columns(rows)


def gradagrad_diagonal(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 1e-3,
    momentum: float = 0.0,
    rho: float = 2.0,
    r: float = 1.0,
    weight_decay: float = 0.0,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """GradaGrad (arXiv 2206.06900) with the scalar rule for each coordinate; coupled decay, ``momentum`` as above."""
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    z, before, alpha, gamma = list(x), _zeros(x), _zeros(x), [np.ones_like(a) for a in x]
    iterates = []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        for i, eta in _moving(rates[k]):
            g = grads[i] + decay[i] * x[i]
            v = g**2 - rho * g * before[i]
            growth = np.where(v < 0, _ratio(-np.maximum(v, -r * alpha[i]), alpha[i]), 0.0)
            alpha[i] = alpha[i] + np.maximum(v, 0.0)
            gamma[i] = gamma[i] * np.sqrt(1 + growth)
            z[i] = z[i] - eta * _ratio(gamma[i], np.sqrt(alpha[i])) * g
            x[i] = momentum * x[i] + (1 - momentum) * z[i]
            before[i] = g
        iterates.append(list(x))
    return iterates, {}


def madgrad(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 1e-2,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    eps: float = 1e-6,
    decouple_decay: bool = False,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """MADGRAD (arXiv 2101.11075). The authors' code adds eps to lr as well; here lr is lr."""
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    origin, s, nu, t = list(x), _zeros(x), _zeros(x), [0 for _ in x]
    iterates = []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        for i, eta in _moving(rates[k]):
            g = grads[i] if decouple_decay else grads[i] + decay[i] * x[i]
            t[i] += 1
            weight = eta * sqrt(t[i])
            s[i] = s[i] + weight * g
            nu[i] = nu[i] + weight * g**2
            z = origin[i] - _ratio(s[i], np.cbrt(nu[i]) + eps)
            shrinkage = eta * decay[i] * x[i] if decouple_decay else 0.0
            x[i] = momentum * x[i] + (1 - momentum) * z - shrinkage
        iterates.append(list(x))
    return iterates, {}


def mirror_madgrad(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 1e-2,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    eps: float = 0.0,
    decouple_decay: bool = False,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """MirrorMADGRAD (github.com/facebookresearch/madgrad). Here lr is lr, as for madgrad."""
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    z, nu, t = list(x), _zeros(x), [0 for _ in x]
    iterates = []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        for i, eta in _moving(rates[k]):
            if decouple_decay:
                g = grads[i]
                z[i] = (1 - eta * decay[i]) * z[i]
            else:
                g = grads[i] + decay[i] * x[i]
            t[i] += 1
            nu[i] = sqrt((t[i] - 1) / t[i]) * nu[i] + g**2
            z[i] = z[i] - eta * np.cbrt(t[i]) * _ratio(g, np.cbrt(nu[i]) + eps)
            x[i] = momentum * x[i] + (1 - momentum) * z[i]
        iterates.append(list(x))
    return iterates, {}


def mda(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 1.0,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """Modernized dual averaging (arXiv 2010.10502) with coupled decay."""
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    origin, s, t = list(x), _zeros(x), [0 for _ in x]
    iterates = []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        for i, eta in _moving(rates[k]):
            t[i] += 1
            s[i] = s[i] + eta * sqrt(t[i]) * (grads[i] + decay[i] * x[i])
            z = origin[i] - s[i] / sqrt(t[i])
            x[i] = momentum * x[i] + (1 - momentum) * z
        iterates.append(list(x))
    return iterates, {}


def sngm(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    scope: Scope = "model",
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """SNGM (arXiv 2007.13985): heavy ball on g / ||g||, the decay coupled and so inside the norm, which spans scope."""
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    spans = _spans(scope, x, groups)
    u = _zeros(x)
    iterates = []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        for span in spans:
            moving = [(i, eta) for i, eta in _moving(rates[k]) if i in span]
            g = {i: grads[i] + decay[i] * x[i] for i, _ in moving}
            norm = sqrt(sum(_dot(g[i], g[i]) for i in g))
            for i, eta in moving:
                u[i] = momentum * u[i] + (g[i] / norm if norm > 0 else 0.0)
                x[i] = x[i] - eta * u[i]
        iterates.append(list(x))
    return iterates, {}


def _ratio(a: Array, b: Array) -> Array:
    """a / b, and 0 where b is 0."""
    return np.divide(a, b, out=np.zeros_like(a), where=b != 0)

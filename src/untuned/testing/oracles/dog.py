"""Distance over gradients."""

from functools import partial
from math import sqrt

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
)


def dog(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 1.0,
    reps_rel: float = 1e-6,
    weight_decay: float = 0.0,
    eps: float = 1e-8,
    scope: Scope = "model",
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """DoG (arXiv 2302.12022): eta = rbar / sqrt(G + eps), G with the gradient of this step. Coupled decay.

    As in release 1.0.3 of the authors' package: rbar starts at ``reps_rel`` (1 + ||x_0||) and is compared with the
    distance before the step, eps is added once, and LDoG has all this per tensor. The package's numbers span a group.
    Scalars of each step: ``rbar``, ``G``, with another ``scope`` as lists, one a group or tensor.
    """
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    origin, squares = list(x), [0.0 for _ in x]
    spans = _spans(scope, x, groups)
    rbar, G = [0.0 for _ in spans], [0.0 for _ in spans]
    iterates, rows = [], []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        for a, span in enumerate(spans):
            top = max(rates[k][i] for i in span)
            f = {i: eta / top for i, eta in _moving(rates[k]) if i in span}
            if not f:
                continue
            g = {i: grads[i] + decay[i] * x[i] for i in f}
            if rbar[a] == 0:
                rbar[a] = reps_rel * (1 + sqrt(sum(_dot(x[i], x[i]) / f[i] for i in f)))
            distance = sqrt(sum(_dot(x[i] - origin[i], x[i] - origin[i]) / f[i] for i in f))
            rbar[a] = max(rbar[a], distance)
            for i in f:
                squares[i] += f[i] * _dot(g[i], g[i])
            G[a] = sum(squares[i] for i in f)
            step = top * rbar[a] / sqrt(G[a] + eps)
            for i in f:
                x[i] = x[i] - step * f[i] * g[i]
        iterates.append(list(x))
        rows.append({"rbar": _per_span(scope, rbar), "G": _per_span(scope, G)})
    return iterates, _columns(rows)


ldog = partial(dog, scope="tensor")


def dowg(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 1.0,
    eps: float = 1e-4,
    weight_decay: float = 0.0,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """DoWG (arXiv 2305.16284): eta = rbar^2 / (sqrt(v) + eps), v = sum rbar_i^2 ||g_i||^2. Coupled decay.

    eps, which the paper has not, stands where the authors' code and optax have it; rbar^2 starts at eps too.
    Scalars of each step: ``rbar``, ``v``.
    """
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    origin, weighted = list(x), [0.0 for _ in x]
    rbar, v = sqrt(eps), 0.0
    iterates, rows = [], []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        top = max(rates[k])
        f = {i: eta / top for i, eta in _moving(rates[k])}
        g = {i: grads[i] + decay[i] * x[i] for i in f}
        if f:
            distance = sqrt(sum(_dot(x[i] - origin[i], x[i] - origin[i]) / f[i] for i in f))
            rbar = max(rbar, distance)
            for i in f:
                weighted[i] += rbar**2 * f[i] * _dot(g[i], g[i])
            v = sum(weighted[i] for i in f)
            step = top * rbar**2 / (sqrt(v) + eps)
            for i in f:
                x[i] = x[i] - step * f[i] * g[i]
        iterates.append(list(x))
        rows.append({"rbar": rbar, "v": v})
    return iterates, _columns(rows)

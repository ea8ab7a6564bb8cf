"""MoMo and MoMo-Adam."""

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
    _multiplier,
    _start,
    _zeros,
)


def momo(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 1.0,
    beta: float = 0.9,
    lb: float = 0.0,
    weight_decay: float = 0.0,
    bias_correction: bool = False,
    use_fstar: bool = False,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """MoMo (arXiv 2305.07583), the proximal step of one model over all groups; ``use_fstar`` is its MoMo* form.

    Scalars: ``t`` the multiplier of every lr before the cap, ``theta`` after it, ``tau`` = theta * scheduled ``lr``,
    ``lower_bound``, and the model's constants ``loss_average`` and ``gamma``.
    """
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    d, gamma = _zeros(x), [0.0 for _ in x]
    F, Gamma, L, k_F = 0.0, 0.0, lb, 0
    iterates, rows = [], []
    for k in range(1, steps + 1):
        f, grads = problem(x, k)
        moving = _moving(rates[k])
        t = theta = 0.0
        if moving:
            # Without bias correction the averages start at the model's first sample: beta is 0 once. A tensor that
            # joins later keeps the weights of F, so that all three average one linearisation of the loss.
            k_F += 1
            b = beta if bias_correction or k_F > 1 else 0.0
            F = b * F + (1 - b) * f
            for i, _ in moving:
                d[i] = b * d[i] + (1 - b) * grads[i]
                gamma[i] = b * gamma[i] + (1 - b) * _dot(grads[i], x[i])
            rho = 1 - beta**k_F if bias_correction else 1.0

            # The paper's B, S and N divided by the group's c, so that they add up over groups with other lr and decay.
            c = {i: 1 + eta * decay[i] for i, eta in moving}
            Gamma = sum(gamma[i] for i in c)
            S = {i: _dot(d[i], x[i]) for i in c}
            N = {i: eta * _dot(d[i], d[i]) for i, eta in moving}
            B = F - Gamma + sum(S[i] / c[i] for i in c)
            if use_fstar and B < rho * L:
                L = max(B / (2 * rho), lb)
            slope = sum(N[i] / c[i] for i in c)
            t = max(B - rho * L, 0.0) / slope if slope > 0 else 0.0
            theta = min(1 / rho, t)
            if use_fstar:
                L = max((F - Gamma + sum(S.values()) - theta / 2 * sum(N.values())) / rho, lb)
            for i, eta in moving:
                x[i] = (x[i] - theta * eta * d[i]) / c[i]
        iterates.append(list(x))
        tau = theta * lr * _multiplier(schedule, k)
        rows.append({"t": t, "theta": theta, "tau": tau, "lower_bound": L, "loss_average": F, "gamma": Gamma})
    return iterates, _columns(rows)


def momo_adam(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 1e-2,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    lb: float = 0.0,
    weight_decay: float = 0.0,
    divide: bool = True,
    use_fstar: bool = False,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """MoMo-Adam (arXiv 2305.07583): MoMo in Adam's norm; ``divide=False`` decays like AdamW. Scalars as for momo."""
    b1, b2 = betas
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    m, v, gamma, seen = _zeros(x), _zeros(x), [0.0 for _ in x], [0 for _ in x]
    F, Gamma, L, k_F = 0.0, 0.0, lb, 0
    iterates, rows = [], []
    for k in range(1, steps + 1):
        f, grads = problem(x, k)
        moving = _moving(rates[k])
        t = theta = 0.0
        if moving:
            k_F += 1
            F = b1 * F + (1 - b1) * f
            D = {}
            for i, _ in moving:
                seen[i] += 1
                m[i] = b1 * m[i] + (1 - b1) * grads[i]
                v[i] = b2 * v[i] + (1 - b2) * grads[i] ** 2
                gamma[i] = b1 * gamma[i] + (1 - b1) * _dot(grads[i], x[i])
                D[i] = eps + np.sqrt(v[i] / (1 - b2 ** seen[i]))
            rho = 1 - b1**k_F

            c = {i: 1 + eta * decay[i] for i, eta in moving}
            Gamma = sum(gamma[i] for i in c)
            S = {i: _dot(m[i], x[i]) for i in c}
            N = {i: eta * _dot(m[i], m[i] / D[i]) for i, eta in moving}
            B = F - Gamma + sum(S[i] / c[i] for i in c)
            if use_fstar and B < rho * L:
                L = max(B / (2 * rho), lb)
            slope = sum(N[i] / c[i] for i in c)
            t = max(B - rho * L, 0.0) / slope if slope > 0 else 0.0
            theta = min(1 / rho, t)
            if use_fstar:
                L = max((F - Gamma + sum(S.values()) - theta / 2 * sum(N.values())) / rho, lb)
            for i, eta in moving:
                if divide:
                    x[i] = (x[i] - theta * eta * m[i] / D[i]) / c[i]
                else:
                    x[i] = (1 - eta * decay[i]) * x[i] - theta * eta * m[i] / D[i]
        iterates.append(list(x))
        tau = theta * lr * _multiplier(schedule, k)
        rows.append({"t": t, "theta": theta, "tau": tau, "lower_bound": L, "loss_average": F, "gamma": Gamma})
    return iterates, _columns(rows)

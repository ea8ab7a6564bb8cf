"""Naive float64 NumPy transcriptions of the papers' algorithm boxes, to check the optimizers against.

Every oracle is one loop that reads from top to bottom and shares nothing with the library. All are called alike:

    groups = [{"indices": [0], "lr": 0.1}]
    iterates, scalars = momo(x0, problem, steps, lr=1.0, groups=groups, schedule=linear_decay(steps))

- ``x0``: the parameter tensors, a list of arrays of any shapes.
- ``problem(x, k) -> (loss, grads)``: called at the parameters before step k = 1, 2, ...; ``grads`` is shaped as ``x``.
- ``schedule``: the multiplier of lr at each step; None means 1 throughout.
- ``groups``: for the tensors of these indices, other values of ``lr``, ``weight_decay`` and ``schedule``.
- ``iterates[k - 1]``: the parameters a torch module holds after step k (in training mode).
- ``scalars``: per step, the numbers the method chose for itself.

A tensor whose lr is 0 at a step takes no part in that step: its parameters, moments and counters stay, and no sum over
the model includes it. A step in which no tensor takes part advances nothing.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import inf, sqrt
from typing import Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Problem = Callable[[list[Array], int], tuple[float, list[Array]]]
Result = tuple[list[list[Array]], dict[str, list[Any]]]


Schedule = Sequence[float] | None


class Group(TypedDict, total=False):
    indices: list[int]
    lr: float
    weight_decay: float
    schedule: Schedule


Groups = Sequence[Group] | None


def linear_decay(steps: int, warmup: int = 0) -> list[float]:
    """Multipliers 1, ..., 1/N of N = ``steps`` steps (arXiv 2310.07831), after ``warmup`` rising steps 1/W, ..., 1."""
    rising = [(s + 1) / warmup for s in range(warmup)]
    return rising + [(steps - s) / (steps - warmup) for s in range(warmup, steps)]


def sgd(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 1e-3,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """Heavy ball as torch defines it: the first buffer is the first gradient, undampened; the decay is coupled."""
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    buffer: list[Array | None] = [None for _ in x]
    iterates = []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        for i, eta in _moving(rates[k]):
            g = grads[i] + decay[i] * x[i]
            b = buffer[i]
            b = g if b is None else momentum * b + (1 - dampening) * g
            buffer[i] = b
            if momentum == 0:
                x[i] = x[i] - eta * g
            elif nesterov:
                x[i] = x[i] - eta * (g + momentum * b)
            else:
                x[i] = x[i] - eta * b
        iterates.append(list(x))
    return iterates, {}


def adam(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decouple: bool = False,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """Adam (arXiv 1412.6980); with ``decouple`` AdamW (arXiv 1711.05101)."""
    b1, b2 = betas
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    m, v, t = _zeros(x), _zeros(x), [0 for _ in x]
    iterates = []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        for i, eta in _moving(rates[k]):
            g = grads[i]
            if decouple:
                x[i] = x[i] - eta * decay[i] * x[i]
            else:
                g = g + decay[i] * x[i]
            t[i] += 1
            m[i] = b1 * m[i] + (1 - b1) * g
            v[i] = b2 * v[i] + (1 - b2) * g**2
            m_hat = m[i] / (1 - b1 ** t[i])
            v_hat = v[i] / (1 - b2 ** t[i])
            x[i] = x[i] - eta * m_hat / (np.sqrt(v_hat) + eps)
        iterates.append(list(x))
    return iterates, {}


adamw = partial(adam, decouple=True, weight_decay=1e-2)


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
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """Prodigy in its Adam form (arXiv 2306.06101). The step uses the d from before it, but for d * eps.

    A group whose lr is a fraction of the largest is in other units: y = x / fraction, as if all had the largest lr.
    Scalars after each step: ``d``, ``d_max``, ``d_hat``.
    """
    b1, b2 = betas
    b3 = sqrt(b2) if beta3 is None else beta3
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    origin = list(x)
    m, v, s, count = _zeros(x), _zeros(x), _zeros(x), [0 for _ in x]
    # The numerator is kept per tensor: a paused tensor leaves both sides of the ratio, with its past.
    r = [0.0 for _ in x]
    d, d_max, d_hat = d0, d0, 0.0
    iterates, rows = [], []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        h = {}
        top = max(rates[k])
        for i, eta in _moving(rates[k]):
            t = count[i] + 1
            q = sqrt(1 - b2**t) / (1 - b1**t) if use_bias_correction else 1.0
            h[i] = d * eta * q
            g = grads[i] if decouple else grads[i] + decay[i] * x[i]
            r[i] = b3 * r[i] + d / d0 * d * top * q * _dot(g, origin[i] - x[i])
            m[i] = b1 * m[i] + (1 - b1) * d * g
            v[i] = b2 * v[i] + (1 - b2) * d**2 * g**2
            s[i] = b3 * s[i] + d / d0 * (d * eta / top if safeguard_warmup else h[i]) * g
        l1 = sum(float(np.abs(s[i]).sum()) for i in h)
        if l1 > 0:
            d_hat = d_coef * sum(r[i] for i in h) / l1
            if d == d0:
                d = max(d, d_hat)
            d_max = max(d_max, d_hat)
            d = min(d_max, d * growth_rate)
            for i, h_i in h.items():
                count[i] += 1
                if decouple:
                    x[i] = x[i] - decay[i] * h_i * x[i]
                x[i] = x[i] - h_i * m[i] / (np.sqrt(v[i]) + d * eps)
        iterates.append(list(x))
        rows.append({"d": d, "d_max": d_max, "d_hat": d_hat})
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
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """D-Adapt Adam (arXiv 2301.07733), the later form whose numerator sums <g, s / A>. Scalars: ``d``, ``d_hat``."""
    b1, b2 = betas
    sb = sqrt(b2)
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    m, v, s, count = _zeros(x), _zeros(x), _zeros(x), [0 for _ in x]
    # The numerator is kept per tensor: a paused tensor leaves both sides of the ratio, with its past.
    r = [0.0 for _ in x]
    d, d_hat = d0, 0.0
    iterates, rows = [], []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        h, fraction = {}, {}
        top = max(rates[k])
        for i, eta in _moving(rates[k]):
            t = count[i] + 1
            q = sqrt(1 - b2**t) / (1 - b1**t) if use_bias_correction else 1.0
            h[i] = d * eta * q
            fraction[i] = eta / top
            g = grads[i] if decouple else grads[i] + decay[i] * x[i]
            r[i] = sb * r[i] + (1 - sb) * h[i] * _dot(g, s[i] / (np.sqrt(v[i]) + eps))
            m[i] = b1 * m[i] + h[i] * (1 - b1) * g
            v[i] = b2 * v[i] + (1 - b2) * g**2
            s[i] = sb * s[i] + (1 - sb) * d * top * q * g
        l1 = sum(fraction[i] * float(np.abs(s[i]).sum()) for i in h)
        if l1 > 0:
            d_hat = sum(r[i] for i in h) / ((1 - sb) * l1)
            d = max(d, min(d_hat, d * growth_rate))
            for i, h_i in h.items():
                count[i] += 1
                if decouple:
                    x[i] = x[i] - decay[i] * h_i * x[i]
                x[i] = x[i] - m[i] / (np.sqrt(v[i]) + eps)
        iterates.append(list(x))
        rows.append({"d": d, "d_hat": d_hat})
    return iterates, _columns(rows)


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


def schedule_free_sgd(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 1.0,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    warmup_steps: int = 0,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """Schedule-Free SGD (arXiv 2405.15682), x, y and z kept apart, decay at y. Iterates are y, ``averaged`` is x."""
    y, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    z, x = list(y), list(y)
    t, rate_max, weight_sum = [0 for _ in y], [0.0 for _ in y], [0.0 for _ in y]
    iterates, averaged = [], []
    for k in range(1, steps + 1):
        _, grads = problem(y, k)
        for i, eta in _moving(rates[k]):
            t[i] += 1
            rate = eta * min(1.0, t[i] / warmup_steps) if warmup_steps else eta
            z[i] = z[i] - rate * (grads[i] + decay[i] * y[i])
            rate_max[i] = max(rate_max[i], rate)
            weight = t[i] ** r * rate_max[i] ** weight_lr_power
            weight_sum[i] += weight
            c = weight / weight_sum[i]
            x[i] = (1 - c) * x[i] + c * z[i]
            y[i] = (1 - momentum) * z[i] + momentum * x[i]
        iterates.append(list(y))
        averaged.append(list(x))
    return iterates, {"averaged": averaged}


def schedule_free_adamw(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 2.5e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    warmup_steps: int = 0,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """Schedule-Free AdamW (arXiv 2405.15682), the released form: v corrected. Iterates are y, ``averaged`` is x."""
    beta, b2 = betas
    y, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    z, x, v = list(y), list(y), _zeros(y)
    t, rate_max, weight_sum = [0 for _ in y], [0.0 for _ in y], [0.0 for _ in y]
    iterates, averaged = [], []
    for k in range(1, steps + 1):
        _, grads = problem(y, k)
        for i, eta in _moving(rates[k]):
            t[i] += 1
            rate = eta * min(1.0, t[i] / warmup_steps) if warmup_steps else eta
            v[i] = b2 * v[i] + (1 - b2) * grads[i] ** 2
            normed = grads[i] / (np.sqrt(v[i] / (1 - b2 ** t[i])) + eps)
            z[i] = z[i] - rate * (normed + decay[i] * y[i])
            rate_max[i] = max(rate_max[i], rate)
            weight = t[i] ** r * rate_max[i] ** weight_lr_power
            weight_sum[i] += weight
            c = weight / weight_sum[i]
            x[i] = (1 - c) * x[i] + c * z[i]
            y[i] = (1 - beta) * z[i] + beta * x[i]
        iterates.append(list(y))
        averaged.append(list(x))
    return iterates, {"averaged": averaged}


def _start(
    x0: list[Array], steps: int, lr: float, weight_decay: float, groups: Groups, schedule: Schedule
) -> tuple[list[Array], list[list[float]], list[float]]:
    """-> copies of x0, lr per step and tensor (steps count from 1: entry 0 is empty), weight decay per tensor."""
    lrs, decay, schedules = [lr for _ in x0], [weight_decay for _ in x0], [schedule for _ in x0]
    for group in groups or []:
        for i in group.get("indices", []):
            lrs[i] = group.get("lr", lr)
            decay[i] = group.get("weight_decay", weight_decay)
            schedules[i] = group.get("schedule", schedule)
    rates = [[]] + [[lrs[i] * _multiplier(schedules[i], k) for i in range(len(x0))] for k in range(1, steps + 1)]
    return [np.array(a, dtype=np.float64) for a in x0], rates, decay


def _multiplier(schedule: Schedule, k: int) -> float:
    return 1.0 if schedule is None else schedule[k - 1]


def _moving(rates: list[float]) -> list[tuple[int, float]]:
    """The tensors that take part in a step, with their lr."""
    return [(i, eta) for i, eta in enumerate(rates) if eta != 0]


def _zeros(x: list[Array]) -> list[Array]:
    return [np.zeros_like(a) for a in x]


def _dot(a: Array, b: Array) -> float:
    return float(np.sum(a * b))


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


def _columns(rows: list[dict[str, float]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}

"""Schedule-Free, with Polyak's, MoMo's and Prodigy's step sizes, and generalized primal averaging.

Under an average the gradient is taken at y, and the base step moves z. A step size that measures the loss or the
distance can be asked at either point (``look``): "z", where its step begins, as the published composites do, so that
the loss there is the linear model f(y) + <g, z - y>; or "y", as if the step began where the gradient was taken.

In these composites a step has the weight t^r rho_t^p in the average, p = ``weight_lr_power``, where rho_t is the
largest scheduled lr up to the step (``weigh="lr"``, so that constant lr gives the mean), or the largest lr times the
factor that the step size chose (``weigh="step"``, as ScheduleFree+ does). Before the first weight above 0, x stays.
"""

from collections.abc import Callable
from math import inf, sqrt
from typing import Literal

import numpy as np

from untuned.testing.oracles.protocol import (
    Array,
    Groups,
    Problem,
    Result,
    Schedule,
    _dot,
    _moving,
    _start,
    _zeros,
)


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


def gpa(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    base: Literal["sgd", "adamw"],
    lr: float = 1e-3,
    mu_y: float = 0.7,
    mu_x: float | Callable[[int], float] = 0.9967,
    momentum: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decay_at: Literal["z", "y"] = "z",
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """Generalized primal averaging (arXiv 2512.17131) around SGD or AdamW. Iterates are y, ``averaged`` is x.

    y = mu_y x + (1 - mu_y) z is where gradients are taken; z takes the base step; x = mu_x x + (1 - mu_x) z after it.
    A function ``mu_x`` is asked for its value at the tensor's step 1, 2, .... The decay is decoupled, of z or of y.
    """
    b1, b2 = betas
    y, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    z, x, m, v, t = list(y), list(y), _zeros(y), _zeros(y), [0 for _ in y]
    iterates, averaged = [], []
    for k in range(1, steps + 1):
        _, grads = problem(y, k)
        for i, eta in _moving(rates[k]):
            t[i] += 1
            if base == "sgd":
                m[i] = momentum * m[i] + grads[i]
                u = m[i]
            elif base == "adamw":
                m[i] = b1 * m[i] + (1 - b1) * grads[i]
                v[i] = b2 * v[i] + (1 - b2) * grads[i] ** 2
                u = m[i] / (1 - b1 ** t[i]) / (np.sqrt(v[i] / (1 - b2 ** t[i])) + eps)
            else:
                raise ValueError(f"gpa: base is {base!r}; give 'sgd' or 'adamw'")
            z[i] = z[i] - eta * (u + decay[i] * (z[i] if decay_at == "z" else y[i]))
            keep = mu_x(t[i]) if callable(mu_x) else mu_x
            x[i] = keep * x[i] + (1 - keep) * z[i]
            y[i] = mu_y * x[i] + (1 - mu_y) * z[i]
        iterates.append(list(y))
        averaged.append(list(x))
    return iterates, {"averaged": averaged}


def sps_schedule_free(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 1.0,
    c: float = 1.0,
    lb: float = 0.0,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    look: Literal["z", "y"] = "z",
    weigh: Literal["lr", "step"] = "lr",
    r: float = 0.0,
    weight_lr_power: float = 2.0,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """Schedule-Free SGD with Polyak's step (arXiv 2511.07767): gap / (c ||g||^2), gap = f(y) + <g, z - y> - lb.

    lr is the cap. The decay is coupled: the loss and the gradient are those of f + weight_decay / 2 ||y||^2.
    Scalars: ``theta``, the fraction of lr, and ``averaged``, x; iterates are y.
    """
    y, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    z, x = list(y), list(y)
    t, rate_max, weight_sum = [0 for _ in y], [0.0 for _ in y], [0.0 for _ in y]
    iterates, averaged, thetas = [], [], []
    for k in range(1, steps + 1):
        f, grads = problem(y, k)
        moving = _moving(rates[k])
        g = {i: grads[i] + decay[i] * y[i] for i, _ in moving}
        gap = f + sum(decay[i] / 2 * _dot(y[i], y[i]) for i in g) - lb
        if look == "z":
            gap += sum(_dot(g[i], z[i] - y[i]) for i in g)
        slope = sum(eta * _dot(g[i], g[i]) for i, eta in moving)
        theta = min(max(gap, 0.0) / (c * slope), 1.0) if slope > 0 else 0.0
        for i, eta in moving:
            t[i] += 1
            z[i] = z[i] - theta * eta * g[i]
            rate_max[i] = max(rate_max[i], theta * eta if weigh == "step" else eta)
            weight = t[i] ** r * rate_max[i] ** weight_lr_power
            weight_sum[i] += weight
            share = weight / weight_sum[i] if weight_sum[i] > 0 else 0.0
            x[i] = (1 - share) * x[i] + share * z[i]
            y[i] = (1 - momentum) * z[i] + momentum * x[i]
        iterates.append(list(y))
        averaged.append(list(x))
        thetas.append(theta)
    return iterates, {"averaged": averaged, "theta": thetas}


def momo_schedule_free(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 1.0,
    beta: float = 0.9,
    lb: float = 0.0,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    bias_correction: bool = False,
    look: Literal["z", "y"] = "z",
    weigh: Literal["lr", "step"] = "lr",
    r: float = 0.0,
    weight_lr_power: float = 2.0,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """Schedule-Free with MoMo's step of z: the model is F - G + <d, z>, where G averages <g_j, y_j>.

    ``beta`` is MoMo's average of gradients, ``momentum`` the share of x in y. The decay is MoMo's proximal one, of z.
    Scalars: ``theta``, ``loss_average`` F and ``gamma`` G as for momo, and ``averaged``, x; iterates are y.
    """
    y, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    z, x = list(y), list(y)
    t, rate_max, weight_sum = [0 for _ in y], [0.0 for _ in y], [0.0 for _ in y]
    d, gamma = _zeros(y), [0.0 for _ in y]
    F, Gamma, k_F = 0.0, 0.0, 0
    iterates = []
    scalars = {"averaged": [], "theta": [], "loss_average": [], "gamma": []}
    for k in range(1, steps + 1):
        f, grads = problem(y, k)
        moving = _moving(rates[k])
        theta = 0.0
        if moving:
            k_F += 1
            b = beta if bias_correction or k_F > 1 else 0.0
            rho = 1 - beta**k_F if bias_correction else 1.0
            F = b * F + (1 - b) * f
            for i, _ in moving:
                d[i] = b * d[i] + (1 - b) * grads[i]
                gamma[i] = b * gamma[i] + (1 - b) * _dot(grads[i], y[i])
            c = {i: 1 + eta * decay[i] for i, eta in moving}
            Gamma = sum(gamma[i] for i in c)
            B = F - Gamma + sum(_dot(d[i], z[i] if look == "z" else y[i]) / c[i] for i in c)
            slope = sum(eta * _dot(d[i], d[i]) / c[i] for i, eta in moving)
            theta = min(1 / rho, max(B - rho * lb, 0.0) / slope) if slope > 0 else 0.0
            for i, eta in moving:
                t[i] += 1
                z[i] = (z[i] - theta * eta * d[i]) / c[i]
                rate_max[i] = max(rate_max[i], rho * theta * eta if weigh == "step" else eta)
                weight = t[i] ** r * rate_max[i] ** weight_lr_power
                weight_sum[i] += weight
                share = weight / weight_sum[i] if weight_sum[i] > 0 else 0.0
                x[i] = (1 - share) * x[i] + share * z[i]
                y[i] = (1 - momentum) * z[i] + momentum * x[i]
        iterates.append(list(y))
        for name, value in {"averaged": list(x), "theta": theta, "loss_average": F, "gamma": Gamma}.items():
            scalars[name].append(value)
    return iterates, scalars


def prodigy_schedule_free(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.999),
    beta3: float | None = None,
    eps: float = 1e-8,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    use_bias_correction: bool = False,
    safeguard_warmup: bool = False,
    d0: float = 1e-6,
    d_coef: float = 1.0,
    growth_rate: float = inf,
    look: Literal["z", "y"] = "z",
    weigh: Literal["lr", "step"] = "lr",
    r: float = 0.0,
    weight_lr_power: float = 2.0,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """Schedule-Free with Prodigy's step of z: the numerator averages <g, x_0 - z>, as the authors' composite does.

    ``betas`` are those of Prodigy's moments, ``momentum`` the share of x in y; Schedule-Free's own Adam has no first
    moment: betas[0] = 0. The decay is decoupled, of y, with d lr, as Schedule-Free's. With ``weigh="step"`` the weights
    are those of d lr. Scalars: ``d`` and ``d_hat`` after each step, and ``averaged``, x; iterates are y.
    """
    b1, b2 = betas
    b3 = sqrt(b2) if beta3 is None else beta3
    y, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    origin, z, x = list(y), list(y), list(y)
    t, rate_max, weight_sum = [0 for _ in y], [0.0 for _ in y], [0.0 for _ in y]
    m, v, s, numerator = _zeros(y), _zeros(y), _zeros(y), [0.0 for _ in y]
    d, d_max, d_hat = d0, d0, 0.0
    iterates = []
    scalars = {"averaged": [], "d": [], "d_hat": []}
    for k in range(1, steps + 1):
        _, grads = problem(y, k)
        moving = _moving(rates[k])
        top = max(rates[k])
        h = {}
        for i, eta in moving:
            q = sqrt(1 - b2 ** (t[i] + 1)) / (1 - b1 ** (t[i] + 1)) if use_bias_correction else 1.0
            h[i] = d * eta * q
            offset = origin[i] - (z[i] if look == "z" else y[i])
            numerator[i] = b3 * numerator[i] + d / d0 * d * top * q * _dot(grads[i], offset)
            m[i] = b1 * m[i] + (1 - b1) * d * grads[i]
            v[i] = b2 * v[i] + (1 - b2) * d**2 * grads[i] ** 2
            s[i] = b3 * s[i] + d / d0 * (d * eta / top if safeguard_warmup else h[i]) * grads[i]
        l1 = sum(float(np.abs(s[i]).sum()) for i in h)
        if l1 > 0:
            d_hat = d_coef * sum(numerator[i] for i in h) / l1
            if d == d0:
                d = max(d, d_hat)
            d_max = max(d_max, d_hat)
            d = min(d_max, d * growth_rate)
            for i, eta in moving:
                t[i] += 1
                z[i] = z[i] - h[i] * (m[i] / (np.sqrt(v[i]) + d * eps) + decay[i] * y[i])
                rate_max[i] = max(rate_max[i], h[i] if weigh == "step" else eta)
                weight = t[i] ** r * rate_max[i] ** weight_lr_power
                weight_sum[i] += weight
                share = weight / weight_sum[i] if weight_sum[i] > 0 else 0.0
                x[i] = (1 - share) * x[i] + share * z[i]
                y[i] = (1 - momentum) * z[i] + momentum * x[i]
        iterates.append(list(y))
        for name, value in {"averaged": list(x), "d": d, "d_hat": d_hat}.items():
            scalars[name].append(value)
    return iterates, scalars

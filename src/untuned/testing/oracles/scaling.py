"""Random scaling: every step of the model is multiplied by one random number."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from untuned.testing.oracles.protocol import Array, Groups, Problem, Result, Schedule, _moving, _start, _zeros

Factors = Callable[[int], float] | Sequence[float]


def random_scaled(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    factors: Factors,
    base: Literal["sgd", "adamw"] = "sgd",
    lr: float = 0.1,
    beta: float = 0.9,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """SGD with averaged momentum, or AdamW, and random scaling (arXiv 2405.09742): x moves by s_n times the plain step.

    ``factors`` are s_1, s_2, ..., a list of them or a function of n = 1, 2, ...: one number for the whole model, which
    multiplies the decay, too. A step in which no tensor takes part uses none. ``beta`` belongs to SGD, whose average
    starts at 0, uncorrected; ``betas`` and ``eps`` belong to AdamW.
    """
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    m, v, t, n = _zeros(x), _zeros(x), [0 for _ in x], 0
    iterates = []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        moving = _moving(rates[k])
        if moving:
            n += 1
            s = _factor(factors, n)
            for i, eta in moving:
                t[i] += 1
                if base == "sgd":
                    m[i] = beta * m[i] + (1 - beta) * grads[i]
                    u = m[i]
                elif base == "adamw":
                    m[i] = betas[0] * m[i] + (1 - betas[0]) * grads[i]
                    v[i] = betas[1] * v[i] + (1 - betas[1]) * grads[i] ** 2
                    u = m[i] / (1 - betas[0] ** t[i]) / (np.sqrt(v[i] / (1 - betas[1] ** t[i])) + eps)
                else:
                    raise ValueError(f"random_scaled: base is {base!r}; give 'sgd' or 'adamw'")
                x[i] = x[i] - s * eta * (u + decay[i] * x[i])
        iterates.append(list(x))
    return iterates, {}


def random_point(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    factors: Factors,
    base: Literal["sgd", "adamw"] = "sgd",
    lr: float = 0.1,
    beta: float = 0.9,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """Random evaluation points (arXiv 2405.09742, plain O2NC): x takes the plain steps, gradients are taken beside it.

    The step D of SGD with averaged momentum or of AdamW takes x to x + D, and the parameters w, where the next gradient
    is taken, to x + s_n D, of the x before: s_n, n = 1, 2, ..., are ``factors`` as for random_scaled, uniform on (0, 1)
    in the paper. The decay is decoupled, inside lr, of the parameters w that were held before the step. Iterates are w;
    ``unscaled`` is x.
    """
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    w, m, v, t, n = list(x), _zeros(x), _zeros(x), [0 for _ in x], 0
    iterates, averaged = [], []
    for k in range(1, steps + 1):
        _, grads = problem(w, k)
        moving = _moving(rates[k])
        if moving:
            n += 1
            s = _factor(factors, n)
            for i, eta in moving:
                t[i] += 1
                if base == "sgd":
                    m[i] = beta * m[i] + (1 - beta) * grads[i]
                    u = m[i]
                elif base == "adamw":
                    m[i] = betas[0] * m[i] + (1 - betas[0]) * grads[i]
                    v[i] = betas[1] * v[i] + (1 - betas[1]) * grads[i] ** 2
                    u = m[i] / (1 - betas[0] ** t[i]) / (np.sqrt(v[i] / (1 - betas[1] ** t[i])) + eps)
                else:
                    raise ValueError(f"random_point: base is {base!r}; give 'sgd' or 'adamw'")
                D = -eta * (u + decay[i] * w[i])
                w[i] = x[i] + s * D
                x[i] = x[i] + D
        iterates.append(list(w))
        averaged.append(list(x))
    return iterates, {"unscaled": averaged}


def random_scaled_schedule_free(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    factors: Factors,
    lr: float = 1.0,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """Schedule-Free SGD whose step of z, decay at y included, is multiplied by s_n; ``factors`` as for random_scaled.

    The weights of the average x are those of the unscaled lr. Iterates are y, ``averaged`` is x.
    """
    y, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    z, x, n = list(y), list(y), 0
    t, rate_max, weight_sum = [0 for _ in y], [0.0 for _ in y], [0.0 for _ in y]
    iterates, averaged = [], []
    for k in range(1, steps + 1):
        _, grads = problem(y, k)
        moving = _moving(rates[k])
        if moving:
            n += 1
            s = _factor(factors, n)
            for i, eta in moving:
                t[i] += 1
                z[i] = z[i] - s * eta * (grads[i] + decay[i] * y[i])
                rate_max[i] = max(rate_max[i], eta)
                weight = t[i] ** r * rate_max[i] ** weight_lr_power
                weight_sum[i] += weight
                c = weight / weight_sum[i]
                x[i] = (1 - c) * x[i] + c * z[i]
                y[i] = (1 - momentum) * z[i] + momentum * x[i]
        iterates.append(list(y))
        averaged.append(list(x))
    return iterates, {"averaged": averaged}


def _factor(factors: Factors, n: int) -> float:
    return factors(n) if callable(factors) else factors[n - 1]

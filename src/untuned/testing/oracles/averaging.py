"""Schedule-Free."""

import numpy as np

from untuned.testing.oracles.protocol import Array, Groups, Problem, Result, Schedule, _moving, _start, _zeros


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

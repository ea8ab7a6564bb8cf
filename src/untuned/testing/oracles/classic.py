"""SGD and Adam."""

from functools import partial

import numpy as np

from untuned.testing.oracles.protocol import Array, Groups, Problem, Result, Schedule, _moving, _start, _zeros


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

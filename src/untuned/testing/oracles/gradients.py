"""Methods that change the gradient itself: AdaRem."""

import numpy as np

from untuned.testing.oracles.protocol import Array, Groups, Problem, Result, Schedule, _columns, _moving, _start, _zeros


def adarem(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 0.4,
    beta: float = 0.9,
    lam: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """AdaRem (arXiv 2010.11041): every coordinate of the gradient has a gain between 0 and 2 of its own.

    Experimental. The formula is recalled from the one public implementation, for Flax, which does not claim to be
    right itself; the paper has no code. The decay is decoupled, inside lr. With ``eps`` 0 the gain of a tensor whose
    average is zero is 1.
    Scalars: ``gain``, the smallest and the largest gain of each tensor at the step, (1, 1) where it took none.
    """
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    m, t = _zeros(x), [0 for _ in x]
    iterates, rows = [], []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        gains = [(1.0, 1.0) for _ in x]
        for i, eta in _moving(rates[k]):
            largest = np.abs(m[i]).max()
            agreement = np.sign(grads[i]) * m[i] / (largest + eps) if largest > 0 else np.zeros_like(m[i])
            gain = 1 + lam ** t[i] * agreement
            x[i] = x[i] - eta * (gain * grads[i] + decay[i] * x[i])
            m[i] = beta * m[i] + (1 - beta) * grads[i]
            t[i] += 1
            gains[i] = (float(gain.min()), float(gain.max()))
        iterates.append(list(x))
        rows.append({"gain": gains})
    return iterates, _columns(rows)

"""Methods that change the gradient itself: AdaRem and SGDF."""

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


def sgdf(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 0.5,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    gamma: float = 0.5,
    weight_decay: float = 0.0,
    weight_decouple: bool = False,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """SGDF (arXiv 2311.02818), the final algorithm: an estimate of the gradient between its average and itself.

    The decay is coupled, part of the gradient that is filtered, or with ``weight_decouple`` apart, inside lr. With
    ``eps`` 0 a gain of 0 / 0 is 0: the average and the gradient are then one.
    Scalars: ``gain``, the smallest and the largest K^gamma of each tensor at the step, (1, 1) where it took none.
    """
    beta1, beta2 = betas
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    m, s, t = _zeros(x), _zeros(x), [0 for _ in x]
    iterates, rows = [], []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        gains = [(1.0, 1.0) for _ in x]
        for i, eta in _moving(rates[k]):
            t[i] += 1
            g = grads[i] if weight_decouple else grads[i] + decay[i] * x[i]
            m[i] = beta1 * m[i] + (1 - beta1) * g
            s[i] = beta2 * s[i] + (1 - beta2) * (g - m[i]) ** 2
            m_hat = m[i] / (1 - beta1 ** t[i])
            s_hat = s[i] * (1 - beta1) * (1 - beta1 ** (2 * t[i])) / ((1 + beta1) * (1 - beta2 ** t[i]))
            whole = s_hat + (g - m_hat) ** 2 + eps
            K = np.divide(s_hat, whole, out=np.zeros_like(whole), where=whole != 0)
            g_hat = m_hat + K**gamma * (g - m_hat)
            if weight_decouple:
                x[i] = (1 - eta * decay[i]) * x[i]
            x[i] = x[i] - eta * g_hat
            gains[i] = (float((K**gamma).min()), float((K**gamma).max()))
        iterates.append(list(x))
        rows.append({"gain": gains})
    return iterates, _columns(rows)

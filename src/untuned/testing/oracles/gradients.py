"""Methods that change the gradient itself: AdaRem and SGDF."""

from typing import Literal

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
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """AdaRem (arXiv 2010.11041): every coordinate of the gradient has a gain between 0 and 2 of its own.

    Experimental. The formula is recalled from the one public implementation, for Flax, which does not claim to be
    right itself; the paper has no code. The decay is decoupled, inside lr. With ``eps`` 0 the gain of a tensor whose
    average is zero is 1. With ``momentum``, which is no part of that code, a heavy ball takes the gained gradients:
    b <- momentum b + gain g, and the decay stays outside it.
    Scalars: ``gain``, the smallest and the largest gain of each tensor at the step, (1, 1) where it took none.
    """
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    m, ball, t = _zeros(x), _zeros(x), [0 for _ in x]
    iterates, rows = [], []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        gains = [(1.0, 1.0) for _ in x]
        for i, eta in _moving(rates[k]):
            largest = np.abs(m[i]).max()
            agreement = np.sign(grads[i]) * m[i] / (largest + eps) if largest > 0 else np.zeros_like(m[i])
            gain = 1 + lam ** t[i] * agreement
            ball[i] = momentum * ball[i] + gain * grads[i]
            x[i] = x[i] - eta * (ball[i] + decay[i] * x[i])
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
    version: Literal["final", "v2025-03", "v2024-04", "v2024-03"] = "final",
    weight_decay: float = 0.0,
    weight_decouple: bool = False,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """SGDF (arXiv 2311.02818), the final algorithm: an estimate of the gradient between its average and itself.

    Of ``version`` "final" the gain is K^gamma; the earlier ones have no ``gamma``: "v2025-03" has 2 K, "v2024-04" K,
    and "v2024-03" K of the variance s / (1 - beta2^t), which is not yet that of an average. All add eps as the final
    one does. The decay is coupled, part of the gradient that is filtered, or with ``weight_decouple`` apart, inside lr.
    With ``eps`` 0 a gain of 0 / 0 is 0: the average and the gradient are then one.
    Scalars: ``gain``, the smallest and the largest gain of each tensor at the step, (1, 1) where it took none.
    """
    if version not in ("final", "v2025-03", "v2024-04", "v2024-03"):
        raise ValueError(f"sgdf: version is {version!r}; give 'final', 'v2025-03', 'v2024-04' or 'v2024-03'")
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
            s_hat = s[i] / (1 - beta2 ** t[i])
            if version != "v2024-03":
                s_hat = s_hat * (1 - beta1) * (1 - beta1 ** (2 * t[i])) / (1 + beta1)
            whole = s_hat + (g - m_hat) ** 2 + eps
            K = np.divide(s_hat, whole, out=np.zeros_like(whole), where=whole != 0)
            gain = {"final": K**gamma, "v2025-03": 2 * K}.get(version, K)
            g_hat = m_hat + gain * (g - m_hat)
            if weight_decouple:
                x[i] = (1 - eta * decay[i]) * x[i]
            x[i] = x[i] - eta * g_hat
            gains[i] = (float(gain.min()), float(gain.max()))
        iterates.append(list(x))
        rows.append({"gain": gains})
    return iterates, _columns(rows)

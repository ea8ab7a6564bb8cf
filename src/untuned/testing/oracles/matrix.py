"""Muon, and MoMo over matrices that take Muon's direction and other tensors that take Adam's."""

from math import sqrt
from typing import Literal

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

Adjust = Literal["original", "match_rms_adamw"]


def muon(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 1e-3,
    momentum: float = 0.95,
    nesterov: bool = True,
    weight_decay: float = 0.1,
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
    ns_steps: int = 5,
    eps: float = 1e-7,
    exact: bool = False,
    adjust_lr_fn: Adjust = "original",
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """Muon as ``torch.optim.Muon`` computes it, but in float64; all tensors are matrices.

    ``exact`` takes the polar factor by SVD in place of Newton and Schulz's ``ns_steps`` steps. The decay is decoupled
    and has lr before it is adjusted to the shape.
    """
    if any(a.ndim != 2 for a in x0):
        raise ValueError(f"muon: tensors of {[a.ndim for a in x0]} dimensions; give matrices only")
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    m = _zeros(x)
    iterates = []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        for i, eta in _moving(rates[k]):
            m[i] = momentum * m[i] + (1 - momentum) * grads[i]
            ahead = momentum * m[i] + (1 - momentum) * grads[i] if nesterov else m[i]
            K = _polar(ahead) if exact else _newton_schulz(ahead, ns_coefficients, ns_steps, eps)
            x[i] = (1 - eta * decay[i]) * x[i] - eta * _adjusted(x[i].shape, adjust_lr_fn) * K
        iterates.append(list(x))
    return iterates, {}


def muon_momo(
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
    bias_correction: bool = True,
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
    ns_steps: int = 5,
    ns_eps: float = 1e-7,
    exact: bool = False,
    adjust_lr_fn: Adjust = "original",
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """MoMo (arXiv 2305.07583) with one step size over matrices, by Muon, and all other tensors, by Adam.

    All tensors have the average m of their gradients, by betas[0]. Matrices go along a K(m), where a adjusts lr to the
    shape, the others along m / D with Adam's D; the denominator of the step is the sum of lr <m, u> over both
    (cf. arXiv 2510.09827, whose averages start at the first sample: ``bias_correction=False``).
    With bias correction F, m and the model's constants are rho = 1 - beta^k times as large as they should be, and the
    step is theta u with theta <= 1 / rho. K(m) has no scale, so u = rho a K(m): then every tensor moves by lr times its
    corrected direction at the cap. The decay is MoMo's; ``divide=False`` decays like AdamW. Scalars as for momo.
    """
    b1, b2 = betas
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    m, v, gamma, seen = _zeros(x), _zeros(x), [0.0 for _ in x], [0 for _ in x]
    F, Gamma, k_F = 0.0, 0.0, 0
    iterates, rows = [], []
    for k in range(1, steps + 1):
        f, grads = problem(x, k)
        moving = _moving(rates[k])
        t = theta = 0.0
        if moving:
            k_F += 1
            b = b1 if bias_correction or k_F > 1 else 0.0
            rho = 1 - b1**k_F if bias_correction else 1.0
            F = b * F + (1 - b) * f
            u = {}
            for i, _ in moving:
                seen[i] += 1
                m[i] = b * m[i] + (1 - b) * grads[i]
                v[i] = b2 * v[i] + (1 - b2) * grads[i] ** 2
                gamma[i] = b * gamma[i] + (1 - b) * _dot(grads[i], x[i])
                if x[i].ndim == 2:
                    K = _polar(m[i]) if exact else _newton_schulz(m[i], ns_coefficients, ns_steps, ns_eps)
                    u[i] = rho * _adjusted(x[i].shape, adjust_lr_fn) * K
                else:
                    u[i] = m[i] / (eps + np.sqrt(v[i] / (1 - b2 ** seen[i])))

            c = {i: 1 + eta * decay[i] for i, eta in moving}
            Gamma = sum(gamma[i] for i in c)
            B = F - Gamma + sum(_dot(m[i], x[i]) / c[i] for i in c)
            slope = sum(eta * _dot(m[i], u[i]) / c[i] for i, eta in moving)
            t = max(B - rho * lb, 0.0) / slope if slope > 0 else 0.0
            theta = min(1 / rho, t)
            for i, eta in moving:
                if divide:
                    x[i] = (x[i] - theta * eta * u[i]) / c[i]
                else:
                    x[i] = (1 - eta * decay[i]) * x[i] - theta * eta * u[i]
        iterates.append(list(x))
        tau = theta * lr * _multiplier(schedule, k)
        rows.append({"t": t, "theta": theta, "tau": tau, "lower_bound": lb, "loss_average": F, "gamma": Gamma})
    return iterates, _columns(rows)


def _newton_schulz(M: Array, coefficients: tuple[float, float, float], steps: int, eps: float) -> Array:
    """Every singular value, divided by the Frobenius norm, has been through a s + b s^3 + c s^5 ``steps`` times."""
    a, b, c = coefficients
    X = M.T if M.shape[0] > M.shape[1] else M
    X = X / max(sqrt(_dot(X, X)), eps)
    for _ in range(steps):
        A = X @ X.T
        X = a * X + (b * A + c * A @ A) @ X
    return X.T if M.shape[0] > M.shape[1] else X


def _polar(M: Array) -> Array:
    """U V' of the singular value decomposition; singular values that are 0 but for rounding stay 0."""
    U, s, V = np.linalg.svd(M, full_matrices=False)
    return (U * (s > max(M.shape) * 2.0**-52 * s.max(initial=0.0))) @ V


def _adjusted(shape: tuple[int, ...], adjust_lr_fn: Adjust) -> float:
    """What lr is multiplied with for a matrix of this shape."""
    rows, columns = shape
    factors = {"original": sqrt(max(1.0, rows / columns)), "match_rms_adamw": 0.2 * sqrt(max(rows, columns))}
    return factors[adjust_lr_fn]

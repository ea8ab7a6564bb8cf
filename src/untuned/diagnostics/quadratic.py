"""Momentum on h x^2 / 2 with gradient noise, in closed form: what is left of it when the learning rate is coupled.

The forms: SGD with momentum as torch has it, m <- beta m + g, x <- x - gamma m, and averaged, m <- beta m +
(1 - beta) g, x <- x - eta m. Both are the same run if eta = gamma / (1 - beta), with which SGD x <- x - eta g is
compared (arXiv 2307.15196; the formulas of this module are derived here).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from untuned.wrappers.svag import coefficients

Floats = NDArray[np.float64]


def coupled_eta(gamma: float, beta: float, dampening: float = 0.0) -> float:
    """The learning rate of plain SGD that goes as far as momentum with torch's lr `gamma`, momentum and dampening.

    >>> round(coupled_eta(0.02, 0.9), 12)
    0.2
    """
    _check(beta)
    return gamma * (1 - dampening) / (1 - beta)


def coupled_gamma(eta: float, beta: float, dampening: float = 0.0) -> float:
    """Torch's lr at which momentum goes as far as plain SGD with `eta`; eta itself for beta = 0.

    >>> round(coupled_gamma(0.2, 0.9), 12)
    0.02
    """
    _check(beta)
    return eta * (1 - beta) / (1 - dampening)


def largest_stable_eta(beta: float, h: float, l: int = 1) -> float:  # noqa: E741
    """The coupled eta below which the mean converges: 2 (1 + beta) / (h (1 - beta)), and l times it under SVAG.

    >>> largest_stable_eta(0.0, 1.0), round(largest_stable_eta(0.9, 1.0), 12)
    (2.0, 38.0)
    """
    _check(beta)
    return l * 2 * (1 + beta) / (h * (1 - beta))


def stationary_variance(eta: float, beta: float, h: float, s2: float, l: int = 1) -> float:  # noqa: E741
    """The variance of x in the long run: eta s2 / (h (2 - (eta / l) h (1 - beta) / (1 + beta))); inf if unstable.

    `eta` is the coupled learning rate, `h` the curvature, `s2` the variance of the gradient's noise and `l` that of
    SVAG, which makes steps of eta / l with noise of variance l s2. Momentum changes the curvature term alone, by the
    factor (1 - beta) / (1 + beta), and l makes it vanish: the limit is eta s2 / (2 h) for all.
    """
    if eta >= largest_stable_eta(beta, h, l):
        return math.inf
    return eta * s2 / (h * (2 - eta / l * h * (1 - beta) / (1 + beta)))


def mean_path(eta: float, beta: float, h: float, time: float) -> Floats:
    """The mean of x at steps 0, 1, ... to `time` (eta times the steps), from x = 1 and m = 0; shape [steps + 1]."""
    _check(beta)
    x, m, path = 1.0, 0.0, [1.0]
    for _ in range(round(time / eta)):
        m = beta * m + (1 - beta) * h * x
        x -= eta * m
        path.append(x)
    return np.array(path)


def mean_path_gap(eta: float, beta: float, h: float = 1.0, time: float = 5.0) -> float:
    """The largest distance between the mean paths of SGD and of momentum with the coupled learning rate."""
    return float(np.abs(mean_path(eta, 0.0, h, time) - mean_path(eta, beta, h, time)).max())


def simulate(
    eta: float, beta: float, h: float, s2: float, l: int, steps: int, runs: int, seed: int  # noqa: E741
) -> Floats:  # fmt: skip
    """x after `steps` steps of SVAG (l = 1: of the plain run) from the minimum with normal noise; shape [runs]."""
    _check(beta)
    c1, c2 = coefficients(l)
    rng = np.random.default_rng(seed)
    x, m = np.zeros(runs), np.zeros(runs)
    for _ in range(steps):
        noise = c1 * rng.standard_normal(runs) + c2 * rng.standard_normal(runs)
        m = beta * m + (1 - beta) * (h * x + math.sqrt(s2) * noise)
        x = x - eta / l * m
    return x


def _check(beta: float) -> None:
    if not 0 <= beta < 1:
        raise ValueError(f"beta must be in [0, 1), not {beta!r}.")

"""Stochastic Polyak steps: SPS, DecSPS, ProxSPS, SP, ALI-G, TAPS and MOTAPS, and their relative NGN.

All measure ||g||^2 in the norm in which a group whose lr is a fraction of the largest is shorter by its root: one
number ``theta``, or ``q``, multiplies every lr. All but NGN are Polyak's step on f + <g, y - x> there. But for ProxSPS
the decay is coupled: the loss and the gradient are then those of f + weight_decay / 2 * ||x||^2.
"""

from collections.abc import Sequence
from functools import partial
from math import inf, sqrt

import numpy as np
import numpy.typing as npt

from untuned.testing.oracles.protocol import (
    Array,
    Groups,
    Problem,
    Result,
    Schedule,
    _columns,
    _dot,
    _moving,
    _start,
)


def sps(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 1.0,
    c: float = 0.5,
    lb: float = 0.0,
    weight_decay: float = 0.0,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """SPS_max (arXiv 2002.10542): lr is the cap of (f - lb) / (c ||g||^2). Scalar: ``theta``, the fraction of it."""
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    iterates, rows = [], []
    for k in range(1, steps + 1):
        f, grads = problem(x, k)
        moving = _moving(rates[k])
        f, g = _penalised(f, grads, x, decay, moving)
        slope = sum(eta * _dot(g[i], g[i]) for i, eta in moving)
        theta = min(max(f - lb, 0.0) / (c * slope), 1.0) if slope > 0 else 0.0
        for i, eta in moving:
            x[i] = x[i] - theta * eta * g[i]
        iterates.append(list(x))
        rows.append({"theta": theta})
    return iterates, _columns(rows)


def dec_sps(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 1.0,
    c0: float = 1.0,
    lb: float = 0.0,
    weight_decay: float = 0.0,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """DecSPS (arXiv 2205.04583) with c_k = c0 sqrt(k + 1), its step gamma_k = theta_k lr. Scalar: ``theta``.

    lr is the paper's gamma_b: theta_{-1} = 1 and c_{-1} = c0.
    """
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    c_before, theta_before, t = c0, 1.0, 0
    iterates, rows = [], []
    for k in range(1, steps + 1):
        f, grads = problem(x, k)
        moving = _moving(rates[k])
        theta = 0.0
        if moving:
            f, g = _penalised(f, grads, x, decay, moving)
            slope = sum(eta * _dot(g[i], g[i]) for i, eta in moving)
            c = c0 * sqrt(t + 1)
            polyak = max(f - lb, 0.0) / slope if slope > 0 else inf
            theta = min(polyak, c_before * theta_before) / c
            for i, eta in moving:
                x[i] = x[i] - theta * eta * g[i]
            c_before, theta_before, t = c, theta, t + 1
        iterates.append(list(x))
        rows.append({"theta": theta})
    return iterates, _columns(rows)


def prox_sps(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 1.0,
    lb: float = 0.0,
    weight_decay: float = 0.0,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """ProxSPS (arXiv 2301.04935), the proximal step of max(f + <g, y - x>, lb) and the decay. Scalar: ``theta``."""
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    iterates, rows = [], []
    for k in range(1, steps + 1):
        f, grads = problem(x, k)
        moving = _moving(rates[k])
        c = {i: 1 + eta * decay[i] for i, eta in moving}
        # The linearisation at x / c, where the decay alone would take x.
        height = f - sum(_dot(grads[i], x[i] - x[i] / c[i]) for i in c)
        slope = sum(eta * _dot(grads[i], grads[i]) / c[i] for i, eta in moving)
        theta = min(max(height - lb, 0.0) / slope, 1.0) if slope > 0 else 0.0
        for i, eta in moving:
            x[i] = (x[i] - theta * eta * grads[i]) / c[i]
        iterates.append(list(x))
        rows.append({"theta": theta})
    return iterates, _columns(rows)


def sp(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 1.0,
    lb: float = 0.0,
    weight_decay: float = 0.0,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """SP (arXiv 2106.11851): projection onto f + <g, y - x> = lb, relaxed by lr. Scalar: ``theta``."""
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    iterates, rows = [], []
    for k in range(1, steps + 1):
        f, grads = problem(x, k)
        moving, top = _moving(rates[k]), max(rates[k])
        f, g = _penalised(f, grads, x, decay, moving)
        slope = sum(eta / top * _dot(g[i], g[i]) for i, eta in moving)
        theta = max(f - lb, 0.0) / slope if slope > 0 else 0.0
        for i, eta in moving:
            x[i] = x[i] - eta * theta * g[i]
        iterates.append(list(x))
        rows.append({"theta": theta})
    return iterates, _columns(rows)


def alig(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 0.1,
    lb: float = 0.0,
    eps: float = 1e-5,
    weight_decay: float = 0.0,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """ALI-G (arXiv 1906.05661) without momentum: lr is the cap of (f - lb) / (||g||^2 + eps). Scalar: ``theta``."""
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    iterates, rows = [], []
    for k in range(1, steps + 1):
        f, grads = problem(x, k)
        moving, top = _moving(rates[k]), max(rates[k])
        f, g = _penalised(f, grads, x, decay, moving)
        slope = sum(eta * _dot(g[i], g[i]) for i, eta in moving) + top * eps
        theta = min(max(f - lb, 0.0) / slope, 1.0) if slope > 0 else 0.0
        for i, eta in moving:
            x[i] = x[i] - theta * eta * g[i]
        iterates.append(list(x))
        rows.append({"theta": theta})
    return iterates, _columns(rows)


def motaps(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    samples: int,
    ids: Sequence[npt.NDArray[np.int64]],
    lr: float = 1.0,
    target: float = 0.0,
    target_lr: float = 0.01,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """MOTAPS (arXiv 2106.11851), the form of the author's code: the target moves once per ``samples`` samples seen.

    With momentum the author's lr is ours divided by 1 - momentum. The loss of step k is the mean over the samples
    ``ids[k - 1]``, any of which may occur more than once.
    Scalars after each step: ``q``, which multiplied every lr; ``alpha``, the losses on record; ``target``, their mean
    aimed at.
    """
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    z, alpha, seen = list(x), np.zeros(samples), 0
    iterates, rows = [], []
    for k in range(1, steps + 1):
        f, grads = problem(x, k)
        moving, top = _moving(rates[k]), max(rates[k])
        q = 0.0
        if moving:
            f, g = _penalised(f, grads, x, decay, moving)
            batch = ids[k - 1]
            share = np.bincount(batch, minlength=samples) / len(batch)
            slope = sum(eta / top * _dot(g[i], g[i]) for i, eta in moving)
            q = (f - _dot(share, alpha)) / (slope + _dot(share, share))
            for i, eta in moving:
                z[i] = z[i] - eta * q * g[i]
                x[i] = momentum * x[i] + (1 - momentum) * z[i]
            alpha = alpha + top * q * share
            seen += len(batch)
            if seen >= samples:
                seen %= samples
                mean = alpha.mean()
                target = (1 - target_lr) * target + target_lr * samples / (samples + 1) * mean
                alpha = alpha + top * (target - mean)
        iterates.append(list(x))
        rows.append({"q": q, "alpha": alpha.copy(), "target": float(target)})
    return iterates, _columns(rows)


taps = partial(motaps, target_lr=0.0)


def ngn(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 1.0,
    momentum: float = 0.0,
    lb: float = 0.0,
    weight_decay: float = 0.0,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """NGN: the step c / (1 + c ||g||^2 / (2 (f - lb))), always below its cap lr = c, and 0 where f is at the bound.

    With ``momentum`` this is the step of z, and x <- momentum x + (1 - momentum) z: a heavy ball with the step's share
    1 - momentum (NGN-M, recalled). Scalar: ``theta``, the fraction of lr; in a step without any tensor the last one's.
    """
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    z, theta = list(x), 0.0
    iterates, rows = [], []
    for k in range(1, steps + 1):
        f, grads = problem(x, k)
        moving = _moving(rates[k])
        f, g = _penalised(f, grads, x, decay, moving)
        slope = sum(eta * _dot(g[i], g[i]) for i, eta in moving)
        if moving:
            theta = 1 / (1 + slope / (2 * (f - lb))) if f > lb else 0.0
        for i, eta in moving:
            z[i] = z[i] - theta * eta * g[i]
            x[i] = momentum * x[i] + (1 - momentum) * z[i]
        iterates.append(list(x))
        rows.append({"theta": theta})
    return iterates, _columns(rows)


def _penalised(
    f: float, grads: list[Array], x: list[Array], decay: list[float], moving: list[tuple[int, float]]
) -> tuple[float, dict[int, Array]]:
    """-> loss and gradients with the L2 penalty of the tensors that take part."""
    penalty = sum(decay[i] / 2 * _dot(x[i], x[i]) for i, _ in moving)
    return f + penalty, {i: grads[i] + decay[i] * x[i] for i, _ in moving}

"""Steps in proportion to the weights: a step size over SGD and Adam, and Muon and Adam side by side under it."""

from collections.abc import Sequence
from math import sqrt
from typing import Literal

import numpy as np

from untuned.testing.oracles.matrix import _adjusted, _newton_schulz, _polar
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
    _zeros,
)


def relative(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    base: Literal["sgd", "adam"],
    lr: float = 0.1,
    own: float | Sequence[float] = 1.0,
    floor: float = 0.1,
    least: float = 1e-3,
    momentum: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """The direction of SGD or Adam, times lr and the size of the weights: Adafactor's scale (arXiv 1804.04235).

    Adafactor takes max(eps2, RMS(X)) for the size of a tensor X; here the RMS of the whole model, R, is in the place of
    the constant: floor R. ``own`` is the share of a tensor's size, the rest is R's; one for all tensors or a list.
    ``least`` bounds R from below. ``momentum`` belongs to SGD, ``betas`` and ``eps`` to Adam; the decay is decoupled
    and has lr as it is. Scalar: ``rms_of_model``, R before it is bounded.
    """
    if base not in ("sgd", "adam"):
        raise ValueError(f"relative: base is {base!r}; give 'sgd' or 'adam'")
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    shares = list(own) if isinstance(own, Sequence) else [own for _ in x]
    m, v, t = _zeros(x), _zeros(x), [0 for _ in x]
    b1, b2 = betas
    R, iterates, rows = 0.0, [], []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        moving = _moving(rates[k])
        R = _rms([x[i] for i, _ in moving]) if moving else R
        for i, eta in moving:
            s = _size(x[i], R, shares[i], floor, least)
            t[i] += 1
            if base == "sgd":
                m[i] = momentum * m[i] + grads[i]
                u = m[i]
            else:
                m[i] = b1 * m[i] + (1 - b1) * grads[i]
                v[i] = b2 * v[i] + (1 - b2) * grads[i] ** 2
                u = m[i] / (1 - b1 ** t[i]) / (np.sqrt(v[i] / (1 - b2 ** t[i])) + eps)
            x[i] = x[i] - eta * s * u - eta * decay[i] * x[i]
        iterates.append(list(x))
        rows.append({"rms_of_model": R})
    return iterates, _columns(rows)


def relative_muon(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    lr: float = 0.12,
    momentum: float = 0.8,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.1,
    ns_steps: int = 5,
    thin: float = 8.0,
    floor: float = 0.1,
    least: float = 1e-3,
    exact: bool = False,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """Every tensor moves by lr times a size: that of its own weights, or for vectors and scalars that of the model's.

    A tensor of two dimensions or more is a matrix with a row for each slice along the first one. Those with two rows
    and two columns at least, and the longer side at most ``thin`` times the shorter one, go along Muon's direction with
    the length of arXiv 2502.16982, 0.2 sqrt(max(rows, columns)), without Nesterov; all others along Adam's. ``exact``
    takes the polar factor by SVD. The sizes are those of ``relative``, with own = 0 for fewer than two dimensions and 1
    otherwise. The decay is cautious (arXiv 2510.12402): lr weight_decay x is subtracted where u x >= 0, from elements
    that the step shrinks as well. Scalar: ``rms_of_model``.
    """
    coefficients = (3.4445, -4.7750, 2.0315)
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    m, v, t = _zeros(x), _zeros(x), [0 for _ in x]
    b1, b2 = betas
    R, iterates, rows = 0.0, [], []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        moving = _moving(rates[k])
        R = _rms([x[i] for i, _ in moving]) if moving else R
        for i, eta in moving:
            s = _size(x[i], R, 0.0 if x[i].ndim < 2 else 1.0, floor, least)
            t[i] += 1
            if _hidden(x[i].shape, thin):
                m[i] = momentum * m[i] + (1 - momentum) * grads[i]
                M = m[i].reshape(len(m[i]), -1)
                K = _polar(M) if exact else _newton_schulz(M, coefficients, ns_steps, 1e-30)
                u = (_adjusted(M.shape, "match_rms_adamw") * K).reshape(x[i].shape)
            else:
                m[i] = b1 * m[i] + (1 - b1) * grads[i]
                v[i] = b2 * v[i] + (1 - b2) * grads[i] ** 2
                u = m[i] / (1 - b1 ** t[i]) / (np.sqrt(v[i] / (1 - b2 ** t[i])) + 1e-15)
            x[i] = x[i] - eta * s * u - np.where(u * x[i] >= 0, eta * decay[i], 0.0) * x[i]
        iterates.append(list(x))
        rows.append({"rms_of_model": R})
    return iterates, _columns(rows)


def _hidden(shape: tuple[int, ...], thin: float) -> bool:
    """Whether Muon takes a tensor of this shape."""
    if len(shape) < 2:
        return False
    rows, columns = shape[0], int(np.prod(shape[1:]))
    return min(rows, columns) >= 2 and max(rows, columns) <= thin * min(rows, columns)


def _rms(tensors: list[Array]) -> float:
    """The root mean square of all their elements together; 0 if there are none."""
    count = sum(a.size for a in tensors)
    return sqrt(sum(_dot(a, a) for a in tensors) / count) if count else 0.0


def _size(a: Array, R: float, own: float, floor: float, least: float) -> float:
    """What lr is multiplied with for this tensor of a model with the root mean square R."""
    R = max(R, least)
    return own * max(_rms([a]), floor * R) + (1 - own) * R

"""AdamW with other weight decays: anchored at the start, cautious, or independent of lr."""

from typing import Literal

import numpy as np

from untuned.testing.oracles.protocol import Array, Groups, Problem, Result, Schedule, _moving, _start, _zeros


def adamw_decay(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    kind: Literal["anchored", "cautious", "independent"],
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    power: float = 1.0,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """Adam's step, -lr u, and a decay of the parameters x before it.

    ``kind`` "anchored" (SODA, arXiv 2605.11172) adds the share 1 - (t / (t + 1))^``power`` of x_0 - x at the tensor's
    step t = 1, 2, ..., which is 1 / (t + 1) for power 1; it knows neither ``weight_decay`` nor lr.
    "cautious" (arXiv 2510.12402) subtracts lr weight_decay x where u x >= 0, elements whose step shrinks them already.
    "independent" subtracts weight_decay x, which neither lr nor its schedule scales.
    """
    if kind not in ("anchored", "cautious", "independent"):
        raise ValueError(f"adamw_decay: kind is {kind!r}; give 'anchored', 'cautious' or 'independent'")
    b1, b2 = betas
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    origin, m, v, t = list(x), _zeros(x), _zeros(x), [0 for _ in x]
    iterates = []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        for i, eta in _moving(rates[k]):
            t[i] += 1
            m[i] = b1 * m[i] + (1 - b1) * grads[i]
            v[i] = b2 * v[i] + (1 - b2) * grads[i] ** 2
            u = m[i] / (1 - b1 ** t[i]) / (np.sqrt(v[i] / (1 - b2 ** t[i])) + eps)
            if kind == "anchored":
                pull = (1 - (t[i] / (t[i] + 1)) ** power) * (origin[i] - x[i])
            elif kind == "cautious":
                pull = -eta * decay[i] * np.where(u * x[i] >= 0, x[i], 0.0)
            else:
                pull = -decay[i] * x[i]
            x[i] = x[i] - eta * u + pull
        iterates.append(list(x))
    return iterates, {}

"""Multiplicative updates: a step is a share of the parameter's own size."""

from typing import Literal

import numpy as np

from untuned.testing.oracles.protocol import Array, Groups, Problem, Result, Schedule, _moving, _start, _zeros


def multiplicative(
    x0: list[Array],
    problem: Problem,
    steps: int,
    *,
    base: Literal["sgd", "adam"],
    lr: float = 1e-3,
    eta_in: float = 1.0,
    mix: float = 1.0,
    additive: float = 1.0,
    rule: Literal["abs", "power"] = "abs",
    momentum: float = 0.9,
    nesterov: bool = False,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """Multiplicative and hybrid updates (arXiv 2307.07189) with the direction d of torch's SGD or Adam.

    ``rule`` "abs" is x <- x - mix lr |x| tanh(eta_in d) - (1 - mix) additive lr d, of which the last is the base's own
    step; "power" is x <- x 2^(-sign(x) lr tanh(eta_in d)) and has no hybrid. In Adam's d the first moment is not
    corrected: as in the authors' code lr is, outside the tanh. The decay is coupled. ``momentum`` and ``nesterov``
    belong to SGD, whose first buffer is the first gradient, and look ahead in the first step, too, as torch's does and
    the authors' does not; ``betas`` and ``eps`` belong to Adam.
    """
    if base not in ("sgd", "adam"):
        raise ValueError(f"multiplicative: base is {base!r}; give 'sgd' or 'adam'")
    if rule not in ("abs", "power"):
        raise ValueError(f"multiplicative: rule is {rule!r}; give 'abs' or 'power'")
    if rule == "power" and mix != 1:
        raise ValueError(f"multiplicative: the rule 'power' has no hybrid; mix is {mix}, give 1")
    b1, b2 = betas
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    m, v, t = _zeros(x), _zeros(x), [0 for _ in x]
    iterates = []
    for k in range(1, steps + 1):
        _, grads = problem(x, k)
        for i, eta in _moving(rates[k]):
            t[i] += 1
            g = grads[i] + decay[i] * x[i]
            if base == "sgd":
                m[i] = momentum * m[i] + g
                d = g + momentum * m[i] if nesterov else m[i]
                outer = eta
            else:
                m[i] = b1 * m[i] + (1 - b1) * g
                v[i] = b2 * v[i] + (1 - b2) * g**2
                d = m[i] / (np.sqrt(v[i] / (1 - b2 ** t[i])) + eps)
                outer = eta / (1 - b1 ** t[i])
            bounded = np.tanh(eta_in * d)
            if rule == "abs":
                x[i] = x[i] - mix * outer * np.abs(x[i]) * bounded - (1 - mix) * additive * outer * d
            else:
                x[i] = x[i] * 2.0 ** (-np.sign(x[i]) * outer * bounded)
        iterates.append(list(x))
    return iterates, {}

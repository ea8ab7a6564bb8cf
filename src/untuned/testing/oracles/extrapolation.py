"""Extrapolation for large batches: every worker looks a small step ahead of the common parameters."""

from collections.abc import Callable, Sequence
from math import sqrt
from typing import Literal

import numpy as np

from untuned.testing.oracles.protocol import Array, Groups, Problem, Result, Schedule, _dot, _moving, _start, _zeros


def extrapolated(
    x0: list[Array],
    problem: Problem | Sequence[Problem],
    steps: int,
    *,
    base: Literal["sgd", "adam"],
    inner_lr: float,
    direction: Literal["local", "global", "noise"] = "local",
    workers: int = 2,
    nesterov: bool = False,
    noise: Callable[[int, int, list[Array]], list[Array]] | None = None,
    lr: float = 0.1,
    momentum: float = 0.9,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """Extrapolated SGD or Adam (arXiv 2006.05720, whose precise form is recalled): all workers in one process.

    ``problem`` is a list of problems, one for each worker, or one that ``workers`` workers share. Each is asked at its
    worker's own point x - inner_lr q, and the base takes the mean of the gradients to move the common x. ``direction``
    says what q is: "local", the worker's own gradient of the tensor's last step; "global", the mean of all workers'
    then; both are 0 in the tensor's first step; or "noise", of each tensor ||x|| xi / ||xi||, where
    xi = ``noise``(n, worker, x), n = 1, 2, ... the steps that were taken.
    ``nesterov``: of SGD the points start at x - lr momentum v, v the base's momentum, in place of x.
    ``inner_lr`` is the same in all groups and has no schedule, but a tensor whose lr is 0 stays where it is in all
    points. The decay is coupled, of x, and no part of q. ``momentum`` belongs to SGD, ``betas`` and ``eps`` to Adam.
    Iterates are x; ``points`` are the workers' points at each step, and ``loss`` the mean of the losses there.
    """
    if base not in ("sgd", "adam"):
        raise ValueError(f"extrapolated: base is {base!r}; give 'sgd' or 'adam'")
    if nesterov and base != "sgd":
        raise ValueError("extrapolated: Nesterov's point is one of SGD's momentum")
    problems = list(problem) if isinstance(problem, Sequence) else [problem] * workers
    b1, b2 = betas
    x, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    m, v, t, n = _zeros(x), _zeros(x), [0 for _ in x], 0
    last = [_zeros(x) for _ in problems]
    iterates, points, losses = [], [], []
    for k in range(1, steps + 1):
        moving = _moving(rates[k])
        n += 1 if moving else 0
        asked, values, grads = [], [], []
        for w, ask in enumerate(problems):
            xi = noise(n, w, list(x)) if direction == "noise" and noise is not None and moving else _zeros(x)
            point = list(x)
            for i, eta in moving:
                if direction == "local":
                    q = last[w][i]
                elif direction == "global":
                    q = sum(own[i] for own in last) / len(problems)
                elif direction == "noise" and noise is not None:
                    length = sqrt(_dot(xi[i], xi[i]))
                    q = sqrt(_dot(x[i], x[i])) / length * xi[i] if length > 0 else xi[i]
                else:
                    raise ValueError(f"extrapolated: direction is {direction!r}; 'local', 'global', 'noise' with noise")
                if nesterov:
                    point[i] = point[i] - eta * momentum * m[i]
                point[i] = point[i] - inner_lr * q
            loss, g = ask(point, k)
            asked.append(point)
            values.append(loss)
            grads.append(g)
        for i, eta in moving:
            t[i] += 1
            g = sum(own[i] for own in grads) / len(problems) + decay[i] * x[i]
            if base == "sgd":
                m[i] = momentum * m[i] + g
                x[i] = x[i] - eta * m[i]
            else:
                m[i] = b1 * m[i] + (1 - b1) * g
                v[i] = b2 * v[i] + (1 - b2) * g**2
                x[i] = x[i] - eta * m[i] / (1 - b1 ** t[i]) / (np.sqrt(v[i] / (1 - b2 ** t[i])) + eps)
            for w, own in enumerate(grads):
                last[w][i] = own[i]
        iterates.append(list(x))
        points.append(asked)
        losses.append(float(np.mean(values)))
    return iterates, {"points": points, "loss": losses}

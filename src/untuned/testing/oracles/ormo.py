"""Ordered momentum for asynchronous SGD (OrMo)."""

from collections.abc import Sequence
from math import inf

from untuned.testing.oracles.protocol import (
    Array,
    Groups,
    Problem,
    Result,
    Schedule,
    _columns,
    _moving,
    _start,
    _zeros,
)


def ordered_momentum(
    x0: list[Array],
    problem: Problem,
    indexes: Sequence[int],
    *,
    workers: int,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    open_rule: str = "index",
    late_step: str = "ordered",
    delay_cap: float = inf,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """OrMo (arXiv 2407.19234) as its server runs it: every gradient counts as if it had come in order.

    Gradient t = 0, 1, ... of the ``indexes`` arrives from a worker that had the model w_i, i = indexes[t] <= t: it is
    ``problem(w_i, t + 1)``. Index i is in bucket ceil(i / workers); at the arrival of gradient t all buckets up to
    ceil(t / workers) are open, each opened with one step of momentum. When buckets open is recalled from the paper.
    lr is that of the gradient's index, ``schedule[i]``, so that it does not depend on the order, and is inside the
    momentum: a tensor whose lr is 0 for an index takes nothing from that gradient, but what it has goes on moving it.
    The decay is our choice, an L2 penalty of the workers' loss, at w_i.
    open_rule="lazy": a bucket opens when the first of its gradients arrives. late_step="vanilla", the ablation: a
    gradient moves w by lr times itself, however late it is. delay_cap, OrMo-DA: the lr of a gradient that comes d > 0
    steps late is multiplied by delay_cap workers / d where that is below 1.
    ``iterates[t]``: the model after gradient t. Scalars: ``momentum``, the buffers then; ``lag``, in buckets.
    """
    steps = len(indexes)
    w, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    u, opened = _zeros(w), 0
    models = [list(w)]
    rows = []
    for t, index in enumerate(indexes):
        while opened < _bucket(t if open_rule == "index" else index, workers):
            opened += 1
            for i in range(len(w)):
                w[i] = w[i] - momentum * u[i]
                u[i] = momentum * u[i]
        lag = opened - _bucket(index, workers)
        late = sum(momentum**j for j in range(lag + 1)) if late_step == "ordered" else 1.0
        damping = delay_cap * workers / (t - index) if t - index > delay_cap * workers else 1.0
        _, grads = problem(models[index], t + 1)
        for i, rate in _moving(rates[index + 1]):
            eta = rate * damping
            g = grads[i] + decay[i] * models[index][i]
            u[i] = u[i] + momentum**lag * eta * g
            w[i] = w[i] - late * eta * g
        models.append(list(w))
        rows.append({"momentum": list(u), "lag": lag})
    return models[1:], _columns(rows)


def ordered_momentum_closed_form(
    x0: list[Array],
    problem: Problem,
    indexes: Sequence[int],
    *,
    workers: int,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    groups: Groups = None,
    schedule: Schedule = None,
) -> Result:
    """OrMo as sums over all gradients that have arrived, each with the power of its bucket; same call and results.

    After gradient t, with age = ceil(t / workers) - ceil(i / workers) of each earlier gradient of index i,
    u = sum of momentum^age lr g and w = x0 - sum of (1 + momentum + ... + momentum^age) lr g.
    """
    steps = len(indexes)
    start, rates, decay = _start(x0, steps, lr, weight_decay, groups, schedule)
    models, arrived = [list(start)], []
    rows = []
    for t, index in enumerate(indexes):
        _, grads = problem(models[index], t + 1)
        moves = _zeros(start)
        for i, eta in _moving(rates[index + 1]):
            moves[i] = eta * (grads[i] + decay[i] * models[index][i])
        arrived.append((_bucket(index, workers), moves))
        w, u = list(start), _zeros(start)
        for bucket, moves in arrived:
            age = _bucket(t, workers) - bucket
            for i, move in enumerate(moves):
                u[i] = u[i] + momentum**age * move
                w[i] = w[i] - sum(momentum**j for j in range(age + 1)) * move
        models.append(w)
        rows.append({"momentum": u, "lag": _bucket(t, workers) - _bucket(index, workers)})
    return models[1:], _columns(rows)


def _bucket(index: int, workers: int) -> int:
    return -(-index // workers)

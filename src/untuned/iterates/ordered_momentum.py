"""Ordered momentum: the server of asynchronous SGD counts late gradients as if they had come in order."""

from __future__ import annotations

from typing import ClassVar

from untuned.parts import Iterate, Place, hyper, maximum, number, signal, slot


class OrderedMomentum(Iterate):
    """OrMo: arXiv 2407.19234, the server's step (when buckets open is recalled from the paper).

    `workers` compute gradients at the same time. A gradient comes with its `index`, the count of steps that the server
    had taken when it gave that worker the weights: `optimizer.step(index=i)`. With t steps taken before this one, index
    i is in bucket ceil(i / workers), and all buckets up to ceil(t / workers) are open:

        for every bucket that opens:  w <- w - momentum u;   u <- momentum u
        lag = ceil(t / workers) - ceil(i / workers)
        u <- u + momentum^lag s;   w <- w - (1 + momentum + ... + momentum^lag) s        s: the plain step from w

    So the order in which a set of gradients arrives does not change where it ends. With one worker this is heavy ball.
    An index above t counts as t. The learning rate and the weight decay are inside s: they are those of the arrival, so
    for a schedule that does not depend on the order set the lr of the index before the step. A tensor that rests
    catches up with the buckets when it takes a step again. Any direction and step size, though only those that remember
    nothing keep the result independent of the order. Slots: 1, and two numbers per tensor.
    """

    momentum: float = hyper(default=0.9, within="[0, 1)")
    workers: int = hyper(default=1, within="[1, inf)", fixed=True)
    gives: ClassVar[frozenset[str]] = frozenset({"additive", "plain_step"})
    scope = "tensor"
    index = signal("index", within="[0, inf)")
    u = slot("momentum_buffer")
    opened = number(0.0, key="bucket")
    lag = number(0.0)

    def decide(self, c: Place) -> None:
        c.opened = self._bucket(c.k - 1)
        c.lag = maximum(self._bucket(c.k - 1) - self._bucket(c.index), 0.0)

    def _bucket(self, index: float) -> float:
        return -(-index // self.workers)  # rounded up

    def move(self, x: Place) -> None:
        s, beta = x.p - x.base(x.p), x.momentum
        opening = beta ** (x.opened - x.was_opened)
        x.p = x.p - beta * (1 - opening) / (1 - beta) * x.u - (1 - beta ** (x.lag + 1)) / (1 - beta) * s
        x.u = opening * x.u + beta**x.lag * s

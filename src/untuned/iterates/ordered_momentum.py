"""Ordered momentum: the server of asynchronous SGD counts late gradients as if they had come in order."""

from __future__ import annotations

from typing import ClassVar

from untuned.parts import Iterate, Place, choice, hyper, maximum, minimum, number, signal, slot


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
    nothing keep the result independent of the order. Slots: 1, and three numbers per tensor.

    `open_rule="lazy"` opens a bucket with the first of its gradients that the tensor takes, in the place of index t.
    `late_step="vanilla"` is the ablation of the paper as it was understood from a caption: w <- w - s whatever the lag.
    `delay_cap` is OrMo-DA: s is multiplied by min(1, delay_cap workers / (t - i)), with 2 of the theory (recalled);
    inf leaves it as it is. A capped run depends on the order of arrival.
    """

    momentum: float = hyper(default=0.9, within="[0, 1)")
    workers: int = hyper(default=1, within="[1, inf)", fixed=True)
    open_rule: str = choice(default="index", others=("lazy",))
    late_step: str = choice(default="ordered", others=("vanilla",))
    delay_cap: float = hyper(default=float("inf"), within="[1, inf]")
    gives: ClassVar[frozenset[str]] = frozenset({"additive", "plain_step"})
    scope = "tensor"
    index = signal("index", within="[0, inf)")
    u = slot("momentum_buffer")
    opened = number(0.0, key="bucket")
    lag = number(0.0)
    delay_factor = number(1.0)

    def decide(self, c: Place) -> None:
        t = c.k - 1
        index = minimum(c.index, t)
        c.opened = self._bucket(t) if self.open_rule == "index" else maximum(c.opened, self._bucket(index))
        c.lag = c.opened - self._bucket(index)
        c.delay_factor = minimum(c.delay_cap * self.workers / maximum(t - index, 1.0), 1.0)

    def _bucket(self, index: float) -> float:
        return -(-index // self.workers)  # rounded up

    def move(self, x: Place) -> None:
        s, beta = x.delay_factor * (x.p - x.base(x.p)), x.momentum
        opening = beta ** (x.opened - x.was_opened)
        late = (1 - beta ** (x.lag + 1)) / (1 - beta) if self.late_step == "ordered" else 1.0
        x.p = x.p - beta * (1 - opening) / (1 - beta) * x.u - late * s
        x.u = opening * x.u + beta**x.lag * s

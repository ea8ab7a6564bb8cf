"""Momentum for a server whose workers' gradients come late."""

from __future__ import annotations

from math import inf
from typing import Any, Unpack

from untuned.directions import Gradient
from untuned.iterates import OrderedMomentum
from untuned.optimizer.optimizer import Optimizer
from untuned.optimizer.options import EngineOptions
from untuned.step_sizes import Fixed
from untuned.weight_decay import Coupled

_LATEST = 2.0**53  # an index above the number of steps counts as that number


class OrMo(Optimizer):
    """SGD with ordered momentum for asynchronous workers, OrMo and OrMo-DA: arXiv 2407.19234.

    `step(index=i)` applies a gradient of the weights that the optimizer had after i steps; `step()` one of the weights
    as they are. With t steps taken, b(i) = ceil(i / num_workers) and s = lr (g + weight_decay p):

        for every bucket up to b(t) that opens:  p <- p - momentum u;   u <- momentum u
        u <- u + momentum^lag s;   p <- p - (1 + momentum + ... + momentum^lag) s,   lag = b(t) - b(i)

    So gradients end where they would have ended in order: see `untuned.iterates.OrderedMomentum`, also for `open_rule`
    "index" or "lazy" and `late_step` "ordered" or "vanilla" (an ablation). A gradient that is tau steps late steps with
    lr min(1, delay_cap num_workers / tau): inf is OrMo, 2 is OrMo-DA as its theory is recalled. lr, which schedules may
    change, and the weight decay, which is coupled and our choice, are those of the arrival. lr is that of one worker's
    gradient: for the step of SGD on the mean of all, divide its lr by num_workers. With num_workers=1 and no index it
    is torch.optim.SGD with momentum. `untuned.systems.asynchronous` has servers for it. Sweeps: 1. Slots: 1.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.tensor([4.0]))
    >>> optimizer = untuned.OrMo([w], lr=0.5, momentum=0.5, num_workers=2)
    >>> for index in (0, 1, 0):                            # the last one comes a bucket late, and moves w by 1.5 lr
    ...     w.grad = torch.ones(1)
    ...     optimizer.step(index=index)
    ...     print(w.item())
    3.5
    2.75
    2.0
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        momentum: float = 0.9,
        num_workers: int = 1,
        weight_decay: float = 0.0,
        open_rule: str = "index",
        late_step: str = "ordered",
        delay_cap: float = inf,
        **engine: Unpack[EngineOptions],
    ) -> None:
        iterate = OrderedMomentum(momentum, num_workers, open_rule, late_step, delay_cap)
        super().__init__(params, Gradient(), Fixed(lr), iterate, Coupled(weight_decay), **engine)

    def _step(self, loss: Any, computed: Any, sample_ids: Any, signals: dict[str, Any]) -> None:
        if signals.get("index") is None:
            signals = {**signals, "index": _LATEST}
        super()._step(loss, computed, sample_ids, signals)

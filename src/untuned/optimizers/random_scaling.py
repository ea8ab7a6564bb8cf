"""Methods whose every step is multiplied by one random number."""

from __future__ import annotations

from typing import Any, Unpack

from untuned import directions
from untuned.around import RandomScaling
from untuned.directions import Gradient, Momentum
from untuned.iterates import Plain
from untuned.optimizer.optimizer import Optimizer
from untuned.optimizer.options import EngineOptions
from untuned.optimizers.chains import joined
from untuned.step_sizes import Fixed
from untuned.weight_decay import Decoupled


class RandomScalingSGD(Optimizer):
    """SGD with averaged momentum and random scaling: arXiv 2405.09742, as the authors' public code.

    m <- beta m + (1 - beta) g from m = 0;  p <- p - s lr (m + weight_decay p),  s ~ Exp(1), one s for the model in
    every step. lr is 1 / (1 - beta) times that of SGD with heavy ball. s follows from `seed`, equal on all ranks, and
    the number of the step: see `untuned.around.RandomScaling`. The form with a uniform point is
    `untuned.compose(iterate=RandomPoint())`. Sweeps: 1. Slots: 1, 0 with beta=0.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.tensor([4.0]))
    >>> optimizer = untuned.RandomScalingSGD([w], lr=0.5, beta=0.0, seed=1)
    >>> (w**2 / 2).sum().backward()
    >>> optimizer.step()
    >>> s = optimizer.metrics()["random_scale"]
    >>> abs(w.item() - 4.0 * (1 - 0.5 * s)) < 1e-5
    True
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        beta: float = 0.9,
        weight_decay: float = 0.0,
        seed: int = 0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        direction = Momentum(beta, beta, from_zero=True)
        direction = direction if beta else Gradient()
        engine["around"] = joined(engine.get("around", ()), RandomScaling(seed), first=True)
        super().__init__(params, direction, Fixed(lr), Plain(), Decoupled(weight_decay), **engine)


class RandomScalingAdamW(Optimizer):
    """AdamW with random scaling: arXiv 2405.09742, as the authors' public code.

    p <- p - s lr (m_hat / (sqrt(v_hat) + eps) + weight_decay p),  s ~ Exp(1), one s for the model in every step.
    Otherwise as `RandomScalingSGD`. Sweeps: 1. Slots: 2.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.tensor([4.0]))
    >>> optimizer = untuned.RandomScalingAdamW([w], lr=0.5, weight_decay=0.0, seed=1)
    >>> (w**2).sum().backward()
    >>> optimizer.step()
    >>> s = optimizer.metrics()["random_scale"]
    >>> abs(w.item() - (4.0 - 0.5 * s)) < 1e-5
    True
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        seed: int = 0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        direction = directions.Adam(betas, eps)
        engine["around"] = joined(engine.get("around", ()), RandomScaling(seed), first=True)
        super().__init__(params, direction, Fixed(lr), Plain(), Decoupled(weight_decay), **engine)

"""Momentum that follows from the gradients, at a learning rate of the user's."""

from __future__ import annotations

from typing import Any, Unpack

from untuned import iterates
from untuned.directions import AdaptiveAdam, AdaptiveMemory, Gradient
from untuned.iterates import Plain
from untuned.optimizer.optimizer import Optimizer
from untuned.optimizer.options import EngineOptions
from untuned.step_sizes import Fixed
from untuned.weight_decay import Coupled, Decoupled


class AdaptiveHeavyBall(Optimizer):
    """SGD with the heavy-ball momentum that suits lr and the curvature met: arXiv 2110.09057, recalled.

    p <- p - lr g + beta (p - p_before),   beta = (1 - sqrt(lr |g - g_before| / |p - p_before|))^2, in [0, 1 - delta]
    Weight decay is coupled. cap=inf is the rule as it is recalled; cap=1 keeps noise from ending at the most momentum,
    see `untuned.iterates.AdaptiveHeavyBall`. No code of the authors was found. Sweeps: 2. Slots: 2.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.tensor([4.0]))
    >>> optimizer = untuned.AdaptiveHeavyBall([w], lr=0.25)
    >>> for _ in range(2):
    ...     optimizer.zero_grad()
    ...     (w**2 / 2).sum().backward()
    ...     optimizer.step()
    >>> optimizer.metrics()["adaptive_beta"]                       # (1 - sqrt(lr))^2, since the curvature is 1
    0.25
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        delta: float = 1e-3,
        cap: float = 1.0,
        weight_decay: float = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        iterate = iterates.AdaptiveHeavyBall(delta, cap)
        super().__init__(params, Gradient(), Fixed(lr), iterate, Coupled(weight_decay), **engine)


class AdaptiveHeavyBallAdam(Optimizer):
    """Adam with the momentum of the adaptive heavy ball in the place of beta1: arXiv 2110.09057, recalled.

    m <- beta m + (1 - beta) g;  v <- beta2 v + (1 - beta2) g^2;  p <- p - lr (m_hat / (sqrt(v_hat) + eps) + wd p)
    beta as in `AdaptiveHeavyBall`, from gradients and displacements of the whole model; m_hat divides by the sum of the
    weights. See `untuned.directions.AdaptiveAdam`. Weight decay is decoupled. Sweeps: 2. Slots: 3.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.tensor([4.0]))
    >>> optimizer = untuned.AdaptiveHeavyBallAdam([w], lr=0.5)
    >>> (w**2).sum().backward()
    >>> optimizer.step()
    >>> round(w.item(), 6)
    3.5
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        beta2: float = 0.999,
        eps: float = 1e-8,
        delta: float = 1e-3,
        cap: float = 1.0,
        weight_decay: float = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        direction = AdaptiveAdam(beta2, eps, delta, cap)
        super().__init__(params, direction, Fixed(lr), Plain(), Decoupled(weight_decay), **engine)


class AMMSGD(Optimizer):
    """SGD with adaptive memory momentum, AM-MSGD: arXiv 2510.04988.

    m <- theta m + (1 - theta) g;  p <- p - lr m,   theta = |g|^2 / |m - g|^2 within bounds that follow from penalty and
    beta_max: see `untuned.directions.AdaptiveMemory`. Weight decay is coupled. Sweeps: 2. Slots: 1.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.tensor([4.0]))
    >>> optimizer = untuned.AMMSGD([w], lr=0.5)
    >>> (w**2 / 2).sum().backward()
    >>> optimizer.step()                                  # the first average is the gradient
    >>> w.item()
    2.0
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-1,
        penalty: float = 0.1,
        beta_max: float = 0.9,
        weight_decay: float = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        direction = AdaptiveMemory(penalty, beta_max)
        super().__init__(params, direction, Fixed(lr), Plain(), Coupled(weight_decay), **engine)

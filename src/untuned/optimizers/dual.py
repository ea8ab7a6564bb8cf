"""Dual averaging methods, and those that normalise by past gradients."""

from __future__ import annotations

from typing import Any, Unpack

from untuned import directions, step_sizes
from untuned.directions import CubeRoot, CubeRootDA, DualAverage, Gradient
from untuned.iterates import FromStart, Plain, PrimalAverage
from untuned.optimizer.optimizer import Optimizer
from untuned.optimizer.options import EngineOptions
from untuned.parts.declare import check_flag
from untuned.step_sizes import Fixed
from untuned.weight_decay import Coupled, Decoupled


class MDA(Optimizer):
    """Modernised dual averaging: arXiv 2010.10502.

    lr corresponds to lr / (1 - momentum) of SGD with momentum. The mathematics stand in `untuned.step_sizes.MDA`; the
    weight decay is coupled. There is no reference implementation. Sweeps: 1. Slots: 2.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = untuned.MDA([w], lr=0.1)
    >>> for _ in range(100):
    ...     optimizer.zero_grad()
    ...     loss = (w - torch.tensor([1.0, 2.0])).square().sum()
    ...     loss.backward()
    ...     optimizer.step()
    >>> loss.item() < 1.0                                  # from 5.0
    True
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        rule = step_sizes.MDA(lr)
        super().__init__(params, DualAverage(), rule, FromStart(momentum), Coupled(weight_decay), **engine)


class MADGRAD(Optimizer):
    """Momentumised dual averaged gradient: arXiv 2101.11075, Algorithm 1, signature of madgrad.

    lr must be swept anew, not taken from Adam or SGD (2.5e-4 to 2.5e-2 in the paper); weight decay is often best at 0.
    The mathematics stand in `untuned.directions.CubeRootDA`, `untuned.step_sizes.MADGRAD` and
    `untuned.iterates.FromStart`. Differs from the released package in that it adds eps to lr there (pass lr + eps), in
    that its counter is kept per tensor, and in the slot x0 without momentum, where decoupled weight decay is forgotten
    at the next step, with a warning (the package then decays x0 too). In both it ends with momentum at
    (1 - momentum) / (1 - momentum + lr weight_decay) of the weights, where AdamW's goes on to 0. Sweeps: 1. Slots: 3.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = untuned.MADGRAD([w], lr=0.1)
    >>> for _ in range(100):
    ...     optimizer.zero_grad()
    ...     loss = (w - torch.tensor([1.0, 2.0])).square().sum()
    ...     loss.backward()
    ...     optimizer.step()
    >>> loss.item() < 1.0                                  # from 5.0
    True
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eps: float = 1e-6,
        decouple_decay: bool = False,
        **engine: Unpack[EngineOptions],
    ) -> None:
        decoupled = check_flag("MADGRAD", "decouple_decay", decouple_decay)
        decay = Decoupled(weight_decay) if decoupled else Coupled(weight_decay)
        super().__init__(params, CubeRootDA(eps), step_sizes.MADGRAD(lr), FromStart(momentum), decay, **engine)


class MirrorMADGRAD(Optimizer):
    """MADGRAD as mirror descent: the released package of arXiv 2101.11075, signature of madgrad.

    The authors' advice for large transformers where generalisation is no concern. The mathematics stand in
    `untuned.directions.CubeRoot` and `untuned.iterates.PrimalAverage`; decoupled weight decay acts on z. Differs from
    the released package as `MADGRAD` does. Sweeps: 1. Slots: 2.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = untuned.MirrorMADGRAD([w], lr=0.1)
    >>> for _ in range(100):
    ...     optimizer.zero_grad()
    ...     loss = (w - torch.tensor([1.0, 2.0])).square().sum()
    ...     loss.backward()
    ...     optimizer.step()
    >>> loss.item() < 1.0                                  # from 5.0
    True
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eps: float = 0.0,
        decouple_decay: bool = False,
        **engine: Unpack[EngineOptions],
    ) -> None:
        decoupled = check_flag("MirrorMADGRAD", "decouple_decay", decouple_decay)
        decay = Decoupled(weight_decay) if decoupled else Coupled(weight_decay)
        super().__init__(params, CubeRoot(eps), Fixed(lr), PrimalAverage(momentum), decay, **engine)


class GradaGrad(Optimizer):
    """AdaGrad that can grow its step: arXiv 2206.06900, the scalar form.

    lr is meant to be small: the first step is (1 - momentum) lr long. momentum averages the iterates (recalled). The
    mathematics stand in `untuned.step_sizes.GradaGrad`. There is no reference implementation. Sweeps: 2. Slots: 1, 2
    with momentum.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = untuned.GradaGrad([w])
    >>> for _ in range(100):
    ...     optimizer.zero_grad()
    ...     loss = (w - torch.tensor([1.0, 2.0])).square().sum()
    ...     loss.backward()
    ...     optimizer.step()
    >>> loss.item() < 1.0                                  # from 5.0
    True
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.0,
        rho: float = 2.0,
        r: float = 1.0,
        weight_decay: float = 0.0,
        scope: str = "model",
        **engine: Unpack[EngineOptions],
    ) -> None:
        iterate = PrimalAverage(momentum)
        iterate = iterate if momentum else Plain()
        rule = step_sizes.GradaGrad(lr, rho, r, scope)
        super().__init__(params, Gradient(), rule, iterate, Coupled(weight_decay), **engine)


class DiagonalGradaGrad(Optimizer):
    """GradaGrad coordinate by coordinate: arXiv 2206.06900 (recalled).

    The first step of every coordinate is (1 - momentum) lr long. The mathematics stand in
    `untuned.directions.DiagonalGradaGrad`. There is no reference implementation. Sweeps: 1. Slots: 3, 4 with momentum.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = untuned.DiagonalGradaGrad([w])
    >>> for _ in range(100):
    ...     optimizer.zero_grad()
    ...     loss = (w - torch.tensor([1.0, 2.0])).square().sum()
    ...     loss.backward()
    ...     optimizer.step()
    >>> loss.item() < 1.0                                  # from 5.0
    True
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.0,
        rho: float = 2.0,
        r: float = 1.0,
        weight_decay: float = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        iterate = PrimalAverage(momentum)
        iterate = iterate if momentum else Plain()
        super().__init__(
            params, directions.DiagonalGradaGrad(rho, r), Fixed(lr), iterate, Coupled(weight_decay), **engine
        )


class SNGM(Optimizer):
    """Stochastic normalised gradient descent with momentum: arXiv 2007.13985, for large batches.

    m <- momentum m + g / |g|;   p <- p - lr m. lr is a length: no step is longer than lr / (1 - momentum). The
    mathematics stand in `untuned.directions.SNGM`; weight decay is coupled, inside the norm. Sweeps: 2. Slots: 1.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = untuned.SNGM([w], lr=0.02)
    >>> for _ in range(100):
    ...     optimizer.zero_grad()
    ...     loss = (w - torch.tensor([1.0, 2.0])).square().sum()
    ...     loss.backward()
    ...     optimizer.step()
    >>> loss.item() < 1.0                                  # from 5.0
    True
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        scope: str = "model",
        **engine: Unpack[EngineOptions],
    ) -> None:
        direction = directions.SNGM(momentum, scope)
        super().__init__(params, direction, Fixed(lr), Plain(), Coupled(weight_decay), **engine)

"""Convex forms of the methods that estimate the distance to the solution, and their relatives."""

from __future__ import annotations

import math
from typing import Any, Unpack

from untuned import iterates, step_sizes
from untuned.directions import DualAverage, Gradient
from untuned.iterates import FromStart, Plain
from untuned.optimizer.optimizer import Optimizer
from untuned.optimizer.options import EngineOptions
from untuned.step_sizes import Fixed
from untuned.weight_decay import Coupled


class DAdaptDA(Optimizer):
    """D-Adaptation by dual averaging, for convex problems: arXiv 2301.07733, Algorithm 1.

    Leave lr at 1. The mathematics stand in `untuned.step_sizes.DAdaptationDA`. Sweeps: 2. Slots: 2.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = untuned.DAdaptDA([w])
    >>> for _ in range(600):
    ...     optimizer.zero_grad()
    ...     loss = (w - torch.tensor([1.0, 2.0])).square().sum()
    ...     loss.backward()
    ...     optimizer.step()
    >>> loss.item() < 4.0                                  # from 5.0
    True
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        weight_decay: float = 0.0,
        d0: float = 1e-6,
        growth_rate: float = math.inf,
        **engine: Unpack[EngineOptions],
    ) -> None:
        rule = step_sizes.DAdaptationDA(lr, d0, growth_rate)
        super().__init__(params, DualAverage(), rule, FromStart(), Coupled(weight_decay), **engine)


class DAdaptGD(Optimizer):
    """D-Adaptation by gradient descent, for convex problems: arXiv 2301.07733.

    Leave lr at 1. The mathematics, and what of it is recalled, stand in `untuned.step_sizes.DAdaptationGD`. Sweeps: 2.
    Slots: 1.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = untuned.DAdaptGD([w])
    >>> for _ in range(300):
    ...     optimizer.zero_grad()
    ...     loss = (w - torch.tensor([1.0, 2.0])).square().sum()
    ...     loss.backward()
    ...     optimizer.step()
    >>> loss.item() < 4.0                                  # from 5.0
    True
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        weight_decay: float = 0.0,
        d0: float = 1e-6,
        growth_rate: float = math.inf,
        G: float = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        rule = step_sizes.DAdaptationGD(lr, d0, growth_rate, G)
        super().__init__(params, Gradient(), rule, Plain(), Coupled(weight_decay), **engine)


class ProdigyDA(Optimizer):
    """Prodigy by dual averaging, for convex problems: arXiv 2306.06101, Algorithm 2.

    Leave lr at 1. The mathematics, and what of it is recalled, stand in `untuned.step_sizes.ProdigyDA`. Sweeps: 2.
    Slots: 2.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = untuned.ProdigyDA([w])
    >>> for _ in range(200):
    ...     optimizer.zero_grad()
    ...     loss = (w - torch.tensor([1.0, 2.0])).square().sum()
    ...     loss.backward()
    ...     optimizer.step()
    >>> loss.item() < 4.0                                  # from 5.0
    True
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        weight_decay: float = 0.0,
        d0: float = 1e-6,
        growth_rate: float = math.inf,
        G: float = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        rule = step_sizes.ProdigyDA(lr, d0, growth_rate, G)
        super().__init__(params, DualAverage(), rule, FromStart(), Coupled(weight_decay), **engine)


class ProdigyGD(Optimizer):
    """Prodigy by gradient descent, for convex problems: arXiv 2306.06101, Algorithm 1.

    Leave lr at 1. The mathematics, and what of it is recalled, stand in `untuned.step_sizes.ProdigyGD`. Sweeps: 2.
    Slots: 1.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = untuned.ProdigyGD([w])
    >>> for _ in range(200):
    ...     optimizer.zero_grad()
    ...     loss = (w - torch.tensor([1.0, 2.0])).square().sum()
    ...     loss.backward()
    ...     optimizer.step()
    >>> loss.item() < 4.0                                  # from 5.0
    True
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        weight_decay: float = 0.0,
        d0: float = 1e-6,
        growth_rate: float = math.inf,
        G: float = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        rule = step_sizes.ProdigyGD(lr, d0, growth_rate, G)
        super().__init__(params, Gradient(), rule, Plain(), Coupled(weight_decay), **engine)


class Resetting(Optimizer):
    """D-Adaptation with resetting, dual averaging form, for convex problems: arXiv 2306.06101, versions 1 to 3.

    Starts over whenever the estimate of the distance has doubled. Leave lr at 1. The mathematics, recalled, stand in
    `untuned.iterates.Resetting`. Sweeps: 2. Slots: 2.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = untuned.Resetting([w])
    >>> for _ in range(300):
    ...     optimizer.zero_grad()
    ...     loss = (w - torch.tensor([1.0, 2.0])).square().sum()
    ...     loss.backward()
    ...     optimizer.step()
    >>> loss.item() < 4.0                                  # from 5.0
    True
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        weight_decay: float = 0.0,
        d0: float = 1e-6,
        G: float = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        iterate = iterates.Resetting(d0, G)
        super().__init__(params, Gradient(), Fixed(lr), iterate, Coupled(weight_decay), **engine)


class ResettingGD(Optimizer):
    """D-Adaptation with resetting by gradient descent, for convex problems; after arXiv 2306.06101, versions 1 to 3.

    Starts over whenever the estimate of the distance has doubled. Leave lr at 1. The mathematics, recalled, stand in
    `untuned.iterates.ResettingGD`. Sweeps: 2. Slots: 1.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = untuned.ResettingGD([w])
    >>> for _ in range(300):
    ...     optimizer.zero_grad()
    ...     loss = (w - torch.tensor([1.0, 2.0])).square().sum()
    ...     loss.backward()
    ...     optimizer.step()
    >>> loss.item() < 4.0                                  # from 5.0
    True
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        weight_decay: float = 0.0,
        d0: float = 1e-6,
        G: float = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        iterate = iterates.ResettingGD(d0, G)
        super().__init__(params, Gradient(), Fixed(lr), iterate, Coupled(weight_decay), **engine)


class DoG(Optimizer):
    """Distance over gradients: arXiv 2302.12022, signature of the authors' dog without init_eta.

    x <- x - lr R / sqrt(S) g, R the largest distance from the start so far, S the sum of squared gradients. Leave lr at
    1. The mathematics, and what differs from the reference implementation, stand in `untuned.step_sizes.DoG`. Sweeps:
    2. Slots: 1.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = untuned.DoG([w])
    >>> for _ in range(200):
    ...     optimizer.zero_grad()
    ...     loss = (w - torch.tensor([1.0, 2.0])).square().sum()
    ...     loss.backward()
    ...     optimizer.step()
    >>> loss.item() < 4.0                                  # from 5.0
    True
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        reps_rel: float = 1e-6,
        weight_decay: float = 0.0,
        eps: float = 1e-8,
        **engine: Unpack[EngineOptions],
    ) -> None:
        rule = step_sizes.DoG(lr, reps_rel, eps)
        super().__init__(params, Gradient(), rule, Plain(), Coupled(weight_decay), **engine)


class LDoG(Optimizer):
    """Distance over gradients, tensor by tensor: arXiv 2302.12022, signature of the authors' dog without init_eta.

    As `DoG`, with R and S of each tensor. Sweeps: 2. Slots: 1.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = untuned.LDoG([w])
    >>> for _ in range(200):
    ...     optimizer.zero_grad()
    ...     loss = (w - torch.tensor([1.0, 2.0])).square().sum()
    ...     loss.backward()
    ...     optimizer.step()
    >>> loss.item() < 4.0                                  # from 5.0
    True
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        reps_rel: float = 1e-6,
        weight_decay: float = 0.0,
        eps: float = 1e-8,
        **engine: Unpack[EngineOptions],
    ) -> None:
        rule = step_sizes.DoG(lr, reps_rel, eps, "tensor")
        super().__init__(params, Gradient(), rule, Plain(), Coupled(weight_decay), **engine)


class DoWG(Optimizer):
    """Distance over weighted gradients: arXiv 2305.16284, Algorithm 1, signature of the authors' dowg, with lr.

    x <- x - lr R^2 / sqrt(S) g, with S the sum of R^2 |g|^2. Leave lr at 1. The mathematics stand in
    `untuned.step_sizes.DoWG`. Sweeps: 2. Slots: 1.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = untuned.DoWG([w])
    >>> for _ in range(200):
    ...     optimizer.zero_grad()
    ...     loss = (w - torch.tensor([1.0, 2.0])).square().sum()
    ...     loss.backward()
    ...     optimizer.step()
    >>> loss.item() < 4.0                                  # from 5.0
    True
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        eps: float = 1e-4,
        weight_decay: float = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        rule = step_sizes.DoWG(lr, eps)
        super().__init__(params, Gradient(), rule, Plain(), Coupled(weight_decay), **engine)

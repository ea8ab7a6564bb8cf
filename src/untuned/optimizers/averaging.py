"""Methods that change what the parameters hold."""

from __future__ import annotations

import math
from typing import Any, Unpack

from untuned import directions, step_sizes
from untuned.directions import Gradient, Momentum, RMSProp
from untuned.iterates import GPA, Mechanic, PrimalAverage, ScheduleFree
from untuned.optimizer.optimizer import Optimizer
from untuned.optimizer.options import EngineOptions
from untuned.step_sizes import Fixed, WarmedUp
from untuned.weight_decay import Coupled, Decoupled


class SGDScheduleFree(Optimizer):
    """Schedule-Free SGD: arXiv 2405.15682, Algorithm 1, signature of schedulefree.

    lr is 10 to 50 times that of SGD with momentum. Call `eval()` before evaluating or saving weights for use, `train()`
    before training on. The mathematics, and what differs from the released package, stand in
    `untuned.iterates.ScheduleFree`; weight decay acts at the training point. Sweeps: 1. Slots: 1.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.tensor([4.0]))
    >>> optimizer = untuned.SGDScheduleFree([w], lr=1.0)
    >>> for _ in range(3):
    ...     optimizer.zero_grad()
    ...     (w**2 / 2).sum().backward()
    ...     optimizer.step()
    >>> with optimizer.averaged_parameters():
    ...     averaged = w.item()
    >>> 0 <= averaged < 0.5
    True
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        iterate = ScheduleFree(momentum, r, weight_lr_power)
        super().__init__(params, Gradient(), WarmedUp(lr, warmup_steps), iterate, Coupled(weight_decay), **engine)


class AdamWScheduleFree(Optimizer):
    """Schedule-Free AdamW: arXiv 2405.15682, signature of schedulefree.

    lr is 1 to 10 times that of AdamW; betas[0] is the averaging between z and x, not a momentum. Call `eval()` before
    evaluating or saving weights for use, `train()` before training on. The mathematics, and what differs from the
    released package, stand in `untuned.iterates.ScheduleFree`; weight decay acts at the training point. Sweeps: 1.
    Slots: 2.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.tensor([4.0]))
    >>> optimizer = untuned.AdamWScheduleFree([w], lr=0.5)
    >>> (w**2).sum().backward()
    >>> optimizer.step()                                  # the first average is the first step
    >>> round(w.item(), 6)
    3.5
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.0025,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        beta, beta2 = directions.Adam(betas, eps).betas
        iterate = ScheduleFree(beta, r, weight_lr_power)
        rule = WarmedUp(lr, warmup_steps)
        super().__init__(params, RMSProp(beta2, eps), rule, iterate, Decoupled(weight_decay), **engine)


class ProdigyScheduleFree(Optimizer):
    """Schedule-Free AdamW with Prodigy's estimate of lr: arXiv 2405.15682 and 2306.06101, the authors' composite.

    The estimate measures how far z has come, d_hat = d_coef sum <g, x0 - z> / |s|_1, z takes AdamW's steps of length
    d lr, and its average is weighted by their squares, so that the first tiny ones do not count. Neither schedule nor
    warm-up is needed: leave lr at 1. betas[0] is the averaging between z and x, not a momentum: there is no first
    moment. Call `eval()` before evaluating or saving weights for use, `train()` before training on. The mathematics
    stand in `untuned.iterates.ScheduleFree`, where weight decay acts at the training point, and
    `untuned.step_sizes.Prodigy`. Differs from the authors' submission to AlgoPerf, beside what is said there, in that:
    theirs decays x; its step is d_new d lr g / (sqrt(v) + d_new eps), where here, as in Algorithm 4 of Prodigy, the
    first two factors are d^2; and its defaults are betas=(0.9, 0.9955), r=0.75, weight_lr_power=0 and
    use_bias_correction=False, with which the first steps are up to 1 / sqrt(1 - betas[1]), 15 times, as long, so that
    they warm lr up. The package prodigy-plus-schedule-free has more options, none of which is here; without them it has
    slice_p=11 and use_bias_correction=False, leaves lr out of the estimate, and adds no negative number to r while d is
    d0. Sweeps: 2. Slots: 4.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = untuned.ProdigyScheduleFree([w])
    >>> for _ in range(300):
    ...     optimizer.zero_grad()
    ...     (w - torch.tensor([1.0, 2.0])).abs().sum().backward()
    ...     optimizer.step()
    >>> optimizer.eval()
    >>> bool((w - torch.tensor([1.0, 2.0])).abs().max() < 0.5)
    True
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        beta3: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        use_bias_correction: bool = True,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        growth_rate: float = math.inf,
        slice_p: int = 1,
        **engine: Unpack[EngineOptions],
    ) -> None:
        beta, beta2 = directions.Adam(betas, eps).betas
        rule = step_sizes.Prodigy(
            lr,
            d0,
            d_coef,
            growth_rate,
            beta3=math.sqrt(beta2) if beta3 is None else beta3,
            slice_p=slice_p,
            bias_correction=use_bias_correction,
        )
        iterate = ScheduleFree(beta, r, weight_lr_power)
        super().__init__(params, RMSProp(beta2, eps, corrected=False), rule, iterate, Decoupled(weight_decay), **engine)


class GPAAdamW(Optimizer):
    """AdamW with generalized primal averaging: arXiv 2512.17131 (mu_y is `train`, mu_x is `keep`).

    Gradients are taken at y = train x + (1 - train) z, z takes AdamW's steps, and x <- keep x + (1 - keep) z is the
    point to use. keep = 0.9^(1/H) averages as long as the authors' DiLoCo with H inner steps: H = 1, 4, 8, 16, 32, 64,
    128 gives 0.9, 0.974, 0.9869, 0.9934, 0.9967, 0.9984, 0.9992. A schedule of lr acts as on AdamW. Call `eval()`
    before evaluating or saving weights for use, `train()` before training on. The mathematics, and what differs from
    the authors' code, stand in `untuned.iterates.GPA`; beside that, theirs corrects the bias by the steps of the
    group, not of the tensor. Sweeps: 1. Slots: 3.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.tensor([4.0]))
    >>> optimizer = untuned.GPAAdamW([w], lr=0.5, train=0.5, keep=0.9)
    >>> (w**2).sum().backward()
    >>> optimizer.step()                                  # z = 3.5, x = 3.95, y between them
    >>> round(w.item(), 6)
    3.725
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        train: float = 0.7,
        keep: float = 0.9967,
        **engine: Unpack[EngineOptions],
    ) -> None:
        direction, decay = directions.Adam(betas, eps), Decoupled(weight_decay)
        super().__init__(params, direction, Fixed(lr), GPA(train, keep), decay, **engine)


class SGDSPA(Optimizer):
    """SGD with momentum as primal averaging: arXiv 2010.00406.

    z <- z - lr g;  p <- momentum p + (1 - momentum) z.  lr is that of gradient descent: heavy ball with the same
    momentum has (1 - momentum) times it, and while lr, momentum and weight decay (coupled) are constant both lead
    through the same points. Under schedules they differ: here it is 1 - momentum, called c, that one lowers, by
    `untuned.schedules.MomentumDecay`; `untuned.spa` converts schedules of one form into those of the other and has the
    Lyapunov function. p holds the average, in training and after it. Differs from torch.optim.SGD, beside the form, in
    that a group at lr 0 rests. Sweeps: 1. Slots: 1.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.tensor([4.0]))
    >>> optimizer = untuned.SGDSPA([w], lr=0.5, momentum=0.75)
    >>> (w**2 / 2).sum().backward()
    >>> optimizer.step()                                  # z is 2, and a quarter of the way to it is gone
    >>> w.item()
    3.5
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(params, Gradient(), Fixed(lr), PrimalAverage(momentum), Coupled(weight_decay), **engine)


class MechanicSGD(Optimizer):
    """Mechanic around SGD with momentum: arXiv 2306.00144. The learned scale is `metrics()["mechanic_S"]`.

    lr only sets the unit in which the scale is learned and s_init given (exactly with s_decay=0, whose pull grows as lr
    falls); put a schedule on it. The mathematics, and what differs from the authors' code, stand in
    `untuned.iterates.Mechanic`. Around others: `untuned.compose(iterate=Mechanic())`. Sweeps: 2. Slots: 2.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = untuned.MechanicSGD([w])
    >>> for _ in range(200):
    ...     optimizer.zero_grad()
    ...     loss = (w - torch.tensor([1.0, 2.0])).square().sum()
    ...     loss.backward()
    ...     optimizer.step()
    >>> loss.item() < 1.0                                 # from 5.0
    True
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        s_decay: float = 1e-2,
        s_init: float = 1e-8,
        **engine: Unpack[EngineOptions],
    ) -> None:
        direction = Momentum(momentum)
        direction = direction if momentum else Gradient()
        super().__init__(params, direction, Fixed(lr), Mechanic(s_decay, s_init), Coupled(weight_decay), **engine)


class MechanicAdamW(Optimizer):
    """Mechanic around AdamW: arXiv 2306.00144. The learned scale is `metrics()["mechanic_S"]`.

    lr only sets the unit in which the scale is learned and s_init given (exactly with s_decay=0, whose pull grows as lr
    falls); put a schedule on it. The mathematics, and what differs from the authors' code, stand in
    `untuned.iterates.Mechanic`. Sweeps: 2. Slots: 3.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = untuned.MechanicAdamW([w])
    >>> for _ in range(200):
    ...     optimizer.zero_grad()
    ...     loss = (w - torch.tensor([1.0, 2.0])).square().sum()
    ...     loss.backward()
    ...     optimizer.step()
    >>> loss.item() < 1.0                                 # from 5.0
    True
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        s_decay: float = 1e-2,
        s_init: float = 1e-8,
        **engine: Unpack[EngineOptions],
    ) -> None:
        direction = directions.Adam(betas, eps)
        super().__init__(params, direction, Fixed(lr), Mechanic(s_decay, s_init), Decoupled(weight_decay), **engine)

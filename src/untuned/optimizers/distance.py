"""Methods that estimate the distance to the solution."""

from __future__ import annotations

import math
from typing import Any, Unpack

from untuned import directions, step_sizes
from untuned.directions import AdaGradDA, Adan, Gradient, Lion
from untuned.iterates import FromStart, Plain, PrimalAverage
from untuned.optimizer.optimizer import Optimizer
from untuned.optimizer.options import EngineOptions
from untuned.parts.declare import check_flag
from untuned.step_sizes import DAdaptation, DAdaptationAdaGrad, DAdaptationLion, DAdaptationSGD
from untuned.weight_decay import Coupled, Decoupled, Proximal


class Prodigy(Optimizer):
    """Prodigy with Adam: arXiv 2306.06101, Algorithm 4, signature of prodigyopt without fsdp_in_use.

    Leave lr at 1 and put a schedule on it; d_coef (0.5 to 2) is the knob to turn. `decouple=True` decays like AdamW.
    The mathematics, and what differs from the released package, stand in `untuned.step_sizes.Prodigy`.
    `param_groups[0]["d"]` is the estimate; with `scope="tensor"` it is `state[p]["d"]`. Sweeps: 2. Slots: 4.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = untuned.Prodigy([w])
    >>> for _ in range(100):
    ...     optimizer.zero_grad()
    ...     (w - torch.tensor([1.0, 2.0])).abs().sum().backward()
    ...     optimizer.step()
    >>> 0.1 < optimizer.metrics()["d"] < 2.0              # the largest coordinate has 2.0 to go
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
        decouple: bool = True,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        growth_rate: float = math.inf,
        slice_p: int = 1,
        freeze_after: float = math.inf,
        scope: str = "model",
        **engine: Unpack[EngineOptions],
    ) -> None:
        direction = directions.Adam(betas, eps, correct=False)
        beta3 = math.sqrt(direction.betas[1]) if beta3 is None else beta3
        rule = step_sizes.Prodigy(
            lr, d0, d_coef, growth_rate, freeze_after, beta3, safeguard_warmup, slice_p, use_bias_correction, scope
        )
        decay = Decoupled(weight_decay) if check_flag("Prodigy", "decouple", decouple) else Coupled(weight_decay)
        super().__init__(params, direction, rule, Plain(), decay, **engine)


class DAdaptAdam(Optimizer):
    """D-Adaptation with Adam: arXiv 2301.07733, signature of dadaptation without log_every and fsdp_in_use.

    Leave lr at 1 and put a schedule on it. `decouple=True` decays like AdamW. The mathematics, and what differs from
    the released package, stand in `untuned.step_sizes.DAdaptation`. Sweeps: 2. Slots: 3.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = untuned.DAdaptAdam([w])
    >>> for _ in range(11):
    ...     optimizer.zero_grad()
    ...     (w - torch.tensor([1.0, 2.0])).abs().sum().backward()
    ...     optimizer.step()
    >>> 0.5 < optimizer.metrics()["d"] < 4.0              # from 1e-6; the largest coordinate had 2.0 to go
    True
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decouple: bool = False,
        use_bias_correction: bool = False,
        d0: float = 1e-6,
        growth_rate: float = math.inf,
        freeze_after: float = math.inf,
        scope: str = "model",
        **engine: Unpack[EngineOptions],
    ) -> None:
        direction = directions.Adam(betas, eps, correct=False)
        beta3 = math.sqrt(direction.betas[1])
        rule = DAdaptation(lr, d0, 1.0, growth_rate, freeze_after, beta3, use_bias_correction, scope)
        decay = Decoupled(weight_decay) if check_flag("DAdaptAdam", "decouple", decouple) else Coupled(weight_decay)
        super().__init__(params, direction, rule, Plain(), decay, **engine)


class DAdaptSGD(Optimizer):
    """D-Adaptation with SGD: arXiv 2301.07733, Algorithm 3 (first version), signature of dadaptation.

    Leave lr at 1 and put a schedule on it. momentum averages the iterates; weight decay is coupled. The mathematics,
    and what differs from the released package, stand in `untuned.step_sizes.DAdaptationSGD`. Sweeps: 2. Slots: 1, 2
    with momentum.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = untuned.DAdaptSGD([w])
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
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        d0: float = 1e-6,
        growth_rate: float = math.inf,
        freeze_after: float = math.inf,
        scope: str = "model",
        **engine: Unpack[EngineOptions],
    ) -> None:
        iterate = PrimalAverage(momentum)
        iterate = iterate if momentum else Plain()
        rule = DAdaptationSGD(lr, d0, growth_rate, freeze_after, scope)
        super().__init__(params, Gradient(), rule, iterate, Coupled(weight_decay), **engine)


class DAdaptAdaGrad(Optimizer):
    """D-Adaptation with AdaGrad: arXiv 2301.07733, Algorithm 2, signature of dadaptation, for dense gradients.

    Leave lr at 1 and put a schedule on it. momentum averages the iterates; weight decay is coupled. The mathematics,
    and what differs from the released package, stand in `untuned.step_sizes.DAdaptationAdaGrad`. Sweeps: 2. Slots: 3.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = untuned.DAdaptAdaGrad([w])
    >>> for _ in range(200):
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
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        eps: float = 1e-6,
        d0: float = 1e-6,
        growth_rate: float = math.inf,
        **engine: Unpack[EngineOptions],
    ) -> None:
        rule = DAdaptationAdaGrad(lr, d0, growth_rate)
        super().__init__(params, AdaGradDA(eps), rule, FromStart(momentum), Coupled(weight_decay), **engine)


class DAdaptLion(Optimizer):
    """D-Adaptation (arXiv 2301.07733) with Lion, as the released package has it; its signature, plus scale_average.

    Its authors find it weaker than the Adam form, and the estimate can run away, in the released package too:
    `freeze_after` ends its growth. `scale_average=False` keeps small estimates out of Lion's average. The mathematics,
    and what differs, stand in `untuned.step_sizes.DAdaptationLion`; weight decay is decoupled. Sweeps: 2. Slots: 2.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = untuned.DAdaptLion([w])
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
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        d0: float = 1e-6,
        growth_rate: float = math.inf,
        freeze_after: float = math.inf,
        scale_average: bool = True,
        scope: str = "model",
        **engine: Unpack[EngineOptions],
    ) -> None:
        direction = Lion(betas)
        beta3 = math.sqrt(direction.betas[1])
        rule = DAdaptationLion(lr, d0, growth_rate, freeze_after, beta3, scale_average, scope)
        super().__init__(params, direction, rule, Plain(), Decoupled(weight_decay), **engine)


class DAdaptAdan(Optimizer):
    """D-Adaptation (arXiv 2301.07733) with Adan: the released package's experimental DAdaptAdanIP; its signature.

    The estimate is D-Adaptation's times 2 beta3, with beta3 in place of its root. Weight decay is proximal, decoupled
    with `no_prox=True`. The mathematics stand in `untuned.directions.Adan` and `untuned.step_sizes.DAdaptation`. The
    estimate can overshoot by far on small problems. Sweeps: 2. Slots: 5.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = untuned.DAdaptAdan([w])
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
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.02,
        no_prox: bool = False,
        d0: float = 1e-6,
        growth_rate: float = math.inf,
        freeze_after: float = math.inf,
        scope: str = "model",
        **engine: Unpack[EngineOptions],
    ) -> None:
        direction = Adan(betas, eps)
        beta3 = direction.betas[2]
        rule = DAdaptation(lr, d0, 2 * beta3, growth_rate, freeze_after, beta3, scope=scope)
        decay = Decoupled(weight_decay) if check_flag("DAdaptAdan", "no_prox", no_prox) else Proximal(weight_decay)
        super().__init__(params, direction, rule, Plain(), decay, **engine)

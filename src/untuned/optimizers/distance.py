"""Methods that estimate the distance to the solution."""

from __future__ import annotations

import math
from typing import Any, Unpack

from untuned import directions, step_sizes
from untuned.core.declare import check_flag
from untuned.core.engine import EngineOptions, Optimizer
from untuned.iterates import Plain
from untuned.step_sizes import DAdaptation
from untuned.weight_decay import Coupled, Decoupled


class Prodigy(Optimizer):
    """Prodigy with Adam: arXiv 2306.06101, Algorithm 4, signature of prodigyopt without fsdp_in_use and slice_p.

    Leave lr at 1 and put a schedule on it; d_coef (0.5 to 2) is the knob to turn. `decouple=True` decays like AdamW.
    The mathematics, and what differs from the released package, stand in `untuned.step_sizes.Prodigy`.
    `param_groups[0]["d"]` is the estimate. Sweeps: 2. Slots: 4.

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
        **engine: Unpack[EngineOptions],
    ) -> None:
        direction = directions.Adam(betas, eps, correct=False)
        beta3 = math.sqrt(direction.betas[1]) if beta3 is None else beta3
        rule = step_sizes.Prodigy(lr, d0, d_coef, growth_rate, beta3, safeguard_warmup, use_bias_correction)
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
        **engine: Unpack[EngineOptions],
    ) -> None:
        direction = directions.Adam(betas, eps, correct=False)
        rule = DAdaptation(lr, d0, growth_rate, math.sqrt(direction.betas[1]), use_bias_correction)
        decay = Decoupled(weight_decay) if check_flag("DAdaptAdam", "decouple", decouple) else Coupled(weight_decay)
        super().__init__(params, direction, rule, Plain(), decay, **engine)

"""Methods with a learning rate of the user's: the baselines, and the directions of their own."""

from __future__ import annotations

from typing import Any, Unpack

from untuned import directions
from untuned.directions import Gradient, Momentum
from untuned.iterates import Plain
from untuned.optimizer.optimizer import Optimizer
from untuned.optimizer.options import EngineOptions
from untuned.parts.declare import check_flag
from untuned.step_sizes import Fixed
from untuned.weight_decay import Coupled, Decoupled

Betas = tuple[float, float]


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum, dampening and Nesterov's form as in `torch.optim.SGD`.

    m <- momentum m + (1 - dampening) g;  p <- p - lr m;  weight decay is coupled.  Polyak 1964; Nesterov 1983.
    Differs from torch.optim.SGD in four things: a group at lr 0 rests, and its m stays as it was, where torch's goes
    on; momentum=0 has no m, and no group or schedule can give it one; where a schedule takes momentum to 0 for a while,
    m is the gradient then, where torch's stays; and a dampened tensor whose first gradient comes late (see
    `untuned.directions.Momentum`). Sweeps: 1. Slots: 0, 1 with momentum.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.tensor([4.0]))
    >>> optimizer = untuned.SGD([w], lr=0.5)
    >>> (w**2 / 2).sum().backward()
    >>> optimizer.step()
    >>> w.item()
    2.0
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        **engine: Unpack[EngineOptions],
    ) -> None:
        direction = Momentum(momentum, dampening, nesterov)
        direction = direction if momentum else Gradient()
        super().__init__(params, direction, Fixed(lr), Plain(), Coupled(weight_decay), **engine)


class Adam(Optimizer):
    """Adam with coupled weight decay: arXiv 1412.6980, Algorithm 1, as `torch.optim.Adam`.

    m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2;  p <- p - lr m_hat / (sqrt(v_hat) + eps)
    Differs from torch.optim.Adam, which also has amsgrad, in that a group at lr 0 rests: its averages and its count of
    steps stay as they were, where torch's go on. Sweeps: 1. Slots: 2.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.tensor([4.0]))
    >>> optimizer = untuned.Adam([w], lr=0.5)
    >>> (w**2).sum().backward()
    >>> optimizer.step()
    >>> round(w.item(), 6)
    3.5
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(params, directions.Adam(betas, eps), Fixed(lr), Plain(), Coupled(weight_decay), **engine)


class AdamW(Optimizer):
    """Adam with decoupled weight decay: arXiv 1711.05101, Algorithm 2, as `torch.optim.AdamW`.

    p <- p - lr weight_decay p - lr m_hat / (sqrt(v_hat) + eps)
    Differs from torch.optim.AdamW, which also has amsgrad, at lr 0, as `Adam` does. Sweeps: 1. Slots: 2.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.tensor([4.0]))
    >>> optimizer = untuned.AdamW([w], lr=0.5, weight_decay=0.1)
    >>> (w**2).sum().backward()
    >>> optimizer.step()
    >>> round(w.item(), 6)
    3.3
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(params, directions.Adam(betas, eps), Fixed(lr), Plain(), Decoupled(weight_decay), **engine)


class SGDF(Optimizer):
    """SGD with a filtered gradient: arXiv 2311.02818, the final version, or as its code had it before.

    p <- p - lr (n + K^gamma (g - n)), n being the average of the gradients and K the share of its variance in that and
    the squared distance of g from n: see `untuned.directions.SGDF`, also for what `version` changes: "v2025-03" takes
    2 K, "v2024-04" K, and "v2024-03" K of the uncorrected variance. Weight decay is coupled, and filtered with the
    gradient, or decoupled with `weight_decouple`. Differs from the reference implementation, which also has a sign and
    a matrix form of the step, in that: a group at lr 0 rests; the decay is not added to p.grad itself; and eps is as in
    the paper and most copies of that code, while one copy adds it to s. Sweeps: 1. Slots: 2.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.tensor([4.0]))
    >>> optimizer = untuned.SGDF([w], lr=0.5)
    >>> (w**2 / 2).sum().backward()
    >>> optimizer.step()                                  # the first step is that of gradient descent
    >>> round(w.item(), 6)
    2.0
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.5,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        gamma: float = 0.5,
        weight_decay: float = 0.0,
        weight_decouple: bool = False,
        version: str = "final",
        **engine: Unpack[EngineOptions],
    ) -> None:
        decoupled = check_flag("SGDF", "weight_decouple", weight_decouple)
        decay = Decoupled(weight_decay) if decoupled else Coupled(weight_decay)
        super().__init__(params, directions.SGDF(betas, eps, gamma, version), Fixed(lr), Plain(), decay, **engine)


class TAM(Optimizer):
    """Torque-Aware Momentum: arXiv 2412.18790.

    s <- decay s + (1 - decay) cos(m, g);  m <- momentum m + (floor + (1 + s) / 2) g;  p <- p - lr m
    One cosine per tensor, or of a wider `scope`: see `untuned.directions.TAM`, also for what differs from other
    implementations. Weight decay is coupled. Sweeps: 2. Slots: 1.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.tensor([4.0]))
    >>> optimizer = untuned.TAM([w], lr=0.5)
    >>> (w**2 / 2).sum().backward()
    >>> optimizer.step()                                  # half a step of heavy ball: no cosine yet
    >>> round(w.item(), 6)
    3.0
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        momentum: float = 0.9,
        decay: float = 0.9,
        weight_decay: float = 0.0,
        floor: float = 1e-8,
        scope: str = "tensor",
        **engine: Unpack[EngineOptions],
    ) -> None:
        direction = directions.TAM(momentum, decay, floor, scope)
        super().__init__(params, direction, Fixed(lr), Plain(), Coupled(weight_decay), **engine)


class AdaTAM(Optimizer):
    """Torque-Aware Momentum in Adam, weight decay coupled: arXiv 2412.18790.

    p <- p - lr m / (sqrt(v) + eps), m and v uncorrected: at the same lr the first step is 16 times as long as Adam's,
    later ones up to 53 times, the last ones 5 to 10 times. See `untuned.directions.AdaTAM`, also for what differs from
    other implementations. Sweeps: 2. Slots: 2.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.tensor([4.0]))
    >>> optimizer = untuned.AdaTAM([w], lr=0.1)
    >>> (w**2 / 2).sum().backward()
    >>> optimizer.step()                                  # 0.1 * 0.5 g / sqrt(0.001 g^2)
    >>> round(w.item(), 4)
    2.4189
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: Betas = (0.9, 0.999),
        decay: float = 0.9,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        floor: float = 1e-8,
        scope: str = "tensor",
        **engine: Unpack[EngineOptions],
    ) -> None:
        direction = directions.AdaTAM(betas, decay, floor, eps, scope)
        super().__init__(params, direction, Fixed(lr), Plain(), Coupled(weight_decay), **engine)


class AdaTAMW(Optimizer):
    """AdaTAM with decoupled weight decay: arXiv 2412.18790.

    p <- p - lr weight_decay p - lr m / (sqrt(v) + eps); otherwise as `AdaTAM`. Sweeps: 2. Slots: 2.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.tensor([4.0]))
    >>> optimizer = untuned.AdaTAMW([w], lr=0.1, weight_decay=0.1)
    >>> (w**2 / 2).sum().backward()
    >>> optimizer.step()
    >>> round(w.item(), 4)
    2.3789
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: Betas = (0.9, 0.999),
        decay: float = 0.9,
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        floor: float = 1e-8,
        scope: str = "tensor",
        **engine: Unpack[EngineOptions],
    ) -> None:
        direction = directions.AdaTAM(betas, decay, floor, eps, scope)
        super().__init__(params, direction, Fixed(lr), Plain(), Decoupled(weight_decay), **engine)

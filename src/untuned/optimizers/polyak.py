"""Methods that set the step from the loss: the stochastic Polyak family."""

from __future__ import annotations

from typing import Any, Unpack

from untuned import step_sizes
from untuned.directions import Gradient
from untuned.iterates import Plain, PrimalAverage
from untuned.optimizer.optimizer import Optimizer
from untuned.optimizer.options import EngineOptions
from untuned.weight_decay import Coupled, Proximal


class SPS(Optimizer):
    """Stochastic Polyak step size with a cap: arXiv 2002.10542 (SPS_max; with a large lr SPS).

    x <- x - min((f - lb) / (c |g|^2), lr) g. lb is a known lower bound of the loss of every batch. The mathematics, and
    what differs from the released package, stand in `untuned.step_sizes.SPS`. Needs the loss. Sweeps: 2. Slots: 0.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> optimizer = untuned.SPS([w], lr=100.0, c=1.0)
    >>> loss = (w**2).sum()
    >>> loss.backward()
    >>> _ = optimizer.step(loss=loss)                     # on a parabola with minimum 0 every step halves w
    >>> w.tolist()
    [0.5, 1.0]
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        c: float = 0.5,
        lb: float = 0.0,
        weight_decay: float = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(params, Gradient(), step_sizes.SPS(lr, c, lb), Plain(), Coupled(weight_decay), **engine)


class DecSPS(Optimizer):
    """Decreasing stochastic Polyak step size: arXiv 2205.04583.

    The step falls like 1 / sqrt(k), so that it converges without interpolation; lr caps the first steps. The
    mathematics stand in `untuned.step_sizes.DecSPS`. Needs the loss. Sweeps: 2. Slots: 0.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> optimizer = untuned.DecSPS([w], lr=100.0)
    >>> for _ in range(2):
    ...     optimizer.zero_grad()
    ...     loss = (w**2).sum()
    ...     loss.backward()
    ...     _ = optimizer.step(loss=loss)
    >>> [round(v, 4) for v in w.tolist()]                 # halved, then times 1 - 1 / (2 sqrt(2))
    [0.3232, 0.6464]
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        c0: float = 1.0,
        lb: float = 0.0,
        weight_decay: float = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(params, Gradient(), step_sizes.DecSPS(lr, c0, lb), Plain(), Coupled(weight_decay), **engine)


class ProxSPS(Optimizer):
    """Stochastic Polyak step with proximal weight decay: arXiv 2301.04935. MoMo without momentum.

    The model max(f + <g, y - x>, lb) + weight_decay/2 |y|^2 is minimised in a proximal step of length lr, the cap. See
    `untuned.step_sizes.MoMo`. Needs the loss. Sweeps: 2. Slots: 0.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> optimizer = untuned.ProxSPS([w], lr=100.0)
    >>> loss = (w**2).sum()
    >>> loss.backward()
    >>> _ = optimizer.step(loss=loss)
    >>> w.tolist()
    [0.5, 1.0]
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        lb: float = 0.0,
        weight_decay: float = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(params, Gradient(), step_sizes.MoMo(lr, lb), Plain(), Proximal(weight_decay), **engine)


class SP(Optimizer):
    """The stochastic Polyak method: Polyak 1987; arXiv 2106.11851.

    x <- x - lr (f - lb) / |g|^2 g. lr in (0, 2) is a relaxation, not a cap; lb must be the smallest loss of every
    single batch. The mathematics stand in `untuned.step_sizes.SP`. Needs the loss. Sweeps: 2. Slots: 0.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> optimizer = untuned.SP([w], lr=2.0)
    >>> loss = (w**2).sum()
    >>> loss.backward()
    >>> _ = optimizer.step(loss=loss)                     # Newton's step on a parabola
    >>> w.tolist()
    [0.0, 0.0]
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        lb: float = 0.0,
        weight_decay: float = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(params, Gradient(), step_sizes.SP(lr, lb), Plain(), Coupled(weight_decay), **engine)


class ALIG(Optimizer):
    """ALI-G, adaptive learning rates for interpolation: arXiv 1906.05661, Algorithm 1, without its projection.

    x <- x - min((f - lb) / (|g|^2 + eps), lr) g. The mathematics stand in `untuned.step_sizes.ALIG`; the reference
    implementation has a projection in place of weight decay and momentum as an option. Needs the loss. Sweeps: 2.
    Slots: 0.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> optimizer = untuned.ALIG([w], lr=1.0)
    >>> loss = (w**2).sum()
    >>> loss.backward()
    >>> _ = optimizer.step(loss=loss)
    >>> [round(v, 5) for v in w.tolist()]
    [0.5, 1.0]
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        lb: float = 0.0,
        eps: float = 1e-5,
        weight_decay: float = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(params, Gradient(), step_sizes.ALIG(lr, lb, eps), Plain(), Coupled(weight_decay), **engine)


class NGN(Optimizer):
    """Non-negative Gauss-Newton step: arXiv 2407.04358; with momentum NGN-M (recalled, arXiv 2508.15071).

    x <- x - gamma g,  gamma = lr / (1 + lr |g|^2 / (2 (f - lb))): while f > lb above 0 and at most lr, its cap, and at
    most twice Polyak's step. Momentum averages the iterates, which is heavy ball with (1 - momentum) gamma:
    x <- x - (1 - momentum) gamma g + momentum (x - x_before). The mathematics stand in `untuned.step_sizes.NGN`. Needs
    the loss. Sweeps: 2. Slots: 0, 1 with momentum.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.tensor([2.0]))
    >>> optimizer = untuned.NGN([w], lr=3.0)
    >>> loss = (w**2).sum() / 2
    >>> loss.backward()
    >>> _ = optimizer.step(loss=loss)                     # gamma = 3 / (1 + 3)
    >>> w.item()
    0.5
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        momentum: float = 0.0,
        lb: float = 0.0,
        weight_decay: float = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        iterate = PrimalAverage(momentum)
        iterate = iterate if momentum else Plain()
        super().__init__(params, Gradient(), step_sizes.NGN(lr, lb), iterate, Coupled(weight_decay), **engine)


class TAPS(Optimizer):
    """Targeted stochastic Polyak with a recorded loss per sample: arXiv 2106.11851, Algorithm 2.

    `samples` is the size of the data set, `target` the smallest mean loss. Call `step(loss=loss, sample_ids=ids)` with
    the numbers of the batch's samples. lr in (0, 2) is a relaxation; momentum averages the iterates, and then the
    author divides lr by 1 - momentum. The mathematics, and what is derived, stand in `untuned.step_sizes.TAPS`. Needs
    the loss and the sample ids. Sweeps: 2. Slots: 0, 1 with momentum, and 8 bytes per sample.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = untuned.TAPS([w], samples=2)
    >>> loss = (w**2).sum() / 2
    >>> loss.backward()
    >>> _ = optimizer.step(loss=loss, sample_ids=[1])     # 1/2 of loss to go, shared by w and the sample's target
    >>> w.tolist(), optimizer.param_groups[0]["sample_targets"].tolist()
    ([0.75], [0.0, 0.25])
    """

    def __init__(
        self,
        params: Any,
        samples: int,
        target: float = 0.0,
        lr: float = 1.0,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        iterate = PrimalAverage(momentum)
        iterate = iterate if momentum else Plain()
        rule = step_sizes.TAPS(lr, samples, target)
        super().__init__(params, Gradient(), rule, iterate, Coupled(weight_decay), **engine)


class MOTAPS(Optimizer):
    """Moving targeted stochastic Polyak: arXiv 2106.11851, Algorithm 3. TAPS that learns the smallest mean loss.

    As `TAPS`, with `target_lr` how fast the target follows the recorded losses (the paper's gamma_tau); 0 is TAPS with
    target 0. The mathematics stand in `untuned.step_sizes.MOTAPS`. Needs the loss and the sample ids. Sweeps: 2. Slots:
    0, 1 with momentum, and 8 bytes per sample.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = untuned.MOTAPS([w], samples=1, target_lr=0.5)
    >>> loss = (w**2).sum() / 2
    >>> loss.backward()
    >>> _ = optimizer.step(loss=loss, sample_ids=[0])
    >>> optimizer.metrics()["target"]                     # 1/2 of 1/2 of the sample's 0.25
    0.0625
    """

    def __init__(
        self,
        params: Any,
        samples: int,
        lr: float = 1.0,
        target_lr: float = 0.01,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        iterate = PrimalAverage(momentum)
        iterate = iterate if momentum else Plain()
        rule = step_sizes.MOTAPS(lr, samples, target_lr)
        super().__init__(params, Gradient(), rule, iterate, Coupled(weight_decay), **engine)

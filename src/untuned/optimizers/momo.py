"""Methods that set the step from the loss."""

from __future__ import annotations

from typing import Any, Unpack

from untuned import directions, step_sizes
from untuned.directions import Momentum
from untuned.iterates import Plain
from untuned.optimizer.optimizer import Optimizer
from untuned.optimizer.options import EngineOptions
from untuned.parts.declare import check_flag
from untuned.weight_decay import Decoupled, Proximal


class MoMo(Optimizer):
    """Momentum with a model-based adaptive step: arXiv 2305.07583, Algorithm 1, signature of momo-opt.

    lr caps the step. 1, the authors' advice, is right where the loss comes near lb, a lower bound of it; where it stays
    far above, the uncapped steps are too long: lower lr, raise lb to the lowest loss expected, or estimate it, upwards
    from lb, with `use_fstar=True` (MoMo*). The loss must not fall below lb: there the steps are 0. beta averages.
    `bias_correction=False` starts the averages at their first sample. Weight decay is proximal and scales with lr, not
    with the adapted step. The mathematics, and what differs from the reference implementation, stand in
    `untuned.step_sizes.MoMo`. Needs the loss. Sweeps: 2. Slots: 1.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> optimizer = untuned.MoMo([w], lr=100.0, beta=0.0)
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
        weight_decay: float = 0.0,
        beta: float = 0.9,
        lb: float = 0.0,
        bias_correction: bool = False,
        use_fstar: bool = False,
        **engine: Unpack[EngineOptions],
    ) -> None:
        direction = Momentum(beta, dampening=beta, correct=bias_correction)
        rule = step_sizes.MoMo(lr, lb, online=use_fstar)
        super().__init__(params, direction, rule, Plain(), Proximal(weight_decay), **engine)


class MoMoAdam(Optimizer):
    """MoMo with Adam's preconditioner: arXiv 2305.07583, Algorithm 2, signature of momo-opt.

    lr caps Adam's step; the default is momo-opt's. 0.1 to 1 leaves the choice to MoMo, which is right where the loss
    comes near lb, a lower bound of it, as with classifiers that fit their data; where it stays far above, as in a
    language model, such steps raise the loss: keep the default or less, raise lb to the lowest loss expected, or
    estimate it, upwards from lb, with `use_fstar=True` (MoMo-Adam*). The loss must not fall below lb: there the steps
    are 0. `divide=True` is the paper's proximal weight decay, False decays like AdamW. The mathematics, and what
    differs from the reference implementation, stand in `untuned.step_sizes.MoMo`. Needs the loss. Sweeps: 2. Slots: 2.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> optimizer = untuned.MoMoAdam([w], lr=100.0)       # a hundred times too large for Adam
    >>> loss = (w**2).sum()
    >>> loss.backward()
    >>> _ = optimizer.step(loss=loss)
    >>> [round(v, 4) for v in w.tolist()]                 # 5 / (2 + 4), for both coordinates
    [0.1667, 1.1667]
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        lb: float = 0.0,
        divide: bool = True,
        use_fstar: bool = False,
        **engine: Unpack[EngineOptions],
    ) -> None:
        decay = Proximal(weight_decay) if check_flag("MoMoAdam", "divide", divide) else Decoupled(weight_decay)
        rule = step_sizes.MoMo(lr, lb, online=use_fstar)
        super().__init__(params, directions.Adam(betas, eps), rule, Plain(), decay, **engine)

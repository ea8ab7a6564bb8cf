"""Any direction with any step size, iterate and weight decay."""

from __future__ import annotations

from typing import Any, Unpack

from untuned.directions import Adam
from untuned.iterates import Plain
from untuned.optimizer.optimizer import Optimizer
from untuned.optimizer.options import EngineOptions
from untuned.parts import Direction, Iterate, StepSize, WeightDecay
from untuned.step_sizes import Fixed
from untuned.weight_decay import Decoupled


def compose(
    params: Any,
    direction: Direction | None = None,
    step_size: StepSize | None = None,
    iterate: Iterate | None = None,
    decay: WeightDecay | None = None,
    **engine: Unpack[EngineOptions],
) -> Optimizer:
    """An optimizer from parts; what is left out is Adam, Fixed, Plain and Decoupled.

    Raises `TypeError` in one sentence if the parts do not fit together.

    >>> import torch, untuned
    >>> from untuned.directions import TAM
    >>> from untuned.iterates import Mechanic
    >>> from untuned.step_sizes import Fixed, MoMo
    >>> w = torch.nn.Parameter(torch.ones(3))
    >>> optimizer = untuned.compose([w], direction=TAM(), step_size=Fixed(1.0), iterate=Mechanic())
    >>> untuned.compose([w], direction=TAM(), step_size=MoMo())
    Traceback (most recent call last):
        ...
    TypeError: MoMo cannot use TAM: it needs 'average' (one scalar weight per past gradient); TAM damps each tensor \
differently; scope='model' gives one damping for the whole model. Use AdaGrad, AdaGradDA, Adam, CubeRoot, CubeRootDA, \
DualAverage, Gradient, Momentum, Muon, RMSProp or SNGM.
    """
    parts = direction or Adam(), step_size or Fixed(), iterate or Plain(), decay or Decoupled()
    return Optimizer(params, *parts, **engine)

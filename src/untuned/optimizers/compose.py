"""Any direction with any step size, iterate and weight decay."""

from __future__ import annotations

from collections.abc import Mapping
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
    direction: Direction | Mapping[str, Direction] | None = None,
    step_size: StepSize | None = None,
    iterate: Iterate | None = None,
    decay: WeightDecay | Mapping[str, WeightDecay] | None = None,
    **engine: Unpack[EngineOptions],
) -> Optimizer:
    """An optimizer from parts; what is left out is Adam, Fixed, Plain and Decoupled, with no transforms.

    Of the options that all optimizers take, `gradient` is a list of transforms of the gradient and `around` one of
    transforms of the plain step, each of which turns what those before it made. All but the step size and the iterate
    may be a dict from labels to such parts or lists: a group with `label` is then served by those of its label.

    Raises `TypeError` in one sentence if the parts do not fit together.

    >>> import torch, untuned
    >>> from untuned.directions import TAM, Adam, Muon
    >>> from untuned.iterates import Mechanic
    >>> from untuned.step_sizes import Fixed, MoMo
    >>> w = torch.nn.Parameter(torch.ones(3))
    >>> optimizer = untuned.compose([w], direction=TAM(), step_size=Fixed(1.0), iterate=Mechanic())
    >>> optimizer = untuned.compose([w], around=[untuned.around.RandomScaling(), untuned.around.Project()])
    >>> matrix, bias = torch.nn.Linear(3, 2).parameters()
    >>> groups = [{"params": [matrix], "label": "matrices"}, {"params": [bias], "label": "rest"}]
    >>> directions = {"matrices": Muon(momentum=0.9), "rest": Adam()}                  # one MoMo step for both
    >>> optimizer = untuned.compose(groups, directions, MoMo(lr=1e-2))
    >>> untuned.compose([w], direction=TAM(), step_size=MoMo())
    Traceback (most recent call last):
        ...
    TypeError: MoMo cannot use TAM: it needs 'average' (one scalar weight per past gradient); TAM damps each tensor \
differently; scope='model' gives one damping for the whole model. Use AdaGrad, AdaGradDA, Adam, \
AdaptiveAdam, AdaptiveMemory, CubeRoot, CubeRootDA, DualAverage, Gradient, Momentum, Muon, RMSProp or SNGM.
    """
    without = {role for role in ("gradient", "around") if engine.get(role, ()) is None}
    options: Any = {option: value for option, value in engine.items() if option not in without}
    return Optimizer(
        params,
        Adam() if direction is None else direction,
        step_size or Fixed(),
        iterate or Plain(),
        Decoupled() if decay is None else decay,
        **options,
    )

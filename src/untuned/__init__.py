"""Training PyTorch models without tuning the learning rate."""

from untuned import directions, iterates, schedules, step_sizes, weight_decay
from untuned._version import __version__
from untuned.core.engine import Optimizer
from untuned.optimizers import (
    SGD,
    TAM,
    Adam,
    AdamW,
    AdamWScheduleFree,
    AdaTAM,
    AdaTAMW,
    DAdaptAdam,
    MechanicAdamW,
    MechanicSGD,
    MoMo,
    MoMoAdam,
    Prodigy,
    SGDScheduleFree,
    compose,
)
from untuned.registry import create, get
from untuned.registry import names as list

__all__ = [
    "SGD",
    "TAM",
    "AdaTAM",
    "AdaTAMW",
    "Adam",
    "AdamW",
    "AdamWScheduleFree",
    "DAdaptAdam",
    "MechanicAdamW",
    "MechanicSGD",
    "MoMo",
    "MoMoAdam",
    "Optimizer",
    "Prodigy",
    "SGDScheduleFree",
    "__version__",
    "compose",
    "create",
    "directions",
    "get",
    "iterates",
    "list",
    "schedules",
    "step_sizes",
    "weight_decay",
]

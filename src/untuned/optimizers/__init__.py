"""Named classes: a signature, a docstring and a recipe of parts; no mathematics."""

from untuned.optimizers.averaging import AdamWScheduleFree, MechanicAdamW, MechanicSGD, SGDScheduleFree
from untuned.optimizers.classic import SGD, TAM, Adam, AdamW, AdaTAM, AdaTAMW
from untuned.optimizers.compose import compose
from untuned.optimizers.distance import DAdaptAdam, Prodigy
from untuned.optimizers.momo import MoMo, MoMoAdam

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
    "Prodigy",
    "SGDScheduleFree",
    "compose",
]

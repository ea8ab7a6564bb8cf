"""Directions: what a step follows. Each is one file, to be read beside its paper."""

from untuned.directions.adagrad import AdaGrad, CubeRoot, DiagonalGradaGrad
from untuned.directions.adam import Adam
from untuned.directions.adan import Adan
from untuned.directions.adaptive_momentum import AdaptiveAdam, AdaptiveMemory
from untuned.directions.dual_average import AdaGradDA, CubeRootDA, DualAverage
from untuned.directions.gradient import Gradient
from untuned.directions.lion import Lion
from untuned.directions.momentum import Momentum
from untuned.directions.muon import Muon
from untuned.directions.rmsprop import RMSProp
from untuned.directions.sgdf import SGDF
from untuned.directions.sngm import SNGM
from untuned.directions.tam import TAM, AdaTAM

__all__ = [
    "SGDF",
    "SNGM",
    "TAM",
    "AdaGrad",
    "AdaGradDA",
    "AdaTAM",
    "Adam",
    "Adan",
    "AdaptiveAdam",
    "AdaptiveMemory",
    "CubeRoot",
    "CubeRootDA",
    "DiagonalGradaGrad",
    "DualAverage",
    "Gradient",
    "Lion",
    "Momentum",
    "Muon",
    "RMSProp",
]

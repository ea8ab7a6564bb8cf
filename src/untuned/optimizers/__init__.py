"""Named classes: a signature, a docstring and a recipe of parts; no mathematics."""

from untuned.optimizers.averaging import SGDSPA, AdamWScheduleFree, MechanicAdamW, MechanicSGD, SGDScheduleFree
from untuned.optimizers.classic import SGD, SGDF, TAM, Adam, AdamW, AdaTAM, AdaTAMW
from untuned.optimizers.compose import compose
from untuned.optimizers.convex import DAdaptDA, DAdaptGD, DoG, DoWG, LDoG, ProdigyDA, ProdigyGD, Resetting, ResettingGD
from untuned.optimizers.distance import DAdaptAdaGrad, DAdaptAdam, DAdaptAdan, DAdaptLion, DAdaptSGD, Prodigy
from untuned.optimizers.dual import MADGRAD, MDA, SNGM, DiagonalGradaGrad, GradaGrad, MirrorMADGRAD
from untuned.optimizers.momo import MoMo, MoMoAdam
from untuned.optimizers.polyak import ALIG, MOTAPS, SP, SPS, TAPS, DecSPS, ProxSPS

__all__ = [
    "ALIG",
    "MADGRAD",
    "MDA",
    "MOTAPS",
    "SGD",
    "SGDF",
    "SGDSPA",
    "SNGM",
    "SP",
    "SPS",
    "TAM",
    "TAPS",
    "AdaTAM",
    "AdaTAMW",
    "Adam",
    "AdamW",
    "AdamWScheduleFree",
    "DAdaptAdaGrad",
    "DAdaptAdam",
    "DAdaptAdan",
    "DAdaptDA",
    "DAdaptGD",
    "DAdaptLion",
    "DAdaptSGD",
    "DecSPS",
    "DiagonalGradaGrad",
    "DoG",
    "DoWG",
    "GradaGrad",
    "LDoG",
    "MechanicAdamW",
    "MechanicSGD",
    "MirrorMADGRAD",
    "MoMo",
    "MoMoAdam",
    "Prodigy",
    "ProdigyDA",
    "ProdigyGD",
    "ProxSPS",
    "Resetting",
    "ResettingGD",
    "SGDScheduleFree",
    "compose",
]

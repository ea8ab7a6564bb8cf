"""Named classes: a signature, a docstring and a recipe of parts; no mathematics."""

from untuned.optimizers.averaging import (
    SGDSPA,
    AdamWScheduleFree,
    GPAAdamW,
    MechanicAdamW,
    MechanicSGD,
    ProdigyScheduleFree,
    SGDScheduleFree,
)
from untuned.optimizers.classic import SGD, SGDF, TAM, Adam, AdamW, AdaTAM, AdaTAMW
from untuned.optimizers.compose import compose
from untuned.optimizers.convex import DAdaptDA, DAdaptGD, DoG, DoWG, LDoG, ProdigyDA, ProdigyGD, Resetting, ResettingGD
from untuned.optimizers.distance import DAdaptAdaGrad, DAdaptAdam, DAdaptAdan, DAdaptLion, DAdaptSGD, Prodigy
from untuned.optimizers.dual import MADGRAD, MDA, SNGM, DiagonalGradaGrad, GradaGrad, MirrorMADGRAD
from untuned.optimizers.gains import AdaRem, MultiplicativeAdam, MultiplicativeSGD
from untuned.optimizers.heavy_ball import AMMSGD, AdaptiveHeavyBall, AdaptiveHeavyBallAdam
from untuned.optimizers.momo import MoMo, MoMoAdam
from untuned.optimizers.ordered import OrMo
from untuned.optimizers.polyak import ALIG, MOTAPS, NGN, SP, SPS, TAPS, DecSPS, ProxSPS
from untuned.optimizers.random_scaling import RandomScalingAdamW, RandomScalingSGD
from untuned.optimizers.relative import RelativeMuon

__all__ = [
    "ALIG",
    "AMMSGD",
    "MADGRAD",
    "MDA",
    "MOTAPS",
    "NGN",
    "SGD",
    "SGDF",
    "SGDSPA",
    "SNGM",
    "SP",
    "SPS",
    "TAM",
    "TAPS",
    "AdaRem",
    "AdaTAM",
    "AdaTAMW",
    "Adam",
    "AdamW",
    "AdamWScheduleFree",
    "AdaptiveHeavyBall",
    "AdaptiveHeavyBallAdam",
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
    "GPAAdamW",
    "GradaGrad",
    "LDoG",
    "MechanicAdamW",
    "MechanicSGD",
    "MirrorMADGRAD",
    "MoMo",
    "MoMoAdam",
    "MultiplicativeAdam",
    "MultiplicativeSGD",
    "OrMo",
    "Prodigy",
    "ProdigyDA",
    "ProdigyGD",
    "ProdigyScheduleFree",
    "ProxSPS",
    "RandomScalingAdamW",
    "RandomScalingSGD",
    "RelativeMuon",
    "Resetting",
    "ResettingGD",
    "SGDScheduleFree",
    "compose",
]

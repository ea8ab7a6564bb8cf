"""Step sizes: how far a step goes."""

from untuned.step_sizes.alig import ALIG
from untuned.step_sizes.convex import DAdaptationDA, ProdigyDA
from untuned.step_sizes.convex_gd import DAdaptationGD, ProdigyGD
from untuned.step_sizes.dadaptation import DAdaptation
from untuned.step_sizes.dadaptation_adagrad import DAdaptationAdaGrad
from untuned.step_sizes.dadaptation_lion import DAdaptationLion
from untuned.step_sizes.dadaptation_sgd import DAdaptationSGD
from untuned.step_sizes.dog import DoG, DoWG
from untuned.step_sizes.dual import MADGRAD, MDA
from untuned.step_sizes.fixed import Fixed, WarmedUp
from untuned.step_sizes.gradagrad import GradaGrad
from untuned.step_sizes.momo import MoMo
from untuned.step_sizes.ngn import NGN
from untuned.step_sizes.polyak import SP, SPS, DecSPS
from untuned.step_sizes.prodigy import Prodigy
from untuned.step_sizes.recorded import MOTAPS, TAPS
from untuned.step_sizes.relative import Relative

__all__ = [
    "ALIG",
    "MADGRAD",
    "MDA",
    "MOTAPS",
    "NGN",
    "SP",
    "SPS",
    "TAPS",
    "DAdaptation",
    "DAdaptationAdaGrad",
    "DAdaptationDA",
    "DAdaptationGD",
    "DAdaptationLion",
    "DAdaptationSGD",
    "DecSPS",
    "DoG",
    "DoWG",
    "Fixed",
    "GradaGrad",
    "MoMo",
    "Prodigy",
    "ProdigyDA",
    "ProdigyGD",
    "Relative",
    "WarmedUp",
]

"""Step sizes: how far a step goes."""

from untuned.step_sizes.dadaptation import DAdaptation
from untuned.step_sizes.fixed import Fixed, WarmedUp
from untuned.step_sizes.momo import MoMo
from untuned.step_sizes.prodigy import Prodigy

__all__ = ["DAdaptation", "Fixed", "MoMo", "Prodigy", "WarmedUp"]

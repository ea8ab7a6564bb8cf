"""What goes around a model or around an optimizer of any package: imports torch, and nothing of this library."""

from untuned.wrappers.effective_lr import EffectiveLR
from untuned.wrappers.extrapolated import Extrapolated
from untuned.wrappers.norms import NormReport, insert_norms
from untuned.wrappers.projector import WeightProjector
from untuned.wrappers.svag import SVAG, pairs

__all__ = ["SVAG", "EffectiveLR", "Extrapolated", "NormReport", "WeightProjector", "insert_norms", "pairs"]

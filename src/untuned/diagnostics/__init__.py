"""What looks at a run and changes no number of it: attached by hooks or called with what there is."""

from untuned.diagnostics.critical_batch import CriticalBatch, critical_batch
from untuned.diagnostics.graduated import GraduatedSchedule
from untuned.diagnostics.noise_meter import Noise, NoiseMeter, gradient_noise
from untuned.diagnostics.noise_scale import noise_parts, noise_scale
from untuned.diagnostics.quadratic import coupled_eta, coupled_gamma, stationary_variance
from untuned.diagnostics.saddle import Ratios, SaddleMonitor
from untuned.diagnostics.svag import SVAG, pairs

__all__ = [
    "SVAG",
    "CriticalBatch",
    "GraduatedSchedule",
    "Noise",
    "NoiseMeter",
    "Ratios",
    "SaddleMonitor",
    "coupled_eta",
    "coupled_gamma",
    "critical_batch",
    "gradient_noise",
    "noise_parts",
    "noise_scale",
    "pairs",
    "stationary_variance",
]

"""What looks at a run and changes no number of it: attached by hooks or called with what there is."""

from untuned.diagnostics.checkpoints import TrajectoryMap, trajectory_map
from untuned.diagnostics.critical_batch import CriticalBatch, critical_batch
from untuned.diagnostics.noise_meter import Noise, NoiseMeter, gradient_noise
from untuned.diagnostics.quadratic import coupled_eta, coupled_gamma, stationary_variance
from untuned.diagnostics.saddle import Ratios, SaddleMonitor
from untuned.diagnostics.trajectory import TrajectoryRecorder
from untuned.diagnostics.trajectory_measures import Measures, Series, random_walk_similarity
from untuned.noise_scale import noise_parts, noise_scale

__all__ = [
    "CriticalBatch",
    "Measures",
    "Noise",
    "NoiseMeter",
    "Ratios",
    "SaddleMonitor",
    "Series",
    "TrajectoryMap",
    "TrajectoryRecorder",
    "coupled_eta",
    "coupled_gamma",
    "critical_batch",
    "gradient_noise",
    "noise_parts",
    "noise_scale",
    "random_walk_similarity",
    "stationary_variance",
    "trajectory_map",
]

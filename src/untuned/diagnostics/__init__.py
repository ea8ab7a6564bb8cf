"""What looks at a run and changes no number of it: attached by hooks or called with what there is."""

from untuned.diagnostics.checkpoints import TrajectoryMap, trajectory_map
from untuned.diagnostics.saddle import Ratios, SaddleMonitor
from untuned.diagnostics.trajectory import TrajectoryRecorder
from untuned.diagnostics.trajectory_measures import Measures, Series, random_walk_similarity

__all__ = [
    "Measures",
    "Ratios",
    "SaddleMonitor",
    "Series",
    "TrajectoryMap",
    "TrajectoryRecorder",
    "random_walk_similarity",
    "trajectory_map",
]

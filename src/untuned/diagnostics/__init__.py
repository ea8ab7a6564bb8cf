"""What looks at a run without changing a number of it, attached by hooks or callbacks; needs torch and numpy only."""

from untuned.diagnostics.checkpoints import TrajectoryMap, trajectory_map
from untuned.diagnostics.trajectory import TrajectoryRecorder
from untuned.diagnostics.trajectory_measures import Measures, Series, random_walk_similarity

__all__ = ["Measures", "Series", "TrajectoryMap", "TrajectoryRecorder", "random_walk_similarity", "trajectory_map"]

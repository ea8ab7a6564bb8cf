"""Learning-rate schedules, as `torch.optim.lr_scheduler` classes to step after every optimizer step."""

from untuned.schedules.graduated import GraduatedSchedule
from untuned.schedules.larger_steps import LargerSteps
from untuned.schedules.linear_decay import LinearDecay, Warmup
from untuned.schedules.momentum_decay import MomentumDecay
from untuned.schedules.norms import NormRecorder
from untuned.schedules.refine import bound, numeric, refine
from untuned.schedules.refined import Refined
from untuned.schedules.shapes import SHAPES, Schedule

__all__ = [
    "SHAPES",
    "GraduatedSchedule",
    "LargerSteps",
    "LinearDecay",
    "MomentumDecay",
    "NormRecorder",
    "Refined",
    "Schedule",
    "Warmup",
    "bound",
    "numeric",
    "refine",
]

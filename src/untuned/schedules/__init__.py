"""Learning-rate schedules, as `torch.optim.lr_scheduler` classes to step after every optimizer step."""

from untuned.schedules.larger_steps import LargerSteps
from untuned.schedules.linear_decay import LinearDecay, Warmup
from untuned.schedules.momentum_decay import MomentumDecay

__all__ = ["LargerSteps", "LinearDecay", "MomentumDecay", "Warmup"]

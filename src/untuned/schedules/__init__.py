"""Learning-rate schedules, as `torch.optim.lr_scheduler` classes to step after every optimizer step."""

from untuned.schedules.linear_decay import LinearDecay, Warmup

__all__ = ["LinearDecay", "Warmup"]

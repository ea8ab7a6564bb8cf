"""What looks at a run and changes no number of it: attached by hooks or called with what there is."""

from untuned.diagnostics.saddle import Ratios, SaddleMonitor

__all__ = ["Ratios", "SaddleMonitor"]

"""What checks an optimizer: the conformance suite for any, and naive float64 transcriptions of the papers."""

from untuned.testing.conformance import check_optimizer

__all__ = ["check_optimizer"]

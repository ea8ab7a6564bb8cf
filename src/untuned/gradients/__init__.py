"""Transforms of the gradient."""

from untuned.gradients.adarem import AdaRem

__all__ = ["AdaRem"]

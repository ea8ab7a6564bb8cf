"""Transforms of the gradient."""

from untuned.gradients.adarem import AdaRem
from untuned.gradients.norms import Norms

__all__ = ["AdaRem", "Norms"]

"""Transforms of the plain step."""

from untuned.around.multiplicative import Multiplicative
from untuned.around.project import Project
from untuned.around.random_scaling import RandomScaling

__all__ = ["Multiplicative", "Project", "RandomScaling"]

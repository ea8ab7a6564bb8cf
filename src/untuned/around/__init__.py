"""Transforms of the plain step."""

from untuned.around.project import Project
from untuned.around.random_scaling import RandomScaling

__all__ = ["Project", "RandomScaling"]

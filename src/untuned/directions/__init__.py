"""Directions: what a step follows. Each is one file, to be read beside its paper."""

from untuned.directions.adam import Adam
from untuned.directions.gradient import Gradient
from untuned.directions.momentum import Momentum
from untuned.directions.rmsprop import RMSProp
from untuned.directions.tam import TAM, AdaTAM

__all__ = ["TAM", "AdaTAM", "Adam", "Gradient", "Momentum", "RMSProp"]

"""Iterates: what the parameters hold."""

from untuned.iterates.adaptive_heavy_ball import AdaptiveHeavyBall
from untuned.iterates.from_start import FromStart
from untuned.iterates.gpa import GPA
from untuned.iterates.mechanic import Mechanic
from untuned.iterates.mechanize import Mechanize
from untuned.iterates.ordered_momentum import OrderedMomentum
from untuned.iterates.plain import Plain
from untuned.iterates.primal_average import PrimalAverage
from untuned.iterates.random_point import RandomPoint
from untuned.iterates.resetting import Resetting
from untuned.iterates.resetting_gd import ResettingGD
from untuned.iterates.schedule_free import ScheduleFree

__all__ = [
    "GPA",
    "AdaptiveHeavyBall",
    "FromStart",
    "Mechanic",
    "Mechanize",
    "OrderedMomentum",
    "Plain",
    "PrimalAverage",
    "RandomPoint",
    "Resetting",
    "ResettingGD",
    "ScheduleFree",
]

"""Iterates: what the parameters hold."""

from untuned.iterates.mechanic import Mechanic
from untuned.iterates.plain import Plain
from untuned.iterates.schedule_free import ScheduleFree

__all__ = ["Mechanic", "Plain", "ScheduleFree"]

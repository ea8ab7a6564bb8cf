"""Asynchronous training: a server around any optimizer, a simulator of its workers, and engines of real processes."""

from untuned.systems.asynchronous import gloo, on_ray, rpc
from untuned.systems.asynchronous.clocks import Clock, Constant, Exponential, Jitter, Recorded, Slow
from untuned.systems.asynchronous.exchange import Run
from untuned.systems.asynchronous.messages import Answer, Compute, Gradient, ModelGradient, flat
from untuned.systems.asynchronous.server import Server
from untuned.systems.asynchronous.simulator import Simulation, replay, simulate

__all__ = [
    "Answer",
    "Clock",
    "Compute",
    "Constant",
    "Exponential",
    "Gradient",
    "Jitter",
    "ModelGradient",
    "Recorded",
    "Run",
    "Server",
    "Simulation",
    "Slow",
    "flat",
    "gloo",
    "on_ray",
    "replay",
    "rpc",
    "simulate",
]

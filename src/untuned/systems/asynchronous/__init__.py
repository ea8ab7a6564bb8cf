"""Asynchronous training: a server around any optimizer, a simulator of its workers, and engines of real processes."""

from untuned.systems.asynchronous.messages import Answer, Compute, Gradient, ModelGradient, flat
from untuned.systems.asynchronous.server import Server

__all__ = ["Answer", "Compute", "Gradient", "ModelGradient", "Server", "flat"]

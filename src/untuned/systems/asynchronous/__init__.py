"""Asynchronous training: a server around any optimizer, a simulator of its workers, and engines of real processes.

>>> import torch, untuned
>>> def compute(weights, draw):                            # a pure function of both: here, of a parabola with noise
...     return weights + 0.1 * torch.randn(3, generator=torch.Generator().manual_seed(draw))
>>> def server():
...     w = torch.nn.Parameter(torch.ones(3))
...     return Server(untuned.OrMo([w], lr=0.01, num_workers=4), workers=4, steps=400)
>>> ran, again = server(), server()
>>> run = simulate(ran, compute, Slow(Exponential(), workers=[0], factor=5.0))
>>> bool(ran.weights().abs().max() < 0.1), len(ran.trace), round(run.end)
(True, 400, 120)
>>> replay(ran.trace, compute, again)                      # whoever computed, in which order: the same to the bit
>>> torch.equal(ran.weights(), again.weights())
True
"""

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

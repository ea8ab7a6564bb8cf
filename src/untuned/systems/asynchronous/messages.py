"""What workers and the server of asynchronous training say to each other, and models as one flat tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import torch

Compute = Callable[[torch.Tensor, int], torch.Tensor]
"""A worker's gradient: of the flat weights, on the data of that draw. It must be a pure function of both."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Gradient:
    """A gradient that has arrived.

    worker: who sends it, from 0. index: of the weights it was computed with, as in the `Answer` that brought them.
    draw: of the data, from the same answer. number: how many gradients this worker had sent before, so that one that
    arrives twice is known. gradient: flat, shape (parameters,), of the dtype of the weights.
    """

    worker: int
    index: int
    draw: int
    number: int
    gradient: torch.Tensor


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What a worker is told: compute the gradient of these weights on this draw, or stop.

    index: how many gradients the server had applied. draw: a number that no other answer has. weights: a flat copy,
    shape (parameters,), that nobody else changes; None means stop.
    """

    worker: int
    index: int
    draw: int
    weights: torch.Tensor | None

    @property
    def stop(self) -> bool:
        return self.weights is None


def flat(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """A copy of all elements in one vector, tensor after tensor, each in row-major order.

    >>> flat([torch.eye(2), torch.tensor(3.0)])
    tensor([1., 0., 0., 1., 3.])
    """
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


class ModelGradient:
    """The gradient of a model's loss as a function of flat weights and the draw, for a worker.

    `loss(model, draw)` returns a scalar tensor; it must depend on the parameters and the draw alone, so it picks the
    batch by the number of the draw and any dropout by a generator seeded with it. Parameters that need no gradient are
    left as they are. Buffers, such as the running averages of batch norm, stay with the worker and are not sent.

    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> compute = ModelGradient(model, lambda model, draw: model(torch.tensor([[1.0, float(draw)]])).sum())
    >>> compute(torch.zeros(2), 3)
    tensor([1., 3.])
    """

    def __init__(self, model: torch.nn.Module, loss: Callable[[torch.nn.Module, int], torch.Tensor]) -> None:
        self.model, self.loss = model, loss

    def __call__(self, weights: torch.Tensor, draw: int) -> torch.Tensor:
        """The flat gradient, shape (parameters,); zeros for parameters that the loss does not depend on."""
        params = [p for p in self.model.parameters() if p.requires_grad]
        with torch.no_grad():
            for p, piece in zip(params, weights.split([p.numel() for p in params]), strict=True):
                p.copy_(piece.view_as(p))
        gradients = torch.autograd.grad(self.loss(self.model, draw), params, allow_unused=True)
        return flat(torch.zeros_like(p) if g is None else g for p, g in zip(params, gradients, strict=True))


class Worker:
    """A worker: what it answers to each piece of work, numbered.

    >>> worker = Worker(1, lambda weights, draw: 2 * weights)
    >>> sent = worker(Answer(1, index=5, draw=9, weights=torch.ones(2)))
    >>> sent.index, sent.draw, sent.number, sent.gradient
    (5, 9, 0, tensor([2., 2.]))
    """

    def __init__(self, worker: int, compute: Compute) -> None:
        self.worker, self.compute = worker, compute
        self.sent = 0

    def __call__(self, answer: Answer) -> Gradient:
        """The gradient that an answer asks for, which must not be one to stop."""
        assert answer.weights is not None
        gradient = self.compute(answer.weights, answer.draw)
        self.sent += 1
        return Gradient(self.worker, answer.index, answer.draw, self.sent - 1, gradient)

"""What a machine injects: the gradient with respect to its amplitudes, made into a pulse U.

A feedback is a name of the paper, "gradient", "momentum" or "adam", or any optimizer used as a gradient transform: a
function of a list of parameters, such as `lambda params: untuned.SGD(params, lr=1, momentum=0.9)`.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

Factory = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


class Feedback(Protocol):
    """Keeps what the rule remembers between round trips."""

    def push(self, mu: Tensor, G: Tensor, rate: float, loss: Callable[[], Tensor]) -> None:
        """mu <- mu + rate U(G), in place; mu and G are [samples, n], `loss()` is f at the measured points, [samples].

        G may be changed.
        """
        ...


class Plain:
    """U = -G."""

    def push(self, mu: Tensor, G: Tensor, rate: float, loss: Callable[[], Tensor]) -> None:
        mu.sub_(G, alpha=rate)


class Momentum:
    """B = theta B + G from B = 0, U = -B: torch's form, which is what the published runs used.

    Equation (1) of arXiv 2401.12135 has (1 - theta) G instead, which is this with a strength 1 - theta times as large.
    """

    def __init__(self, theta: float = 0.9) -> None:
        self.theta, self.B = theta, None

    def push(self, mu: Tensor, G: Tensor, rate: float, loss: Callable[[], Tensor]) -> None:
        self.B = G.clone() if self.B is None else self.B.mul_(self.theta).add_(G)
        mu.sub_(self.B, alpha=rate)


class Adam:
    """U = -m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps): torch's Adam with lr 1."""

    def __init__(self, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> None:
        self.beta1, self.beta2, self.eps, self.t = beta1, beta2, eps, 0

    def push(self, mu: Tensor, G: Tensor, rate: float, loss: Callable[[], Tensor]) -> None:
        if self.t == 0:
            self.m, self.v, self.root = torch.zeros_like(G), torch.zeros_like(G), torch.empty_like(G)
        self.t += 1
        self.m.lerp_(G, 1 - self.beta1)
        self.v.mul_(self.beta2).addcmul_(G, G, value=1 - self.beta2)
        torch.sqrt(self.v, out=self.root)
        self.root.mul_(1 / math.sqrt(1 - self.beta2**self.t)).add_(self.eps)
        mu.addcdiv_(self.m, self.root, value=-rate / (1 - self.beta1**self.t))


NAMES: dict[str, Callable[[], Feedback]] = {"gradient": Plain, "momentum": Momentum, "adam": Adam}


class Transform:
    """An optimizer as a gradient transform: it takes a step from the amplitudes with G, and U is its displacement.

    The parameter is a scratch tensor, set to the amplitudes before every step, so weight decay and distances mean what
    they say. With `per_sample` every sample has an optimizer and a parameter [n] of its own, at the price of a step per
    sample; otherwise there is one parameter [samples, n], and a rule that looks at more than one element at a time,
    such as a norm over the model, mixes the samples: a RuntimeWarning says so. Rules that need the loss get f at the
    measured points (the sum over the samples of a parameter), since that is what G is the gradient of. Samples that
    have diverged have gradient 0 here and stay diverged.
    """

    def __init__(self, factory: Factory, per_sample: bool) -> None:
        self.factory, self.per_sample = factory, per_sample
        self.params: list[torch.nn.Parameter] = []
        self.optimizers: list[Any] = []

    def _start(self, mu: Tensor) -> None:
        self.scratch = mu.clone()  # the parameters share its memory
        self.params = [torch.nn.Parameter(part) for part in (self.scratch if self.per_sample else [self.scratch])]
        self.optimizers = [built(self.factory, [p]) for p in self.params]
        if not self.per_sample and len(mu) > 1 and mixes(self.factory, mu.shape[1]):
            warnings.warn(
                f"{type(self.optimizers[0]).__name__} as feedback mixes the samples: what it does to one of them "
                "depends on the others. With per_sample=True each has an optimizer of its own.",
                RuntimeWarning,
                stacklevel=5,
            )

    def push(self, mu: Tensor, G: Tensor, rate: float, loss: Callable[[], Tensor]) -> None:
        if not self.params:
            self._start(mu)
        before = mu.nan_to_num(0.0, 0.0, 0.0)
        self.scratch.copy_(before)
        G.nan_to_num_(0.0, 0.0, 0.0)
        losses = loss().nan_to_num(0.0, 0.0, 0.0)
        parts = [(G, losses.sum())] if not self.per_sample else list(zip(G, losses, strict=True))
        for p, optimizer, (g, f) in zip(self.params, self.optimizers, parts, strict=True):
            p.grad = g
            optimizer.step(lambda f=f: f)
        mu.add_(self.scratch.sub_(before), alpha=rate)


def built(factory: Factory, params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of a factory; TypeError in one sentence if it made none, or one of other parameters."""
    optimizer: Any = factory(params)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"feedback must return an optimizer of the parameters it is given, not {optimizer!r}.")
    if [id(p) for group in optimizer.param_groups for p in group["params"]] != [id(p) for p in params]:
        raise TypeError(f"feedback must return an optimizer of the parameters it is given: {type(optimizer).__name__}.")
    return optimizer


def mixes(factory: Factory, n: int, steps: int = 6) -> bool:
    """True if what the optimizer does to one sample depends on the gradients of another, tried on random ones."""

    def moved(seed: int) -> Tensor:
        same, other = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
        p = torch.nn.Parameter(torch.randn(2, n, generator=same, dtype=torch.float64))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            optimizer: Any = built(factory, [p])
            for _ in range(steps):
                rows = [torch.randn(n, generator=g, dtype=torch.float64) for g in (same, other)]
                p.grad = torch.stack([rows[0], 10 * seed * rows[1]])
                optimizer.step(lambda: torch.tensor(1.0, dtype=torch.float64))
        return p.detach()[0].clone()

    with torch.enable_grad():
        first, second = moved(1), moved(2)
    return not torch.allclose(first, second, rtol=1e-9, atol=0.0, equal_nan=True)


def feedback_of(feedback: str | Factory, per_sample: bool) -> Feedback:
    """The feedback of a name or a factory; ValueError or TypeError in one sentence for anything else."""
    if isinstance(feedback, str):
        if feedback not in NAMES:
            raise ValueError(f"feedback is one of {', '.join(NAMES)} or a function of parameters, not {feedback!r}.")
        return NAMES[feedback]()
    if not callable(feedback) or (inspect.isclass(feedback) and not issubclass(feedback, torch.optim.Optimizer)):
        raise TypeError(f"feedback is one of {', '.join(NAMES)} or a function of parameters, not {feedback!r}.")
    return Transform(feedback, per_sample)

"""The slow expert S_t of a weight after t cascades, from the fast experts D_1 ... D_t: four laws.

The paper's first page says that a weighted portion of the fast expert goes into the slow one; which of these it means
was not to be read there. Each law keeps its state in a dict of tensors, empty before the first cascade.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from untuned.systems.lorasc.experts import Expert

State = dict[str, Tensor]


class Law(ABC):
    def first(self, state: State, expert: Expert) -> None:  # noqa: B027, most laws start from nothing
        """What the slow expert is before the first fast one is trained."""

    @abstractmethod
    def take(self, state: State, expert: Expert) -> None:
        """Take the fast expert of the cascade that ends into the slow one."""

    @abstractmethod
    def value(self, state: State, expert: Expert) -> Tensor:
        """S_t, shaped as the weight."""

    def restart(self, state: State, expert: Expert, generator: torch.Generator) -> None:
        """Make the fast expert of the next cascade."""
        expert.reset(generator)


class Product(Law):
    """S_t = (1 - pace) S_{t-1} + pace D_t, with S_0 = 0: a matrix of the weight's size is kept.

    With a merge at every cascade this is SGD with momentum and dampening 1 - pace, lr 1, whose gradients are -D_t.
    """

    def __init__(self, pace: float) -> None:
        self.pace = pace

    def take(self, state: State, expert: Expert) -> None:
        fast = expert.delta()
        state.setdefault("s", torch.zeros_like(fast)).mul_(1 - self.pace).add_(fast, alpha=self.pace)

    def value(self, state: State, expert: Expert) -> Tensor:
        return state["s"]


class Window(Law):
    """S_t is the mean of the last `size` fast experts, of all while there are fewer; their factors are kept."""

    def __init__(self, size: int) -> None:
        self.size = size

    def take(self, state: State, expert: Expert) -> None:
        for key, factor in zip("ab", expert.factors, strict=True):
            row = factor.detach().clone()[None]
            state[key] = torch.cat([state[key][1 - self.size :], row]) if key in state and self.size > 1 else row

    def value(self, state: State, expert: Expert) -> Tensor:
        deltas = [expert.delta(a, b) for a, b in zip(state["a"], state["b"], strict=True)]
        return torch.stack(deltas).mean(0)


class Last(Law):
    """S_t = pace D_t; the factors are kept. With pace 1 and a merge at every cascade: a chain of LoRA."""

    def __init__(self, pace: float) -> None:
        self.pace = pace

    def take(self, state: State, expert: Expert) -> None:
        state["a"], state["b"] = (factor.detach().clone() for factor in expert.factors)

    def value(self, state: State, expert: Expert) -> Tensor:
        return self.pace * expert.delta(state["a"], state["b"])


class Factor(Law):
    """A and B are averaged one by one, A_t = (1 - pace) A_{t-1} + pace A, and S_t is the product of the averages.

    The averages start as the factors that the first fast expert starts with; every other fast expert starts from them.
    """

    def __init__(self, pace: float) -> None:
        self.pace = pace

    def first(self, state: State, expert: Expert) -> None:
        state["a"], state["b"] = (factor.detach().clone() for factor in expert.factors)

    def take(self, state: State, expert: Expert) -> None:
        for key, factor in zip("ab", expert.factors, strict=True):
            state[key].mul_(1 - self.pace).add_(factor.detach(), alpha=self.pace)

    def value(self, state: State, expert: Expert) -> Tensor:
        return expert.delta(state["a"], state["b"])

    def restart(self, state: State, expert: Expert, generator: torch.Generator) -> None:
        expert.set(state["a"], state["b"])

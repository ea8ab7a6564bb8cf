"""SVAG: a run of l times smaller steps with l times the noise, to tell what noise does from what step size does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from untuned.wrappers.weights import innermost

T = TypeVar("T")


def coefficients(l: int) -> tuple[float, float]:  # noqa: E741
    """c1, c2 = (1 +- sqrt(2 l - 1)) / 2: c1 + c2 = 1 and c1^2 + c2^2 = l. l is a whole number from 1.

    >>> coefficients(5)
    (2.0, -1.0)
    """
    if isinstance(l, bool) or not isinstance(l, int) or l < 1:
        raise ValueError(f"SVAG: l must be a whole number from 1, not {l!r}.")
    root = math.sqrt(2 * l - 1)
    return (1 + root) / 2, (1 - root) / 2


class SVAG:
    """Stochastic variance amplified gradient, around any optimizer: arXiv 2307.15196, as in sadhikamalladi/svag.

    A step combines the gradients of two independent batches, g = c1 g1 + c2 g2 with `coefficients(l)`: the mean of g is
    that of one batch, its covariance l times as large. It is made with lr / l, so that l steps cover what one step of
    the plain run covers, at the same noise: as l grows, the run approaches the stochastic differential equation of
    the optimizer, in which the learning rate has no effect beside noise. l=1 is the plain run; it uses the first batch
    alone and does not compute the second.

    Learning rates keep the plain run's values everywhere, in `param_groups` and in schedules, and are divided inside
    `step` only. `schedules` (torch.optim.lr_scheduler) are stepped here, after every l-th step, as the plain run does
    after every step; do not step them yourself. `steps_for(n)` is how many steps replace n plain ones. Momentum factors
    stay as they are, as in the paper.

    Gradients that lie in `p.grad` before are dropped. Where one batch has no gradient for a parameter, zero stands for
    it. Batch normalisation sees two forward passes a step. Costs two backward passes and one more copy of the gradient.
    ValueError, with nothing done, for an l that is no whole number from 1 and for optimizers without lr.

    >>> import torch
    >>> from untuned.wrappers import SVAG
    >>> w = torch.nn.Parameter(torch.tensor([4.0]))
    >>> svag = SVAG(torch.optim.SGD([w], lr=0.5), l=5)
    >>> batches = iter([1.0, 2.0])
    >>> loss = svag.step(lambda: (w * next(batches)).sum(), lambda: (w * next(batches)).sum())
    >>> w.item()                                          # 4 - 0.5 / 5 * (2 * 1 - 1 * 2)
    4.0
    >>> svag.steps_for(100)
    500
    """

    def __init__(self, optimizer: torch.optim.Optimizer, l: int, schedules: Iterable[Any] = ()) -> None:  # noqa: E741
        self.c1, self.c2 = coefficients(l)
        inner = innermost(optimizer, "SVAG")
        if any("lr" not in group for group in inner.param_groups):
            raise ValueError(f"SVAG divides the learning rate, and {type(inner).__name__} has a group without lr.")
        self.optimizer, self.l, self.schedules, self.steps = optimizer, l, list(schedules), 0
        self._inner = inner

    def step(self, first: Callable[[], Tensor], second: Callable[[], Tensor]) -> Tensor:
        """One small step; `first()` and `second()` are the losses of two independent batches, before backward.

        Returns the mean of the losses that were computed, without graph.
        """
        losses = [self._backward(first, "first")]
        if self.l > 1:
            parameters = [p for group in self._inner.param_groups for p in group["params"]]
            kept = [None if p.grad is None else p.grad.detach().clone() for p in parameters]
            losses.append(self._backward(second, "second"))
            with torch.no_grad():
                for p, g in zip(parameters, kept, strict=True):
                    if p.grad is not None:
                        p.grad.mul_(self.c2)
                    if g is not None:
                        p.grad = g.mul_(self.c1) if p.grad is None else p.grad.add_(g, alpha=self.c1)
        rates = [group["lr"] for group in self._inner.param_groups]
        try:
            for group, lr in zip(self._inner.param_groups, rates, strict=True):
                group["lr"] = lr / self.l if self.l > 1 else lr
            self.optimizer.step()
        finally:
            for group, lr in zip(self._inner.param_groups, rates, strict=True):
                group["lr"] = lr
        self.steps += 1
        if self.steps % self.l == 0:
            for schedule in self.schedules:
                schedule.step()
        return torch.stack(losses).mean()

    def _backward(self, closure: Callable[[], Tensor], which: str) -> Tensor:
        self._inner.zero_grad(set_to_none=True)
        loss = closure()
        if not (isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad):
            raise ValueError(f"SVAG: the {which} closure must return a loss of one number, before backward.")
        loss.backward()
        return loss.detach().reshape(())

    def steps_for(self, plain: int) -> int:
        """How many steps replace `plain` steps of the plain run; each takes two batches."""
        return self.l * plain

    @property
    def time(self) -> float:
        """Steps so far in units of those of the plain run: the axis on which runs of different l are compared."""
        return self.steps / self.l

    def state_dict(self) -> dict[str, Any]:
        """l and the steps made; optimizer and schedules are saved by themselves."""
        return {"l": self.l, "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict()` gave. ValueError, with nothing changed, if it is of another l."""
        if state_dict.get("l") != self.l or not isinstance(state_dict.get("steps"), int):
            raise ValueError(f"SVAG(l={self.l}) cannot load this state: its l is {state_dict.get('l')!r}.")
        self.steps = state_dict["steps"]


def pairs(batches: Iterable[T]) -> Iterator[tuple[T, T]]:
    """Two batches for each step of `SVAG`: neighbours of one loader, which share no sample; an odd last one is left.

    >>> list(pairs([1, 2, 3, 4, 5]))
    [(1, 2), (3, 4)]
    """
    rest = iter(batches)
    return zip(rest, rest, strict=False)

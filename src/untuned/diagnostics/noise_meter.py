"""Measures the noise of a run: how far its gradients and its steps are from the full gradient, and why."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from untuned.wrappers.weights import innermost

Loss = Callable[[], Tensor | Iterable[Tensor]]
_attached: WeakSet[torch.optim.Optimizer] = WeakSet()


@dataclass(frozen=True)
class Noise:
    """Means over the steps of a run, all squared norms of whole vectors; NaN without a step."""

    steps: int
    C2: float  # b |g_b - grad f|^2: the variance of the gradient of one sample
    gradient: float  # |grad f|^2
    K: float  # the largest |grad f|
    total: float  # |d - grad f|^2, d being the search direction
    bias: float  # |dbar - grad f|^2, dbar being the direction from full gradients at the same points
    variance: float  # |d - dbar|^2
    cross: float  # total - bias - variance; near zero over many steps if gradients do not answer to earlier noise

    def delta(self, eta: float) -> float:
        """eta sqrt(total), what `noise_scale` gives by formula."""
        return eta * math.sqrt(self.total)


class NoiseMeter:
    """Attached to an optimizer, measures each of its steps until `remove()`, and changes no number of the run.

    `full_loss()` is the mean loss over all data with the model as it is, or losses that sum to it, one graph at a time
    (a generator). Its gradient is the full gradient. The search direction d is what the step did: (p before - p after)
    / lr, so that weight decay is part of it; it means something where steps are lr times a direction. dbar comes from a
    copy of the optimizer that makes every step from the same point with the full gradient. The copy starts with the
    momentum of the run, so that dbar needs some 3 / (1 - beta) steps to forget the noise in it: see `noise(skip=...)`.

    `batch_size` is b of g_b, the gradient that the step finds in `p.grad`; set the attribute where it changes. Batches
    drawn from `population` samples without replacement have less noise by (n - b) / (n - 1), which C2 accounts for; it
    is NaN where the batch is the population. Buffers of the model (batch normalisation) and random states are put back
    after the full loss, and `p.grad` is not touched; forward hooks of the model see its passes. Steps with lr 0 are not
    measured. Costs a pass over all data, a copy of the optimizer and three of the weights; attach it for a
    stretch of a run only. float32 weights leave an error of 6e-8 |p| / lr in d.

    ValueError if the optimizer has a meter already. Also a context manager.

    >>> import torch
    >>> from untuned.diagnostics import NoiseMeter
    >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> optimizer = torch.optim.SGD([w], lr=0.1)
    >>> with NoiseMeter(None, optimizer, lambda: (w**2).sum() / 2, batch_size=8) as meter:
    ...     w.grad = w.detach() + torch.tensor([1.0, 0.0])
    ...     optimizer.step()
    >>> found = meter.noise()
    >>> found.steps, round(found.C2, 4), round(found.K, 4), round(found.variance, 4)
    (1, 8.0, 5.0, 1.0)
    """

    def __init__(
        self,
        model: nn.Module | None,
        optimizer: torch.optim.Optimizer,
        full_loss: Loss,
        batch_size: float,
        population: int | None = None,
    ) -> None:
        inner = innermost(optimizer, "NoiseMeter")
        if inner in _attached:
            raise ValueError("NoiseMeter: this optimizer has a meter already; remove() that one first.")
        _check_sizes("NoiseMeter", batch_size, population)
        self.model, self.full_loss, self.batch_size, self.population = model, full_loss, batch_size, population
        self.history: list[tuple[float, float, float, float, float]] = []  # C2, gradient, total, bias, variance
        self._optimizer, self._shadow = inner, copy.deepcopy(inner)
        self._now: tuple[list[list[Tensor]], list[list[Tensor]], float] | None = None
        self._hooks = [inner.register_step_pre_hook(self._before), inner.register_step_post_hook(self._after)]
        _attached.add(inner)

    def remove(self) -> None:
        """Take the hooks off; what was measured stays."""
        for hook in self._hooks:
            hook.remove()
        if self._hooks:
            _attached.discard(self._optimizer)
        self._hooks, self._now = [], None

    def __enter__(self) -> NoiseMeter:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def noise(self, skip: int = 0) -> Noise:
        """The means so far, without the first `skip` measured steps."""
        rows = self.history[skip:]
        if not rows:
            return Noise(0, *[math.nan] * 7)
        C2, gradient, total, bias, variance = (sum(column) / len(rows) for column in zip(*rows, strict=True))
        K = math.sqrt(max(row[1] for row in rows))
        return Noise(len(rows), C2, gradient, K, total, bias, variance, total - bias - variance)

    def metrics(self) -> dict[str, float]:
        """The last measured step, as numbers worth logging."""
        names = ("noise/C2", "noise/gradient_sq", "noise/total", "noise/bias", "noise/variance")
        return dict(zip(names, self.history[-1], strict=True)) if self.history else {}

    # ------------------------------------------------------------------ the hooks

    def _before(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        groups = [group["params"] for group in optimizer.param_groups]
        full = _gradients(self.model, self.full_loss, [p for group in groups for p in group])
        found = [torch.zeros_like(p) if p.grad is None else p.grad.detach() for group in groups for p in group]
        C2 = _of_one(_square(found, full), self.batch_size, self.population)
        rest = iter(full)
        at = [[p.detach().clone() for p in group] for group in groups]
        self._now = at, [[next(rest) for _ in group] for group in groups], C2

    @torch.no_grad()
    def _after(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self._now is None:
            return
        (at, full, C2), self._now = self._now, None
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        for group, own, points, grads in zip(
            self._shadow.param_groups, optimizer.param_groups, at, full, strict=True
        ):  # fmt: skip
            group.update({key: value for key, value in own.items() if key != "params"})
            for p, point, g in zip(group["params"], points, grads, strict=True):
                p.copy_(point)
                p.grad = g.clone()
        self._shadow.step()
        if not all(rates):
            return
        d, dbar = (
            [(x - p) / lr for lr, group, xs in zip(rates, some.param_groups, at, strict=True)
             for x, p in zip(xs, group["params"], strict=True)]
            for some in (optimizer, self._shadow)
        )  # fmt: skip
        f = [g for grads in full for g in grads]
        norm = _square(f, [torch.zeros_like(g) for g in f])
        self.history.append((C2, norm, _square(d, f), _square(dbar, f), _square(d, dbar)))


def gradient_noise(
    model: nn.Module,
    full_loss: Loss,
    batch_losses: Iterable[Loss],
    batch_size: int,
    population: int | None = None,
) -> tuple[float, float]:
    """C2 and |grad f| at fixed weights: b E |g_b - grad f|^2 over repeated batches, called and not attached.

    `full_loss` and `population` as in `NoiseMeter`; each of `batch_losses` gives the loss of one batch of `batch_size`.
    Nothing of the model changes. ValueError without a batch.
    """
    _check_sizes("gradient_noise", batch_size, population)
    parameters = [p for p in model.parameters() if p.requires_grad]
    full = _gradients(model, full_loss, parameters)
    found = [_square(_gradients(model, loss, parameters), full) for loss in batch_losses]
    if not found:
        raise ValueError("gradient_noise needs at least one batch.")
    norm = math.sqrt(_square(full, [torch.zeros_like(g) for g in full]))
    return _of_one(sum(found) / len(found), batch_size, population), norm


def _check_sizes(name: str, batch_size: float, population: int | None) -> None:
    if not (batch_size > 0 and (population is None or population >= batch_size)):
        raise ValueError(f"{name}: batch_size must be positive and not larger than the population.")


def _of_one(square: float, b: float, n: int | None) -> float:
    """The variance of one sample's gradient from that of a batch's."""
    if n is None:
        return b * square
    return b * square * (n - 1) / (n - b) if b < n else math.nan


def _square(a: list[Tensor], b: list[Tensor]) -> float:
    """|a - b|^2, summed in float64."""
    return float(sum(((x - y).double() ** 2).sum() for x, y in zip(a, b, strict=True)))


def _gradients(model: nn.Module | None, loss: Loss, parameters: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of `loss`, with buffers, random states and p.grad as they were."""
    total = [torch.zeros_like(p) for p in parameters]
    with _untouched(model), torch.enable_grad():
        found = loss()
        for one in [found] if isinstance(found, Tensor) else found:
            for sum_, g in zip(total, torch.autograd.grad(one, parameters, allow_unused=True), strict=True):
                if g is not None:
                    sum_.add_(g)
    return total


@contextmanager
def _untouched(model: nn.Module | None) -> Iterator[None]:
    buffers = [] if model is None else list(model.buffers())
    kept = [b.detach().clone() for b in buffers]
    with torch.random.fork_rng():
        try:
            yield
        finally:
            with torch.no_grad():
                for b, value in zip(buffers, kept, strict=True):
                    b.copy_(value)

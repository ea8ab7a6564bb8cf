"""The plain method that every machine is held against: projected gradient descent from many random starts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from untuned.systems.ising.problems import Problem
from untuned.systems.ising.solver import Samples


def multi_start(
    problem: Problem,
    samples: int = 128,
    steps: int = 15000,
    generator: torch.Generator | None = None,
    every: int = 10,
    tolerance: float = 1e-5,
    dtype: torch.dtype = torch.float32,
) -> Samples:
    """Projected gradient descent with restarts, at the budget of a machine: steps - 1 gradients for each sample.

    x <- clip(x - (2 Q x + V) / L, 0, 1) from x uniform in the box, with L the largest absolute eigenvalue of 2 Q. A
    sample whose last step changed no coordinate by more than `tolerance` (looked at every ten steps) starts again at
    random. What a sample stands for is the best point it has come to rest at, or, before the first rest, its point; so
    `value` and `best` differ only by what was recorded on the way. Same result and options as `CIM.solve`; nothing
    diverges, and amplitude and variance are empty.
    """
    if samples < 1 or steps < 1 or every < 1:
        raise ValueError(f"multi_start: samples, steps and every are from 1 on, not {samples}, {steps}, {every}.")
    generator = generator or torch.Generator().manual_seed(0)
    box, as_ours = problem.box(), {"dtype": dtype, "device": generator.device}
    L = 2 * float(torch.linalg.eigvalsh(box.Q).abs().max()) or 1.0
    Q, V = (2 * box.Q / L).to(**as_ours), (box.V / L).to(**as_ours)
    shape = (samples, box.n)
    x = torch.rand(shape, generator=generator, **as_ours)
    best_x, best = x.cpu().clone(), torch.full((samples,), math.inf, dtype=torch.float64)
    rounds, history = list[int](), list[Tensor]()

    def keep(where: Tensor) -> None:
        points = problem.answer(x.cpu())
        values = box.value(points)
        better = where.cpu() & (values < best)
        best[better], best_x[better] = values[better], points[better]

    def value_now() -> Tensor:
        return torch.minimum(best, box.value(problem.answer(x.cpu())))

    for t in range(1, steps):
        new = (x - torch.addmm(V, x, Q)).clamp_(0, 1)
        rested = (new - x).abs().amax(1) <= tolerance if t % 10 == 0 else None
        x = new
        if rested is not None and bool(rested.any()):
            keep(rested)
            fresh = torch.rand(shape, generator=generator, **as_ours)
            x = torch.where(rested[:, None], fresh, x)
        if t == 1 or t % every == 0 or t == steps - 1:
            rounds.append(t)
            history.append(value_now())
    keep(torch.ones(samples, dtype=torch.bool))
    values = torch.stack(history) if history else best.new_empty(0, samples)
    least = best if not history else torch.minimum(best, values.min(0).values)
    none = torch.zeros(samples, dtype=torch.bool)
    kept = torch.tensor(rounds, dtype=torch.int64)
    empty = best_x.new_empty(samples, 0)
    return Samples(problem, best_x, best, least, kept, values, none, none.clone(), empty, empty)

"""Runs of momentum that leave a saddle, after arXiv 2106.02985, with the four properties it needs measured along them.

m_t = beta m_{t-1} + g_t, w_{t+1} = w_t - eta m_t. The paper: escape is faster by the factor 1 - beta as long as the
properties hold, and beta cannot be arbitrarily close to 1. It has no formula for the best beta: take the largest beta
whose APAG ratio stays above -1/2.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

import untuned
from untuned.diagnostics import Ratios, SaddleMonitor
from untuned.study.papers.frame import Rows
from untuned.study.papers.saddle_problems import PhaseRetrieval, Problem, Saddle, growth
from untuned.study.stats import Floats

BETAS = (0.0, 0.3, 0.5, 0.7, 0.9)
LIMIT = -0.5  # of the APAG ratio
ENOUGH = 0.95  # the share of measurements within it, below which a beta is flagged as too large


@dataclass(frozen=True)
class Setting:
    """One of the paper's two experiments."""

    title: str
    build: Callable[[Sequence[int]], Problem]
    eta: float
    tau: int
    least: float  # |grad f| from which APAG counts
    steps: int  # at most


SETTINGS = {
    "saddle": Setting("saddle in the plane", Saddle, eta=5e-3, tau=3000, least=0.02, steps=40_000),
    "phase": Setting("phase retrieval", PhaseRetrieval, eta=5e-4, tau=500, least=0.0, steps=10_000),
}


@dataclass(frozen=True)
class Outcome:
    """One run until it arrived, diverged or the steps were used up, and the ratios until then."""

    problem: str
    beta: float
    seed: int
    steps: float  # until it arrived; NaN if it did not
    diverged: bool
    measured: int
    apag_within: float  # share of the measurements with an APAG ratio of at least -1/2, NaN if none counts
    apag_mean: float  # mean <grad f, m - g> over mean |grad f|^2
    apcg_mean: float
    cnc_mean: float  # over measurements with negative curvature
    grace_mean: float  # over eta^2

    @property
    def scaled(self) -> float:
        """Steps over 1 - beta: what the paper says is the same for every beta."""
        return self.steps / (1 - self.beta)


@dataclass(frozen=True)
class Point:
    """Where a run was: w1 and w2 in the plane, the error of phase retrieval otherwise."""

    problem: str
    beta: float
    seed: int
    step: int
    x: float
    y: float


def run(name: str, beta: float, seeds: Sequence[int], batch: int | None = 1) -> tuple[list[Outcome], list[Point]]:
    """All seeds side by side with `untuned.SGD`, `batch` samples a step or exact gradients (None).

    The ratios are measured every 25 (1 - beta) steps, and every fourth time is a point.
    """
    setting = SETTINGS[name]
    every = max(1, round(25 * (1 - beta)))
    problem, eta = setting.build(seeds), setting.eta
    drawn = itertools.repeat(None) if batch is None else problem.samples(batch)
    optimizer = untuned.SGD([problem.w], lr=eta, momentum=beta)
    monitor = SaddleMonitor(problem.losses, eta, beta, setting.tau, problem.hessian)
    runs, points, found = len(seeds), list[Point](), list[Ratios]()
    steps, diverged = torch.full((runs,), math.nan, dtype=torch.float64), torch.zeros(runs, dtype=torch.bool)
    counted: list[Tensor] = []
    size = problem.w.detach().norm(dim=-1).clamp(min=1.0)
    for t, index in zip(range(setting.steps + 1), drawn, strict=False):
        w = problem.w.detach().clone()
        steps[problem.arrived(w) & steps.isnan()] = t
        diverged |= w.norm(dim=-1) > 100 * size
        going = steps.isnan() & ~diverged
        if t % (4 * every) == 0 or not going.any():
            points += [
                Point(name, beta, seed, t, *(round(float(v), 6) for v in xy))
                for seed, xy, stays in zip(seeds, problem.shown(w), diverged, strict=True)
                if not stays
            ]
        if not going.any() or t == setting.steps:
            break
        problem.w.grad = problem.gradient(w, index) * ~diverged[:, None]
        optimizer.step()
        if t % every == 0:
            m = optimizer.state[problem.w].get("momentum_buffer", problem.w.grad)
            found.append(monitor(w, problem.w.grad, m))
            counted.append(going)
    return _outcomes(name, beta, seeds, setting, steps, diverged, found, torch.stack(counted)), points


def _outcomes(
    name: str,
    beta: float,
    seeds: Sequence[int],
    setting: Setting,
    steps: Tensor,
    diverged: Tensor,
    ratios: Sequence[Ratios],
    going: Tensor,
) -> list[Outcome]:
    of = {field.name: torch.stack([getattr(r, field.name) for r in ratios]) for field in fields(Ratios)}
    rows = []
    for i, seed in enumerate(seeds):
        here = {key: value[going[:, i], i] for key, value in of.items()}
        large = here["gradient"] >= setting.least
        apag, norm = here["apag"][large], here["gradient"][large] ** 2
        saddle = here["cnc"][here["curvature"] < 0]
        rows.append(
            Outcome(
                problem=name,
                beta=beta,
                seed=seed,
                steps=steps[i].item(),
                diverged=bool(diverged[i] & steps[i].isnan()),  # one that has arrived goes on while others are away
                measured=int(going[:, i].sum()),
                apag_within=(apag >= LIMIT).double().mean().item(),
                apag_mean=((apag * norm).mean() / norm.mean()).item(),
                apcg_mean=here["apcg"].mean().item(),
                cnc_mean=saddle.mean().item(),
                grace_mean=here["grace"].mean().item() / setting.eta**2,
            )
        )
    return rows


def flagged(outcomes: Sequence[Outcome]) -> list[float]:
    """The betas for which a smaller share of measurements than `ENOUGH`, on average over runs, is within APAG."""
    betas = sorted({o.beta for o in outcomes})
    shares = [[o.apag_within for o in outcomes if o.beta == beta] for beta in betas]
    return [beta for beta, share in zip(betas, shares, strict=True) if sum(share) / len(share) < ENOUGH]


def outcomes_of(rows: Rows) -> list[Outcome]:
    """The rows of `escape` as they were."""
    return [Outcome(**{one.name: row[one.name] for one in fields(Outcome)}) for row in rows["escape"]]  # pyright: ignore[reportArgumentType]


def points_of(rows: Rows) -> list[Point]:
    """The rows of `paths` as they were."""
    return [Point(**{one.name: row[one.name] for one in fields(Point)}) for row in rows["paths"]]  # pyright: ignore[reportArgumentType]


def scaled_means(outcomes: Sequence[Outcome]) -> dict[float, float]:
    """Mean steps over 1 - beta of the runs that arrived, by beta; NaN where none did."""
    betas = sorted({o.beta for o in outcomes})
    found = {beta: [o.scaled for o in outcomes if o.beta == beta and not math.isnan(o.steps)] for beta in betas}
    return {beta: sum(scaled) / len(scaled) if scaled else math.nan for beta, scaled in found.items()}


def predicted(beta: float, at_zero: float) -> float:
    """Steps over 1 - beta that the growth per step, log(1 + `growth`), and the first beta / (1 - beta) steps, in which
    momentum builds up, make of `at_zero` steps without momentum."""
    eta, curvature = SETTINGS["saddle"].eta, 0.1
    steps = at_zero * math.log1p(growth(0.0, eta, curvature)) / math.log1p(growth(beta, eta, curvature))
    return (steps + beta / (1 - beta)) / (1 - beta)


def ratios(outcomes: Sequence[Outcome], beta: float) -> Floats:
    """Steps / (1 - beta) over those of the same seed without momentum, of the seeds that arrived with both."""
    start = {o.seed: o.scaled for o in outcomes if o.beta == 0}
    found = np.array([o.scaled / start[o.seed] for o in outcomes if o.beta == beta])
    return found[~np.isnan(found)]

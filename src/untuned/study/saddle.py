"""How fast momentum leaves a saddle: arXiv 2106.02985, the four properties it needs, measured, and the study.

m_t = beta m_{t-1} + g_t, w_{t+1} = w_t - eta m_t. The paper: escape is faster by the factor 1 - beta as long as the
properties hold, and beta cannot be arbitrarily close to 1. It has no formula for the best beta: take the largest beta
whose APAG ratio stays above -1/2.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

import untuned
from untuned.study.saddle_problems import PhaseRetrieval, Problem, Saddle

BETAS = (0.0, 0.3, 0.5, 0.7, 0.9)
LIMIT = -0.5  # of the APAG ratio
ENOUGH = 0.95  # the share of measurements within it, below which a beta is flagged as too large


@dataclass(frozen=True)
class Ratios:
    """At one step; all of shape [runs]. Expectations of the paper are means over many of these."""

    gradient: Tensor  # |grad f|: APAG is needed where it is large
    curvature: Tensor  # the lowest eigenvalue of the Hessian: CNC and APCG are needed where it is negative
    cnc: Tensor  # <m, v>^2, v being its eigenvector: at least gamma
    apag: Tensor  # <grad f, m - g> / |grad f|^2: at least -1/2
    apcg: Tensor  # <grad f, M m> / (eta sigma_max(M) |grad f|^2): at least -c'
    grace: Tensor  # eta <grad f, g - m> + eta^2 / 2 m'Hm: at most eta^2 c_h


class SaddleMonitor:
    """Computes the four ratios of stochastic momentum at one point: `monitor(w, g, m)`, all of shape [runs, d].

    `losses` maps w to the full losses [runs]. g is the stochastic gradient at w and m the momentum with it in.
    Curvature comes from Hessian-vector products and power iteration (`rounds` of them), M m from 2 tau products; both
    from eigenvectors where `hessian(w)` is given, [runs, d, d]. M = (G_{tau-1} ... G_1) (G_{tau-1} ... G_k),
    G_s = I - eta (1 + beta + ... + beta^{s-1}) H, with k = `first`; its largest singular value by products is taken at
    the ends of the spectrum, which is right for eta (largest eigenvalue) <= 1 - beta.
    """

    def __init__(
        self,
        losses: Callable[[Tensor], Tensor],
        eta: float,
        beta: float,
        tau: int,
        hessian: Callable[[Tensor], Tensor] | None = None,
        first: int = 1,
        rounds: int = 300,
    ) -> None:
        if not (eta > 0 and 0 <= beta < 1 and 1 <= first <= tau):
            raise ValueError("SaddleMonitor: eta must be positive, beta in [0, 1) and first between 1 and tau.")
        self.losses, self.eta, self.beta, self.tau, self.hessian = losses, eta, beta, tau, hessian
        self.first, self.rounds = first, rounds

    def factors(self) -> Tensor:
        """eta (1 + beta + ... + beta^{s-1}) of all factors of M, [2 tau - 1 - first]."""
        s = torch.cat([torch.arange(1, self.tau), torch.arange(self.first, self.tau)]).double()
        return self.eta * (1 - self.beta**s) / (1 - self.beta)

    def _of_eigenvalue(self, values: Tensor) -> Tensor:
        return (1 - self.factors()[:, None, None] * values).prod(0)

    def __call__(self, w: Tensor, g: Tensor, m: Tensor) -> Ratios:
        w, g, m = (t.detach() for t in (w, g, m))
        with torch.enable_grad():
            at = w.clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.losses(at).sum(), at, create_graph=self.hessian is None)
        gradient = slope.detach()

        def inner(a: Tensor, b: Tensor) -> Tensor:
            return (a * b).sum(-1)

        if self.hessian is not None:
            H = self.hessian(w)
            values, vectors = torch.linalg.eigh(H)
            amplified = self._of_eigenvalue(values)
            Mm = (vectors @ (amplified[..., None] * (vectors.mT @ m[..., None])))[..., 0]
            lowest, v, sigma = values[:, 0], vectors[..., 0], amplified.abs().amax(-1)
            Hm = (H @ m[..., None])[..., 0]
        else:

            def times(x: Tensor) -> Tensor:
                return torch.autograd.grad(slope, at, x, retain_graph=True)[0]

            highest, lowest, v = self._ends(times, w)
            Mm = m
            for factor in self.factors().flip(0):
                Mm = Mm - factor * times(Mm)
            sigma = self._of_eigenvalue(torch.stack([lowest, highest], -1)).abs().amax(-1)
            Hm = times(m)
        norm = inner(gradient, gradient)
        return Ratios(
            gradient=norm.sqrt(),
            curvature=lowest,
            cnc=inner(m, v) ** 2,
            apag=inner(gradient, m - g) / norm,
            apcg=inner(gradient, Mm) / (self.eta * sigma * norm),
            grace=self.eta * inner(gradient, g - m) + self.eta**2 / 2 * inner(m, Hm),
        )

    def _ends(self, times: Callable[[Tensor], Tensor], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The largest and the lowest eigenvalue [runs], and the eigenvector of that [runs, d]."""

        def leading(apply: Callable[[Tensor], Tensor]) -> Tensor:
            x = torch.randn(like.shape, generator=torch.Generator().manual_seed(0), dtype=like.dtype)
            for _ in range(self.rounds):
                x = torch.nn.functional.normalize(apply(x), dim=-1)
            return x

        def value(x: Tensor) -> Tensor:
            return (x * times(x)).sum(-1)

        bound = 1.05 * value(leading(times)).abs()[:, None]  # of all |eigenvalues|
        high, low = (leading(lambda x, sign=sign: bound * x + sign * times(x)) for sign in (1, -1))
        return value(high), value(low), low


@dataclass(frozen=True)
class Setting:
    """One of the paper's two experiments."""

    title: str
    build: Callable[[Sequence[int]], Problem]
    done: Callable[[Problem, Tensor], Tensor]  # [runs, d] -> which runs have arrived
    eta: float
    tau: int
    least: float  # |grad f| from which APAG counts
    steps: int  # at most


SETTINGS = {
    "saddle": Setting(
        "saddle in the plane", Saddle, lambda p, w: p.escaped(w), eta=5e-3, tau=3000, least=0.02, steps=40_000
    ),
    "phase": Setting(
        "phase retrieval", PhaseRetrieval, lambda p, w: p.error(w) <= 0.1, eta=5e-4, tau=500, least=0.0, steps=10_000
    ),
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


def run(name: str, beta: float, seeds: Sequence[int], eta: float | None = None) -> tuple[list[Outcome], list[Point]]:
    """All seeds side by side with `untuned.SGD`, one sample a step; measured every 25 (1 - beta) steps."""
    setting = SETTINGS[name] if eta is None else replace(SETTINGS[name], eta=eta)
    every = max(1, round(25 * (1 - beta)))
    problem, eta = setting.build(seeds), setting.eta
    optimizer = untuned.SGD([problem.w], lr=eta, momentum=beta)
    monitor = SaddleMonitor(problem.losses, eta, beta, setting.tau, problem.hessian)
    runs, points, found = len(seeds), list[Point](), list[Ratios]()
    steps, diverged = torch.full((runs,), math.nan, dtype=torch.float64), torch.zeros(runs, dtype=torch.bool)
    counted: list[Tensor] = []
    size = problem.w.detach().norm(dim=-1).clamp(min=1.0)
    for t, index in zip(range(setting.steps + 1), problem.samples(), strict=False):
        w = problem.w.detach().clone()
        steps[setting.done(problem, w) & steps.isnan()] = t
        diverged |= w.norm(dim=-1) > 100 * size
        going = steps.isnan() & ~diverged
        if t % every == 0 or not going.any():
            shown = w if name == "saddle" else torch.stack([problem.error(w), problem.losses(w)], -1)
            points += [
                Point(name, beta, seed, t, *map(float, xy))
                for seed, xy, stays in zip(seeds, shown, diverged, strict=True)
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
                diverged=bool(diverged[i]),
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


def study(folder: Path, seeds: int = 6) -> Iterator[tuple[list[Outcome], list[Point]]]:
    """Run both problems with every beta; yields what `run` found for one beta when it stands in the folder's CSV files.

    The numbers depend on nothing but the seeds: a second run writes the same files again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "saddle.csv").open("w", newline="") as runs, (folder / "paths.csv").open("w", newline="") as paths:
        writers = [csv.DictWriter(f, [c.name for c in fields(kind)]) for f, kind in ((runs, Outcome), (paths, Point))]
        for writer in writers:
            writer.writeheader()
        for name in SETTINGS:
            for beta in BETAS:
                for writer, rows in zip(writers, found := run(name, beta, range(seeds)), strict=True):
                    writer.writerows(asdict(row) for row in rows)
                runs.flush()
                paths.flush()
                yield found

"""What the study of the coherent Ising machine runs."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from untuned.study.papers.frame import Row
from untuned.systems.ising import (
    CIM,
    BoxQP,
    Ising,
    Problem,
    Samples,
    brute_force,
    conditioned,
    diversity,
    erdos_renyi,
    gaps,
    multi_start,
    prove,
    read_best,
    read_boxqp,
    roundtrip_fraction,
    running_gaps,
    sherrington_kirkpatrick,
    sparse_boxqp,
    success,
)

FOLDER = "UNTUNED_BOXQP"  # the environment variable that names a folder with spar*.in and README.txt
FEEDBACKS = ("gradient", "momentum", "adam")
STARTS = "many starts"
METHODS = (*FEEDBACKS, STARTS)
CELLS = ((20, 1.0), (40, 0.3), (60, 0.2), (80, 0.5), (125, 0.25))  # variables, density
PROVABLE = 60  # variables up to which branch and bound takes seconds
SHOWN = (80, 0.5, 0)  # variables, density and seed of the instance whose samples are drawn
KAPPAS, STRENGTHS = (1, 10, 100, 1000), (0.04, 326.0, 701.0, 1076.0)
GRAPHS = (("SK", 20), ("SK", 60), ("G(n, 0.5)", 20), ("G(n, 0.5)", 60))
PERCENTILES = (5.0, 10.0, 25.0, 50.0)
SAMPLES, STEPS = 128, 15000
REFERENCE = (256, 5000)  # samples and steps of the many starts that optima come from


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@contextmanager
def _counted() -> Iterator[None]:
    """Samples that diverge are in the rows, so that the warning says nothing new."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "CIM: .* diverged", RuntimeWarning)
        yield


def _run(method: str, problem: Problem, seed: int, every: int = 10) -> Samples:
    """A machine with the paper's constants, or the plain method with as many gradients a sample."""
    if method == STARTS:
        return multi_start(problem, SAMPLES, STEPS, _seeded(1000 + seed), every)
    with _counted():
        return CIM(method, SAMPLES, STEPS).solve(problem, _seeded(1000 + seed), every)


def _least(problem: Problem) -> tuple[float, float]:
    """The least value of 256 samples of the plain method in float64, and the share of them that have it."""
    samples, steps = REFERENCE
    best = multi_start(problem, samples, steps, _seeded(0), every=steps, tolerance=1e-7, dtype=torch.float64).best
    least = float(best.min())
    return least, _share(best <= least + 1e-6 * abs(least))


def _share(which: Tensor) -> float:
    return float(which.double().mean())


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def optimum(*, n: int, density: float, seed: int) -> list[Row]:
    """The least value of a generated instance that is known, and whether it is proven."""
    problem = sparse_boxqp(n, density, _seeded(seed))
    least, share = _least(problem)
    value, _, proven = prove(problem) if n <= PROVABLE else (math.inf, None, False)
    return [{"best": float(f"{min(least, value):.12g}"), "proven": proven, "starts_there": share}]


def race(*, n: int, density: float, seed: int, best: float) -> list[Row]:
    """Every method on a generated instance, a row each; fractions of round trips are those of the plain feedback."""
    problem = replace(sparse_boxqp(n, density, _seeded(seed)), optimum=best)
    return _race(problem, seed)


def _race(problem: Problem, seed: int) -> list[Row]:
    rows, first = list[Row](), None
    for method in METHODS:
        found = _run(method, problem, seed)
        first = first or found
        of, fractions = diversity(found), roundtrip_fraction(found, first, PERCENTILES)
        rows.append(
            {
                "method": method,
                "success": success(found),
                "median_gap": float(gaps(problem, found.best).median()),
                "least_gap": float(gaps(problem, found.best).min()),
                "final_low": float(gaps(problem, found.value).min()),
                "final_high": float(gaps(problem, found.value).max()),
                "gap_spread": _known(of.gap_spread),
                "distance": _known(of.distance),
                "distinct": of.distinct,
                "diverged": _share(found.diverged),
                **{f"fraction_{X:g}": fractions[X] for X in PERCENTILES},
            }
        )
    return rows


def curves(*, n: int, density: float, seed: int, best: float) -> list[Row]:
    """Percentiles over samples of the running minima, at forty round trips."""
    problem = replace(sparse_boxqp(n, density, _seeded(seed)), optimum=best)
    rows = list[Row]()
    for method in METHODS:
        found = _run(method, problem, seed)
        running = running_gaps(found)
        at = torch.linspace(0, len(running) - 1, 41).round().long()
        levels = torch.quantile(running[at], torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64), dim=1)
        for i, place in enumerate(at.tolist()):
            p5, p50, p95 = levels[:, i].tolist()
            rows.append({"method": method, "round": int(found.rounds[place]), "p5": p5, "p50": p50, "p95": p95})
    return rows


def finals(*, n: int, density: float, seed: int, best: float) -> list[Row]:
    """The final gap of every sample, in order."""
    problem = replace(sparse_boxqp(n, density, _seeded(seed)), optimum=best)
    return [
        {"method": method, "rank": i, "gap": gap}
        for method in METHODS
        for i, gap in enumerate(gaps(problem, _run(method, problem, seed, every=STEPS).value).sort().values.tolist())
    ]


def conditioning(*, kappa: int, method: str, seed: int) -> list[Row]:
    """64 samples of a feedback on an instance of the conditioning family, at every strength."""
    problem = conditioned(20, kappa, _seeded(seed))
    least, share = _least(problem)
    small = 100 / kappa**2  # makes the entries of Q about as large as those of BoxQP, which branch and bound likes
    value, _, proven = prove(problem.scaled(small))
    problem = replace(problem, optimum=min(least, value / small), proven=proven)
    rows = list[Row]()
    for strength in STRENGTHS:
        with _counted():
            found = CIM(method, 64, STEPS, strength=strength).solve(problem, _seeded(1000 + seed))
        rows.append(
            {
                "strength": strength,
                "diverged": _share(found.diverged),
                "negative_variance": _share(found.negative_variance),
                "success": success(found),
                "proven": proven,
                "starts_there": share,
            }
        )
    return rows


def spins(*, graph: str, n: int, seed: int) -> list[Row]:
    """Every method on a spin glass or on Max-Cut, couplings 12.5: Q has entries of 25 then, SPAR's largest."""
    made = sherrington_kirkpatrick(n, _seeded(seed)) if graph == "SK" else erdos_renyi(n, 0.5, _seeded(seed))
    problem = Ising(12.5 * made.J)
    least = brute_force(problem)[0] if n <= 20 else _least(problem)[0]
    proven = n <= 20
    return [{**row, "proven": proven} for row in _race(Ising(problem.J, optimum=least, proven=proven), seed)]


def published_names() -> list[str]:
    """The SPAR instances in the folder that the environment names; none if it names none."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return []
    best = read_best(Path(folder) / "README.txt")
    return sorted(path.stem for path in Path(folder).glob("spar*.in") if path.stem in best)


def published(*, instance: str) -> list[Row]:
    """Every method on an instance of the paper."""
    folder = Path(os.environ[FOLDER])
    problem: BoxQP = read_boxqp(folder / f"{instance}.in", read_best(folder / "README.txt")[instance])
    return _race(problem, 0)

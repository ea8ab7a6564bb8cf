"""Numbers and tables of the study of the coherent Ising machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from untuned.study.papers.frame import Row, Rows, Table
from untuned.study.papers.ising_runs import METHODS, PERCENTILES, STRENGTHS
from untuned.study.papers.rows import by, numbers
from untuned.study.stats import interval


def paired(rows: Sequence[Row], column: str, method: str, factor: float = 1.0, other: str = "gradient") -> list[float]:
    """Per instance, the column of a method minus `factor` times that of another; instances without one are left out."""
    found = list[float]()
    for group in by(rows, "n", "density", "seed").values():
        of = {row["method"]: value for row, value in zip(group, numbers(group, column), strict=True)}
        if not math.isnan(difference := of[method] - factor * of[other]):
            found.append(difference)
    return found


def speedups(rows: Sequence[Row], method: str) -> list[float]:
    """Per instance, the mean over percentiles of log2 of the roundtrip fraction of a method to the plain feedback."""
    mine = [row for row in rows if row["method"] == method]
    table = np.log2([numbers(mine, f"fraction_{X:g}") for X in PERCENTILES])
    return [float(np.nanmean(column)) for column in table.T if not np.isnan(column).all()]


def fractions(rows: Sequence[Row], method: str) -> list[float]:
    """All roundtrip fractions of a method to the plain feedback: instances times percentiles."""
    mine = [row for row in rows if row["method"] == method]
    return [f for X in PERCENTILES for f in numbers(mine, f"fraction_{X:g}") if not math.isnan(f)]


def bounds(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % bootstrap interval of a mean."""
    return interval(np.array(values))


def said(values: Sequence[float], shown: Callable[[float], str] = lambda v: f"{v:.3f}") -> str:
    """A mean with its interval."""
    if not values:
        return "none"
    ends = bounds(values)
    return shown(float(np.mean(values))) + (f" ({shown(ends[0])} to {shown(ends[1])})" if ends else "")


def power(v: float) -> str:
    return f"{2**v:.3f}"


def where(rows: Sequence[Row], column: str, **equal: object) -> list[float]:
    return numbers([row for row in rows if all(row[key] == value for key, value in equal.items())], column)


def tables(rows: Rows) -> list[Table]:
    """The races, the optima they are held against, the map of the conditioning test, and the extension to spins."""
    found = rows["race"]
    listed = [
        Table(
            "Generated BoxQP instances",
            _COLUMNS,
            [
                _cells(f"{n} at {density:.0%}", method, [r for r in group if r["method"] == method])
                for (n, density), group in by(found, "n", "density").items()
                for method in METHODS
                if isinstance(density, float)
            ],
            _optima(rows["optimum"], found),
        ),
        Table(
            "Conditioning: diverged / successful share of samples, by strength",
            ("kappa", "feedback", *(f"{strength:g}" for strength in STRENGTHS)),
            [
                (str(kappa), str(method), *(_both(group, strength) for strength in STRENGTHS))
                for (kappa, method), group in by(rows["conditioning"], "kappa", "method").items()
            ],
            "Means over trials. Optimum proven by branch and bound for "
            f"{np.mean(numbers(rows['conditioning'], 'proven')):.0%} of them; of 256 samples of projected gradient at "
            f"least {min(numbers(rows['conditioning'], 'starts_there')):.0%} have it.",
        ),
        Table(
            "Beyond the paper: spin glasses (SK) and Max-Cut on G(n, 0.5)",
            _COLUMNS,
            [
                _cells(f"{graph}, n = {n}", method, [r for r in group if r["method"] == method])
                for (graph, n), group in by(rows["spins"], "graph", "n").items()
                for method in METHODS
            ],
            "The paper has no such experiment. The couplings are scaled to 12.5, so that the entries of Q are as large "
            "as the largest of the BoxQP instances. Ground states by trying all spins for n = 20, else the best of "
            "many starts, not proven. s and -s count as two solutions.",
        ),
    ]
    if "published" in rows:
        listed.append(
            Table(
                "The paper's instances",
                ("instance", *_COLUMNS[1:]),
                [
                    _cells(str(name), method, [r for r in group if r["method"] == method])
                    for (name,), group in by(rows["published"], "instance").items()
                    for method in METHODS
                ],
            )
        )
    return listed


_COLUMNS = ("instances", "method", "success", "least", "median gap", "gap spread", "distance", "distinct", "fraction")


def _cells(what: str, method: str, mine: Sequence[Row]) -> tuple[str, ...]:
    """Means over instances; the least share of successes beside their mean."""

    def mean(column: str, digits: int) -> str:
        return f"{np.nanmean(numbers(mine, column)):.{digits}f}"

    success, speed = numbers(mine, "success"), speedups(mine, method)
    return (
        what, method, said(success, lambda v: f"{v:.2f}"), f"{min(success):.2f}", mean("median_gap", 4),
        mean("gap_spread", 4), mean("distance", 3), mean("distinct", 1), power(float(np.mean(speed))) if speed else "",
    )  # fmt: skip


def _both(group: Sequence[Row], strength: float) -> str:
    lost, success = (float(np.mean(where(group, column, strength=strength))) for column in ("diverged", "success"))
    return f"{lost:.2f} / {success:.2f}"


def _optima(found: Sequence[Row], raced: Sequence[Row]) -> str:
    proven = [row for row in found if row["proven"]]
    other = [row for row in found if not row["proven"]]
    better = sum(v < -1e-9 for v in _best_gaps(raced))
    return (
        f"Optimum proven by branch and bound for {len(proven)} of {len(found)} instances. For the others it is the "
        "best of many starts of projected gradient: the share of 256 samples with restarts that have it is at least "
        f"{min(numbers(other, 'starts_there'), default=math.nan):.2f}. "
        f"{better} of {len(by(raced, 'n', 'density', 'seed'))} instances were improved on by a method. "
        "success: mean share of samples, with the 95 % interval over instances, and the least of an instance; gap "
        "spread and distance: of final samples (those of many starts are the best of their restarts, so not "
        "comparable); fraction: geometric mean of round trips to those of the plain feedback, over percentiles and "
        "instances."
    )


def _best_gaps(raced: Sequence[Row]) -> list[float]:
    return [min(numbers(group, "least_gap")) for group in by(raced, "n", "density", "seed").values()]

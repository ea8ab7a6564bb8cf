"""The study of OrMo: whether momentum in the order of the gradients helps where they come late."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from untuned.study import tasks
from untuned.study.papers.frame import OURS, Claim, Job, PaperStudy, Rows, Scalar, Table, all_told, told
from untuned.study.papers.ormo_figures import panels
from untuned.study.papers.ormo_results import (
    SETTINGS,
    at_their_best,
    chosen,
    ends,
    finals,
    fresh,
    in_the_same_time,
    largest_stable,
    losses,
    methods_of,
    named,
    ratios,
    tuned,
    value,
)
from untuned.study.papers.ormo_runs import BETA, LRS, METHODS, late, network, processes, toy
from untuned.study.stats import Floats, interval

FASHION: Mapping[str, Scalar] = {
    "task": "fashion-cnn",
    "workers": 16,
    "gradients": 1000,
    "batch_size": 16,
    "looks": 9,
}
CIFAR: Mapping[str, Scalar] = {
    "task": "cifar-resnet20",
    "workers": 16,
    "gradients": 600,
    "batch_size": 16,
    "looks": 4,
}
GRIDS = {"fashion-cnn": (0.0125, 0.025, 0.05), "cifar-resnet20": (0.1, 0.2, 0.4)}  # and on, by 2, if the best is outer
ON_CIFAR = ("asgd", "naive", "ormo")
TOLERANCE = 1.05  # how much more loss counts as no more
LEAST = 4  # seeds of a network from which a verdict is told


def jobs(seeds: int, rows: Rows) -> list[Job]:
    """The parabola; networks at seed 0 until the best learning rate has neighbours, then at the others; processes."""
    parabola = [
        Job(toy, {"method": method, "workers": workers, "slow": slow, "seed": seed})
        for (workers, slow), method, seed in itertools.product(SETTINGS, METHODS, range(seeds))
    ]
    asked = [Job(late, {"momentum": BETA}), *parabola]
    networks = [(FASHION, tuple(METHODS), max(seeds, 2))]
    if _there("cifar-resnet20"):
        networks.append((CIFAR, ON_CIFAR, min(max(seeds, 2), 3)))
    settled = bool(rows)
    for setting, methods, count in networks:
        for method in methods:
            grid, best = _grid(rows, str(setting["task"]), method)
            asked += [Job(network, {**setting, "method": method, "effective": lr, "seed": 0}) for lr in grid]
            settled = settled and best is not None
            if best is not None:
                others = [{**setting, "method": method, "effective": best, "seed": seed} for seed in range(1, count)]
                settled = settled and len(fresh(rows, str(setting["task"]), method)) == count - 1
                asked += [Job(network, other) for other in others]
    if settled:  # alone, since it looks at the clock
        asked.append(Job(processes, {"effective": 0.025, "budget": 3.0, "seconds": 0.04, "slower": 5.0}))
    return asked


def _grid(rows: Rows, task: str, method: str) -> tuple[list[float], float | None]:
    """The learning rates to try on seed 0, and the best if it has neighbours on both sides that are not better."""
    found = ends(rows, task, method, 0)
    if not found:
        return list(GRIDS[task]), None
    best, tried = min(found, key=found.__getitem__), sorted(found)
    if math.isinf(found[best]) or best == tried[0]:
        return [tried[0] / 2, *tried], None
    if best == tried[-1]:
        return [*tried, best * 2], None
    return tried, best


@functools.cache
def _there(task: str) -> bool:
    try:
        tasks.load(task)
    except FileNotFoundError:
        return False
    return True


# ---------------------------------------------------------------------- claims


def claims(rows: Rows) -> list[Claim]:
    """A loss is lower if the interval of the ratio of both, seed by seed, lies below 1."""
    found = [
        _on_the_parabola(rows, "ormo", "asgd", "OrMo converges better than ASGD", _ABSTRACT, 1.0),
        _on_the_parabola(
            rows, "ormo", "naive", "OrMo converges better than momentum in the order of arrival", _ABSTRACT
        ),
        _on_the_parabola(
            *(rows, "ormo", "vanilla", "The step of ordered momentum is better than that of SGD (ablation)"),
            "caption of its ablation; its numbers could not be read",
        ),
        _on_the_parabola(
            *(rows, "asgd", "naive", "Momentum put into ASGD as it is impedes convergence: ASGD without it is better"),
            "abstract: may impede the convergence",
        ),
        _on_the_parabola(
            *(rows, "ormo_da", "ormo", f"With slow workers OrMo-DA has no more loss than OrMo ({TOLERANCE:g} times)"),
            f"{OURS}: only that its rate lacks the bound of the gradients that OrMo's has",
            TOLERANCE,
            [(workers, slow) for workers, slow in SETTINGS if slow],
        ),
    ]
    for task, title in (("fashion-cnn", "Fashion CNN"), ("cifar-resnet20", "ResNet-20 on a slice of CIFAR-10")):
        if not fresh(rows, task, "ormo"):
            continue
        for other, said in (("asgd", "ASGD"), ("naive", "momentum in the order of arrival")):
            bounds = ratios(finals(rows, task, "ormo"), finals(rows, task, other))
            says = f"{title}, 16 workers, two of them slow: OrMo has a lower validation loss than {said}"
            within = interval(bounds) if len(bounds) >= LEAST else None
            found.append(Claim(says, _ABSTRACT, _here(bounds), told(within, high=1.0)))
        same = in_the_same_time(rows, task)
        if len(same):
            says = f"{title}: in the same time OrMo gets further than synchronous SGD with momentum, where two are slow"
            found.append(
                Claim(
                    says,
                    "curves over wall-clock time, K = 16 (caption)",
                    _here(same),
                    told(interval(same) if len(same) >= LEAST else None, high=1.0),
                )
            )
    return found


_ABSTRACT = "abstract: better than ASGD and other asynchronous methods with momentum; its numbers could not be read"


def _on_the_parabola(
    rows: Rows,
    one: str,
    other: str,
    says: str,
    published: str,
    high: float = 1.0,
    settings: Sequence[tuple[int, bool]] = SETTINGS,
) -> Claim:
    said, verdicts = list[str](), []
    for workers, slow in settings:
        ratio = at_their_best(rows, one, workers, slow) / at_their_best(rows, other, workers, slow)
        bounds = interval(ratio)
        verdicts.append(told(bounds, high=high))
        text = "" if bounds is None else f" ({bounds[0]:.3f} to {bounds[1]:.3f})"
        said.append(f"{named(workers, slow)}: {ratio.mean():.3f}{text}")
    n = len(at_their_best(rows, one, *settings[0]))
    return Claim(
        f"Parabola: {says}", published, f"ratio of losses, {'; '.join(said)}; n = {n} seeds", all_told(verdicts)
    )


def _here(values: Floats) -> str:
    bounds = interval(values)
    text = "" if bounds is None else f" ({bounds[0]:.3f} to {bounds[1]:.3f})"
    return f"ratio of losses {values.mean():.3f}{text}; n = {len(values)} seeds"


# ---------------------------------------------------------------------- tables


def tables(rows: Rows) -> list[Table]:
    """The parabola's losses and learning rates, late gradients, networks, and processes."""
    found = [
        Table(
            "Parabola: loss after 4,000 gradients, each method at its best learning rate",
            ("workers", *METHODS.values()),
            [
                (named(*setting), *(f"{at_their_best(rows, method, *setting).mean():.3g}" for method in METHODS))
                for setting in SETTINGS
            ],
            "It starts at 2.729. The learning rate of a seed is the best of 24 by the mean of the other seeds.",
        ),
        Table(
            "Parabola: best learning rate, and the largest at which all runs end below where they started",
            ("workers", *METHODS.values()),
            [(named(*setting), *(_lrs(rows, method, setting) for method in METHODS)) for setting in SETTINGS],
            "Of one gradient; synchronous steps on the mean have as many times that as there are workers.",
        ),
        _late(rows),
        *(table for task in ("fashion-cnn", "cifar-resnet20") if (table := _network(rows, task)) is not None),
    ]
    return [*found, _processes(rows)] if rows.get("processes") else found


def _lrs(rows: Rows, method: str, setting: tuple[int, bool]) -> str:
    found = losses(rows, method, *setting)
    best = sorted({LRS[i] for i in chosen(found)})
    text = f"{best[0]:.2g}" if len(best) == 1 else f"{best[0]:.2g} to {best[-1]:.2g}"
    return f"{text}; {largest_stable(rows, method, *setting):.2g}"


def _late(rows: Rows) -> Table:
    mine = rows.get("late", ())
    lags = sorted({int(value(r, "lag")) for r in mine})
    cells = [
        [f"{value(r, 'moved'):.4g}" for lag in lags for r in mine if (r["lag"], r["step"]) == (lag, step)]
        for step in ("ordered", "vanilla")
    ]
    return Table(
        "How far a late gradient moves the weights, in units of lr, by its lag in buckets",
        ("step", *map(str, lags)),
        [("OrMo", *cells[0]), ("OrMo, vanilla step", *cells[1])],
        f"Momentum {BETA:g}. It is (1 - momentum^(lag + 1)) / (1 - momentum), which OrMo-DA damps.",
    )


def _network(rows: Rows, task: str) -> Table | None:
    cells = list[tuple[str, ...]]()
    for method in methods_of(rows, task):
        runs = fresh(rows, task, method)
        if runs:
            n, lost = len(runs), sum(curve[-1]["val_loss"] is None for curve in runs.values())
            loss, accuracy = ([*finals(rows, task, method, key).values()] for key in ("val_loss", "accuracy"))
            times = [value(curve[-1], "seconds") for curve in runs.values() if curve[-1]["seconds"] is not None]
            cells.append(
                (
                    METHODS[method],
                    f"{tuned(rows, task, method):g}",
                    f"{np.mean(loss):.3f} ({min(loss):.3f} to {max(loss):.3f})",
                    f"{100 * np.mean(accuracy):.1f}",
                    f"{np.mean(times):.0f}" if times else "diverged",
                    f"{lost} of {n}",
                )
            )
    columns = ("method", "learning rate", "validation loss", "accuracy (%)", "virtual time", "diverged")
    note = (
        "The learning rate is that of one gradient over 1 - momentum, tuned by factors of 2 on seed 0, which is not in "
        "the other columns. Losses are means and ranges over the other seeds after the same number of gradients."
    )
    return Table(f"{tasks.load(task).title}, 16 workers, two of them slow", columns, cells, note) if cells else None


def _processes(rows: Rows) -> Table:
    cells = list[tuple[str, ...]]()
    for method, label in METHODS.items():
        mine = [r for r in rows["processes"] if r["method"] == method]
        if mine:
            last = mine[-1]
            shares = ", ".join(str(last[f"of_worker_{worker}"]) for worker in range(3))
            cells.append(
                (
                    label,
                    str(last["gradients"]),
                    shares,
                    f"{value(last, 'val_loss'):.3f}",
                    "yes" if last["replayed"] else "no",
                )
            )
    return Table(
        "Fashion CNN by a server and three processes over gloo, the first of them five times slower, 3 seconds each",
        ("method", "gradients", "of each process", "validation loss", "replayed to the bit"),
        cells,
        "All at the effective learning rate 0.025, batches of 32. Measured by the clock on the wall: on a busy machine "
        "there are fewer gradients, so that losses of methods are not to be compared. The trace of arrivals, replayed "
        "in one process, has to end with the same weights.",
    )


STUDY = PaperStudy(
    name="ormo",
    title="Ordered momentum for asynchronous SGD",
    source=(
        "Shi, Yang, Li: Ordered Momentum for Asynchronous SGD, NeurIPS 2024, arXiv 2407.19234; abstract, captions and "
        "first pages read, the rest is from memory; its tables could not be read"
    ),
    about="""
The paper trains ResNet-20 on CIFAR-10 and CIFAR-100 with 16 and 64 workers. Here workers are simulated: a gradient
takes a second of virtual time, give or take a fifth, and where some are slow every eighth takes ten times as long. All
methods run on the same server (`untuned.systems.asynchronous`), with momentum 0.9 where there is any.

The parabola has 50 dimensions with curvatures from 10^-2.5 to 1, noise of deviation 0.02 in each coordinate, and 4,000
gradients; the loss of a seed is the mean of four runs with one order of arrival. The networks are a convolutional
network on 2,000 Fashion-MNIST images, with 1,000 gradients of batches of 16, and, if its data has been fetched
(`untuned data fetch cifar-10`), a ResNet-20 of half the width on 4,000 CIFAR-10 images of 16 x 16 pixels, with 600:
a few passes over a small part of such data. Real processes run beside them, as a test of the server.

Rules, written before the first run of the study. A loss is lower than another if the 95 % bootstrap interval of the
ratio of both, seed by seed, lies below 1, in each setting where there are several; OrMo-DA has no more loss if it lies
below 1.05. Each seed of the parabola is read at the learning rate that the other seeds choose of 24, each network at
the one that seed 0 chooses, which is then left out. A diverged network counts with the loss of chance. For the claim on
time, synchronous SGD is read when OrMo has ended. After the run it was added that fewer than four seeds, whose interval
is no more than their range, tell nothing. No claim reads the real processes, whose learning rate was halved
after the first run had been seen. When the settings were chosen, one seed of the parabola at 16 workers
and one (100) of the networks at some learning rates had been looked at.
""",
    jobs=jobs,
    claims=claims,
    tables=tables,
    panels=panels,
    seeds=5,
)

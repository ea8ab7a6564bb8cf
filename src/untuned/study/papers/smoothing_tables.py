"""The tables of the study of momentum as smoothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from untuned.study.papers import smoothing_runs as runs
from untuned.study.papers.frame import Rows, Table
from untuned.study.stats import interval


def pair(bounds: tuple[float, float] | None, scale: float = 1.0, form: str = "") -> str:
    if bounds is None:
        return "one seed"
    form = form or (".0f" if scale == 100 else ".2f")
    return f"{scale * bounds[0]:{form}} to {scale * bounds[1]:{form}}"


def tables(rows: Rows) -> list[Table]:
    """Measured, exact and bound side by side; the search for the critical batch size; the schedules."""
    cells: list[Sequence[str]] = []
    for kind in runs.KINDS:
        for beta in runs.BETAS[1:] if kind == "nshb" else runs.BETAS:
            for batch in runs.BATCHES:
                one = {name: float(values.mean()) for name, values in runs.measured(rows, kind, beta, batch).items()}
                exact = one["exact_gradient"] + one["exact_noise"]
                numbers = ("C2", "gradient", "total", "bias", "variance", "cross")
                cells.append(
                    (runs.KINDS[kind], f"{beta:g}", f"{batch}", *(f"{one[name]:.3g}" for name in numbers),
                     f"{exact:.3g}", f"{one['exact_noise']:.3g}", f"{one['bound']:.3g}")
                )  # fmt: skip
    columns = ("form", "beta", "batch", "C2", "mean of grad^2", "measured", "bias", "variance", "cross")
    columns += ("constant gradient", "its noise part", "published bound")
    n = len(runs.measured(rows, "shb", 0.9, runs.BATCHES[0])["C2"])
    note = (
        f"Means over n = {n} seeds and {runs.WINDOW} steps of |d - grad f|^2, d being the direction of the form; "
        "measured = bias + variance + cross. Cross is negative where the full gradient answers to the noise that "
        "steps have made, which formulas for a constant gradient leave out. At beta 0 both forms are SGD."
    )
    found = [Table("Noise of the search direction", columns, cells, note)]
    return [*found, _critical_table(rows), _schedule_table(rows)]


def _critical_table(rows: Rows) -> Table:
    cells = list[Sequence[str]]()
    for batch in runs.SIZES:
        mine = [row for row in rows["steps_to_goal"] if row["batch"] == batch]
        steps = [int(row["steps"]) for row in mine if row["steps"] is not None]  # type: ignore[arg-type]
        variances = [float(row["C2"]) for row in mine if row["C2"] is not None]  # type: ignore[arg-type]
        mean = f"{np.mean(steps):.0f}" if steps else "none"
        cost = f"{batch * np.mean(steps):.0f}" if steps else "none"
        C2 = f"{np.mean(variances):.0f}" if variances else "none"
        cells.append((f"{batch}", f"{len(steps)} of {len(mine)}", mean, cost, C2))
    note = (
        f"SGD at eta {runs.SWEEP['eta']:g} until the mean of |grad f|^2 from step {runs.SWEEP['from']} on is at most "
        f"{runs.SWEEP['eps_sq']:g}, looked at every {runs.SWEEP['every']} steps, {runs.SWEEP['least']} times at least, "
        f"up to step {runs.SWEEP['limit']}. Order of magnitude only."
    )
    return Table(
        "Critical batch size", ("batch", "reached", "steps K(b)", "samples b K(b)", "measured C2"), cells, note
    )


_SHOWN = ("train_loss", "steps", "batch", "beta_at_end", "reached")  # columns of the rows


def _schedule_table(rows: Rows) -> Table:
    cells = list[Sequence[str]]()
    for method, title in runs.METHODS.items():
        eta = runs.best_eta(rows, method)
        mine = [
            {name: float("nan") if row[name] is None else float(row[name]) for name in _SHOWN}  # type: ignore[arg-type]
            for row in rows["schedule"]
            if (row["method"], row["eta"]) == (method, eta) and row["seed"] >= runs.FRESH  # type: ignore[operator]
        ]
        mean = {name: float(np.mean([row[name] for row in mine])) for name in _SHOWN}
        values = runs.finals_of(rows, method, eta)
        cells.append(
            (title, f"{eta:g}", f"{values.mean():.2f} ({pair(interval(values))})", f"{mean['train_loss']:.3f}",
             f"{mean['steps']:.0f}", f"{mean['batch']:.0f}", f"{mean['beta_at_end']:.2f}",
             "" if method == "constant" else f"{mean['reached']:.2f}")
        )  # fmt: skip
    columns = ("schedule", "best eta", "accuracy (%)", "training loss", "steps", "last batch", "last beta")
    return Table(
        f"Schedules: heavy ball from beta 0.9 and batches of {runs.BASE}, {runs.SAMPLES} samples",
        (*columns, "last delta / wanted"),
        cells,
        f"Means over n = {len(runs.finals_of(rows, 'constant', runs.best_eta(rows, 'constant')))} fresh seeds.",
    )

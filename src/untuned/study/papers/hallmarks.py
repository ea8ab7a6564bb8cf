"""The study of trajectories: what makes them turn, when they stop turning, and what is left to train then."""

from __future__ import annotations

from typing import Any

import numpy as np

from untuned.study.papers.frame import OURS, Claim, Job, PaperStudy, Rows, all_told, told
from untuned.study.papers.hallmarks_figures import panels
from untuned.study.papers.hallmarks_numbers import (
    BASE,
    BETWEEN,
    COUPLED,
    DECAY_ALONE,
    FACTORS,
    HALF_A_WALK,
    MATCH,
    NO_DIRECTION,
    QUARTER,
    STEPS,
    TENTH,
    WIDTHS,
    arguments_of,
    bounds,
    branch,
    difference,
    progress_of,
    runs,
    said,
)
from untuned.study.papers.hallmarks_runs import EPOCHS, LATE, late, maps, movement, progress, settings, walk, widths
from untuned.study.papers.hallmarks_tables import tables
from untuned.study.papers.rows import numbers


def jobs(seeds: int, _: Rows) -> list[Job]:
    """Every setting once for each seed and task; the longest jobs first."""
    plain = {"lr": BASE["lr"], "momentum": BASE["momentum"]}
    found = [Job(late, {**plain, "seed": seed}) for seed in range(seeds)]
    asked = list[dict[str, Any]]()
    for task in reversed(STEPS):
        for factor in FACTORS.values():
            asked += [arguments_of(task, factor.low, factor.steps[0]), arguments_of(task, factor.high, factor.steps[1])]
        asked += [
            arguments_of(task, DECAY_ALONE),
            arguments_of(task, COUPLED),
            *(arguments_of(task, change) for change in BETWEEN.values()),
        ]
    distinct = list({tuple(one.items()): one for one in asked}.values())
    for seed in range(seeds):
        found += [Job(settings, {**one, "seed": seed}) for one in distinct]
        found += [Job(widths, {**plain, "width": w, "steps": STEPS["fashion-mlp"], "seed": seed}) for w in WIDTHS]
        found += [Job(progress, {**plain, "task": task, "steps": steps, "seed": seed}) for task, steps in STEPS.items()]
        found += [Job(movement, {**plain, "seed": seed}), Job(walk, {"parameters": 89_610, "points": 41, "seed": seed})]
    for momentum in (0.9, 0.0):
        chosen = {"task": "fashion-mlp", "lr": BASE["lr"], "momentum": momentum, "steps": STEPS["fashion-mlp"]}
        found.append(Job(maps, {**chosen, "seed": 0}))
    return found


# ---------------------------------------------------------------- claims


def claims(rows: Rows) -> list[Claim]:
    """By the rules in `about`."""
    found = list[Claim]()
    summary = "reported direction, after a third party's summary; its values could not be read"
    for factor in FACTORS.values():
        values = {task: difference(rows, task, factor) for task in STEPS}
        found.append(
            Claim(
                f"{factor.says} lowers the mean directional similarity (MDS)",
                summary,
                "; ".join(f"{task}: {said(value)}" for task, value in values.items()),
                all_told([told(bounds(value), high=0) for value in values.values()]),
            )
        )
    found += [_together(rows), _coupled(rows)]
    wide = {w: np.array(numbers([r for r in rows["widths"] if r["width"] == w], "mds_origin")) for w in WIDTHS}
    wider = wide[WIDTHS[-1]] - wide[WIDTHS[0]]
    found.append(
        Claim(
            f"A larger network goes straighter: MDS of an MLP of width {WIDTHS[-1]} against {WIDTHS[0]}",
            "scale regularises direction, shown for models to 12 billion parameters (abstract; models recalled)",
            said(wider),
            told(bounds(wider), low=0),
        )
    )
    return [*found, *_saturation(rows), *_late(rows)]


def _together(rows: Rows) -> Claim:
    """Both against the better of the two alone, seed by seed."""
    parts, verdicts = list[str](), []
    for task in STEPS:
        both, alone = ({"weight_decay": 0.01}, [{}, DECAY_ALONE])
        singles = np.minimum(*(np.array(numbers(runs(rows, arguments_of(task, one)), "mds_origin")) for one in alone))
        value = np.array(numbers(runs(rows, arguments_of(task, both)), "mds_origin")) - singles
        parts.append(f"{task}: {said(value)}")
        verdicts.append(told(bounds(value), high=0))
    return Claim(
        "Momentum and weight decay together lower the MDS more than the better of the two alone",
        "together they promote directional exploration (abstract)",
        "; ".join(parts),
        all_told(verdicts),
    )


def _coupled(rows: Rows) -> Claim:
    """Momentum 0.9 against none, the learning rate being a tenth."""
    alone = {"momentum": 0.0}
    values = {
        task: np.array(numbers(runs(rows, arguments_of(task, COUPLED)), "mds_origin"))
        - np.array(numbers(runs(rows, arguments_of(task, alone)), "mds_origin"))
        for task in STEPS
    }
    return Claim(
        "What momentum does to the MDS is what a larger step does: 0.9 against 0 at the same lr / (1 - momentum) "
        f"changes it by at most {TENTH:g}",
        f"{OURS}, a control",
        "; ".join(f"{task}: {said(value, 4)}" for task, value in values.items()),
        all_told([told(bounds(value), -TENTH, TENTH) for value in values.values()]),
    )


def _saturation(rows: Rows) -> list[Claim]:
    ends = {task: progress_of(rows, task, "end_angle", QUARTER, QUARTER) for task in STEPS}
    turns = {task: progress_of(rows, task, "update_angle", 1 - QUARTER + 0.001, 1) for task in STEPS}
    first = {task: progress_of(rows, task, "update_angle", 0.05, QUARTER) for task in STEPS}
    return [
        Claim(
            "The direction of a run is found early: after a quarter of it, the way so far and the whole way differ by "
            f"at most {HALF_A_WALK:g} degrees, half of what they do in a random walk",
            "directionality saturates early (abstract)",
            "; ".join(f"{task}: {said(value, 1, ' degrees', '')}" for task, value in ends.items()),
            all_told([told(bounds(value), high=HALF_A_WALK) for value in ends.values()]),
        ),
        Claim(
            "Late training keeps no direction: in the last quarter successive updates (each a fortieth of the run) "
            f"differ by {NO_DIRECTION:g} degrees or more (90: a random walk; more: oscillation)",
            "late behaviour is oscillation (abstract)",
            "; ".join(
                f"{task}: {said(turns[task], 1, ' degrees', '')}, in the first quarter {first[task].mean():.1f}"
                for task in STEPS
            ),
            all_told([told(bounds(value), low=NO_DIRECTION) for value in turns.values()]),
        ),
    ]


def _late(rows: Rows) -> list[Claim]:
    whole, found = branch(rows, "everything", LATE), list[Claim]()
    half = f"from half of the training on (epoch {LATE} of {EPOCHS})"
    for name, what, published in (
        (
            "batch-norm scalars",
            "batch-norm scalars alone (0.2 % of the parameters)",
            "matches full training (abstract)",
        ),
        ("output layer", "the output layer alone (0.6 %)", "freezing over 99 % late costs little (abstract)"),
    ):
        value = 100 * (branch(rows, name, LATE) - whole)
        found.append(
            Claim(
                f"Training {what} {half} matches full training: test accuracy within {100 * MATCH:g} point",
                published,
                said(value, 2, " points"),
                told(bounds(value), -100 * MATCH, 100 * MATCH),
            )
        )
    value = 100 * (branch(rows, "nothing", LATE) - whole)
    found.append(
        Claim(
            f"Going on matters at all: no training {half} is worse than full training",
            f"{OURS}, a control",
            said(value, 2, " points"),
            told(bounds(value), high=0),
        )
    )
    return found


STUDY = PaperStudy(
    name="hallmarks",
    title="Hallmarks of optimization trajectories",
    source=(
        "Singh, He, Hofmann, Schölkopf: Hallmarks of Optimization Trajectories in Neural Networks: Directional "
        "Exploration and Redundancy, arXiv 2403.07379, and its version at ICLR 2025, The Directionality of "
        "Optimization Trajectories in Neural Networks; abstracts and summaries read, the text not"
    ),
    about=f"""
The mean directional similarity (MDS) of a run is the mean cosine of every two of its points, each with itself included,
as seen from the origin: near 1 the run keeps its direction, and a lower value is more exploration. `TrajectoryRecorder`
and `trajectory_map` measure it. Runs are of SGD at a constant learning rate on 2,000 Fashion-MNIST images (tasks
fashion-mlp, 30 epochs, and fashion-cnn, 10 epochs), lr 0.03, momentum 0.9, no weight decay, batches of 64 where nothing
else is said; 41 points each, at equal distances in steps. The paper trains ResNets, transformers and language models,
so that the order of two values is compared with its own, and not the values.

For "what is left to train" a small convolutional network with batch normalisation is trained for {EPOCHS} epochs at a
learning rate that falls linearly to 0; after 1, 4, 8 or 12 epochs only some parameters go on, with the same batches.

Rules, written before the runs of this page. A setting lowers the MDS if the 95 % bootstrap interval over seeds of the
difference of both ends, seed by seed, is at most 0 on both tasks; it does not if the interval is above 0 on one. Where
a run diverged, nothing is told. The direction is found early if the interval of the mean angle is at most
{HALF_A_WALK:g} degrees on both tasks; late training keeps no direction if that of the mean angle in the last quarter is
at least {NO_DIRECTION:g}. A branch matches full training if the interval of the difference of test accuracies lies
within one point, for the switch after {LATE} epochs. One seed that is not among these ran for 80 steps before, to see
that the code works. The control of momentum at the same lr / (1 - momentum) was added, with its limit (a tenth of what
momentum does at the same learning rate), after the other runs had been looked at and before its own.
""",
    jobs=jobs,
    claims=claims,
    tables=tables,
    panels=panels,
    seeds=6,
    data=tuple(STEPS),
)

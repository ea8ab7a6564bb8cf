"""The study of LoRASC: what a cascade of low-rank experts fits, and what it carries over to other data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from untuned.study.papers.frame import OURS, Claim, PaperStudy, Rows, Table, told
from untuned.study.papers.lorasc_figures import panels
from untuned.study.papers.lorasc_runs import ARMS, SETTINGS, TASK, best_lr, counted, final, jobs, plan, tuned
from untuned.study.stats import Floats, interval

ABSTRACT = "abstract only: "
OUTSIDE = OURS


def claims(rows: Rows) -> list[Claim]:
    """Losses are compared seed by seed; a claim holds if the interval of the mean lies wholly on its side."""

    def loss(arm: str, column: str = "val_loss") -> Floats:
        return final(rows, "text", arm, column)

    def gap(arm: str) -> Floats:
        return loss(arm) - loss(arm, "train_loss")

    def ratio(arm: str) -> Floats:
        return final(rows, "teacher", "lorasc", "loss") / final(rows, "teacher", arm, "loss")

    baselines = f"{ABSTRACT}it outperforms existing baselines significantly"
    return [
        _claim(
            "Teacher: LoRASC fits better than one LoRA of an expert's rank in as many steps",
            f"{ABSTRACT}a cascade has more expressiveness",
            "ratio of the losses",
            ratio("lora"),
            high=1.0,
        ),
        _grown(rows),
        _claim(
            "Teacher: LoRASC fits at least as well as one LoRA of the rank of all its experts",
            OUTSIDE,
            "ratio of the losses",
            ratio("total"),
            high=1.0,
        ),
        _claim(
            "MiniLM: LoRASC has a lower validation loss than LoRA of an expert's rank",
            baselines,
            "difference in nats",
            loss("lorasc") - loss("lora"),
        ),
        _claim(
            "MiniLM: LoRASC has at most the validation loss of LoRA of the rank of all its experts",
            OUTSIDE,
            "difference in nats",
            loss("lorasc") - loss("total"),
        ),
        _claim(
            "MiniLM: LoRASC fits the training data better than LoRA of an expert's rank",
            f"{ABSTRACT}it increases the ability to capture complex patterns",
            "difference of the training losses in nats",
            loss("lorasc", "train_loss") - loss("lora", "train_loss"),
        ),
        _claim(
            "MiniLM: the gap between validation and training loss is smaller with LoRASC than with LoRA of an expert's "
            "rank",
            f"{ABSTRACT}it mitigates overfitting",
            f"training loss {_mean(loss('lorasc', 'train_loss') - loss('lora', 'train_loss'))} and validation loss "
            f"{_mean(loss('lorasc') - loss('lora'))} against LoRA's (a gap is also smaller where less is "
            "fitted); gap of the two",
            gap("lorasc") - gap("lora"),
        ),
        _claim(
            "MiniLM: noise on the backbone lowers the validation loss",
            f"{ABSTRACT}cascading noisy tuning bolsters generalization",
            "noise 0.1 minus none, each at its lr, in nats",
            loss("lorasc") - loss("quiet"),
        ),
        _claim(
            "MiniLM: a slow expert lowers the validation loss",
            f"{ABSTRACT}the slow-fast update bolsters generalization",
            "pace 0.5 minus pace 1, without noise, each at its lr, in nats",
            loss("quiet") - loss("chain"),
        ),
    ]


def _claim(says: str, published: str, what: str, values: Floats, high: float = 0.0) -> Claim:
    """That a mean over the seeds lies below `high`."""
    bounds = interval(values) if np.isfinite(values).all() else None
    return Claim(says, published, f"{what}: {_mean(values)}; n = {len(values)} seeds", told(bounds, high=high))


def _mean(values: Floats) -> str:
    if not len(values) or not np.isfinite(values).all():
        return "a run diverged" if len(values) else "no runs"
    bounds = interval(values)
    return f"{values.mean():.3f}" + (f" ({bounds[0]:.3f} to {bounds[1]:.3f})" if bounds else "")


def _grown(rows: Rows) -> Claim:
    """That after every cascade of every seed the rank is that of all experts so far."""
    every = 600 // SETTINGS["teacher"].cascades
    mine = [row for row in counted(rows, "teacher", "lorasc") if row["step"]]
    off = [int(row["change"] or 0) - SETTINGS["teacher"].rank * int(row["step"] or 0) // every for row in mine]
    seeds = {row["seed"] for row in mine}
    there = ", ".join(str(row["change"]) for row in mine if row["seed"] == min(seeds, default=None))  # type: ignore[type-var]
    return Claim(
        "Teacher: the rank of the change grows by that of an expert with every cascade",
        f"{ABSTRACT}a mixture of low-rank adaptation",
        f"ranks {there}; n = {len(seeds)} seeds, {sum(o != 0 for o in off)} of {len(off)} ranks differ from that",
        told((min(off), max(off)) if off else None, 0, 0),
    )


def tables(rows: Rows) -> list[Table]:
    """All arms in both settings."""
    shown = {
        "teacher": (("loss", "loss"),),
        "text": (("validation loss", "val_loss"), ("training loss", "train_loss"), ("accuracy", "val_accuracy")),
    }
    return [
        Table(
            f"{setting.title}: mean over the seeds with its interval",
            ("arm", "rank", "cascades", "lr chosen", "of the lrs", *(title for title, _ in shown[name])),
            [_cells(rows, name, arm, [column for _, column in shown[name]]) for arm in ARMS],
            "Losses are in nats; accuracy is a share of 192 texts." if name == "text" else "",
        )
        for name, setting in SETTINGS.items()
    ]


def _cells(rows: Rows, name: str, arm: str, columns: Sequence[str]) -> list[str]:
    of, lr = plan(name, arm), best_lr(rows, name, arm)
    return [
        ARMS[arm].label,
        str(of["rank"]),
        str(of["cascades"]),
        "none" if lr is None else f"{lr:g}",
        ", ".join(f"{one:g}" for one in tuned(rows, name, arm)),
        *(_mean(final(rows, name, arm, column)) for column in columns),
    ]


STUDY = PaperStudy(
    name="lorasc",
    title="Slow and fast low-rank experts in cascades (LoRASC)",
    source=(
        "Li, Yang, Shen, Wei, Lu, Qiu, Yang: Expressive and Generalizable Low-rank Adaptation for Large Models via "
        "Slow Cascaded Learning, Findings of EMNLP 2024, arXiv 2407.01491; abstract and first page read, which hold no "
        "number"
    ),
    about="""
`CascadeLoRA` against plain LoRA at equal steps, with `untuned.AdamW`. LoRASC has the defaults here: pace 0.5, noise
0.1, the exponential average of the products, a merge at every cascade. The paper's values were not to be read, so these
are ours, and so is the comparison with one LoRA of the rank of all experts, which trains as many times the parameters.

Teacher: a tanh network 32-64-16 learns another one's function on 512 inputs in 600 full-batch steps at a constant lr;
six cascades of rank 2. MiniLM: the task `minilm-lora`, 1,440 paragraphs of help texts to tell apart by subject and 192
more for validation, in four epochs of batches of 16, the lr decaying linearly to zero; one cascade of rank 1 an epoch.
Only the feed-forward part of the last of three layers is adapted, beside a new linear layer; features of what lies
below are computed once. The paper fine-tunes large models.

Every arm has the lr, of a grid by half decades, with the lowest mean loss (validation loss of MiniLM) over two seeds
that count for nothing else. The grid of 0.003 to 0.03 grows at an end as long as the best lr is that end. The
validation texts that choose the lr are also those reported, for all arms alike.

Rules. Arms are compared seed by seed, with a 95 % bootstrap interval of the mean; a claim holds if the interval lies
wholly on its side of zero (of one for a ratio), and does not hold if it lies wholly on the other. Before the rules were
written, seed 0 of these arms and of variants (three and eight epochs, all layers adapted) had been looked at, to choose
how long runs are. After the run, the two losses were put beside their gap: by that rule the gap is smaller also if
a method only fits less. On the teacher the defaults are not the best: without noise and at pace 1, the last expert
merged whole, LoRASC ends lower.
""",
    jobs=jobs,
    claims=claims,
    tables=tables,
    panels=panels,
    seeds=6,
    data=(TASK,),
)

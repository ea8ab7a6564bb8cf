"""Train what docs/guide.md rests on beyond the study of the methods: docs/guide.csv.

    python scripts/guide_study.py [QUESTION ...] [--workers N]

Without questions, all of them: half an hour on one core. New results replace the older ones of the same questions.
"""

import argparse
import csv
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import method_study
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from untuned.study.config import Study, parse_methods
from untuned.study.resolve import resolve
from untuned.study.tasks import seeded
from untuned.study.tasks.images import FashionMLP, mlp

PATH = Path(__file__).parents[1] / "docs" / "guide.csv"
COLUMNS = ("question", *method_study.COLUMNS)
DROPS = "step(at=(0.6, 0.8, 0.95))"  # parts of a run, after each of which lr falls tenfold


# ---------------------------------------------------------------- tasks that do not ship with the library


class BFloat16(FashionMLP):
    """fashion-mlp with weights, activations and gradients in bfloat16."""

    name = "guide_study:BFloat16"

    def __init__(self) -> None:
        super().__init__()
        self.x, self.x_val = self.x.bfloat16(), self.x_val.bfloat16()

    def model(self, seed: int) -> nn.Module:
        return super().model(seed).bfloat16()


class InUnits(nn.Module):
    """A network whose parameters are measured in other units: the same function, and distances 1 / unit as long."""

    def __init__(self, network: nn.Module, unit: float) -> None:
        super().__init__()
        self.network, self.unit = network, unit
        with torch.no_grad():
            for p in network.parameters():
                p.div_(unit)

    def forward(self, x: Tensor) -> Tensor:
        return functional_call(self.network, {k: self.unit * p for k, p in self.network.named_parameters()}, (x,))


class Unlike(FashionMLP):
    """The network of fashion-mlp twice in one optimizer, the second in units of 1/1000; the worse of them counts."""

    name = "guide_study:Unlike"

    def model(self, seed: int) -> nn.Module:
        with seeded(seed):
            return nn.ModuleList([mlp(), InUnits(mlp(), 1e-3)])

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return sum((cross_entropy(network(x), y) for network in model.children()), torch.zeros(()))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        ends = [super(Unlike, self).evaluate(network) for network in model.children()]
        return min(ends, key=lambda end: end[self.metric])


# ---------------------------------------------------------------- the questions


@dataclass(frozen=True)
class Question:
    tasks: tuple[str, ...]
    methods: str
    epochs: float = 20
    schedule: str = ""
    seeds: int = 10

    def study(self) -> Study:
        return resolve(self.tasks, parse_methods(self.methods), (), self.seeds, self.epochs, schedule=self.schedule)


_AT_ONE = "prodigy(lr=1),prodigy(slice_p=11,lr=1),dadapt_adam(lr=1),mechanic_adamw(lr=1),momo(lr=1),momo_adam(lr=1)"
_OTHERS = (  # each at three learning rates around the best of docs/methods/study.csv
    "adarem(lr=(0.0186,0.0862,0.4)),ahb_adam(lr=(2.15e-4,1e-3,4.64e-3)),ahb_sgd(lr=(0.0464,0.215,1)),"
    "am_msgd(lr=(0.1,0.464,2.15)),gpa_adamw(lr=(1e-3,4.64e-3,2.15e-2)),multiplicative_adam(lr=(4.64e-3,2.15e-2,0.1)),"
    "multiplicative_sgd(lr=(0.215,1,4.64)),ngn(lr=(0.215,1,4.64)),prodigy_schedule_free(lr=1),"
    "random_scaling_adamw(lr=(4.64e-5,2.15e-4,1e-3)),random_scaling_sgd(lr=(4.64e-3,2.15e-2,0.1)),"
    "sgd(momentum=0.9,lr=(4.64e-3,2.15e-2,0.1)),sgd_spa(lr=(0.0215,0.1,0.464)),sgdf(lr=(0.108,0.5,2.32))"
)
QUESTIONS = {
    "constant": Question(
        ("fashion-mlp",),
        f"adamw(lr=(4.64e-5,2.15e-4,1e-3,4.64e-3)),{_AT_ONE},prox_sps(lr=1),schedule_free_adamw(lr=2.5e-3)",
    ),
    "schedule": Question(
        ("fashion-mlp",), f"adamw(lr=(4.64e-5,2.15e-4,1e-3,4.64e-3,2.15e-2)),{_AT_ONE},prox_sps(lr=1)", schedule=DROPS
    ),
    "others": Question(("fashion-mlp",), _OTHERS),
    "others under a schedule": Question(("fashion-mlp",), _OTHERS, schedule=DROPS),
    "unlike": Question(
        ("guide_study:Unlike",),
        "adamw(lr=(1e-3,1e-2,1e-1,1)),prodigy(lr=1),prodigy(scope='tensor',lr=1)",
        schedule=DROPS,
    ),
    "bfloat16": Question(
        ("guide_study:BFloat16",),
        "adamw(lr=(4.64e-5,2.15e-4,1e-3)),adamw(kahan_sum=True,lr=(4.64e-5,2.15e-4,1e-3)),"
        "prodigy(lr=1),prodigy(kahan_sum=False,lr=1)",
        schedule=DROPS,
    ),
    "convex": Question(
        ("logreg-vehicle", "logreg-vowel"),
        "adam(lr=(0.01,0.1,1)),dadapt_adam(lr=1),prodigy(lr=1),momo_adam(lr=1),sp(lr=1),dowg(lr=1),dog(lr=1),"
        "dadapt_sgd(lr=1),prodigy_gd(lr=1),prodigy_da(lr=1),dadapt_gd(lr=1),dadapt_da(lr=1),resetting(lr=1),"
        "resetting_gd(lr=1)",
        epochs=100,
        schedule=DROPS,
        seeds=3,
    ),
}


# ---------------------------------------------------------------- their results


def read(path: Path = PATH) -> list[method_study.Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def merge(path: Path, question: str, new: Sequence[method_study.Row]) -> None:
    """Put the new rows in the place of the older ones of the question; questions that are gone lose theirs."""
    kept = [row for row in (read(path) if path.exists() else []) if row["question"] in QUESTIONS.keys() - {question}]
    found = [*kept, *({"question": question} | row for row in new)]
    temporary = path.with_suffix(".part")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(found, key=lambda row: list(QUESTIONS).index(row["question"])))
    temporary.replace(path)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("questions", nargs="*", metavar="QUESTION")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N")
    asked = parser.parse_args(arguments)
    if unknown := set(asked.questions) - QUESTIONS.keys():
        parser.error(f"no question {', '.join(sorted(unknown))}; there are {', '.join(QUESTIONS)}")
    for question in asked.questions or QUESTIONS:
        merge(PATH, question, method_study.train(QUESTIONS[question].study(), asked.workers))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

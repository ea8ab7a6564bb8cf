"""Write docs/guide.md: scripts/guide.md with the numbers of docs/guide.csv, docs/methods/study.csv and
docs/regret-runs.csv.

    python scripts/guide_page.py [--check]

`--check` writes nothing and exits with 1 if the page is stale.
"""

import csv
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import guide_study
import method_study
import numpy as np
from method_pages import publish, table
from method_study import Row

from untuned.study import tasks
from untuned.study.axes import decades
from untuned.study.building import default_lr
from untuned.study.methods import parse_methods
from untuned.study.regret import BEST, Contender
from untuned.study.regret_tables import percent
from untuned.study.stats import Floats

PAGE = Path(__file__).parents[1] / "docs" / "guide.md"

TEMPLATE = Path(__file__).with_name("guide.md")
REGRETS = PAGE.with_name("regret-runs.csv")
SHOWN = ("prodigy(schedule=linear)", "prodigy_schedule_free", "range-test", "adamw(schedule=linear)")
CASES = {  # what people train, and the tasks that stand for it
    "a transformer from scratch": ("fashion-vit", "sotu-char", "help-translation"),
    "a recurrent language model": ("ptb-lstm",),
    "a convolutional network, with BatchNorm": ("cifar-resnet20",),
    "a convolutional network, without": ("fashion-cnn",),
    "a small network that can fit its data": ("fashion-mlp",),
    "an autoencoder": ("fashion-autoencoder",),
    "a diffusion model": ("fashion-diffusion",),
    "LoRA": ("minilm-lora",),
    "fine-tuning all weights": ("minilm-full",),
    "embeddings of categories, as for clicks": ("adult-embeddings",),
    "factors of a matrix, as for ratings": ("sotu-glove",),
    "a network for a differential equation": ("helmholtz-pinn",),
    "policy gradients": ("cartpole-policy",),
    "a model in odd units": ("fashion-cnn/30", "sotu-char/1000"),
}


@dataclass(frozen=True)
class Cell:
    """The final metrics of one method at one lr, a number per seed."""

    finals: Floats

    @property
    def mean(self) -> float:
        return float(self.finals.mean())

    def __str__(self) -> str:
        error = self.finals.std(ddof=1) / len(self.finals) ** 0.5
        return f"{100 * self.mean:.1f} ± {100 * error:.1f}"

    @property
    def long(self) -> str:
        return f"{self} ({100 * self.finals.min():.1f} to {100 * self.finals.max():.1f})"


class Cells:
    """One task of one question: a cell for every method and lr, as `adamw 0.001`, or `adamw` if it has one lr only."""

    def __init__(self, rows: Sequence[Row], question: str, task: str) -> None:
        chance = tasks.load(task).chance
        finals: dict[str, list[float]] = {}
        for row in rows:
            if (row["question"], row["task"]) == (question, task):
                end = max(float(row["value"] or chance), chance)
                finals.setdefault(f"{row['method']} {row['lr']}", []).append(end)
        self.cells = {name: Cell(np.array(ends)) for name, ends in finals.items()}

    def __getitem__(self, name: str) -> Cell:
        if name in self.cells:
            return self.cells[name]
        [found] = [cell for key, cell in self.cells.items() if key.split(" ")[0] == name]
        return found

    @property
    def tuned(self) -> Cell:
        """Adam, or AdamW, at the best of its learning rates."""
        return max((cell for name, cell in self.cells.items() if name.startswith("adam")), key=lambda cell: cell.mean)


class Best:
    """The same, each method at the best of its learning rates, seen with hindsight."""

    def __init__(self, cells: Cells) -> None:
        self.cells = cells.cells

    def __getitem__(self, method: str) -> Cell:
        return max((cell for name, cell in self.cells.items() if name.split(" ")[0] == method), key=lambda c: c.mean)


def side_by_side(columns: dict[str, Cells]) -> str:
    names = {name for cells in columns.values() for name in cells.cells}
    rows = []
    for method, lr in sorted((name.split(" ") for name in names), key=lambda name: (name[0], float(name[1]))):
        found = [cells.cells.get(f"{method} {lr}") for cells in columns.values()]
        rows.append((f"`{method}`", lr, *(cell.long if cell else "" for cell in found)))
    return table(("method", "lr", *columns), rows)


def cases_table() -> str:
    """Mean regret over the tasks of each use case, of what measured best and of others."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in csv.DictReader(REGRETS.read_text(encoding="utf-8").splitlines()):
        [spec] = parse_methods(row["method"])
        usual = float(row["lr"]) == default_lr(spec.name, spec.probe)
        label = Contender(row["method"], float(row["lr"]), usual).label
        found[label, row["task"]].append(float(row["regret"]))
    rows = []
    for case, of_case in CASES.items():
        values = [float(np.mean([x for task in of_case for x in found[m, task]])) for m in (BEST, *SHOWN)]
        least = min(values)
        cells = [f"**{percent(v)}**" if v <= least + 0.005 else percent(v) for v in values]
        rows.append((case, ", ".join(f"`{task}`" for task in of_case), *cells))
    return table(("you train", "measured on", *(f"`{m}`" for m in (BEST, *SHOWN))), rows)


def page() -> str:
    rows, found = guide_study.read(), method_study.standings(method_study.read())
    constant, schedule = (Cells(rows, question, "fashion-mlp") for question in ("constant", "schedule"))
    others, drops = (Cells(rows, q, "fashion-mlp") for q in ("others", "others under a schedule"))
    unlike, half = Cells(rows, "unlike", "guide_study:Unlike"), Cells(rows, "bfloat16", "guide_study:BFloat16")
    vehicle, vowel = (Cells(rows, "convex", f"logreg-{name}") for name in ("vehicle", "vowel"))
    tuned = next(float(s.medians[s.best]) for s in found if s.method == method_study.REFERENCE)
    return TEMPLATE.read_text().format(
        n=guide_study.QUESTIONS["schedule"].seeds,
        constant=constant,
        schedule=schedule,
        unlike=unlike,
        half=half,
        convex=vehicle,
        wide={s.method: decades(s.within(0.01)) for s in found},
        methods=len(found),
        seeds=method_study.SEEDS,
        never=_behind({s.method: float(s.medians[s.best]) - tuned for s in found}, 0.01),
        off=_behind({s.method: float(s.medians[s.default]) - tuned for s in found}, 0.05),
        worst=f"{100 * schedule['dadapt_adam'].finals.min():.1f}",
        others=others,
        best=Best(others),
        best_drops=Best(drops),
        others_table=side_by_side({"constant lr": others, "with drops": drops}),
        both_table=side_by_side({"constant lr": constant, "with drops": schedule}),
        unlike_table=side_by_side({"worse of the two": unlike}),
        half_table=side_by_side({"bfloat16": half}),
        cases=cases_table(),
        convex_n=guide_study.QUESTIONS["convex"].seeds,
        convex_table=side_by_side({"vehicle": vehicle, "vowel": vowel}),
    )


def _behind(differences: dict[str, float], by: float) -> str:
    """The methods that are behind by more, the last first: `sgd` (-32.2)."""
    worst = sorted((difference, method) for method, difference in differences.items() if difference < -by)
    return ", ".join(f"`{method}` ({100 * difference:+.1f})" for difference, method in worst)


def pages() -> dict[Path, str]:
    return {PAGE: page()}


def main(arguments: Sequence[str]) -> int:
    return publish(pages(), "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

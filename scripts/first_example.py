"""Which method the README's first example showed before there was a suite: defaults on four small tasks.

    python scripts/first_example.py          # prints the table of docs/evidence.md; some minutes on one core

The rule, fixed before the first run:

- Every method runs as its class is built without options, on every task, with the seeds 0, 1 and 2. Methods whose page
  asks for a schedule run under `untuned.schedules.LinearDecay` over the whole run; the others at a constant lr. AdamW,
  at its default lr of 1e-3 under the same decay, is the baseline. `momo_adam(lr=1)`, the advice this study is to
  replace, is measured and cannot win.
- The tasks are those that ship with the package and differ most: fashion-mlp and fashion-cnn (20 epochs),
  logreg-vehicle (100), sotu-char (1).
- The error of a method on a task is the mean over seeds of 1 less the task's accuracy, or of bits per character,
  evaluated once after the last step. A run that diverged counts as chance.
- Its regret there is its error over the smallest error of any row, less 1. A first example must do no harm where it
  fits badly: the candidate whose largest regret over the tasks is smallest wins.
"""

import sys
from collections.abc import Sequence
from itertools import chain, count, islice
from statistics import fmean, stdev

import torch

import untuned
from untuned.schedules import LinearDecay
from untuned.study import tasks

EPOCHS = {"fashion-mlp": 20, "fashion-cnn": 20, "logreg-vehicle": 100, "sotu-char": 1}
SEEDS = (0, 1, 2)
CANDIDATES = {  # what the table calls a row: method, options, whether lr decays linearly
    "prodigy, linear decay": ("prodigy", {}, True),
    "mechanic_adamw, linear decay": ("mechanic_adamw", {}, True),
    "schedule_free_adamw": ("schedule_free_adamw", {}, False),
    "momo_adam": ("momo_adam", {}, False),
}
OTHERS = {
    "adamw, linear decay": ("adamw", {}, True),
    "momo_adam(lr=1)": ("momo_adam", {"lr": 1.0}, False),
}


def end(task: tasks.Task, epochs: float, method: str, options: dict[str, float], decays: bool, seed: int) -> float:
    """The task's metric after training; chance if the run diverged."""
    torch.manual_seed(seed)
    model = task.model(seed)
    optimizer = untuned.create(model, method, **options)
    steps = round(epochs * sum(1 for _ in task.batches(seed, 0)))
    schedule = LinearDecay(optimizer, total_steps=steps) if decays else None
    for batch in islice(chain.from_iterable(task.batches(seed, epoch) for epoch in count()), steps):
        optimizer.zero_grad()
        loss = task.loss(model, batch)
        loss.backward()
        optimizer.step(loss=loss)
        if schedule:
            schedule.step()
    optimizer.eval()
    finite = all(p.isfinite().all() for p in model.parameters())
    return task.evaluate(model)[task.metric] if finite else task.chance


def main() -> int:
    torch.set_num_threads(1)
    rows = CANDIDATES | OTHERS
    errors: dict[str, list[float]] = {row: [] for row in rows}
    cells: dict[str, list[str]] = {row: [] for row in rows}
    for name, epochs in EPOCHS.items():
        task = tasks.load(name)
        for row, how in rows.items():
            ends = [end(task, epochs, *how, seed) for seed in SEEDS]
            print(f"{name}, {row}: {ends}", file=sys.stderr, flush=True)
            errors[row].append(1 - fmean(ends) if task.maximize else fmean(ends))
            cells[row].append(shown(ends, 100 if task.maximize else 1))
    least = [min(column) for column in zip(*errors.values(), strict=True)]
    regrets = {row: max(e / low - 1 for e, low in zip(errors[row], least, strict=True)) for row in rows}
    print(f"| method | {' | '.join(EPOCHS)} | largest regret |")
    print(f"|---|{'---:|' * (len(EPOCHS) + 1)}")
    for row in sorted(rows, key=regrets.__getitem__):
        print(f"| {row} | {' | '.join(cells[row])} | {regrets[row]:.2f} |")
    print(f"\nwinner: {min(CANDIDATES, key=regrets.__getitem__)}")
    return 0


def shown(ends: Sequence[float], unit: float) -> str:
    """Mean and standard error."""
    digits = 1 if unit == 100 else 2
    return f"{unit * fmean(ends):.{digits}f} ± {unit * stdev(ends) / len(ends) ** 0.5:.{digits}f}"


if __name__ == "__main__":
    sys.exit(main())

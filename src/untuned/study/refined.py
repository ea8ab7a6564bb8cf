"""Where refined schedules (arXiv 2310.07831) win and where they lose, with and without random labels.

The finding to look for: refinement loses to linear decay where a model comes to fit its data exactly, because gradient
norms collapse and the refined schedule warms up for most of the run; with random labels among the others it does not.
The convolutional network can learn random labels by heart, the softmax regression on dna, 2,000 x 180, cannot.

The rule. Every schedule gets a peak lr of its own, a power of two: from that of `METHODS` the lr moves to the better of
its two neighbours as long as that lowers the mean loss of the tuning seeds, which are not among the seeds reported. The
norms are those of linear decay at its lr, with the first tuning seed: L2 and power 2 for SGD, L1 and power 1 for Adam,
tau 0.1; the peak lr of the refined schedule is then found as that of the others. The loss is the mean cross-entropy of
the last weights over all training data, random labels included; a run that ends above `EXPLODED` has diverged. Refined
loses (wins) if it diverges in more (fewer) seeds than linear decay, else if the interval of the mean of its differences
to linear decay, seed by seed, lies above (below) zero; see `stats.interval`. All this was fixed before the runs but for
three things that first runs on fashion-cnn led to: the number of tuning seeds (with one, some lr were so near the edge
that one of three seeds diverged), `EXPLODED`, and the second task.
"""

import csv
import math
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass
from itertools import chain, count, islice
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import untuned
from untuned.schedules import NormRecorder, Refined, Schedule
from untuned.study import tasks
from untuned.study.config import StudyError

EPOCHS = {"fashion-cnn": 30, "logreg-dna": 12}  # the latter's are 1,500 steps
NOISY = ", 20 % random labels"
NOISE = 0.2
PROBLEMS = tuple(task + labels for task in EPOCHS for labels in ("", NOISY))
SHAPES = {"flat": "constant", "1/sqrt": "inverse_sqrt", "step": "step", "cosine": "cosine", "linear": "linear"}
SCHEDULES = (*SHAPES, "refined")
LARGEST, SMALLEST = 6, -20  # powers of two
TUNING_SEEDS = 1000, 1001, 1002
EXPLODED = 100.0  # a loss that only a diverged model has


class Method(NamedTuple):
    make: Callable[..., torch.optim.Optimizer]
    start: int  # power of two of the first lr tried
    power: int  # of the norms


METHODS = {"sgd": Method(untuned.SGD, -2, 2), "adam": Method(untuned.Adam, -9, 1)}


@dataclass(frozen=True)
class Trial:
    """A run that has ended; a row of a file."""

    task: str
    method: str
    schedule: str  # the refined one with the lr whose norms it is made from
    exponent: int  # the peak lr is 2^exponent
    seed: int
    loss: float  # inf if it diverged
    seconds: float


def load(name: str) -> Any:
    """A task; if its name says so, part of its training labels is drawn from all classes, always the same."""
    task: Any = tasks.load(name.removesuffix(NOISY))
    if name.endswith(NOISY):
        rng = np.random.default_rng(0)
        labels = rng.integers(int(task.y.max()) + 1, size=len(task.y))
        drawn = rng.random(len(task.y)) < NOISE
        task.y = torch.where(torch.from_numpy(drawn), torch.from_numpy(labels), task.y)
    return task


def train(
    task: Any, make: Callable[..., Any], schedule: Callable[..., Any], lr: float, seed: int, epochs: int, norms: Any
) -> float:
    """The loss over all training data after the last step, inf if it is not finite; `norms`: folder for a log."""
    torch.manual_seed(seed)
    model = task.model(seed)
    optimizer = make(model.parameters(), lr=lr)
    total = epochs * sum(1 for _ in task.batches(seed, 0))
    follows = schedule(optimizer, total)
    recorder = None
    if norms is not None:
        shutil.rmtree(norms, ignore_errors=True)  # of a run that was stopped
        recorder = NormRecorder(optimizer, norms)
    for batch in islice(chain.from_iterable(task.batches(seed, epoch) for epoch in count()), total):
        optimizer.zero_grad()
        loss = task.loss(model, batch)
        if not math.isfinite(loss.item()):
            return math.inf
        loss.backward()
        optimizer.step()
        follows.step()
    if recorder is not None:
        recorder.close()
    with tasks.evaluating(model):
        final = task.loss(model, (task.x, task.y)).item()
    return final if math.isfinite(final) else math.inf


class Column:
    """All schedules of one method on one task; every run that has ended is a line of a file, and not run again."""

    def __init__(self, folder: Path, task: str, method: str, epochs: int | None = None) -> None:
        self.name, self.method, self.folder = task, method, folder
        self.epochs = EPOCHS[task.removesuffix(NOISY)] if epochs is None else epochs
        self.key = f"{method}-{PROBLEMS.index(task)}-{self.epochs}"
        self.path = folder / f"runs-{self.key}.csv"
        self.trials = {(t.schedule, t.exponent, t.seed): t for t in read(self.path)}
        self.task: Any = None

    def norms(self, exponent: int) -> Path:
        return self.folder / "norms" / f"{self.key}-{exponent}"

    def loss(self, schedule: str, exponent: int, seed: int) -> float:
        """The loss of a run, made if it has not been."""
        # A refined schedule is another one after another lr of linear decay.
        name = schedule if schedule in SHAPES else f"{schedule} after linear at 2^{self.tuned('linear')}"
        if (key := (name, exponent, seed)) not in self.trials:
            self.task = self.task or load(self.name)
            logged = self.norms(exponent) if schedule == "linear" and seed == TUNING_SEEDS[0] else None
            begin = time.perf_counter()
            found = train(
                self.task,
                METHODS[self.method].make,
                self._scheduler(schedule),
                2.0**exponent,
                seed,
                self.epochs,
                logged,
            )
            trial = Trial(self.name, self.method, name, exponent, seed, found, time.perf_counter() - begin)
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerow(astuple(trial))
            self.trials[key] = trial
            print(f"{self.name}, {self.method}, {schedule}, lr 2^{exponent}, seed {seed}: {found:.4f}", flush=True)
        return self.trials[key].loss if self.trials[key].loss < EXPLODED else math.inf

    def _scheduler(self, schedule: str) -> Callable[..., Any]:
        if schedule in SHAPES:
            return lambda optimizer, steps: Schedule(optimizer, SHAPES[schedule], steps)
        log, power = self.norms(self.tuned("linear")), METHODS[self.method].power
        return lambda optimizer, steps: Refined(optimizer, log, steps, power)

    def tuned(self, schedule: str) -> int:
        """The exponent of the lr that the rule finds."""
        at = METHODS[self.method].start

        def tried(exponent: int) -> tuple[float, int]:
            total = 0.0
            for seed in TUNING_SEEDS:
                if total < math.inf:  # else the others change nothing
                    total += self.loss(schedule, exponent, seed)
            return total, exponent

        while True:
            around = range(max(SMALLEST, at - 1), min(LARGEST, at + 1) + 1)
            if (best := min(map(tried, around))[1]) == at or best in (SMALLEST, LARGEST):
                return best
            at = best

    def finals(self, seeds: int) -> dict[str, list[float]]:
        """The losses of each schedule at its lr, by seed; refined and linear are run first."""
        found = {one: [self.loss(one, self.tuned(one), k) for k in range(seeds)] for one in reversed(SCHEDULES)}
        return {one: found[one] for one in SCHEDULES}


def read(path: Path) -> list[Trial]:
    """The runs in a file; the line at which a process died is left out."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    if not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
        path.write_text(text, encoding="utf-8")
    return [
        Trial(task, method, schedule, int(exponent), int(seed), float(loss), float(seconds))
        for task, method, schedule, exponent, seed, loss, seconds in csv.reader(text.splitlines())
    ]


def _make(folder: Path, task: str, method: str, epochs: int | None, seeds: int) -> None:
    torch.set_num_threads(1)
    Column(folder, task, method, epochs).finals(seeds)


def run(folder: Path, methods: Sequence[str], epochs: int | None, seeds: int, workers: int) -> list[Column]:
    """Make all runs that have not been made, one process for each method and task, and return what they found."""
    for method in methods:
        if method not in METHODS:
            raise StudyError(f"methods: {method!r} is not in this study; it has {', '.join(METHODS)}")
    methods = list(dict.fromkeys(methods))  # two processes must not write one file
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(task, method) for method in methods for task in PROBLEMS]
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        try:
            for job in [pool.submit(_make, folder, *job, epochs, seeds) for job in jobs]:
                job.result()
        except BaseException:  # an error, or Ctrl-C: the pool would make all other runs first
            pool.shutdown(wait=False, cancel_futures=True)
            for process in active_children():
                process.terminate()
            raise
    return [Column(folder, *job, epochs) for job in jobs]

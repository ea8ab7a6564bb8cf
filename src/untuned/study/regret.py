"""Tuning-free regret: how much of a tuned AdamW's budget a default loses, over a suite of tasks.

The regret of a method on a task is 1 - the share of the step budget at which tuned AdamW reaches the method's final
validation loss. Tuned AdamW is `REFERENCE`: linear decay behind 5 % warm-up, run for every share in `HORIZONS` of the
budget with a schedule of its own, each with the best of its learning rates by the mean over seeds. These are half
decades, and the grid of a horizon and task grows until every neighbour of a near-best rate has run; near-best is within
`NEAR` of the distance from the best loss to that of the untrained model. The final loss is that of the last step: the
step at which a run ends is fixed beforehand.

The runs of tuned AdamW on the tasks of the suites are part of the package (`baseline.csv`, with the machine they were
made on), so that a new method needs only its own; for tasks of one's own they are made.
"""

import csv
import hashlib
import inspect
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from untuned.schedules.tables import replace
from untuned.study import tasks
from untuned.study.building import default_lr
from untuned.study.config import MethodEntry, Study, StudyError, parse_methods
from untuned.study.horizons import ExchangeRate, Floats, fit_exchange_rate, share_reached
from untuned.study.methods import RANGE_TEST, MethodSpec
from untuned.study.resolve import DEFAULT, resolve
from untuned.study.stats import seed_mean
from untuned.study.store import Store
from untuned.study.tuning import missing, on_grid

REFERENCE = "adamw(schedule=linear, warmup=0.05)"
HORIZONS = 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0
START = on_grid(-6), on_grid(-4)  # 1e-3 and 1e-2; the rest is added
NEAR = 0.01
BASELINE = Path(__file__).parent / "data" / "baseline.csv"
BEST = "relative_muon(schedule=linear, warmup=0.05)"  # of docs/regret.md
DEFAULTS = (BEST, "adamw", "prodigy", "mechanic_adamw", "momo_adam", "range-test")
CONTENDERS = "contenders.json"
SHORT_OF = {RANGE_TEST: "range-test"}


@dataclass(frozen=True)
class Contender:
    """A method at one learning rate."""

    method: str  # its label
    lr: float
    default: bool  # whether the lr is that of the method

    @property
    def label(self) -> str:
        """As people write it: with the lr if that is not the default."""
        if self.default:
            return SHORT_OF.get(self.method, self.method)
        inner = f"lr={self.lr:g}"
        return f"{self.method[:-1]}, {inner})" if self.method.endswith(")") else f"{self.method}({inner})"


@dataclass(frozen=True)
class Curve:
    """Tuned AdamW on a task."""

    horizons: tuple[float, ...]
    losses: Floats  # at each horizon, mean over seeds
    lrs: tuple[float, ...]  # the best of each
    untrained: float
    exchange: ExchangeRate | None  # None with fewer than three horizons
    shipped: bool  # from `baseline.csv`


@dataclass(frozen=True)
class TaskRegret:
    task: str
    title: str
    curve: Curve | None  # None while its runs are not there, or where the untrained model has no finite loss
    finals: dict[Contender, Floats]  # validation loss by seed; inf where the run diverged, NaN where it is missing
    regrets: dict[Contender, Floats]  # by seed


@dataclass(frozen=True)
class Regrets:
    study: Study
    contenders: tuple[Contender, ...]
    tasks: tuple[TaskRegret, ...]
    rows: list[dict[str, object]]  # of the ledger

    def scores(self, contender: Contender) -> Floats:
        """Regret as an array (tasks, seeds), NaN where a run is missing."""
        return np.array([task.regrets[contender] for task in self.tasks])


# ---------------------------------------------------------------- what to run


def plan(
    suite: Mapping[str, float | None], methods: Sequence[MethodSpec], seeds: int, *, fresh: bool = False
) -> tuple[Study, list[Contender]]:
    """The study of contenders and, where no baseline is shipped or with `fresh`, of tuned AdamW. Raises StudyError.

    `suite`: the epochs by task, None for the task's own.
    """
    base = resolve(list(suite), _joined(methods), (DEFAULT,), seeds)
    entries = [task.model_copy(update={"epochs": suite[task.name] or task.epochs}) for task in base.tasks]
    base = base.model_copy(update={"tasks": tuple(entries)})
    contenders = [Contender(m.label, lr, lr == m.default_lr) for m in base.methods for lr in m.lrs]
    needed = [task.name for task in entries if fresh or not shipped(task.name, task.epochs)]
    there = {entry.label: entry for entry in base.methods}
    for entry in _reference(needed):
        there[entry.label] = there[entry.label].grown(entry) if entry.label in there else entry
    return base.model_copy(update={"methods": tuple(there.values())}), contenders


def _joined(methods: Sequence[MethodSpec]) -> list[MethodSpec]:
    """One entry per method: `adamw` and `adamw(lr=0.01)` are one method at two learning rates."""
    found: dict[str, MethodSpec] = {}
    for spec in methods:
        usual = default_lr(spec.name, spec.probe)
        lrs = spec.lrs or (() if usual is None else (usual,))
        there = found.get(spec.label, spec._replace(lrs=()))
        found[spec.label] = there._replace(lrs=tuple(sorted({*(there.lrs or ()), *lrs})) or None)
    return list(found.values())


def _reference(needed: Sequence[str]) -> list[MethodEntry]:
    """Tuned AdamW at all horizons, on tasks that need it."""
    if not needed:
        return []
    [spec] = parse_methods(REFERENCE)
    common = {"name": spec.name, "options": spec.options, "schedule": spec.schedule or "", "warmup": spec.warmup or 0.0}
    added = dict.fromkeys(needed, START)
    return [MethodEntry(**common, budget=share, lrs=(), added=added) for share in HORIZONS]


def remember(folder: Path, contenders: Iterable[Contender]) -> None:
    """Add contenders to those that the folder's report shows. Raises StudyError."""
    path = folder / CONTENDERS
    known = {(c.method, c.lr): c for c in [*_remembered(folder), *contenders]}
    text = json.dumps([vars(c) for c in known.values()], indent=1)
    try:
        replace(path, lambda file: file.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise StudyError(f"cannot write to {folder} ({error}); its runs are kept") from error


def _remembered(folder: Path) -> list[Contender]:
    path = folder / CONTENDERS
    if not path.exists():
        return []
    try:
        return [Contender(**one) for one in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise StudyError(f"{path} cannot be read: {error}") from None


def untried(store: Store) -> dict[tuple[str, str], list[float]]:
    """Learning rates of tuned AdamW that have to run before it counts as tuned, by method and task."""
    found = {}
    losses, untrained = _finals(store)
    for entry in store.study.methods:
        for task in entry.added:
            lrs = entry.rates(task)
            rows = [[losses.get((task, entry.label, lr, seed), math.nan) for seed in store.study.seeds] for lr in lrs]
            if task not in untrained:
                continue  # all crashed, or the untrained model has no loss: more learning rates would not help
            means = _means(np.array(rows), untrained[task])
            if np.isnan(means).all() and np.isnan(rows).all():
                continue  # all crashed: more learning rates would, too
            span = untrained[task] - np.nanmin(means, initial=untrained[task])
            if rates := missing(lrs, means, NEAR * span):
                found[entry.label, task] = rates
    return found


def _means(finals: Floats, untrained: float) -> Floats:
    """Mean over seeds of (lrs, seeds); a diverged run counts as the untrained model. NaN where nothing was learned."""
    means = seed_mean(np.minimum(np.nan_to_num(finals, nan=np.nan, posinf=untrained), untrained))
    means[~(means < untrained)] = np.nan
    return means


# ---------------------------------------------------------------- what came out


def _finals(store: Store) -> tuple[dict[tuple[str, str, float, int], float], dict[str, float]]:
    """Final validation loss by task, label, lr and seed, inf if diverged; and that of the untrained model by task."""
    rows = {row["run"]: row for row in store.runs().to_pylist()}
    losses: dict[tuple[str, str, float, int], float] = {}
    first: dict[str, dict[int, float]] = defaultdict(dict)
    for run in store.study.runs():
        row = rows.get(run.id)
        if row is None or row["status"] not in ("done", "diverged"):
            continue
        done = row["status"] == "done"
        losses[run.task, run.label, run.lr, run.seed] = json.loads(row["final"])["val_loss"] if done else math.inf
        if run.seed not in first[run.task]:
            curve = store.curve(run.id)
            value = curve["val_loss"][0].as_py() if curve.num_rows else None
            if value is not None and math.isfinite(value):
                first[run.task][run.seed] = value
    return losses, {task: float(np.mean(list(values.values()))) for task, values in first.items() if values}


def load(folder: Path) -> Regrets:
    """Read what a folder holds so far. Raises StudyError."""
    store = Store(folder)
    losses, untrained = _finals(store)
    contenders = tuple(_remembered(folder))
    seeds = store.study.seeds
    found = []
    for task in store.study.tasks:
        curve = _curve_of(store, task.name, losses, untrained)
        finals = {
            c: np.array([losses.get((task.name, c.method, c.lr, seed), math.nan) for seed in seeds]) for c in contenders
        }
        regrets = {c: _regret(curve, values) for c, values in finals.items()}
        found.append(TaskRegret(task.name, task.title, curve, finals, regrets))
    return Regrets(store.study, contenders, tuple(found), store.runs().to_pylist())


def _regret(curve: Curve | None, finals: Floats) -> Floats:
    if curve is None:
        return np.full(finals.shape, math.nan)
    share = share_reached(curve.horizons, curve.losses, curve.untrained, finals)
    return np.where(np.isnan(finals), math.nan, 1.0 - share)


def _curve_of(
    store: Store, task: str, losses: Mapping[tuple[str, str, float, int], float], untrained: Mapping[str, float]
) -> Curve | None:
    """From the folder's own runs of tuned AdamW if it has any, else from those shipped."""
    entries = sorted((m for m in store.study.methods if task in m.added), key=lambda m: m.budget)
    if not entries:
        return _baseline(task)
    if task not in untrained:
        return None
    table = {
        entry.budget: {
            lr: [losses.get((task, entry.label, lr, seed), math.nan) for seed in store.study.seeds]
            for lr in entry.rates(task)
        }
        for entry in entries
    }
    return _tuned(table, untrained[task], shipped=False)


def _tuned(table: Mapping[float, Mapping[float, Sequence[float]]], untrained: float, *, shipped: bool) -> Curve | None:
    """`table`: final losses by horizon, lr and seed."""
    horizons, best, rates = [], [], []
    for horizon, by_lr in sorted(table.items()):
        means = _means(np.array(list(by_lr.values())), untrained)
        if np.isnan(means).all():
            means = np.full(len(means), untrained)
        at = int(np.nanargmin(means))
        horizons.append(horizon)
        best.append(float(means[at]))
        rates.append(list(by_lr)[at])
    if not horizons or horizons[-1] != 1:
        return None
    exchange = fit_exchange_rate(horizons, best) if len(horizons) > 2 else None
    return Curve(tuple(horizons), np.array(best), tuple(rates), untrained, exchange, shipped)


# ---------------------------------------------------------------- the runs that are shipped

COLUMNS = ("task", "code", "budget", "lr", "seed", "val_loss", "untrained")


def code_of(task: str, epochs: float) -> str:
    """A hash of a built-in task's code, model and number of steps: with another, shipped runs are not its own."""
    found = tasks.load(task)
    source = "".join(inspect.getsource(cls) for cls in type(found).__mro__ if cls.__module__.startswith("untuned."))
    said = f"{source}{found.model(0)}{found.batch_size} {epochs:g} {sum(1 for _ in found.batches(0, 0))}"
    return hashlib.sha256(said.encode()).hexdigest()[:16]


@cache
def _shipped_rows() -> dict[str, list[dict[str, str]]]:
    rows: dict[str, list[dict[str, str]]] = defaultdict(list)
    if BASELINE.exists():
        with BASELINE.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(line for line in file if not line.startswith("#")):
                rows[row["task"]].append(row)
    return dict(rows)


def shipped(task: str, epochs: float) -> bool:
    """Whether the package holds tuned AdamW's runs of the task as it is now."""
    rows = _shipped_rows().get(task)
    return rows is not None and rows[0]["code"] == code_of(task, epochs)


def _baseline(task: str) -> Curve | None:
    table: dict[float, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    rows = _shipped_rows().get(task, [])
    for row in rows:
        table[float(row["budget"])][float(row["lr"])].append(float(row["val_loss"]))
    return _tuned(table, float(rows[0]["untrained"]), shipped=True) if rows else None


def export(store: Store, path: Path, head: str) -> None:
    """Write tuned AdamW's runs of a folder in the form of `baseline.csv`, below a comment. Raises StudyError."""
    losses, untrained = _finals(store)
    if wanted := untried(store):
        raise StudyError(f"{store.folder}: AdamW is not tuned yet: {wanted}")
    rows = []
    for entry in store.study.methods:
        for task in entry.added:
            code = code_of(task, next(t.epochs for t in store.study.tasks if t.name == task))
            for lr in entry.rates(task):
                for seed in store.study.seeds:
                    loss = losses[task, entry.label, lr, seed]
                    rows.append((task, code, entry.budget, lr, seed, f"{loss:.7g}", f"{untrained[task]:.7g}"))
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(f"# {head}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(sorted(rows))

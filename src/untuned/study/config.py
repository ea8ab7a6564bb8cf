"""What a study runs: tasks x methods x learning rates x seeds, resolved and checked before anything is written."""

import hashlib
import inspect
import json
import math
from collections.abc import Collection, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

import untuned
from untuned.study import tasks
from untuned.study.methods import (
    MethodSpec,
    StudyError,
    ascending,
    create,
    default_lr,
    label,
    parse_methods,
    parse_schedule,
    records_samples,
)

__all__ = [
    "MethodEntry",
    "MethodSpec",
    "RuleEntry",
    "Run",
    "Study",
    "StudyError",
    "TaskEntry",
    "label",
    "parse_lrs",
    "parse_methods",
    "resolve",
]


def _tuples(value: Any) -> Any:
    """JSON knows lists only, optimizers expect tuples: an option must be the same before and after a file."""
    if isinstance(value, (list, tuple)):
        return tuple(_tuples(v) for v in value)
    return {k: _tuples(v) for k, v in value.items()} if isinstance(value, dict) else value


Options = Annotated[dict[str, Any], BeforeValidator(_tuples)]
LearningRate = Annotated[PositiveFloat, Field(allow_inf_nan=False)]
# What most runs do not have is not spelt out, so that those of older folders keep their identity.
Text = Annotated[str, Field(exclude_if=lambda text: not text)]
Share = Annotated[FiniteFloat, Field(ge=0, lt=1, exclude_if=lambda share: not share)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def canonical(self) -> str:
        """JSON with one spelling per value, for comparison and hashing."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def id(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()[:16]


class _Trained(_Frozen):
    """What a method is trained with, beside lr; see `methods`."""

    options: Options = {}
    schedule: Text = ""
    warmup: Share = 0.0  # part of the run
    budget: Annotated[FiniteFloat, Field(gt=0, le=1, exclude_if=lambda part: part == 1)] = 1.0  # part of the epochs
    probe: Text = ""  # the range test that finds the lr, of which `lr` is then a multiple


class Run(_Trained):
    """Everything that determines the numbers of one run, and nothing else."""

    task: str
    method: str
    lr: LearningRate
    seed: int
    epochs: PositiveFloat
    batch_size: PositiveInt
    stop_hopeless: Annotated[bool, Field(exclude_if=lambda stops: not stops)] = False
    source: str = ""  # hash of the code of a task of one's own
    version: str

    @property
    def label(self) -> str:
        """The method as people write it, without lr."""
        return label(self.method, self.options, self.schedule, self.warmup, self.budget, self.probe)

    def __str__(self) -> str:
        return f"{self.task} {self.label} lr {self.lr:g} seed {self.seed}"


class TaskEntry(_Frozen):
    """A task as the study uses it, with what a report must know about it when the task cannot be loaded any more."""

    name: str
    title: str
    metric: str
    maximize: bool
    chance: FiniteFloat
    batch_size: PositiveInt
    epochs: PositiveFloat
    source: str = ""  # hash of the file of a task of one's own: other code is another task
    # The hash of the file after it was mended: what had finished by then was kept and identifies the runs by `source`.
    mended: str = Field(default="", exclude_if=lambda mended: not mended)


class MethodEntry(_Trained):
    """A method with its options and the learning rates it is run at, ascending."""

    name: str
    lrs: tuple[LearningRate, ...]
    default_lr: float | None = None  # what its users get without choosing
    # Learning rates by task, beyond those of all tasks: what tuning added.
    added: Annotated[dict[str, tuple[LearningRate, ...]], Field(exclude_if=lambda added: not added)] = {}

    @property
    def label(self) -> str:
        """The method as people write it, without lr."""
        return label(self.name, self.options, self.schedule, self.warmup, self.budget, self.probe)

    def same_but_lr(self, other: "MethodEntry") -> bool:
        """Whether both train the same way: options may be in another order, and 1 is 1.0."""
        fields = ("name", *_Trained.model_fields)
        return all(getattr(self, field) == getattr(other, field) for field in fields)

    def rates(self, task: str) -> tuple[float, ...]:
        """The learning rates on a task, ascending."""
        return tuple(sorted({*self.lrs, *self.added.get(task, ())}))

    def grown(self, other: "MethodEntry") -> "MethodEntry":
        """With the learning rates of both."""
        added = {
            task: tuple(sorted({*self.added.get(task, ()), *other.added.get(task, ())}))
            for task in (*self.added, *other.added)
            if self.added.get(task) or other.added.get(task)
        }
        lrs = tuple(sorted({*self.lrs, *other.lrs}))
        return self.model_copy(update={"lrs": lrs, "added": added, "default_lr": other.default_lr})


class RuleEntry(_Frozen):
    """A comparison of two methods of the study that is decided by a rule written down before the runs.

    Scores are the metric between chance, 0, and the best mean of the study on a task, 1; larger is better.
    """

    method: str
    against: str
    at: Literal["default", "best"] = "default"  # learning rates: each method's default, or its best of the grid
    statistic: Literal["mean", "iqm", "probability"] = "mean"
    margin: Annotated[FiniteFloat, Field(ge=0)] = 0.0
    level: Annotated[FiniteFloat, Field(gt=0, lt=1)] = 0.95


class Study(_Frozen):
    """A resolved study, as stored in `study.json`."""

    version: str
    tasks: tuple[TaskEntry, ...]
    methods: tuple[MethodEntry, ...]
    seeds: tuple[int, ...]
    stop_hopeless: Annotated[bool, Field(exclude_if=lambda stops: not stops)] = False
    rules: tuple[RuleEntry, ...] = Field((), exclude_if=lambda rules: not rules)

    def run(self, task: TaskEntry, method: MethodEntry, lr: float, seed: int) -> Run:
        """One of its runs."""
        trained = {field: getattr(method, field) for field in _Trained.model_fields}
        return Run(
            task=task.name,
            method=method.name,
            lr=lr,
            seed=seed,
            epochs=task.epochs,
            batch_size=task.batch_size,
            stop_hopeless=self.stop_hopeless,
            source=task.source,
            version=self.version,
            **trained,
        )

    def runs(self) -> list[Run]:
        """All runs, in the order in which a half-finished picture tells most.

        Every task and method gets a coarse grid of learning rates with the first seed, then the gaps, then more seeds.
        """
        pairs = [(task, method) for task in self.tasks for method in self.methods]
        orders = [_coarse_to_fine(method.rates(task.name)) for task, method in pairs]
        return [
            self.run(task, method, lr, seed)
            for seed in self.seeds
            for rank in zip_longest(*orders)
            for (task, method), lr in zip(pairs, rank, strict=True)
            if lr is not None
        ]

    def with_rates(self, added: Mapping[tuple[str, str], Sequence[float]]) -> "Study":
        """With more learning rates by (label of a method, name of a task)."""
        methods = []
        for method in self.methods:
            more = {task.name: tuple(added[key]) for task in self.tasks if (key := (method.label, task.name)) in added}
            methods.append(method.grown(method.model_copy(update={"added": more})))
        return self.model_copy(update={"methods": tuple(methods)})

    def grown(self, asked: "Study", mended: bool, untouched: Collection[str] = ()) -> "Study":
        """This study and what another asks for: tasks, methods, learning rates and seeds are added, none taken away.

        `mended`: the code of a task of one's own may have changed, and what is not finished runs with the new one; the
        tasks `untouched`, of which no run has finished, may then have another metric, too.
        Raises StudyError if the two cannot be one study.
        """
        for field in ("version", "stop_hopeless", "rules"):
            if getattr(self, field) != getattr(asked, field):
                raise StudyError(f"its {field} is {getattr(self, field)!r}, not {getattr(asked, field)!r}")
        found = {task.name: task for task in self.tasks}
        for task in asked.tasks:
            found[task.name] = _same_task(found.get(task.name, task), task, mended, mended and task.name in untouched)
        methods = {method.label: method for method in self.methods}
        for method in asked.methods:
            there = next((m for m in methods.values() if m.same_but_lr(method)), method)
            if there.label != method.label:
                raise StudyError(f"it has {method.label} written as {there.label}")
            methods[method.label] = there.grown(method)
        seeds = tuple(sorted({*self.seeds, *asked.seeds}))
        return self.model_copy(
            update={"tasks": tuple(found.values()), "methods": tuple(methods.values()), "seeds": seeds}
        )


def _same_task(there: TaskEntry, task: TaskEntry, mended: bool, untouched: bool) -> TaskEntry:
    if untouched:
        there = there.model_copy(
            update={name: getattr(task, name) for name in ("title", "metric", "maximize", "chance")}
        )
    for field in sorted(TaskEntry.model_fields.keys() - {"source", "mended"}):
        before, now = getattr(there, field), getattr(task, field)
        if before != now:
            raise StudyError(f"{field} of its task {task.name!r} is {before!r}, not {now!r}")
    if task.source == (there.mended or there.source):
        return there
    if not mended:
        raise StudyError(
            f"the code of its task {task.name!r} has changed since; --retry-crashed keeps what has finished and runs "
            "the rest with the code as it is now"
        )
    return there.model_copy(update={"mended": task.source if task.source != there.source else ""})


def _coarse_to_fine(values: Sequence[float]) -> list[float]:
    """Bit-reversed order: 7 values come as number 0 4 2 6 1 5 3."""
    bits = (len(values) - 1).bit_length()
    return [values[i] for i in sorted(range(len(values)), key=lambda i: f"{i:0{bits}b}"[::-1])]


DEFAULT = "default"  # among learning rates: that of the method


def parse_lrs(text: str) -> tuple[float | str, ...]:
    """Parse `1e-3,1e-2`, `1e-4:1e2:7` (7 log-spaced values, both end points included), `default`, joined by commas.

    Spaced values are rounded to 6 significant digits, so that they print well and hash the same everywhere.
    Returns ascending values without repetition behind `DEFAULT`, if that is among them. Raises StudyError.
    """
    values: list[float] = []
    for part in text.split(","):
        if part == DEFAULT:
            continue
        try:
            if ":" not in part:
                values.append(float(part))
                continue
            first, last, number = part.split(":")
            low, high, count = float(first), float(last), int(number)
        except ValueError:
            raise StudyError(
                f"lr: cannot read {part!r}; write 1e-3,1e-2 or LOW:HIGH:COUNT as in 1e-4:1e2:7 or default"
            ) from None
        if not (0 < low < high < math.inf and count >= 2):
            raise StudyError(f"lr: {part!r} needs 0 < LOW < HIGH and COUNT >= 2")
        spaced = (low * (high / low) ** (i / (count - 1)) for i in range(1, count - 1))
        values += [low, *(float(f"{value:.6g}") for value in spaced), high]
    return (*([DEFAULT] if DEFAULT in text.split(",") else []), *ascending(values, "lr"))


def resolve(
    task_names: Sequence[str],
    methods: Sequence[MethodSpec],
    lrs: Sequence[float | str],
    seeds: int,
    epochs: float | None = None,
    *,
    schedule: str = "",
    warmup: float = 0.0,
    stop_hopeless: bool = False,
    rules: Sequence[RuleEntry] = (),
) -> Study:
    """Load every task, build every optimizer once and return the study; `epochs` None takes each task's own.

    `schedule` and `warmup` are those of the methods that name none. A method without learning rates of its own gets
    `lrs`, in which `DEFAULT` stands for the method's. Raises StudyError. Writes nothing.
    """
    if not task_names or not methods:
        raise StudyError("a study needs at least one task and one method")
    if seeds < 1:
        raise StudyError(f"seeds: must be at least 1, not {seeds}")
    if epochs is not None and not 0 < epochs < math.inf:
        raise StudyError(f"budget: epochs must be positive and finite, not {epochs}")
    if not 0 <= warmup < 1:
        raise StudyError(f"warmup: is a part of the run, at least 0 and below 1, not {warmup}")
    common = parse_schedule(schedule) if schedule else ""
    entries = [_entry(spec, lrs, common, warmup) for spec in methods]
    _refuse_repetition("tasks", task_names)
    _refuse_repetition("methods", [entry.label for entry in entries])
    for i, entry in enumerate(entries):
        if (same := next((e for e in entries[:i] if e.same_but_lr(entry)), None)) is not None:
            raise StudyError(f"methods: {same.label} and {entry.label} are the same")
    for entry in entries:
        for lr in entry.lrs:
            try:
                given = {"samples": 1} if records_samples(entry.name) else {}
                create(torch.nn.Linear(2, 2), entry.name, lr, entry.options, **given)
            except StudyError:
                raise
            except (TypeError, ValueError) as error:
                raise StudyError(f"methods: {entry.label}: {error}") from error
    return Study(
        version=untuned.__version__,
        tasks=tuple(_task(name, epochs) for name in task_names),
        methods=tuple(entries),
        seeds=tuple(range(seeds)),
        stop_hopeless=stop_hopeless,
        rules=tuple(_rule(rule, entries, common, warmup) for rule in rules),
    )


def _rule(rule: RuleEntry, entries: Sequence[MethodEntry], schedule: str, warmup: float) -> RuleEntry:
    """With methods as the study writes them."""
    found = {}
    for side in ("method", "against"):
        asked = getattr(rule, side)
        named = [_entry(spec, (1.0,), schedule, warmup) for spec in parse_methods(asked)]
        labels = {entry.label for entry in entries if any(entry.same_but_lr(other) for other in named)}
        if len(labels) != 1:
            raise StudyError(f"rules: {side} = {asked!r} is none of {', '.join(entry.label for entry in entries)}")
        found[side] = labels.pop()
    if found["method"] == found["against"]:
        raise StudyError(f"rules: {found['method']} is compared with itself")
    return rule.model_copy(update=found)


def _entry(spec: MethodSpec, lrs: Sequence[float | str], schedule: str, warmup: float) -> MethodEntry:
    usual = default_lr(spec.name, spec.probe)
    if usual is None and not spec.lrs and DEFAULT in lrs:
        raise StudyError(f"methods: {spec.label} has no default lr: give it one")
    tried = spec.lrs or ascending([usual if lr == DEFAULT else lr for lr in lrs], "lr")
    if not tried:
        raise StudyError(f"methods: {spec.label} has no learning rate")
    chosen = schedule if spec.schedule is None else spec.schedule
    return MethodEntry(
        name=spec.name,
        options=spec.options,
        schedule=chosen,
        warmup=spec.warmup if spec.warmup is not None else (0.0 if chosen.startswith("refined") else warmup),
        budget=spec.budget,
        probe=spec.probe,
        lrs=tried,
        default_lr=usual,
    )


def _refuse_repetition(what: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise StudyError(f"{what}: {name} is given twice")


def _task(name: str, epochs: float | None) -> TaskEntry:
    try:
        task = tasks.load(name)
    except (ValueError, OSError) as error:
        raise StudyError(str(error)) from error
    try:
        return TaskEntry(
            name=name,
            title=task.title,
            metric=task.metric,
            maximize=task.maximize,
            chance=task.chance,
            batch_size=task.batch_size,
            epochs=task.epochs if epochs is None else epochs,
            source=_source(task) if ":" in name else "",
        )
    except ValidationError as error:
        wrong = error.errors()[0]
        raise StudyError(f"task {name!r}: {wrong['loc'][0]}: {wrong['msg']}, not {wrong['input']!r}") from None


def _source(task: tasks.Task) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the file that defines a task; of its name, if there is no file."""
    path = inspect.getsourcefile(type(task))
    content = Path(path).read_bytes() if path else type(task).__qualname__.encode()
    return hashlib.sha256(content).hexdigest()[:16]

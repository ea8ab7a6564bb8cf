"""What a study runs: tasks x methods x learning rates x seeds, resolved and checked before anything is written."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from datetime import date
from itertools import zip_longest
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    PositiveFloat,
    PositiveInt,
)

from untuned.study.methods import (
    MethodSpec,
    StudyError,
    label,
    parse_methods,
)

__all__ = [
    "ClaimEntry",
    "MethodEntry",
    "MethodSpec",
    "RuleEntry",
    "Run",
    "Study",
    "StudyError",
    "TaskEntry",
    "label",
    "parse_methods",
]


def _tuples(value: Any) -> Any:
    """JSON knows lists only, optimizers expect tuples: an option must be the same before and after a file."""
    if isinstance(value, (list, tuple)):
        return tuple(_tuples(v) for v in value)
    return {k: _tuples(v) for k, v in value.items()} if isinstance(value, dict) else value


Options = Annotated[dict[str, Any], BeforeValidator(_tuples)]
LearningRate = Annotated[PositiveFloat, Field(allow_inf_nan=False)]
Decided = Literal["better", "worse", "no difference of more than the margin"]
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
    against_at: Annotated[Literal["default", "best", ""], Field(exclude_if=lambda at: not at)] = ""  # "": the same
    # "width": decades of learning rate that do as well as the method's own best, but for 2 points, or 2 % of chance.
    statistic: Literal["mean", "iqm", "probability", "width"] = "mean"
    # What is drawn anew: tasks and seeds, for a rule about tasks like these, or seeds, for one about these tasks.
    over: Annotated[Literal["tasks", "seeds"], Field(exclude_if=lambda over: over == "tasks")] = "tasks"
    margin: Annotated[FiniteFloat, Field(ge=0)] = 0.0
    level: Annotated[FiniteFloat, Field(gt=0, lt=1)] = 0.95


class ClaimEntry(_Frozen):
    """What others have claimed and the rules of the study decide.

    A rule supports the claim if its interval leaves open only verdicts of `holds`, contradicts it if it leaves open
    only others, and else cannot tell. The claim holds if every rule supports it, and does not if any contradicts it.
    """

    text: Annotated[str, Field(min_length=1)]
    source: Annotated[str, Field(min_length=1)]  # paper, with its arXiv number
    date: date  # when the rules were written, which is before the runs
    holds: Annotated[tuple[Decided, ...], Field(min_length=1, max_length=2)]
    why: str = ""  # these tasks, this margin, this many seeds


class Study(_Frozen):
    """A resolved study, as stored in `study.json`."""

    version: str
    tasks: tuple[TaskEntry, ...]
    methods: tuple[MethodEntry, ...]
    seeds: tuple[int, ...]
    stop_hopeless: Annotated[bool, Field(exclude_if=lambda stops: not stops)] = False
    rules: tuple[RuleEntry, ...] = Field((), exclude_if=lambda rules: not rules)
    claim: ClaimEntry | None = Field(None, exclude_if=lambda claim: claim is None)

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
        for field in ("version", "stop_hopeless", "rules", "claim"):
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

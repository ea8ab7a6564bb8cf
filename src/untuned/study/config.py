"""What a study runs: tasks x methods x learning rates x seeds, resolved and checked before anything is written."""

import ast
import hashlib
import inspect
import json
import math
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, NamedTuple

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


class StudyError(ValueError):
    """A request that cannot be carried out; the message is meant for the person who typed it."""


def _tuples(value: Any) -> Any:
    """JSON knows lists only, optimizers expect tuples: an option must be the same before and after a file."""
    if isinstance(value, (list, tuple)):
        return tuple(_tuples(v) for v in value)
    return {k: _tuples(v) for k, v in value.items()} if isinstance(value, dict) else value


Options = Annotated[dict[str, Any], BeforeValidator(_tuples)]
LearningRate = Annotated[PositiveFloat, Field(allow_inf_nan=False)]
# Parts of a run, between 0 and 1, after which lr falls tenfold. None is not spelt out, so that the runs and studies of
# folders written before there were drops keep their identity.
Drops = Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(exclude_if=lambda drops: not drops)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def canonical(self) -> str:
        """JSON with one spelling per value, for comparison and hashing."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def id(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()[:16]


class Run(_Frozen):
    """Everything that determines the numbers of one run, and nothing else."""

    task: str
    method: str
    options: Options
    lr: LearningRate
    seed: int
    epochs: PositiveFloat
    batch_size: PositiveInt
    drops: Drops = ()
    source: str = ""  # hash of the code of a task of one's own
    version: str

    def __str__(self) -> str:
        return f"{self.task} {label(self.method, self.options)} lr {self.lr:g} seed {self.seed}"


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


class MethodEntry(_Frozen):
    """A method with its options and the learning rates it is run at, ascending."""

    name: str
    options: Options = {}
    lrs: tuple[LearningRate, ...]


class Study(_Frozen):
    """A resolved study, as stored in `study.json`."""

    version: str
    tasks: tuple[TaskEntry, ...]
    methods: tuple[MethodEntry, ...]
    seeds: tuple[int, ...]
    drops: Drops = ()

    def runs(self) -> list[Run]:
        """All runs, in the order in which a half-finished picture tells most.

        Every task and method gets a coarse grid of learning rates with the first seed, then the gaps, then more seeds.
        """
        return [
            Run(
                task=task.name,
                method=method.name,
                options=method.options,
                lr=lr,
                seed=seed,
                epochs=task.epochs,
                batch_size=task.batch_size,
                drops=self.drops,
                source=task.source,
                version=self.version,
            )
            for seed in self.seeds
            for rank in zip_longest(*(_coarse_to_fine(method.lrs) for method in self.methods))
            for task in self.tasks
            for method, lr in zip(self.methods, rank, strict=True)
            if lr is not None
        ]

    def grown(self, asked: "Study", mended: bool) -> "Study":
        """This study and what another asks for: tasks, methods, learning rates and seeds are added, none taken away.

        `mended`: the code of a task of one's own may have changed, and what is not finished runs with the new one.
        Raises StudyError if the two cannot be one study.
        """
        for field in ("version", "drops"):
            if getattr(self, field) != getattr(asked, field):
                raise StudyError(f"its {field} is {getattr(self, field)!r}, not {getattr(asked, field)!r}")
        found = {task.name: task for task in self.tasks}
        for task in asked.tasks:
            found[task.name] = _same_task(found.get(task.name, task), task, mended)
        methods = {label(method.name, method.options): method for method in self.methods}
        for method in asked.methods:
            there = methods.setdefault(label(method.name, method.options), method)
            lrs = tuple(sorted({*there.lrs, *method.lrs}))
            methods[label(method.name, method.options)] = there.model_copy(update={"lrs": lrs})
        seeds = tuple(sorted({*self.seeds, *asked.seeds}))
        return self.model_copy(
            update={"tasks": tuple(found.values()), "methods": tuple(methods.values()), "seeds": seeds}
        )


def _same_task(there: TaskEntry, task: TaskEntry, mended: bool) -> TaskEntry:
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


def label(method: str, options: dict[str, Any]) -> str:
    """`adam(betas=(0.9, 0.95))`: how people and `--methods` write a method."""
    return f"{method}({', '.join(f'{k}={v!r}' for k, v in options.items())})" if options else method


def known_method(name: str) -> str:
    """Return the name of a registered method; raises StudyError with those that look like it otherwise."""
    try:
        return untuned.get(name).name
    except ValueError as error:
        raise StudyError(str(error)) from None


class MethodSpec(NamedTuple):
    """A method as asked for; `lrs` is None if it takes the learning rates of the study."""

    name: str
    options: dict[str, Any]
    lrs: tuple[float, ...] | None = None


def parse_methods(text: str) -> list[MethodSpec]:
    """Parse `momo,adam(betas=(0.9, 0.95)),prodigy(lr=1.0)`; an `lr` option, a number or a tuple, replaces the grid.

    Option values are Python literals. Raises StudyError.
    """
    try:
        tree = ast.parse(f"[{text}]", mode="eval").body
    except SyntaxError as error:
        raise StudyError(f"methods: cannot read {text!r}: {error.msg}; write momo,adam(betas=(0.9, 0.95))") from None
    if not isinstance(tree, ast.List):
        raise StudyError(f"methods: cannot read {text!r}; write momo,adam(betas=(0.9, 0.95))")
    return [_method(node, ast.unparse(node).replace(" - ", "-")) for node in tree.elts]


def _method(node: ast.expr, source: str) -> MethodSpec:
    keywords: list[ast.keyword] = []
    if isinstance(node, ast.Call):
        if node.args or any(keyword.arg is None for keyword in node.keywords):
            raise StudyError(f"methods: {source}: options need names, as in adam(eps=1e-6)")
        node, keywords = node.func, node.keywords
    name = known_method(node.id if isinstance(node, ast.Name) else source)
    options = {}
    for keyword in keywords:
        try:
            options[str(keyword.arg)] = ast.literal_eval(keyword.value)
            json.dumps(options, allow_nan=False)
        except (ValueError, TypeError):
            raise StudyError(
                f"methods: {name}: option {keyword.arg} must be a number, string, boolean, None or tuple of those, "
                f"not {ast.unparse(keyword.value)}"
            ) from None
    lrs = options.pop("lr", None)
    if lrs is None:
        return MethodSpec(name, options)
    return MethodSpec(name, options, _ascending(lrs if isinstance(lrs, tuple) else (lrs,), f"{name}(lr=...)"))


def parse_lrs(text: str) -> tuple[float, ...]:
    """Parse `1e-3,1e-2` or `1e-4:1e2:7` (7 log-spaced values, both end points included), or both joined by commas.

    Spaced values are rounded to 6 significant digits, so that they print well and hash the same everywhere.
    Returns ascending values without repetition. Raises StudyError.
    """
    values: list[float] = []
    for part in text.split(","):
        try:
            if ":" not in part:
                values.append(float(part))
                continue
            first, last, number = part.split(":")
            low, high, count = float(first), float(last), int(number)
        except ValueError:
            raise StudyError(f"lr: cannot read {part!r}; write 1e-3,1e-2 or LOW:HIGH:COUNT as in 1e-4:1e2:7") from None
        if not (0 < low < high < math.inf and count >= 2):
            raise StudyError(f"lr: {part!r} needs 0 < LOW < HIGH and COUNT >= 2")
        spaced = (low * (high / low) ** (i / (count - 1)) for i in range(1, count - 1))
        values += [low, *(float(f"{value:.6g}") for value in spaced), high]
    return _ascending(values, "lr")


def _ascending(values: Sequence[Any], where: str) -> tuple[float, ...]:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise StudyError(f"{where}: a learning rate must be positive and finite, not {value!r}")
    return tuple(sorted({float(value) for value in values}))


def resolve(
    task_names: Sequence[str],
    methods: Sequence[MethodSpec],
    lrs: Sequence[float],
    seeds: int,
    epochs: float | None = None,
    drops: tuple[float, ...] = (),
) -> Study:
    """Load every task, build every optimizer once and return the study; `epochs` None takes each task's own.

    `drops`: parts of a run, between 0 and 1, after which lr falls tenfold.

    Raises StudyError. Writes nothing.
    """
    if not task_names or not methods:
        raise StudyError("a study needs at least one task and one method")
    if seeds < 1:
        raise StudyError(f"seeds: must be at least 1, not {seeds}")
    if epochs is not None and not 0 < epochs < math.inf:
        raise StudyError(f"budget: epochs must be positive and finite, not {epochs}")
    entries = [
        MethodEntry(name=spec.name, options=spec.options, lrs=_ascending(spec.lrs or lrs, "lr")) for spec in methods
    ]
    _refuse_repetition("tasks", task_names)
    _refuse_repetition("methods", [label(entry.name, entry.options) for entry in entries])
    for entry in entries:
        for lr in entry.lrs:
            try:
                given = {"samples": 1} if untuned.get(entry.name).records_samples else {}
                untuned.create(torch.nn.Linear(2, 2), entry.name, lr=lr, **given, **entry.options)
            except (TypeError, ValueError) as error:
                raise StudyError(f"methods: {label(entry.name, entry.options)}: {error}") from error
    return Study(
        version=untuned.__version__,
        tasks=tuple(_task(name, epochs) for name in task_names),
        methods=tuple(entries),
        seeds=tuple(range(seeds)),
        drops=drops,
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

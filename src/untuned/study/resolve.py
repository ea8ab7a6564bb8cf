"""A study from what was asked for: learning rates read, tasks loaded, every optimizer built once."""

import hashlib
import inspect
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import ValidationError

import untuned
from untuned.study import tasks
from untuned.study.building import create, default_lr, records_samples
from untuned.study.config import ClaimEntry, MethodEntry, RuleEntry, Study, TaskEntry
from untuned.study.methods import MethodSpec, ascending, parse_methods, parse_schedule
from untuned.study.syntax import StudyError

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
    claim: ClaimEntry | None = None,
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
        claim=claim,
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

"""Optimizers from what `methods` reads: of the library, of parts, of other packages; and their schedules."""

import ast
import difflib
import hashlib
import inspect
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

import untuned
from untuned import around, directions, gradients, iterates, parts, step_sizes, weight_decay
from untuned.registry import grouped
from untuned.schedules import Refined, Schedule
from untuned.study.syntax import StudyError, literal, name_of, text_of


def digest(path: Path) -> str:
    """Of a file, or of all files of a folder."""
    files = sorted(path.glob("*")) if path.is_dir() else [path]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def default_lr(name: str, probe: str = "") -> float | None:
    """The lr that a user gets without choosing one; None if the optimizer has none."""
    if probe:
        return 1.0  # times what the test finds
    if ":" in name:
        found = inspect.signature(_foreign(name)).parameters.get("lr")
        return found.default if found is not None and isinstance(found.default, (int, float)) else None
    if name.startswith("compose("):
        steps = [part for part in composition(name)() if isinstance(part, parts.StepSize)]
        return inspect.signature(type(steps[0]) if steps else step_sizes.Fixed).parameters["lr"].default
    return untuned.get(name).lr


def records_samples(name: str) -> bool:
    """Whether the method keeps a number per sample, and so needs the number of samples and `step(sample_ids=...)`."""
    return ":" not in name and not name.startswith("compose(") and untuned.get(name).records_samples


def create(
    model: torch.nn.Module, name: str, lr: float, options: dict[str, Any], **engine: Any
) -> torch.optim.Optimizer:
    """The optimizer for all parameters of a model that need a gradient.

    `engine`: further options of our own optimizers, left out for those of another package. Raises StudyError,
    TypeError or ValueError.
    """
    if ":" in name:
        cls = _foreign(name)
        closure = inspect.signature(cls.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise StudyError(f"methods: {name} evaluates the loss itself, by a closure, which a study does not give it")
        params: Any = [p for p in model.parameters() if p.requires_grad]
        return cls(params, **{"lr": lr, **options})
    if not name.startswith("compose("):
        return untuned.create(model, name, lr=lr, **options, **engine)
    chosen: dict[str, Any] = {}
    for part in composition(name)(lr):
        role = next(role for role, kind in ROLES.items() if isinstance(part, kind))
        if role in ("gradient", "around"):
            chosen.setdefault(role, []).append(part)
        elif role in chosen:
            raise StudyError(f"methods: {name} has two parts for {role.replace('_', ' ')}; it takes one")
        else:
            chosen[role] = part
    chosen.setdefault("step_size", step_sizes.Fixed(lr=lr))
    if "gradient" in chosen:  # what the study watches stands before what changes gradients
        chosen["gradient"] = [*engine.pop("gradient", []), *chosen["gradient"]]
    decayed = bool(getattr(chosen.get("decay"), "weight_decay", 0.0))
    return untuned.compose(grouped(model, decayed), **chosen, **options, **engine)


def takes_loss(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `step` has an argument `loss`; all of ours have."""
    return isinstance(optimizer, untuned.Optimizer) or "loss" in inspect.signature(optimizer.step).parameters


ROLES: dict[str, type] = {
    "direction": parts.Direction,
    "step_size": parts.StepSize,
    "iterate": parts.Iterate,
    "decay": parts.WeightDecay,
    "gradient": parts.GradientTransform,
    "around": parts.StepTransform,
}


@cache
def _foreign(name: str) -> type[torch.optim.Optimizer]:
    module, _, attribute = name.partition(":")
    try:
        cls = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise StudyError(f"methods: {name}: {error.name} is not installed") from None
    except Exception as error:  # whatever its code raises
        raise StudyError(f"methods: {name}: {type(error).__name__}: {error}") from None
    if not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
        raise StudyError(f"methods: {name} is no torch.optim.Optimizer")
    return cls


@cache
def _parts() -> dict[str, type]:
    """Classes of parts by name, without underscores and in lower case."""
    rooms = (directions, step_sizes, iterates, weight_decay, gradients, around)
    found = {n: getattr(room, n) for room in rooms for n in getattr(room, "__all__", dir(room))}
    kinds = tuple(ROLES.values())
    return {
        n.lower(): cls
        for n, cls in found.items()
        if isinstance(cls, type) and issubclass(cls, kinds) and cls not in kinds
    }


def composition(name: str) -> Callable[..., list[Any]]:
    """What makes the parts of `compose(...)`, with the lr of a run if there is one. Raises StudyError."""
    call = ast.parse(name, mode="eval").body
    assert isinstance(call, ast.Call)
    found = [_part(node) for node in call.args]

    def make(lr: float | None = None) -> list[Any]:
        try:
            return [build(lr) for build in found]
        except (TypeError, ValueError) as error:
            raise StudyError(f"methods: {name}: {error}") from None

    return make


def _part(node: ast.expr) -> Callable[[float | None], Any]:
    word = name_of(node)
    cls = _parts().get(word.replace("_", "").lower())
    if cls is None or not isinstance(node, ast.Call | ast.Name) or (isinstance(node, ast.Call) and node.args):
        near = difflib.get_close_matches(word.replace("_", "").lower(), _parts(), n=3)
        names = [_parts()[n].__name__ for n in near] or ["those of `untuned list`"]
        raise StudyError(
            f"methods: compose: {text_of(node)!r} is no part; parts are named as in adam, momo(lb=1.0), schedule_free; "
            f"did you mean {', '.join(names)}?"
        )
    options: dict[str, Any] = {}
    for keyword in node.keywords if isinstance(node, ast.Call) else []:
        named = isinstance(keyword.value, ast.Call | ast.Name)
        nested = named and name_of(keyword.value).replace("_", "").lower() in _parts()
        options[str(keyword.arg)] = (
            _part(keyword.value)(None) if nested else literal(word, str(keyword.arg), keyword.value)
        )

    def build(lr: float | None) -> Any:
        given: dict[str, Any] = {"lr": lr} if lr is not None and issubclass(cls, parts.StepSize) else {}
        return cls(**options, **given)

    return build


def follow(optimizer: torch.optim.Optimizer, schedule: str, warmup: float, steps: int) -> Any:
    """The scheduler to step after every optimizer step, None for a constant lr without warm-up."""
    if not schedule and not warmup:
        return None
    call = ast.parse(schedule or "constant", mode="eval").body
    options = {str(k.arg): ast.literal_eval(k.value) for k in (call.keywords if isinstance(call, ast.Call) else [])}
    if isinstance(call, ast.Call) and call.args:
        path = ast.literal_eval(call.args[0])
        if options.pop("sha256", "") != digest(Path(path)):
            raise StudyError(f"schedule: {path} has changed since the study began")
        return Refined(optimizer, path, steps, **options)
    return Schedule(optimizer, name_of(call), steps, warmup=min(round(warmup * steps), steps - 1), **options)

"""What a study trains with, as people write it: a method, a composition or an optimizer of another package.

adam(betas=(0.9, 0.95))                        a method of `untuned list` with options
prodigy(schedule=wsd(decay=0.1), warmup=0.05)  with a schedule, behind a warm-up over 5 % of the run
compose(adam, momo(lb=1.0), schedule_free)     any parts, as in `untuned.compose`
prodigyopt:Prodigy(weight_decay=0.01)          any torch optimizer that can be imported
adamw(lr=range_test(steps=60))                 with the lr that a learning-rate range test finds, which is paid for
adamw(schedule=linear, budget=0.25)            for a quarter of the steps of the others
"""

import ast
import difflib
import hashlib
import inspect
import json
import math
import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch

import untuned
from untuned import around, directions, gradients, iterates, parts, step_sizes, weight_decay
from untuned.registry import grouped
from untuned.schedules import SHAPES, Refined, Schedule

RANGE_TEST = "adamw(lr=range_test(steps=60), schedule=linear, warmup=0.05)"
SHORT = {"range-test": RANGE_TEST, "range_test": RANGE_TEST}
RULES = ("steepest", "valley")


class StudyError(ValueError):
    """A request that cannot be carried out; the message is meant for the person who typed it."""


class MethodSpec(NamedTuple):
    """A method as asked for; what is None is that of the study."""

    name: str
    options: dict[str, Any]
    lrs: tuple[float, ...] | None = None
    schedule: str | None = None
    warmup: float | None = None
    budget: float = 1.0
    probe: str = ""

    @property
    def label(self) -> str:
        """The method as people write it, without lr."""
        return label(self.name, self.options, self.schedule or "", self.warmup or 0.0, self.budget, self.probe)


def label(
    name: str,
    options: dict[str, Any],
    schedule: str = "",
    warmup: float = 0.0,
    budget: float = 1.0,
    probe: str = "",
) -> str:
    """`adam(betas=(0.9, 0.95), schedule=linear)`: how people and `--methods` write a method."""
    said = [f"{key}={value!r}" for key, value in options.items()]
    said += [f"lr={probe}"] if probe else []
    said += [f"schedule={schedule}"] if schedule else []
    said += [
        f"{key}={_number(value)}"
        for key, value, usual in (("warmup", warmup, 0), ("budget", budget, 1))
        if value != usual
    ]
    if not said:
        return name
    if name.endswith(")"):
        return f"{name[:-1]}{', ' if name[-2] != '(' else ''}{', '.join(said)})"
    return f"{name}({', '.join(said)})"


def _number(value: float) -> str:
    """`0.05`: as short as it can be and still be the same number."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


# Reading


def known_method(name: str) -> str:
    """Return the name of a registered method; raises StudyError with those that look like it otherwise."""
    try:
        return untuned.get(name).name
    except ValueError as error:
        raise StudyError(str(error)) from None


def parse_methods(text: str) -> list[MethodSpec]:
    """Parse `momo,adam(betas=(0.9, 0.95)),prodigy(lr=1.0)`; an `lr` option, a number or a tuple, replaces the grid.

    Option values are Python literals; see the head of this module for all that can be written. Raises StudyError.
    """
    # What Python does not read: the colon of module:Class becomes a name that nobody has.
    readable = _outside_quotes(text, lambda part: re.sub(r"(?<=\w):(?=[A-Za-z_])", "._colon_.", part))
    try:
        tree = ast.parse(f"[{readable}]", mode="eval").body
    except SyntaxError as error:
        raise StudyError(f"methods: cannot read {text!r}: {error.msg}; write momo,adam(betas=(0.9, 0.95))") from None
    if not isinstance(tree, ast.List):
        raise StudyError(f"methods: cannot read {text!r}; write momo,adam(betas=(0.9, 0.95))")
    return [_method(node) for node in tree.elts]


def _outside_quotes(text: str, change: Callable[[str], str]) -> str:
    parts = re.split(r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')""", text)
    return "".join(part if i % 2 else change(part) for i, part in enumerate(parts))


def _text(node: ast.AST) -> str:
    return _outside_quotes(ast.unparse(node), lambda part: part.replace(" - ", "-").replace("._colon_.", ":"))


def _method(node: ast.expr) -> MethodSpec:
    source, keywords, composed = _text(node), [], False
    if source in SHORT:
        return _method(ast.parse(SHORT[source], mode="eval").body)
    if isinstance(node, ast.Call):
        composed = isinstance(node.func, ast.Name) and node.func.id == "compose"
        if (node.args and not composed) or any(keyword.arg is None for keyword in node.keywords):
            raise StudyError(f"methods: {source}: options need names, as in adam(eps=1e-6)")
        keywords = node.keywords
        _refuse_repetition(source, [str(keyword.arg) for keyword in keywords])
    given = {str(keyword.arg): keyword.value for keyword in keywords}
    own = {key: given.pop(key) for key in ("lr", "schedule", "warmup", "budget") if key in given}
    if composed:
        assert isinstance(node, ast.Call)
        lrs = [lr for part in node.args for lr in _lr_of(part)]
        lrs += [own["lr"]] if "lr" in own else []
        _refuse_repetition(source, ["lr"] * len(lrs))
        if lrs:
            own["lr"] = lrs[0]
        name = f"compose({', '.join(_text(part).removesuffix('()') for part in node.args)})"
        _composition(name)  # refuses what is no part
    elif isinstance(name_node := node.func if isinstance(node, ast.Call) else node, ast.Name | ast.Attribute):
        name = _text(name_node)
        name = name if ":" in name else known_method(name)
    else:
        name = known_method(source)
    options = {key: _literal(name, key, value) for key, value in given.items()}
    found = MethodSpec(name, options, None, *_schedule_of(name, own))
    if "lr" not in own:
        return found
    if _name_of(own["lr"]) == "range_test":
        return found._replace(lrs=(1.0,), probe=_range_test(own["lr"]))
    value = _literal(name, "lr", own["lr"])
    if value == ():
        raise StudyError(f"methods: {name}(lr=...): there is no learning rate")
    return found._replace(lrs=ascending(value if isinstance(value, tuple) else (value,), f"{name}(lr=...)"))


def _refuse_repetition(source: str, options: Sequence[str]) -> None:
    for option in options:
        if options.count(option) > 1:
            raise StudyError(f"methods: {source}: {option} is given twice")


def _lr_of(part: ast.expr) -> list[ast.expr]:
    """The lr that a part of a composition was given, which is taken out of it: it is that of the run."""
    if not isinstance(part, ast.Call):
        return []
    found = [keyword.value for keyword in part.keywords if keyword.arg == "lr"]
    part.keywords = [keyword for keyword in part.keywords if keyword.arg != "lr"]
    return found


def _literal(name: str, option: str, node: ast.expr) -> Any:
    try:
        value = ast.literal_eval(node)
        json.dumps(value, allow_nan=False)
        return _tuples(value)
    except (ValueError, TypeError):
        raise StudyError(
            f"methods: {name}: option {option} must be a number, string, boolean, None or tuple of those, "
            f"not {_text(node)}"
        ) from None


def _tuples(value: Any) -> Any:
    """Lists become tuples, as they are in a study."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _name_of(node: ast.expr) -> str:
    """`linear` of linear, "linear" and linear(power=2)."""
    node = node.func if isinstance(node, ast.Call) else node
    return str(node.value) if isinstance(node, ast.Constant) else _text(node)


def _schedule_of(name: str, own: dict[str, ast.expr]) -> tuple[str | None, float | None, float]:
    schedule = parse_schedule(_text(own["schedule"])) if "schedule" in own else None
    shares: list[float] = []
    for key, usual, end in (("warmup", 0.0, "below 1"), ("budget", 1.0, "at most 1")):
        value = _literal(name, key, own[key]) if key in own else usual
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not (0 <= value < 1 if key == "warmup" else 0 < value <= 1):
            raise StudyError(f"methods: {name}: {key} is a part of the run, positive and {end}, not {value!r}")
        shares.append(float(value))
    if (schedule or "").startswith("refined") and shares[0]:
        raise StudyError(f"methods: {name}: a refined schedule has a warm-up of its own; leave out warmup")
    warmup, budget = shares
    return schedule, warmup if "warmup" in own else None, budget


def parse_schedule(text: str) -> str:
    """`linear`, `wsd(decay=0.1)` or `refined('schedule.csv')` with one spelling each; "" for constant.

    A refined schedule is named with a hash of its file, which thus belongs to the identity of a run. Raises StudyError.
    """
    try:
        node = ast.parse(text, mode="eval").body
        shape = _name_of(node)
        arguments = [ast.literal_eval(value) for value in (node.args if isinstance(node, ast.Call) else [])]
        keywords = node.keywords if isinstance(node, ast.Call) else []
        options = {str(keyword.arg): _tuples(ast.literal_eval(keyword.value)) for keyword in keywords}
    except (SyntaxError, TypeError, ValueError):
        raise StudyError(f"schedule: cannot read {text!r}; write linear, wsd(decay=0.1) or refined('file')") from None
    if shape == "refined":
        return _refined(arguments, options)
    if shape not in SHAPES or arguments:
        raise StudyError(f"schedule: {text!r} is none of {', '.join(SHAPES)} with options, nor refined('file')")
    if "warmup" in options:
        raise StudyError(f"schedule: warmup is an option of the method, as in adam(schedule={shape}, warmup=0.05)")
    known = list(inspect.signature(SHAPES[shape]).parameters)[2:]
    if wrong := sorted(options.keys() - {*known}):
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise StudyError(f"schedule: {shape} has no option {wrong[0]!r}; {has}")
    try:
        Schedule(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0), shape, 10, **options)
    except (TypeError, ValueError) as error:
        raise StudyError(str(error)) from None
    if shape == "constant":
        return ""
    return f"{shape}({', '.join(f'{k}={v!r}' for k, v in options.items())})" if options else shape


def _refined(arguments: list[Any], options: dict[str, Any]) -> str:
    if len(arguments) != 1 or not isinstance(arguments[0], str) or options.keys() - {"power", "tau", "sha256"}:
        raise StudyError("schedule: refined takes the file of a schedule or log, and power and tau: refined('file')")
    path = Path(arguments[0])
    try:
        digest = _digest(path)
        Refined(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0), path, 10, **{"power": 2} | {
            key: options[key] for key in ("power", "tau") if key in options
        })  # fmt: skip
    except (OSError, TypeError, ValueError) as error:
        raise StudyError(f"schedule: {error}") from None
    if options.pop("sha256", digest) != digest:
        raise StudyError(f"schedule: {path} has changed since the study began")
    said = [repr(arguments[0]), *(f"{k}={v!r}" for k, v in options.items()), f"sha256={digest!r}"]
    return f"refined({', '.join(said)})"


def _digest(path: Path) -> str:
    """Of a file, or of all files of a folder."""
    files = sorted(path.glob("*")) if path.is_dir() else [path]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _range_test(node: ast.expr) -> str:
    if isinstance(node, ast.Call) and node.args:
        raise StudyError("methods: range_test: options need names, as in range_test(steps=60)")
    keywords = node.keywords if isinstance(node, ast.Call) else []
    options = {str(keyword.arg): _literal("range_test", str(keyword.arg), keyword.value) for keyword in keywords}
    known = {"steps": 100, "low": 1e-7, "high": 10.0, "rule": "steepest"}
    if wrong := sorted(options.keys() - known.keys()):
        raise StudyError(f"methods: range_test has no option {wrong[0]!r}; it has {', '.join(known)}")
    given = known | options
    whole = isinstance(given["steps"], int) and given["steps"] >= 10
    real = all(isinstance(given[key], int | float) for key in ("low", "high"))
    if not (whole and real and 0 < given["low"] < given["high"] < math.inf and given["rule"] in RULES):
        raise StudyError(
            f"methods: range_test needs steps >= 10, 0 < low < high and a rule of {', '.join(RULES)}, not {given}"
        )
    return f"range_test({', '.join(f'{k}={v!r}' for k, v in options.items())})" if options else "range_test"


def ascending(values: Sequence[Any], where: str) -> tuple[float, ...]:
    """Learning rates in order, each once. Raises StudyError."""
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise StudyError(f"{where}: a learning rate must be positive and finite, not {value!r}")
    return tuple(sorted({float(value) for value in values}))


# Building


def default_lr(name: str, probe: str = "") -> float | None:
    """The lr that a user gets without choosing one; None if the optimizer has none."""
    if probe:
        return 1.0  # times what the test finds
    if ":" in name:
        found = inspect.signature(_foreign(name)).parameters.get("lr")
        return found.default if found is not None and isinstance(found.default, (int, float)) else None
    if name.startswith("compose("):
        steps = [part for part in _composition(name)() if isinstance(part, parts.StepSize)]
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
    for part in _composition(name)(lr):
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


def _composition(name: str) -> Callable[..., list[Any]]:
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
    word = _name_of(node)
    cls = _parts().get(word.replace("_", "").lower())
    if cls is None or not isinstance(node, ast.Call | ast.Name) or (isinstance(node, ast.Call) and node.args):
        near = difflib.get_close_matches(word.replace("_", "").lower(), _parts(), n=3)
        names = [_parts()[n].__name__ for n in near] or ["those of `untuned list`"]
        raise StudyError(
            f"methods: compose: {_text(node)!r} is no part; parts are named as in adam, momo(lb=1.0), schedule_free; "
            f"did you mean {', '.join(names)}?"
        )
    options: dict[str, Any] = {}
    for keyword in node.keywords if isinstance(node, ast.Call) else []:
        named = isinstance(keyword.value, ast.Call | ast.Name)
        nested = named and _name_of(keyword.value).replace("_", "").lower() in _parts()
        options[str(keyword.arg)] = (
            _part(keyword.value)(None) if nested else _literal(word, str(keyword.arg), keyword.value)
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
        if options.pop("sha256", "") != _digest(Path(path)):
            raise StudyError(f"schedule: {path} has changed since the study began")
        return Refined(optimizer, path, steps, **options)
    return Schedule(optimizer, _name_of(call), steps, warmup=min(round(warmup * steps), steps - 1), **options)

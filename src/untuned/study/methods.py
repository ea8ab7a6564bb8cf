"""What a study trains with, as people write it: a method, a composition or an optimizer of another package.

adam(betas=(0.9, 0.95))                        a method of `untuned list` with options
prodigy(schedule=wsd(decay=0.1), warmup=0.05)  with a schedule, behind a warm-up over 5 % of the run
compose(adam, momo(lb=1.0), schedule_free)     any parts, as in `untuned.compose`
prodigyopt:Prodigy(weight_decay=0.01)          any torch optimizer that can be imported
adamw(lr=range_test(steps=60))                 with the lr that a learning-rate range test finds, which is paid for
adamw(schedule=linear, budget=0.25)            for a quarter of the steps of the others
"""

import ast
import inspect
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

import untuned
from untuned.schedules import SHAPES, Refined, Schedule
from untuned.study.building import composition, digest
from untuned.study.syntax import StudyError, literal, name_of, outside_quotes, text_of, tuples

RANGE_TEST = "adamw(lr=range_test(steps=60), schedule=linear, warmup=0.05)"
SHORT = {"range-test": RANGE_TEST, "range_test": RANGE_TEST}
RULES = ("steepest", "valley")


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
    readable = outside_quotes(text, lambda part: re.sub(r"(?<=\w):(?=[A-Za-z_])", "._colon_.", part))
    try:
        tree = ast.parse(f"[{readable}]", mode="eval").body
    except SyntaxError as error:
        raise StudyError(f"methods: cannot read {text!r}: {error.msg}; write momo,adam(betas=(0.9, 0.95))") from None
    if not isinstance(tree, ast.List):
        raise StudyError(f"methods: cannot read {text!r}; write momo,adam(betas=(0.9, 0.95))")
    return [_method(node) for node in tree.elts]


def _method(node: ast.expr) -> MethodSpec:
    source, keywords, composed = text_of(node), [], False
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
        name = f"compose({', '.join(text_of(part).removesuffix('()') for part in node.args)})"
        composition(name)  # refuses what is no part
    elif isinstance(name_node := node.func if isinstance(node, ast.Call) else node, ast.Name | ast.Attribute):
        name = text_of(name_node)
        name = name if ":" in name else known_method(name)
    else:
        name = known_method(source)
    options = {key: literal(name, key, value) for key, value in given.items()}
    found = MethodSpec(name, options, None, *_schedule_of(name, own))
    if "lr" not in own:
        return found
    if name_of(own["lr"]) == "range_test":
        return found._replace(lrs=(1.0,), probe=_range_test(own["lr"]))
    value = literal(name, "lr", own["lr"])
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


def _schedule_of(name: str, own: dict[str, ast.expr]) -> tuple[str | None, float | None, float]:
    schedule = parse_schedule(text_of(own["schedule"])) if "schedule" in own else None
    shares: list[float] = []
    for key, usual, end in (("warmup", 0.0, "below 1"), ("budget", 1.0, "at most 1")):
        value = literal(name, key, own[key]) if key in own else usual
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
        shape = name_of(node)
        arguments = [ast.literal_eval(value) for value in (node.args if isinstance(node, ast.Call) else [])]
        keywords = node.keywords if isinstance(node, ast.Call) else []
        options = {str(keyword.arg): tuples(ast.literal_eval(keyword.value)) for keyword in keywords}
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
        found = digest(path)
        Refined(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0), path, 10, **{"power": 2} | {
            key: options[key] for key in ("power", "tau") if key in options
        })  # fmt: skip
    except (OSError, TypeError, ValueError) as error:
        raise StudyError(f"schedule: {error}") from None
    if options.pop("sha256", found) != found:
        raise StudyError(f"schedule: {path} has changed since the study began")
    said = [repr(arguments[0]), *(f"{k}={v!r}" for k, v in options.items()), f"sha256={found!r}"]
    return f"refined({', '.join(said)})"


def _range_test(node: ast.expr) -> str:
    if isinstance(node, ast.Call) and node.args:
        raise StudyError("methods: range_test: options need names, as in range_test(steps=60)")
    keywords = node.keywords if isinstance(node, ast.Call) else []
    options = {str(keyword.arg): literal("range_test", str(keyword.arg), keyword.value) for keyword in keywords}
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

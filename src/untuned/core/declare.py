"""Declarations of a part: slots, numbers and hyper-parameters with their ranges."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportPrivateImportUsage=false
# torch's stubs leave types unknown, and its multi-tensor functions have private names.

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch


@dataclasses.dataclass(frozen=True)
class Slot:
    key: str
    start: str  # "zeros", or "start": a copy of the parameter when its first step begins


@dataclasses.dataclass(frozen=True)
class Number:
    first: float | str | tuple[float, ...]  # a value, or the name of the hyper-parameter that holds it
    key: str
    each: bool  # one value per tensor, whatever the scope of the part


@dataclasses.dataclass(frozen=True)
class Hyper:
    key: str
    index: int | None = None  # position in a tuple-valued hyper-parameter: x.beta1 is betas[0]


def slot(key: str, start: str = "zeros") -> Any:
    """Per-parameter state under `state[p][key]`, shaped like the parameter.

    `start="start"` begins as a copy of the parameter, taken when its first step begins.
    """
    return Slot(key, start)


def number(first: float | str | tuple[float, ...] = 0.0, key: str = "", each: bool = False) -> Any:
    """A float64 number in the scope of its part (model, group or tensor); `each=True` keeps one per tensor.

    `first` is the starting value, or the name of the hyper-parameter that holds it. A number of the model or a group
    is visible as `param_groups[i][key]`, one per tensor as `state[p][key]`; `key` defaults to the letter.
    """
    return Number(first, key, each)


def hyper(*, default: Any, within: str) -> Any:
    """A hyper-parameter whose numbers must lie within an interval, written as in mathematics: "[0, 1)", "(0, inf]"."""
    return dataclasses.field(default=default, metadata={"interval": within})


def inside(value: float, interval: str) -> bool:
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    return above and below and not math.isnan(value)


_COUNT = {1: "one number", 2: "two numbers"}


def _is_number(value: object, interval: str) -> bool:
    if isinstance(value, torch.Tensor):  # an lr may be a one-element tensor; its value is never read on the host
        return value.numel() == 1 and value.is_floating_point()
    return isinstance(value, int | float) and not isinstance(value, bool) and inside(float(value), interval)


def check(part: str, field: dataclasses.Field[Any], value: object) -> None:
    """Raise `TypeError` or `ValueError` in one sentence unless `value` fits the declared default and interval."""
    default = field.default
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise TypeError(f"{part}: {field.name} must be True or False, not {value!r}.")
        return
    if isinstance(default, str):
        choices = field.metadata["choices"]
        if value not in choices:
            raise ValueError(f"{part}: {field.name} must be one of {', '.join(choices)}, not {value!r}.")
        return
    interval = field.metadata["interval"]
    if isinstance(default, tuple):
        values = tuple(value) if isinstance(value, tuple | list) else ()
        good = len(values) == len(default) and all(_is_number(v, interval) for v in values)
        wanted = f"{_COUNT.get(len(default), f'{len(default)} numbers')} in {interval}"
        numeric = bool(values) and all(isinstance(v, int | float | torch.Tensor) for v in values)
    else:
        good, wanted = _is_number(value, interval), f"a number in {interval}"
        numeric = isinstance(value, int | float | torch.Tensor) and not isinstance(value, bool)
    if not good:
        error = ValueError if numeric else TypeError
        raise error(f"{part}: {field.name} must be {wanted}, not {value!r}.")


def choice(*, default: str, others: tuple[str, ...]) -> Any:
    """A structural option: one of a few words, the same for all groups."""
    return dataclasses.field(default=default, metadata={"choices": (default, *others)})

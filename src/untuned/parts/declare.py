"""Declarations of a part: slots, numbers, signals, and hyper-parameters with their ranges."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportPrivateImportUsage=false
# torch's stubs leave types unknown, and its multi-tensor functions have private names.

from __future__ import annotations

import dataclasses
import numbers
from typing import Any

import torch

SLOT_DTYPES = (torch.float64, torch.float32, torch.bfloat16)  # in float16 the squares of gradients vanish
PARAMETER_DTYPES = (*SLOT_DTYPES, torch.float16)


@dataclasses.dataclass(frozen=True)
class Slot:
    key: str
    start: str | float  # a value, or "start": a copy of the parameter when its first step begins
    total: bool = False
    shape: Any = None  # None: that of the parameter; "slice"; or a function of the parameter's shape
    kept: bool = True  # in state dicts; scratch is not


@dataclasses.dataclass(frozen=True)
class Number:
    first: float | str  # a value, or the name of the hyper-parameter that holds it
    key: str
    each: bool  # one value per tensor, whatever the scope of the part
    size: str  # the hyper-parameter that says how many there are, or has one for each, if it is a vector
    seldom: bool  # most steps leave it as it is


@dataclasses.dataclass(frozen=True)
class Hyper:
    key: str
    index: int | None = None  # position in a tuple-valued hyper-parameter: x.beta1 is betas[0]


@dataclasses.dataclass(frozen=True)
class Signal:
    key: str  # the keyword of step()
    within: str


def slot(key: str, start: str | float = 0.0, total: bool = False, shape: Any = None) -> Any:
    """Per-parameter state under `state[p][key]`, shaped like the parameter, which begins with the value `start`.

    `start="start"` begins as a copy of the parameter, taken when its first step begins. A `total` of all steps, in
    which rounding would stay for good, has float32 at least. `shape="slice"`: a vector of every `slice_p`-th element,
    for the verb `measure` of a step size with that field. `shape=f`: a tensor of the shape `f(p.shape)`, as a factor
    of a matrix, for the verb `reform` alone.
    """
    return Slot(key, start, total, shape)


def scratch(key: str) -> Any:
    """A tensor shaped like the parameter that `reform` writes and later verbs of the same step read; not saved."""
    return Slot(key, 0.0, kept=False)


def signal(key: str, within: str = "(-inf, inf)") -> Any:
    """A number that the caller hands to every step, `step(key=value)`, which is then required; equal on all ranks.

    A step refuses a value outside the interval, where looking at it is free; on a GPU only what is not finite, and then
    it is skipped.
    """
    return Signal(key, within)


def number(
    first: float | str = 0.0,
    key: str = "",
    each: bool = False,
    size: str = "",
    seldom: bool = False,
) -> Any:
    """A float64 number in the scope of its part (model, group, tensor or row); `each=True` keeps one per tensor.

    `first` is the starting value, or the name of the hyper-parameter that holds it. A number of the model or a group is
    visible as `param_groups[i][key]`, one per tensor as `state[p][key]`; `key` defaults to the letter. `size` names a
    hyper-parameter and makes a vector: with as many numbers as it says (one per sample of the data), or, if it is a
    tuple, with as many as that has. `seldom` tells kernels that most steps leave it as it is: they may then move on
    with the old value, and correct in the steps that changed it.
    """
    return Number(first, key, each, size, seldom)


def hyper(*, default: Any, within: str, fixed: bool = False) -> Any:
    """A hyper-parameter whose numbers must lie within an interval, written as in mathematics: "[0, 1)", "(0, inf]".

    A `fixed` one shapes the state: it is the same for all groups and is read from `self`, not from `x`.
    """
    return dataclasses.field(default=default, metadata={"interval": within, "fixed": fixed})


def shapes(field: dataclasses.Field[Any]) -> bool:
    """Whether an option shapes the method, and so is not a number that each group may have its own of."""
    return isinstance(field.default, bool | str) or field.metadata["fixed"]


def inside(value: float, interval: str) -> bool:
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    return above and below  # false for NaN


def is_real(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, numbers.Real)


def check_parameter(name: str, p: Any) -> None:
    if not isinstance(p, torch.Tensor):
        raise TypeError(f"{name}: parameters must be tensors, not {p!r}.")
    if p.requires_grad and p.dtype not in PARAMETER_DTYPES:  # what is frozen may be quantised
        raise TypeError(f"{name}: parameters must be float64, 32, 16 or bfloat16, not {p.dtype}.")


def check_flag(part: str, name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{part}: {name} must be True or False, not {value!r}.")
    return value


def check(part: str, field: dataclasses.Field[Any], value: Any) -> Any:
    """The value to keep if it fits the declared default and interval; else `TypeError` or `ValueError` in one sentence.

    Numbers are kept as Python's own, since checkpoints must load with `weights_only=True` and NumPy's do not; only lr
    may be a one-element tensor.
    """
    default = field.default
    if isinstance(default, bool):
        return check_flag(part, field.name, value)
    if isinstance(default, str):
        choices = field.metadata["choices"]
        if value not in choices:
            raise ValueError(f"{part}: {field.name} must be one of {', '.join(choices)}, not {value!r}.")
        return value
    interval = field.metadata["interval"]
    if field.name == "lr" and isinstance(value, torch.Tensor) and value.is_floating_point():
        if value.numel() != 1 or not inside(value.item(), interval):
            raise ValueError(f"{part}: lr must be a number or a one-element tensor in {interval}, not {value!r}.")
        return value
    whole, free = isinstance(default, int), "..." in str(field.type)  # tuple[float, ...] may have any length
    if isinstance(default, tuple):
        count = "one or more" if free else "two" if len(default) == 2 else len(default)
        values, wanted = value, f"{count} numbers in {interval}"
    else:
        values, wanted = (value,), f"a {'whole ' if whole else ''}number in {interval}"
    sentence = f"{part}: {field.name} must be {wanted}, not {value!r}."
    if not isinstance(values, tuple | list) or not all(map(is_real, values)):
        raise TypeError(sentence)
    kept = tuple(int(v) if isinstance(v, numbers.Integral) else float(v) for v in values)
    right = len(kept) > 0 if free else len(kept) == (len(default) if isinstance(default, tuple) else 1)
    if not right or not all(inside(v, interval) for v in kept) or (whole and not isinstance(kept[0], int)):
        raise ValueError(sentence)
    return kept if isinstance(default, tuple) else kept[0]


def choice(*, default: str, others: tuple[str, ...]) -> Any:
    """A structural option: one of a few words, the same for all groups."""
    return dataclasses.field(default=default, metadata={"choices": (default, *others)})

"""What an optimizer is made of: parts and options, and what follows from them for state and groups."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportPrivateImportUsage=false
# torch's stubs leave types unknown, and its multi-tensor functions have private names.

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from untuned.parts import fit
from untuned.parts.declare import SLOT_DTYPES, Number, Slot, check_flag, is_real
from untuned.parts.kinds import Direction, GradientTransform, Iterate, StepSize, StepTransform, WeightDecay
from untuned.parts.place import Parts
from untuned.recipe.plan import read_by_model_decisions

LOW_PRECISION = (torch.bfloat16, torch.float16)
COMPENSATION = "compensation"  # what rounding took from a low-precision parameter: x.p is their sum
ROLES = {"direction": Direction, "step_size": StepSize, "iterate": Iterate, "decay": WeightDecay}
CHAINS = {"gradient": GradientTransform, "around": StepTransform}
Group = dict[str, Any]
Named = tuple[Any, Number]  # a number and the part that declares it


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
    """The parts of an optimizer, by the label of the groups they serve, and its options.

    Step size and iterate are the same for all labels; without a partition there is one label, None. Raises `TypeError`
    or `ValueError` if parts do not fit together or an option is wrong.
    """

    title: str
    variants: dict[Any, Parts]
    maximize: bool = False
    skip_nonfinite: bool = True
    slot_dtype: torch.dtype | None = None
    kahan_sum: bool | None = None
    stochastic_rounding: bool = False
    clip_grad_norm: float | None = None

    def __post_init__(self) -> None:
        for name in ("maximize", "skip_nonfinite", "stochastic_rounding"):
            check_flag(self.title, name, getattr(self, name))
        both = self.kahan_sum is not None and check_flag(self.title, "kahan_sum", self.kahan_sum)
        if both and self.stochastic_rounding:
            raise ValueError(f"{self.title}: stochastic_rounding and kahan_sum have one purpose: choose one of them.")
        clip = self.clip_grad_norm
        if clip is not None and not (is_real(clip) and clip > 0):
            raise ValueError(f"{self.title}: clip_grad_norm must be None or a number above 0, not {clip!r}.")
        if self.slot_dtype not in (None, *SLOT_DTYPES):
            raise TypeError(f"{self.title}: slot_dtype must be None, float64, 32 or bfloat16, not {self.slot_dtype!r}.")
        for parts in self.variants.values():
            fit.check(parts)

    @property
    def parts(self) -> Parts:
        """The parts by their roles; with a partition those of its first label."""
        return next(iter(self.variants.values()))

    @functools.cached_property
    def all_parts(self) -> list[Any]:
        return list(dict.fromkeys(part for parts in self.variants.values() for part in parts.values()))

    def of(self, group: Group) -> Parts:
        """The parts that serve a group."""
        if None in self.variants:
            return self.parts
        if (label := group.get("label")) not in [*self.variants]:
            raise ValueError(
                f"{self.title}: the 'label' of a group must be one of {', '.join(map(repr, self.variants))}, not "
                f"{label!r}: it says which parts serve the group."
            )
        return self.variants[label]

    @functools.cached_property
    def method(self) -> str:
        """What checkpoints call it: the parts, with the options that shape the state."""
        return self.written(operator.attrgetter("shape"))

    def written(self, name: Any) -> str:
        """The parts joined by their names; those that differ between labels in braces."""
        found: list[str] = []
        variants = dict(sorted(self.variants.items(), key=lambda one: str(one[0])))  # however a dict was written
        for role in dict.fromkeys(role for parts in variants.values() for role in parts):
            names = {label: name(parts[role]) for label, parts in variants.items() if role in parts}
            same = len({*names.values()}) == 1 and len(names) == len(self.variants)
            found.append(
                next(iter(names.values()))
                if same
                else "{" + ", ".join(f"{label}: {one}" for label, one in names.items()) + "}"
            )
        return " x ".join(found)

    def line(self, i: int, group: Group) -> str:
        """A group in a line."""
        keys = [key for part in self.of(group).values() for key in part.hypers()]
        values = ", ".join(f"{key}={group[key]}" for key in (["label"] if "label" in group else []) + keys)
        size = sum(p.numel() for p in group["params"])
        return f"  group {i}: {len(group['params'])} tensors, {size:,} parameters, {values}"

    @functools.cached_property
    def has_modes(self) -> bool:
        return "modes" in self.parts["iterate"].gives

    @functools.cached_property
    def driven(self) -> bool:
        """Whether a part reads the loss."""
        return any("loss" in part.needs for part in self.all_parts)

    @functools.cached_property
    def samples(self) -> int | None:
        """How many samples the data has, if a part reads their numbers."""
        return next((part.samples for part in self.all_parts if "sample_ids" in part.needs), None)

    @functools.cached_property
    def signals(self) -> list[tuple[str, str]]:
        return sorted({one for part in self.all_parts for one in part.signals()})

    @functools.cached_property
    def shared(self) -> list[tuple[Any, str]]:
        """Parts and options of theirs that must be equal in all groups."""
        found = map(read_by_model_decisions, self.variants.values())
        return list(dict.fromkeys(one for of_label in found for one in of_label))

    @functools.cached_property
    def by_rows(self) -> bool:
        return any(part.scope == "row" for part in self.all_parts)

    def corrects(self, parts: Parts) -> bool:
        """Whether the direction divides out the sum of its weights, rho, which is kept per tensor then."""
        return getattr(parts["direction"], "correct", False)

    def numbers(self, group: Group, per_tensor: bool) -> Iterator[Named]:
        for part in self.of(group).values():
            for n in part.numbers().values():
                if part.per_tensor(n) == per_tensor:
                    yield part, n

    def slots(self, p: torch.Tensor, group: Group) -> dict[str, Slot]:
        """The slots of a parameter, by their keys."""
        parts = self.of(group)
        slots = {s.key: s for part in parts.values() for s in part.slots().values()}
        moved = any(part.reads_displacement for part in parts.values()) and not self.stochastic_rounding
        if (moved if self.kahan_sum is None else self.kahan_sum) and p.dtype in LOW_PRECISION:
            slots[COMPENSATION] = Slot(COMPENSATION, 0.0)
        return slots

    def dtype(self, p: torch.Tensor, s: Slot) -> torch.dtype:
        dtype = self.slot_dtype or p.dtype
        return torch.float32 if dtype in LOW_PRECISION and (s.total or not self.slot_dtype) else dtype

    @property
    def every(self) -> int:
        return self.parts["step_size"].every


def variants_of(given: dict[str, Any]) -> dict[Any, dict[str, Any]]:
    """The parts by label and role, from one part, list of transforms or dict of such for each role."""
    partitions = {role: value for role, value in given.items() if isinstance(value, Mapping)}
    for role, value in partitions.items():
        same = {*value} == {*next(iter(partitions.values()))} and None not in value
        if role in ("step_size", "iterate") or not (same and value):
            raise TypeError(
                f"{role} cannot be divided by labels like this: the step size and the iterate are one for all, and all "
                f"dicts have the same labels, none of them None; this one has {', '.join(map(repr, value)) or 'none'}."
            )
    variants: dict[Any, dict[str, Any]] = {}
    for label in next(iter(partitions.values()), {None: None}):
        parts = variants[label] = {}
        for role, value in given.items():
            mine = value[label] if role in partitions else value
            kind = (ROLES | CHAINS)[role]
            if role in CHAINS and not isinstance(mine, Sequence):
                raise TypeError(f"{role} must be a list of {kind.__name__} parts, not {mine!r}.")
            chain = {f"{role} {i}": one for i, one in enumerate(mine, start=1)} if role in CHAINS else {role: mine}
            for name, part in chain.items():
                if not isinstance(part, kind):
                    raise TypeError(f"{name} must be a {kind.__name__} part, not {part!r}.")
                before = [n for those in variants.values() for n, one in those.items() if one is part and n != name]
                sums = part.scope == "model" and {"look", "measure", "watch"} & {*dir(part)}  # taken place by place
                if before and (part in parts.values() or sums):
                    raise TypeError(f"{name} is the {part.name} that is {before[0]} already. Give another one.")
                parts[name] = part
    return variants

"""Slots and numbers: their creation, their dtypes and devices, and loading them as they were declared.

Every tensor is keyed by a parameter or lives in a group, so that `torch.save`, `weights_only=True` and
`torch.distributed.checkpoint` take it. torch casts what it loads to the parameter's dtype; `restore` undoes that.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportPrivateImportUsage=false
# torch's stubs leave types unknown, and its multi-tensor functions have private names.

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from operator import is_, itemgetter
from typing import TYPE_CHECKING, Any

import torch

from untuned.core.buckets import Bucket, Group, sliced
from untuned.core.declare import Number, Slot
from untuned.core.frames import COMPENSATION, LOW_PRECISION, number_from

if TYPE_CHECKING:
    from untuned.core.engine import Optimizer


def _slots(opt: Optimizer, p: torch.Tensor) -> dict[str, Slot]:
    slots = {s.key: s for part in opt.parts.values() for s in part.slots().values()}
    kahan = any(part.reads_displacement for part in opt.parts.values()) if opt.kahan_sum is None else opt.kahan_sum
    if kahan and p.dtype in LOW_PRECISION:
        slots[COMPENSATION] = Slot(COMPENSATION, 0.0)
    return slots


def _numbers(opt: Optimizer, per_tensor: bool) -> Iterator[tuple[Any, Number]]:
    for part in opt.parts.values():
        for n in part.numbers().values():
            if part.per_tensor(n) == per_tensor:
                yield part, n


def _seen(opt: Optimizer, p: torch.Tensor, key: str) -> torch.Tensor:
    """What of a parameter a slot is shaped like."""
    rule = opt.parts["step_size"]
    return sliced(p, rule.every) if any(s.key == key for s in rule.slots().values()) else p.detach()


def slot_dtype(opt: Optimizer, p: torch.Tensor) -> torch.dtype:
    return opt.slot_dtype or (torch.float32 if p.dtype in LOW_PRECISION else p.dtype)


def _first(group: Group, part: Any, n: Number, device: torch.device) -> torch.Tensor:
    first = number_from(group[n.first] if isinstance(n.first, str) else n.first, device)
    return first.repeat(getattr(part, n.size)) if n.size else first


def create_numbers(opt: Optimizer, group: Group) -> None:
    """The numbers of a new group: those of the model are shared with the first group."""
    first = opt.param_groups[0]
    group["method"] = opt.recipe
    for key in ("steps", "skipped"):
        group[key] = first.get(key, number_from(0.0, opt.device))
    for part, n in _numbers(opt, per_tensor=False):
        shared = part.scope == "model" and n.key in first
        group[n.key] = first[n.key] if shared else _first(group, part, n, opt.device)


def create_slots(opt: Optimizer, p: torch.Tensor, group: Group) -> None:
    held: dict[str, torch.Tensor] = {"step": torch.zeros((), dtype=torch.float32, device=p.device)}
    if opt.corrects:
        held["rho"] = number_from(0.0, p.device)
    for key, s in _slots(opt, p).items():
        first = 0.0 if isinstance(s.start, str) else s.start
        held[key] = torch.full_like(_seen(opt, p, key), first, dtype=slot_dtype(opt, p))
    for part, n in _numbers(opt, per_tensor=True):
        held[n.key] = _first(group, part, n, p.device)
    opt.state[p].update(held)


def fill_start_slots(opt: Optimizer, p: torch.Tensor) -> None:
    """Start points are taken when the first step begins, because weights are often loaded after construction."""
    for key, s in _slots(opt, p).items():
        if s.start == "start":
            opt.state[p][key].copy_(_seen(opt, p, key))


def follow_parameter(opt: Optimizer, p: torch.Tensor) -> None:
    """Move the state of a parameter that was moved or converted after the optimizer was built."""
    held, dtype = opt.state[p], slot_dtype(opt, p)
    slots = _slots(opt, p)
    if held["step"].device != p.device:
        for key in held:
            held[key] = held[key].to(p.device)
        for group in opt.param_groups:
            for key, value in group.items():
                if isinstance(value, torch.Tensor) and key in number_keys(opt):
                    group[key] = value.to(opt.device)
    for key in slots:
        if key not in held:
            held[key] = torch.zeros_like(p.detach(), dtype=dtype)
        elif held[key].dtype != dtype:
            held[key] = held[key].to(dtype)
    if COMPENSATION not in slots:
        held.pop(COMPENSATION, None)


def number_keys(opt: Optimizer) -> set[str]:
    return {"steps", "skipped"} | {n.key for _, n in _numbers(opt, per_tensor=False)}


def remember_numbers(opt: Optimizer, buckets: list[Bucket]) -> None:
    """Keep what x.was_... reads, and the lr of the step."""
    keys = {"lr"} | {n.key for _, n in _numbers(opt, per_tensor=False) if not n.size}
    copies: dict[int, Any] = {}  # groups share the numbers of the model
    for group in opt.param_groups:
        for key in keys:
            value = group[key]
            copies[id(value)] = value.clone() if isinstance(value, torch.Tensor) else value
    opt.before = {id(group["params"]): {key: copies[id(group[key])] for key in keys} for group in opt.param_groups}
    each = [n.key for _, n in _numbers(opt, per_tensor=True)]
    for bucket in buckets:
        bucket.before = {key: bucket.numbers[key].clone() for key in each}


def stack_numbers(opt: Optimizer, bucket: Bucket) -> None:
    """Keep the counters and numbers of a bucket's tensors as rows of one tensor each, and views of them in the states:
    then one operation serves all tensors."""
    for key in ("step", *(("rho",) if opt.corrects else ()), *(n.key for _, n in _numbers(opt, per_tensor=True))):
        bucket.numbers[key] = torch.stack([held[key] for held in bucket.states])
        bucket.views[key] = list(bucket.numbers[key].unbind())
        for held, view in zip(bucket.states, bucket.views[key], strict=True):
            held[key] = view


def still_stacked(bucket: Bucket) -> bool:
    """Whether the states hold the views they were given."""
    return all(all(map(is_, map(itemgetter(key), bucket.states), held)) for key, held in bucket.views.items())


def tie_numbers(opt: Optimizer) -> None:
    """Make the numbers of the model one object again, after loading or copying gave each group its own."""
    first = opt.param_groups[0]
    shared = {"steps", "skipped"} | {n.key for part, n in _numbers(opt, per_tensor=False) if part.scope == "model"}
    for group in opt.param_groups:
        for key in number_keys(opt):
            source = first if key in shared else group
            if key in source:
                group[key] = number_from(source[key], opt.device)  # the object itself, if it is a number already


def check_loadable(opt: Optimizer, state_dict: dict[str, Any]) -> None:
    """Refuse a checkpoint of another method before anything is loaded."""
    name = opt._title
    if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= state_dict.keys():  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"{name}: a state dict has the keys 'state' and 'param_groups'; this one has not.")
    for group in state_dict["param_groups"]:
        if (method := group.get("method", opt.recipe)) != opt.recipe:
            raise ValueError(
                f"{name}: another method saved this checkpoint, {method}, not {opt.recipe}. "
                f"Load it into the optimizer that saved it."
            )
    numbers = {n.key for _, n in _numbers(opt, per_tensor=True)} | ({"step", "rho"} if opt.corrects else {"step"})
    for i, p in _saved_parameters(opt, state_dict):
        held = state_dict["state"].get(i)
        if not held:
            if p.requires_grad:  # torch.distributed.checkpoint leaves the others out
                raise ValueError(
                    f"{name}: this checkpoint has no state for parameter {i}: it is cut short, or the parameter was "
                    f"frozen when it was saved. In the latter case load it first and unfreeze the parameter then."
                )
            continue
        wanted = numbers | _slots(opt, p).keys()
        if wrong := sorted((wanted ^ held.keys()) - {COMPENSATION}):
            what = "has no" if wrong[0] in wanted else "has a foreign"
            raise ValueError(
                f"{name}: this checkpoint {what} {wrong[0]!r} for parameter {i}: another method saved it. "
                f"Load it into the optimizer that saved it."
            )
        for key in (key for key in _slots(opt, p) if key in held):
            wanted_shape = tuple(_seen(opt, p, key).shape)
            if (shape := tuple(getattr(held[key], "shape", ()))) != wanted_shape:
                raise ValueError(
                    f"{name}: {key!r} of parameter {i} has shape {shape} in this checkpoint, the parameter needs "
                    f"{wanted_shape}. Build the optimizer on the model that was saved, with its options."
                )


def _saved_parameters(opt: Optimizer, state_dict: dict[str, Any]) -> Iterator[tuple[Any, torch.Tensor]]:
    saved = chain.from_iterable(g["params"] for g in state_dict["param_groups"])
    return zip(saved, chain.from_iterable(g["params"] for g in opt.param_groups), strict=False)


def restore(opt: Optimizer, state_dict: dict[str, Any]) -> None:
    """Give every loaded tensor its declared dtype, and storage of its own; fill in what older versions did not save."""
    for group in opt.param_groups:
        for key, default in opt.defaults.items():
            group.setdefault(key, default)
        group.setdefault("training", True)
        group["method"] = opt.recipe
        for key in ("steps", "skipped"):
            group.setdefault(key, number_from(0.0, opt.device))
        for part, n in _numbers(opt, per_tensor=False):
            if n.key not in group:
                group[n.key] = _first(group, part, n, opt.device)
    for i, p in _saved_parameters(opt, state_dict):
        held = state_dict["state"].get(i)
        if not held:
            continue
        slots = _slots(opt, p)
        for key, value in held.items():
            dtype = slot_dtype(opt, p) if key in slots else torch.float32 if key == "step" else torch.float64
            opt.state[p][key] = torch.as_tensor(value).detach().to(device=p.device, dtype=dtype, copy=True)
    for group in opt.param_groups:
        for p in group["params"]:
            if p.requires_grad and "step" not in opt.state[p]:
                create_slots(opt, p, group)
    tie_numbers(opt)

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
from typing import TYPE_CHECKING, Any

import torch

from untuned.core.buckets import Bucket, Group, local, sliced
from untuned.core.declare import Number, Slot, check, check_flag, is_real
from untuned.core.frames import COMPENSATION, LOW_PRECISION, number_from

if TYPE_CHECKING:
    from untuned.core.engine import Optimizer


def _slots(opt: Optimizer, p: torch.Tensor) -> dict[str, Slot]:
    slots = {s.key: s for part in opt.parts.values() for s in part.slots().values()}
    moved = any(part.reads_displacement for part in opt.parts.values()) and not opt.stochastic_rounding
    if (moved if opt.kahan_sum is None else opt.kahan_sum) and p.dtype in LOW_PRECISION:
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


def _dtype(opt: Optimizer, p: torch.Tensor, s: Slot) -> torch.dtype:
    dtype = opt.slot_dtype or p.dtype
    return torch.float32 if dtype in LOW_PRECISION and (s.total or not opt.slot_dtype) else dtype


def _first(group: Group, part: Any, n: Number, device: torch.device) -> torch.Tensor:
    first = number_from(group[n.first] if isinstance(n.first, str) else n.first, device)
    return first.repeat(part.length(n)) if n.size else first


def create_numbers(opt: Optimizer, group: Group) -> None:
    """The numbers of a new group: those of the model are shared with the first group."""
    first = opt.param_groups[0]
    group["method"] = opt.recipe
    for key in ("steps", "skipped"):
        group[key] = first.get(key, number_from(0.0, opt.device))
    for part, n in _numbers(opt, per_tensor=False):
        shared = part.scope == "model" and n.key in first
        group[n.key] = first[n.key] if shared else _first(group, part, n, opt.device)


def fresh(opt: Optimizer, p: torch.Tensor, group: Group) -> dict[str, torch.Tensor]:
    """The state of a parameter before its first step."""
    held: dict[str, torch.Tensor] = {"step": torch.zeros((), dtype=torch.float32, device=p.device)}
    if opt.corrects:
        held["rho"] = number_from(0.0, p.device)
    for key, s in _slots(opt, p).items():
        value = s.start if isinstance(s.start, float) else 0.0
        held[key] = torch.full_like(_seen(opt, p, key), value, dtype=_dtype(opt, p, s))
    for part, n in _numbers(opt, per_tensor=True):
        held[n.key] = _first(group, part, n, p.device)
    return held


def fill_start_slots(opt: Optimizer, bucket: Bucket) -> None:
    """Start points are taken when the first step begins, because weights are often loaded after construction.

    What decides is the count of steps, which is in the state; only on a CPU can it be read without waiting.
    """
    steps = bucket.numbers["step"]
    on_host = steps.device.type == "cpu"
    bucket.begun = not on_host or bool(steps.numpy().all())
    for p, held in () if bucket.begun and on_host else zip(bucket.params, bucket.states, strict=True):
        for key, s in _slots(opt, p).items():
            if s.start == "start":
                slot = local(held[key])
                slot.copy_(torch.where(held["step"] == 0, local(_seen(opt, p, key)), slot))


def own(opt: Optimizer, saving: bool = False) -> None:
    """Give every tensor of the groups that may be trained its state, and let go of what belonged to others.

    Not before the first step: trainers shard models, and exchange the tensors in the groups, after construction.
    What others have learned is only let go when the optimizer is saved: DeepSpeed steps with one group at a time.
    """
    members = {p: group for group in opt.param_groups for p in group["params"]}
    for p in [p for p, held in opt.state.items() if p not in members and (saving or not held.get("step"))]:
        del opt.state[p]
    for p, group in members.items():
        if opt.state.get(p):
            _follow(opt, p)
        elif p.requires_grad or p.grad is not None:
            opt.state[p].update(fresh(opt, p, group))
    tie_numbers(opt)


def _follow(opt: Optimizer, p: torch.Tensor) -> None:
    """Move the state of a parameter that was moved or converted after its first step."""
    held, slots = opt.state[p], _slots(opt, p)
    if held["step"].device != p.device:
        for key in held:
            held[key] = held[key].to(p.device)
    for key, s in slots.items():
        held[key] = (held[key] if key in held else torch.zeros_like(p.detach())).to(_dtype(opt, p, s))
    if COMPENSATION not in slots:
        held.pop(COMPENSATION, None)


def numbers_of_model(opt: Optimizer) -> list[torch.Tensor]:
    """Those of one truth for the whole model, but for long vectors."""
    found = _numbers(opt, per_tensor=False)
    return [opt.param_groups[0][n.key] for part, n in found if part.scope == "model" and not n.size]


def number_keys(opt: Optimizer) -> set[str]:
    return {"steps", "skipped"} | {n.key for _, n in _numbers(opt, per_tensor=False)}


def remember_numbers(opt: Optimizer, buckets: list[Bucket]) -> None:
    """Keep what x.was_... reads, and the lr of the step."""
    keys = {"lr"} | {n.key for _, n in _numbers(opt, per_tensor=False) if not n.size}
    values = {id(group[key]): group[key] for group in opt.param_groups for key in keys}  # groups share the model's
    copies = {i: value.clone() if isinstance(value, torch.Tensor) else value for i, value in values.items()}
    opt.before = {id(group["params"]): {key: copies[id(group[key])] for key in keys} for group in opt.param_groups}
    each = [n.key for _, n in _numbers(opt, per_tensor=True)]
    for bucket in buckets:
        bucket.before = {key: bucket.numbers[key].clone() for key in each}


def stack_numbers(opt: Optimizer, bucket: Bucket) -> Bucket:
    """Keep the counters and numbers of a bucket's tensors as rows of one tensor each, and views of them in the states:
    then one operation serves all tensors."""
    for key in ("step", *(("rho",) if opt.corrects else ()), *(n.key for _, n in _numbers(opt, per_tensor=True))):
        rows = [held[key] for held in bucket.states]
        bucket.numbers[key] = torch.stack(rows) if rows else number_from(0.0, bucket.device).new_zeros(0)
        for held, view in zip(bucket.states, bucket.numbers[key].unbind(), strict=True):
            held[key] = view
    return bucket


def tensors(opt: Optimizer) -> list[torch.Tensor]:
    """All slots and numbers of tensors, one state after the other: that users replace none of them is seen by this."""
    return list(chain.from_iterable(map(dict.values, opt.state.values())))


def tie_numbers(opt: Optimizer) -> None:
    """Make the numbers of the model one object again, after loading or copying gave each group its own."""
    first = opt.param_groups[0]
    shared = {"steps", "skipped"} | {n.key for part, n in _numbers(opt, per_tensor=False) if part.scope == "model"}
    for group in opt.param_groups:
        for key in number_keys(opt):
            source = first if key in shared else group
            if key in source:
                group[key] = number_from(source[key], opt.device)  # the object itself, if it is a number already


def check_loadable(opt: Optimizer, state_dict: Any) -> None:
    """Refuse what cannot be loaded before anything is; the error names the first thing that does not fit."""
    name = opt._title
    if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= state_dict.keys():
        raise ValueError(f"{name}: a state dict has the keys 'state' and 'param_groups'; this one has not.")
    groups, states = state_dict["param_groups"], state_dict["state"]
    if not isinstance(states, dict):
        raise TypeError(f"{name}: 'state' of a state dict must be a dict, not a {type(states).__name__}.")
    if not isinstance(groups, list | tuple) or not all(isinstance(g, dict) for g in groups):
        raise TypeError(f"{name}: 'param_groups' of a state dict must be a list of dicts, not {groups!r}.")
    for group in groups:
        saved = group.get("params")
        if not isinstance(saved, list | tuple) or not all(isinstance(i, int | str) for i in saved):
            raise TypeError(f"{name}: 'params' of a saved group must list the parameters, not be {saved!r}.")
        if (method := group.get("method", opt.recipe)) != opt.recipe:
            raise ValueError(
                f"{name}: another method saved this checkpoint, {method}, not {opt.recipe}. "
                f"Load it into the optimizer that saved it."
            )
    ours = any("method" in group for group in groups)
    elsewhere = "" if ours else " If another package saved it, go on with untuned.migrate(optimizer, state_dict)."
    ids = [i for group in groups for i in group["params"]]
    if len({*ids}) < len(ids):
        raise ValueError(f"{name}: 'params' of this checkpoint names a parameter twice. It is not one that was saved.")
    for i, p in _saved_parameters(opt, state_dict):
        held = states.get(i)
        if held is not None and not isinstance(held, dict):
            raise TypeError(f"{name}: the state of parameter {i} must be a dict, not a {type(held).__name__}.")
        if not held:
            if p.requires_grad:  # torch.distributed.checkpoint leaves the others out
                raise ValueError(
                    f"{name}: this checkpoint has no state for parameter {i}: it is cut short, or the parameter was "
                    f"frozen when it was saved. In the latter case unfreeze it after loading.{elsewhere}"
                )
            continue
        wanted = fresh(opt, p, opt.param_groups[0])
        if wrong := sorted((wanted.keys() ^ held.keys()) - {COMPENSATION}):
            what = "has a foreign" if wrong[0] in held else "has no"
            raise ValueError(
                f"{name}: this checkpoint {what} {wrong[0]!r} for parameter {i}: another method saved it. "
                f"Load it into the optimizer that saved it.{elsewhere}"
            )
        for key in (key for key in wanted if key in held):
            _check_saved(f"{name}: {key!r} of parameter {i}", held[key], wanted[key])
        if not float(held["step"]) >= 0:
            raise ValueError(f"{name}: 'step' of parameter {i} must count steps, not be {float(held['step'])}.")
    for group in groups:
        for part in opt.parts.values():
            for key in (key for key in part.hypers() if key in group):
                check(part.name, part.fields[key], group[key])
        check_flag(name, "training", group.get("training", True))
        for key in sorted(number_keys(opt) & group.keys()):
            _check_saved(f"{name}: {key!r} of a group", group[key], opt.param_groups[0][key])


def _check_saved(what: str, value: Any, wanted: torch.Tensor) -> None:
    dense = isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta
    if dense and value.shape != wanted.shape:
        raise ValueError(
            f"{what} has shape {tuple(value.shape)} in this checkpoint, not {tuple(wanted.shape)}. Build the optimizer "
            f"on the model that was saved, with its options."
        )
    fits = value.is_floating_point() or not (wanted.dim() or value.is_complex()) if dense else is_real(value)
    if not fits or (wanted.dim() and not dense):
        raise TypeError(f"{what} must be a {'dense real tensor' if wanted.dim() else 'number'}, not {value!r}.")


def _saved_parameters(opt: Optimizer, state_dict: dict[str, Any]) -> Iterator[tuple[Any, torch.Tensor]]:
    saved = chain.from_iterable(g["params"] for g in state_dict["param_groups"])
    return zip(saved, chain.from_iterable(g["params"] for g in opt.param_groups), strict=False)


def restore(opt: Optimizer, state_dict: dict[str, Any]) -> None:
    """Give every loaded tensor its declared dtype, and storage of its own; fill in what older versions did not save."""
    for group in opt.param_groups:
        group.pop("touched", None)  # of a checkpoint that kept a note for MoMo there
        saved = {key: value for key, value in group.items() if key != "method"}
        group.update(opt.defaults | {"training": True} | saved)
        create_numbers(opt, group)
        group.update(saved)
    for i, p in _saved_parameters(opt, state_dict):
        if held := state_dict["state"].get(i):
            declared = fresh(opt, p, opt.param_groups[0]).items()
            opt.state[p] = {k: torch.as_tensor(held[k]).detach().to(t, copy=True) for k, t in declared if k in held}
    own(opt)

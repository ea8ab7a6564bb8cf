"""Slots and numbers: their creation, their dtypes and devices, and who shares them.

Every tensor is keyed by a parameter or lives in a group, so that `torch.save`, `weights_only=True` and
`torch.distributed.checkpoint` take it.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportPrivateImportUsage=false
# torch's stubs leave types unknown, and its multi-tensor functions have private names.

from __future__ import annotations

from itertools import chain
from typing import Any

import torch

from untuned.memory.buckets import Bucket, States, device_of, local, number_from, of_rows, sliced
from untuned.parts.declare import Number, Slot
from untuned.recipe.recipe import COMPENSATION, Group, Recipe

Groups = list[Group]


def _like(recipe: Recipe, p: torch.Tensor, s: Slot) -> torch.Tensor:
    """What of a parameter a slot is shaped like."""
    if callable(s.shape):
        shape: Any = s.shape(tuple(p.shape))
        return p.detach().new_empty(shape)
    return sliced(p, recipe.every) if s.shape == "slice" else p.detach()


def _first(group: Group, part: Any, n: Number, device: torch.device) -> torch.Tensor:
    first = number_from(group[n.first] if isinstance(n.first, str) else n.first, device)
    return first.repeat(part.length(n)) if n.size else first


def create_numbers(recipe: Recipe, groups: Groups, group: Group) -> None:
    """The numbers of a new group: those of the model are shared with the groups before."""
    device = device_of(groups)
    group["method"] = recipe.method
    for key in ("steps", "skipped"):
        group[key] = groups[0].get(key, number_from(0.0, device))
    for part, n in recipe.numbers(group, per_tensor=False):
        owner = next(
            (g for g in groups if n.key in g and part.scope == "model" and part in recipe.of(g).values()), None
        )
        group[n.key] = owner[n.key] if owner else _first(group, part, n, device)


def fresh(recipe: Recipe, p: torch.Tensor, group: Group) -> dict[str, torch.Tensor]:
    """The state of a parameter before its first step."""
    held: dict[str, torch.Tensor] = {"step": torch.zeros((), dtype=torch.float32, device=p.device)}
    if recipe.corrects(recipe.of(group)):
        held["rho"] = number_from(0.0, p.device)
    for key, s in recipe.slots(p, group).items():
        if s.kept:
            value = s.start if isinstance(s.start, float) else 0.0
            held[key] = torch.full_like(_like(recipe, p, s), value, dtype=recipe.dtype(p, s))
    for part, n in recipe.numbers(group, per_tensor=True):
        first = _first(group, part, n, p.device)
        held[n.key] = of_rows(p, first) if part.per_row(n) else first
    return held


def fill_start_slots(recipe: Recipe, bucket: Bucket) -> None:
    """Start points are taken when the first step begins, because weights are often loaded after construction.

    What decides is the count of steps, which is in the state; only on a CPU can it be read without waiting.
    """
    steps = bucket.numbers["step"]
    on_host = steps.device.type == "cpu"
    bucket.begun = not on_host or bool(steps.numpy().all())
    for p, held in () if bucket.begun and on_host else zip(bucket.params, bucket.states, strict=True):
        for key, s in recipe.slots(p, bucket.group).items():
            if s.start == "start":
                slot = local(held[key])
                slot.copy_(torch.where(held["step"] == 0, local(_like(recipe, p, s)), slot))


def create_scratch(recipe: Recipe, bucket: Bucket) -> None:
    """What `reform` writes for later verbs of the step: tensors shaped like the parameters that no state dict has."""
    for p in bucket.params:
        slots = recipe.slots(p, bucket.group).items()
        bucket.scratch.append({k: torch.zeros_like(p, dtype=recipe.dtype(p, s)) for k, s in slots if not s.kept})
    bucket.scratch = bucket.scratch if any(bucket.scratch) else []


def own(recipe: Recipe, groups: Groups, states: States, saving: bool = False) -> None:
    """Give every tensor of the groups that may be trained its state, and let go of what belonged to others.

    Not before the first step: trainers shard models, and exchange the tensors in the groups, after construction.
    What others have learned is only let go when the optimizer is saved: DeepSpeed steps with one group at a time.
    """
    members = {p: group for group in groups for p in group["params"]}
    for p in [p for p, held in states.items() if p not in members and (saving or not held.get("step"))]:
        del states[p]
    for p, group in members.items():
        if states.get(p):
            _follow(recipe, p, group, states[p])
        elif p.requires_grad or p.grad is not None:
            states[p].update(fresh(recipe, p, group))
    tie_numbers(recipe, groups)


def _follow(recipe: Recipe, p: torch.Tensor, group: Group, held: dict[str, torch.Tensor]) -> None:
    """Move the state of a parameter that was moved or converted after its first step."""
    slots = recipe.slots(p, group)
    if held["step"].device != p.device:
        for key in held:
            held[key] = held[key].to(p.device)
    for key, s in slots.items():
        if s.kept:
            held[key] = (held[key] if key in held else torch.zeros_like(p.detach())).to(recipe.dtype(p, s))
    if COMPENSATION not in slots:
        held.pop(COMPENSATION, None)


def numbers_of_model(recipe: Recipe, groups: Groups) -> list[torch.Tensor]:
    """The numbers of which the whole model has one, equal on all ranks; without vectors."""
    found = ((part, n.key, group) for group in groups for part, n in recipe.numbers(group, False) if not n.size)
    return [*{(part, key): group[key] for part, key, group in found if part.scope == "model"}.values()]


def number_keys(recipe: Recipe, group: Group) -> set[str]:
    return {"steps", "skipped"} | {n.key for _, n in recipe.numbers(group, per_tensor=False)}


def remember_numbers(recipe: Recipe, groups: Groups, buckets: list[Bucket]) -> dict[int, dict[str, Any]]:
    """Copies of what x.was_... reads, and the lr of the step, by the identity of a group's list of parameters."""
    found: dict[int, dict[str, Any]] = {}
    copies: dict[int, Any] = {}  # groups share the model's
    for group in groups:
        keys = {"lr"} | {n.key for _, n in recipe.numbers(group, per_tensor=False) if not n.size}
        for value in (group[key] for key in keys):
            if id(value) not in copies:
                copies[id(value)] = value.clone() if isinstance(value, torch.Tensor) else value
        found[id(group["params"])] = {key: copies[id(group[key])] for key in keys}
    for bucket in buckets:
        bucket.before = {n.key: bucket.number(n.key).clone() for _, n in recipe.numbers(bucket.group, per_tensor=True)}
    return found


def stack_numbers(recipe: Recipe, bucket: Bucket) -> Bucket:
    """Keep the counters and numbers of a bucket's tensors as rows of one tensor each, and views of them in the states:
    then one operation serves all tensors. Numbers of rows stay with their tensors, which may share them out."""
    rho = ("rho",) if recipe.corrects(bucket.parts) else ()
    numbers = recipe.numbers(bucket.group, per_tensor=True)
    for key in ("step", *rho, *(n.key for part, n in numbers if not part.per_row(n))):
        rows = [held[key] for held in bucket.states]
        bucket.numbers[key] = torch.stack(rows) if rows else number_from(0.0, bucket.device).new_zeros(0)
        for held, view in zip(bucket.states, bucket.numbers[key].unbind(), strict=True):
            held[key] = view
    return bucket


def tensors(states: States) -> list[torch.Tensor]:
    """All tensors in the states, one state after the other, to see whether a user has replaced one."""
    return list(chain.from_iterable(map(dict.values, states.values())))


def tie_numbers(recipe: Recipe, groups: Groups) -> None:
    """Make the numbers of the model one object again, after loading or copying gave each group its own."""
    device, shared = device_of(groups), dict[Any, Any]()
    for group in groups:
        owners = {n.key: part if part.scope == "model" else None for part, n in recipe.numbers(group, per_tensor=False)}
        for key, part in ({"steps": recipe, "skipped": recipe} | owners).items():
            if key in group:
                source = shared.get((part, key), group[key]) if part else group[key]
                group[key] = shared[part, key] = number_from(source, device)  # the object itself, if it is one already

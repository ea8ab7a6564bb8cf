"""Loading: what a checkpoint must hold, and how it becomes state again.

torch casts what it loads to the parameter's dtype; `restore` undoes that.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportPrivateImportUsage=false
# torch's stubs leave types unknown, and its multi-tensor functions have private names.

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch

from untuned.memory.buckets import States
from untuned.memory.slots import Groups, create_numbers, fresh, number_keys, own
from untuned.parts.declare import check, check_flag, is_real
from untuned.recipe.recipe import COMPENSATION, Group, Recipe


def check_loadable(recipe: Recipe, ours: Groups, state_dict: Any) -> None:
    """Refuse what cannot be loaded before anything is; the error names the first thing that does not fit."""
    name = recipe.title
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
        if (method := group.get("method", recipe.method)) != recipe.method:
            raise ValueError(
                f"{name}: another method saved this checkpoint, {method}, not {recipe.method}. "
                f"Load it into the optimizer that saved it."
            )
    own_kind = any("method" in group for group in groups)
    elsewhere = "" if own_kind else " If another package saved it, go on with untuned.migrate(optimizer, state_dict)."
    for group, here in zip(groups, ours, strict=False):  # first, since the state follows from it
        if (label := group.get("label")) != (own := here.get("label")):
            raise ValueError(f"{name}: a group is labelled {label!r} in this checkpoint, not {own!r}.{elsewhere}")
    ids = [i for group in groups for i in group["params"]]
    if len({*ids}) < len(ids):
        raise ValueError(f"{name}: 'params' of this checkpoint names a parameter twice. It is not one that was saved.")
    for i, p, group in _saved_parameters(ours, state_dict):
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
        wanted = fresh(recipe, p, group)
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
    for group, here in zip(groups, ours, strict=False):
        for part in recipe.of(here).values():
            for key in (key for key in part.hypers() if key in group):
                check(part.name, part.fields[key], group[key])
        check_flag(name, "training", group.get("training", True))
        for key in sorted(number_keys(recipe, here) & group.keys()):
            _check_saved(f"{name}: {key!r} of a group", group[key], here[key])


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


def _saved_parameters(ours: Groups, state_dict: dict[str, Any]) -> Iterator[tuple[Any, torch.Tensor, Group]]:
    saved = chain.from_iterable(g["params"] for g in state_dict["param_groups"])
    members = ((p, group) for group in ours for p in group["params"])
    return ((i, p, group) for i, (p, group) in zip(saved, members, strict=False))


def restore(recipe: Recipe, groups: Groups, states: States, state_dict: dict[str, Any]) -> None:
    """Give every loaded tensor its declared dtype, and storage of its own; fill in what older versions did not save."""
    for group in groups:
        group.pop("touched", None)  # of a checkpoint that kept a note for MoMo there
        saved = {key: value for key, value in group.items() if key != "method"}
        defaults = {k: v for part in recipe.of(group).values() for k, v in part.hypers().items()}
        group.update(defaults | {"training": True} | saved)
        create_numbers(recipe, groups, group)
        group.update(saved)
    for i, p, group in _saved_parameters(groups, state_dict):
        if held := state_dict["state"].get(i):
            declared = fresh(recipe, p, group).items()
            states[p] = {k: torch.as_tensor(held[k]).detach().to(t, copy=True) for k, t in declared if k in held}
    own(recipe, groups, states)

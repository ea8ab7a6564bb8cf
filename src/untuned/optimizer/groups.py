"""What may stand in parameter groups, and what must be equal in all of them."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportPrivateImportUsage=false
# torch's stubs leave types unknown, and its multi-tensor functions have private names.

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable
from typing import Any

import torch

from untuned.parts.declare import check, check_parameter
from untuned.recipe.plan import DryFrame
from untuned.recipe.recipe import Group, Recipe

OPTIONS = ("maximize", "skip_nonfinite", "slot_dtype", "kahan_sum", "stochastic_rounding", "clip_grad_norm")


def listed(params: Any) -> list[Any]:
    """Parameters as a list, so that a generator is read once, in the same order in every run."""
    if isinstance(params, torch.Tensor | str | dict | set | frozenset) or not isinstance(params, Iterable):
        raise TypeError(
            f"params must be a list or an iterator of tensors, (name, tensor) pairs or dicts, not a "
            f"{type(params).__name__}: use model.parameters() or [p]."
        )
    return list(params)


def is_frozen(group: Group) -> bool:
    """Whether lr is surely 0; a device would have to be waited for."""
    lr = group["lr"]
    known = lr.detach().double().numpy() if isinstance(lr, torch.Tensor) and lr.is_cpu else lr
    return not isinstance(known, torch.Tensor) and bool(known == 0)


def without_torch_options(recipe: Recipe, given: dict[str, Any]) -> dict[str, Any]:
    """The options given without those of torch.optim, of which none may ask for what is not so here."""
    must = {"differentiable": False, "amsgrad": False, "decoupled_weight_decay": recipe.parts["decay"].decoupled}
    for key in must:
        if given.get(key, must[key]) != must[key]:
            raise ValueError(f"{recipe.title}: {key} is always {must[key]} here, not {given[key]!r}. Leave it out.")
    return {k: v for k, v in given.items() if k not in (*must, "fused", "foreach", "capturable")}


def complete(recipe: Recipe, groups: list[Group], group: Group, options: set[str]) -> Group:
    """A new group with the options that it leaves out; raises `TypeError` or `ValueError` if one does not fit."""
    parts = recipe.of(group).values()
    fixed = {key: getattr(recipe, key) for key in OPTIONS}
    hypers = {k: v for part in parts for k, v in part.hypers().items()}
    for part in parts:
        sizes = {n.size for n in part.numbers().values()}
        for name, field in part.fields.items():
            if name in part.hypers() and name in group:
                group[name] = check(part.name, field, group[name])
            if name not in part.hypers() or name in sizes:
                fixed[name] = getattr(part, name)
    for name, value in fixed.items():
        if name in group and group[name] != value:
            raise ValueError(
                f"{recipe.title}: {name} shapes the method and is {value!r} for all groups, not {group[name]!r} "
                f"in one. Build a second optimizer for these parameters."
            )
    if renamed := sorted(options & group.keys() - fixed.keys() - hypers.keys()):
        raise ValueError(
            f"{recipe.title}: {renamed[0]} is an option of the optimizer, not of a group; "
            f"a group may have {', '.join(hypers)}."
        )
    tensors: list[Any] = [p[1] if isinstance(p, tuple) and len(p) == 2 else p for p in group["params"]]
    known = {p for g in groups for p in g["params"]}
    for p in tensors:
        check_parameter(recipe.title, p)
        if p in known:
            raise ValueError(f"{recipe.title}: a parameter of shape {tuple(p.shape)} was given twice. Give it once.")
        known.add(p)
    for part in parts:
        if hasattr(part, "refuse") and (text := next(filter(None, map(part.refuse, tensors)), None)):
            raise ValueError(f"{recipe.title}: {text}")
    group = hypers | group
    check_shared(recipe, [*groups, group])
    for part in parts:
        if hasattr(part, "caution") and (text := part.caution(group, recipe.of(group)["decay"].gives)):
            warnings.warn(text, stacklevel=4)
    return group


def check_shared(recipe: Recipe, groups: list[Group]) -> None:
    """Refuse options that one decision for the whole model reads and that differ between groups."""
    served = [(group, recipe.of(group).values()) for group in groups]
    for part, key in recipe.shared:
        first, *rest = [group for group, parts in served if part in parts] or [{key: None}]
        for group in rest:
            one, other = first[key], group[key]
            if one is not other and one != other:
                raise ValueError(
                    f"{part.name}: {key} must be equal in all groups, since one decision is made for the whole model, "
                    f"not {one!r} and {other!r}."
                )
    rule = recipe.parts["step_size"]
    if len(recipe.variants) > 1 and "average" in rule.needs:
        weights = {_weights(recipe, group) for group in groups}
        if len(weights) > 1:
            raise ValueError(
                f"{rule.name}: one average of the losses serves all directions, so they must weigh gradients alike, "
                f"not by (keep, take) = {' and '.join(map(str, sorted(weights)))}. Give them equal betas or momentum."
            )


def _weights(recipe: Recipe, group: Group) -> tuple[float, float]:
    frame = DryFrame(recipe.of(group), functools.partial(torch.ones, dtype=torch.float64), group)
    keep, take = frame.parts["direction"].weight(frame.place("direction"))
    return float(keep), float(take)

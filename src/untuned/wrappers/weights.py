"""Which weights are meant: the hidden matrices of a model, found by the types of its modules."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TypeGuard

import torch
import torch.distributed as dist
from torch import nn

LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)
_OF_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def kind_of(value: Any) -> str:
    """What was given in the place of something else; in a line, which a repr may not be."""
    return f"an object of type {type(value).__name__}"


def is_sharded(t: Any) -> TypeGuard[Any]:
    """Whether t is a DTensor; who has one has imported its module, which takes long."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(t, module.DTensor)


def local(t: Any) -> torch.Tensor:
    """The shard of t on this process; t itself if it is not sharded."""
    return t.to_local() if is_sharded(t) else t


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, DataParallel and torch.compile: its names have no prefixes."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def hidden_weights(model: nn.Module, exclude: Any, title: str) -> dict[str, torch.Tensor]:
    """The weights of linear, convolution and attention layers by name, each once, without those excluded.

    `exclude`: "last", which is the layer that was registered last; or a list of names of modules or parameters, of
    modules and of parameters, [] for none. What is tied to something excluded is excluded. Gains and offsets of
    normalisations, embeddings, biases and recurrent layers are never among them.
    """
    modules, skipped, out = dict(model.named_modules()), set[nn.Module](), set[int]()
    for item in [] if exclude == "last" else _items(exclude, title):
        named = dict(model.named_parameters(remove_duplicate=False)) | modules
        if isinstance(item, str) and item not in named:
            raise ValueError(f"{title}: nothing in the model is named {item!r}, which was to be excluded.")
        item = named[item] if isinstance(item, str) else item
        if not any(item is one for one in named.values()):
            raise ValueError(f"{title}: {kind_of(item)}, which was to be excluded, is not in the model.")
        if isinstance(item, nn.Module):
            skipped |= {*item.modules()}
        out |= {id(p) for p in (item.parameters() if isinstance(item, nn.Module) else [item])}
    found: dict[str, dict[str, torch.Tensor]] = {}
    for prefix, module in modules.items():
        if isinstance(module, LAYERS) and module not in skipped:
            leaves = _OF_ATTENTION if isinstance(module, nn.MultiheadAttention) else ("weight",)
            own = {leaf: p for leaf in leaves if (p := module._parameters.get(leaf)) is not None}
            if not own:
                raise TypeError(
                    f"{title}: the weight of '{prefix}' is no parameter of its own (it is parametrized or flattened); "
                    f"exclude that layer."
                )
            found[prefix] = {f"{prefix}.{leaf}" if prefix else leaf: p for leaf, p in own.items()}
    if exclude == "last" and found:
        out |= {id(p) for p in found[next(reversed(found))].values()}
    weights: dict[str, torch.Tensor] = {}
    for name, p in ((name, p) for layer in found.values() for name, p in layer.items()):
        if id(p) not in out:
            out.add(id(p))
            weights[name] = p
    return weights


def _items(exclude: Any, title: str) -> list[Any]:
    items = [exclude] if isinstance(exclude, str | nn.Module | torch.Tensor) else exclude
    if not isinstance(items, Iterable):
        raise TypeError(f"{title}: exclude must be 'last' or a list of names, modules or parameters, not {exclude!r}.")
    return list(items)


def weights_of(target: Any, exclude: Any, title: str) -> dict[str, torch.Tensor]:
    """Those of a model by `hidden_weights`; or exactly the matrices in a list of parameters or (name, parameter)."""
    if isinstance(target, nn.Module):
        weights = hidden_weights(unwrapped(target), exclude, title)
    elif isinstance(target, Iterable) and not isinstance(target, torch.Tensor | str):
        weights, seen = {}, set[int]()
        for i, item in enumerate(target):
            name, p = item if isinstance(item, tuple) and len(item) == 2 else (str(i), item)
            if not isinstance(p, torch.Tensor):
                raise TypeError(f"{title} takes a model or its parameters, not a list with {kind_of(p)}.")
            if p.dim() < 2:
                raise ValueError(f"{title}: '{name}' is a vector; give it matrices and kernels, or the whole model.")
            if id(p) not in seen:
                if name in weights:
                    raise ValueError(f"{title}: two parameters are named '{name}'; give each a name of its own.")
                seen.add(id(p))
                weights[name] = p
    else:
        raise TypeError(f"{title} takes a model or its parameters, not {kind_of(target)}.")
    if not weights:
        raise ValueError(f"{title} found no hidden weight: the last layer is left out unless exclude=[] is given.")
    for name, p in weights.items():
        if isinstance(p, nn.UninitializedParameter) or p.is_meta:
            raise ValueError(f"{title}: '{name}' has no values yet; initialise the model first.")
        if not p.is_floating_point():
            raise TypeError(f"{title}: '{name}' holds {p.dtype}, not real numbers; exclude it.")
        if is_sharded(p) and any(at.is_partial() for at in p.placements):
            raise ValueError(f"{title}: '{name}' is a sum of which every rank holds a part; shard or replicate it.")
    return weights


def innermost(optimizer: Any, title: str) -> torch.optim.Optimizer:
    """The optimizer that others wrap (Extrapolated, Accelerate's, PostLocalSGDOptimizer); TypeError if it is none."""
    inner = optimizer
    while (wrapped := getattr(inner, "optimizer", None) or getattr(inner, "optim", None)) is not None:
        inner = wrapped
    if not isinstance(inner, torch.optim.Optimizer):
        raise TypeError(f"{title} needs a torch.optim.Optimizer, not {kind_of(optimizer)}.")
    return inner


def norms_of(tensors: list[torch.Tensor], rows: bool) -> list[torch.Tensor]:
    """The Frobenius norm of each whole tensor, or with `rows` those of its slices along the first dimension.

    In float32, in float64 for float64. Tensors with fewer than two dimensions have one row. Of a sharded tensor every
    rank gets the norms of the whole one, but only of the rows it holds; all ranks must call this.
    """
    here = [local(t) for t in tensors]
    if rows and any(t.dim() > 1 for t in here):
        found = [
            torch.linalg.vector_norm(t.flatten(1) if t.dim() > 1 else t, dim=-1, dtype=_wide(t)).reshape(-1)
            for t in here
        ]
    else:
        found = list(torch._foreach_norm(here, 2, _wide(here[0])))  # pyright: ignore[reportPrivateImportUsage]
    over: dict[tuple[Any, tuple[int, ...]], list[int]] = {}
    for i, t in enumerate(tensors):
        if is_sharded(t):
            own_rows = rows and t.dim() > 1
            dims = tuple(n for n, at in enumerate(t.placements) if at.is_shard() and not (own_rows and at.dim == 0))
            over.setdefault((t.device_mesh, dims), []).append(i)
    for (mesh, dims), members in over.items():
        squares = torch.cat([found[i].reshape(-1) for i in members]).square()
        for n in dims:
            dist.all_reduce(squares, group=mesh.get_group(n))
        for i, value in zip(members, squares.sqrt().split([found[i].numel() for i in members]), strict=True):
            found[i] = value.reshape(found[i].shape)
    return found


def _wide(t: torch.Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32

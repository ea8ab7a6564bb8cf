"""`trajectory_map`: the cosines of all pairs of checkpoints of a run, exactly: arXiv 2403.07379."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from untuned.diagnostics.trajectory_measures import (
    ALL,
    By,
    Floats,
    Measures,
    Series,
    check_center,
    cosines,
    defined,
    effective_rank,
    grouping,
    measures,
)

_TITLE = "trajectory_map"
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_INSIDE = ("state_dict", "model_state_dict", "model")  # where trainers' checkpoints keep the weights
_NUMBERS = 1 << 23  # that are in memory at once, in float64

Checkpoint = Mapping[str, Any] | str | os.PathLike[str]


@dataclass(frozen=True)
class TrajectoryMap:
    """How the points of a trajectory lie to each other, as seen from `center`; by group, "all" first.

    `matrices` are the trajectory maps [points, points]: the cosine of every two points, in [-1, 1]. It is NaN for a
    point without a direction, as theta_0 seen from itself.
    """

    center: str
    steps: NDArray[np.int64]  # [points]
    matrices: dict[str, Floats]
    measures: dict[str, Measures]

    @property
    def matrix(self) -> Floats:
        """The map of all parameters."""
        return self.matrices[ALL]


def trajectory_map(
    checkpoints: Sequence[Checkpoint],
    center: str = "origin",
    by: By = None,
    *,
    steps: Sequence[int] | None = None,
    names: nn.Module | Iterable[str] | None = None,
) -> TrajectoryMap:
    """The trajectory map of checkpoints in the order of training, the first being theta_0, and the measures of it.

    A checkpoint is a state dict, a file that `torch.save` or safetensors wrote of one (or of a dict that holds one
    under "state_dict", "model_state_dict" or "model"), or a folder with model.safetensors or pytorch_model.bin. Files
    are read tensor by tensor: in memory are a few million numbers, never all checkpoints. Differences to theta_0 and
    all inner products are taken in float64.

    `center`: "origin" or "init". `by` measures parts of the model, too: None, "layer", "tensor" or a function as in
    `TrajectoryRecorder`. `steps`: of each checkpoint; 0, 1, 2, ... if not given. `names`: which tensors are parameters,
    a model or a list; without it all floating-point tensors are, but the statistics of batch normalisation. Tensors of
    one storage (tied parameters) count once; a file of safetensors does not say which these are.

    Raises ValueError in one sentence for fewer than two checkpoints, a tensor that is missing, of another shape or not
    finite, or a file that cannot be read so.

    >>> import torch
    >>> found = trajectory_map([{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}])
    >>> found.matrix.tolist(), found.measures["all"].mds
    ([[1.0, 0.0], [0.0, 1.0]], 0.5)
    """
    check_center(center, _TITLE)
    count = len(checkpoints)
    if count < 2:
        raise ValueError(f"{_TITLE} needs two checkpoints or more, not {count}.")
    if steps is not None and len(steps) != count:
        raise ValueError(f"{_TITLE}: there are {count} checkpoints, but {len(steps)} steps.")
    opened = [_opened(checkpoint) for checkpoint in checkpoints]
    group_of, grams, chosen = grouping(by, _TITLE), dict[str, Floats](), _chosen(opened[0], names)
    _refuse_one_point(checkpoints, opened, chosen)
    for name in chosen:
        group = group_of(name)
        if group is None:
            continue
        gram = grams.setdefault(group, np.zeros((count, count)))
        gram += _gram(name, opened)
    if not grams:
        raise ValueError(f"{_TITLE} has no parameter to look at.")
    if by is not None:
        if ALL in grams:
            raise ValueError(f"{_TITLE}: no group may be named {ALL!r}, which is that of all parameters.")
        grams = {ALL: sum(grams.values(), np.zeros((count, count))), **grams}
    at = np.arange(count) if steps is None else np.asarray(steps, dtype=np.int64)
    matrices = {group: cosines(_seen_from(center, gram)) for group, gram in grams.items()}
    return TrajectoryMap(center, at, matrices, {g: _measured(at, grams[g], matrices[g]) for g in grams})


def _refuse_one_point(checkpoints: Sequence[Checkpoint], opened: Sequence[_Opened], names: Sequence[str]) -> None:
    """State dicts hold the tensors of the model itself: taken without a copy, all of them are its last point."""
    seen = dict[tuple[int, ...], int]()
    for k, one in enumerate(opened):
        if isinstance(checkpoints[k], Mapping) and names:
            first = seen.setdefault(tuple(one.get(name).data_ptr() for name in names), k)
            if first != k:
                raise ValueError(f"{_TITLE}: checkpoints {first} and {k} are the same tensors; copy each state dict.")


# ---------------------------------------------------------------- the Gram matrix


def _gram(name: str, opened: Sequence[_Opened]) -> Floats:
    """Inner products of theta_0, theta_1 - theta_0, ... in one tensor, [checkpoints, checkpoints]."""
    gram, shape = np.zeros((len(opened), len(opened))), opened[0].get(name).shape
    size = max(1, _NUMBERS // len(opened))
    rows = [_flat(name, k, one, shape) for k, one in enumerate(opened)] if shape.numel() <= size else None
    for begin in range(0, shape.numel(), size):
        block = torch.empty(len(opened), min(size, shape.numel() - begin), dtype=torch.float64)
        for k, one in enumerate(opened):
            row = _flat(name, k, one, shape) if rows is None else rows[k]
            block[k] = row[begin : begin + size]
        block[1:] -= block[0]
        gram += (block @ block.T).numpy()
    if not np.isfinite(gram).all():
        bad = int(np.flatnonzero(~np.isfinite(np.diag(gram)))[0])
        raise ValueError(f"{_TITLE}: {name!r} is not finite in checkpoint {bad}; leave that one out.")
    return gram


def _flat(name: str, k: int, one: _Opened, shape: torch.Size) -> Tensor:
    tensor = one.get(name)
    if tensor.shape != shape:
        raise ValueError(f"{_TITLE}: {name!r} has the shape {tuple(shape)} in the first checkpoint, but "
                         f"{tuple(tensor.shape)} in checkpoint {k}.")  # fmt: skip
    return tensor.detach().reshape(-1).cpu()


def _seen_from(center: str, gram: Floats) -> Floats:
    """Inner products of theta_t - theta_0 ("init"), or of theta_t ("origin"), from those of theta_0 and the moves."""
    moves = gram.copy()
    moves[0] = moves[:, 0] = 0
    if center == "init":
        return moves
    along = gram[0].copy()
    along[0] = 0
    return moves + along[:, None] + along + gram[0, 0]


def _measured(at: NDArray[np.int64], gram: Floats, matrix: Floats) -> Measures:
    """The measures of a trajectory from the inner products of theta_0 and the moves."""
    moves = _seen_from("init", gram)
    # <u_t, u_s> of the updates u_t = theta_t - theta_{t-1}
    updates = moves[1:, 1:] - moves[1:, :-1] - moves[:-1, 1:] + moves[:-1, :-1]
    series = Series(
        steps=at,
        norm=np.sqrt(np.diag(_seen_from("origin", gram)).clip(0)),
        distance=np.sqrt(np.diag(moves)),
        update=np.concatenate([[np.nan], np.sqrt(np.diag(updates).clip(0))]),
        product=np.concatenate([[np.nan, np.nan], np.diag(updates, 1)]),
    )
    kept = defined(matrix)
    return measures(series, len(kept), float(kept.mean()) if len(kept) else np.nan, effective_rank(matrix))


# ---------------------------------------------------------------- the files


@dataclass(frozen=True)
class _Opened:
    """A checkpoint whose tensors are read when they are asked for."""

    where: str
    names: Sequence[str]
    read: Callable[[str], Any]

    def get(self, name: str) -> Tensor:
        if name not in self.names:
            raise ValueError(f"{_TITLE}: {self.where} has no tensor {name!r}, unlike the first checkpoint.")
        return self.read(name)


def _opened(checkpoint: Checkpoint) -> _Opened:
    if isinstance(checkpoint, Mapping):
        return _of_dict("a checkpoint", checkpoint)
    path = Path(checkpoint)
    if path.is_dir():
        inside = [path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).is_file()]
        if not inside:
            raise ValueError(f"{_TITLE}: the folder {path} holds neither model.safetensors nor pytorch_model.bin.")
        path = inside[0]
    if not path.is_file():
        raise ValueError(f"{_TITLE}: there is no file {path}.")
    if path.suffix == ".safetensors":
        try:
            from safetensors import safe_open  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError(
                f"{_TITLE} reads {path.name} with safetensors, which the extra huggingface brings."
            ) from error
        file = safe_open(str(path), framework="pt")
        return _Opened(str(path), [*file.keys()], file.get_tensor)
    try:
        found = torch.load(path, mmap=True, weights_only=True, map_location="cpu")
    except Exception as error:  # of torch, pickle or the file's format, many kinds
        said = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{_TITLE}: {path} is no file of tensors that torch.load reads with weights_only and mmap: {said}"
        ) from error
    return _of_dict(str(path), found)


def _of_dict(where: str, found: Any) -> _Opened:
    for key in _INSIDE:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping) or not any(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{_TITLE}: {where} holds no state dict.")
    return _Opened(where, [name for name, value in found.items() if isinstance(value, Tensor)], found.__getitem__)


def _chosen(first: _Opened, names: nn.Module | Iterable[str] | None) -> list[str]:
    """Names of the tensors that are parameters, of tied ones the first."""
    if isinstance(names, nn.Module):
        return [name for name, _ in names.named_parameters()]
    if names is not None:
        return list(dict.fromkeys(names))
    found, seen = list[str](), set[Any]()
    for name in first.names:
        tensor = first.get(name)
        if not tensor.is_floating_point() or name.rpartition(".")[2] in _BUFFERS:
            continue
        mark = (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else name
        if mark not in seen:
            seen.add(mark)
            found.append(name)
    return found

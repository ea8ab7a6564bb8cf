"""Normalize-and-Project: weights that keep the norm they began with, behind the step of any optimizer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from untuned.wrappers.effective_lr import EffectiveLR
from untuned.wrappers.norms import JOINT, PULLED, marked
from untuned.wrappers.weights import innermost, is_sharded, kind_of, local, norms_of, unwrapped, weights_of

_IN_CACHE = 1 << 20  # bytes that are measured and then scaled while they are still in a CPU's cache


@dataclasses.dataclass
class _Kept:
    """Tensors whose joint norm is kept: a weight, or scale and offset of a normalisation. `rho` is [] or [rows]."""

    name: str
    tensors: tuple[torch.Tensor, ...]
    rho: torch.Tensor = dataclasses.field(default_factory=lambda: torch.empty(0))


class WeightProjector:
    """The projection of Normalize-and-Project after the step of any optimizer: arXiv 2407.01800.

        W <- rho W / |W|                              rho: |W| when this was made; |.|: the Frobenius norm
        (s, b) <- R (s, b) / sqrt(|s|^2 + |b|^2)      R: the same, which is sqrt(features) for s = 1, b = 0

    after every `every`-th step, where W are the hidden weights: those of linear, convolution and attention layers, by
    the type of the module, but not of the layer registered last, whose scale reaches the output. `exclude` is a list of
    names, modules or parameters to leave out instead, [] for none. Tied weights are projected once. `target` may also
    be a list of parameters, or of (name, parameter), which are then exactly those that are projected. A layer followed
    by a normalisation computes the same function before and after; see `insert_norms`.

    With scope="row" every slice along the first dimension keeps its norm, which leaves the function as it is if each
    unit is normalised over the batch (batch norm). A row of zeros is left alone, as is what becomes zero, infinite or
    NaN later.

    s and b are the scale and the offset of normalisations in front of activations that are positively homogeneous
    (ReLU, leaky ReLU, PReLU), for which their joint scale is redundant, too: those that `insert_norms(model,
    affine="joint")` made, or those in `joint`. In front of other activations it puts normalisations that are pulled
    towards (1, 0) instead: s <- s + pull (1 - s), b <- (1 - pull) b, in every projection. The form of both is recalled
    from the paper, and the paper's pull was not obtained: 0 does nothing.

    This or `around.Project`? Both project alike. `around.Project` is a part of this library's optimizers, does it in
    every step inside the step, and under Schedule-Free, primal averaging or Mechanic it projects the point from which
    plain steps start. This one is for all other optimizers, for every=1000, and for scales and offsets. It projects
    what the parameters hold, so it refuses optimizers that keep another point beside them.

    `optimizer` is hooked with `register_step_post_hook`; without one, call `step()` after each step yourself. A step
    that a gradient scaler leaves out is none, unless the optimizer does that itself, as torch's fused ones do. Momentum
    and other state of the optimizer are not rescaled. Sharded weights (FSDP2, DTensor) are projected by their whole
    norm, with one all-reduce per projection and mesh; replicas need none. `state_dict()` has the norms by name and the
    count of steps. Cost: one read and one update of the weights per projection, no memory.

    Raises TypeError or ValueError in one sentence, with nothing changed, for a weight that is zero or has no values.

    >>> import torch, untuned
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 1))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> projector = untuned.wrappers.WeightProjector(model, optimizer)
    >>> before = model[0].weight.norm()
    >>> model(torch.ones(2, 3)).sum().backward()
    >>> optimizer.step()
    >>> bool(abs(model[0].weight.norm() - before) < 1e-6)
    True
    """

    def __init__(
        self,
        target: nn.Module | Iterable[Any],
        optimizer: torch.optim.Optimizer | None = None,
        *,
        every: float = 1,
        exclude: Any = "last",
        scope: str = "tensor",
        joint: Iterable[nn.Module] | None = None,
        pull: float = 0.0,
    ) -> None:
        if scope not in ("tensor", "row"):
            raise ValueError(f"WeightProjector: scope must be 'tensor' or 'row', not {scope!r}.")
        if isinstance(every, bool) or not (every == math.inf or (isinstance(every, int) and every >= 1)):
            raise ValueError(f"WeightProjector: every must be a whole number from 1, or math.inf, not {every!r}.")
        if not (isinstance(pull, int | float) and 0 <= pull <= 1):
            raise ValueError(f"WeightProjector: pull must be in [0, 1], not {pull!r}.")
        inner = None if optimizer is None else innermost(optimizer, "WeightProjector")
        if inner is not None:
            _refuse_other_points(inner)
        self.every, self.scope, self.pull, self.steps = every, scope, pull, 0
        weights = weights_of(target, exclude, "WeightProjector")
        norms = _norms_of(target, joint)
        self._kept = [_Kept(name, (p,)) for name, p in weights.items()]
        self._kept += [_Kept(name, tensors) for name, tensors in norms[JOINT].items()]
        self._pulled = list(norms[PULLED].values())
        found = list[torch.Tensor]()
        with torch.no_grad():
            for block in self._blocks():
                for one, norm in zip(block, _joined(block, rows=False), strict=True):
                    if not (norm.isfinite() and norm > 0):
                        what = "is not finite" if norm else "is zero"
                        raise ValueError(f"WeightProjector: '{one.name}' {what} and has no norm to keep; exclude it.")
                found += [rho.clone() for rho in _joined(block, scope == "row")]
        for one, rho in zip(self._kept, found, strict=True):
            one.rho = rho
        self.effective_lr = None if optimizer is None else EffectiveLR(weights.items(), optimizer)
        self._hook = None if inner is None else inner.register_step_post_hook(self._after_step)

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self.step()

    def remove(self) -> None:
        """Take the hook off the optimizer."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    # ------------------------------------------------------------------ the projection

    def step(self) -> None:
        """Count a step of the optimizer, and project if it is an `every`-th; the hook does it."""
        self.steps += 1
        if self.steps % self.every == 0:
            self.project()

    @torch.no_grad()
    def project(self) -> None:
        """Project now, whatever the count."""
        for block in self._blocks():
            norms = _joined(block, self.scope == "row")
            by: Any = self._factors(block, norms)
            tensors = [local(p) for one in block for p in one.tensors]
            torch._foreach_mul_(tensors, by)  # pyright: ignore[reportPrivateImportUsage]
        if self.pull:
            for tensors in self._pulled:
                for p, end in zip(tensors, (1.0, 0.0), strict=False):
                    local(p).mul_(1 - self.pull).add_(self.pull * end)

    def _factors(self, block: list[_Kept], norms: list[torch.Tensor]) -> list[Any]:
        """kept norm / norm for each tensor; 1 where that is no positive number."""
        if norms[0].device.type != "cpu" or self.scope == "row":
            return _factors_on_device(block, norms)
        found = [float(one.rho) / norm if (norm := float(n)) else 1.0 for one, n in zip(block, norms, strict=True)]
        found = [f if 0.0 < f < math.inf else 1.0 for f in found]
        return [f for one, f in zip(block, found, strict=True) for _ in one.tensors]

    def _blocks(self) -> list[list[_Kept]]:
        """What is measured and then scaled together: everything on a device, what fits into the cache of a CPU."""
        blocks, last, size = list[list[_Kept]](), None, 0
        for one in self._kept:
            p = one.tensors[0]
            key = (p.device_mesh if is_sharded(p) else None, p.device, p.dtype)
            size += p.nbytes
            if key != last or (key[0] is None and p.device.type == "cpu" and size > _IN_CACHE):
                blocks.append([])
                last, size = key, p.nbytes
            blocks[-1].append(one)
        return blocks

    # ------------------------------------------------------------------ what people see, and what is saved

    def metrics(self) -> dict[str, float]:
        """`EffectiveLR.metrics()` of the projected weights, to log beside `optimizer.metrics()`."""
        if self.effective_lr is None:
            raise ValueError("WeightProjector.metrics() needs the optimizer: WeightProjector(model, optimizer).")
        return self.effective_lr.metrics()

    def state_dict(self) -> dict[str, Any]:
        """The norms by name, and the steps counted. Norms of the rows of a sharded weight are sharded like it."""
        kept = {one.name: _as_placed(one) if self.scope == "row" else one.rho for one in self._kept}
        return {"scope": self.scope, "steps": self.steps, "kept_norms": kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict()` gave; ValueError with nothing changed if it belongs to other weights."""
        try:
            scope, steps, kept = state_dict["scope"], state_dict["steps"], dict(state_dict["kept_norms"])
            for value in kept.values():
                if not isinstance(value, torch.Tensor):
                    float(value)
            if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
                raise ValueError(steps)
        except (KeyError, TypeError, ValueError, RuntimeError):
            raise ValueError("WeightProjector cannot load this: it is no state_dict() of a WeightProjector.") from None
        names = [one.name for one in self._kept]
        if scope != self.scope or kept.keys() != {*names}:
            other = sorted(kept.keys() ^ {*names})
            what = f"'{other[0]}' is only in one of the two" if other else f"its scope is {scope!r}"
            raise ValueError(f"WeightProjector cannot load this state: {what}.")
        loaded = [_of_rank(one, kept[one.name]) for one in self._kept]
        for one, rho in zip(self._kept, loaded, strict=True):
            if rho.shape != one.rho.shape or not (rho.isfinite() & (rho >= 0)).all():
                raise ValueError(f"WeightProjector cannot load this state: the norms of '{one.name}' do not fit.")
        self.steps = steps
        for one, rho in zip(self._kept, loaded, strict=True):
            one.rho = rho.to(one.rho, copy=True)


def _joined(block: list[_Kept], rows: bool) -> list[torch.Tensor]:
    """The norms of each: of a weight, or of scale and offset as one vector."""
    found = iter(norms_of([p for one in block for p in one.tensors], rows))
    each = [[next(found) for _ in one.tensors] for one in block]
    return [n[0] if len(n) == 1 else torch.linalg.vector_norm(torch.stack(n), dim=0) for n in each]


def _factors_on_device(block: list[_Kept], norms: list[torch.Tensor]) -> list[torch.Tensor]:
    """As `_factors`, also for norms of rows, without waiting for a GPU."""
    kept = torch.cat([one.rho.to(norms[0].device).reshape(-1) for one in block])
    factors = kept / torch.cat([n.reshape(-1) for n in norms])
    factors = torch.where(factors.isfinite() & (factors > 0), factors, 1.0)
    parts = zip(block, norms, factors.split([n.numel() for n in norms]), strict=True)
    return [
        f.reshape(len(f), *[1] * (p.dim() - 1)) if n.dim() else f.reshape(())
        for one, n, f in parts
        for p in one.tensors
    ]


def _of_rows(one: _Kept) -> Any:
    """How the norms of rows are placed: over the ranks as the rows are."""
    from torch.distributed.tensor import Replicate

    return [at if at.is_shard(0) else Replicate() for at in one.tensors[0].placements]  # type: ignore[attr-defined]


def _as_placed(one: _Kept) -> torch.Tensor:
    p: Any = one.tensors[0]
    if not is_sharded(p) or p.dim() < 2:
        return one.rho
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(one.rho, p.device_mesh, _of_rows(one), run_check=False, shape=p.shape[:1], stride=(1,))


def _of_rank(one: _Kept, value: Any) -> torch.Tensor:
    """What this rank keeps of saved norms, which may have been sharded in another way."""
    p: Any = one.tensors[0]
    value = value.full_tensor() if is_sharded(value) else torch.as_tensor(value)
    if not is_sharded(p) or value.dim() == 0 or p.dim() < 2 or len(value) != len(p):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(one.rho.device), p.device_mesh, _of_rows(one)).to_local()


def _norms_of(target: Any, joint: Iterable[nn.Module] | None) -> dict[str, dict[str, tuple[torch.Tensor, ...]]]:
    """Scales and offsets by name: those kept jointly, and those pulled towards (1, 0)."""
    modules = {m: name for name, m in unwrapped(target).named_modules()} if isinstance(target, nn.Module) else {}
    found: dict[str, dict[str, tuple[torch.Tensor, ...]]] = {JOINT: {}, PULLED: {}}
    chosen = {m: marked(m) for m in modules if marked(m)}
    if joint is not None:
        joint = list(joint) if isinstance(joint, Iterable) else [joint]
        if wrong := [one for one in joint if not isinstance(one, nn.Module)]:
            raise TypeError(f"WeightProjector: joint takes a list of normalisations, not {kind_of(wrong[0])}.")
        chosen = {m: how for m, how in chosen.items() if how == PULLED} | dict.fromkeys(joint, JOINT)
    for i, (module, how) in enumerate(chosen.items()):
        tensors = tuple(p for p in (module._parameters.get("weight"), module._parameters.get("bias")) if p is not None)
        if not tensors or any(p.dim() != 1 for p in tensors):
            raise ValueError(f"WeightProjector: {kind_of(module)} in joint has no scale per feature to project.")
        found[str(how)][modules.get(module, f"joint.{i}")] = tensors
    return found


def _refuse_other_points(optimizer: Any) -> None:
    """TypeError for optimizers whose next step does not start from what the parameters hold."""
    name, parts = type(optimizer).__name__, getattr(optimizer, "parts", None)
    if isinstance(parts, dict) and "iterate" in parts:
        iterate = parts["iterate"]
        if keys := [slot.key for slot in iterate.slots().values()]:
            inside = "plain_step" in iterate.gives
            what = "give the optimizer around=[untuned.around.Project()]" if inside else "it cannot be projected"
            raise TypeError(
                f"WeightProjector: the iterate {iterate.name} keeps {', '.join(keys)} beside the parameters and goes "
                f"on from there; {what}."
            )
    elif callable(getattr(optimizer, "eval", None)):
        raise TypeError(
            f"WeightProjector: {name} keeps another point beside the parameters (it has eval()) and goes on from there."
        )

"""Extrapolation for training with large batches: gradients are taken a little ahead of the weights."""

import contextlib
import math
import warnings
from collections.abc import Callable, Generator
from typing import Any

import torch
import torch.distributed as dist

from untuned.wrappers.weights import is_sharded, kind_of, local

_MASK = (1 << 63) - 1


class Extrapolated(torch.optim.Optimizer):
    """Any optimizer, with gradients taken at extrapolated weights: arXiv 2006.05720 (the exact form is recalled).

        w' = w + nesterov (w - w_before) - inner_lr q       in `with optimizer.extrapolated():`
        g = gradient at w';   w <- step of the base optimizer from w with g

    q, the direction, costs no gradient of its own:

    - "local": the gradient of this process in the last step, before it was averaged with the others. The processes
      then take their gradients at different points, which smooths the loss; with one process it is "global".
    - "global": the gradient of the last step, averaged over the processes.
    - "noise": Gaussian noise, another in each process and step, scaled to the norm of each tensor: q = |w| xi / |xi|.

    The paper's Nesterov form starts from w - lr mu v, v being the buffer of momentum mu. This is `nesterov=mu` here,
    since the last step was -lr v; with a changing learning rate it looks ahead by the last one. w_before are the
    weights before the last step. `inner_lr` is about the learning rate of one process without the large batch
    (recalled); it is an attribute, for schedules. On noise-free quadratics of curvature h, SGD needs
    lr + 2 inner_lr < 2 / h: the range of stable learning rates shrinks, and any gain comes from smoothing.

        optimizer = Extrapolated(torch.optim.SGD(model.parameters(), lr=0.8), inner_lr=0.1)
        for inputs, targets in batches:
            optimizer.zero_grad()
            with optimizer.extrapolated():
                loss_of(model(inputs), targets).backward()
            optimizer.step()

    Groups, state and defaults are those of the base optimizer, `optimizer.optimizer`, so schedulers, gradient scalers
    and clipping work on either, and its other public methods are this one's, too, such as `metrics()` and `eval()`.
    Steps without the block are plain ones. A closure given to `step` is called inside a block. A parameter whose last
    step had no gradient is not moved, nor are elements whose gradient was not finite. Gradients of groups with
    `maximize` are followed upwards.

    Under DistributedDataParallel the gradients have been averaged when `backward` returns, so "local" needs the hook
    that keeps them: `model.register_comm_hook(None, optimizer.ddp_hook)`, or `optimizer.keep_local(hook)` around
    another hook; without it a warning says so. It keeps them as they are sent: before clipping, and scaled if a
    gradient scaler is used, which is why that is to be given as `scaler`. For several micro-batches in a step, one
    block around all of them, all but the last under `model.no_sync()`. Models with buffers (batch norm) get those of
    rank 0 in every forward, unless DDP is told not to. For local steps later, torch's own
    `PostLocalSGDOptimizer(optimizer, averager)` around this one. Sharded parameters (FSDP2) have no local gradients:
    direction="global".

    q belongs to a process: save `optimizer.state_dict()` of every rank. torch.distributed.checkpoint's own
    `get_optimizer_state_dict` leaves it out, and the first step after it is then a plain one. Memory: a copy of the
    weights and of the gradients, and one of the weights more for `nesterov`.

    Raises TypeError or ValueError in one sentence for wrong options; RuntimeError, with nothing changed, for `step()`
    inside the block and for a block inside another.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = untuned.wrappers.Extrapolated(torch.optim.SGD([w], lr=0.25), inner_lr=0.25)
    >>> for _ in range(2):
    ...     optimizer.zero_grad()
    ...     with optimizer.extrapolated():
    ...         (w**2).sum().backward()
    ...     optimizer.step()
    >>> w.item(), w.grad.item()                             # 0.5 after a plain step; the second gradient is that at 0
    (0.5, 0.0)
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        inner_lr: float,
        direction: str = "local",
        *,
        nesterov: float = 0.0,
        seed: int = 0,
        scaler: Any = None,
    ) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer) or isinstance(optimizer, torch.optim.LBFGS | Extrapolated):
            raise TypeError(
                f"Extrapolated takes a torch.optim.Optimizer with one gradient per step, not {kind_of(optimizer)}."
            )
        if direction not in ("local", "global", "noise"):
            raise ValueError(f"Extrapolated: direction must be 'local', 'global' or 'noise', not {direction!r}.")
        _check_numbers(inner_lr=inner_lr, nesterov=nesterov, seed=seed)
        if scaler is not None and not callable(getattr(scaler, "get_scale", None)):
            raise TypeError(f"Extrapolated: scaler must be a gradient scaler of torch, not {kind_of(scaler)}.")
        if direction != "global" and any(map(is_sharded, _params(optimizer.param_groups))):
            raise ValueError("Extrapolated: of sharded parameters no process has the gradient; use direction='global'.")
        self.optimizer, self.inner_lr, self.direction, self.nesterov = optimizer, inner_lr, direction, nesterov
        self.seed, self.scaler, self.steps = seed, scaler, 0
        self._q: dict[torch.Tensor, torch.Tensor] = {}
        self._before: dict[torch.Tensor, torch.Tensor] = {}
        self._saved: dict[torch.Tensor, torch.Tensor] | None = None
        self._local: dict[torch.Tensor, torch.Tensor] = {}
        self._hooked = self._warned = False
        super().__setstate__({"defaults": dict(optimizer.defaults)})  # its hooks, and nothing of groups and state
        optimizer.register_step_pre_hook(self._refuse_inside)

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.optimizer.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.optimizer.add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def __getattr__(self, name: str) -> Any:
        base = self.__dict__.get("optimizer")
        if base is None or name.startswith("_"):  # private names say what a class can do, and this is another one
            raise AttributeError(f"'Extrapolated' object has no attribute '{name}'")
        return getattr(base, name)

    def __getstate__(self) -> dict[str, Any]:
        hooks = [key for key in self.__dict__ if key.startswith("_optimizer_")]  # as torch.optim leaves them out
        return {key: value for key, value in self.__dict__.items() if key not in (*hooks, "step")}

    def __repr__(self) -> str:
        return f"Extrapolated({self.optimizer!r}, inner_lr={self.inner_lr}, direction={self.direction!r})"

    # ------------------------------------------------------------------ the extrapolated point

    @contextlib.contextmanager
    def extrapolated(self) -> Generator[None]:
        """The parameters hold w' inside the block, and bit by bit what they held before it after it."""
        if self._saved is not None:
            raise RuntimeError("Extrapolated: a block of extrapolated() is open already; leave it first.")
        self._local = {}
        self._saved = {}
        try:
            with torch.no_grad():
                self._move()
            yield
        finally:
            saved, self._saved = self._saved, None
            with torch.no_grad():
                if saved:
                    torch._foreach_copy_([*map(local, saved)], [*map(local, saved.values())])  # pyright: ignore

    def _move(self) -> None:
        """w <- w', with the old w in `_saved`."""
        assert self._saved is not None
        generators: dict[torch.device, torch.Generator] = {}
        recipe = getattr(self.optimizer, "recipe", None)  # this library's have no entry for it in groups
        of_all = getattr(recipe, "maximize", False)
        for group in self.param_groups:
            up = group.get("maximize", of_all)
            for p in group["params"]:
                if not p.requires_grad:
                    continue
                old = p.detach().clone()
                ahead = self._before.get(p) if self.nesterov else None
                q = self._noise(old, generators) if self.direction == "noise" else self._q.get(p)
                q = q if self.inner_lr else None
                if ahead is None and q is None:
                    continue
                self._saved[p] = old
                if ahead is not None:
                    p.add_(old - ahead, alpha=self.nesterov)
                if q is not None:
                    p.add_(q, alpha=self.inner_lr if up else -self.inner_lr)

    def _noise(self, w: torch.Tensor, generators: dict[torch.device, torch.Generator]) -> torch.Tensor:
        """Gaussian of the norm of w, from the seed, the rank and the count of steps alone."""
        if w.device not in generators:
            key = (
                self.seed * 0x9E3779B97F4A7C15 + _rank() * 0xD1B54A32D192ED03 + self.steps * 0x2545F4914F6CDD1D
            ) & _MASK
            generators[w.device] = torch.Generator(w.device).manual_seed(key)
        xi = torch.randn(w.shape, dtype=w.dtype, device=w.device, generator=generators[w.device])
        norm = torch.linalg.vector_norm(xi)
        return xi * torch.where(norm > 0, torch.linalg.vector_norm(w) / norm, 0.0)

    # ------------------------------------------------------------------ the step

    def step(self, closure: Callable[[], Any] | None = None, **arguments: Any) -> Any:  # pyright: ignore
        """A step of the base optimizer, with all that its `step` takes; the gradients in `p.grad` are q of the next."""
        self._refuse_inside()
        if closure is not None:
            with torch.enable_grad(), self.extrapolated():
                loss = closure()
            return self._step(lambda: loss, arguments)
        return self._step(None, arguments)

    def _refuse_inside(self, *_: Any) -> None:
        """Also a hook of the base optimizer, whose step would be undone when the block is left."""
        if self._saved is not None:
            raise RuntimeError(
                "Extrapolated.step(): the parameters still hold the extrapolated point; leave the block of "
                "extrapolated() first."
            )

    def _step(self, closure: Callable[[], Any] | None, arguments: dict[str, Any]) -> Any:
        for p in _params(self.param_groups):
            if p.grad is not None and p.grad.is_sparse and self.direction != "noise":
                raise TypeError("Extrapolated cannot follow sparse gradients; use direction='noise'.")
        if self.direction == "local" and not self._hooked and not self._warned and _world() > 1:
            self._warned = True
            warnings.warn(
                "Extrapolated: several processes, and none of their local gradients was seen; under "
                "DistributedDataParallel call model.register_comm_hook(None, optimizer.ddp_hook).",
                stacklevel=4,
            )
        self._remember()
        given = () if closure is None else (closure,)
        result = self.optimizer.step(*given, **arguments)
        self.steps += 1
        self._local = {}
        return result

    @torch.no_grad()
    def _remember(self) -> None:
        """What the next block needs of this step. Before the step, which may write into gradients."""
        scale = 1.0
        if self.scaler is not None and self._local:
            scale = 1 / self.scaler.get_scale()
        for p in _params(self.param_groups):
            if self.nesterov:
                _keep(self._before, p, p.detach())
            if self.direction == "noise":
                continue
            if p.grad is None:
                self._q.pop(p, None)
            elif self.direction == "local" and p in self._local:
                self._q[p] = self._local[p].mul(scale) if scale != 1.0 else self._local[p]
                self._q[p].nan_to_num_(0.0, 0.0, 0.0)
            else:
                _keep(self._q, p, p.grad.detach()).nan_to_num_(0.0, 0.0, 0.0)

    # ------------------------------------------------------------------ DistributedDataParallel

    def ddp_hook(self, state, bucket):  # its annotations would have to be classes, so there are none
        """For `model.register_comm_hook(process_group_or_None, optimizer.ddp_hook)`: averages, as without a hook."""
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

        self._keep_bucket(bucket)
        return allreduce_hook(state, bucket)

    def keep_local(self, hook: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """Another communication hook, such as torch's `post_localSGD_hook`, with the local gradients kept."""

        def keeping(state, bucket):
            self._keep_bucket(bucket)
            return hook(state, bucket)

        return keeping

    def _keep_bucket(self, bucket: Any) -> None:
        self._hooked = True
        if self.direction != "local":
            return
        for p, g in zip(bucket.parameters(), bucket.gradients(), strict=True):
            if self._saved is not None and p in self._local:
                raise RuntimeError(
                    "Extrapolated: gradients were averaged twice in one block; put all backward passes but the last "
                    "under model.no_sync()."
                )
            self._local[p] = g.detach().clone()

    # ------------------------------------------------------------------ what is saved

    def state_dict(self) -> dict[str, Any]:
        """That of the base optimizer, and under "extrapolation" what this process keeps, by the order of parameters."""
        order = {p: i for i, p in enumerate(_params(self.param_groups))}
        own = {"inner_lr": self.inner_lr, "nesterov": self.nesterov, "direction": self.direction, "seed": self.seed}
        own |= {"steps": self.steps, "q": {order[p]: q for p, q in self._q.items()}}
        own |= {"before": {order[p]: w for p, w in self._before.items()}}
        return {**self.optimizer.state_dict(), "extrapolation": own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict()` gave; a state of the base optimizer alone begins without q."""
        if self._saved is not None:
            raise RuntimeError("Extrapolated.load_state_dict(): leave the block of extrapolated() first.")
        if not isinstance(state_dict, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"Extrapolated.load_state_dict() takes a dict, not {kind_of(state_dict)}.")
        params = _params(self.param_groups)
        own = state_dict.get("extrapolation", {})
        if not isinstance(own, dict) or not all(isinstance(own.get(key, {}), dict) for key in ("q", "before")):
            raise ValueError("Extrapolated: the state under 'extrapolation' is none that state_dict() gave.")
        if own and own.get("direction") != self.direction:
            raise ValueError(
                f"Extrapolated: the state is of direction={own.get('direction')!r}, and this one of {self.direction!r}."
            )
        kept: dict[str, Any] = {name: own.get(name, getattr(self, name)) for name in ("inner_lr", "nesterov", "seed")}
        kept["steps"] = own.get("steps", 0)
        _check_numbers(**kept)
        for values in (own.get("q", {}), own.get("before", {})):
            for i, value in values.items():
                fits = isinstance(i, int) and 0 <= i < len(params) and isinstance(value, torch.Tensor)
                if not fits or value.shape != params[i].shape:
                    raise ValueError(f"Extrapolated: the state does not fit parameter {i}.")
        self.optimizer.load_state_dict({key: v for key, v in state_dict.items() if key != "extrapolation"})
        self._q = {params[i]: _copy_for(params[i], q) for i, q in own.get("q", {}).items()}
        self._before = {params[i]: _copy_for(params[i], w) for i, w in own.get("before", {}).items()}
        self._local = {}
        for name, value in kept.items():
            setattr(self, name, value)


def _check_numbers(**given: Any) -> None:
    """The options and the count of steps, from the constructor or a checkpoint."""
    for name, value in given.items():
        whole = name in ("seed", "steps")
        least, end = (-math.inf if name == "seed" else 0), (1 if name == "nesterov" else math.inf)
        kind = int if whole else int | float
        if isinstance(value, bool) or not isinstance(value, kind) or not least <= value < end:
            wanted = "a whole number" if whole else f"in [0, {end})"
            raise ValueError(f"Extrapolated: {name} must be {wanted}, not {value!r}.")


def _params(groups: list[dict[str, Any]]) -> list[torch.Tensor]:
    return [p for group in groups for p in group["params"]]


def _keep(kept: dict[torch.Tensor, torch.Tensor], p: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Copy a value into the memory that is kept for p."""
    old = kept.get(p)
    if old is None or old.shape != value.shape or old.dtype != value.dtype or old.device != value.device:
        kept[p] = value.clone()
    else:
        old.copy_(value)
    return kept[p]


def _copy_for(p: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return value.detach().to(device=p.device, copy=True)


def _world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if _world() > 1 else 0

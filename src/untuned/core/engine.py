"""One engine for Direction x StepSize x Iterate x WeightDecay: it joins their verbs into sweeps and decisions.

The number of sweeps is the cost model: a plain method has one, an adaptive one two.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportPrivateImportUsage=false
# torch's stubs leave types unknown, and its multi-tensor functions have private names.

from __future__ import annotations

import contextlib
import inspect
import itertools
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, TypedDict

import numpy as np
import torch

from untuned._version import __version__
from untuned.core import capabilities, rounding, state, totals
from untuned.core.buckets import Bucket, Group, Live, arrange, check_gradient, same_objects, takes_part
from untuned.core.declare import SLOT_DTYPES, check, check_flag, check_parameter, is_real
from untuned.core.frames import ElementFrame, ScalarFrame, number_from
from untuned.core.parts import Direction, Iterate, StepSize, WeightDecay
from untuned.core.place import where
from untuned.core.plan import decided_in_numpy, plan, read_by_model_decisions
from untuned.kernels import sweep
from untuned.kernels.sweep import Sweep, native_available

ROLES = {"direction": Direction, "step_size": StepSize, "iterate": Iterate, "decay": WeightDecay}


_OPTIONS = ("maximize", "skip_nonfinite", "slot_dtype", "kahan_sum", "stochastic_rounding", "clip_grad_norm")


class EngineOptions(TypedDict, total=False):
    """Options every optimizer of the library takes, by keyword.

    maximize: ascend instead of descend; a bound of the loss (lb, target) is then one of minus the loss. skip_nonfinite:
    leave everything as it was in a step where a gradient, its square, or the loss that the method reads is not finite,
    and count it in `metrics()["skipped"]`; costs one read of the gradients. slot_dtype: the dtype of slots (default:
    float32 for float16 and bfloat16 parameters, else the parameter's). loss_group: the process group over whose ranks
    the loss is averaged, "world" (default; with tensor parallelism give the data-parallel group), or None for one that
    is already averaged. shard_group: the process group (or "world") whose ranks hold different parameters as plain
    tensors, as in `ZeroRedundancyOptimizer`, DeepSpeed's ZeRO and FSDP1: what is summed over the model is added over it
    (default None; FSDP2 and tensor parallelism need nothing). Where it is forgotten, or one rank alone holds some of
    the parameters (experts), every rank chooses a step of its own and what they hold in common drifts apart;
    `metrics()` warns of it if the method needs the loss, with which its numbers are compared over loss_group in every
    step, while for other methods nothing goes from rank to rank that would show it. kahan_sum: keep what rounding takes
    from float16 and bfloat16 parameters in a slot, so that small steps add up (default None: for methods that measure
    how far the parameters moved). stochastic_rounding: round bfloat16 parameters and slots up or down at random
    instead, without bias and without memory. clip_grad_norm: scale gradients so that their norm, over all tensors that
    take part, is at most this (default None: no clipping), as `torch.nn.utils.clip_grad_norm_` does before the step,
    but without writing them; the norm from before is in `metrics()["grad_norm"]`. execution: "reference" runs the verbs
    as written, "native" as compiled kernels (needs numba), "auto" (default) as kernels where they exist. fused,
    foreach, capturable: options of torch.optim, also in groups: any value is accepted and changes nothing, since
    kernels are fused wherever they exist and a step on CUDA can be captured. differentiable, amsgrad,
    decoupled_weight_decay: likewise, if they say what is so here: False, False, whether weight decay is decoupled.
    """

    maximize: bool
    skip_nonfinite: bool
    slot_dtype: torch.dtype | None
    loss_group: Any
    shard_group: Any
    kahan_sum: bool | None
    stochastic_rounding: bool
    clip_grad_norm: float | None
    execution: str
    fused: bool | None
    foreach: bool | None
    capturable: bool
    differentiable: bool
    amsgrad: bool
    decoupled_weight_decay: bool


class Optimizer(torch.optim.Optimizer):
    """A recipe of parts run by the engine; a drop-in `torch.optim.Optimizer`.

    Named classes call `super().__init__` with their parts; `untuned.compose` takes any. Raises `TypeError` if the parts
    do not fit together, and `TypeError` or `ValueError` for wrong types and values, before anything is created.
    """

    def __init__(
        self,
        params: Any,
        direction: Direction,
        step_size: StepSize,
        iterate: Iterate,
        decay: WeightDecay,
        *,
        maximize: bool = False,
        skip_nonfinite: bool = True,
        slot_dtype: torch.dtype | None = None,
        loss_group: Any = "world",
        shard_group: Any = None,
        kahan_sum: bool | None = None,
        stochastic_rounding: bool = False,
        clip_grad_norm: float | None = None,
        execution: str = "auto",
        **others: Any,
    ) -> None:
        self.parts: dict[str, Any] = dict(zip(ROLES, (direction, step_size, iterate, decay), strict=True))
        for role, kind in ROLES.items():
            if not isinstance(self.parts[role], kind):
                raise TypeError(f"{role} must be a {kind.__name__} part, not {self.parts[role]!r}.")
        if unknown := sorted(self._without_torch_options(others)):
            raise TypeError(f"{self._title} has no option {unknown[0]!r}; it has {', '.join(sorted(self._options))}.")
        check_flag(self._title, "maximize", maximize)
        check_flag(self._title, "skip_nonfinite", skip_nonfinite)
        if kahan_sum is not None:
            check_flag(self._title, "kahan_sum", kahan_sum)
        if check_flag(self._title, "stochastic_rounding", stochastic_rounding) and kahan_sum:
            raise ValueError(f"{self._title}: stochastic_rounding and kahan_sum have one purpose: choose one of them.")
        if clip_grad_norm is not None and not (is_real(clip_grad_norm) and clip_grad_norm > 0):
            raise ValueError(f"{self._title}: clip_grad_norm must be None or a number above 0, not {clip_grad_norm!r}.")
        if slot_dtype not in (None, *SLOT_DTYPES):
            raise TypeError(f"{self._title}: slot_dtype must be None, float64, 32 or bfloat16, not {slot_dtype!r}.")
        sweep.check_execution(self._title, execution)
        capabilities.check(self.parts)
        self.maximize, self.skip_nonfinite, self.slot_dtype = maximize, skip_nonfinite, slot_dtype
        self.loss_group, self.shard_group = loss_group, shard_group
        self.kahan_sum, self.execution = kahan_sum, execution
        self.stochastic_rounding, self.clip_grad_norm = stochastic_rounding, clip_grad_norm
        self._prepare()
        super().__init__(_listed(params), {k: v for part in self.parts.values() for k, v in part.hypers().items()})
        if shard_group is None and not any(group["params"] for group in self.param_groups):  # else others hold them
            raise ValueError(f"{self._title}: no group has a parameter. Give it those to train: model.parameters().")

    def _prepare(self) -> None:
        """Everything that follows from the parts and is not saved."""
        self.recipe = " x ".join(part.shape for part in self.parts.values())
        self.has_modes = "modes" in self.parts["iterate"].gives
        # whether the direction divides out the sum of its weights, rho, which is kept per tensor then
        self.corrects: bool = getattr(self.parts["direction"], "correct", False)
        self._plan = sweep.of_plan(self, plan(self.parts))
        self._guard = sweep.guard(clips=self.clip_grad_norm is not None)
        self.grad_norm: torch.Tensor | None = None  # before clipping
        self.clip = torch.ones((), dtype=torch.float64)  # the factor of the gradients in this step
        self._tensors = sweep.Tensors([self._guard, *(one for one, _ in self._plan)], self.stochastic_rounding)
        self._arranged: tuple[list[list[Any]], list[Bucket]] = [], []
        self.before: dict[int, dict[str, torch.Tensor]] = {}  # numbers of each group when the step began
        self.loss: torch.Tensor | None = None
        self.sample_ids: torch.Tensor | None = None
        self._recorded: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        self._advised: set[Any] = set()
        self._apart: Any = False  # whether numbers of the model were seen to differ between ranks
        self.driven = any("loss" in part.needs for part in self.parts.values())
        self._calls, self._losses, self._course = 0, list[torch.Tensor](), dict[str, torch.Tensor]()  # for advice
        self._shared = read_by_model_decisions(self.parts)
        on_host = native_available and self.execution != "reference"
        self._in_numpy = decided_in_numpy(self.parts) if on_host else set[str]()

    # ------------------------------------------------------------------ construction, state and its persistence

    @property
    def _title(self) -> str:
        return type(self).__name__ if type(self) is not Optimizer else "compose"

    @property
    def device(self) -> torch.device:
        """Where the numbers live: the device of the first parameter."""
        first = next((p for group in self.param_groups for p in group["params"]), None)
        return totals.device_without_tensors() if first is None else first.device

    @property
    def top(self) -> Any:
        """The largest lr of all groups; a group's own lr relative to it is how fast the group is to move."""
        lrs = [group["lr"] for group in self.param_groups]
        if any(isinstance(lr, torch.Tensor) for lr in lrs):
            return torch.stack([number_from(lr, self.device).detach().reshape(()) for lr in lrs]).amax()
        return max(lrs)

    @torch.inference_mode(False)  # what an optimizer keeps is changed later, when inference mode is over
    def add_param_group(self, param_group: Group) -> None:
        """Add parameters, also in the middle of a run: estimates carry over, their own averages start fresh."""
        if not isinstance(param_group, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"{self._title}: a parameter group must be a dict, not {param_group!r}.")
        if "params" not in param_group:
            raise ValueError(f"{self._title}: a parameter group has its parameters under 'params'; this one has not.")
        written = state.number_keys(self) | {"training", "method"}  # by an optimizer whose groups are used again
        group = self._without_torch_options({k: v for k, v in param_group.items() if k not in written})
        params = group["params"]
        group["params"] = [params] if isinstance(params, torch.Tensor) else _listed(params)
        self._check_group(group)
        self._check_shared([*self.param_groups, self.defaults | group])
        for part in self.parts.values():
            if hasattr(part, "caution") and (text := part.caution(self.defaults | group, self.parts["decay"].gives)):
                warnings.warn(text, stacklevel=2)
        super().add_param_group(group)
        group["training"] = self.param_groups[0].get("training", True)
        state.create_numbers(self, group)

    @property
    def _options(self) -> set[str]:
        """The names of what the constructor takes."""
        names = {*inspect.signature(type(self)).parameters, *EngineOptions.__annotations__}
        return names - {"params", "engine", "others"}

    def _without_torch_options(self, given: dict[str, Any]) -> dict[str, Any]:
        """The options given without those of torch.optim, of which none may ask for what is not so here."""
        must = {"differentiable": False, "amsgrad": False, "decoupled_weight_decay": self.parts["decay"].decoupled}
        for key in must:
            if given.get(key, must[key]) != must[key]:
                raise ValueError(f"{self._title}: {key} is always {must[key]} here, not {given[key]!r}. Leave it out.")
        return {k: v for k, v in given.items() if k not in (*must, "fused", "foreach", "capturable")}

    def _check_group(self, group: Group) -> None:
        fixed = {key: getattr(self, key) for key in _OPTIONS}
        for part in self.parts.values():
            sizes = {n.size for n in part.numbers().values()}
            for name, field in part.fields.items():
                if name in part.hypers() and name in group:
                    group[name] = check(part.name, field, group[name])
                if name not in part.hypers() or name in sizes:
                    fixed[name] = getattr(part, name)
        for name, value in fixed.items():
            if name in group and group[name] != value:
                raise ValueError(
                    f"{self._title}: {name} shapes the method and is {value!r} for all groups, not {group[name]!r} "
                    f"in one. Build a second optimizer for these parameters."
                )
        if renamed := sorted(self._options & group.keys() - fixed.keys() - self.defaults.keys()):
            raise ValueError(
                f"{self._title}: {renamed[0]} is an option of the optimizer, not of a group; "
                f"a group may have {', '.join(self.defaults)}."
            )
        tensors: list[Any] = [p[1] if isinstance(p, tuple) and len(p) == 2 else p for p in group["params"]]
        known = {p for g in getattr(self, "param_groups", ()) for p in g["params"]}
        for p in tensors:
            check_parameter(self._title, p)
            if p in known:
                raise ValueError(f"{self._title}: a parameter of shape {tuple(p.shape)} was given twice. Give it once.")
            known.add(p)

    def _check_shared(self, groups: list[Group]) -> None:
        for group, (part, key) in itertools.product(groups[1:], self._shared):
            one, other = groups[0][key], group[key]
            if one is not other and one != other:
                raise ValueError(
                    f"{part}: {key} must be equal in all groups, since one decision is made for the whole model, "
                    f"not {one!r} and {other!r}."
                )

    def __getstate__(self) -> dict[str, Any]:
        kept = ("parts", "loss_group", "shard_group", "execution", *_OPTIONS)
        return super().__getstate__() | {k: self.__dict__[k] for k in kept}

    def __setstate__(self, state_: dict[str, Any]) -> None:
        super().__setstate__(state_)
        self.defaults.pop("differentiable", None)  # torch adds its own option here
        self._prepare()
        state.tie_numbers(self)

    @torch.inference_mode(False)
    def state_dict(self) -> dict[str, Any]:
        """As in torch.optim; parameters that have not taken a step yet, but may, are in it."""
        state.own(self, saving=True)
        return super().state_dict()

    @torch.inference_mode(False)
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict()` gave, as the hooks registered for loading adapt it.

        Raises `ValueError` or `TypeError` and changes nothing if it belongs to another method or is spoiled.
        """
        if not isinstance(state_dict, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
            state.check_loadable(self, state_dict)  # says so; torch would copy it for the hooks
        loaded: dict[str, Any] = {}

        def accept(opt: torch.optim.Optimizer, adapted: dict[str, Any]) -> None:
            state.check_loadable(self, adapted)
            loaded.update(adapted)

        # Hooks of users may adapt what is loaded, and look at what was: ours come after the former, before the latter.
        before = self.register_load_state_dict_pre_hook(accept)
        after = self.register_load_state_dict_post_hook(lambda _: state.restore(self, loaded), prepend=True)
        with before, after:
            super().load_state_dict(state_dict)

    def reset(self, params: Any = None) -> None:
        """Forget what was learned about some parameters, or about all (None): their next step is like a first one.

        For weights that were merged, pruned or set anew. The weights and the options stay as they are. What is known of
        the model as a whole (an estimated distance, the average of the losses, counters) is only forgotten with all.
        Raises `ValueError`, with nothing changed, for a tensor that is in no group.
        """
        members = {p for group in self.param_groups for p in group["params"]}
        chosen = members if params is None else {*_listed(params)}
        if not chosen <= members:
            raise ValueError(f"{self._title}.reset() got a tensor that is in no group. Give it parameters.")
        for p in chosen:
            self.state.pop(p, None)
        if params is None:
            for group, key in itertools.product(self.param_groups, state.number_keys(self)):
                del group[key]
            for group in self.param_groups:
                state.create_numbers(self, group)

    # ------------------------------------------------------------------ the step

    def record_loss(self, loss: torch.Tensor | float, sample_ids: Any = None) -> None:
        """Add the loss of one micro-batch; the next step uses the mean of those recorded since the last one.

        For trainers that call a bare `step()`. The loss is the unscaled one of the model, as in `step(loss=loss)`. What
        is recorded for a step that a gradient scaler leaves out enters the next one; with a scaler, give it the loss:
        `scaler.step(optimizer, loss=loss)`.
        """
        ids = self._checked_ids(sample_ids)
        self._recorded.append((self._scalar_loss(loss, ids), ids))

    def _scalar_loss(self, loss: Any, ids: torch.Tensor | None) -> torch.Tensor:
        sizes = (1,) if ids is None else (1, ids.numel())
        if isinstance(loss, torch.Tensor) and loss.numel() in sizes and not loss.is_complex():
            return loss.detach().to(self.device, torch.float64).mean()
        if is_real(loss):
            return number_from(float(loss), self.device)
        shown = f"a tensor of shape {tuple(loss.shape)}, {loss.dtype}" if isinstance(loss, torch.Tensor) else repr(loss)
        raise TypeError(f"{self._title}: the loss must be a number or a one-element tensor, not {shown}.")

    def _checked_ids(self, sample_ids: Any) -> torch.Tensor | None:
        """The ids on the optimizer's device if the method reads them; their range is checked where that is free."""
        samples = next((part.samples for part in self.parts.values() if "sample_ids" in part.needs), None)
        if samples is None:
            return None
        if sample_ids is None:
            raise ValueError(
                f"{self._title}.step() needs to know the samples: call step(loss=loss, sample_ids=ids) with their "
                f"numbers in the data set, 0 to {samples - 1}."
            )
        ids = torch.as_tensor(sample_ids)
        if ids.dim() != 1 or not ids.numel() or ids.is_floating_point() or ids.dtype == torch.bool:
            raise TypeError(f"{self._title}: sample_ids must be a vector of whole numbers, not {sample_ids!r}.")
        if ids.device.type == "cpu" and not 0 <= ids.numpy().min() <= ids.numpy().max() < samples:
            raise ValueError(
                f"{self._title}: sample_ids must lie between 0 and {samples - 1} (samples={samples}), not between "
                f"{ids.numpy().min()} and {ids.numpy().max()}."
            )
        return ids.to(self.device, torch.int64)

    @torch._disable_dynamo  # as torch.optim does: a compiled training loop calls the kernels as they are
    @torch.inference_mode(False)
    @torch.no_grad()
    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        closure: Callable[[], Any] | None = None,
        *,
        loss: torch.Tensor | float | None = None,
        sample_ids: Any = None,
    ) -> Any:
        """Do one step and return the loss given or computed.

        `loss` is the mean loss whose gradient is in `p.grad`; only loss-driven methods read it, the others accept it.
        Instead of it there may be a `closure` that computes loss and gradients, or earlier calls of `record_loss`.
        `sample_ids` are the numbers of the batch's samples in the data set, a vector of integers, for methods that
        record a number per sample; `loss` may then hold one loss per sample, and every rank gives as many.
        Raises, with nothing changed: `RuntimeError` in evaluation mode, `ValueError` without a loss or ids if the
        method needs them, `TypeError` for sparse gradients.
        """
        computed = None
        if closure is not None:
            if not callable(closure):  # pyright: ignore[reportUnnecessaryComparison]
                raise TypeError(f"{self._title}.step() takes a closure first, not {closure!r}: call step(loss=loss).")
            with torch.enable_grad():
                computed = closure()
        result = loss if loss is not None else computed
        if not all(map(_is_frozen, self.param_groups)):
            self._step(loss, computed, sample_ids)
        elif not self.state:
            state.own(self)  # which is what torch.distributed.checkpoint makes such a step for
        self._recorded, self._calls = [], self._calls + 1
        if self._calls % 100 == 0:
            self._look_back()
        return result

    def _step(self, loss: Any, computed: Any, sample_ids: Any) -> None:
        # if ranks add something up, all of them have to, whatever each holds
        meets = max(totals.size(self.shard_group), totals.size(self.loss_group) if self.driven else 1) > 1
        try:
            self._check_step()
            buckets = self._live_buckets()
            if not buckets and not meets:
                return
            value, ids = self._loss_of_rank(loss, computed, sample_ids)
        except Exception:
            self.call_roll(ready=False)
            raise
        counts = self.call_roll(ready=True, live=[b.source[0] for b in buckets])
        if counts is not None:  # buckets without tensors: what other ranks sum up is decided here, too
            groups = enumerate(self.param_groups)
            others = [Bucket(g, [], [], self.device, (), (i, []), on=counts[i] > 0) for i, g in groups]
            buckets = buckets + [state.stack_numbers(self, bucket) for bucket in others]
        self._take_loss(value, ids)
        if not buckets:
            return
        self._begin(buckets)
        for sweep_, deciders in self._plan:
            sums = self._sweep(sweep_, buckets)
            for role, verb in deciders:
                self._decide(role, verb, buckets, sums.get(role, []))
        self.loss = self.sample_ids = None

    def call_roll(self, ready: bool, live: Iterable[int] = ()) -> torch.Tensor | None:
        """Tell the other ranks whether this one is ready for the sums of the step, and hear whether all are.

        `live`: the numbers of the groups in which it has gradients. -> how many ranks have some in each group, if ranks
        hold different parameters; else None. A rank that has run out of batches in `DistributedDataParallel.join` adds
        up one float32, too, a zero. A GPU would have to be waited for: there nobody hears of a rank that failed, and
        the process group ends those who wait for it.
        """
        on_host, counts, missing = self.device.type == "cpu", None, 0
        loss_group = self.loss_group if self.driven and on_host else None
        by_group = [float(i in live) for i in range(len(self.param_groups))]
        for group, said in ((loss_group, [float(ready)]), (self.shard_group, [float(ready), *by_group])):
            if (size := totals.size(group)) > 1:
                counts = torch.stack([number_from(value, self.device) for value in said]).float()
                counts = totals.over_shards(counts, group)
                missing = max(missing, size - int(counts.numpy()[0])) if on_host else 0
        if ready and missing:  # known after both sums, in which a rank that failed takes part, too
            raise RuntimeError(
                f"{self._title}.step(): {missing} ranks take no part in it. One that failed says why itself; one that "
                f"ran out of batches in model.join() needs "
                f"Join([model, untuned.integrations.join.Joining(optimizer)]) in its place."
            )
        return counts[1:] if counts is not None and totals.size(self.shard_group) > 1 else None

    def _look_back(self) -> None:
        """Keep what parts want to know of the last hundred losses, and on a CPU, where reading is free, warn."""
        if self._losses:
            ascending = torch.stack([value.to(self.device) for value in self._losses]).sort().values
            low, last = ascending[len(ascending) // 10], ascending[len(ascending) // 2]
            course = {"loss_first": self._losses[0], "loss_least": last} | self._course
            least = torch.minimum(course["loss_least"].to(last), last)
            self._losses, self._course = [], course | {"loss_low": low, "loss_last": last, "loss_least": least}
        if self.device.type == "cpu" and any(hasattr(part, "advice") for part in self.parts.values()):
            self.metrics()

    def _live_buckets(self) -> list[Bucket]:
        """The parameters that take part in this step; arranged and checked anew only when that changes."""
        live = list(map(takes_part, self.param_groups))
        now = [list(self.param_groups), *(params for params, _ in live), state.tensors(self)]
        known, buckets = self._arranged
        same = len(known) == len(now) and all(map(same_objects, known, now))
        if same:
            _take_gradients(buckets, live)
        if not same or not self._tensors.found(self, buckets):
            for p in itertools.chain.from_iterable(params for params, _ in live):
                check_parameter(self._title, p)
                check_gradient(self._title, p)
            state.own(self)
            buckets = arrange(live, self.param_groups, self.state)
            _take_gradients(buckets, live)
            position = {p: i for i, p in enumerate(p for group in self.param_groups for p in group["params"])}
            for bucket in buckets:
                state.stack_numbers(self, bucket)
                if self.stochastic_rounding:
                    bucket.positions = torch.tensor([position[p] for p in bucket.params], device=bucket.device)
            self._tensors.arrange(self, buckets)
            now[-1] = state.tensors(self)
            self._arranged = now, buckets
        for bucket in buckets:
            bucket.grads = []  # the kernels know their addresses, and nothing may keep them alive after the step
            for p in bucket.params if bucket.domain else ():  # a gradient may be placed anew without showing above
                check_gradient(self._title, p)
        return buckets

    def _check_step(self) -> None:
        if self.has_modes and not self.param_groups[0]["training"]:
            raise RuntimeError(
                f"{self._title}.step() needs training mode, since the parameters hold the averaged point: "
                f"call optimizer.train() before it."
            )
        self._check_shared(self.param_groups)

    def _loss_of_rank(self, loss: Any, computed: Any, sample_ids: Any) -> tuple[Any, Any]:
        if not self.driven:
            return None, None
        if loss is not None and self._recorded:
            raise ValueError(f"{self._title}.step() got loss= after record_loss(loss): give the loss one way only.")
        if self._recorded:
            values = torch.stack([value.to(self.device) for value, _ in self._recorded])
            recorded = [ids for _, ids in self._recorded if ids is not None]
            ids = torch.cat(recorded) if recorded else None
            sizes = [len(i) for i in recorded] or [1] * len(values)  # of the micro-batches, as far as they are known
            value = (values * values.new_tensor(sizes)).sum() / sum(sizes)
        else:
            given = loss if loss is not None else computed
            if given is None:
                raise ValueError(
                    f"{self._title}.step() needs the loss: call step(loss=loss), step(closure) or record_loss(loss) "
                    f"before it."
                )
            ids = self._checked_ids(sample_ids)
            value = self._scalar_loss(given, ids)
        return value, ids

    def _take_loss(self, value: Any, ids: Any) -> None:
        """What decisions read: the mean loss of the ranks, and the samples of all of them."""
        if value is not None:
            value, apart = totals.mean_over_ranks(value, state.numbers_of_model(self), self.loss_group)
            self._apart |= apart
            self._losses.append(value := -value if self.maximize else value)
        self.loss = value
        self.sample_ids = None if ids is None else totals.of_all_ranks(self._title, ids, self.loss_group)

    def _begin(self, buckets: list[Bucket]) -> None:
        """Decide whether this step may change anything, remember the numbers, and advance the counters."""
        for bucket in buckets:
            lr = bucket.group["lr"]  # as a tensor it freezes the group, or not, by a value only the device knows
            on = (lr != 0).reshape(()).to(bucket.device) if isinstance(lr, torch.Tensor) else None
            bucket.on = on if bucket.params or bucket.on is None else bucket.on & (True if on is None else on)
        if self.skip_nonfinite or self.clip_grad_norm is not None:
            sums = totals.over_shards(self._rows(self._guard, buckets).sum(0), self.shard_group)
            if self.skip_nonfinite:
                ok = (sums[0] == 0) & torch.isfinite(sums).all()  # a norm may overflow where no square does
                self._go_on_if(buckets, ok if self.loss is None else ok & torch.isfinite(self.loss))
            if self.clip_grad_norm is not None:
                self.grad_norm = sums[1].sqrt()
                self.clip = (self.clip_grad_norm / (self.grad_norm + 1e-6)).clamp(max=1.0)  # torch's 1e-6
        for bucket in buckets:
            if not bucket.begun:
                state.fill_start_slots(self, bucket)
        state.remember_numbers(self, buckets)
        first = self.param_groups[0]
        first["steps"].add_(self.on_any(buckets))
        for bucket in buckets:
            on = True if bucket.on is None else bucket.on
            bucket.t = bucket.numbers["step"].add_(on).double()
            if self.stochastic_rounding:
                bucket.noise = rounding.keys(first["steps"].to(bucket.device), bucket.positions)
            if self.corrects and bucket.params:
                frame = ElementFrame(self, bucket, 0)
                keep, take = self.parts["direction"].weight(frame.place("direction"))
                bucket.numbers["rho"].mul_(where(on, keep, 1.0)).add_(where(on, take, 0.0))

    def _go_on_if(self, buckets: list[Bucket], flag: torch.Tensor) -> None:
        """Let buckets change only where the flag holds too, and count the step as skipped if it does not."""
        self.param_groups[0]["skipped"].add_(self.on_any(buckets) & ~flag)
        for bucket in buckets:
            here = flag.to(bucket.device)
            bucket.on = here if bucket.on is None else bucket.on & here

    def on_any(self, buckets: list[Bucket]) -> Any:
        """Whether any of these buckets may change: True, or a 0-dim bool tensor."""
        flags = [b.on for b in buckets if b.on is not None]
        return torch.stack([f.to(self.device) for f in flags]).any() if len(flags) == len(buckets) else True

    def on_rows(self, buckets: list[Bucket]) -> Any:
        """The same for every live tensor of these buckets: True, or a bool vector bucket by bucket."""
        if all(b.on is None for b in buckets):
            return True
        flags = [torch.ones((), dtype=torch.bool) if b.on is None else b.on for b in buckets]
        return totals.joined([f.to(self.device).expand(len(b.params)) for f, b in zip(flags, buckets, strict=True)])

    def _sweep(self, sweep: Sweep, buckets: list[Bucket]) -> dict[str, list[tuple[torch.Tensor, bool]]]:
        """Run a sweep on every tensor; return each role's sums: a vector over the live tensors, and if it is `each`."""
        if not sweep.count:
            self._tensors.run(self, sweep, buckets)
            return {}
        rows = self._rows(sweep, buckets)
        if self.skip_nonfinite:  # finite gradients may still overflow in a sum: then no number moves
            bad = totals.over_shards((~torch.isfinite(rows)).sum(dtype=torch.float64), self.shard_group)
            self._go_on_if(buckets, bad == 0)
        columns = iter(rows.unbind(1))
        return {role: [(next(columns), keep) for keep in flags] for role, flags in sweep.apart.items()}

    def _rows(self, sweep: Sweep, buckets: list[Bucket]) -> torch.Tensor:
        """The sums of a sweep, a row per live tensor; 0 in a group whose lr is a tensor of 0: it is not there."""
        blocks = self._tensors.run(self, sweep, buckets)
        for i, bucket in enumerate(buckets):
            if bucket.on is not None and isinstance(bucket.group["lr"], torch.Tensor):
                blocks[i] = torch.where(bucket.on, blocks[i], torch.zeros_like(blocks[i]))
        return totals.gather(buckets, blocks, self.device)

    def _decide(self, role: str, verb: str, buckets: list[Bucket], sums: list[tuple[torch.Tensor, bool]]) -> None:
        part, start = self.parts[role], 0
        with np.errstate(all="ignore"):  # as torch has it: what is not finite is not written
            for group in [None] if part.scope == "model" else self.param_groups:
                mine = [bucket for bucket in buckets if group is None or bucket.group is group]
                rows = slice(start, start := start + sum(len(bucket.params) for bucket in mine))
                if mine:
                    frame = ScalarFrame(self, part, mine, role in self._in_numpy)
                    columns = [(frame.seen(column)[rows], keep or part.scope == "tensor") for column, keep in sums]
                    added = self._added(frame, [column.sum() for column, keep in columns if not keep])
                    here = (column if keep else next(added) for column, keep in columns)
                    getattr(part, verb)(frame.place(role), *here)
                    frame.commit()

    def _added(self, frame: ScalarFrame, local: list[Any]) -> Iterator[Any]:
        """Sums over this process's tensors, added over the ranks if each holds others: in one collective."""
        if self.shard_group is None or not local:
            return iter(local)
        packed = torch.stack([torch.as_tensor(value) for value in local])
        return iter(frame.seen(totals.over_shards(packed, self.shard_group)))

    # ------------------------------------------------------------------ modes

    def train(self, mode: bool = True) -> None:
        """Put the point to train from into the parameters. Methods without averaging hold one point: nothing to do."""
        self._switch(mode)

    def eval(self) -> None:
        """Put the point to evaluate into the parameters; call `train()` before the next step."""
        self._switch(False)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _switch(self, training: bool) -> None:
        if not self.has_modes or self.param_groups[0]["training"] == training:
            return
        for group in self.param_groups:
            for p in group["params"]:
                if held := self.state.get(p):  # before its first step a parameter is what it is
                    bucket = Bucket(group, [p], [held], p.device, (), on=held["step"] > 0)
                    frame = ElementFrame(self, bucket, 0)
                    iterate = self.parts["iterate"]
                    (iterate.enter if training else iterate.leave)(frame.place("iterate"))
                    frame.commit()
            group["training"] = training

    @contextlib.contextmanager
    def averaged_parameters(self) -> Generator[None]:
        """Evaluation mode inside the `with` block, training mode again after it, also on an error."""
        was = self.param_groups[0]["training"]
        self.eval()
        try:
            yield
        finally:
            self.train(was)

    # ------------------------------------------------------------------ what people see

    def metrics(self) -> dict[str, float]:
        """Numbers worth logging, read from the device in one go when called.

        Warns once, with the option to turn, if they show that an estimate of the method is stuck, that a method which
        reads the loss keeps raising it, or that the loss lies below its bound. On a CPU every hundredth step looks by
        itself; elsewhere that would wait for the device, and only a call of this warns.
        `lr_effective` is the learning rate the method chose in its last step (of group 0; `lr_effective_1`, ... of the
        others); `steps` and `skipped` count; the rest are the method's own numbers, those kept per tensor as a mean.
        """
        if not self.state:
            state.own(self)
        found: dict[str, Any] = {}
        for i, group in enumerate(self.param_groups):
            found["lr_effective" if i == 0 else f"lr_effective_{i}"] = self._lr_effective(group)
        first = self.param_groups[0]
        for part in self.parts.values():
            for n in part.numbers().values():
                held = [held[n.key].to(self.device) for held in self.state.values() if n.key in held]
                if part.per_tensor(n) and held:
                    found[n.key] = torch.stack(held).mean()
                elif not part.per_tensor(n) and first[n.key].dim() == 0:
                    found[n.key] = first[n.key]
        found |= {"steps": first["steps"], "skipped": first["skipped"], "apart": self._apart}
        if self.grad_norm is not None:
            found["grad_norm"] = self.grad_norm
        read = torch.stack([number_from(v, self.device).reshape(()) for v in (found | self._course).values()])
        values = dict(zip(found | self._course, read.tolist(), strict=True))
        texts = {part: part.advice(first | values) for part in self.parts.values() if hasattr(part, "advice")}
        if found.pop("apart") and values["apart"]:
            texts["ranks"] = f"{self._title}: numbers differ between ranks; parameters of one alone need shard_group."
        for by, text in texts.items():
            if text and by not in self._advised:
                self._advised.add(by)
                warnings.warn(text, stacklevel=2)
        return {key: values[key] for key in found}

    def _lr_effective(self, group: Group) -> Any:
        """What the method made of the lr of a group in its last step; a schedule may have moved on since."""
        trained = [p for p in group["params"] if self.state.get(p)]
        if not trained:
            return 0.0
        states, keys = [self.state[p] for p in trained], ("step", "rho" if self.corrects else "step")
        t, rho = (torch.stack([held[key].to(self.device) for held in states]).double().max() for key in keys)
        numbers, t = {"rho": torch.where(t > 0, rho, 1.0).reshape(1)}, t.clamp(min=1.0).reshape(1)
        used = group | {"lr": self.before.get(id(group["params"]), group)["lr"]}
        frame = ElementFrame(self, Bucket(used, trained, states, self.device, (), numbers=numbers, t=t), 0)
        value = frame.read(self.parts["iterate"], "rate")
        for role in ("step_size", "iterate"):
            if hasattr(self.parts[role], "effective"):
                value = self.parts[role].effective(frame.place(role), value)
        return value

    def __repr__(self) -> str:
        rest = len(self._tensors.rest)  # known from the first step on
        by_kernels = bool(self._tensors.batches) if rest else self.execution != "reference" and native_available
        running = "native execution" if by_kernels else "reference execution"
        running += f", {rest} tensors by the reference" if rest and by_kernels else ""
        recipe = " x ".join(map(repr, self.parts.values()))
        groups = (
            f"  group {i}: {len(g['params'])} tensors, {sum(p.numel() for p in g['params']):,} parameters, "
            + ", ".join(f"{k}={g[k]}" for k in self.defaults)
            for i, g in enumerate(self.param_groups)
        )
        return "\n".join([f"{type(self).__name__} (untuned {__version__}, {running}): {recipe}", *groups])


def _is_frozen(group: Group) -> bool:
    """Whether lr is surely 0; a device would have to be waited for."""
    lr = group["lr"]
    return (
        lr.device.type == "cpu" and bool(lr.detach().double().numpy() == 0) if isinstance(lr, torch.Tensor) else lr == 0
    )


def _take_gradients(buckets: list[Bucket], live: list[Live]) -> None:
    for bucket in buckets:
        number, places = bucket.source
        grads = live[number][1]
        bucket.grads = grads if len(places) == len(grads) else [grads[place] for place in places]


def _listed(params: Any) -> list[Any]:
    """Parameters as a list, so that a generator is read once, in the same order in every run."""
    if isinstance(params, torch.Tensor | str | dict | set | frozenset) or not isinstance(params, Iterable):
        raise TypeError(
            f"params must be a list or an iterator of tensors, (name, tensor) pairs or dicts, not a "
            f"{type(params).__name__}: use model.parameters() or [p]."
        )
    return list(params)

"""The base of all optimizers: Direction x StepSize x Iterate x WeightDecay as a `torch.optim.Optimizer`."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportPrivateImportUsage=false
# torch's stubs leave types unknown, and its multi-tensor functions have private names.

from __future__ import annotations

import contextlib
import inspect
import operator
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any

import torch

from untuned._version import __version__
from untuned.memory import checkpoint, slots
from untuned.memory.buckets import Bucket, device_of
from untuned.memory.now import Now
from untuned.optimizer import groups
from untuned.optimizer.inputs import Inputs
from untuned.optimizer.metrics import Watch
from untuned.optimizer.options import EngineOptions
from untuned.parts.kinds import Direction, GradientTransform, Iterate, StepSize, StepTransform, WeightDecay
from untuned.recipe.recipe import Group, Recipe, variants_of
from untuned.run import launch
from untuned.run.modes import switch
from untuned.run.step import step as do_step


class Optimizer(torch.optim.Optimizer):
    """A recipe of parts run by the engine; a drop-in `torch.optim.Optimizer`.

    Named classes call `super().__init__` with their parts; `untuned.compose` takes any. `gradient` and `around` are
    lists of transforms, of the gradient and of the plain step. All but the step size and the iterate may be a dict from
    labels to such parts: a group with `label` is then served by those of its label. Raises `TypeError` if the parts do
    not fit together, and `TypeError` or `ValueError` for wrong types and values, before anything is created.
    """

    def __init__(
        self,
        params: Any,
        direction: Direction | Mapping[str, Direction],
        step_size: StepSize,
        iterate: Iterate,
        decay: WeightDecay | Mapping[str, WeightDecay],
        *,
        gradient: Sequence[GradientTransform] | Mapping[str, Sequence[GradientTransform]] = (),
        around: Sequence[StepTransform] | Mapping[str, Sequence[StepTransform]] = (),
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
        title = type(self).__name__ if type(self) is not Optimizer else "compose"
        chains = {"gradient": gradient, "direction": direction, "step_size": step_size, "around": around}
        variants = variants_of(chains | {"iterate": iterate, "decay": decay})
        options = maximize, skip_nonfinite, slot_dtype, kahan_sum, stochastic_rounding, clip_grad_norm
        self.recipe = Recipe(title, variants, *options)
        if unknown := sorted(groups.without_torch_options(self.recipe, others)):
            raise TypeError(f"{title} has no option {unknown[0]!r}; it has {', '.join(sorted(self._options))}.")
        launch.check_execution(title, execution)
        self.loss_group, self.shard_group, self.execution = loss_group, shard_group, execution
        self._prepare()
        everywhere = [part for part in self.recipe.all_parts if all(part in v.values() for v in variants.values())]
        super().__init__(groups.listed(params), {k: v for part in everywhere for k, v in part.hypers().items()})
        if shard_group is None and not any(group["params"] for group in self.param_groups):  # else others hold them
            raise ValueError(f"{title}: no group has a parameter. Give it those to train: model.parameters().")

    def _prepare(self) -> None:
        """Everything that follows from the recipe and is not saved."""
        self._launch = launch.Launch(self.recipe, self.execution)
        self._inputs = Inputs(self.recipe, self.loss_group, self.shard_group)
        self._watch = Watch()
        self._last: Now | None = None
        self._calls = 0

    # ------------------------------------------------------------------ construction, state and its persistence

    @property
    def parts(self) -> dict[str, Any]:
        """The parts by their roles; with a partition those of its first label."""
        return self.recipe.parts

    @property
    def device(self) -> torch.device:
        """Where the numbers live: the device of the first parameter."""
        return device_of(self.param_groups)

    @torch.inference_mode(False)  # what an optimizer keeps is changed later, when inference mode is over
    def add_param_group(self, param_group: Group) -> None:
        """Add parameters, also in the middle of a run: estimates carry over, their own averages start fresh."""
        title = self.recipe.title
        if not isinstance(param_group, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"{title}: a parameter group must be a dict, not {param_group!r}.")
        if "params" not in param_group:
            raise ValueError(f"{title}: a parameter group has its parameters under 'params'; this one has not.")
        every = {n.key for part in self.recipe.all_parts for n in part.numbers().values() if not part.per_tensor(n)}
        written = every | {"steps", "skipped", "training", "method"}  # by an optimizer whose groups are used again
        group = groups.without_torch_options(self.recipe, {k: v for k, v in param_group.items() if k not in written})
        params = group["params"]
        group["params"] = [params] if isinstance(params, torch.Tensor) else groups.listed(params)
        group = groups.complete(self.recipe, self.param_groups, group, self._options)
        super().add_param_group(group)
        group["training"] = self.param_groups[0].get("training", True)
        slots.create_numbers(self.recipe, self.param_groups, group)

    @property
    def _options(self) -> set[str]:
        """The names of what the constructor takes."""
        names = {*inspect.signature(type(self)).parameters, *EngineOptions.__annotations__}
        return names - {"params", "engine", "others"}

    def __getstate__(self) -> dict[str, Any]:
        kept = ("recipe", "loss_group", "shard_group", "execution")
        return super().__getstate__() | {k: self.__dict__[k] for k in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.defaults.pop("differentiable", None)  # torch adds its own option here
        self._prepare()
        slots.tie_numbers(self.recipe, self.param_groups)

    def _own(self, saving: bool = False) -> None:
        slots.own(self.recipe, self.param_groups, self.state, saving)

    @torch.inference_mode(False)
    def state_dict(self) -> dict[str, Any]:
        """As in torch.optim; parameters that have not taken a step yet, but may, are in it."""
        self._own(saving=True)
        return super().state_dict()

    @torch.inference_mode(False)
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict()` gave, as the hooks registered for loading adapt it.

        Raises `ValueError` or `TypeError` and changes nothing if it belongs to another method or is spoiled.
        """
        if not isinstance(state_dict, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
            checkpoint.check_loadable(self.recipe, self.param_groups, state_dict)  # says so; hooks would copy it
        loaded: dict[str, Any] = {}

        def accept(_: torch.optim.Optimizer, adapted: dict[str, Any]) -> None:
            checkpoint.check_loadable(self.recipe, self.param_groups, adapted)
            loaded.update(adapted)

        def restore(_: torch.optim.Optimizer) -> None:
            checkpoint.restore(self.recipe, self.param_groups, self.state, loaded)

        # Hooks of users may adapt what is loaded, and look at what was: ours come after the former, before the latter.
        before = self.register_load_state_dict_pre_hook(accept)
        after = self.register_load_state_dict_post_hook(restore, prepend=True)
        with before, after:
            super().load_state_dict(state_dict)

    @torch.inference_mode(False)
    def reset(self, params: Any = None) -> None:
        """Forget what was learned about some parameters, or about all (None): their next step is like a first one.

        For weights that were merged, pruned or set anew. The weights and the options stay as they are. What is known of
        the model as a whole (an estimated distance, the average of the losses, counters) is only forgotten with all.
        Raises `ValueError`, with nothing changed, for a tensor that is in no group.
        """
        members = {p for group in self.param_groups for p in group["params"]}
        chosen = members if params is None else {*groups.listed(params)}
        if not chosen <= members:
            raise ValueError(f"{self.recipe.title}.reset() got a tensor that is in no group. Give it parameters.")
        for p in chosen:
            self.state.pop(p, None)
        if params is None:
            for group in self.param_groups:
                for key in slots.number_keys(self.recipe, group):
                    del group[key]
            for group in self.param_groups:
                slots.create_numbers(self.recipe, self.param_groups, group)

    # ------------------------------------------------------------------ the step

    def record_loss(self, loss: torch.Tensor | float, sample_ids: Any = None) -> None:
        """Add the loss of one micro-batch; the next step uses the mean of those recorded since the last one.

        For trainers that call a bare `step()`. The loss is the unscaled one of the model, as in `step(loss=loss)`. What
        is recorded for a step that a gradient scaler leaves out enters the next one; with a scaler, give it the loss:
        `scaler.step(optimizer, loss=loss)`.
        """
        self._inputs.record(loss, sample_ids, self.device)

    @torch._disable_dynamo  # as torch.optim does: a compiled training loop calls the kernels as they are
    @torch.inference_mode(False)
    @torch.no_grad()
    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        closure: Callable[[], Any] | None = None,
        *,
        loss: torch.Tensor | float | None = None,
        sample_ids: Any = None,
        **signals: Any,
    ) -> Any:
        """Do one step and return the loss given or computed.

        `loss` is the mean loss whose gradient is in `p.grad`; only loss-driven methods read it, the others accept it.
        Instead of it there may be a `closure` that computes loss and gradients, or earlier calls of `record_loss`.
        `sample_ids` are the numbers of the batch's samples in the data set, a vector of integers, for methods that
        record a number per sample; `loss` may then hold one loss per sample, and every rank gives as many. `signals`
        are numbers that parts declare by name. Raises, with nothing changed: `RuntimeError` in evaluation mode,
        `ValueError` without a loss, ids or a signal that the method needs, `TypeError` for sparse gradients.
        """
        computed = None
        if closure is not None:
            if not callable(closure):  # pyright: ignore[reportUnnecessaryComparison]
                raise TypeError(
                    f"{self.recipe.title}.step() takes a closure first, not {closure!r}: call step(loss=loss)."
                )
            with torch.enable_grad():
                computed = closure()
        result = loss if loss is not None else computed
        if not all(map(groups.is_frozen, self.param_groups)):
            self._step(loss, computed, sample_ids, signals)
        elif not self.state:
            self._own()  # which is what torch.distributed.checkpoint makes such a step for
        self._inputs.recorded, self._calls = [], self._calls + 1
        if self._calls % 100 == 0:
            self._watch.look_back(self.device)
            if self.device.type == "cpu" and any(hasattr(part, "advice") for part in self.recipe.all_parts):
                self.metrics()
        return result

    def _step(self, loss: Any, computed: Any, sample_ids: Any, signals: dict[str, Any]) -> None:
        now = Now(self.recipe, self.param_groups, self.device, self.shard_group)
        try:
            if self.recipe.has_modes and not self.param_groups[0]["training"]:
                raise RuntimeError(
                    f"{self.recipe.title}.step() needs training mode, since the parameters hold the averaged point: "
                    f"call optimizer.train() before it."
                )
            groups.check_shared(self.recipe, self.param_groups)
            now.signals = self._inputs.signals(signals, now.device)
            now.buckets = self._launch.live(now, self.state)
            if not now.buckets and not self._inputs.meets:
                return
            value, ids = self._inputs.of_rank(loss, computed, sample_ids, now.device)
        except Exception:
            self.call_roll(ready=False)
            raise
        counts = self.call_roll(ready=True, live=[b.source[0] for b in now.buckets])
        if counts is not None:  # buckets without tensors: what other ranks sum up is decided here, too
            for i, group in enumerate(self.param_groups):
                other = Bucket(group, [], [], now.device, (), self.recipe.of(group), (), (i, []), on=counts[i] > 0)
                now.buckets = [*now.buckets, slots.stack_numbers(self.recipe, other)]
        self._inputs.take(now, value, ids)
        if now.loss is not None:
            self._watch.losses.append(now.loss)
        if now.buckets:
            do_step(now, self._launch)
            now.buckets, now.loss, now.ids, self._last = [], None, None, now

    def call_roll(self, ready: bool, live: Iterable[int] = ()) -> torch.Tensor | None:
        """Tell the other ranks whether this one is ready for the sums of a step; see `Inputs.call_roll`."""
        now = Now(self.recipe, self.param_groups, self.device, self.shard_group)
        return self._inputs.call_roll(now, ready, live)

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
        if not self.recipe.has_modes or self.param_groups[0]["training"] == training:
            return
        switch(Now(self.recipe, self.param_groups, self.device), self.state, training)

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

    @torch.inference_mode(False)
    def metrics(self) -> dict[str, float]:
        """Numbers worth logging, read from the device in one go when called.

        Warns once, with the option to turn, if they show that an estimate of the method is stuck, that a method which
        reads the loss keeps raising it, or that the loss lies below its bound. On a CPU every hundredth step looks by
        itself; elsewhere that would wait for the device, and only a call of this warns.
        `lr_effective` is the learning rate the method chose in its last step (of group 0; `lr_effective_1`, ... of the
        others); `steps` and `skipped` count; the rest are the method's own numbers, those kept per tensor as a mean.
        """
        if not self.state:
            self._own()
        now = self._last or Now(self.recipe, self.param_groups, self.device)
        now.groups = self.param_groups
        return self._watch.read(now, self.state, self._inputs.drifted)

    def __repr__(self) -> str:
        name = f"{type(self).__name__} (untuned {__version__}, {self._launch.running}): {self.recipe.written(repr)}"
        return "\n".join([name, *(self.recipe.line(i, group) for i, group in enumerate(self.param_groups))])


for _option in groups.OPTIONS:  # readable on an optimizer, and fixed like its recipe
    setattr(Optimizer, _option, property(operator.attrgetter(f"recipe.{_option}")))

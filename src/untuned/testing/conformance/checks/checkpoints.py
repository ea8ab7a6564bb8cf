"""Copies, checkpoints and modes: a run that is interrupted goes on as if it had not been."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import torch
from torch import Tensor, nn

from untuned.testing.conformance.check import DoesNotApply, Harm, check
from untuned.testing.conformance.problem import net, relative, vector
from untuned.testing.conformance.target import Target

HALF, REST, LONG = range(5), range(5, 10), range(5, 25)


def _half(target: Target, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Any]:
    model = net(dtype)
    optimizer = target.build(model)
    target.train(model, optimizer, HALF)
    return model, optimizer


def _stored(value: Any, weights_only: bool) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


def _go_on(target: Target, one: tuple[nn.Module, Any], other: tuple[nn.Module, Any], what: str) -> None:
    """Both runs take the same first step and end at the same point."""
    start = vector(one[0])
    if not torch.equal(vector(other[0]), start):
        raise Harm(f"{what} changes the weights")
    random = torch.get_rng_state()  # of methods that round or sample at random; trainers restore it
    first: list[Tensor] = []
    for model, optimizer in (one, other):
        torch.set_rng_state(random)
        target.train(model, optimizer, REST[:1])
        first.append(vector(model))
        target.train(model, optimizer, REST[1:])
    if (off := relative(first[1], first[0], start)) > 0:
        raise Harm(f"{what} is not exact: the first step after it differs by {off:.2g} of its length")
    if (off := relative(vector(other[0]), vector(one[0]), start)) > 0:
        raise Harm(f"{what} is not exact: five steps after it the run is off by {off:.2g} of the way")


def _resume(target: Target, dtype: torch.dtype) -> None:
    model, optimizer = _half(target, dtype)
    saved = _stored({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, weights_only=False)
    fresh = net(dtype)
    fresh.load_state_dict(saved["model"])
    resumed = target.make(fresh)
    resumed.load_state_dict(saved["optimizer"])
    target.to_training(resumed)
    for p, q in zip(model.parameters(), fresh.parameters(), strict=True):
        for key, value in optimizer.state.get(p, {}).items():
            found = resumed.state.get(q, {}).get(key)
            if isinstance(value, Tensor) and isinstance(found, Tensor) and value.dtype != found.dtype:
                raise Harm(f"resuming turns {key!r} from {value.dtype} into {found.dtype}: precision is lost, silently")
    _go_on(target, (model, optimizer), (fresh, resumed), "resuming from state_dict()")


@check("a run cannot be resumed from state_dict()")
def resume(target: Target) -> None:
    """Save, load into new objects and go on is the same as going on, bit by bit."""
    _resume(target, torch.float32)


@check("a run with bfloat16 weights cannot be resumed from state_dict()")
def resume_bfloat16(target: Target) -> None:
    """The same with bfloat16 weights: the state keeps its precision."""
    _resume(target, torch.bfloat16)


@check("state_dict() cannot be loaded by torch.load, whose default is weights_only=True")
def weights_only(target: Target) -> None:
    """A saved state loads with weights_only=True."""
    _stored(_half(target)[1].state_dict(), weights_only=True)


@check("model and optimizer cannot be copied")
def deepcopy(target: Target) -> None:
    """A deep copy of model and optimizer goes on like the original, apart from it."""
    pair = _half(target)
    _go_on(target, pair, copy.deepcopy(pair), "copying with deepcopy")


@check("the optimizer cannot be pickled: multiprocessing and Ray cannot send it")
def pickled(target: Target) -> None:
    """A pickled model and optimizer goes on like the original."""
    pair = _half(target)
    _go_on(target, pair, pickle.loads(pickle.dumps(pair)), "pickling")


def _state_dicts() -> Any:
    """The module that converts states; importing it takes as long as torch itself."""
    from torch.distributed.checkpoint import state_dict

    return state_dict


def _distributed(target: Target, **form: bool) -> None:
    dcp = _state_dicts()
    options = dcp.StateDictOptions(**form)
    model, optimizer = _half(target)
    saved = _stored(dcp.get_optimizer_state_dict(model, optimizer, options=options), weights_only=False)
    fresh = copy.deepcopy(model)
    fresh.zero_grad()
    resumed = target.make(fresh)
    dcp.set_optimizer_state_dict(fresh, resumed, saved, options=options)
    target.to_training(resumed)
    _go_on(target, (model, optimizer), (fresh, resumed), "resuming from a distributed checkpoint")


@check("torch.distributed.checkpoint cannot save and load it")
def distributed_checkpoint(target: Target) -> None:
    """torch.distributed.checkpoint resumes exactly."""
    _distributed(target)


@check("torch.distributed.checkpoint cannot save and load it in its flattened form, which resharding needs")
def distributed_checkpoint_flattened(target: Target) -> None:
    """torch.distributed.checkpoint resumes exactly from its flattened form."""
    _distributed(target, flatten_optimizer_state_dict=True)


@check("torch.distributed.checkpoint cannot be asked for the state before the first step, as loading does")
def distributed_checkpoint_before_first_step(target: Target) -> None:
    """Asking torch.distributed.checkpoint for the state before the first step changes nothing."""
    model, optimizer = (plain := net()), target.build(plain)
    asked, other = (copied := net()), target.build(copied)
    _state_dicts().get_optimizer_state_dict(asked, other)
    target.to_training(other)
    _go_on(target, (model, optimizer), (asked, other), "asking for a distributed checkpoint before the first step")


@check("no step can be done")
def state_is_keyed_by_parameters(target: Target) -> None:
    """All state belongs to a parameter."""
    model, optimizer = _half(target)
    strange = [key for key in optimizer.state if not any(key is p for p in model.parameters())]
    if strange:
        raise Harm(f"state under {strange[0]!r}, which is no parameter: FSDP and distributed checkpoints fail on it")


@check(
    "the tensors in its groups cannot be exchanged, as DeepSpeed ZeRO and Accelerate with FSDP2 do after building it"
)
def exchanged_parameters(target: Target) -> None:
    """Tensors that take the place of those it was built with are trained and saved as if it was built with them."""
    if target.can("needs_closure"):
        raise DoesNotApply("it flattens all parameters into one vector")
    target.train(expected := net(), target.build(expected), HALF)
    model = net()
    optimizer = target.make(net())
    optimizer.param_groups[0]["params"] = list(model.parameters())
    target.to_training(optimizer)
    optimizer.state_dict()  # before the first step, as for a checkpoint at step 0
    target.train(model, optimizer, HALF)
    if (off := relative(vector(model), vector(expected), vector(net()))) > 1e-6:
        raise Harm(f"tensors put into a group in place of others train otherwise, by {off:.2g} of the way")
    saved = optimizer.state_dict()
    if left := sum(all(key is not p for p in model.parameters()) for key in optimizer.state if isinstance(key, Tensor)):
        raise Harm(f"the state of {left} tensors that are in no group any more stays in memory")
    target.make(net()).load_state_dict(_stored(saved, weights_only=False))


@check("no step can be done")
def deleted_state(target: Target) -> str | None:
    """After `del optimizer.state[p]`, as ReLoRA and pruning do, it goes on as from a fresh start, or raises."""
    model, optimizer = _half(target)
    if not any([optimizer.state.pop(p, None) for p in model.parameters()]):  # noqa: C419, all of them go
        raise DoesNotApply("it keeps no state of parameters")
    start = vector(model)
    kept, fresh = _half(target), (copied := copy.deepcopy(model), target.build(copied))
    try:
        target.train(model, optimizer, LONG)
    except Exception as error:
        return f"it raises {type(error).__name__}"
    for other in (kept, fresh):
        target.train(*other, LONG)
    if not torch.isfinite(vector(model)).all():
        raise Harm("a run whose state was deleted (`del optimizer.state[p]`) makes weights infinite or NaN")
    way, *ways = (float((vector(m) - start).abs().max()) for m in (model, kept[0], fresh[0]))
    if not min(ways) / 100 <= way <= 10 * max(ways):  # what is not deleted, as an estimated step, may differ
        raise Harm(
            f"after `del optimizer.state[p]` twenty steps move the weights by {way:.2g}, by {ways[0]:.2g} with the "
            f"state and by {ways[1]:.2g} from a fresh start: the run is ruined, and nothing says so"
        )
    return None


@check("train() and eval() cannot be called as trainers call them", "modes")
def modes(target: Target) -> None:
    """eval() and train(), once or twice in a row, do not change the run."""
    model, optimizer = _half(target)
    other, switched = _half(target)
    start = vector(net())
    switched.eval()
    evaluated = vector(other)
    switched.eval()
    if not torch.equal(vector(other), evaluated):
        raise Harm("eval() called twice, as nested evaluation does, changes the weights again")
    for _ in range(2):
        switched.train()
    if (off := relative(vector(other), vector(model), start)) > 1e-9:
        raise Harm(f"train() after eval() does not bring the weights back: they are off by {off:.2g} of the way")
    target.train(model, optimizer, REST)
    target.train(other, switched, REST)
    if (off := relative(vector(other), vector(model), start)) > 1e-6:
        raise Harm(f"an evaluation in the middle of a run changes it, by {off:.2g} of the way")


@check("train() and eval() cannot be called before the first step", "modes")
def modes_before_first_step(target: Target) -> None:
    """eval() before the first step, as a sanity check before training does, changes nothing."""
    model = net()
    optimizer = target.make(model)
    optimizer.eval()
    if not torch.equal(vector(model), vector(net())):
        raise Harm("eval() before the first step changes the weights")
    optimizer.train()
    if not torch.equal(vector(model), vector(net())):
        raise Harm("train() before the first step changes the weights")
    target.train(model, optimizer, HALF)
    if not torch.isfinite(vector(model)).all():
        raise Harm("eval() before the first step makes weights infinite or NaN later")


@check("eval() cannot be called", "modes")
def step_in_evaluation(target: Target) -> None:
    """A step after eval(), which moved the weights, is refused."""
    model, optimizer = _half(target)
    trained = vector(model)
    optimizer.eval()
    if torch.equal(vector(model), trained):
        raise DoesNotApply("eval() does not move the weights")
    try:
        target.train(model, optimizer, REST[:1])
    except Exception:
        return
    raise Harm("a step in evaluation mode, train() forgotten, goes on from the averaged weights and says nothing")


@check("a checkpoint cannot be made")
def foreign_checkpoint(target: Target) -> None:
    """A checkpoint of a larger model is refused."""
    optimizer = target.build(net())
    foreign = target.build(nn.ModuleList([net(), net()])).state_dict()
    try:
        optimizer.load_state_dict(foreign)
    except Exception:
        return
    raise Harm("a checkpoint of a model of another size is loaded without a word")

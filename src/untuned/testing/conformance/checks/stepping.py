"""How a step is called, what it reads and what it leaves alone."""

from __future__ import annotations

import contextlib
import gc
import inspect
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from untuned.testing.conformance.check import DoesNotApply, Harm, check
from untuned.testing.conformance.problem import ROWS, gradients, loss_of, net, relative, vector
from untuned.testing.conformance.target import Target

STEPS = range(8)


def plain_run(target: Target, steps: range = STEPS, dtype: torch.dtype = torch.float64) -> Tensor:
    """Where the ordinary loop ends."""
    target.train(model := net(dtype), target.build(model), steps)
    return vector(model)


@check("training stops in the first steps")
def moves(target: Target) -> None:
    """Twenty steps move every tensor, to finite values."""
    target.train(model := net(), target.build(model), range(20))
    if not torch.isfinite(vector(model)).all():
        raise Harm("after 20 steps with the options given there are weights that are not finite")
    still = sum(torch.equal(p, q) for p, q in zip(model.parameters(), net().parameters(), strict=True))
    if still:
        raise Harm(f"{still} of 6 tensors are not trained at all")


@check("it cannot be used with trainers that pass a closure (Lightning, Accelerate)")
def closure(target: Target) -> None:
    """A closure that computes loss and gradients does what the plain loop does."""
    if not target.can("closure") and not target.can("needs_closure"):
        raise Harm("step() takes no closure: Lightning and Accelerate, which pass one, cannot use it")
    if target.can("sample_ids"):
        raise DoesNotApply("sample_ids go with every loss")
    optimizer = target.build(model := net())

    def compute(k: int) -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, k)
        loss.backward()
        return loss

    for k in STEPS:
        optimizer.step(lambda k=k: compute(k))
    if (off := relative(vector(model), plain_run(target), vector(net()))) > 1e-6:
        raise Harm(f"the same run with a closure ends elsewhere, by {off:.2g} of the way")


@check("it cannot be used with trainers that pass a closure (Lightning, Accelerate)", "closure")
def loss_is_returned(target: Target) -> None:
    """step(closure) returns the loss."""
    optimizer = target.build(model := net())
    given = {k: v for k, v in target.arguments(None).items() if k == "sample_ids"}
    losses: list[Tensor] = []

    def compute() -> Tensor:
        optimizer.zero_grad()
        losses.append(loss_of(model, 0))
        losses[-1].backward()
        return losses[-1]

    returned = optimizer.step(compute, **given)
    if returned is None or float(returned) != float(losses[0]):
        raise Harm(f"step(closure) returns {returned!r} in place of the loss, which trainers log")


@check("an error in a closure cannot be handled", "closure")
def error_in_closure(target: Target) -> None:
    """After an error in a closure, autograd is as it was and the weights have not moved."""
    optimizer = target.build(model := net())

    def compute() -> Tensor:
        raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        optimizer.step(compute)
    if not torch.is_grad_enabled():
        raise Harm("an exception in a closure leaves autograd switched off in the whole process")
    if not torch.equal(vector(model), vector(net())):
        raise Harm("a step whose closure failed has moved the weights")


@check("it cannot be given the loss, though step() has loss=", "loss")
def loss_keyword(target: Target) -> None:
    """step(loss=...) takes a tensor and a float, with the same result."""
    runs = []
    for convert in (lambda loss: loss.detach(), float):
        optimizer = target.build(model := net())
        for k in STEPS:
            optimizer.zero_grad()
            loss = loss_of(model, k)
            loss.backward()
            target.step(optimizer, convert(loss))
        runs.append(vector(model))
    if (off := relative(runs[1], runs[0], vector(net()))) > 1e-6:
        raise Harm(f"with loss=float(loss) the run ends elsewhere than with the tensor, by {off:.2g} of the way")


@check("it cannot be used without the loss", "needs_loss")
def missing_loss(target: Target) -> None:
    """A step without the loss it needs says so and changes nothing."""
    optimizer = target.build(model := net())
    gradients(model)
    try:
        optimizer.step()
    except Exception as error:
        if "loss" not in str(error):
            raise Harm(f"step() without the loss fails with a riddle: {type(error).__name__}: {error}") from None
    else:
        raise Harm("step() without the loss works with a wrong loss, silently")
    if not torch.equal(vector(model), vector(net())):
        raise Harm("a step refused for want of the loss has moved the weights")


@check("mixed precision with torch.amp.GradScaler does not work")
def grad_scaler(target: Target) -> None:
    """With a GradScaler the run is the same, and a step it skips never was."""
    if target.can("needs_closure"):
        raise DoesNotApply("GradScaler takes no closure")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)  # a power of two: scaling is exact
    optimizer = target.build(model := net(torch.float32))
    for k in (0, 1, -1, 2, 3):
        optimizer.zero_grad()
        loss = loss_of(model, abs(k))
        scaler.scale(loss).backward()
        if k < 0:
            next(model.parameters()).grad[0, 0] = torch.inf  # pyright: ignore[reportOptionalSubscript]
        scaler.step(optimizer, **target.arguments(loss))
        scaler.update()
    expected = plain_run(target, range(4), torch.float32)
    if (off := relative(vector(model), expected, vector(net(torch.float32)))) > 1e-3:
        raise Harm(f"a step that GradScaler skips changes the rest of the run, by {off:.2g} of the way")


@check("gradient accumulation does not work")
def accumulation(target: Target) -> None:
    """Gradients of two half batches, added, do what those of the whole batch do."""
    if target.can("needs_closure"):
        raise DoesNotApply("the closure decides what is accumulated")
    optimizer = target.build(model := net())
    for k in STEPS:
        optimizer.zero_grad()
        halves = [loss_of(model, k, rows) for rows in (slice(0, ROWS // 2), slice(ROWS // 2, ROWS))]
        for loss in halves:
            (loss / 2).backward()
        target.step(optimizer, (halves[0] + halves[1]).detach() / 2)
    if (off := relative(vector(model), plain_run(target), vector(net()))) > 1e-6:
        raise Harm(f"two micro-batches with accumulation train otherwise than one batch, by {off:.2g} of the way")


@check("maximize=True, which the constructor takes, does not work")
def maximize(target: Target) -> None:
    """maximize=True on minus the loss minimises the loss."""
    built = target.make(net())
    taken = inspect.signature(type(built)).parameters
    if "maximize" not in taken and "maximize" not in built.defaults and not hasattr(built, "maximize"):
        raise DoesNotApply("it has no option maximize")
    if target.can("needs_closure"):
        raise DoesNotApply("the closure decides the sign")
    optimizer = target.build(model := net(), maximize=True)
    for k in STEPS:
        optimizer.zero_grad()
        loss = -loss_of(model, k)
        loss.backward()
        target.step(optimizer, loss)
    if (off := relative(vector(model), plain_run(target), vector(net()))) > 1e-6:
        raise Harm(f"maximize=True does not mirror the run, it ends elsewhere by {off:.2g} of the way")


class _HostReads(TorchDispatchMode):
    """Counts values copied to Python, but for those of step counters, which torch.optim keeps on the CPU."""

    def __init__(self, optimizer: Any) -> None:
        super().__init__()
        self.optimizer, self.count = optimizer, 0

    def _counters(self) -> Iterator[int]:
        for held in self.optimizer.state.values():
            if isinstance(held, dict) and isinstance(held.get("step"), Tensor):
                yield held["step"].data_ptr()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].data_ptr() not in self._counters():
            self.count += 1
        return func(*args, **(kwargs or {}))


@check("no step can be done under a torch dispatch mode")
def no_host_read(target: Target) -> None:
    """A step copies no value from the device to Python."""
    counts = []
    for tensors in (6, 24):
        model = nn.ModuleList([net() for _ in range(tensors // 6)])
        optimizer = target.build(model.parameters())
        for k in range(2):
            gradients(model, 0.1, k)
            target.step(optimizer, torch.ones((), dtype=torch.float64))
        gradients(model, 0.1, 2)
        with _HostReads(optimizer) as reads:
            target.step(optimizer, torch.ones((), dtype=torch.float64))
        counts.append(reads.count)
    if max(counts):
        each = f"{counts[0]} times with 6 tensors, {counts[1]} times with 24"
        raise Harm(f"on a GPU every step waits for the device: it reads values back {each}")


@check("it cannot be measured")
def memory(target: Target) -> str:
    """Memory of the state, in sizes of the model."""
    target.train(model := net(torch.float32), optimizer := target.build(model), range(2))
    own = {p.data_ptr() for p in model.parameters()}
    kept = {t.data_ptr(): t.nbytes for t in _tensors(list(optimizer.state.values())) if t.data_ptr() not in own}
    return f"{sum(kept.values()) / sum(p.nbytes for p in model.parameters()):.1f} times the parameters"


@check("it cannot be built and used twice in one process")
def freed_at_once(target: Target) -> None:
    """A deleted optimizer and its model are freed at once, without waiting for the garbage collector."""
    collects = gc.isenabled()
    gc.disable()
    try:
        target.train(model := net(), optimizer := target.build(model), range(2))
        parameter, itself = weakref.ref(next(model.parameters())), weakref.ref(optimizer)
        del optimizer
        if itself() is not None:
            raise Harm(
                "a deleted optimizer is part of a reference cycle: model and state stay in memory until the garbage "
                "collector runs, and with the next model in it memory runs out"
            )
        del model
        if parameter() is not None:
            raise Harm("a deleted model stays in memory after its optimizer was deleted: something still holds it")
    finally:
        if collects:
            gc.enable()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _tensors(inner)

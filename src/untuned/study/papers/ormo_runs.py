"""Runs of asynchronous momentum for the study of OrMo (arXiv 2407.19234): a parabola, networks, and real processes."""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable

import torch

import untuned
from untuned.study import tasks
from untuned.study.papers.frame import Row
from untuned.systems.asynchronous import (
    Clock,
    Compute,
    Jitter,
    ModelGradient,
    Server,
    Slow,
    flat,
    gloo,
    replay,
    simulate,
)

BETA = 0.9
METHODS = {
    "asgd": "ASGD",
    "naive": "naive momentum",
    "vanilla": "OrMo, vanilla step",
    "ormo": "OrMo",
    "ormo_da": "OrMo-DA",
    "ssgdm": "synchronous SGD, momentum",
}
GRADIENTS, DIM, LEVEL, START = 4000, 50, 0.02, 2.729  # of the parabola: gradients, size, noise, loss at the start
LRS = tuple(float(f"{10 ** (-4 + i * math.log10(5000) / 23):.4g}") for i in range(24))  # 1e-4 to 0.5
AT_ONCE = 4  # problems of one seed, which share the order of arrival and differ in their noise
TOO_FAR = 1e3


def served(method: str, params: list[torch.nn.Parameter], workers: int, lr: float, steps: int | None) -> Server:
    """The server of a method. lr is that of one gradient: the synchronous step on the mean has `workers` times it."""
    if method in ("asgd", "naive"):
        return Server(untuned.SGD(params, lr, BETA if method == "naive" else 0.0), workers, steps=steps)
    if method == "ssgdm":
        return Server(untuned.SGD(params, lr * workers, BETA), workers, synchronous=True, steps=steps)
    optimizer = untuned.OrMo(
        *(params, lr, BETA, workers),
        skip_nonfinite=False,  # the server refuses such gradients itself
        late_step="vanilla" if method == "vanilla" else "ordered",
        delay_cap=2.0 if method == "ormo_da" else math.inf,
    )
    return Server(optimizer, workers, steps=steps)


def clock(workers: int, slow: bool, seed: int) -> Clock:
    """A second for a gradient, give or take a fifth; of `slow` workers every eighth takes ten times as long."""
    jitter = Jitter(0.8, 1.2, seed)
    return Slow(jitter, range(0, workers, 8), 10.0) if slow else jitter


# ---------------------------------------------------------------------- exact


def late(*, momentum: float) -> list[Row]:
    """How far one gradient moves the weights and the momentum in all, by its lag in buckets, in units of lr."""
    found: list[Row] = []
    for lag, step in itertools.product((0, 1, 2, 5, 10), ("ordered", "vanilla")):
        p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        optimizer = untuned.OrMo([p], 1.0, momentum, 4, late_step=step)
        for index in [*range(4 * lag), 0]:
            p.grad = torch.full_like(p, float(index == 0 and optimizer.metrics()["steps"] == 4 * lag))
            optimizer.step(index=index)
        found.append({"lag": lag, "step": step, "moved": -p.item()})
    return found


# ---------------------------------------------------------------------- the parabola


def toy(*, method: str, workers: int, slow: bool, seed: int) -> list[Row]:
    """The parabola at all learning rates side by side, a row each: they see the same order of arrival and noise.

    The optimizer's lr is 1 and the gradients are multiplied by theirs, which is the same for methods whose steps are
    linear in the gradient. A problem that is `TOO_FAR` away gets no gradients any more and counts as diverged.
    """
    curvature = torch.logspace(-2.5, 0, DIM, dtype=torch.float64)
    start = torch.full((DIM,), math.sqrt(2 * START / curvature.sum().item()), dtype=torch.float64)
    weights = torch.nn.Parameter(start.repeat(len(LRS), AT_ONCE, 1))
    lrs = torch.tensor(LRS, dtype=torch.float64)[:, None, None]

    def compute(vector: torch.Tensor, draw: int) -> torch.Tensor:
        w = vector.view(len(LRS), AT_ONCE, DIM)
        noise = torch.randn(
            *(AT_ONCE, DIM), generator=torch.Generator().manual_seed(1_000_003 * seed + draw), dtype=torch.float64
        )
        near = w.abs().amax((1, 2), keepdim=True) < TOO_FAR
        return (near * lrs * (curvature * w + LEVEL * noise)).flatten()

    server = served(method, [weights], workers, 1.0, GRADIENTS)
    run = simulate(server, compute, clock(workers, slow, seed))
    w = weights.detach()
    losses = (curvature * w * w / 2).sum(-1).mean(1)
    far = w.abs().amax((1, 2)) >= TOO_FAR
    delay = max(t - index for t, (_, index, _) in enumerate(server.trace))
    return [
        {"lr": lr, "loss": None if gone else loss, "seconds": run.times[-1], "largest_delay": delay}
        for lr, loss, gone in zip(LRS, losses.tolist(), far.tolist(), strict=True)
    ]


# ---------------------------------------------------------------------- networks


def gradient_of(task: tasks.Task, batch_size: int, seed: int) -> ModelGradient:
    """The gradient on the batch of a draw, which is drawn anew for each from the training images."""
    inputs, labels = task.x, task.y  # pyright: ignore[reportAttributeAccessIssue]

    def loss(model: torch.nn.Module, draw: int) -> torch.Tensor:
        chosen = torch.randint(
            len(labels), (batch_size,), generator=torch.Generator().manual_seed(1_000_003 * seed + draw)
        )
        return task.loss(model, (inputs[chosen], labels[chosen]))

    return ModelGradient(task.model(seed), loss)


def looked_at(task: tasks.Task, model: torch.nn.Module, weights: torch.Tensor) -> Row:
    """Training loss on the first 500 images, validation loss and accuracy."""
    params = list(model.parameters())
    with torch.no_grad():
        for p, piece in zip(params, weights.split([p.numel() for p in params]), strict=True):
            p.copy_(piece.view_as(p))
        first = task.x[:500], task.y[:500]  # pyright: ignore[reportAttributeAccessIssue]
        loss = float(task.loss(model, first))
    found = task.evaluate(model)
    return {"train_loss": loss, "val_loss": found["val_loss"], "accuracy": found[task.metric]}


def network(
    *, task: str, method: str, workers: int, effective: float, seed: int, gradients: int, batch_size: int, looks: int
) -> list[Row]:
    """A network in virtual time with slow workers: a row at each of `looks` looks, the first before any step.

    effective: the learning rate lr / (1 - momentum) of one gradient. A run that diverges has `None` for its losses.
    """
    problem = tasks.load(task)
    model, compute = problem.model(seed), gradient_of(problem, batch_size, seed)
    lr = effective if method == "asgd" else effective * (1 - BETA)
    server = served(method, list(model.parameters()), workers, lr, gradients)
    rows: list[Row] = []

    def watch(server: Server, now: float) -> None:
        while len(rows) < looks and server.index >= len(rows) * gradients / (looks - 1):
            found = looked_at(problem, compute.model, server.weights())
            if not all(isinstance(value, float) and math.isfinite(value) for value in found.values()):
                found = dict.fromkeys(found)
            rows.append({"applied": server.index, "seconds": now, **found})

    watch(server, 0.0)
    simulate(server, compute, clock(workers, True, seed), watch=watch)
    if server.failure:  # gradients that are not finite
        rows.append({"applied": server.index, "seconds": None, "train_loss": None, "val_loss": None, "accuracy": None})
    return rows


# ---------------------------------------------------------------------- real processes


def _slept(weights: torch.Tensor, draw: int, compute: Compute, seconds: float) -> torch.Tensor:
    end = time.perf_counter() + seconds
    gradient = compute(weights, draw)
    time.sleep(max(end - time.perf_counter(), 0.0))
    return gradient


def work(worker: int, *, seconds: float, slower: float) -> Compute:
    """A process whose gradients take so long, or `slower` times so long if it is worker 0."""
    compute = gradient_of(tasks.load("fashion-cnn"), 32, 0)
    return functools.partial(_slept, compute=compute, seconds=seconds * (slower if worker == 0 else 1.0))


def processes(*, effective: float, budget: float, seconds: float, slower: float) -> list[Row]:
    """One server and three processes over gloo, one of them slowed down, for `budget` seconds by the clock on the wall.

    A row for each of 16 looks; the weights are kept at the time and looked at afterwards. The rows are measured, so
    that no two runs have the same. `replayed`: whether the trace, replayed, ends with the same weights to the bit.
    """
    problem, found = tasks.load("fashion-cnn"), list[Row]()
    compute = gradient_of(problem, 32, 0)
    for method in ("asgd", "naive", "ormo", "ormo_da", "ssgdm"):
        lr = effective if method == "asgd" else effective * (1 - BETA)
        make: Callable[[], Server] = functools.partial(_fresh, problem, method, lr)
        _warm_up(make())
        server, kept = make(), list[tuple[float, int, torch.Tensor]]()

        def watch(server: Server, now: float, kept: list[tuple[float, int, torch.Tensor]] = kept) -> None:
            while len(kept) < 16 and now >= (1 + len(kept)) * budget / 16:
                kept.append((now, server.index, server.weights()))
            if now >= budget:
                server.steps = server.index

        kept.append((0.0, 0, server.weights()))
        gloo.train(server, functools.partial(work, seconds=seconds, slower=slower), timeout=120.0, watch=watch)
        again = make()
        replay(server.trace, compute, again)
        same = torch.equal(flat(server.params), flat(again.params))
        shares = [sum(row[0] == worker for row in server.trace) for worker in range(3)]
        for now, index, weights in kept:
            looks = looked_at(problem, compute.model, weights)
            row: Row = {"method": method, "seconds_since": now, "gradients": index, **looks, "replayed": same}
            found.append(row | {f"of_worker_{worker}": share for worker, share in enumerate(shares)})
    return found


def _warm_up(server: Server) -> None:
    """The first step of a method takes about a second more, which is not its own."""
    for p in server.params:
        p.grad = torch.zeros_like(p)
    server.optimizer.step()


def _fresh(problem: tasks.Task, method: str, lr: float) -> Server:
    return served(method, list(problem.model(0).parameters()), 3, lr, 10**9)

"""The jobs of the study of trajectories: small networks trained by SGD, and how their points lie to each other."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from untuned.diagnostics import TrajectoryRecorder, random_walk_similarity, trajectory_map
from untuned.study import tasks
from untuned.study.papers.frame import Row
from untuned.study.tasks import seeded, shuffled
from untuned.study.tasks.classification import Classification

POINTS = 40  # after theta_0, at equal shares of a run
EPOCHS, SWITCHES = 16, (1, 4, 8, 12)  # of the experiment with batch normalisation; the last epoch of full training
LATE = 8  # the switch of its claims: half of the training
SCALARS, CONVOLUTIONS, LINEAR = "batch-norm scalars", "convolutions", "linear layers"

State = dict[str, Tensor]


# ---------------------------------------------------------------- settings: where do they take the points?


def settings(
    *, task: str, lr: float, momentum: float, weight_decay: float, batch_size: int, steps: int, seed: int
) -> list[Row]:
    """The measures of one run, and where it ended."""
    problem = _problem(task)
    model = problem.model(seed)
    points = _points(problem, model, lr, momentum, weight_decay, batch_size, steps, seed)
    return [_measured(problem, model, points)]


def widths(*, width: int, lr: float, momentum: float, steps: int, seed: int) -> list[Row]:
    """The same of an MLP 784-width-width-10."""
    problem = _problem("fashion-mlp")
    with seeded(seed):
        layers = [nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)]
        model = nn.Sequential(nn.Flatten(), *layers)
    points = _points(problem, model, lr, momentum, 0.0, problem.batch_size, steps, seed)
    return [_measured(problem, model, points)]


def progress(*, task: str, lr: float, momentum: float, steps: int, seed: int) -> list[Row]:
    """A run as it goes on: a row a point but the first."""
    problem = _problem(task)
    points = _points(problem, problem.model(seed), lr, momentum, 0.0, problem.batch_size, steps, seed)
    if points is None:
        return [{"share": 1.0, "end_angle": None, "update_angle": None, "mds_init": None, "mds_origin": None}]
    cosines = {center: trajectory_map(points, center).matrix for center in ("origin", "init")}
    vectors = torch.stack([torch.cat([value.flatten() for value in point.values()]) for point in points]).double()
    updates = vectors.diff(dim=0)
    turns = torch.cosine_similarity(updates[1:], updates[:-1], dim=1).clamp(-1, 1).numpy()
    rows = list[Row]()
    for k in range(1, POINTS + 1):
        rows.append(
            {
                "share": k / POINTS,
                "end_angle": math.degrees(math.acos(cosines["init"][k, POINTS])),
                "update_angle": math.degrees(math.acos(turns[k - 2])) if k > 1 else None,
                "mds_init": float(cosines["init"][1 : k + 1, 1 : k + 1].mean()),
                "mds_origin": float(cosines["origin"][: k + 1, : k + 1].mean()),
            }
        )
    return rows


def maps(*, task: str, lr: float, momentum: float, steps: int, seed: int) -> list[Row]:
    """The trajectory maps of one run, a row a pair of points."""
    problem = _problem(task)
    points = _points(problem, problem.model(seed), lr, momentum, 0.0, problem.batch_size, steps, seed)
    if points is None:
        return []
    origin, init = (trajectory_map(points, center).matrix for center in ("origin", "init"))
    at = [k * (steps // POINTS) for k in range(POINTS + 1)]
    return [
        {"row": at[i], "column": at[j], "origin": float(origin[i, j]), "init": float(init[i, j]) if i and j else None}
        for i, j in itertools.product(range(POINTS + 1), repeat=2)
    ]


def walk(*, parameters: int, points: int, seed: int) -> list[Row]:
    """A Gaussian random walk in as many dimensions as the MLP has parameters, recorded as it goes on."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(parameters, generator=generator)
    recorder = TrajectoryRecorder([("walk", p)], every=1)
    for _ in range(points - 1):
        p += torch.randn(parameters, generator=generator)
        recorder.step()
    found = recorder.summary()["all"]
    return [{"mds": found.mds, "theory": random_walk_similarity(points), "update_angle": found.update_angle}]


def _problem(task: str) -> Classification:
    problem = tasks.load(task)
    assert isinstance(problem, Classification)
    return problem


def _batches(problem: Classification, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    for epoch in itertools.count():
        for index in shuffled(problem.samples, batch_size, seed, epoch):
            yield problem.x.index_select(0, index), problem.y.index_select(0, index)


def _points(
    problem: Classification,
    model: nn.Module,
    lr: float,
    momentum: float,
    weight_decay: float,
    batch_size: int,
    steps: int,
    seed: int,
) -> list[State] | None:
    """theta_0 and the `POINTS` points of a run at a constant learning rate; None if it diverged."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    points, every = [_copied(model)], steps // POINTS
    for k, batch in zip(range(1, steps + 1), _batches(problem, batch_size, seed), strict=False):
        optimizer.zero_grad()
        loss = problem.loss(model, batch)
        if not math.isfinite(loss.item()):
            return None
        loss.backward()
        optimizer.step()
        if k % every == 0:
            points.append(_copied(model))
    finite = all(bool(value.isfinite().all()) for value in points[-1].values())
    return points if finite else None


def _copied(model: nn.Module) -> State:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def _measured(problem: Classification, model: nn.Module, points: list[State] | None) -> Row:
    """The measures that the tables show; None all through for a run that diverged."""
    names = (
        "mds_origin",
        "mds_init",
        "rank_init",
        "movement",
        "straightness",
        "update_angle",
        "train_loss",
        "accuracy",
    )
    if points is None:
        return {"diverged": True, **dict.fromkeys(names)}
    origin, init = (trajectory_map(points, center).measures["all"] for center in ("origin", "init"))
    found = (origin.mds, init.mds, init.effective_rank, init.relative_movement, init.straightness, init.update_angle)
    with torch.no_grad():
        train_loss = problem.loss(model, (problem.x, problem.y)).item()
    numbers = (*found, train_loss, problem.evaluate(model)[problem.metric])
    return {"diverged": False, **dict(zip(names, map(float, numbers), strict=True))}


# ---------------------------------------------------------------- what is left to train, late?


def network(seed: int) -> nn.Module:
    """Like the task fashion-cnn, with batch normalisation before each rectifier: 224 scalars of 106,234 parameters."""
    with seeded(seed):
        return nn.Sequential(
            nn.Unflatten(1, (1, 28)),
            nn.Conv2d(1, 16, 5, stride=2, padding=2, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, 64, bias=False),
            nn.BatchNorm1d(64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )


def kind(name: str) -> str:
    """The group of a parameter of `network`, by the number of its module."""
    number = int(name.partition(".")[0])
    return SCALARS if number in (2, 5, 10) else CONVOLUTIONS if number in (1, 4) else LINEAR


BRANCHES: dict[str, Callable[[str], bool]] = {  # what goes on after the switch, by parameter
    "everything": lambda name: True,
    "batch-norm scalars": lambda name: kind(name) == SCALARS,
    "output layer": lambda name: name.startswith("12."),
    "nothing": lambda name: False,
}


def late(*, lr: float, momentum: float, seed: int) -> list[Row]:
    """Training of `network` in which only some parameters go on after the switch; a row a switch and branch.

    The learning rate falls linearly to 0 at the end, and the batches are those of full training. Running statistics of
    the batch normalisation go on wherever something is trained.
    """
    problem, model = _problem("fashion-cnn"), network(seed)
    optimizer, rows = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum), list[Row]()
    ends: list[tuple[int, str, nn.Module]] = []
    for epoch in range(EPOCHS):
        if epoch in SWITCHES:
            for branch, goes_on in BRANCHES.items():
                if branch != "everything":
                    twin, its = _forked(model, optimizer)
                    for name, p in twin.named_parameters():
                        p.requires_grad_(goes_on(name))
                    for later in range(epoch, EPOCHS if branch != "nothing" else epoch):
                        _epoch(problem, twin, its, lr, later, seed)
                    ends.append((epoch, branch, twin))
        _epoch(problem, model, optimizer, lr, epoch, seed)
    ends += [(switch, "everything", model) for switch in SWITCHES]
    for switch, branch, one in ends:
        trained = sum(p.numel() for name, p in one.named_parameters() if BRANCHES[branch](name))
        found = problem.evaluate(one)
        with torch.no_grad(), tasks.evaluating(one):
            train_loss = problem.loss(one, (problem.x, problem.y)).item()
        share = trained / sum(p.numel() for p in one.parameters())
        row: Row = {"switch": switch, "branch": branch, "share": share, "accuracy": found[problem.metric]}
        rows.append({**row, "val_loss": found["val_loss"], "train_loss": train_loss})
    return rows


def movement(*, lr: float, momentum: float, seed: int) -> list[Row]:
    """How far each kind of parameter of `network` goes in full training, as a share of where it began."""
    problem, model = _problem("fashion-cnn"), network(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    steps = math.ceil(problem.samples / problem.batch_size)
    recorder = TrajectoryRecorder(model, every=steps, center="init", groups=kind)
    handle, rows = recorder.attach(optimizer), list[Row]()
    for epoch in range(EPOCHS):
        _epoch(problem, model, optimizer, lr, epoch, seed)
    handle.remove()
    for group, one in recorder.summary().items():
        series = recorder.series(group)
        for epoch, distance in enumerate(series.distance):
            rows.append({"group": group, "epoch": epoch, "moved": float(distance / series.norm[0]), "mds": one.mds})
    return rows


def _forked(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
    twin = copy.deepcopy(model)
    its = torch.optim.SGD(twin.parameters(), **optimizer.defaults)
    its.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return twin, its


def _epoch(
    problem: Classification, model: nn.Module, optimizer: torch.optim.Optimizer, lr: float, epoch: int, seed: int
) -> None:
    batches: Any = list(problem.batches(seed, epoch))
    for k, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - (epoch + k / len(batches)) / EPOCHS)
        optimizer.zero_grad()
        problem.loss(model, batch).backward()
        optimizer.step()


def random_walk_angle(share: float) -> float:
    """Angle at the start between where a random walk is after this share of its steps and where it ends, in degrees."""
    return float(np.degrees(np.arccos(np.sqrt(share))))

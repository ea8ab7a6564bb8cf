"""What the study of momentum as smoothing computes: noise along runs, a search for a batch size, and schedules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from untuned.diagnostics import NoiseMeter, coupled_gamma, gradient_noise, noise_parts
from untuned.diagnostics.critical_batch import CriticalBatch, critical_of
from untuned.schedules import GraduatedSchedule
from untuned.study.papers.frame import Job, Row, Rows
from untuned.study.papers.momentum_runs import UNTRAINED, accuracy, drawn, full_loss, task, training_loss
from untuned.study.stats import Floats

ETA = 0.05  # of the runs that are measured, coupled: torch's lr is eta (1 - beta) for heavy ball and eta for averaging
BETAS, BATCHES = (0.0, 0.5, 0.9, 0.95), (8, 64, 512)
KINDS = {"shb": "heavy ball", "nshb": "averaged"}
SETTLE, SKIP, WINDOW = 150, 60, 100  # steps before the meter, measured without counting, and counted

SWEEP = {
    "eta": 0.2,
    "eps_sq": 1.0,
    "from": 100,
    "least": 10,
    "every": 40,
    "limit": 2400,
}  # the search for the critical batch size
SIZES = (4, 8, 16, 32, 64, 128)

METHODS = {
    "constant": "constant",
    "linear": "linear decay of lr",
    "lr": "graduated, lr",
    "batch": "graduated, batch",
    "beta": "graduated, beta",
}
RATES = (0.05, 0.1, 0.2, 0.4, 0.8)  # coupled eta
BASE, SAMPLES, STAGES, POWER, LARGEST = 32, 30_000, 15, 0.5, 500
FRESH = 100  # seeds from here on are not used to choose a learning rate


@dataclass(frozen=True)
class Form:
    """Torch's options of one form of momentum."""

    kind: str
    beta: float

    def optimizer(self, model: nn.Module, eta: float) -> torch.optim.SGD:
        dampening = self.beta if self.kind == "nshb" else 0.0
        lr = coupled_gamma(eta, self.beta, dampening)
        return torch.optim.SGD(model.parameters(), lr=lr, momentum=self.beta, dampening=dampening)


def noise(*, kind: str, beta: float, batch: int, seed: int) -> list[Row]:
    """What the meter finds over a stretch of a run, and what the formulas say with the C2 and K of that stretch."""
    model = task().model(seed)
    optimizer = Form(kind, beta).optimizer(model, ETA)
    loss = drawn(model, batch, seed)

    def steps(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

    steps(SETTLE)
    with NoiseMeter(model, optimizer, lambda: full_loss(model), batch) as meter:
        steps(SKIP + WINDOW)
    found = meter.noise(skip=SKIP)
    bound = noise_parts(kind, batch, beta, found.C2, found.K)
    exact = noise_parts(kind, batch, beta, found.C2, math.sqrt(found.gradient), source="exact")
    lr = optimizer.param_groups[0]["lr"]
    return [
        {
            "lr": lr,
            "C2": found.C2,
            "gradient": found.gradient,
            "K": found.K,
            "total": found.total,
            "bias": found.bias,
            "variance": found.variance,
            "cross": found.cross,
            "bound": bound.total,
            "bound_share": bound.share,
            "exact_gradient": exact.gradient,
            "exact_noise": exact.noise,
        }
    ]


def steps_to_goal(*, batch: int, seed: int) -> list[Row]:
    """SGD until the mean of |grad f|^2 is at most eps^2, with C2 measured on the way."""
    model = task().model(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=SWEEP["eta"])
    loss, squares, variances, reached = drawn(model, batch, seed), list[float](), list[float](), None
    for step in range(int(SWEEP["limit"]) + 1):
        if step >= SWEEP["from"] and step % int(SWEEP["every"]) == 0:
            C2, norm = gradient_noise(model, lambda: full_loss(model), [loss], batch)
            squares.append(norm**2)
            variances.append(C2)
            if not math.isfinite(norm):
                break
            if len(squares) >= SWEEP["least"] and np.mean(squares) <= SWEEP["eps_sq"]:
                reached = step if training_loss(model) < UNTRAINED / 2 else None  # None: its units are dead
                break
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    C2 = float(np.mean(variances))
    return [{"steps": reached, "C2": C2 if math.isfinite(C2) else None}]


def schedule(*, method: str, eta: float, seed: int) -> list[Row]:
    """Heavy ball at beta 0.9 on so many samples, in stages of equally many."""
    model = task().model(seed)
    form = Form("shb", 0.9)
    optimizer = form.optimizer(model, eta)
    draw = {BASE: drawn(model, BASE, seed)}
    C2, K = gradient_noise(model, lambda: full_loss(model), [drawn(model, 1, seed, 1)] * 200, 1)
    vary = method if method in ("lr", "batch", "beta") else "lr"
    plan = GraduatedSchedule(
        optimizer,
        STAGES,
        vary=vary,
        kind="shb",
        batch_size=BASE,
        C2=C2,
        K=K,
        power=1.0 if method == "linear" else POWER,
        largest=LARGEST,
    )
    used, steps = 0, 0
    for stage in range(1, STAGES + 1):
        while used < SAMPLES * stage // STAGES:
            loss = draw.setdefault(plan.batch_size, drawn(model, plan.batch_size, seed))
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
            used, steps = used + plan.batch_size, steps + 1
        if method != "constant" and stage < STAGES:
            plan.step()
    return [
        {
            "val_accuracy": accuracy(model),
            "train_loss": training_loss(model),
            "steps": steps,
            "batch": plan.batch_size,
            "beta_at_end": plan.beta,
            "reached": plan.delta / plan.target if plan.target else None,
        }
    ]


def jobs(seeds: int, rows: Rows) -> list[Job]:
    """First all sweeps, then four times as many fresh seeds of the schedules at the learning rates that were best."""
    found = [
        Job(noise, {"kind": kind, "beta": beta, "batch": batch, "seed": seed})
        for kind in KINDS
        for beta in BETAS
        for batch in BATCHES
        for seed in range(seeds)
        if beta or kind == "shb"  # at beta 0 both are SGD
    ]
    found += [Job(steps_to_goal, {"batch": batch, "seed": seed}) for batch in SIZES for seed in range(seeds)]
    found += [
        Job(schedule, {"method": method, "eta": eta, "seed": seed})
        for method in METHODS
        for eta in RATES
        for seed in range(seeds)
    ]
    if "schedule" in rows:
        found += [
            Job(schedule, {"method": method, "eta": best_eta(rows, method), "seed": FRESH + seed})
            for method in METHODS
            for seed in range(4 * seeds)
        ]
    return found


def best_eta(rows: Rows, method: str) -> float:
    """By the mean accuracy over the seeds of the sweep."""
    return max(RATES, key=lambda eta: np.mean(finals_of(rows, method, eta, fresh=False)))


def finals_of(rows: Rows, method: str, eta: float, fresh: bool = True) -> Floats:
    mine = {
        row["seed"]: row["val_accuracy"]
        for row in rows["schedule"]
        if (row["method"], row["eta"]) == (method, eta) and (row["seed"] >= FRESH) == fresh  # type: ignore[operator]
    }
    return np.array([mine[seed] for seed in sorted(mine)], float)  # type: ignore[type-var]


def measured(rows: Rows, kind: str, beta: float, batch: int) -> dict[str, Floats]:
    """The columns of one setting, over seeds."""
    mine = [r for r in rows["noise"] if (r["kind"], r["beta"], r["batch"]) == (kind, beta, batch)]
    return {name: np.array([row[name] for row in mine], float) for name in mine[0] if name != "kind"}


def sweeps(rows: Rows) -> list[tuple[CriticalBatch, float]]:
    """For each seed what its search finds, and the C2 measured at that batch size."""
    found = list[tuple[CriticalBatch, float]]()
    for seed in sorted({int(row["seed"]) for row in rows["steps_to_goal"]}):  # type: ignore[arg-type]
        mine: Mapping[int, Row] = {row["batch"]: row for row in rows["steps_to_goal"] if row["seed"] == seed}  # type: ignore[misc]
        eps = math.sqrt(SWEEP["eps_sq"])
        one = critical_of({b: row["steps"] for b, row in mine.items()}, eta=SWEEP["eta"], eps=eps)  # type: ignore[misc]
        if one.batch is not None:
            found.append((one, float(mine[one.batch]["C2"])))  # type: ignore[arg-type]
    return found

"""The trials behind the default: optimizers written for the search, on the tasks that defaults are developed on.

    python scripts/default_trials.py 'shares(lr=0.15)' 'plain(lr=3e-3, avg=8)' --seeds 2

prints the regret of each trial by task and adds its runs to docs/default-trials.csv, which holds all that were ever
made, the losing ones too. They step slowly and plainly; `relative_muon(...)` is what won: `untuned.RelativeMuon`.
"""

import argparse
import ast
import csv
import math
from collections.abc import Callable
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import untuned
from untuned.study import regret, tasks
from untuned.study.horizons import share_reached
from untuned.study.suites import LOOKED_AT

RUNS = Path(__file__).parents[1] / "docs" / "default-trials.csv"


def linear(k: int, total: int, warmup: float) -> float:
    """Linear decay to 0 behind a linear warm-up over a share of the run; k from 0."""
    warm = max(1, round(warmup * total)) if warmup else 0
    return (k + 1) / warm if k < warm else 1 - (k - warm) / max(1, total - warm)


def polar(g: Tensor) -> Tensor:
    """A matrix with all its singular values near 1: five steps of Newton and Schulz, with Muon's coefficients."""
    x = g.mT if len(g) > g.size(1) else g
    x = x / (x.norm() + 1e-30)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if len(g) > g.size(1) else x


def rms(p: Tensor) -> float:
    return p.norm().item() / math.sqrt(p.numel())


class Trial:
    """Moments, the schedule and the average of iterates, which all trials share."""

    def __init__(self, model: nn.Module, total: int, warm: float, avg: float | None) -> None:
        self.params = [p for p in model.parameters() if p.requires_grad]
        self.total, self.warm, self.avg, self.k = total, warm, avg, 0
        self.m, self.v = ([torch.zeros_like(p) for p in self.params] for _ in range(2))
        self.average = [p.detach().clone() for p in self.params] if avg is not None else []

    def share(self) -> float:
        """Of the new point in the average: an EMA below 1, else weights that grow as k^avg."""
        assert self.avg is not None
        if self.avg < 1:
            return 1 - self.avg if self.k > 10 else 1.0
        return min(1.0, (self.avg + 1) / (self.k + self.avg))

    def evaluate_here(self) -> None:
        for p, a in zip(self.params, self.average, strict=False):
            p.data.copy_(a)


class Plain(Trial):
    """AdamW, or Muon for matrices, with an lr that is plain, or relative to the weights of the tensor.

    scale: "plain", "rel" (times the rms of the tensor) or "lamb" (and over that of u). vec="typ": vectors take the
    geometric mean of the matrices' first rms instead of their own, times vlr instead of lr. fan: a power of 64 over the
    inputs of a row. wd: decoupled, times lr; we: its exponents over the whole run. cau: elements of u that disagree
    with g rest. emb="tall": matrices with more than 8 rows per column are Adam's.
    """

    def __init__(
        self, model: nn.Module, total: int, lr: float, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8,
        kind: str = "adam", scale: str = "plain", floor: float | None = None, warm: float = 0.05, wd: float = 0.0,
        nest: bool = False, sched: str = "linear", mulr: float | None = None, vec: str = "rel", fan: float = 0.0,
        vlr: float | None = None, avg: float | None = None, cau: bool = False, we: float = 0.0, emb: str = "",
    ) -> None:  # fmt: skip
        super().__init__(model, total, warm, avg)
        self.o = argparse.Namespace(**{k: v for k, v in locals().items() if k not in ("self", "model", "__class__")})
        first = [rms(p) for p in self.params if p.ndim >= 2 and rms(p) > 0]
        self.typ = math.exp(sum(map(math.log, first)) / len(first)) if first else 1.0

    @torch.no_grad()
    def step(self) -> None:
        o, lam = self.o, linear(self.k, self.total, self.warm)
        if o.sched != "linear":
            lam = min(1.0, (self.k + 1) / max(1, self.warm * self.total))
        self.k += 1
        for i, p in enumerate(self.params):
            if p.grad is None:
                continue
            g, m, v = p.grad, self.m[i], self.v[i]
            m.lerp_(g, 1 - o.b1)
            v.mul_(o.b2).addcmul_(g, g, value=1 - o.b2)
            mean = m / (1 - o.b1**self.k)
            if o.nest:
                mean = o.b1 * m / (1 - o.b1 ** (self.k + 1)) + (1 - o.b1) * g / (1 - o.b1**self.k)
            tall = o.emb == "tall" and p.ndim == 2 and len(p) > 8 * p.size(1)
            muon = o.kind == "muon" and p.ndim >= 2 and min(len(p), p[0].numel()) > 1 and not tall
            if muon:
                matrix = mean.reshape(len(p), -1)
                u = (polar(matrix) * math.sqrt(max(matrix.shape))).view_as(p)
            else:
                u = mean / ((v / (1 - o.b2**self.k)).sqrt() + o.eps)
            f = lam * (o.mulr if muon and o.mulr else o.lr)
            if o.scale != "plain":
                r = max(rms(p), o.floor if o.floor is not None else 0.1 * self.typ)
                if p.ndim < 2:
                    r = self.typ if o.vec == "typ" else r
                    f = lam * o.vlr if o.vlr else f
                elif o.fan:
                    r *= (p[0].numel() / 64) ** -o.fan
                f *= r / (rms(u) + 1e-12) if o.scale == "lamb" else r
            if o.wd:
                p.mul_(1 - lam * o.lr * o.wd)
            if o.we and p.ndim >= 2:
                p.mul_(1 - lam * 2 * o.we / self.total)
            if o.cau:
                agrees = (u * g > 0).to(u.dtype)
                u = u * agrees / agrees.mean().clamp_min(1e-3)
            p.sub_(u, alpha=f)
            if self.average:
                self.average[i].lerp_(p, self.share())


class Shares(Trial):
    """One lr for all tensors, as a share of their rms: Muon with rms `mm`, Adam for the rest, vectors by the model's.

    vec: times the rms of the model; geo: its geometric mean over matrices instead; wdv: whether vectors decay.
    """

    def __init__(
        self, model: nn.Module, total: int, lr: float = 0.1, b1: float = 0.9, b1m: float | None = None,
        b2: float = 0.99, warm: float = 0.1, wd: float = 0.01, avg: float | None = None, floor: float = 0.1,
        vec: float = 1.0, wdv: bool = True, tall: float = 8, mm: float = 0.2, nest: bool = False, geo: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(model, total, warm, avg)
        self.o = argparse.Namespace(**{k: v for k, v in locals().items() if k not in ("self", "model", "__class__")})

    @torch.no_grad()
    def step(self) -> None:
        o, f = self.o, self.o.lr * linear(self.k, self.total, self.warm)
        self.k += 1
        squares = [p.square().sum().item() for p in self.params]
        whole = math.sqrt(sum(squares) / sum(p.numel() for p in self.params))
        if o.geo:
            matrices = [math.sqrt(s / p.numel()) for s, p in zip(squares, self.params, strict=True) if p.ndim > 1 and s]
            whole = math.exp(sum(map(math.log, matrices)) / len(matrices))
        for i, p in enumerate(self.params):
            if p.grad is None:
                continue
            muon = p.ndim >= 2 and min(len(p), p[0].numel()) > 1 and len(p) <= o.tall * p[0].numel()
            b1 = o.b1m if muon and o.b1m else o.b1
            g, m, v = p.grad, self.m[i], self.v[i]
            m.lerp_(g, 1 - b1)
            if muon:
                matrix = (m.lerp(g, 1 - b1) if o.nest else m).reshape(len(p), -1)
                u = (polar(matrix) * (o.mm * math.sqrt(max(matrix.shape)))).view_as(p)
            else:
                v.mul_(o.b2).addcmul_(g, g, value=1 - o.b2)
                u = (m / (1 - b1**self.k)) / ((v / (1 - o.b2**self.k)).sqrt() + 1e-30)
            r = max(math.sqrt(squares[i] / p.numel()), o.floor * whole) if p.ndim >= 2 else o.vec * whole
            if o.wd and (p.ndim >= 2 or o.wdv):
                p.mul_(1 - f * o.wd)
            p.sub_(u, alpha=f * r)
            if self.average:
                self.average[i].lerp_(p, self.share())


class Chosen(Trial):
    """`untuned.RelativeMuon`, under the schedule that it is recommended with."""

    def __init__(self, model: nn.Module, total: int, lr: float = 0.12, warm: float = 0.05, **options: Any) -> None:
        super().__init__(model, total, warm, None)
        self.optimizer, self.lr = untuned.RelativeMuon(self.params, lr=lr, **options), lr

    def step(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * linear(self.k, self.total, self.warm)
        self.k += 1
        self.optimizer.step()


KINDS: dict[str, Callable[..., Plain | Shares | Chosen]] = {"plain": Plain, "shares": Shares, "relative_muon": Chosen}


def run(trial: str, name: str, seed: int) -> float:
    """The final validation loss, inf if the run diverged."""
    call = ast.parse(trial, mode="eval").body
    assert isinstance(call, ast.Call)
    assert isinstance(call.func, ast.Name)
    options = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    task = tasks.load(name)
    torch.manual_seed(seed)
    model = task.model(seed)
    total = round((LOOKED_AT[name] or task.epochs) * sum(1 for _ in task.batches(seed, 0)))
    optimizer = KINDS[call.func.id](model, total, **options)
    stream = chain.from_iterable(task.batches(seed, epoch) for epoch in count())
    for batch in islice(stream, total):
        model.zero_grad()
        loss = task.loss(model, batch)
        loss.backward()
        if not math.isfinite(loss.item()):
            return math.inf
        optimizer.step()
    optimizer.evaluate_here()
    value: Any = task.evaluate(model)["val_loss"]
    return value if math.isfinite(value) else math.inf


def regret_of(name: str, loss: float) -> float:
    curve = regret._baseline(name)
    assert curve is not None
    return float(1 - share_reached(curve.horizons, curve.losses, curve.untrained, np.array([loss]))[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trials", nargs="+")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--tasks", default=",".join(LOOKED_AT))
    given = parser.parse_args()
    torch.set_num_threads(1)
    for trial in given.trials:
        found = {}
        for name in given.tasks.split(","):
            for seed in range(given.seeds):
                loss = run(trial, name, seed)
                found[name, seed] = regret_of(name, loss)
                with RUNS.open("a", newline="", encoding="utf-8") as file:
                    row = [trial, name, seed, f"{loss:.6g}", f"{found[name, seed]:.4f}"]
                    csv.writer(file, lineterminator="\n").writerow(row)
        print(trial, *(f"{name}/{seed} {100 * value:.0f} %" for (name, seed), value in found.items()))
        print(f"    mean {100 * np.mean([*found.values()]):.1f} %")


if __name__ == "__main__":
    main()

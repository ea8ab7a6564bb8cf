"""MoMo and Mechanic against the same methods in the form of their papers, over random runs in which anything happens.

The papers' forms cost more: MoMo keeps the average of <g, x> and sums <m, x> anew in every step, Mechanic keeps the
starting point. In exact arithmetic nobody can tell them from ours.
"""

import random
from typing import Any, ClassVar

import pytest
import torch

import untuned
from untuned import directions, iterates, step_sizes
from untuned.parts import (
    Iterate,
    Place,
    StepSize,
    choice,
    dot,
    each,
    hyper,
    maximum,
    minimum,
    number,
    slot,
    sqrt,
    where,
)
from untuned.weight_decay import Coupled, Decoupled, Proximal

SIZES = (5, 7, 20_000, 3, 4, 1)  # the third is worth several blocks and chunks


class PaperMoMo(StepSize):
    lr: float = hyper(default=1.0, within="[0, inf)")
    lb: float = hyper(default=0.0, within="(-inf, inf)")
    online: bool = False
    needs: ClassVar[frozenset[str]] = frozenset({"loss", "average"})
    F = number(0.0, key="loss_avg")
    G = number(0.0, key="gx_avg", each=True)
    rho = number(0.0, key="weights")
    L = number("lb", key="lower_bound")
    theta = number(0.0, key="theta")

    def measure(self, x: Place) -> tuple[Any, ...]:
        along = x.lr * dot(x.m, x.u)
        return each(dot(x.g, x.p)), dot(x.m, x.w), dot(x.m, x.w) / x.shrink, along, along / x.shrink

    def decide(self, c: Place, gx: Any, mx: Any, mx_shrunk: Any, mu: Any, mu_shrunk: Any) -> None:
        c.rho = c.keep * c.rho + c.take
        c.F = c.keep * c.F + c.take * c.loss
        c.G = c.keep * c.G + c.take * gx
        model = c.F - c.summed(c.G) + mx_shrunk
        if self.online:
            c.L = where(model < c.rho * c.L, maximum(model / (2 * c.rho), c.lb), c.L)
        gap = maximum(model - c.rho * c.L, 0.0)
        c.theta = where(mu_shrunk > 0, minimum(gap / mu_shrunk, 1 / c.rho), 0.0)
        if self.online:
            c.L = maximum((c.F - c.summed(c.G) + mx - c.theta / 2 * mu) / c.rho, c.lb)

    def size(self, x: Place) -> tuple[Any, Any]:
        return x.theta * x.lr, x.lr


class PaperMechanic(Iterate):
    s_decay: float = hyper(default=1e-2, within="[0, inf)")
    s_init: float = hyper(default=1e-8, within="(0, inf)")
    decays: tuple[float, ...] = hyper(default=(0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999), within="[0, 1)")
    scope: str = choice(default="model", others=("group", "tensor"))
    gives: ClassVar[frozenset[str]] = frozenset({"additive", "plain_step"})
    wants_size: ClassVar[bool] = True
    ref = slot("ref", start="start")
    D = slot("delta")
    beta = number("decays", key="mechanic_beta")
    s = number(0.0, size="decays", key="mechanic_s")
    m = number(1e-6, size="decays", key="mechanic_m")
    v = number(0.0, size="decays", key="mechanic_v")
    W = number(0.0, size="decays", key="mechanic_wealth")
    S = number(0.0, key="mechanic_S")

    def measure(self, x: Place) -> tuple[Any, ...]:
        y = x.base(x.p)
        sums = dot(x.raw, x.D), dot(y, x.D), dot(x.raw, x.raw), dot(y, y)
        x.D = x.D + (y - x.p)
        return sums

    def decide(self, c: Place, gD: Any, yD: Any, gg: Any, yy: Any) -> None:
        h = (gD + c.s_decay * c.S * sqrt(gg) / (sqrt(yy) + 1e-8) * yD)[..., None]
        c.m = maximum(c.beta * c.m, abs(h))
        c.v = c.beta * c.beta * c.v + h * h
        c.W = maximum(c.beta * c.W - c.s * h, 0.0)
        c.s = (c.s_init * c.m / c.m.shape[-1] + c.W) / (sqrt(c.v) + 1e-8)
        c.S = c.s.sum(-1)

    def move(self, x: Place) -> None:
        x.p = x.ref + x.S * x.D


DIRECTIONS = [
    lambda: directions.Momentum(0.9, dampening=0.9),
    lambda: directions.Momentum(0.9, dampening=0.9, correct=True),
    lambda: directions.Adam(),
    lambda: directions.TAM(scope="model"),
    lambda: directions.AdaGrad(),
    lambda: directions.Gradient(),
]
DECAYS = [
    lambda: Proximal(0.0),
    lambda: Decoupled(0.0),
    lambda: Proximal(0.1),
    lambda: Decoupled(0.1),
    lambda: Coupled(0.1),
]
PAIRS = {
    "momo": [(step_sizes.MoMo, PaperMoMo), (iterates.Plain, iterates.ScheduleFree, iterates.PrimalAverage)],
    "momo x mechanic": [(step_sizes.MoMo, PaperMoMo), (iterates.Mechanic,)],
    "mechanic": [(step_sizes.Fixed, step_sizes.Fixed), ((iterates.Mechanic, PaperMechanic),)],
}


def run(kind: str, form: int, seed: int) -> list[list[torch.Tensor]]:
    """The weights after each step; `form` 0 is ours, 1 the paper's. All that is random follows from the seed."""
    pick = random.Random(seed)
    rules, points = PAIRS[kind]
    lr, online, by_tensor = pick.choice([0.1, 1.0, 5.0]), pick.random() < 0.5, pick.random() < 0.3
    direction, decay, point = pick.choice(DIRECTIONS)(), pick.choice(DECAYS)(), pick.choice(points)
    point = point[form]() if isinstance(point, tuple) else point()
    if isinstance(point, iterates.PrimalAverage) and "momentum" in direction.fields:
        direction = directions.Adam()  # both call their coefficient momentum
    if isinstance(point, iterates.Mechanic | PaperMechanic):
        point = type(point)(s_init=1e-2, scope=pick.choice(["model", "group", "tensor"]))
    rule = rules[form](lr, online=online) if kind.startswith("momo") else rules[form](0.02 * lr)
    options = {"clip_grad_norm": pick.choice([None, 1.0]), "execution": pick.choice(["auto", "reference"])}

    torch.manual_seed(seed)
    params = [torch.nn.Parameter(torch.randn(n, dtype=torch.float64)) for n in SIZES]
    goals = [torch.randn(n, dtype=torch.float64) for n in SIZES]
    rate = (lambda value: torch.tensor(value)) if by_tensor else (lambda value: value)
    groups = [{"params": params[:2], "lr": rate(rule.lr)}, {"params": params[2:4], "lr": rate(rule.lr / 2)}]
    optimizer = untuned.compose(groups, direction, rule, point, decay, **options)
    found = []
    for _ in range(25):
        if pick.random() < 0.1 and len(optimizer.param_groups) == 2:
            optimizer.add_param_group({"params": params[4:], "lr": rate(rule.lr / 3)})
        live = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer.zero_grad()
        loss = 1 + (1 + pick.random()) * sum((p - goal).square().sum() for p, goal in zip(live, goals, strict=False))
        loss.backward()
        if kind.startswith("momo") and pick.random() < 0.3:  # where Mechanic has a starting point, changes are undone
            with torch.no_grad():
                for p in pick.sample(live, 2):
                    p.mul_(0.9).add_(0.01)
        if pick.random() < 0.2:
            for p in pick.sample(live, 2):
                p.grad = None
        if pick.random() < 0.1:
            next(p for p in live if p.grad is not None).grad.fill_(torch.nan)
        if pick.random() < 0.2:
            pick.choice(optimizer.param_groups)["weight_decay"] = pick.choice([0.0, 0.05])
        if pick.random() < 0.2:
            pick.choice(optimizer.param_groups)["lr"] = rate(pick.choice([0.0, rule.lr]))
        if pick.random() < 0.1:
            optimizer.eval()
            optimizer.train()
        optimizer.step(loss=loss.detach())
        found.append([p.detach().clone() for p in params])
    return found


@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(6, 12))])
@pytest.mark.parametrize("kind", PAIRS)
def test_ours_cannot_be_told_from_the_papers_form(kind: str, seed: int) -> None:
    for ours, papers in zip(run(kind, 0, seed), run(kind, 1, seed), strict=True):
        for p, q in zip(ours, papers, strict=True):
            assert float((p - q).abs().max()) <= 1e-9 * (1 + float(q.abs().max()))

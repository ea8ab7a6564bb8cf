"""Matrix math on matrices that two processes hold shards of: each sees them whole, and the model is that of one."""

from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import untuned
from untuned.directions import SNGM, TAM, Adam, Muon
from untuned.iterates import Mechanic, ScheduleFree
from untuned.parts import Direction, Place, scratch, slot, sqrt
from untuned.step_sizes import Fixed, MoMo, Relative
from untuned.weight_decay import Coupled, Decoupled

pytestmark = pytest.mark.xdist_group("matrices")  # its processes serve all tests of the file

STEPS = 8
SHAPES = [(5, 4), (4,), (3, 6), (1, 3), (7,), (3, 2, 2)]  # of uneven shards, one of them without a row
PLACED = [Shard(0), Shard(0), Shard(1), Shard(0), Replicate(), Shard(0)]


class Factored(Direction):
    """u = g / sqrt of what row and column means of g^2 say of it; the decay enters g after a slot was written."""

    r = slot("rows", shape=lambda shape: (shape[0],))
    c = slot("columns", shape=lambda shape: (shape[1],))
    v = scratch("second_moment")
    whole = slot("whole")

    def reform(self, x: Place) -> None:
        x.whole = 0.5 * x.whole + x.g
        x.r = 0.9 * x.r + 0.1 * (x.g * x.g).mean(1)
        x.c = 0.9 * x.c + 0.1 * (x.g * x.g).mean(0)
        x.v = torch.outer(x.r, x.c) / x.r.mean()

    def unit(self, x: Place) -> Any:
        return (x.g + 0.1 * x.whole) / (sqrt(x.v) + 1e-3)


SCENARIOS: dict[str, Any] = {
    "muon": lambda: ({"matrices": Muon(), "rest": Adam()}, Fixed(0.05), None, Decoupled(0.1)),
    "momo": lambda: ({"matrices": Muon(0.9), "rest": Adam()}, MoMo(0.05), None, Decoupled(0.1)),
    "mechanic": lambda: ({"matrices": Muon(), "rest": Adam()}, Fixed(0.05), Mechanic(s_init=0.5), None),
    "schedule free": lambda: ({"matrices": Muon(), "rest": Adam()}, Fixed(0.05), ScheduleFree(), None),
    "relative": lambda: ({"matrices": Muon(0.8, nesterov=False), "rest": Adam()}, Relative(0.1), None, Decoupled(0.1)),
    "factored": lambda: ({"matrices": Factored(), "rest": Adam()}, Fixed(0.05), None, Coupled(0.1)),
}


def start() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def groups(params: list[Any], dimensions: tuple[int, ...] = (2, 3)) -> list[dict[str, Any]]:
    """The matrices, and those tensors with more dimensions that count as such, and the rest."""
    by_label: dict[str, list[Any]] = {"rest": [], "matrices": []}
    for p in params:
        by_label["matrices" if p.dim() in dimensions else "rest"].append(p)
    return [{"params": part, "label": label} for label, part in by_label.items()]


def gradients(values: list[torch.Tensor], k: int) -> tuple[float, list[torch.Tensor]]:
    """Of the sum of (x - c_k)^4 / 4, on batch k."""
    generator = torch.Generator().manual_seed(k + 1)
    errors = [x - torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in values]
    return sum(float((e**4).sum()) / 4 for e in errors), [e**3 for e in errors]


def train(name: str, params: list[Any], give: Any, steps: range, state: Any = None) -> dict[str, Any]:
    direction, step_size, iterate, decay = SCENARIOS[name]()
    listed = groups(params, (2,) if name == "factored" else (2, 3))
    optimizer = untuned.compose(listed, direction, step_size, iterate, decay, clip_grad_norm=50.0)
    if state is not None:
        optimizer.load_state_dict(state)
    for k in steps:
        loss, grads = gradients([whole(p) for p in params], k)
        if k == 3:
            grads[0][4, 0] = float("nan")  # in one shard only
        give(params, grads)
        optimizer.step(loss=loss)
    numbers = {k: v for k, v in optimizer.metrics().items() if k != "apart"}
    return {"end": [whole(p).clone() for p in params], "metrics": numbers, "state": optimizer.state_dict()}


def whole(p: Any) -> torch.Tensor:
    return p.detach().full_tensor() if isinstance(p, DTensor) else p.detach()


def give(params: list[Any], grads: list[torch.Tensor]) -> None:
    for p, g in zip(params, grads, strict=True):
        p.grad = distribute_tensor(g, p.device_mesh, p.placements) if isinstance(p, DTensor) else g


def on_two(rank: int, folder: Path) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (2,))
    found: dict[str, Any] = {}

    def placed(values: list[torch.Tensor]) -> list[nn.Parameter]:
        shards = (distribute_tensor(a, mesh, [one]) for a, one in zip(values, PLACED, strict=True))
        return [nn.Parameter(p) for p in shards]

    for name in SCENARIOS:
        params = placed(start())
        unbroken = train(name, params, give, range(STEPS))
        half = train(name, params := placed(start()), give, range(5))
        resumed = train(name, params, give, range(5, STEPS), half["state"])
        found[name] = {
            "end": unbroken["end"],
            "metrics": unbroken["metrics"],
            "resumed": all(map(torch.equal, unbroken["end"], resumed["end"])),
        }
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return forked.run(on_two, tmp_path_factory.mktemp("matrices") / "two", 2)


@pytest.mark.parametrize("name", SCENARIOS)
def test_sharded_matrices_are_one_model(name: str, ranks: list[dict[str, Any]]) -> None:
    one, two = (rank[name] for rank in ranks)
    alone = train(name, [nn.Parameter(a) for a in start()], give, range(STEPS))
    assert one["metrics"] == two["metrics"]
    assert one["metrics"] == pytest.approx(alone["metrics"], rel=1e-10)
    assert one["metrics"]["skipped"] == 1
    for a, b, c, first in zip(one["end"], two["end"], alone["end"], start(), strict=True):
        assert torch.equal(a, b)
        assert (c - first).abs().max() > 1e-2
        assert (a - c).abs().max() < 1e-10
    assert one["resumed"] and two["resumed"]


def divided(rank: int, folder: Path) -> dict[str, Any]:
    """Each process holds the tensors of one label alone; both directions add up what they look for over the ranks."""
    params = [nn.Parameter(a) for a in start()]
    labels = {"rest": TAM(scope="model"), "matrices": SNGM(scope="model")}
    listed = groups(params)
    listed[1 - rank]["params"] = []
    optimizer = untuned.compose(listed, labels, Fixed(0.05), shard_group="world")
    for k in range(STEPS):
        loss, grads = gradients([p.detach() for p in params], k)
        give(params, grads)
        optimizer.step(loss=loss)
    return {"end": [p.detach() for group in listed for p in group["params"]]}


def test_each_process_holds_another_half_of_a_partition(tmp_path: Path) -> None:
    ranks = forked.run(divided, tmp_path / "two", 2)
    params = [nn.Parameter(a) for a in start()]
    optimizer = untuned.compose(
        groups(params), {"rest": TAM(scope="model"), "matrices": SNGM(scope="model")}, Fixed(0.05)
    )
    for k in range(STEPS):
        # every process saw its own half of the model move, and the gradients of a tensor follow from it alone
        loss, grads = gradients([p.detach() for p in params], k)
        give(params, grads)
        optimizer.step(loss=loss)
    for rank, group in zip(ranks, groups(params), strict=True):
        for found, p in zip(rank["end"], group["params"], strict=True):
            assert (found - p.detach()).abs().max() < 1e-12

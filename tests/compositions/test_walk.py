"""Every step size on every direction with every iterate: what is allowed minimises, what is refused says why."""

import re
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import untuned
from untuned import directions, iterates, step_sizes
from untuned.parts.part import Part

Cell = tuple[str, str, str]  # direction, step size, iterate
ROOMS = directions, step_sizes, iterates

HALF = 15  # steps
FEW = "Adam", "DualAverage", "Momentum"  # directions for pairs of a step size and an iterate
LRS = (1.0, 0.1, 0.01, 0.001)  # a cell must work at one of them
OPTIONS = {"d0": 0.1, "reps_rel": 0.1, "dog_eps": 0.1, "s_init": 0.1, "samples": 5}  # first estimates that one can see

UPHILL = {  # allowed cells that reduce the loss at no lr, and why
    ("AdaTAM", "GradaGrad", "PrimalAverage"): "gamma grows until gradients turn, which two averages in a row delay",
    ("Adam", "GradaGrad", "PrimalAverage"): "as with AdaTAM",
    ("AdaGradDA", "GradaGrad", "PrimalAverage"): "as with AdaTAM; a sum of gradients is momentum without an end",
    ("CubeRootDA", "GradaGrad", "PrimalAverage"): "as with AdaGradDA",
    ("DualAverage", "GradaGrad", "PrimalAverage"): "as with AdaGradDA",
}
for direction, step_size, iterate in [*UPHILL]:  # the two are equal where no gradient is late
    UPHILL[direction, step_size, "OrderedMomentum"] = f"as with {iterate}: heavy ball"
for direction in ("AdaGradDA", "CubeRootDA", "DualAverage"):  # with each of three seeds
    UPHILL[direction, "GradaGrad", "RandomPoint"] = "as with PrimalAverage: gradients are those from behind z"

# Five samples, five weights: mean of (row x - target)^2 / 2, whose Hessian has condition number 3 and couples all.
_v = torch.arange(1.0, 6.0, dtype=torch.float64)
_reflection = torch.eye(5, dtype=torch.float64) - 2 * torch.outer(_v, _v) / (_v @ _v)
ROWS = _reflection @ torch.linspace(1, 3, 5, dtype=torch.float64).sqrt().diag() @ _reflection
TARGETS = ROWS @ torch.tensor([2.0, -1.0, 0.5, 3.0, 0.0], dtype=torch.float64)
START = [torch.ones(1, 2, dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64)]  # a row and a column
SAMPLES = torch.arange(5)


def part(room: Any, name: str, **options: float) -> Part:
    kind = getattr(room, name)
    return kind(**{option: value for option, value in (OPTIONS | options).items() if option in kind.fields})


def build(cell: Cell, lr: float, points: list[Tensor]) -> untuned.Optimizer:
    parts: list[Any] = [part(room, name, lr=lr) for room, name in zip(ROOMS, cell, strict=True)]
    return untuned.compose([nn.Parameter(point.detach().clone()) for point in points], *parts, execution="reference")


def refusal(cell: Cell) -> str:
    try:
        build(cell, 1.0, START)
    except TypeError as reason:
        return str(reason)
    return ""


def weights(optimizer: untuned.Optimizer) -> list[Tensor]:
    return optimizer.param_groups[0]["params"]


def loss_of(points: list[Tensor]) -> Tensor:
    """The loss; fills in the gradients."""
    errors = ROWS @ torch.cat([point.detach().flatten() for point in points]) - TARGETS
    for point, gradient in zip(points, (errors @ ROWS / 5).split([2, 3]), strict=True):
        point.grad = gradient.view_as(point)
    return errors @ errors / 10


def train(optimizer: untuned.Optimizer, steps: int) -> None:
    for _ in range(steps):
        signals = {key: optimizer.param_groups[0]["steps"] for key, _ in optimizer.recipe.signals}  # index: not late
        optimizer.step(loss=loss_of(weights(optimizer)), sample_ids=SAMPLES, **signals)


def everything(optimizer: untuned.Optimizer) -> dict[tuple[int, str], Tensor]:
    """Parameters, slots, numbers and counters."""
    found = {(-1, key): value for key, value in optimizer.param_groups[0].items() if isinstance(value, Tensor)}
    for i, p in enumerate(weights(optimizer)):
        found |= {(i, "p"): p.detach()} | {(i, key): value for key, value in optimizer.state[p].items()}
    return found


def walk(cell: Cell) -> list[str]:
    """Steps at the largest lr that reduces the loss, and a copy that goes on alone half-way; returns what is wrong.

    Where no lr does, the smallest counts.
    """
    for lr in LRS:
        optimizer = build(cell, lr, START)
        train(optimizer, HALF)
        resumed = build(cell, lr, weights(optimizer))
        resumed.load_state_dict(optimizer.state_dict())
        train(optimizer, HALF)
        optimizer.eval()
        reduced = bool(loss_of(weights(optimizer)) < loss_of(START))
        if reduced:
            break
    train(resumed, HALF)
    resumed.eval()
    one, other = everything(optimizer), everything(resumed)
    wrong: list[str] = []
    if one[-1, "steps"] != 2 * HALF or one[-1, "skipped"] or not all(bool(v.isfinite().all()) for v in one.values()):
        wrong.append("takes steps that are not finite")
    if one.keys() != other.keys() or not all(torch.equal(one[key], other[key]) for key in one):
        wrong.append("resumes differently")
    if reduced == (cell in UPHILL):
        wrong.append("reduces the loss: take it out of UPHILL" if reduced else "reduces the loss at no lr")
    return wrong


def cells(iterate: str, step_size: str, every: bool) -> list[Cell]:
    """Every pair of parts at least once; with `every`, all triples."""
    few = not every and iterate != "Plain" and step_size != "Fixed"
    return [(direction, step_size, iterate) for direction in (FEW if few else directions.__all__)]


@pytest.mark.parametrize("step_size", step_sizes.__all__)
@pytest.mark.parametrize("iterate", iterates.__all__)
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["pairs", "triples"])
def test_allowed_cells_take_finite_steps_resume_bitwise_and_reduce_the_loss(
    iterate: str, step_size: str, every: bool
) -> None:
    cells_here = cells(iterate, step_size, every)
    wrong = {cell: walk(cell) for cell in cells_here if not refusal(cell)}
    assert {cell: found for cell, found in wrong.items() if found} == {}


@pytest.mark.parametrize("iterate", iterates.__all__)
def test_refused_cells_say_why_in_one_true_sentence(iterate: str) -> None:
    lacking = re.compile(r"(\w+) cannot use (\w+): it needs '(\w+)' \([^)]+\); [^.]+\. Use ([\w, ]+)\.")
    sharing = re.compile(
        r"(\w+) and (\w+) both declare the (?:group entry|per-parameter state) '(\w+)': they cannot share one "
        r"optimizer\. Rename it in one of them, or use another part\."
    )
    everywhere = {name: part(room, name) for room in ROOMS for name in room.__all__}
    for cell in product(directions.__all__, step_sizes.__all__, [iterate]):
        sentence = refusal(cell)
        given = {word for name in cell for word in everywhere[name].gives}
        if lacks := lacking.fullmatch(sentence):
            one, other, word, instead = lacks.groups()
            assert {one, other} <= {*cell} and word in everywhere[one].needs and word not in given, sentence
            assert all(word in everywhere[name].gives for name in re.split(", | or ", instead)), sentence
        elif shares := sharing.fullmatch(sentence):
            one, other, key = shares.groups()
            declared = [{entry.key for entry in everywhere[name].letters.values()} for name in (one, other)]
            assert {one, other} <= {*cell} and key in declared[0] & declared[1], sentence
        else:
            assert sentence == ""


def test_the_tables_name_what_exists() -> None:
    assert OPTIONS.keys() <= {field for room in ROOMS for name in room.__all__ for field in getattr(room, name).fields}
    assert [cell for cell in UPHILL if refusal(cell)] == []

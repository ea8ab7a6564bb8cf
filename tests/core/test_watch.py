"""Sums that nothing in a step waits for: what they are, and that they cost no pass over memory."""

from typing import Any

import pytest
import torch
from torch import nn

import untuned
from untuned.around import Project, RandomScaling
from untuned.directions import Adam, Gradient, Muon
from untuned.gradients import AdaRem, Norms
from untuned.iterates import Mechanic, Plain, ScheduleFree
from untuned.parts import Direction, GradientTransform, Iterate, Place, dot, each, number, slot
from untuned.step_sizes import NGN, DoG, Fixed, MoMo, Prodigy


def net(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def train(optimizer: Any, model: nn.Module, steps: int, scale: float = 1.0) -> list[tuple[float, float]]:
    """The norms of the gradients that each step got, by torch."""
    found = []
    for k in range(steps):
        optimizer.zero_grad()
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
        loss = scale * model(x.to(next(model.parameters()).dtype)).square().mean()
        loss.backward()
        g = torch.cat([p.grad.double().flatten() for p in model.parameters()])
        optimizer.step(loss=loss.detach())
        found.append((g.abs().sum().item(), g.norm().item()))
    return found


RECIPES: dict[str, Any] = {
    "adam": dict,
    "momo": lambda: {"step_size": MoMo(lr=0.1)},
    "prodigy of slices": lambda: {"direction": Adam(correct=False), "step_size": Prodigy(slice_p=3)},
    "dog": lambda: {"direction": Gradient(), "step_size": DoG()},
    "schedule-free": lambda: {"iterate": ScheduleFree(), "step_size": Fixed(0.01)},
    "mechanic": lambda: {"iterate": Mechanic()},
    "after another transform": lambda: {"direction": Gradient(), "gradient": [Norms(), AdaRem()]},
    "clipped": lambda: {"clip_grad_norm": 1e-2},
    "ascent": lambda: {"maximize": True},
}


@pytest.mark.parametrize("execution", ["reference", "native"])
@pytest.mark.parametrize("name", RECIPES)
def test_the_norms_of_the_gradient_as_it_was_given(name: str, execution: str) -> None:
    model = net()
    options = {"gradient": [Norms()]} | RECIPES[name]()
    optimizer = untuned.compose(model.parameters(), execution=execution, **options)
    wanted = train(optimizer, model, 4)[-1]
    numbers = optimizer.metrics()
    assert (numbers["grad_l1"], numbers["grad_l2"]) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recorder_changes_no_step(name: str) -> None:
    one, other = net(), net()
    options = RECIPES[name]()
    without = options | {"gradient": [part for part in options.get("gradient", []) if not isinstance(part, Norms)]}
    train(untuned.compose(one.parameters(), execution="native", **({"gradient": [Norms()]} | options)), one, 4)
    train(untuned.compose(other.parameters(), execution="native", **(RECIPES[name]() | without)), other, 4)
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("name", ["adamw", "momo_adam", "prodigy", "schedule_free_adamw", "mechanic_adamw", "sgd"])
def test_the_norms_cost_no_stream(name: str) -> None:
    """Kernels read and write no tensor more."""

    def streams(**options: Any) -> int:
        optimizer = untuned.create([nn.Parameter(torch.ones(3))], name, **options)
        programs = [stage.program(frozenset()) for stage in optimizer._launch.stages[None][1:]]
        return sum(len(keys) for program in programs for keys in program.streams())

    assert streams(gradient=[Norms()]) == streams() >= 3


def test_norms_beside_matrix_math_and_of_a_part_of_the_tensors() -> None:
    """With labels the transform serves those that have it; the sums are of these tensors."""
    model = net()
    matrices, rest = [p for p in model.parameters() if p.dim() == 2], [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "label": "matrices"}, {"params": rest, "label": "rest"}]
    directions = {"matrices": Muon(), "rest": Adam()}
    optimizer = untuned.compose(groups, directions, gradient={"matrices": [Norms()], "rest": []})
    train(optimizer, model, 2)
    g = torch.cat([p.grad.flatten() for p in matrices])
    assert optimizer.metrics()["grad_l2"] == pytest.approx(g.norm().item(), rel=1e-12)


@pytest.mark.parametrize("execution", ["reference", "native"])
def test_norms_of_a_part_of_the_tensors_beside_others_of_several_kinds(execution: str) -> None:
    """Those of label b have fewer sums than those of label a, and kernels take all but the empty one."""
    torch.manual_seed(0)
    a, *b = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in ((3,), (3,), (), (2, 0))]
    groups = [{"params": [a], "label": "a"}, {"params": b, "label": "b"}]
    gradient = {"a": [Norms()], "b": []}
    optimizer = untuned.compose(groups, Gradient(), NGN(lr=0.5), gradient=gradient, execution=execution)
    gradients = [p.detach() / 2 for p in [a, *b]]
    for p, g in zip([a, *b], gradients, strict=True):
        p.grad = g.clone()
    optimizer.step(loss=torch.tensor(2.0))
    numbers, squares = optimizer.metrics(), [g.square().sum().item() for g in gradients]
    assert numbers["grad_l2"] == pytest.approx(squares[0] ** 0.5, rel=1e-12)
    assert numbers["theta"] == pytest.approx(4 / (4 + 0.5 * sum(squares)), rel=1e-12)


def test_a_recorder_has_one_place_in_all_labels() -> None:
    """At two places its sums would be taken one after the other, and the second would stand for the whole model."""
    groups = [{"params": [nn.Parameter(torch.tensor([3.0, 4.0]))], "label": label} for label in "ab"]
    one = Norms()
    optimizer = untuned.compose(groups, Gradient(), gradient={"a": [one], "b": [one, AdaRem()]})
    for group in groups:
        group["params"][0].grad = torch.tensor([3.0, 4.0])
    optimizer.step()
    assert optimizer.metrics()["grad_l2"] == pytest.approx(50**0.5)
    for chains in ({"a": [one], "b": [AdaRem(), one]}, {"a": [AdaRem(), one], "b": [one]}):
        with pytest.raises(TypeError, match=r"^gradient \d is the Norms that is gradient \d already\. [^\n]*\.$"):
            untuned.compose(groups, Gradient(), gradient=chains)
    scaling = RandomScaling()  # takes no sums
    untuned.compose(groups, Gradient(), around={"a": [scaling], "b": [Project(), scaling]})


def test_a_skipped_step_records_nothing() -> None:
    model = net()
    optimizer = untuned.AdamW(model.parameters(), gradient=[Norms()])
    train(optimizer, model, 1)
    before = optimizer.metrics()
    for p in model.parameters():
        p.grad = torch.full_like(p, torch.nan)
    optimizer.step()
    assert optimizer.metrics() == before | {"skipped": 1.0}


def test_a_sum_behind_the_move_that_overflows_skips_no_step() -> None:
    """The weights have moved: the step counts, and the number keeps its value."""

    class Length(Iterate):
        length = number(3.0)

        def move(self, x: Place) -> None:
            x.p = x.base(x.p)

        def watch(self, x: Place) -> Any:
            return 1e300 * dot(x.p, x.p) * 1e300

        def record(self, c: Place, length: Any) -> None:
            c.length = length

    w = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = untuned.compose([w], iterate=Length())
    w.grad = torch.ones(2, dtype=torch.float64)
    optimizer.step()
    found = optimizer.metrics()
    assert w.lt(1).all() and (found["length"], found["steps"], found["skipped"]) == (3.0, 1.0, 0.0)


@pytest.mark.parametrize("execution", ["reference", "native"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_old_weights_are_there_behind_the_move(execution: str, dtype: torch.dtype) -> None:
    class Travelled(Direction):
        far = number(0.0, each=True)

        def unit(self, x: Place) -> Any:
            return x.g

        def watch(self, x: Place) -> Any:
            return each(dot(x.p - x.old.p, x.p - x.old.p))

        def record(self, c: Place, far: Any) -> None:
            c.far = far

    p, q = nn.Parameter(torch.ones(2, dtype=dtype)), nn.Parameter(torch.ones(3, 1, dtype=dtype))
    optimizer = untuned.compose([p, q], Travelled(), Fixed(0.5), kahan_sum=dtype != torch.float64, execution=execution)
    p.grad, q.grad = torch.ones_like(p), torch.full_like(q, 2.0)
    optimizer.step()
    assert [optimizer.state[t]["far"].item() for t in (p, q)] == [0.5, 3.0]


class Watches(GradientTransform):
    n = number(0.0)

    def gradient(self, x: Place, g: Any) -> Any:
        return g

    def watch(self, x: Place) -> Any:
        return dot(x.g, x.g)


class Records(Plain):
    n = number(0.0)

    def record(self, c: Place, n: Any) -> None:
        c.n = n


class Miscounts(Watches):
    def record(self, c: Place, n: Any, m: Any) -> None:
        c.n = n + m


class Stores(GradientTransform):
    n, s = number(0.0), slot("kept")

    def gradient(self, x: Place, g: Any) -> Any:
        return g

    def watch(self, x: Place) -> Any:
        x.s = x.g
        return dot(x.g, x.g)

    def record(self, c: Place, n: Any) -> None:
        c.n = n


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({"gradient": [Watches()]}, "Watches: it has 'watch' and no 'record', without which it does nothing. Add it."),
        ({"iterate": Records()}, "Records: it has 'record' and no 'watch', without which it does nothing. Add it."),
        ({"gradient": [Miscounts()]}, "Miscounts: its 'watch' returns 1 sum and its 'record' takes 2. They must be"),
        ({"gradient": [Stores()]}, "Stores: x.s cannot be written in 'watch'"),
    ],
)
def test_what_a_watch_may_not_say(parts: Any, text: str) -> None:
    with pytest.raises((TypeError, AttributeError)) as error:
        untuned.compose([nn.Parameter(torch.ones(2))], **parts)
    assert str(error.value).startswith(text)

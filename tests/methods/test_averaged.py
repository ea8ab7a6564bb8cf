"""The averaging iterates: what they reduce to, their oracles, and the point at which step sizes measure."""

import itertools
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from terms import assert_near
from test_against_oracles import START, STEPS, largest, problem, vector

import untuned
from untuned import directions, iterates, step_sizes
from untuned.parts import Direction, Place, StepSize, dot, each, hyper, number, scratch, slot
from untuned.recipe.trace import TraceFrame, body, trace
from untuned.testing import oracles
from untuned.weight_decay import Coupled, Decoupled, Proximal

EXECUTIONS = pytest.mark.parametrize("execution", ["reference", "native"])
POINTS = pytest.mark.parametrize("at", ["z", "y"])
BASES = pytest.mark.parametrize("base", ["sgd", "adamw"])
FALLING = [1 - k / (2 * STEPS) for k in range(STEPS)]  # a schedule of lr
Points = list[list[np.ndarray]]

RULES = {
    "fixed": lambda: step_sizes.Fixed(0.05),
    "sps": lambda: step_sizes.SPS(20.0),
    "sp": lambda: step_sizes.SP(0.3),
    "dec_sps": lambda: step_sizes.DecSPS(0.5),
    "alig": lambda: step_sizes.ALIG(20.0),
    "ngn": lambda: step_sizes.NGN(5.0),
    "momo": lambda: step_sizes.MoMo(20.0),
    "prodigy": lambda: step_sizes.Prodigy(1.0, d0=1e-2),
    "dog": lambda: step_sizes.DoG(0.5, reps_rel=0.1),
    "dowg": lambda: step_sizes.DoWG(0.5, dog_eps=0.1),
}
MEASURED = [*itertools.product(RULES, ["reference"]), ("fixed", "native"), ("momo", "native"), ("prodigy", "native")]
RULED = pytest.mark.parametrize(("rule", "execution"), MEASURED)


class GPAOfY(iterates.GPA):
    """With the weight decay of y."""

    decays_w: ClassVar[bool] = False


def follow(
    parts: Callable[[], Any],
    execution: str = "reference",
    change: Callable[[dict[str, Any], int], None] = lambda group, k: None,
    steps: int = STEPS,
    **engine: Any,
) -> tuple[Points, dict[str, list[Any]]]:
    """The points y after each step; the averages x, and the numbers of the first group.

    The second tensor has half the lr. `change(group, k)` before each step. Halfway a copy goes on from a checkpoint.
    """

    def build(params: list[torch.nn.Parameter]) -> untuned.Optimizer:
        direction, rule, iterate, decay = parts()
        groups = [{"params": [params[0], *params[2:]]}, {"params": params[1:2], "lr": rule.lr / 2}]
        return untuned.compose(groups, direction, rule, iterate, decay, execution=execution, **engine)

    params = [torch.nn.Parameter(torch.tensor(a)) for a in START]
    optimizer, points, seen = build(params), [], []
    lrs = [group["lr"] for group in optimizer.param_groups]
    for k in range(1, steps + 1):
        loss, grads = problem([p.detach().numpy() for p in params], k)
        for p, g in zip(params, grads, strict=True):
            p.grad = torch.tensor(g)
        if k == steps // 2:
            params = [torch.nn.Parameter(p.detach().clone()) for p in params]
            for p, g in zip(params, grads, strict=True):
                p.grad = torch.tensor(g)
            saved, optimizer = optimizer.state_dict(), build(params)
            optimizer.load_state_dict(saved)
        for group, lr in zip(optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr * FALLING[k - 1]
            change(group, k)
        optimizer.step(loss=loss)
        points.append([p.detach().numpy().copy() for p in params])
        first = optimizer.param_groups[0]
        with optimizer.averaged_parameters():
            averaged = [p.detach().numpy().copy() for p in params]
        seen.append({"averaged": averaged} | {key: first[key].item() for key in ("d", "theta") if key in first})
    return points, {key: [one[key] for one in seen] for key in seen[0]}


def assert_same(ours: Points, theirs: Points) -> None:
    way = largest(vector(theirs), vector([START]))
    assert way > 1e-3
    assert largest(vector(ours), vector(theirs)) <= 1e-10 * way


# ---------------------------------------------------------------- reductions


@RULED
@pytest.mark.parametrize("momentum", [False, True])
def test_without_an_average_gpa_is_the_plain_iterate(momentum: bool, rule: str, execution: str) -> None:
    direction = (lambda: directions.Momentum(0.8, dampening=0.3)) if momentum else directions.Adam
    ours, seen = follow(lambda: (direction(), RULES[rule](), iterates.GPA(0.6, 0.0), Decoupled(0.1)), execution)
    theirs, _ = follow(lambda: (direction(), RULES[rule](), iterates.Plain(), Decoupled(0.1)), execution)
    assert_same(ours, theirs)
    assert_same(seen["averaged"], theirs)


@RULED
@POINTS
def test_at_its_average_gpa_is_primal_averaging(at: str, rule: str, execution: str) -> None:
    parts = lambda iterate: (directions.Adam(), RULES[rule](), iterate, Decoupled(0.1))  # noqa: E731
    ours, seen = follow(lambda: parts(iterates.GPA(1.0, 0.7, measure_at=at)), execution)
    theirs, _ = follow(lambda: parts(iterates.PrimalAverage(0.7, measure_at=at)), execution)
    assert_same(ours, theirs)
    assert_same(seen["averaged"], theirs)


def uniform(group: dict[str, Any], k: int) -> None:
    group["keep"] = (k - 1) / k


@RULED
@POINTS
def test_gpa_of_a_uniform_average_is_schedule_free(at: str, rule: str, execution: str) -> None:
    parts = lambda iterate: (directions.Adam(), RULES[rule](), iterate, Decoupled(0.1))  # noqa: E731
    ours, seen = follow(lambda: parts(GPAOfY(0.6, measure_at=at)), execution, uniform)
    free = lambda: iterates.ScheduleFree(0.6, weight_lr_power=0.0, measure_at=at)  # noqa: E731
    theirs, expected = follow(lambda: parts(free()), execution)
    assert_same(ours, theirs)
    assert_same(seen["averaged"], expected["averaged"])


@pytest.mark.parametrize("rule", ["sps", "sp", "dec_sps", "alig", "ngn", "momo", "prodigy", "dog", "dowg"])
def test_the_two_points_differ(rule: str) -> None:
    """Else the tests above compare nothing."""
    found = [
        follow(lambda at=at: (directions.Adam(), RULES[rule](), iterates.GPA(0.6, 0.9, measure_at=at), Decoupled()))[0]
        for at in ("z", "y")
    ]
    assert largest(*map(vector, found)) > 1e-6


# ---------------------------------------------------------------- oracles


def halved(lr: float) -> dict[str, Any]:
    return {"lr": lr, "groups": [{"indices": [1], "lr": lr / 2}], "schedule": FALLING}


@EXECUTIONS
@BASES
@pytest.mark.parametrize("of", ["z", "y"])
@pytest.mark.parametrize("changing", [False, True])
def test_gpa_follows_its_oracle(changing: bool, of: Any, base: Any, execution: str) -> None:
    options = {"mu_y": 0.6, "mu_x": (lambda t: (t - 1) / t) if changing else 0.9, "weight_decay": 0.1}
    theirs, scalars = oracles.gpa(START, problem, STEPS, base=base, momentum=0.8, decay_at=of, **options, **halved(0.1))
    direction = directions.Momentum(0.8) if base == "sgd" else directions.Adam()
    iterate = {"z": iterates.GPA, "y": GPAOfY}[of](0.6, 0.9)
    parts = direction, step_sizes.Fixed(0.1), iterate, Decoupled(0.1)
    ours, seen = follow(lambda: parts, execution, uniform if changing else lambda group, k: None)
    assert_same(ours, theirs)
    assert_same(seen["averaged"], scalars["averaged"])


WEIGHTS = pytest.mark.parametrize(("r", "power"), [(0.0, 2.0), (1.5, 0.0)])


@EXECUTIONS
@POINTS
@WEIGHTS
@pytest.mark.parametrize("lb", [0.0, 0.5])
def test_polyaks_step_under_schedule_free(lb: float, r: float, power: float, at: Any, execution: str) -> None:
    """The decay is coupled: the loss is the one whose gradient is used. Weights are those of the steps taken."""
    weights = {"r": r, "weight_lr_power": power}
    options = {"c": 0.7, "lb": lb, "momentum": 0.6, "weight_decay": 0.1, "weigh": "step", "look": at}
    theirs, scalars = oracles.sps_schedule_free(START, problem, STEPS, **options, **weights, **halved(20.0))
    rule, iterate = step_sizes.SPS(20.0, 0.7, lb), iterates.ScheduleFree(0.6, **weights, measure_at=at)
    ours, seen = follow(lambda: (directions.Gradient(), rule, iterate, Coupled(0.1)), execution)
    assert_same(ours, theirs)
    assert_same(seen["averaged"], scalars["averaged"])
    assert largest(seen["theta"], scalars["theta"]) <= 1e-10
    assert min(scalars["theta"]) < 1


@EXECUTIONS
@POINTS
@WEIGHTS
@pytest.mark.parametrize("correct", [False, True])
def test_momo_under_schedule_free(correct: bool, r: float, power: float, at: Any, execution: str) -> None:
    """MoMo's rate is lr, whatever fraction of it the step takes: so weigh the averages."""
    weights = {"r": r, "weight_lr_power": power}
    options = {"beta": 0.8, "lb": 0.3, "momentum": 0.6, "weight_decay": 0.1, "bias_correction": correct, "look": at}
    theirs, scalars = oracles.momo_schedule_free(START, problem, STEPS, **options, **weights, **halved(30.0))
    direction, rule = directions.Momentum(0.8, dampening=0.8, correct=correct), step_sizes.MoMo(30.0, 0.3)
    iterate = iterates.ScheduleFree(0.6, **weights, measure_at=at)
    ours, seen = follow(lambda: (direction, rule, iterate, Proximal(0.1)), execution)
    assert_same(ours, theirs)
    assert_same(seen["averaged"], scalars["averaged"])
    assert largest(seen["theta"], scalars["theta"]) <= 1e-10
    assert 0 < min(scalars["theta"]) < 0.9


@EXECUTIONS
@POINTS
@WEIGHTS
@pytest.mark.parametrize("betas", [(0.0, 0.9), (0.8, 0.9)])
def test_prodigy_under_schedule_free(betas: Any, r: float, power: float, at: Any, execution: str) -> None:
    """The authors' composite has no first moment, betas[0] = 0, and looks at z. Weights are those of d lr."""
    weights = {"r": r, "weight_lr_power": power}
    options = {"betas": betas, "momentum": 0.6, "weight_decay": 0.1, "d0": 1e-2, "weigh": "step", "look": at}
    theirs, scalars = oracles.prodigy_schedule_free(START, problem, STEPS, **options, **weights, **halved(1.0))
    direction, rule = directions.Adam(betas, correct=False), step_sizes.Prodigy(1.0, d0=1e-2, beta3=0.9**0.5)
    iterate = iterates.ScheduleFree(0.6, **weights, measure_at=at)
    ours, seen = follow(lambda: (direction, rule, iterate, Decoupled(0.1)), execution)
    assert_same(ours, theirs)
    assert_same(seen["averaged"], scalars["averaged"])
    assert largest(seen["d"], scalars["d"]) <= 1e-10 * scalars["d"][-1]
    assert scalars["d"][-1] > 0.02


# ---------------------------------------------------------------- the point x.w


@EXECUTIONS
@POINTS
def test_a_slice_of_the_model_measures_at_the_same_point(at: Any, execution: str) -> None:
    """Of a tensor whose elements are pairs of equals, every second one says everything."""
    found = []
    for every in (1, 2):
        torch.manual_seed(0)
        p = torch.nn.Parameter(torch.randn(6, dtype=torch.float64).repeat_interleave(2))
        iterate, rule = iterates.ScheduleFree(0.6, measure_at=at), step_sizes.Prodigy(d0=1e-2, slice_p=every)
        optimizer = untuned.compose([p], directions.Adam(correct=False), rule, iterate, execution=execution)
        for _ in range(10):
            p.grad = p.detach() - 3
            optimizer.step()
        found.append((p.detach().clone(), optimizer.metrics()["d"]))
    torch.testing.assert_close(*found, rtol=1e-12, atol=0)
    assert found[0][1] > 0.02


@pytest.mark.parametrize("rule", ["sps", "sp", "dec_sps", "alig", "ngn"])
def test_a_loss_at_another_point_costs_the_plain_iterate_nothing(rule: str) -> None:
    """Its sweep reads the gradient alone; that of an average reads both points as well."""
    for iterate, streams in ((iterates.Plain(), ["g"]), (iterates.GPA(), ["g", "p", "z"])):
        weight = torch.nn.Parameter(torch.zeros(2))
        optimizer = untuned.compose([weight], directions.Gradient(), RULES[rule](), iterate, Coupled())
        frame = TraceFrame(optimizer.recipe, optimizer.recipe.parts, frozenset({"weight_decay"}))
        assert trace(frame, body([("step_size", "measure")])).streams() == (streams, [])


class Reformed(Direction):
    """An average of gradients, with a stage of whole tensors after it that changes nothing."""

    beta: float = hyper(default=0.8, within="[0, 1)")
    gives: ClassVar[frozenset[str]] = frozenset({"average"})
    m = slot("m")
    o = scratch("o")

    def weight(self, x: Place) -> tuple[Any, Any]:
        return x.beta, 1 - x.beta

    def accumulate(self, x: Place) -> None:
        x.m = x.keep * x.m + x.a * x.take * x.g

    def reform(self, x: Place) -> None:
        x.o = x.m.clone()

    def unit(self, x: Place) -> Any:
        return x.o


@EXECUTIONS
@pytest.mark.parametrize("iterate", [iterates.Plain, iterates.GPA])
def test_momo_models_the_loss_where_matrix_math_follows_the_average(iterate: Any, execution: str) -> None:
    rule = lambda: step_sizes.MoMo(20.0, 0.3)  # noqa: E731
    ours, _ = follow(lambda: (Reformed(), rule(), iterate(), Proximal(0.1)), execution)
    usual = directions.Momentum(0.8, dampening=0.8, correct=True)
    theirs, _ = follow(lambda: (usual, rule(), iterate(), Proximal(0.1)))
    assert_same(ours, theirs)


class PathMoMo(StepSize):
    """MoMo's E by the path of the weights, E <- keep (E + <m, x - x_old>), m being that from before the gradient."""

    lr: float = hyper(default=1.0, within="[0, inf)")
    E = number(0.0, key="model_offset", each=True)
    mx = number(0.0, key="mx", each=True)

    def measure(self, x: Place) -> tuple[Any, ...]:
        return each(dot(x.old.m, x.p)), each(dot(x.m, x.p))

    def decide(self, c: Place, old_mx: Any, mx: Any) -> None:
        c.E = c.keep * (c.E + old_mx - c.mx)
        c.mx = mx

    def size(self, x: Place) -> tuple[Any, Any]:
        return 0.0 * x.lr, x.lr


@EXECUTIONS
@pytest.mark.parametrize("noise", [0.0, 1.0, 10.0])
@pytest.mark.parametrize("offset", [1.0, 1e3, 1e5])
def test_both_forms_of_momos_model_are_right_to_a_rounding_of_its_terms(
    offset: float, noise: float, execution: str
) -> None:
    """E in float32, where <m, x> and the average of <g, x> nearly cancel, against float64."""
    n = 1000
    for rule in (step_sizes.MoMo(), PathMoMo()):
        torch.manual_seed(0)
        mean, p = torch.randn(n), torch.nn.Parameter(offset * torch.rand(n))
        optimizer = untuned.compose([p], directions.Momentum(0.9, dampening=0.9), rule, execution=execution)
        m, G, terms = torch.zeros(n, dtype=torch.float64), 0.0, 0.0
        for k in range(50):
            g, at = mean + noise * torch.randn(n), p.detach() + 0.01 * torch.randn(n)
            keep = 0.9 if k else 0.0
            m = keep * m + (1 - keep) * g.double()
            gx = g.double() * at.double()
            G, terms = keep * G + (1 - keep) * gx.sum().item(), keep * terms + (1 - keep) * gx.abs().sum().item()
            with torch.no_grad():
                p.copy_(at)  # from outside: both see the same points
            p.grad = g
            optimizer.step(loss=1.0)
            mx = m * at.double()
            E = optimizer.state[p]["model_offset"].item()
            assert_near(E, mx.sum().item() - G, mx.abs().sum().item() + terms, roundings=1, unit=2.0**-24)


@pytest.mark.parametrize("iterate", [iterates.GPA, iterates.ScheduleFree, iterates.PrimalAverage])
@pytest.mark.parametrize("at", ["z", "y", "default"])
def test_dog_measures_how_far_its_point_has_moved(at: str, iterate: Any) -> None:
    p, farthest = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64)), 0.1
    point = iterate() if at == "default" else iterate(measure_at=at)
    optimizer = untuned.compose([p], directions.Gradient(), step_sizes.DoG(reps_rel=0.1), point)
    at_y = at == "y" or (at == "default" and iterate is iterates.PrimalAverage)
    for k in range(10):
        w = p.detach() if at_y or not k else optimizer.state[p]["z"]
        farthest = max(farthest, w.norm().item())
        p.grad = p.detach() - torch.tensor([3.0, -1.0])
        optimizer.step()
        assert optimizer.metrics()["rbar"] == pytest.approx(farthest, rel=1e-12)
    assert farthest > 0.15  # above its first value, 0.1

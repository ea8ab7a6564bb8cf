"""Ordered momentum against its oracle and the paper's promise, and the door it comes in by: signals of `step()`."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import untuned
from untuned.directions import Adam, Gradient
from untuned.iterates import OrderedMomentum
from untuned.parts import Direction, Place, StepSize, hyper, number, signal, slot
from untuned.run import launch
from untuned.step_sizes import Fixed, MoMo
from untuned.testing import oracles
from untuned.weight_decay import Coupled, Decoupled

START = [np.array([[0.3, -1.2], [0.8, 0.1], [-0.4, 1.5]]), np.array([0.2, -0.7])]
WAVE = [0.5 + 0.4 * np.sin(k) for k in range(40)]
KERNELS = pytest.param("native", marks=pytest.mark.skipif(not launch.native_available, reason="needs numba"))
EXECUTIONS = ["reference", KERNELS]


def logistic(x: list[Any], k: int) -> tuple[float, list[Any]]:
    """Two logistic regressions on a batch that changes with k."""
    rng = np.random.default_rng(k)
    inputs, labels = rng.normal(size=(5, 3)), np.sign(rng.normal(size=(5, 2)))
    margins = labels * (inputs @ x[0] + x[1])
    slopes = -labels / (1 + np.exp(margins)) / 5
    return float(np.log1p(np.exp(-margins)).sum() / 5), [inputs.T @ slopes, slopes.sum(0)]


def arrivals(workers: int, count: int, seed: int) -> list[int]:
    """Indexes as a scheduler hands them out: the worker that is answered after gradient t has index t + 1."""
    rng = np.random.default_rng(seed)
    holding, indexes = [0] * workers, []
    for t in range(count):
        worker = rng.integers(workers)
        indexes.append(holding[worker])
        holding[worker] = t + 1
    return indexes


def parameters(dtype: torch.dtype = torch.float64) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.tensor(a, dtype=dtype)) for a in START]


def ordered(params: Any, lr: float = 0.1, decay: Any = None, execution: str = "reference", **options: Any) -> Any:
    direction, iterate = options.pop("direction", None), OrderedMomentum(**options)
    return untuned.compose(params, direction or Gradient(), Fixed(lr), iterate, decay, execution=execution)


def values(params: list[Any]) -> list[Any]:
    return [p.detach().double().numpy().copy() for p in params]


def served(optimizer: Any, params: list[Any], indexes: Any, problem: Any = logistic, schedule: Any = None) -> Any:
    """A run at the lr of each gradient's index. -> the weights after every gradient, and u and the lag then."""
    lrs = [group["lr"] for group in optimizer.param_groups]
    models, rows = [values(params)], []
    for t, index in enumerate(indexes):
        for p, g in zip(params, problem(models[index], t + 1)[1], strict=True):
            p.grad = torch.as_tensor(g, dtype=p.dtype)
        for group, lr in zip(optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr * (schedule[index] if schedule else 1.0)
        optimizer.step(index=index)
        models.append(values(params))
        held = [optimizer.state[p] for p in params]
        rows.append(([h["momentum_buffer"].numpy().copy() for h in held if h], [float(h["lag"]) for h in held if h]))
    return models[1:], *zip(*rows, strict=True)


def assert_same(left: Any, right: Any, tolerance: float = 1e-12) -> None:
    for ours, theirs in zip(left, right, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


# ---------------------------------------------------------------------- the method


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("oracle", [oracles.ordered_momentum, oracles.ordered_momentum_closed_form])
@pytest.mark.parametrize(("workers", "beta"), [(1, 0.9), (3, 0.8), (4, 0.8), (4, 0.0), (40, 0.9)])
def test_it_is_its_oracle(oracle: Any, workers: int, beta: float, execution: str) -> None:
    indexes = arrivals(workers, 40, seed=workers)
    params = parameters()
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.025}]
    optimizer = ordered(groups, 0.05, workers=workers, momentum=beta, execution=execution)
    ours, momentum, lags = served(optimizer, params, indexes, schedule=WAVE)
    expected, scalars = oracle(
        *(START, logistic, indexes),
        workers=workers,
        lr=0.05,
        momentum=beta,
        schedule=WAVE,
        groups=[{"indices": [1], "lr": 0.025, "schedule": WAVE}],
    )
    assert_same(ours, expected)
    assert_same(momentum, scalars["momentum"])
    assert [*map(tuple, lags)] == [(lag, lag) for lag in scalars["lag"]]
    assert workers in (1, 40) or max(scalars["lag"]) >= 2
    assert max(np.abs(a - b).max() for a, b in zip(ours[-1], START, strict=True)) > 1e-2


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_one_worker_is_heavy_ball_with_any_weight_decay(execution: str) -> None:
    """Coupled decay is that of the model that the gradient was taken at, where the gradient is not late."""
    params, theirs = parameters(), parameters()
    optimizer = ordered(params, 0.1, Coupled(0.1), execution=execution)
    torchs = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, weight_decay=0.1)
    for k in range(30):
        for p, q, g in zip(params, theirs, logistic(values(params), k)[1], strict=True):
            p.grad = q.grad = torch.as_tensor(g)
        optimizer.step(index=k)
        torchs.step()
    assert_same([values(params)], [values(theirs)])


def test_decoupled_weight_decay_is_inside_the_momentum() -> None:
    """The plain step holds it: at momentum 0 that of SGD, and else as if it were a gradient."""
    for beta in (0.0, 0.8):
        params, theirs = parameters(), parameters()
        optimizer = ordered(params, 0.1, Decoupled(0.2), momentum=beta)
        as_gradient = ordered(theirs, 0.1, Coupled(0.2), momentum=beta)
        for k in range(20):
            for p, q, g in zip(params, theirs, logistic(values(params), k)[1], strict=True):
                p.grad = q.grad = torch.as_tensor(g)
            optimizer.step(index=k)
            as_gradient.step(index=k)
        assert_same([values(params)], [values(theirs)])


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_every_order_of_arrival_ends_alike(execution: str) -> None:
    """Gradients that do not depend on the model, in orders in which each comes after the model it was taken at."""
    rng, indexes = np.random.default_rng(1), arrivals(4, 40, seed=0)
    gradients = rng.normal(size=(40, 2))
    ends, ways = [], []
    for order in range(6):
        permuted = list(range(40))
        for _ in range(400 if order else 0):
            t = rng.integers(39)
            if indexes[permuted[t + 1]] <= t:
                permuted[t], permuted[t + 1] = permuted[t + 1], permuted[t]
        params = parameters()[1:]
        optimizer = ordered(params, 0.1, workers=4, momentum=0.8, execution=execution)
        problem = lambda x, k, order=permuted: (0.0, [gradients[order[k - 1]]])  # noqa: E731
        models, momentum, _ = served(optimizer, params, [indexes[j] for j in permuted], problem, schedule=WAVE)
        ends.append([*models[-1], *momentum[-1]])
        ways.append(np.stack(models))
    assert_same(ends[1:], ends[:1] * 5)
    assert min(np.abs(way - ways[0]).max() for way in ways[1:]) > 1e-3


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_a_group_that_is_frozen_for_a_while_catches_up(execution: str) -> None:
    """The oracle moves it by its momentum while it is frozen, the optimizer as soon as it is not."""
    indexes = arrivals(3, 40, seed=3)
    on = [1.0] * 10 + [0.0] * 15 + [1.0] * 15  # by index
    params = parameters()
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": 0.02}]
    optimizer = ordered(groups, 0.1, workers=3, momentum=0.8, execution=execution)
    problem = lambda x, k: (0.0, [np.random.default_rng([k, i]).normal(size=a.shape) for i, a in enumerate(START)])  # noqa: E731

    def served_with_pauses() -> list[list[Any]]:
        models = []
        for t, index in enumerate(indexes):
            for p, g in zip(params, problem(None, t + 1)[1], strict=True):
                p.grad = torch.as_tensor(g)
            optimizer.param_groups[1]["lr"] = 0.02 * on[index]
            optimizer.step(index=index)
            models.append(values(params))
        return models

    ours = served_with_pauses()
    expected, _ = oracles.ordered_momentum(
        *(START, problem, indexes),
        workers=3,
        lr=0.1,
        momentum=0.8,
        groups=[{"indices": [1], "lr": 0.02, "schedule": on}],
    )
    live = [t for t, index in enumerate(indexes) if on[index]]
    assert_same([ours[t] for t in live], [expected[t] for t in live])
    rests = [t for t in range(1, 40) if not on[indexes[t]]]
    assert len(rests) > 5
    assert all(np.array_equal(ours[t][1], ours[t - 1][1]) for t in rests)


def test_a_group_that_never_moves_and_one_that_joins_late() -> None:
    indexes = arrivals(3, 30, seed=4)
    params = parameters()
    optimizer = ordered([{"params": params[:1]}, {"params": params[1:], "lr": 0.0}], workers=3)
    served(optimizer, params, indexes[:20])
    assert np.array_equal(values(params)[1], START[1])
    late = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer.add_param_group({"params": [late], "lr": 1.0})
    late.grad = torch.ones_like(late)
    optimizer.step(index=20)  # not late: the buckets before it moved nothing of this tensor
    assert late.tolist() == [-1.0, -1.0]
    late.grad = torch.ones_like(late)
    optimizer.step(index=18)  # the same bucket, 18 / 3, is open since step 19
    assert optimizer.state[late]["lag"] == 1.0
    np.testing.assert_allclose(late.detach().numpy(), -1.0 - 1.9)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_a_resumed_run_is_bitwise_the_same(execution: str) -> None:
    indexes = arrivals(4, 40, seed=5)

    def problem(models: Any, k: int) -> Any:  # of the tensors as they are: a resumed run has no old models
        rng = np.random.default_rng(k)
        return 0.0, [rng.normal(size=a.shape) for a in START]

    def run(change: Any) -> list[Any]:
        params = parameters()
        optimizer = ordered(params, 0.1, workers=4, execution=execution, direction=Adam())
        for t, index in enumerate(indexes):
            if t == 17:
                params, optimizer = change(params, optimizer)
            for p, g in zip(params, problem(None, t)[1], strict=True):
                p.grad = torch.as_tensor(g)
            optimizer.step(index=index)
        return values(params)

    def resumed(params: Any, optimizer: Any) -> Any:
        fresh = [torch.nn.Parameter(p.detach().clone()) for p in params]
        other = ordered(fresh, 7.0, workers=4, execution=execution, direction=Adam())
        other.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))
        return fresh, other

    def copied(params: Any, optimizer: Any) -> Any:
        other = copy.deepcopy(optimizer)
        return other.param_groups[0]["params"], other

    expected = run(lambda params, optimizer: (params, optimizer))
    for change in (resumed, copied):
        assert all(map(np.array_equal, run(change), expected))


def test_another_number_of_workers_is_another_method() -> None:
    params = parameters()
    state = ordered(params, workers=4).state_dict()
    with pytest.raises(ValueError, match="workers=4"):
        ordered(params, workers=3).load_state_dict(state)
    for wrong in (0, 1.5, -1):
        with pytest.raises((ValueError, TypeError), match="workers must be a whole number in"):
            OrderedMomentum(workers=wrong)


# ---------------------------------------------------------------------- signals


class Scaled(StepSize):
    """A step size of a signal, in the sweep and, kept as a number, in the decision."""

    lr: float = hyper(default=1.0, within="[0, inf)")
    q = signal("q")

    def size(self, x: Place) -> tuple[Any, Any]:
        return x.q * x.lr, x.lr


class Turned(Direction):
    """A direction that reads a signal in its sweep: as a scalar, beside elements and in a condition."""

    q = signal("q")

    def unit(self, x: Place) -> Any:
        return x.g * x.q + (x.q > 1.0) * 0.5 + x.q**2 * abs(x.g)


def stepped(optimizer: Any, **signals: Any) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    optimizer.step(**signals)


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "missing": ({}, ValueError, r"^compose.step\(\) needs index: call step\(index=\.\.\.\) with a number\.$"),
    "foreign": (
        {"index": 1, "nonsense": 1},
        TypeError,
        r"^compose.step\(\) takes no 'nonsense'; it takes loss, sample_ids, index\.$",
    ),
    "word": ({"index": "x"}, TypeError, r"index must be a number or a one-element tensor, not 'x'\.$"),
    "none": ({"index": None}, TypeError, r"index must be a number or a one-element tensor, not None\.$"),
    "flag": ({"index": True}, TypeError, r"index must be a number or a one-element tensor, not True\.$"),
    "two": ({"index": torch.ones(2)}, TypeError, r"one-element tensor, not tensor\(\[1\., 1\.\]\)\.$"),
    "complex": ({"index": torch.ones((), dtype=torch.complex64)}, TypeError, "must be a number or a one-element"),
    "nan": ({"index": math.nan}, ValueError, r"^compose: index must be a number in \[0, inf\), not nan\.$"),
    "inf": ({"index": math.inf}, ValueError, r"must be a number in \[0, inf\), not inf\.$"),
    "negative": ({"index": -1}, ValueError, r"must be a number in \[0, inf\), not -1\.$"),
    "negative tensor": (
        {"index": torch.tensor(-2)},
        ValueError,
        r"in \[0, inf\), not tensor\(-2\)\.$",
    ),
}


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_signal_is_refused_and_nothing_changes(wrong: str, execution: str) -> None:
    signals, error, sentence = WRONG[wrong]
    params, undisturbed = parameters(), parameters()
    optimizer, other = (ordered(p, workers=2, execution=execution) for p in (params, undisturbed))
    for one in (optimizer, other):
        stepped(one, index=0)
    before = values(params)
    with pytest.raises(error, match=sentence):
        stepped(optimizer, **signals)
    assert all(map(np.array_equal, values(params), before))
    assert optimizer.metrics()["steps"] == 1
    for one in (optimizer, other):
        stepped(one, index=1)
    assert all(map(np.array_equal, values(params), values(undisturbed)))


def test_a_method_without_signals_takes_none() -> None:
    optimizer = untuned.AdamW(parameters())
    with pytest.raises(TypeError, match=r"^AdamW.step\(\) takes no 'index'; it takes loss, sample_ids\.$"):
        stepped(optimizer, index=1)


INDEXES = {
    "int": int,
    "float": float,
    "numpy": np.float32,
    "numpy integer": np.int64,
    "tensor": lambda i: torch.tensor(float(i)),
    "whole tensor": lambda i: torch.tensor(i),
    "vector of one": lambda i: torch.tensor([i]),
    "tensor that needs a gradient": lambda i: torch.tensor(float(i), dtype=torch.float64, requires_grad=True),
}


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("kind", INDEXES)
def test_an_index_of_any_kind_of_number(kind: str, execution: str) -> None:
    ends = []
    for form in (int, INDEXES[kind]):
        params = parameters()
        optimizer = ordered(params, workers=3, execution=execution)
        for index in (0, 0, 0, 1, 3, 2):
            given = form(index)
            stepped(optimizer, index=given)
            assert float(given.detach() if torch.is_tensor(given) else given) == index
        ends.append(values(params))
    assert all(map(np.array_equal, *ends))


def test_an_index_ahead_of_the_steps_counts_as_the_latest() -> None:
    one, other = parameters(), parameters()
    for params, index in ((one, 0), (other, 1000)):
        stepped(ordered(params), index=index)
    assert_same([values(one)], [values(other)])


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("way", ["loss", "closure", "recorded", "closure that records"])
def test_signals_beside_the_loss(way: str, execution: str) -> None:
    def run(way: str) -> list[Any]:
        params = parameters()
        optimizer = untuned.compose(params, Gradient(), MoMo(0.3), OrderedMomentum(workers=2), execution=execution)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = sum(p.square().sum() for p in params)
            loss.backward()
            return loss

        for index in (0, 0, 1, 2):
            if way == "loss":
                loss = closure()
                assert optimizer.step(loss=loss, index=index) is loss
            elif way == "closure":
                assert optimizer.step(closure, index=index).detach() > 0
            else:
                loss = closure()
                optimizer.record_loss(loss.detach() + 1.0)
                optimizer.record_loss(loss.detach() - 1.0)
                assert optimizer.step(index=index) is None
        with pytest.raises(ValueError, match="needs the loss"):
            optimizer.step(index=3)
        return values(params)

    if way == "closure that records":
        params = parameters()
        optimizer = untuned.compose(params, Gradient(), MoMo(0.3), OrderedMomentum(workers=2), execution=execution)
        with pytest.raises(ValueError, match="needs index"):
            optimizer.step(lambda: sum(p.square().sum() for p in params).backward())
        assert all(map(np.array_equal, values(params), START))
        return
    assert_same([run(way)], [run("loss")])
    assert np.abs(run(way)[0] - START[0]).max() > 0.05


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("parts", [(Turned(), Fixed(0.5)), (Gradient(), Scaled(0.5)), (Turned(), Scaled(0.5))])
def test_a_signal_is_read_in_sweeps(parts: Any, execution: str) -> None:
    q, p = 1.1, torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = untuned.compose([p], *parts, execution=execution)
    for k in range(1, 4):
        stepped(optimizer, q=q * k)
    turned, scaled = isinstance(parts[0], Turned), isinstance(parts[1], Scaled)
    units = [q * k + 0.5 + (q * k) ** 2 if turned else 1.0 for k in range(1, 4)]
    expected = -0.5 * sum(u * (q * k if scaled else 1.0) for k, u in enumerate(units, start=1))
    np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-14)


class OnGPU(torch.Tensor):
    """A number that says it is not in the host's memory, so that nobody may look at it."""

    is_cpu: ClassVar[bool] = False


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_a_signal_that_nobody_looked_at_and_is_not_finite_skips_the_step(execution: str) -> None:
    params = parameters()
    optimizer = ordered(params, workers=2, execution=execution)
    stepped(optimizer, index=0)
    before = values(params)
    stepped(optimizer, index=torch.tensor(math.nan).as_subclass(OnGPU))
    assert all(map(np.array_equal, values(params), before))
    assert (optimizer.metrics()["steps"], optimizer.metrics()["skipped"]) == (1, 1)


class Renamed(OrderedMomentum):
    """With letters that `x.base` uses for other things."""

    u = slot("buffer")
    size = number(3.0)

    def move(self, x: Place) -> None:
        x.u = x.u + x.size
        x.p = x.base(x.p)


def test_letters_of_a_part_do_not_change_its_plain_step() -> None:
    [p] = params = [torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))]
    optimizer = untuned.compose(params, Gradient(), Fixed(0.5), Renamed())
    stepped(optimizer, index=0)
    assert (p.tolist(), optimizer.state[p]["buffer"].tolist()) == ([-0.5] * 2, [3.0] * 2)


def test_two_parts_may_read_one_signal() -> None:
    class Narrow(Scaled):
        q = signal("q", within="[0, 2]")

    p = torch.nn.Parameter(torch.zeros(3))
    optimizer = untuned.compose([p], Turned(), Narrow())
    stepped(optimizer, q=2)
    with pytest.raises(ValueError, match=r"q must be a number in \[0, 2\], not 3\."):
        stepped(optimizer, q=3)

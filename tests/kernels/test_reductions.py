"""Maxima beside sums, and decisions of the model, of groups, tensors and rows, in all executions.

Numbers of rows are state: they are saved, copied, and follow the rows over processes.
"""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported

import untuned  # noqa: E402
from untuned.parts import (  # noqa: E402
    Direction,
    GradientTransform,
    Place,
    choice,
    dot,
    each,
    largest,
    maximum,
    norm1,
    number,
    slot,
    sqrt,
)
from untuned.run import launch  # noqa: E402
from untuned.step_sizes import Fixed  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of the interpreter's lanes
needs_numba = pytest.mark.skipif(not launch.native_available, reason="needs numba")
needs_triton = pytest.mark.skipif(not launch.triton_available, reason="needs triton")
KERNELS = [pytest.param("native", marks=needs_numba), pytest.param("triton", marks=needs_triton)]
EXECUTIONS = ["reference", *KERNELS]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
SCOPES = ["model", "group", "tensor", "row"]
NUMBERS = ["most", "gap", "square", "one"]
CHUNK = 64  # of the native kernels here


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    if launch.native_available:
        from untuned.kernels import native

        monkeypatch.setattr(native, "CHUNK", CHUNK)
    if launch.triton_available:
        from untuned.kernels import triton

        monkeypatch.setattr(triton, "CHUNK", 2 * triton.BLOCK)


@pytest.fixture
def by(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Prepares one of EXECUTIONS and gives the option that asks for it."""

    def choose(execution: str) -> str:
        monkeypatch.setattr(launch, "TRITON_DEVICES", {"cuda", "cpu"} if execution == "triton" else {"cuda"})
        return "native" if execution == "triton" else execution

    return choose


class Measured(Direction):
    """Two maxima and two sums, kept as numbers; the step depends on one of each."""

    scope: str = choice(default="model", others=("group", "tensor", "row"))
    most = number(0.0)
    gap = number(0.0)
    square = number(0.0)
    one = number(0.0)

    def look(self, x: Place) -> Any:
        return largest(x.g), dot(x.g, x.g), largest(x.g - x.p), norm1(x.p)

    def decide(self, c: Place, most: Any, square: Any, gap: Any, one: Any) -> None:
        c.most, c.square, c.gap, c.one = most, square, gap, one

    def unit(self, x: Place) -> Any:
        return x.g / (1.0 + x.most) + x.g / (1.0 + sqrt(x.square))


SHAPES = {
    "matrix": (5, 3),
    "scalar": (),
    "vector": (7,),
    "long rows": (3, 2 * CHUNK + 9),
    "longer rows": (2, 2500),
    "cube": (3, 4, 5),
    "channels last": (2, 3, 4, 4),
    "one row": (1, 6),
    "rows of one": (4, 1),
    "no rows": (0, 3),
    "empty rows": (3, 0),
    "transposed": (6, 4),
    "strided": (3, 5),
}
REFERENCE_ONLY = {"no rows", "empty rows", "transposed", "strided"}


def tensor(name: str, generator: torch.Generator, dtype: torch.dtype) -> torch.Tensor:
    shape = SHAPES[name]
    value = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    if name == "channels last":
        return value.to(memory_format=torch.channels_last)
    if name == "transposed":
        return value.t().contiguous().t()
    if name == "strided":
        wide = torch.zeros((shape[0], 2 * shape[1]), dtype=dtype)
        wide[:, ::2] = value
        return wide[:, ::2]
    return value


def parameters(dtype: torch.dtype, names: Any = tuple(SHAPES)) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(tensor(name, generator, dtype)) for name in names]


def give_gradients(params: Any, k: int) -> None:
    generator = torch.Generator().manual_seed(100 + k)
    for p in params:
        noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        p.grad = torch.empty_like(p).copy_(noise)  # in the layout of p


def rows(t: torch.Tensor) -> torch.Tensor:
    """[rows, elements of each]"""
    count = len(t) if t.dim() > 1 else 1
    return t.detach().double().reshape(count, t.numel() // max(count, 1))


def max_abs(t: torch.Tensor) -> torch.Tensor:
    return torch.cat([t.abs(), torch.zeros(len(t), 1, dtype=torch.float64)], 1).amax(1)


def truth(groups: list[list[torch.Tensor]], scope: str) -> dict[str, list[torch.Tensor]]:
    """The numbers, a vector for each: [1] of the model, [groups], [tensors] or [rows]."""
    kinds = {
        "most": (lambda g, p: max_abs(g), torch.amax),
        "gap": (lambda g, p: max_abs(g - p), torch.amax),
        "square": (lambda g, p: (g * g).sum(1), torch.sum),
        "one": (lambda g, p: p.abs().sum(1), torch.sum),
    }
    found = {}
    for key, (of_rows, reduce) in kinds.items():
        each_row = [[of_rows(rows(p.grad), rows(p)) for p in group] for group in groups]
        zero = torch.zeros(1, dtype=torch.float64)
        if scope == "row":
            found[key] = [row for group in each_row for row in group]
            continue
        tensors = [torch.stack([reduce(torch.cat([zero, row]), 0) for row in group]) for group in each_row]
        if scope == "tensor":
            found[key] = list(torch.cat(tensors))
        else:
            sizes = [reduce(group, 0) for group in tensors]
            found[key] = sizes if scope == "group" else [reduce(torch.stack(sizes), 0)]
    return found


def measured(optimizer: Any, scope: str) -> dict[str, list[torch.Tensor]]:
    if scope == "model":
        return {key: [optimizer.param_groups[0][key]] for key in NUMBERS}
    if scope == "group":
        return {key: [group[key] for group in optimizer.param_groups] for key in NUMBERS}
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return {key: [optimizer.state[p][key] for p in params] for key in NUMBERS}


def optimizer_of(params: Any, scope: str, execution: str, **options: Any) -> Any:
    groups = [{"params": params[:3]}, {"params": params[3:], "lr": 0.25}] if isinstance(params, list) else params
    return untuned.compose(groups, Measured(scope), Fixed(0.5), execution=execution, **options)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scope", SCOPES)
def test_reductions_of_every_scope_and_shape(scope: str, dtype: torch.dtype, execution: str, by: Any) -> None:
    params = parameters(dtype)
    optimizer = optimizer_of(params, scope, by(execution))
    unit = 2.0**-53 if dtype == torch.float64 else 2.0**-24
    for k in range(3):
        give_gradients(params, k)
        before = [p.detach().double().clone() for p in params]
        expected = truth([params[:3], params[3:]], scope)
        optimizer.step()
        found = measured(optimizer, scope)
        for key in NUMBERS:
            assert [t.shape for t in found[key]] == [t.shape for t in expected[key]]
            assert all(t.dtype == torch.float64 for t in found[key])
            for ours, exact in zip(found[key], expected[key], strict=True):
                times = {"most": 0, "gap": 2}.get(key, 40)
                np.testing.assert_allclose(ours.numpy(), exact.numpy(), rtol=times * unit)
        for i, (p, old) in enumerate(zip(params, before, strict=True)):
            j = {"model": 0, "group": int(i >= 3)}.get(scope, i)
            most, square = expected["most"][j], expected["square"][j]
            if scope == "row" and p.dim() > 1:
                most, square = (q.view(-1, *[1] * (p.dim() - 1)) for q in (most, square))
            elif scope == "row":
                most, square = most.view(()), square.view(())
            g, lr = p.grad.double(), 0.5 if i < 3 else 0.25
            new = old - lr * (g / (1 + most) + g / (1 + square.sqrt()))
            torch.testing.assert_close(p.detach().double(), new, rtol=2 * torch.finfo(dtype).eps, atol=40 * unit)
    by_reference = [i for i, name in enumerate(SHAPES) if execution == "reference" or name in REFERENCE_ONLY]
    assert sorted(3 * bucket + j for bucket, j in optimizer._launch.rest) == by_reference


@pytest.mark.parametrize("execution", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scope", SCOPES)
def test_what_is_not_finite(scope: str, dtype: torch.dtype, execution: str, by: Any) -> None:
    """A number that is not finite is not written; those of other rows, tensors and groups are."""
    names = ["matrix", "scalar", "vector", "long rows", "longer rows", "channels last"]
    found = []
    for way in ("reference", execution):
        params = parameters(dtype, names)
        optimizer = optimizer_of(params, scope, by(way), skip_nonfinite=False)
        for _ in range((dtype, execution) != (torch.bfloat16, "triton")):  # the interpreter cuts weights off
            give_gradients(params, 0)
            optimizer.step()
        give_gradients(params, 1)
        params[3].grad[1, CHUNK + 3] = torch.nan  # in a chunk that is not the last
        params[4].grad[0, 2400] = torch.inf
        optimizer.step()
        found.append((params, measured(optimizer, scope)))
    (ours, numbers), (theirs, expected) = found
    for key in NUMBERS:
        for one, other in zip(numbers[key], expected[key], strict=True):
            assert torch.isfinite(one).all()
            torch.testing.assert_close(one, other, rtol=1e-5 if dtype != torch.float64 else 1e-14, atol=0.0)
    for p, q in zip(ours, theirs, strict=True):
        assert torch.equal(torch.isfinite(p), torch.isfinite(q))
        torch.testing.assert_close(p, q, rtol=4 * torch.finfo(dtype).eps, atol=1e-6, equal_nan=True)
    if scope == "row":
        assert torch.isfinite(ours[3]).all(1).tolist() == [True, False, True]
        fresh = max_abs(rows(ours[3].grad))
        assert (numbers["most"][3] == fresh).tolist() == [True, False, True]


class Flat(Direction):
    """Reductions of what is equal for all elements of a tensor or a row."""

    scope: str = choice(default="model", others=("group", "tensor", "row"))
    n = number(2.0)
    most = number(0.0)

    def look(self, x: Place) -> Any:
        return x.n * x.n, largest(-3.0 * x.n), x.g

    def decide(self, c: Place, square: Any, most: Any, g: Any) -> None:
        c.n, c.most = c.n + square, most + 0.0 * g

    def unit(self, x: Place) -> Any:
        return x.g * 0.0 + x.most


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("scope", SCOPES)
def test_reductions_of_scalars_count_every_element(scope: str, execution: str, by: Any) -> None:
    names = ["matrix", "scalar", "vector", "cube", "strided", "longer rows"]
    params = parameters(torch.float64, names)
    optimizer = untuned.compose(params, Flat(scope), Fixed(1.0), execution=by(execution))
    before = [p.detach().clone() for p in params]
    give_gradients(params, 0)
    optimizer.step()
    total = sum(p.numel() for p in params)
    for p, old in zip(params, before, strict=True):
        held = optimizer.state[p] if scope in ("tensor", "row") else optimizer.param_groups[0]
        count = {"tensor": p.numel(), "row": rows(p).shape[1]}.get(scope, total)
        assert (held["n"] == 2.0 + 4.0 * count).all()
        assert (held["most"] == 6.0).all()
        torch.testing.assert_close(p.detach(), old - 6.0, rtol=1e-15, atol=1e-15)


class Mixed(GradientTransform):
    """Rows are divided by their largest element; the part beside it decides for tensors."""

    scope = "row"
    most = number(1.0, key="row_most")

    def look(self, x: Place) -> Any:
        return largest(x.g)

    def decide(self, c: Place, most: Any) -> None:
        c.most = maximum(most, 1e-9)

    def gradient(self, x: Place, g: Any) -> Any:
        return g / x.most


@pytest.mark.parametrize("execution", KERNELS)
@pytest.mark.parametrize("scope", SCOPES)
def test_rows_in_one_part_and_another_scope_in_the_next(scope: str, execution: str, by: Any) -> None:
    found = []
    for way in ("reference", execution):
        params = parameters(torch.float64)
        parts = Measured(scope), Fixed(0.5), untuned.iterates.Plain(), untuned.weight_decay.Decoupled()
        optimizer = untuned.Optimizer(params, *parts, gradient=[Mixed()], execution=by(way))
        for k in range(3):
            give_gradients(params, k)
            optimizer.step()
        found.append((params, measured(optimizer, scope)))
    for p, q in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-13, atol=1e-13)
    for key in NUMBERS:
        for one, other in zip(found[0][1][key], found[1][1][key], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-13, atol=0.0)
    torch.testing.assert_close(found[1][1]["most"][0], torch.ones_like(found[1][1]["most"][0]))


class Apart(Direction):
    """One decision for the model, on a maximum of each tensor."""

    most = number(0.0)
    mine = number(0.0, each=True)

    def look(self, x: Place) -> Any:
        return each(largest(x.g)), largest(x.p)

    def decide(self, c: Place, mine: Any, most: Any) -> None:
        c.mine, c.most = mine, most

    def unit(self, x: Place) -> Any:
        return x.g * x.mine


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_maxima_that_stay_apart(execution: str, by: Any) -> None:
    params = parameters(torch.float32)
    optimizer = untuned.compose(params, Apart(), Fixed(0.5), execution=by(execution))
    give_gradients(params, 0)
    expected = max(float(max_abs(rows(p)).sum() and max_abs(rows(p)).amax()) for p in params)
    optimizer.step()
    assert float(optimizer.param_groups[0]["most"]) == expected
    for p in params:
        assert float(optimizer.state[p]["mine"]) == (float(p.grad.abs().amax()) if p.numel() else 0.0)


class Exact(Direction):
    """A step whose float32 arithmetic is exact but for one rounding, so that all executions have equal bits."""

    scope = "row"
    most = number(0.0)
    m = slot("m")

    def look(self, x: Place) -> Any:
        return largest(x.g)

    def decide(self, c: Place, most: Any) -> None:
        c.most = most

    def accumulate(self, x: Place) -> None:
        x.m = x.g * x.most

    def unit(self, x: Place) -> Any:
        return x.g * x.most


@pytest.mark.parametrize("execution", KERNELS)
def test_stochastic_rounding_of_rows_has_the_bits_of_the_reference(execution: str, by: Any) -> None:
    names = [n for n in SHAPES if n not in REFERENCE_ONLY]
    found = []
    for way in ("reference", execution, "to nearest"):
        params = parameters(torch.bfloat16, names)
        random = {"stochastic_rounding": way != "to nearest", "slot_dtype": torch.bfloat16, "kahan_sum": False}
        way = "reference" if way == "to nearest" else way
        optimizer = untuned.compose(params, Exact(), Fixed(0.5), execution=by(way), **random)
        for k in range(3):
            give_gradients(params, k)
            optimizer.step()
        found.append([t for p in params for t in (p.detach(), optimizer.state[p]["m"])])
        assert bool(optimizer._launch.rest) == (way == "reference")
    assert all(map(torch.equal, found[0], found[1]))
    assert not all(map(torch.equal, found[0], found[2]))


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("scope", ["tensor", "row"])
def test_a_resumed_or_copied_run_is_bitwise_the_same(scope: str, execution: str, by: Any) -> None:
    class Running(Measured):
        def decide(self, c: Place, most: Any, square: Any, gap: Any, one: Any) -> None:
            c.most, c.square, c.gap, c.one = maximum(0.9 * c.most, most), c.square + square, c.gap + gap, one

    names = ["matrix", "scalar", "vector", "long rows", "cube", "no rows"]
    name, Running.__qualname__ = by(execution), "Running"

    def run(change: Any) -> tuple[list[torch.Tensor], Any]:
        params = parameters(torch.float32, names)
        optimizer = untuned.compose(params, Running(scope), Fixed(0.5), execution=name)
        for k in range(6):
            if k == 3:
                optimizer = change(optimizer)
            if k == 4:
                late = torch.nn.Parameter(torch.ones(4, 2))
                optimizer.add_param_group({"params": [late], "lr": 0.125})
            params = [p for group in optimizer.param_groups for p in group["params"]]
            give_gradients(params, k)
            optimizer.step()
        return [t for p in params for t in (p.detach(), *(optimizer.state[p][key] for key in NUMBERS))], optimizer

    def resumed(optimizer: Any) -> Any:
        fresh = [torch.nn.Parameter(p.detach().clone()) for p in optimizer.param_groups[0]["params"]]
        other = untuned.compose(fresh, Running(scope), Fixed(7.0), execution=name)
        other.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))
        return other

    expected, optimizer = run(lambda optimizer: optimizer)
    for change in (resumed, copy.deepcopy):
        found, other = run(change)
        assert all(map(torch.equal, found, expected))
        assert [group["lr"] for group in other.param_groups] == [0.5, 0.125]
    late = optimizer.param_groups[1]["params"][0]
    assert optimizer.state[late]["square"].shape == ((4,) if scope == "row" else ())
    state = optimizer.state_dict()["state"]
    assert [tuple(state[i]["most"].shape) for i in range(3)] == ([(5,), (1,), (1,)] if scope == "row" else [()] * 3)


@pytest.mark.parametrize("scope", ["tensor", "row"])
def test_a_pickled_optimizer_goes_on(scope: str) -> None:
    params = parameters(torch.float32, ["matrix", "vector", "cube"])
    optimizer = untuned.compose(params, Measured(scope), Fixed(0.5), execution="reference")
    give_gradients(params, 0)
    optimizer.step()
    other = pickle.loads(pickle.dumps(optimizer))
    theirs = other.param_groups[0]["params"]
    for group in (params, theirs):
        give_gradients(group, 1)
    optimizer.step()
    other.step()
    for p, q in zip(params, theirs, strict=True):
        assert torch.equal(p, q)
        assert all(torch.equal(optimizer.state[p][key], other.state[q][key]) for key in NUMBERS)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_a_group_that_rests_keeps_its_rows_and_is_not_in_the_maximum(execution: str, by: Any) -> None:
    for scope in SCOPES:
        params = parameters(torch.float64, ["matrix", "cube"])
        lrs = [torch.tensor(0.0, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)]
        groups = [{"params": [p], "lr": lr} for p, lr in zip(params, lrs, strict=True)]
        optimizer = untuned.compose(groups, Measured(scope), Fixed(0.5), execution=by(execution))
        give_gradients(params, 0)
        params[0].grad *= 100.0
        optimizer.step()
        largest_of_cube = float(params[1].grad.abs().amax())
        found = measured(optimizer, scope)["most"]
        assert float(found[-1].amax()) == largest_of_cube
        assert scope == "model" or not found[0].any()


class Named(Direction):
    """With a letter of its own called as one of the engine's."""

    scope = "tensor"
    top = number(3.0, key="mine")

    def unit(self, x: Place) -> Any:
        return x.g * x.top


def test_a_part_may_call_its_own_letter_top() -> None:
    p = torch.nn.Parameter(torch.zeros(2))
    p.grad = torch.ones(2)
    untuned.compose([p], Named(), Fixed(0.5), execution="reference").step()
    assert p.tolist() == [-1.5, -1.5]

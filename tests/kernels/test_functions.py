"""The functions that verbs may use, in all executions: beside elements, as scalars, and at the ends of their ranges."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported

import untuned  # noqa: E402
from untuned.directions import Gradient  # noqa: E402
from untuned.iterates import Mechanic  # noqa: E402
from untuned.parts import (  # noqa: E402
    Direction,
    Iterate,
    Place,
    cbrt,
    exp,
    log,
    maximum,
    minimum,
    ratio,
    sign,
    signal,
    slot,
    sqrt,
    tanh,
    where,
)
from untuned.run import launch  # noqa: E402
from untuned.step_sizes import Fixed, MoMo  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of the interpreter's lanes
needs_numba = pytest.mark.skipif(not launch.native_available, reason="needs numba")
needs_triton = pytest.mark.skipif(not launch.triton_available, reason="needs triton")
KERNELS = [pytest.param("native", marks=needs_numba), pytest.param("triton", marks=needs_triton)]
EXECUTIONS = ["reference", *KERNELS]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]

# of an element q and another one r
FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "sqrt": lambda q, r: sqrt(q),
    "cbrt": lambda q, r: cbrt(abs(q)),
    "exp": lambda q, r: exp(q),
    "log": lambda q, r: log(q),
    "tanh": lambda q, r: tanh(q),
    "minimum": minimum,
    "maximum": maximum,
    "least": lambda q, r: minimum(q, 0.25),
    "most": lambda q, r: maximum(0.25, q),
    "where": lambda q, r: where(q < r, q, 2.0),
    "both": lambda q, r: where((q >= 0.0) & (r <= q), 1.0, r),
    "sign": lambda q, r: sign(q),
    "ratio": ratio,
    "abs": lambda q, r: abs(q),
    "neg": lambda q, r: -q,
}


def roundings(execution: str, name: str, dtype: torch.dtype) -> int:
    """How far apart two results may be: torch's own power of float32 is off by 15, Triton's is exp(log)."""
    if name == "cbrt" and execution == "triton":
        return 500 if dtype == torch.float64 else 80
    return {"cbrt": 4 if dtype == torch.float64 else 24, "tanh": 32 if execution == "triton" else 4}.get(name, 4)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    if launch.triton_available:
        from untuned.kernels import triton as kernels

        monkeypatch.setattr(kernels, "CHUNK", 2 * kernels.BLOCK)


@pytest.fixture
def by(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Prepares one of EXECUTIONS and gives the option that asks for it."""

    def choose(execution: str) -> str:
        monkeypatch.setattr(launch, "TRITON_DEVICES", {"cuda", "cpu"} if execution == "triton" else {"cuda"})
        return "native" if execution == "triton" else execution

    return choose


def direction_of(values: dict[str, Callable[[Place], Any]]) -> Direction:
    """A direction that keeps what these make of a place, each in a slot of its name."""

    def accumulate(self: Any, x: Place) -> None:
        for name, value in values.items():
            setattr(x, name, value(x))

    body = {name: slot(name) for name in values} | {"q": signal("q"), "r": signal("r")}
    kind: Any = type("Applied", (Direction,), {**body, "accumulate": accumulate, "unit": lambda self, x: x.g})
    return kind()


def applied(
    values: dict[str, Callable[[Place], Any]], p: torch.Tensor, g: torch.Tensor, execution: str, **signals: float
) -> dict[str, np.ndarray]:
    """The slots after one step on the parameter p with the gradient g."""
    weight = torch.nn.Parameter(p.clone())
    weight.grad = g.clone()
    optimizer = untuned.compose([weight], direction_of(values), Fixed(), execution=execution, skip_nonfinite=False)
    optimizer.step(**{"q": 0.0, "r": 0.0} | signals)
    assert len(optimizer._launch.rest) == (execution == "reference")
    return {name: optimizer.state[weight][name].numpy() for name in values}


def inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs of ordinary numbers over many magnitudes, and all pairs of special ones."""
    info = torch.finfo(dtype)
    special = [0.0, -0.0, 1.0, -1.0, 0.039, -0.041, 1e-5, torch.inf, -torch.inf, torch.nan, 88.0, -90.0, 20.0]
    special += [info.tiny, -info.tiny, info.smallest_normal * 4, info.max, -info.max]
    pairs = torch.cartesian_prod(*[torch.tensor(special, dtype=torch.float64)] * 2)
    generator = torch.Generator().manual_seed(0)
    shape = 3000, 2  # more than one chunk of Triton's
    ordinary = torch.randn(shape, generator=generator, dtype=torch.float64)
    ordinary *= torch.exp(8 * torch.randn(shape, generator=generator, dtype=torch.float64))
    q, r = torch.cat([pairs, ordinary]).to(dtype).unbind(1)
    return q.contiguous(), r.contiguous()


def assert_equal(found: Any, expected: Any, times: float, least: float = 0.0, unit: float = 2.0**-53) -> None:
    np.testing.assert_allclose(found, expected, rtol=times * unit, atol=least, equal_nan=True)


@pytest.mark.parametrize("execution", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernels_equal_the_reference_element_by_element(dtype: torch.dtype, execution: str, by: Any) -> None:
    values = {name: lambda x, f=f: f(x.p, x.g) for name, f in FUNCTIONS.items()}
    p, g = inputs(dtype)
    expected = applied(values, p, g, by("reference"))
    found = applied(values, p, g, by(execution))
    unit = 2.0**-53 if dtype == torch.float64 else 2.0**-24
    for name in FUNCTIONS:
        # the kernels' cube root of float32 gives up below 1e-36, where it is 1e-12
        least = 1e-12 if name == "cbrt" and execution == "native" and dtype != torch.float64 else 0.0
        assert_equal(found[name], expected[name], roundings(execution, name, dtype), least, unit)
    exact = {name for name in FUNCTIONS if name not in ("sqrt", "cbrt", "exp", "log", "tanh", "ratio")}
    assert all(np.array_equal(found[name], expected[name], equal_nan=True) for name in exact)


def test_the_reference_is_what_python_says() -> None:
    """So that the comparisons with it mean something: on numbers, with NumPy and Python."""
    values = {name: lambda x, f=f: f(x.p, x.g) for name, f in FUNCTIONS.items()}
    p, g = inputs(torch.float64)
    found = applied(values, p, g, "reference")
    with np.errstate(all="ignore"):
        for name, f in FUNCTIONS.items():
            assert_equal(found[name], f(p.numpy(), g.numpy()), 4)
    for q, r in ((2.0, 3.0), (0.5, -0.25), (1e-3, 7.0)):
        for f in FUNCTIONS.values():
            exact = f(torch.tensor(q, dtype=torch.float64), torch.tensor(r, dtype=torch.float64))
            assert_equal(f(q, r), exact, 4)


SCALARS = [(0.0, -0.0), (1.5, -2.0), (-3.0, 4.0), (1e-300, 1e300), (-1e300, 0.3), (0.04, 0.04), (700.0, 2.5)]


@pytest.mark.parametrize("execution", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_scalars_are_computed_in_float64(dtype: torch.dtype, execution: str, by: Any) -> None:
    """Also where they meet elements of float32: differences that float32 cannot see are right to its rounding."""
    values = {name: lambda x, f=f: f(x.q, x.r) for name, f in FUNCTIONS.items()}
    smooth = ("sqrt", "cbrt", "exp", "tanh")
    fine = {
        f"fine {name}": lambda x, f=FUNCTIONS[name]: 1e9 * (f(x.q + 1.0 + 1e-9, x.r) - f(x.q + 1.0, x.r))
        for name in smooth
    }
    p, g = torch.zeros(3, dtype=dtype), torch.ones(3, dtype=dtype)
    unit = 2.0**-53 if dtype == torch.float64 else 2.0**-24
    for q, r in SCALARS:
        expected = applied(values, p.double(), g.double(), by("reference"), q=q, r=r)
        found = applied(values, p, g, by(execution), q=q, r=r)
        for name in FUNCTIONS:
            with np.errstate(over="ignore"):
                exact = expected[name].astype(found[name].dtype)
            least = 1e-45 if dtype == torch.float32 else 0.0
            assert_equal(found[name], exact, roundings(execution, name, dtype), least, unit)
    for q in (0.0, 0.25):
        expected = applied(fine, p.double(), g.double(), by("reference"), q=q)
        found = applied(fine, p, g, by(execution), q=q)
        for name in fine:
            np.testing.assert_allclose(found[name], expected[name], rtol=3e-6)
            assert 0.1 < found[name][0] < 10


class Multiplicative(Iterate):
    """p <- p exp(-size u sign(p)): the weights keep their signs."""

    gives: ClassVar[frozenset[str]] = frozenset()

    def move(self, x: Place) -> None:
        x.p = x.p * exp(-x.size * x.u * sign(x.p))


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_multiplicative_iterate(dtype: torch.dtype, execution: str, by: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2500, generator=generator, dtype=torch.float64).to(dtype)
    start[:3] = torch.tensor([0.0, 1.0, -1.0])
    ours = torch.nn.Parameter(start.clone())
    optimizer = untuned.compose(
        [ours], Gradient(), Fixed(0.1), Multiplicative(), execution=by(execution), kahan_sum=False
    )
    w = start.double().numpy()
    for k in range(5):
        ours.grad = torch.sin(torch.arange(2500.0) + k).to(dtype)
        w = w * np.exp(-0.1 * ours.grad.double().numpy() * np.sign(w))
        optimizer.step()
    found = ours.detach().double().numpy()
    assert (np.sign(found) == np.sign(w)).all()
    np.testing.assert_allclose(found, w, rtol=6 * torch.finfo(dtype).eps)
    assert len(optimizer._launch.rest) == (execution == "reference")


def test_a_multiplicative_iterate_is_not_additive() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(TypeError, match=r"needs 'additive' \(the parameters move by a multiple of u\); Multiplicative"):
        untuned.compose([p], Gradient(), MoMo(), Multiplicative())
    assert "additive" in Mechanic.gives


class Turned(Direction):
    """A direction that reads signals in its sweep: as scalars, beside elements and in a condition."""

    q = signal("q")

    def unit(self, x: Place) -> Any:
        return x.g * x.q + (x.q > 1.0) * 0.5 + x.q**2 * abs(x.g)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_a_signal_is_read_in_sweeps(execution: str, by: Any) -> None:
    q, p = 0.7, torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = untuned.compose([p], Turned(), Fixed(0.5), execution=by(execution))
    for k in range(1, 4):
        p.grad = torch.ones_like(p)
        optimizer.step(q=q * k)
    units = [q * k + 0.5 * (q * k > 1) + (q * k) ** 2 for k in range(1, 4)]
    np.testing.assert_allclose(p.detach().numpy(), -0.5 * sum(units), rtol=1e-14)

"""A decision of one tensor is taken inside the kernel, which goes over the tensor again while it is in the cache."""

from typing import Any

import pytest
import torch
from test_native import difference, run

import untuned
from untuned.directions import SNGM, TAM, AdaTAM
from untuned.iterates import ScheduleFree
from untuned.kernels import native
from untuned.parts import Direction, cbrt, choice, dot, maximum, minimum, number, sqrt
from untuned.step_sizes import Fixed

pytest.importorskip("numba")

METHODS: dict[str, dict[str, Any]] = {
    "tam": {},
    "adatam": {},
    "ldog": {},
    "sngm": {"scope": "tensor"},
    "gradagrad": {"scope": "tensor"},
    "dadapt_sgd": {"scope": "tensor"},
}


def launches(optimizer: untuned.Optimizer) -> list[int]:
    """Kernels of each batch, without the guard's."""
    return [sum(call is not None for call in batch.calls.values()) - 1 for batch in optimizer._launch.batches]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("limit", "expected"), [pytest.param(0, [2], marks=pytest.mark.slow), (100, [1, 2]), (10**6, [1])]
)
def test_one_pass_is_what_two_are(name: str, limit: int, expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "ONE_PASS", limit)
    ours, optimizer = run(name, torch.float64, 20, **METHODS[name], execution="native")
    reference, other = run(name, torch.float64, 20, **METHODS[name], execution="reference")
    assert sorted(launches(optimizer)) == expected
    assert difference(ours, reference) < 1e-10
    for group, twin in zip(optimizer.param_groups, other.param_groups, strict=True):
        for p, q in zip(group["params"], twin["params"], strict=True):
            for key, held in optimizer.state[p].items():
                torch.testing.assert_close(held, other.state[q][key], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float32) for name in METHODS),
        ("tam", torch.bfloat16),
        *(pytest.param(name, torch.bfloat16, marks=pytest.mark.slow) for name in METHODS if name != "tam"),
    ],
)
def test_one_pass_is_what_two_are_in_low_precision(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = run(name, dtype, 3, **METHODS[name], execution="native")
    monkeypatch.setattr(native, "ONE_PASS", 0)
    two, _ = run(name, dtype, 3, **METHODS[name], execution="native")
    assert difference(one, two) < (1e-6 if dtype == torch.float32 else 2**-7)
    assert sum(int((p != q).sum()) for p, q in zip(one, two, strict=True)) < 0.01 * sum(p.numel() for p in one)


def test_tensors_are_dealt_out_so_that_threads_have_equally_much_to_do() -> None:
    torch.set_num_threads(2)
    try:
        params = [torch.nn.Parameter(torch.randn(1000 * (i + 1))) for i in range(9)]
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer = untuned.TAM(params, lr=0.1, execution="native", skip_nonfinite=False)
        optimizer.step()
    finally:
        torch.set_num_threads(1)
    [call] = [call for call in optimizer._launch.batches[0].calls.values() if call and call.moves]
    sizes = [int(call.length[first:end].sum()) for first, end in call.pieces]
    assert sorted(sizes) == [1000 * (i + 1) for i in range(9)]
    assert abs(sum(sizes[:5]) - sum(sizes[5:])) <= 5000  # in the order of the parameters it would be 15,000


def test_a_tensor_whose_sums_overflow_stays_and_the_step_counts_as_skipped() -> None:
    huge, usual = (torch.nn.Parameter(torch.ones(5000)) for _ in range(2))
    optimizer = untuned.TAM([huge, usual], lr=1e-3, execution="native")
    huge.grad, usual.grad = torch.full((5000,), 1e18), torch.ones(5000)  # squares are finite, their sum is not
    optimizer.step()
    assert torch.equal(huge, torch.ones(5000))
    assert not optimizer.state[huge]["momentum_buffer"].any()
    assert optimizer.metrics()["skipped"] == 1
    assert float(optimizer.state[usual]["cosine"]) == 0.0
    huge.grad = torch.ones(5000)
    optimizer.step()
    assert optimizer.metrics()["skipped"] == 1
    assert not torch.equal(huge, torch.ones(5000))


def test_a_group_at_rest_and_a_skipped_step_change_nothing() -> None:
    params = [torch.nn.Parameter(torch.ones(50)) for _ in range(2)]
    groups = [{"params": [params[0]], "lr": torch.tensor(0.0)}, {"params": [params[1]]}]
    optimizer = untuned.TAM(groups, lr=0.1, execution="native")
    for value in (1.0, float("nan")):
        before = params[1].detach().clone()
        for p in params:
            p.grad = torch.full((50,), value)
        optimizer.step()
        assert torch.equal(params[0], torch.ones(50))
        assert torch.equal(params[1], before) == (value != value)


@pytest.mark.parametrize("limit", [0, 10**6])
def test_without_skipping_bad_gradients_spoil_their_tensor_as_in_two_passes(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "ONE_PASS", limit)
    params = [torch.nn.Parameter(torch.ones(50)) for _ in range(2)]
    optimizer = untuned.TAM(params, lr=0.1, execution="native", skip_nonfinite=False)
    params[0].grad, params[1].grad = torch.full((50,), float("nan")), torch.ones(50)
    optimizer.step()
    assert params[0].isnan().all()
    torch.testing.assert_close(params[1].detach(), torch.full((50,), 0.95))
    assert float(optimizer.state[params[0]]["cosine"]) == 0.0


class Deciding(Direction):
    """Its decision is one of those below."""

    rule: str = choice(default="", others=("swaps", "keeps", "drops", "small", "torch"))
    scope: str = choice(default="tensor", others=())
    s = number(0.5, key="size")
    q = number(0.25, key="other_size")

    def look(self, x: Any) -> Any:
        return dot(x.g, x.g)

    def decide(self, c: Any, gg: Any) -> None:
        getattr(self, f"_{self.rule}")(c, gg)

    def _swaps(self, c: Any, gg: Any) -> None:
        c.s, c.q = c.q, c.s

    def _keeps(self, c: Any, gg: Any) -> None:
        c.s = gg / (gg - gg)  # is not finite, and so not written
        c.q = c.s + 1

    def _drops(self, c: Any, gg: Any) -> None:
        c.s = minimum(0.1, sqrt(-gg))  # NaN, and so not written
        c.q = maximum(sqrt(-gg), 0.1)

    def _small(self, c: Any, gg: Any) -> None:
        c.s = 1e14 * cbrt(gg * 1e-45)

    def _torch(self, c: Any, gg: Any) -> None:
        c.s = torch.sqrt(torch.as_tensor(gg))

    def unit(self, x: Any) -> Any:
        return x.s * x.g + x.q


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", ["swaps", "keeps", "drops", "small", "torch"])
def test_a_decision_in_a_kernel_is_the_one_of_the_engine(rule: str, dtype: torch.dtype) -> None:
    results = []
    for execution in ("native", "reference"):
        params = [torch.nn.Parameter(torch.linspace(0.1, 1, size, dtype=dtype)) for size in (9, 30)]
        optimizer = untuned.compose(params, Deciding(rule=rule), Fixed(0.1), execution=execution)
        for _ in range(3):
            for p in params:
                p.grad = p.detach() * 2
            optimizer.step()
        held = [optimizer.state[p][key].reshape(1).double() for p in params for key in ("size", "other_size")]
        results.append(torch.cat([p.detach().double() for p in params] + held))
        if execution == "native":  # what calls torch cannot be traced
            assert launches(optimizer) == [2 if rule == "torch" else 1]
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-6 if dtype == torch.float32 else 0)
    if rule == "swaps":
        assert results[1][-2:].tolist() == [0.25, 0.5]


@pytest.mark.parametrize("direction", [TAM(), AdaTAM(), SNGM(scope="tensor")])
def test_a_second_sweep_that_only_decides_is_not_part_of_the_pass(direction: Direction) -> None:
    results = []
    for execution in ("native", "reference"):
        p = torch.nn.Parameter(torch.linspace(0.1, 1, 30, dtype=torch.float64))
        optimizer = untuned.compose([p], direction, Fixed(0.1), ScheduleFree(), execution=execution)
        for _ in range(5):
            p.grad = p.detach() * 2
            optimizer.step()
        results.append(p.detach())
    torch.testing.assert_close(*results, rtol=1e-12, atol=0)


@pytest.mark.parametrize("scope", ["group", "model"])
def test_decisions_about_several_tensors_take_two_passes(scope: str) -> None:
    _, optimizer = run("tam", torch.float32, 1, execution="native")
    assert launches(optimizer) == [1]
    p = torch.nn.Parameter(torch.ones(30))
    p.grad = torch.ones(30)
    optimizer = untuned.TAM([p], lr=0.1, scope=scope, execution="native")
    optimizer.step()
    assert launches(optimizer) == [2]

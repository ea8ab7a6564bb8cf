"""What a step costs, counted without a clock: operations, host reads, memory."""

import weakref
from collections import Counter
from typing import Any

import pytest
import torch
from test_native import ALL, build
from torch.utils._python_dispatch import TorchDispatchMode

import untuned
from untuned.run import eager as reference

pytest.importorskip("numba")


class Dispatched(TorchDispatchMode):
    """Counts operations, and remembers the largest result in new memory."""

    def __init__(self, optimizer: untuned.Optimizer) -> None:
        super().__init__()
        held = [t for p, state in optimizer.state.items() for t in (p.detach(), p.grad, *state.values())]
        self.known = {t.untyped_storage().data_ptr() for t in held}
        self.seen: Counter[str] = Counter()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen[func.name()] += 1
        if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in self.known:
            self.largest = max(self.largest, out.numel())
        return out


def second_step(name: str, shapes: list[tuple[int, ...]], **engine: Any) -> Dispatched:
    params = [torch.nn.Parameter(torch.randn(s)) for s in shapes]
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer = build(name, params, **engine)
    arguments = {"loss": torch.ones((), dtype=torch.float64), "sample_ids": torch.tensor([0, 5, 2, 2])}
    optimizer.step(**arguments)
    with Dispatched(optimizer) as counted:
        optimizer.step(**arguments)
    return counted


@pytest.mark.parametrize("name", ALL)
def test_operations_do_not_depend_on_the_number_of_tensors_and_the_host_reads_nothing(name: str) -> None:
    few, many = (second_step(name, [(3,)] * count, execution="native").seen for count in (2, 40))
    assert few == many
    assert "aten::_local_scalar_dense" not in few


@pytest.mark.parametrize("name", ALL)
def test_kernels_allocate_nothing_of_the_size_of_a_parameter(name: str) -> None:
    clip = (
        1.0 if name in ("adamw", "momo_adam", "prodigy", "mechanic_adamw", "tam") else None
    )  # other kernels: compiled
    assert second_step(name, [(100_000,)], execution="native", clip_grad_norm=clip).largest < 100


@pytest.mark.parametrize("name", ["adamw", "momo_adam", "prodigy", "mechanic_adamw", "tam"])
def test_the_reference_works_on_blocks(name: str) -> None:
    counted = second_step(name, [(1000, 300), (2, 64, 50, 50)], execution="reference")
    assert 1000 < counted.largest <= reference.BLOCK


@pytest.mark.parametrize("name", ["sgd", "momo_adam", "prodigy", "mechanic_adamw"])
def test_blocks_do_not_change_the_result(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for block in (1000, 10**9):
        monkeypatch.setattr(reference, "BLOCK", block)
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(s, dtype=torch.float64)) for s in ((70, 50), (4, 30, 9, 9))]
        params[1].data = params[1].data.to(memory_format=torch.channels_last)
        optimizer = build(name, params, execution="reference")
        for _ in range(5):
            for p in params:
                p.grad = torch.empty_like(p).copy_(torch.sin(p.detach()))
            optimizer.step(loss=1.0)
        results.append([p.detach() for p in params])
    for p, q in zip(*results, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)


def test_a_tensor_of_another_layout_of_gradient_is_one_block() -> None:
    p = torch.nn.Parameter(torch.randn(300, 300))
    optimizer = untuned.AdamW([p], execution="reference")
    p.grad = torch.randn(300, 300).t()
    twin = torch.nn.Parameter(p.detach().clone())
    other = torch.optim.AdamW([twin])
    twin.grad = p.grad.contiguous()
    optimizer.step()
    other.step()
    torch.testing.assert_close(p, twin, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("execution", ["native", "reference"])
def test_gradients_are_freed_when_the_model_lets_them_go(execution: str) -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = untuned.MoMoAdam([p], execution=execution)
    for _ in range(3):
        p.grad = torch.ones(3)
        alive = weakref.ref(p.grad)
        optimizer.step(loss=1.0)
        optimizer.zero_grad(set_to_none=True)
        assert alive() is None

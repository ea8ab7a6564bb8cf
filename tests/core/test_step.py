"""The protocol of step(): closures, losses, scalers, hooks, and that a refused step changes nothing."""

import contextlib
import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from problems import EVERY, LOSS_DRIVEN, RECORDED, different, everything, loss_of, net, train, twin, vector
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import untuned

LOSS_FREE = [name for name in EVERY if name not in LOSS_DRIVEN]


def pair(name: str, **options: Any) -> tuple[nn.Module, untuned.Optimizer]:
    model = net(options.pop("dtype", torch.float64))
    return model, EVERY[name](model.parameters(), **options)


def prepared(name: str, **options: Any) -> tuple[nn.Module, untuned.Optimizer, torch.Tensor]:
    """After two steps, with the loss and the gradients of the third."""
    model, optimizer = pair(name, **options)
    train(model, optimizer, range(2))
    optimizer.zero_grad()
    loss = loss_of(model, 2)
    loss.backward()
    return model, optimizer, loss


# ---------------------------------------------------------------- closures


@pytest.mark.parametrize("name", EVERY)
def test_a_closure_is_the_same_as_a_loss(name: str) -> None:
    model, optimizer = pair(name)
    losses = train(model, optimizer, range(4))
    other, closed = pair(name)
    for k in range(4):

        def closure() -> torch.Tensor:
            assert torch.is_grad_enabled()
            closed.zero_grad()
            loss = loss_of(other, k)  # noqa: B023
            loss.backward()
            return loss

        with torch.no_grad():
            assert closed.step(closure).item() == losses[k]
            assert not torch.is_grad_enabled()
    assert different(everything(optimizer), everything(closed)) == []


@pytest.mark.parametrize("name", ["momo", "schedule_free_adamw"])
@pytest.mark.parametrize("enabled", [True, False])
def test_an_error_in_a_closure_changes_nothing(name: str, enabled: bool) -> None:
    _, optimizer, _ = prepared(name)
    before = everything(optimizer)

    def closure() -> torch.Tensor:
        raise ArithmeticError("in the model")

    with torch.set_grad_enabled(enabled):
        with pytest.raises(ArithmeticError, match="in the model"):
            optimizer.step(closure)
        assert torch.is_grad_enabled() == enabled
    assert different(before, everything(optimizer)) == []


def test_a_closure_without_a_loss_beside_a_loss() -> None:
    _, optimizer, loss = prepared("momo_adam")
    twins = twin(optimizer)
    calls: list[int] = []
    optimizer.step(loss=loss)
    assert twins.step(lambda: calls.append(1), loss=loss.item()) == loss.item()
    assert calls == [1]
    assert different(everything(optimizer), everything(twins)) == []


# ---------------------------------------------------------------- losses


FORMS = {
    "a 0-dim tensor": lambda v: torch.tensor(v, dtype=torch.float64),
    "a one-element tensor": lambda v: torch.full((1, 1), v, dtype=torch.float64),
    "with a graph": lambda v: torch.tensor(v, dtype=torch.float64, requires_grad=True) * 1.0,
    "a number of NumPy": np.float64,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", LOSS_DRIVEN)
def test_every_form_of_a_loss_is_the_same(name: str, form: str) -> None:
    _, optimizer, loss = prepared(name)
    twins = twin(optimizer)
    optimizer.step(loss=loss.item())
    given = FORMS[form](loss.item())
    assert twins.step(loss=given) is given
    assert different(everything(optimizer), everything(twins)) == []


def test_an_integer_and_a_half_precision_loss() -> None:
    values = []
    for loss in (2, 2.0, np.float32(2), np.int64(2), torch.tensor(2), torch.tensor(2.0, dtype=torch.bfloat16)):
        _, optimizer, _ = prepared("momo")
        optimizer.step(loss=loss)
        values.append(optimizer.metrics()["loss_avg"])
    assert len(set(values)) == 1


@pytest.mark.parametrize(
    ("wrong", "shown"),
    [
        ("0.5", "'0.5'"),
        (True, "True"),
        ([1.0], r"\[1.0\]"),
        (1j, "1j"),
        (torch.ones(2), r"a tensor of shape \(2,\), torch.float32"),
        (torch.ones(0), r"a tensor of shape \(0,\)"),
        (torch.tensor(1j), r"a tensor of shape \(\), torch.complex64"),
    ],
)
def test_wrong_losses_change_nothing(wrong: Any, shown: str) -> None:
    _, optimizer, _ = prepared("momo")
    before = everything(optimizer)
    sentence = rf"^MoMo: the loss must be a number or a one-element tensor, not {shown}"
    with pytest.raises(TypeError, match=sentence):
        optimizer.step(loss=wrong)
    with pytest.raises(TypeError, match=sentence):
        optimizer.record_loss(wrong)
    with pytest.raises(TypeError, match=sentence):
        optimizer.step(lambda: wrong)
    assert different(before, everything(optimizer)) == []


@pytest.mark.parametrize("name", LOSS_DRIVEN)
def test_a_missing_loss_changes_nothing(name: str) -> None:
    _, optimizer, loss = prepared(name)
    before = everything(optimizer)
    sentence = r"step\(\) needs the loss: call step\(loss=loss\), step\(closure\) or record_loss\(loss\) before it\.$"
    for arguments in ((), (lambda: None,)):
        with pytest.raises(ValueError, match=sentence):
            optimizer.step(*arguments)
    assert different(before, everything(optimizer)) == []
    optimizer.step(loss=loss)
    assert ("parameter", 0, 0) in different(before, everything(optimizer))


@pytest.mark.parametrize("name", LOSS_FREE)
def test_other_methods_need_no_loss_and_take_any(name: str) -> None:
    _, optimizer, loss = prepared(name)
    twins, recorded = twin(optimizer), twin(optimizer)
    assert optimizer.step() is None
    assert twins.step(loss=loss) is loss
    recorded.record_loss(loss)
    recorded.step()
    assert different(everything(optimizer), everything(twins)) == []
    assert different(everything(optimizer), everything(recorded)) == []


@pytest.mark.parametrize("name", [name for name in LOSS_DRIVEN if name not in RECORDED])
def test_recorded_losses_are_averaged_over_micro_batches(name: str) -> None:
    _, optimizer, _ = prepared(name)
    twins = twin(optimizer)
    optimizer.step(loss=(0.5 + 0.25 + 0.125) / 3)
    for loss in (0.5, torch.tensor(0.25), torch.tensor([0.125], requires_grad=True)):
        twins.record_loss(loss)
    twins.step()
    assert different(everything(optimizer), everything(twins)) == []
    with pytest.raises(ValueError, match="needs the loss"):  # the recorded losses are used up
        twins.step()


def test_accumulated_gradients_with_recorded_losses_are_one_large_batch() -> None:
    model, optimizer = pair("momo_adam")
    other, accumulating = pair("momo_adam")
    for k in range(4):
        optimizer.zero_grad()
        accumulating.zero_grad()
        loss = (loss_of(model, 2 * k) + loss_of(model, 2 * k + 1)) / 2
        loss.backward()
        optimizer.step(loss=loss)
        for part in (2 * k, 2 * k + 1):
            loss = loss_of(other, part)
            accumulating.record_loss(loss)
            (loss / 2).backward()
        accumulating.step()
    torch.testing.assert_close(vector(model), vector(other), rtol=1e-12, atol=1e-14)
    assert optimizer.metrics()["loss_avg"] == pytest.approx(accumulating.metrics()["loss_avg"], rel=1e-13)


def test_a_recorded_loss_is_preferred_to_that_of_a_closure() -> None:
    """Trainers return from the closure the loss of the last micro-batch, divided by their number."""
    _, optimizer, loss = prepared("momo")
    twins = twin(optimizer)
    optimizer.step(loss=loss)
    twins.record_loss(loss)
    assert twins.step(lambda: loss / 2) == loss / 2
    assert different(everything(optimizer), everything(twins)) == []


def test_two_ways_of_giving_the_loss_are_refused() -> None:
    _, optimizer, loss = prepared("momo")
    before = everything(optimizer)
    optimizer.record_loss(loss)
    with pytest.raises(
        ValueError, match=r"MoMo\.step\(\) got loss= after record_loss\(loss\): give the loss one way only"
    ):
        optimizer.step(loss=loss)
    assert different(before, everything(optimizer)) == []
    twins = twin(optimizer)
    optimizer.step()  # the record is still there
    twins.step(loss=loss)
    assert different(everything(optimizer), everything(twins)) == []


@pytest.mark.parametrize("wrong", [torch.tensor(0.5), 0.5])
def test_a_loss_as_first_argument_gets_a_clear_error(wrong: Any) -> None:
    _, optimizer, _ = prepared("momo")
    before = everything(optimizer)
    sentence = rf"MoMo.step() takes a closure first, not {wrong!r}: call step(loss=loss)."
    with pytest.raises(TypeError, match=re.escape(sentence)):
        optimizer.step(wrong)
    assert different(before, everything(optimizer)) == []


@pytest.mark.parametrize("name", EVERY)
def test_maximize_ascends(name: str) -> None:
    model, optimizer = pair(name)
    train(model, optimizer, range(4))
    other, ascending = pair(name, maximize=True)
    for k in range(4):
        ascending.zero_grad()
        gain = -loss_of(other, k)
        gain.backward()
        ascending.step(loss=gain)
    wanted, found = everything(optimizer), everything(ascending)
    assert wanted.keys() == found.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-11, atol=1e-15, msg=str(key))


# ---------------------------------------------------------------- what surrounds a step


@pytest.mark.parametrize("name", EVERY)
def test_gradients_are_never_modified(name: str) -> None:
    model, optimizer, loss = prepared(name, maximize=True)
    first = next(model.parameters())
    first.grad = first.grad.t().contiguous().t()  # strides unlike the parameter's
    before = [(p.grad, p.grad.clone(), p.grad.stride()) for p in model.parameters()]
    optimizer.step(loss=-loss)
    for p, (held, value, stride) in zip(model.parameters(), before, strict=True):
        assert p.grad is held
        assert torch.equal(held, value)
        assert held.stride() == stride


@pytest.mark.parametrize("name", EVERY)
def test_strides_of_gradients_and_parameters_do_not_matter(name: str) -> None:
    model, optimizer = pair(name)
    train(model, optimizer, range(3))
    other = net()
    for layer in (other[0], other[2]):
        layer.weight = nn.Parameter(layer.weight.detach().t().contiguous().t())
    optimizers = EVERY[name](other.parameters())
    for k in range(3):
        optimizers.zero_grad()
        loss = loss_of(other, k)
        loss.backward()
        other[4].weight.grad = other[4].weight.grad.t().contiguous().t()
        optimizers.step(loss=loss)
    assert other[0].weight.stride() == (1, 4)
    torch.testing.assert_close(vector(model), vector(other), rtol=1e-12, atol=1e-14)


class HostReads(TorchDispatchMode):
    """Counts the values that Python asks the device for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_host_reads_are_seen() -> None:
    with HostReads() as reads:
        float(torch.ones(()))
        bool(torch.ones(()) > 0)
    assert reads.count == 2


@pytest.mark.parametrize("lr", ["float", "tensor"])
@pytest.mark.parametrize("name", EVERY)
def test_a_step_reads_nothing_from_the_device(name: str, lr: str) -> None:
    model, optimizer = pair(name)
    if lr == "tensor":
        model, optimizer = pair(name, lr=torch.tensor(float(optimizer.param_groups[0]["lr"])))
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2, dtype=torch.float64))]})
    with HostReads() as reads:
        for k in range(3):
            optimizer.zero_grad()
            loss = loss_of(model, k) + optimizer.param_groups[1]["params"][0].square().sum()
            loss.backward()
            optimizer.record_loss(loss)
            optimizer.step()
    assert reads.count == 0


@pytest.mark.parametrize("name", ["momo", "momo_adam", "prodigy", "mechanic on tam", "sgd"])
def test_a_gradient_scaler(name: str) -> None:
    """A scale that is a power of two changes no bit; a step that the scaler skips changes nothing."""
    model, optimizer = pair(name, dtype=torch.float32)
    train(model, optimizer, range(4))
    other, scaled = pair(name, dtype=torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for k in range(4):
        scaled.zero_grad()
        loss = loss_of(other, k)
        scaler.scale(loss).backward()
        assert scaler.step(scaled, loss=loss) is loss
        scaler.update()
    assert different(everything(optimizer), everything(scaled)) == []
    next(other.parameters()).grad[0] = torch.inf
    scaler.step(scaled, loss=loss)
    scaler.update()
    assert scaler.get_scale() == 2.0**9
    assert different(everything(optimizer), everything(scaled)) == []


def test_a_hook_before_the_step_may_bring_the_loss() -> None:
    _, optimizer, loss = prepared("momo")
    twins = twin(optimizer)
    optimizer.step(loss=loss)
    seen: list[Any] = []
    twins.register_step_pre_hook(lambda opt, args, kwargs: (args, kwargs | {"loss": loss}))
    twins.register_step_post_hook(lambda opt, args, kwargs: seen.append(kwargs))
    assert twins.step() is loss
    assert seen == [{"loss": loss}]
    assert different(everything(optimizer), everything(twins)) == []


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, contextlib.nullcontext])
def test_the_grad_mode_around_a_step_does_not_matter(context: Any) -> None:
    _, optimizer, loss = prepared("momo_adam")
    twins = twin(optimizer)
    optimizer.step(loss=loss)
    with context():
        twins.step(loss=loss)
    assert different(everything(optimizer), everything(twins)) == []
    assert not any(value.requires_grad for held in optimizer.state.values() for value in held.values())


def test_a_step_counts_as_a_change_for_autograd() -> None:
    model, optimizer, loss = prepared("sgd")
    first = next(model.parameters())
    product = (first * first).sum()
    optimizer.step(loss=loss)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_sparse_gradients_are_refused_and_nothing_changes() -> None:
    table = nn.Embedding(3, 2, sparse=True)
    dense = nn.Parameter(torch.ones(2))
    optimizer = untuned.Adam([dense, table.weight])
    dense.grad = torch.ones(2)
    table(torch.tensor([1])).sum().backward()
    before = everything(optimizer)
    with pytest.raises(TypeError, match=r"Adam: gradients must be dense, not torch\.sparse_coo\. Use sparse=False"):
        optimizer.step()
    assert different(before, everything(optimizer)) == []


def test_a_step_without_any_gradient_changes_nothing_and_needs_no_loss() -> None:
    model, optimizer = pair("momo")
    before = everything(optimizer)
    assert optimizer.step() is None
    optimizer.record_loss(0.5)
    optimizer.step()
    assert different(before, everything(optimizer)) == []
    loss = loss_of(model, 0)
    loss.backward()
    optimizer.step(loss=loss)  # the loss recorded for the empty step is gone
    assert optimizer.metrics()["loss_avg"] == pytest.approx(loss.item())


def test_zero_grad() -> None:
    model, optimizer, _ = prepared("prodigy")
    optimizer.zero_grad(set_to_none=False)
    assert [p.grad.abs().sum().item() for p in model.parameters()] == [0.0] * 6
    optimizer.zero_grad()
    assert [p.grad for p in model.parameters()] == [None] * 6


@pytest.mark.parametrize("name", ["adamw", "momo_adam", "prodigy"])
def test_a_compiled_training_step(name: str) -> None:
    """torch.compile around the whole step: the optimizer runs as it is, outside the graph."""
    runs = []
    for compiled in (False, True):
        model, optimizer = pair(name)

        def step(k: int, model: Any = model, optimizer: Any = optimizer) -> None:
            optimizer.zero_grad()
            loss = loss_of(model, k)
            loss.backward()
            optimizer.step(loss=loss)

        step = torch.compile(step, backend="eager") if compiled else step
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of dynamo, about what it leaves out
            for k in range(3):
                step(k)
        runs.append(everything(optimizer))
    assert different(*runs) == []

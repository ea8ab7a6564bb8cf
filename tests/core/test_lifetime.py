"""State belongs to the tensors that are in a group now: what becomes of it when tensors, state or optimizers go."""

import copy
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from problems import AVERAGING, EVERY, different, everything, loss_of, net, train
from torch import nn

import untuned

AS_KERNELS = ("mechanic_adamw", "momo_adam", "prodigy", "schedule_free_adamw", "tam")  # the others are slow to compile
RUNS = [
    pytest.param(name, execution, marks=() if name in AS_KERNELS or execution == "reference" else pytest.mark.slow)
    for name in EVERY
    for execution in ("reference", "auto")
]


def values(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def equal(these: list[torch.Tensor], those: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, these, those))


# ---------------------------------------------------------------- tensors that are exchanged


def exchange(optimizer: untuned.Optimizer, model: nn.Module, other: nn.Module) -> None:
    """The parameters of another model in the places of those of this one."""
    instead = dict(zip(model.parameters(), other.parameters(), strict=True))
    for group in optimizer.param_groups:
        group["params"] = [instead[p] for p in group["params"]]


@pytest.mark.parametrize("looked_at", [False, True])
@pytest.mark.parametrize("name", EVERY)
def test_tensors_exchanged_before_the_first_step(name: str, looked_at: bool) -> None:
    """As trainers do that shard the model after the optimizer was built."""
    model, other = net(), net()
    optimizer, fresh = EVERY[name](model.parameters()), EVERY[name](other.parameters())
    if looked_at:
        optimizer.state_dict()
    exchanged = net()
    exchange(optimizer, model, exchanged)
    assert len(optimizer.state_dict()["state"]) == 6
    train(exchanged, optimizer, range(4))
    train(other, fresh, range(4))
    assert equal(values(exchanged), values(other))
    assert optimizer.state.keys() == {*exchanged.parameters()}


@pytest.mark.parametrize("name", EVERY)
def test_tensors_exchanged_in_the_middle_leave_nothing_behind(name: str) -> None:
    model = net()
    optimizer = EVERY[name](model.parameters())
    train(model, optimizer, range(3))
    held = [weakref.ref(value) for state in optimizer.state.values() for value in state.values()]
    exchanged = net()
    exchange(optimizer, model, exchanged)
    saved = optimizer.state_dict()  # a KeyError in torch's own state_dict(), if the old ones were still there
    assert [float(state["step"]) for state in saved["state"].values()] == [0.0] * 6
    train(exchanged, optimizer, range(3, 5))
    assert optimizer.state.keys() == {*exchanged.parameters()}
    assert not any(ref() is not None and ref().dim() for ref in held)  # pyright: ignore[reportOptionalMemberAccess]


# Methods that choose no step for the model as a whole.
APART = ["adam", "adamw", "adatamw", "gradagrad_diagonal", "ldog", "madgrad", "schedule_free_adamw", "sgd", "tam"]


@pytest.mark.parametrize("name", APART)
def test_trainers_may_step_with_one_group_at_a_time(name: str) -> None:
    """DeepSpeed's ZeRO puts a list of one group into `param_groups` for each of its calls of `step`."""
    runs: list[list[torch.Tensor]] = []
    for alone in (False, True):
        model = net()
        params = [*model.parameters()]
        optimizer = EVERY[name]([{"params": params[::2]}, {"params": params[1::2]}])
        groups = optimizer.param_groups
        for k in range(6):
            optimizer.zero_grad()
            loss = loss_of(model, k)
            loss.backward()
            for some in [[group] for group in groups] if alone else [groups]:
                optimizer.param_groups = some
                optimizer.step(loss=loss)
            optimizer.param_groups = groups
        assert optimizer.state.keys() == {*params}
        runs.append(values(model))
    assert equal(*runs)


def test_no_memory_is_taken_before_the_first_step() -> None:
    """A model is often sharded between the construction of its optimizer and that."""
    optimizer = untuned.Prodigy([nn.Parameter(torch.ones(1000))])
    assert not optimizer.state
    assert set(optimizer.state_dict()["state"][0]) == {"step", "exp_avg", "exp_avg_sq", "s", "p0", "d_numerator"}


# ---------------------------------------------------------------- state that is deleted


@pytest.mark.parametrize(("name", "execution"), RUNS)
def test_after_reset_an_optimizer_is_a_new_one(name: str, execution: str) -> None:
    model = net()
    optimizer = EVERY[name](model.parameters(), execution=execution)
    train(model, optimizer, range(4))
    other = copy.deepcopy(model)
    optimizer.reset()
    fresh = EVERY[name](other.parameters(), execution=execution)
    train(model, optimizer, range(4, 8))
    train(other, fresh, range(4, 8))
    assert equal(values(model), values(other))
    assert different(everything(optimizer), everything(fresh)) == []


@pytest.mark.parametrize(("name", "execution"), RUNS)
def test_deleted_state_is_that_of_a_first_step(name: str, execution: str) -> None:
    """As one does with merged or pruned weights: `del optimizer.state[p]` is `reset([p])`, and start points are new."""
    runs = []
    for by_hand in (True, False):
        model = net()
        optimizer = EVERY[name](model.parameters(), execution=execution)
        train(model, optimizer, range(4))
        chosen = [*model.parameters()][1:3]
        kept = {key: value.clone() for key, value in optimizer.state[model[0].weight].items()}
        before = [p.detach().clone() for p in chosen]
        for p in chosen if by_hand else ():
            del optimizer.state[p]
        if not by_hand:
            optimizer.reset(chosen)
        assert all(torch.equal(value, kept[key]) for key, value in optimizer.state[model[0].weight].items())
        train(model, optimizer, range(4, 5))
        for p, start in zip(chosen, before, strict=True):
            state = optimizer.state[p]
            assert float(state["step"]) == 1
            for key in ("p0", "x0"):
                assert torch.equal(state.get(key, start), start)
        train(model, optimizer, range(5, 9))
        runs.append(everything(optimizer))
    assert different(*runs) == []


@pytest.mark.parametrize("name", [name for name in AVERAGING if name.startswith("schedule_free_")])
def test_schedule_free_whose_state_was_deleted_goes_on_from_its_weights(name: str) -> None:
    """All its numbers are kept per tensor, so it is a new optimizer; z from zeros would take the weights there."""
    model = net()
    optimizer = EVERY[name](model.parameters())
    train(model, optimizer, range(4))
    other = copy.deepcopy(model)
    optimizer.state.clear()
    fresh = EVERY[name](other.parameters())
    train(model, optimizer, range(4, 20))
    train(other, fresh, range(4, 20))
    assert equal(values(model), values(other))


@pytest.mark.parametrize("name", AVERAGING)
def test_modes_without_state_change_nothing(name: str) -> None:
    model = net()
    optimizer = EVERY[name](model.parameters())
    before = values(model)
    for prepare in (lambda: None, optimizer.state_dict):  # no state, and that of no step
        prepare()
        optimizer.eval()
        assert equal(values(model), before)
        optimizer.train()
        assert equal(values(model), before)
    train(model, optimizer, range(3))
    optimizer.eval()
    averaged = values(model)
    optimizer.reset()
    optimizer.train()
    assert equal(values(model), averaged)


def test_start_points_of_a_first_step_that_was_skipped_are_taken_again() -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = untuned.Prodigy([p])
    p.grad = torch.full((2,), torch.nan)
    optimizer.step()
    with torch.no_grad():
        p.copy_(torch.tensor([3.0, 4.0]))  # weights are loaded only now
    p.grad = torch.ones(2)
    optimizer.step()
    assert optimizer.state[p]["p0"].tolist() == [3.0, 4.0]


def test_reset_of_foreign_tensors_changes_nothing() -> None:
    model = net()
    optimizer = EVERY["prodigy"](model.parameters())
    train(model, optimizer, range(3))
    before = everything(optimizer)
    with pytest.raises(ValueError, match=r"Prodigy\.reset\(\) got a tensor that is in no group\. Give it parameters\."):
        optimizer.reset([model[0].weight, torch.ones(1)])
    with pytest.raises(TypeError, match=r"params must be a list"):
        optimizer.reset(model[0].weight)
    assert different(before, everything(optimizer)) == []


# ---------------------------------------------------------------- optimizers that are deleted


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def young() -> Iterator[None]:
    """The collector leaves alone what was there before these tests: else each collection takes a tenth of a second."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


# torch imports its compiler when the first optimizer of a process takes a group, and the frames of that import keep it.
torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)


@pytest.mark.parametrize(("name", "execution"), RUNS)
def test_a_deleted_optimizer_is_freed_at_once(name: str, execution: str, no_collector: Any) -> None:
    model = net()
    optimizer = EVERY[name](model.parameters(), execution=execution, clip_grad_norm=1.0)
    train(model, optimizer, range(2))
    with optimizer.averaged_parameters():
        optimizer.metrics()
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)
    train(model, optimizer, range(2, 4))
    things = [optimizer, *model.parameters(), *(slot for held in optimizer.state.values() for slot in held.values())]
    alive = [weakref.ref(thing) for thing in things]
    del optimizer, model, state, things
    assert [ref() for ref in alive if ref() is not None] == []

"""Parameter groups: one model whatever their number, lr as a multiplier, lr 0 as a freeze, late parameters."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from problems import DIVIDING, EVERY, LOSS_DRIVEN, different, everything, groups_of, loss_of, net, train, twin, vector
from terms import assert_near
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, OneCycleLR

import untuned

SLOTS_AT_START = {"p0", "ref", "z", "x0", "init_buffer"}


def halves(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    params = list(model.parameters())
    return params[:3], params[3:]


def own_state(optimizer: untuned.Optimizer, params: list[nn.Parameter]) -> dict[tuple[Any, ...], torch.Tensor]:
    """These parameters, their slots and counters."""
    optimizer.state_dict()  # makes the state that a first step would make
    return {
        (i, key): value.clone()
        for i, p in enumerate(params)
        for key, value in ({"p": p.detach()} | optimizer.state[p]).items()
    }


# ---------------------------------------------------------------- several groups, one model


@pytest.mark.parametrize("name", [name for name in EVERY if name != "tam of the group"])
def test_two_equal_groups_are_one_group(name: str) -> None:
    """Bitwise, so all sums must have one order: methods that divide groups put matrices first, as is done here."""
    model, other = net(), net()
    params = sorted(other.parameters(), key=lambda p: -p.dim()) if name in DIVIDING else [*other.parameters()]
    one, two = EVERY[name](model.parameters()), EVERY[name]([{"params": params[:2]}, {"params": params[2:]}])
    assert train(model, one, range(5)) == train(other, two, range(5))
    assert different(own_state(one, [*model.parameters()]), own_state(two, [*other.parameters()])) == []
    one.eval()
    two.eval()
    assert torch.equal(vector(model), vector(other))


@pytest.mark.parametrize("name", EVERY)
def test_the_order_of_groups_does_not_matter(name: str) -> None:
    model, other = net(), net()
    changes = {"lr": 0.5 * float(EVERY[name](net().parameters()).param_groups[0]["lr"]), "weight_decay": 0.3}
    first, second = halves(model)
    optimizer = EVERY[name]([{"params": first}, {"params": second} | changes])
    train(model, optimizer, range(5))
    first, second = halves(other)
    reordered = EVERY[name]([{"params": second[::-1]} | changes, {"params": first}])
    train(other, reordered, range(5))
    torch.testing.assert_close(vector(model), vector(other), rtol=1e-11, atol=1e-13)
    assert not torch.allclose(vector(model), vector(net()), rtol=1e-3)


# LDoG's distances are those of each tensor, MADGRAD's steps grow like the power 2/3 of lr.
OTHER_STEPS = {"ldog", "madgrad"}
OTHER_STEPS |= {"multiplicative_sgd", "multiplicative_adam"}  # in proportion to weights that have moved


@pytest.mark.parametrize("name", [name for name in EVERY if name not in OTHER_STEPS])
def test_a_tenth_of_the_lr_is_a_tenth_of_the_step(name: str) -> None:
    """Two tensors with the same values and gradients: what is decided for the model is the same for both."""
    lr = float(EVERY[name](net().parameters()).param_groups[0]["lr"])
    start = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    one, other = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    options = {"weight_decay": 0.0}
    optimizer = EVERY[name]([{"params": [one]} | options, {"params": [other], "lr": 0.1 * lr} | options])
    steps = 2 if "schedule_free" in name else 4  # whose average weighs its first steps with their lr
    for _ in range(steps):
        one.grad, other.grad = (torch.tensor([1.0, 0.5, -2.0], dtype=torch.float64) for _ in range(2))
        optimizer.step(loss=3.0)
    moved, tenth = one.detach() - start, other.detach() - start
    assert (moved.abs() > 1e-6).all()
    torch.testing.assert_close(tenth, 0.1 * moved, rtol=1e-9, atol=0)


# ---------------------------------------------------------------- lr 0


def as_lr(kind: str, value: float) -> Any:
    return {
        "float": value,
        "0-dim": torch.tensor(value, dtype=torch.float32),
        "one element": torch.tensor([value], dtype=torch.float64),
    }[kind]


def set_lr(group: dict[str, Any], value: float) -> None:
    """As a scheduler does."""
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(value)
    else:
        group["lr"] = value


KINDS = ["float", "0-dim", "one element"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", EVERY)
def test_a_group_with_lr_0_rests(name: str, kind: str) -> None:
    """At the start and in the middle: bitwise, in a model whose other half goes on."""
    model = net()
    first, second = halves(model)
    moving = 0.5
    optimizer = EVERY[name]([{"params": first, "lr": moving}, {"params": second, "lr": as_lr(kind, 0.0)}])
    untouched, other = own_state(optimizer, second), own_state(optimizer, first)
    train(model, optimizer, range(2))
    changed = different(untouched, own_state(optimizer, second))
    if kind == "float":
        assert changed == []
    else:  # start points are filled before the device says that lr is 0; they are filled with the parameter
        assert all(key[-1] in SLOTS_AT_START for key in changed)
    assert (0, "p") in different(other, own_state(optimizer, first))
    for group in groups_of(optimizer, second):
        set_lr(group, moving)
    train(model, optimizer, range(2, 4))
    assert (0, "p") in different(untouched, own_state(optimizer, second))
    for group in groups_of(optimizer, second):
        set_lr(group, 0.0)
    untouched, other = own_state(optimizer, second), own_state(optimizer, first)
    train(model, optimizer, range(4, 6))
    assert different(untouched, own_state(optimizer, second)) == []
    assert (0, "p") in different(other, own_state(optimizer, first))


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("name", EVERY)
def test_an_lr_tensor_gives_the_numbers_of_a_float(name: str, kind: str) -> None:
    """Both halves change their lr at different times, to 0 and back, with values that float32 holds exactly."""
    schedule = [(0.5, 0.5), (0.25, 0.0), (0.25, 0.5), (0.0, 0.5), (0.0, 0.0), (0.5, 0.25), (0.5, 0.125)]
    runs = []
    for used in ("float", kind):
        model = net()
        optimizer = EVERY[name]([{"params": half, "lr": as_lr(used, 0.5)} for half in halves(model)])
        for k, lrs in enumerate(schedule):
            for half, lr in zip(halves(model), lrs, strict=True):
                for group in groups_of(optimizer, half):
                    set_lr(group, lr)
            train(model, optimizer, range(k, k + 1))
        found = everything(optimizer)
        assert all(isinstance(g["lr"], torch.Tensor) == (used != "float") for g in optimizer.param_groups)
        runs.append({key: value for key, value in found.items() if key[-1] != "lr"})
    assert runs[0].keys() == runs[1].keys()
    for key, value in runs[0].items():  # up to the rounding of sums, in which resting tensors are zeros
        torch.testing.assert_close(runs[1][key], value, rtol=1e-11, atol=1e-15, msg=str(key))


@pytest.mark.parametrize("name", ["momo", "prodigy", "sgd"])
def test_gradients_of_a_resting_group_may_be_anything(name: str) -> None:
    runs = []
    for kind in ("float", "0-dim"):
        model = net()
        first, second = halves(model)
        optimizer = EVERY[name]([{"params": first, "lr": as_lr(kind, 0.5)}, {"params": second, "lr": as_lr(kind, 0.0)}])
        for k in range(3):
            optimizer.zero_grad()
            loss = loss_of(model, k)
            loss.backward()
            second[0].grad.fill_(torch.nan)
            optimizer.step(loss=loss)
        assert optimizer.metrics()["steps"] == 3
        assert optimizer.metrics()["skipped"] == 0
        runs.append(vector(model))
    assert torch.equal(*runs)
    assert not torch.equal(runs[0], vector(net()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", EVERY)
def test_lr_0_everywhere_changes_nothing(name: str, kind: str) -> None:
    model = net()
    optimizer = EVERY[name](model.parameters(), lr=as_lr(kind, 0.5))
    for at in range(2):
        for group in optimizer.param_groups:
            set_lr(group, 0.0)
        before = everything(optimizer)
        train(model, optimizer, range(2))
        optimizer.step(loss=torch.nan)  # nor is it a skipped step
        if kind == "float":
            optimizer.step()  # without a loss: torch.distributed.checkpoint does so
        allowed = SLOTS_AT_START if at == 0 and kind != "float" else set()
        assert [key for key in different(before, everything(optimizer)) if key[-1] not in allowed] == []
        assert optimizer.metrics()["steps"] == 3 * at
        for group in optimizer.param_groups:
            set_lr(group, 0.5)
        train(model, optimizer, range(3))
    assert optimizer.metrics()["steps"] == 6


@pytest.mark.parametrize("name", ["sgd", "prodigy", "momo"])
def test_a_group_that_is_replaced_counts(name: str) -> None:
    """Wrappers and users put new dicts into param_groups; their lr is the one to honour."""
    model = net()
    optimizer = EVERY[name](model.parameters(), lr=0.5)
    train(model, optimizer, range(2))
    before = vector(model)
    optimizer.param_groups[0] = dict(optimizer.param_groups[0], lr=1e-9)
    train(model, optimizer, range(2, 3))
    assert 0 < (vector(model) - before).norm() < 1e-7
    optimizer.param_groups = [dict(optimizer.param_groups[0], lr=0.5)]
    train(model, optimizer, range(2, 3))
    assert (vector(model) - before).norm() > 1e-3


@pytest.mark.parametrize("name", EVERY)
def test_a_warm_up_from_0_only_starts_later(name: str) -> None:
    """LambdaLR(0, 1, 1, ...) is the run that starts one batch later."""
    model, later = net(), net()
    warmed = EVERY[name](model.parameters())
    scheduler = LambdaLR(warmed, lambda k: float(k > 0))
    for k in range(4):
        train(model, warmed, range(k, k + 1))
        scheduler.step()
    plain = EVERY[name](later.parameters())
    train(later, plain, range(1, 4))
    assert different(everything(warmed), everything(plain)) == []


# ---------------------------------------------------------------- schedulers of torch

SCHEDULERS = {
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, T_max=8),
    "linear": lambda optimizer: LinearLR(optimizer, 0.5, 1.0, total_iters=3),
    "one cycle": lambda optimizer: OneCycleLR(optimizer, max_lr=0.5, total_steps=8, cycle_momentum=False),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", EVERY)
def test_schedulers_of_torch_set_the_multiplier(name: str, scheduler: str) -> None:
    model, other = net(), net()
    runs = []
    for driven in (True, False):
        model = net()
        optimizer = EVERY[name](model.parameters())
        dummy = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=optimizer.param_groups[0]["lr"])
        schedule = SCHEDULERS[scheduler](optimizer if driven else dummy)
        for k in range(5):
            if not driven:
                for group in optimizer.param_groups:
                    group["lr"] = dummy.param_groups[0]["lr"]
            train(model, optimizer, range(k, k + 1))
            schedule.step()
        runs.append(vector(model))
    assert torch.equal(*runs)
    assert not torch.allclose(runs[0], vector(other), rtol=1e-4)


@pytest.mark.parametrize("name", ["sgd", "adam", "momo", "momo_adam", "prodigy", "mechanic_adamw"])
def test_one_cycle_may_cycle_the_momentum(name: str) -> None:
    model = net()
    optimizer = EVERY[name](model.parameters())
    schedule = OneCycleLR(optimizer, max_lr=0.1, total_steps=6, base_momentum=0.5, max_momentum=0.75)
    used = []
    for k in range(4):
        group = optimizer.param_groups[0]
        used.append(group["betas"][0] if "betas" in group else group["momentum"])
        train(model, optimizer, range(k, k + 1))
        schedule.step()
    assert used[0] == 0.75
    assert min(used) < 0.51
    assert torch.isfinite(vector(model)).all()


# ---------------------------------------------------------------- parameters that come late or get no gradient


@pytest.mark.parametrize("name", EVERY)
def test_a_group_added_in_the_middle_joins_the_estimates(name: str) -> None:
    model = net()
    first, second = halves(model)
    optimizer = EVERY[name](first)
    train(model, optimizer, range(3))
    numbers = {key: value.clone() for key, value in optimizer.param_groups[0].items() if torch.is_tensor(value)}
    before, added = own_state(optimizer, first), [p.detach().clone() for p in second]
    optimizer.add_param_group({"params": second})
    group = optimizer.param_groups[1]
    per_group = {"cosine"} if name == "tam of the group" else set()
    for key, value in numbers.items():
        assert torch.equal(group[key], value) or key in per_group
        assert (group[key] is optimizer.param_groups[0][key]) or key in per_group
    assert different(before, own_state(optimizer, first)) == []
    assert {optimizer.state[p]["step"].item() for p in second} == {0.0}
    train(model, optimizer, range(3, 6))
    assert optimizer.metrics()["steps"] == 6
    assert {optimizer.state[p]["step"].item() for p in second} == {3.0}
    assert all((p != old).any() for p, old in zip(second, added, strict=True))
    assert torch.isfinite(vector(model)).all()
    for key in numbers.keys() - per_group:
        assert group[key] is optimizer.param_groups[0][key]


@pytest.mark.parametrize("name", EVERY)
def test_a_group_added_before_the_first_step_is_a_group_of_the_constructor(name: str) -> None:
    model, other = net(), net()
    first, second = halves(model)
    optimizer = EVERY[name](first)
    optimizer.add_param_group({"params": second, "lr": 0.25})
    train(model, optimizer, range(3))
    first, second = halves(other)
    whole = EVERY[name]([{"params": first}, {"params": second, "lr": 0.25}])
    train(other, whole, range(3))
    assert different(everything(optimizer), everything(whole)) == []


@pytest.mark.parametrize("name", EVERY)
def test_parameters_without_gradient_are_untouched(name: str) -> None:
    """The others take the steps of a model that never had them."""
    model, other = net(), net()
    spare = nn.Parameter(torch.ones(3, dtype=torch.float64))
    alone, beside = EVERY[name](other.parameters()), EVERY[name]([spare, *model.parameters()])
    untouched = [spare.detach().clone(), *(v.clone() for v in beside.state[spare].values())]
    assert train(other, alone, range(4)) == train(model, beside, range(4))
    assert torch.equal(vector(model), vector(other))
    assert all(map(torch.equal, untouched, [spare.detach(), *beside.state[spare].values()]))


@pytest.mark.parametrize("name", EVERY)
def test_a_first_gradient_that_comes_late(name: str) -> None:
    """It starts from where it stands then, and counts its own steps."""
    model = net()
    late = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = EVERY[name]([*model.parameters(), late])
    train(model, optimizer, range(3))
    with torch.no_grad():
        late.fill_(2.0)
    for k in range(3, 6):
        optimizer.zero_grad()
        loss = loss_of(model, k) + late.square().sum()
        loss.backward()
        optimizer.step(loss=loss)
    held = optimizer.state[late]
    assert held["step"].item() == 3
    assert (late < 2.0).all()
    for key in {"p0", "ref"} & held.keys():
        assert torch.equal(held[key], torch.full((3,), 2.0, dtype=torch.float64))


def test_adams_correction_counts_the_steps_of_the_tensor() -> None:
    """A tensor that joins at step 4 moves by lr in its first step, as in torch.optim.Adam."""
    late = nn.Parameter(torch.ones(3, dtype=torch.float64))
    model = net()
    optimizer = EVERY["adam"]([*model.parameters(), late], lr=0.25, weight_decay=0.0)
    train(model, optimizer, range(3))
    late.grad = torch.tensor([1.0, -2.0, 4.0], dtype=torch.float64)
    optimizer.step()
    torch.testing.assert_close(late.detach(), torch.tensor([0.75, 1.25, 0.75], dtype=torch.float64), rtol=1e-7, atol=0)


@pytest.mark.parametrize("name", EVERY)
def test_weights_loaded_after_construction_are_the_start(name: str) -> None:
    model, other = net(), net()
    early = EVERY[name](other.parameters())
    loaded = {key: value + 0.25 for key, value in model.state_dict().items()}
    model.load_state_dict(loaded)
    other.load_state_dict(loaded)
    late = EVERY[name](model.parameters())
    assert train(model, late, range(4)) == train(other, early, range(4))
    assert different(everything(late), everything(early)) == []


@pytest.mark.parametrize("name", EVERY)
def test_names_of_parameters_change_no_number(name: str) -> None:
    model, other = net(), net()
    plain, named = EVERY[name](list(model.parameters())), EVERY[name](list(other.named_parameters()))
    assert train(model, plain, range(3)) == train(other, named, range(3))
    assert different(everything(plain), everything(named)) == []


@pytest.mark.parametrize("name", EVERY)
def test_scalars_and_empty_tensors(name: str) -> None:
    """A 0-dim parameter moves like a one-element vector; an empty one is no obstacle."""
    scalar, one, empty = (nn.Parameter(t) for t in (torch.tensor(2.0), torch.tensor([2.0]), torch.ones(0)))
    optimizer = EVERY[name]([scalar, empty, one])
    path = [2.0]
    for k in range(3):
        scalar.grad, one.grad, empty.grad = torch.tensor(0.5 + k), torch.tensor([0.5 + k]), torch.ones(0)
        optimizer.step(loss=1.0)
        path.append(one.item())
    terms = 2.0 + sum(abs(after - before) for before, after in pairwise(path))
    assert_near(scalar.item(), one.item(), terms, unit=2.0**-24)  # by the reference and by a kernel, in float32
    assert scalar.item() != 2.0


@pytest.mark.parametrize("name", LOSS_DRIVEN)
def test_the_state_of_resting_tensors_leaves_the_model_of_the_loss(name: str) -> None:
    """Without their gradient the model of MoMo is that of the others alone, so nothing is counted twice."""
    model = net()
    optimizer = EVERY[name](model.parameters())
    train(model, optimizer, range(3))
    copied = twin(optimizer)
    for opt in (optimizer, copied):
        for p in opt.param_groups[0]["params"][3:]:
            p.grad = None
    with torch.no_grad():
        for p in copied.param_groups[0]["params"][3:]:
            p.fill_(100.0)  # what they hold cannot matter
    optimizer.step(loss=0.5)
    copied.step(loss=0.5)
    kept, others = (
        [value for key, value in sorted(everything(opt).items()) if key[0] == "group" or key[2] < 3]
        for opt in (optimizer, copied)
    )
    assert all(map(torch.equal, kept, others))

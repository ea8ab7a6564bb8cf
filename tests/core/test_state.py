"""Save, load, continue equals continue, bitwise, for every method and dtype policy; and what is refused."""

import copy
import io
import itertools
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint.state_dict as distributed
from problems import EVERY, different, everything, loss_of, net, train, vector
from torch import nn
from torch.distributed import checkpoint

import untuned

POLICIES: dict[str, tuple[torch.dtype, dict[str, Any], torch.dtype]] = {  # weights, options, slots
    "float64": (torch.float64, {}, torch.float64),
    "float32": (torch.float32, {}, torch.float32),
    "bfloat16": (torch.bfloat16, {}, torch.float32),
    "bfloat16 throughout": (torch.bfloat16, {"slot_dtype": torch.bfloat16}, torch.bfloat16),
}
SLOTS = {"exp_avg", "exp_avg_sq", "exp_avg_var", "exp_avg_diff", "momentum_buffer", "s", "p0", "z", "ref", "delta"}
SLOTS |= {"displacement"}
SLOTS |= {"gradient_avg"}
SLOTS |= {"grad_sum", "grad_sum_sq", "x0", "init_buffer", "previous_grad", "alpha", "gamma", "compensation"}


def two_groups(name: str, model: nn.Module, **options: Any) -> untuned.Optimizer:
    params = list(model.parameters())
    lr = 0.5 * float(EVERY[name](params[:1]).param_groups[0]["lr"])
    return EVERY[name]([{"params": params[:2]}, {"params": params[2:], "lr": lr}], **options)


def saved(optimizer: untuned.Optimizer) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def expected_dtype(key: str, slots: torch.dtype) -> torch.dtype:
    """Mechanic's delta adds up all steps: never below float32."""
    if key == "delta":
        return torch.promote_types(slots, torch.float32)
    return slots if key in SLOTS else torch.float32 if key == "step" else torch.float64


# ---------------------------------------------------------------- what there is


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", EVERY)
def test_state_exists_when_it_is_asked_for_and_is_keyed_by_parameters(name: str, policy: str) -> None:
    dtype, options, slots = POLICIES[policy]
    model = net(dtype)
    optimizer = two_groups(name, model, **options)
    assert not optimizer.state
    for make in (optimizer.state_dict, lambda: train(model, optimizer, range(3))):
        make()
        assert list(optimizer.state) == [p for group in optimizer.param_groups for p in group["params"]]
        assert optimizer.state.keys() == {*model.parameters()}
        for p, held in optimizer.state.items():
            assert {key: value.dtype for key, value in held.items()} == {
                key: expected_dtype(key, slots) for key in held
            }
            assert all(value.shape == (p.shape if key in SLOTS else ()) for key, value in held.items())
        for group in optimizer.param_groups:
            assert all(v.dtype == torch.float64 for v in group.values() if isinstance(v, torch.Tensor))


@pytest.mark.parametrize("name", EVERY)
def test_numbers_are_visible_and_one_object_in_all_groups(name: str) -> None:
    model = net()
    optimizer = two_groups(name, model)
    file = io.BytesIO()
    torch.save(optimizer, file)
    file.seek(0)
    for opt in (
        optimizer,
        copy.deepcopy(optimizer),
        pickle.loads(pickle.dumps(optimizer)),
        torch.load(file, weights_only=False),
    ):
        for steps in (range(0), range(2)):
            for k in steps:
                for p in opt.state:
                    p.grad = torch.full_like(p, 0.5 + k)
                opt.step(loss=1.0)
            one, *others = opt.param_groups
            numbers = [key for key, value in one.items() if isinstance(value, torch.Tensor)]
            assert {"steps", "skipped"} <= set(numbers)
            for key in numbers:
                assert all(one[key] is other[key] for other in others) or (
                    name == "tam of the group" and key == "cosine"
                )


def test_the_estimates_users_log_are_in_the_groups() -> None:
    keys = {
        "prodigy": {"d", "d_max"},
        "dadapt_adam": {"d"},
        "momo": {"loss_avg", "lower_bound", "theta"},
        "mechanic_sgd": {"mechanic_S", "mechanic_s"},
    }
    for name, wanted in keys.items():
        assert wanted <= EVERY[name](net().parameters()).param_groups[0].keys()


# ---------------------------------------------------------------- resume


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", EVERY)
def test_resume_is_bitwise(name: str, policy: str) -> None:
    """Through a file, into a new optimizer over copied parameters."""
    dtype, options, slots = POLICIES[policy]
    model = net(dtype)
    optimizer = two_groups(name, model, **options)
    train(model, optimizer, range(3))
    other = copy.deepcopy(model)
    resumed = two_groups(name, other, **options)
    state = saved(optimizer)
    resumed.load_state_dict(state)
    assert different(everything(optimizer), everything(resumed)) == []
    assert optimizer.metrics().keys() == resumed.metrics().keys()
    for held in state["state"].values():
        for value in held.values():
            value.fill_(torch.nan)  # what was loaded is a copy
    assert train(model, optimizer, range(3, 6)) == train(other, resumed, range(3, 6))
    assert different(everything(optimizer), everything(resumed)) == []
    for held in resumed.state.values():
        assert {key: value.dtype for key, value in held.items()} == {key: expected_dtype(key, slots) for key in held}


@pytest.mark.parametrize("name", EVERY)
def test_resume_before_the_first_step_and_after_a_rollback(name: str) -> None:
    model = net()
    optimizer = two_groups(name, model)
    other = copy.deepcopy(model)
    fresh = two_groups(name, other)
    fresh.load_state_dict(saved(optimizer))
    early, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model.state_dict())
    losses = train(model, optimizer, range(3))
    assert train(other, fresh, range(3)) == losses
    end = everything(optimizer)
    model.load_state_dict(weights)
    optimizer.load_state_dict(early)  # the same object, back to the start
    assert train(model, optimizer, range(3)) == losses
    assert different(end, everything(optimizer)) == []


@pytest.mark.parametrize("name", ["prodigy", "momo_adam", "mechanic on tam"])
def test_numbers_that_came_apart_on_the_way_are_one_object_again(name: str) -> None:
    """Tools that move a state dict between devices or processes copy every entry of every group on its own."""
    optimizer = two_groups(name, net())
    state = optimizer.state_dict()
    state["param_groups"] = [copy.deepcopy(group) for group in state["param_groups"]]
    optimizer.load_state_dict(state)
    one, other = optimizer.param_groups
    numbers = [key for key, value in one.items() if isinstance(value, torch.Tensor)]
    assert len(numbers) >= 4
    assert all(one[key] is other[key] for key in numbers)


def test_a_rollback_forgets_recorded_losses() -> None:
    model = net()
    optimizer = EVERY["momo"](model.parameters())
    optimizer.record_loss(1e6)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, range(1))
    assert optimizer.metrics()["loss_avg"] < 1.0


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
@pytest.mark.parametrize("name", EVERY)
def test_copies_continue_bitwise(name: str, copy_of: Any) -> None:
    model = net(torch.float32)
    optimizer = two_groups(name, model)
    train(model, optimizer, range(3))
    other, copied = copy_of((model, optimizer))
    assert repr(copied) == repr(optimizer)
    assert copied.defaults == optimizer.defaults
    assert train(model, optimizer, range(3, 6)) == train(other, copied, range(3, 6))
    assert different(everything(optimizer), everything(copied)) == []
    copied.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    assert copied.param_groups[-1].keys() == optimizer.param_groups[-1].keys()


@pytest.mark.parametrize("name", EVERY)
def test_the_groups_of_a_checkpoint_win(name: str) -> None:
    """As in torch: lr and the like are those that were saved."""
    model = net()
    optimizer = two_groups(name, model)
    optimizer.param_groups[0]["lr"] = 0.125
    other = EVERY[name]([{"params": list(net().parameters())[:2]}, {"params": list(net().parameters())[2:]}])
    other.load_state_dict(saved(optimizer))
    assert other.param_groups[0]["lr"] == 0.125
    assert [g.keys() for g in other.param_groups] == [g.keys() for g in optimizer.param_groups]


@pytest.mark.parametrize("name", ["prodigy", "momo_adam", "mechanic on tam", "schedule_free_sgd"])
def test_what_an_old_checkpoint_lacks_is_filled(name: str) -> None:
    model = net()
    optimizer = two_groups(name, model)
    train(model, optimizer, range(2))
    state = saved(optimizer)
    lost = [key for key in state["param_groups"][0] if key not in ("params", "lr")]
    for group in state["param_groups"]:
        for key in lost:
            del group[key]
    fresh = two_groups(name, copy.deepcopy(model))
    defaults = {key: copy.deepcopy(fresh.param_groups[0][key]) for key in lost}
    fresh.load_state_dict(state)
    for key in lost:
        assert repr(fresh.param_groups[0][key]) == repr(defaults[key])
    for p in fresh.state:
        p.grad = torch.ones_like(p)
    fresh.step(loss=1.0)
    assert fresh.metrics()["steps"] == 1
    assert fresh.param_groups[0]["steps"] is fresh.param_groups[1]["steps"]


# ---------------------------------------------------------------- refusals


FOREIGN = [("adamw", "prodigy"), ("prodigy", "dadapt_adam"), ("sgd", "mechanic_sgd"), ("adam", "adamw")]


@pytest.mark.parametrize(("by", "into"), FOREIGN)
def test_the_checkpoint_of_another_method_is_refused(by: str, into: str) -> None:
    model = net()
    optimizer = EVERY[by](model.parameters())
    train(model, optimizer, range(2))
    other = net()
    loading = EVERY[into](other.parameters())
    train(other, loading, range(2))
    before = everything(loading)
    sentence = re.escape(
        f"another method saved this checkpoint, {optimizer.recipe.method}, not {loading.recipe.method}."
    )
    with pytest.raises(ValueError, match=sentence):
        loading.load_state_dict(saved(optimizer))
    assert different(before, everything(loading)) == []
    assert train(other, loading, range(2, 3)) != []


@pytest.mark.parametrize(("foreign", "named"), [(torch.optim.AdamW, "has no 'rho'"), (torch.optim.SGD, "no state")])
def test_the_checkpoint_of_torch_is_refused_in_words(foreign: Any, named: str) -> None:
    model = net()
    optimizer = foreign(model.parameters(), lr=0.1)
    loss_of(model, 0).backward()
    optimizer.step()
    ours = EVERY["adamw"](model.parameters())
    before = everything(ours)
    there_is_a_way = r"\. If another package saved it, go on with untuned\.migrate\(optimizer, state_dict\)\.$"
    with pytest.raises(ValueError, match=rf"^AdamW: this checkpoint (has )?{named}.*{there_is_a_way}"):
        ours.load_state_dict(optimizer.state_dict())
    assert different(before, everything(ours)) == []


def cut(state: dict[str, Any], how: str) -> Any:
    if how == "a parameter's state":
        del state["state"][3]
    elif how == "all state":
        state["state"] = {}
    elif how == "a slot":
        del state["state"][5]["exp_avg"]
    elif how == "a counter":
        del state["state"][5]["step"]
    elif how == "a group":
        del state["param_groups"][1]
    elif how == "parameters":
        del state["param_groups"][1]["params"][-1]
    elif how == "a shape":
        state["state"][0]["exp_avg_sq"] = torch.ones(2, 2)
    elif how == "groups":
        del state["param_groups"]
    return state


@pytest.mark.parametrize(
    "how",
    ["a parameter's state", "all state", "a slot", "a counter", "a group", "parameters", "a shape", "groups"],
)
def test_a_cut_checkpoint_is_refused_and_nothing_changes(how: str) -> None:
    model = net()
    optimizer = two_groups("prodigy", model)
    train(model, optimizer, range(3))
    state = cut(copy.deepcopy(optimizer.state_dict()), how)
    train(model, optimizer, range(3, 5))
    before, groups = everything(optimizer), copy.deepcopy([list(g) for g in optimizer.param_groups])
    with pytest.raises(ValueError, match=r"checkpoint|state dict"):
        optimizer.load_state_dict(state)
    assert different(before, everything(optimizer)) == []
    assert [list(g) for g in optimizer.param_groups] == groups
    twin = copy.deepcopy((model, optimizer))
    assert train(model, optimizer, range(5, 6)) == train(*twin, range(5, 6))


@pytest.mark.parametrize("wrong", [None, 3, [], {"state": {}}])
def test_what_is_no_state_dict_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="SGD: a state dict has the keys 'state' and 'param_groups'; this one has not"):
        EVERY["sgd"](net().parameters()).load_state_dict(wrong)


# ---------------------------------------------------------------- torch.distributed.checkpoint


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("name", EVERY)
def test_distributed_state_dicts_are_exact(name: str, steps: int, flat: bool) -> None:
    """get and set, before and after the first step, on fresh optimizers; neither is a step."""
    options = distributed.StateDictOptions(flatten_optimizer_state_dict=flat)
    model = net()
    optimizer = two_groups(name, model)
    train(model, optimizer, range(steps))
    optimizer.zero_grad()
    before = everything(optimizer)
    got = distributed.get_optimizer_state_dict(model, optimizer, options=options)
    assert different(before, everything(optimizer)) == []
    assert all(isinstance(key, str) for key in (got if flat else got["state"]))
    file = io.BytesIO()
    torch.save(got, file)
    file.seek(0)
    other = copy.deepcopy(model)
    other.zero_grad()
    fresh = two_groups(name, other)
    distributed.set_optimizer_state_dict(other, fresh, torch.load(file, weights_only=True), options=options)
    assert different(before, everything(fresh)) == []
    one, *others = fresh.param_groups
    for key, value in one.items():  # one object again, though each group of the checkpoint has its own
        if isinstance(value, torch.Tensor) and name != "tam of the group":
            assert all(value is other[key] for other in others)
    assert train(model, optimizer, range(3, 6)) == train(other, fresh, range(3, 6))
    assert different(everything(optimizer), everything(fresh)) == []


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("name", ["prodigy", "mechanic on momo_adam", "schedule_free_adamw"])
def test_a_distributed_checkpoint_on_disk_is_exact(name: str, flat: bool, tmp_path: Path) -> None:
    """load() fills the tensors of a fresh optimizer in place; setting the state dict makes that a state."""
    options = distributed.StateDictOptions(flatten_optimizer_state_dict=flat)
    model, other = net(), net()
    optimizer, fresh = two_groups(name, model), two_groups(name, other)
    train(model, optimizer, range(3))
    optimizer.zero_grad()
    got = distributed.get_state_dict(model, optimizer, options=options)
    checkpoint.save(dict(zip(("model", "optimizer"), got, strict=True)), checkpoint_id=tmp_path)
    read = dict(zip(("model", "optimizer"), distributed.get_state_dict(other, fresh, options=options), strict=True))
    checkpoint.load(read, checkpoint_id=tmp_path)
    distributed.set_state_dict(
        other, fresh, model_state_dict=read["model"], optim_state_dict=read["optimizer"], options=options
    )
    assert different(everything(optimizer), everything(fresh)) == []
    assert train(model, optimizer, range(3, 6)) == train(other, fresh, range(3, 6))
    assert different(everything(optimizer), everything(fresh)) == []


@pytest.mark.parametrize("flat", [False, True])
def test_distributed_state_dicts_with_weights_that_need_no_gradient(flat: bool) -> None:
    options = distributed.StateDictOptions(flatten_optimizer_state_dict=flat)
    model = net()
    model[0].weight.requires_grad_(False)
    optimizer = EVERY["prodigy"](model.parameters())
    train(model, optimizer, range(3))
    got = distributed.get_optimizer_state_dict(model, optimizer, options=options)
    other = copy.deepcopy(model)
    fresh = EVERY["prodigy"](other.parameters())
    distributed.set_optimizer_state_dict(other, fresh, got, options=options)
    assert train(model, optimizer, range(3, 6)) == train(other, fresh, range(3, 6))
    assert different(everything(optimizer), everything(fresh)) == []


# ---------------------------------------------------------------- models that change under the optimizer


@pytest.mark.parametrize("name", EVERY)
def test_a_model_converted_after_construction(name: str) -> None:
    """Before the first step a conversion is as good as a conversion before construction."""
    model, other = net(torch.float32), net(torch.float32).to(torch.float64)
    early = EVERY[name](model.parameters())
    model.to(torch.float64)
    late = EVERY[name](other.parameters())
    assert train(model, early, range(3)) == train(other, late, range(3))
    assert different(everything(early), everything(late)) == []


# Signs and D-Adaptation's early growth turn the rounding of the weights into other steps.
@pytest.mark.parametrize(
    "name", [name for name in EVERY if name not in ("dadapt_lion", "dadapt_adan", "dadapt_adagrad")]
)
def test_a_model_converted_in_the_middle(name: str) -> None:
    model = net(torch.float64)
    optimizer = EVERY[name](model.parameters())
    train(model, optimizer, range(3))
    before = everything(optimizer)
    model.to(torch.bfloat16)
    train(model, optimizer, range(3, 4))
    for held in optimizer.state.values():
        assert {key: v.dtype for key, v in held.items()} == {k: expected_dtype(k, torch.float32) for k in held}
    model.to(torch.float64)
    train(model, optimizer, range(4, 6))
    for held in optimizer.state.values():
        assert {key: v.dtype for key, v in held.items()} == {k: expected_dtype(k, torch.float64) for k in held}
        assert held["step"].item() == 6
    straight = net(torch.float64)
    train(straight, EVERY[name](straight.parameters()), range(6))
    assert (vector(model) - vector(straight)).norm() < 0.1 * (vector(straight) - vector(net())).norm()
    assert before.keys() == everything(optimizer).keys()


@pytest.mark.parametrize("name", EVERY)
def test_half_precision_weights_follow_the_float64_run(name: str) -> None:
    """The slots are float32, so the first steps agree to the rounding of the weights."""
    exact, half = net(torch.float64), net(torch.bfloat16)
    with torch.no_grad():
        for p, q in zip(exact.parameters(), half.parameters(), strict=True):
            p.copy_(q)
    optimizer, lower = EVERY[name](exact.parameters()), EVERY[name](half.parameters())
    start = vector(exact)
    for k in range(2):
        optimizer.zero_grad()
        loss = loss_of(exact, k)
        loss.backward()
        for p, q in zip(exact.parameters(), half.parameters(), strict=True):
            q.grad = p.grad.to(torch.bfloat16)
        optimizer.step(loss=loss)
        lower.step(loss=loss)
    resolution = 2.0**-8 * start.abs().max()
    moved = (vector(exact) - start).abs().max()
    assert (vector(half) - vector(exact)).abs().max() < 2 * resolution + 0.1 * moved


def test_layouts_of_slots_follow_the_parameter() -> None:
    conv = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    optimizer = EVERY["prodigy"](conv.parameters())
    optimizer.state_dict()  # makes the slots
    assert conv.weight.stride() != (36, 9, 3, 1)
    for key in ("exp_avg", "exp_avg_sq", "s", "p0"):
        assert optimizer.state[conv.weight][key].stride() == conv.weight.stride()


def test_checkpoints_of_methods_with_other_state_are_refused() -> None:
    optimizers = {name: build(net().parameters()) for name, build in EVERY.items()}
    for one, other in itertools.permutations(EVERY, 2):
        if optimizers[one].recipe != optimizers[other].recipe:
            with pytest.raises(ValueError, match="another method saved"):
                optimizers[other].load_state_dict(optimizers[one].state_dict())


@pytest.mark.parametrize("name", ["adamw", "prodigy", "mechanic_adamw", "momo"])
def test_frozen_parameters_cost_nothing_until_they_are_trained(name: str) -> None:
    model = net()
    frozen = list(model.parameters())[:2]
    for p in frozen:
        p.requires_grad_(False)
    optimizer = EVERY[name](model.parameters())
    train(model, optimizer, range(2))
    assert not any(p in optimizer.state for p in frozen)
    assert optimizer.metrics()["lr_effective"] > 0
    other = net()
    for p in list(other.parameters())[:2]:
        p.requires_grad_(False)
    resumed = EVERY[name](other.parameters())
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(saved(optimizer))
    for one in (model, other):
        one.requires_grad_(True)
    assert train(model, optimizer, range(2, 5)) == train(other, resumed, range(2, 5))
    assert different(everything(optimizer), everything(resumed)) == []
    assert all(optimizer.state[p]["step"].item() == 3 for p in frozen)
    entirely = EVERY[name]([{"params": [nn.Parameter(torch.ones(2), requires_grad=False)]}])
    assert entirely.metrics()["lr_effective"] == 0.0


def test_entries_of_no_parameter_are_left_alone() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = untuned.Prodigy([p])
    p.grad = torch.ones(3)
    optimizer.step()
    optimizer.state["global"] = {"x": 1}
    assert copy.deepcopy(optimizer).state["global"] == {"x": 1}
    saved = optimizer.state_dict()
    saved["state"][9] = {"a": 1}
    optimizer.load_state_dict(saved)
    optimizer.step()
    assert optimizer.metrics()["steps"] == 2


def test_sparse_numbers_are_refused() -> None:
    optimizer = untuned.Prodigy([torch.nn.Parameter(torch.ones(3))])
    saved = optimizer.state_dict()
    saved["param_groups"][0]["d"] = torch.tensor(1.0).to_sparse()
    with pytest.raises(TypeError, match="'d' of a group must be a number"):
        optimizer.load_state_dict(saved)

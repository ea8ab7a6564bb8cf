"""Runs begun with torch.optim and continued here, and checkpoints that are refused."""

import copy
import io

import problems
import pytest
import torch

import untuned
from untuned.migration import migrate


def begun(cls, dtype=torch.float64, steps=20, cut=False, **options):
    """A run of torch.optim."""
    model = problems.net(dtype)
    params = list(model.parameters())
    optimizer = cls([{"params": params[:2]}, {"params": params[2:], "lr": 0.02}] if cut else params, **options)
    train(model, optimizer, range(steps))
    return model, optimizer


def train(model, optimizer, steps):
    for k in steps:
        optimizer.zero_grad()
        problems.loss_of(model, k).backward()
        optimizer.step()


def through_a_file(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize(
    ("name", "cls", "options", "shape"),
    [
        ("sgd", torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.01}, {}),
        ("sgd", torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}, {"momentum": 0.5}),
        ("sgd", torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}, {"momentum": 0.5, "nesterov": True}),
        ("sgd", torch.optim.SGD, {"lr": 0.1, "dampening": 0.5}, {"momentum": 0.5}),
        ("adam", torch.optim.Adam, {"lr": 0.05, "betas": (0.5, 0.9), "weight_decay": 0.01}, {}),
        ("adamw", torch.optim.AdamW, {"lr": 0.05, "eps": 1e-3, "weight_decay": 0.1}, {}),
        ("adam", torch.optim.Adam, {"lr": 0.05, "maximize": True}, {"maximize": True}),
    ],
)
def test_run_goes_on(name, cls, options, shape, cut):
    theirs, reference = begun(cls, cut=cut, **options)
    ours = copy.deepcopy(theirs)
    mine = dict(zip(theirs.parameters(), ours.parameters(), strict=True))
    groups = [{"params": [mine[p] for p in g["params"]]} for g in reference.param_groups]
    optimizer = untuned.create(groups, name, **shape)
    migrate(optimizer, through_a_file(reference.state_dict()))
    before = problems.vector(ours)
    train(theirs, reference, range(20, 40))
    train(ours, optimizer, range(20, 40))
    assert (problems.vector(ours) - before).abs().max() > 1e-2
    torch.testing.assert_close(problems.vector(ours), problems.vector(theirs), rtol=0, atol=1e-12)
    assert [g["lr"] for g in optimizer.param_groups] == [g["lr"] for g in reference.param_groups]
    if cls is not torch.optim.SGD:
        assert optimizer.metrics()["steps"] == 40


def test_tensor_without_state_starts_where_it_would_have_started():
    theirs = problems.net()
    last = [theirs[-1].weight, theirs[-1].bias]
    reference = torch.optim.Adam(theirs.parameters(), lr=0.05)
    for p in last:
        p.requires_grad_(False)
    train(theirs, reference, range(20))
    ours = copy.deepcopy(theirs)
    optimizer = untuned.Adam(ours.parameters())
    migrate(optimizer, reference.state_dict())
    for p in (*last, ours[-1].weight, ours[-1].bias):
        p.requires_grad_(True)
    train(theirs, reference, range(20, 40))
    train(ours, optimizer, range(20, 40))
    torch.testing.assert_close(problems.vector(ours), problems.vector(theirs), rtol=0, atol=1e-12)
    assert [optimizer.state[p]["step"].item() for p in ours.parameters()] == [40] * 4 + [20] * 2


def test_migrated_state_is_as_declared_and_shares_nothing():
    """bfloat16 averages become float32 ones, and what is migrated is saved and loaded as if it had begun here."""
    model, reference = begun(torch.optim.AdamW, torch.bfloat16, lr=0.05)
    theirs = reference.state_dict()
    optimizer = untuned.AdamW(model.parameters())
    migrate(optimizer, theirs)
    for i, held in enumerate(optimizer.state.values()):
        assert {key: v.dtype for key, v in held.items() if key != "compensation"} == {
            "step": torch.float32,
            "rho": torch.float64,
            "exp_avg": torch.float32,
            "exp_avg_sq": torch.float32,
        }
        assert torch.equal(held["exp_avg"], theirs["state"][i]["exp_avg"].float())
    twin = untuned.AdamW(copy.deepcopy(model).parameters())
    twin.load_state_dict(through_a_file(optimizer.state_dict()))
    assert not problems.different(problems.everything(optimizer), problems.everything(twin))
    before = copy.deepcopy(theirs["state"])
    train(model, optimizer, range(20, 22))
    assert all(torch.equal(v, before[i][k]) for i, held in theirs["state"].items() for k, v in held.items())


def test_checkpoint_of_no_step_is_a_fresh_start():
    model, reference = begun(torch.optim.SGD, steps=0, lr=0.1, momentum=0.9)
    optimizer = untuned.SGD(model.parameters(), momentum=0.5)
    migrate(optimizer, reference.state_dict())
    assert optimizer.metrics()["steps"] == 0
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]) == (0.1, 0.9)


ADAM, SGD = torch.optim.Adam, torch.optim.SGD
NO_AMSGRAD = "this optimizer has amsgrad=False: no option here does it, so the run can only go on where it began"


@pytest.mark.parametrize(
    ("saved", "name", "options", "message"),
    [
        (begun(ADAM, lr=0.1, amsgrad=True), "adam", {}, f"amsgrad=True, {NO_AMSGRAD}"),
        (begun(ADAM, steps=0, lr=0.1, amsgrad=True), "adam", {}, f"amsgrad=True, {NO_AMSGRAD}"),
        (
            begun(ADAM, lr=0.1),
            "adamw",
            {},
            "the run has decoupled_weight_decay=False, this optimizer has decoupled_weight_decay=True: it is True of "
            r"AdamW and False of Adam, so migrate into the other of them\.$",
        ),
        (
            begun(ADAM, lr=0.1),
            "adam",
            {"maximize": True},
            r"the run has maximize=False, this optimizer has maximize=True: build it with maximize=False\.$",
        ),
        (
            begun(torch.optim.RAdam, lr=0.1),
            "adam",
            {},
            r"not a checkpoint of torch.optim.Adam: a group has no 'amsgrad'",
        ),
        (begun(SGD, lr=0.1), "adam", {}, r"not a checkpoint of torch.optim.Adam: a group has no 'amsgrad'"),
        (begun(SGD, lr=0.1, momentum=0.9), "sgd", {}, "momentum=0.9, .* has momentum=0: build it with momentum=0.9"),
        (
            begun(SGD, lr=0.1, momentum=0.9, nesterov=True),
            "sgd",
            {"momentum": 0.9},
            "nesterov=True, .*: build it with nesterov=True",
        ),
        (begun(SGD, lr=0.1), "momo", {}, r"not a checkpoint of momo.Momo: its state has no 'step_size_list'"),
        (begun(ADAM, lr=0.1), "prodigy", {}, r"not a checkpoint of prodigyopt.Prodigy: a group has no 'beta3'"),
        (begun(ADAM, lr=0.1, cut=True), "adam", {}, r"groups of \[2, 4\] parameters, the optimizer of \[6\]"),
        (begun(ADAM, lr=0.1), "tam", {}, r"TAM: migrate\(\) is for SGD, "),
    ],
)
def test_foreign_run_is_refused_and_nothing_changes(saved, name, options, message):
    model, reference = saved
    optimizer = untuned.create(list(model.parameters()), name, **options)
    before, groups = problems.everything(optimizer), copy.deepcopy(optimizer.state_dict()["param_groups"])
    with pytest.raises(ValueError, match=message):
        migrate(optimizer, reference.state_dict())
    assert not problems.different(problems.everything(optimizer), before)
    assert optimizer.state_dict()["param_groups"] == groups


def as_prodigyopt_keeps_it(optimizer, slice_p):
    """What prodigyopt 1.1 would save of this run: flat slices, one numerator, options in the group."""
    saved = optimizer.state_dict()
    [group] = saved["param_groups"]
    states = {i: {k: held[k] for k in ("step", "exp_avg", "exp_avg_sq")} for i, held in saved["state"].items()}
    for i, held in saved["state"].items():
        states[i] |= {"s": held["s"].flatten(), "p0": held["p0"].flatten()}
    keys = ("params", "lr", "betas", "beta3", "eps", "weight_decay", "d0", "d_coef", "growth_rate")
    theirs = {k: group[k] for k in keys} | {"beta3": None, "slice_p": slice_p, "decouple": True}
    theirs |= {"use_bias_correction": False, "safeguard_warmup": False, "d": float(group["d"])}
    theirs |= {"d_max": float(group["d_max"]), "k": 20}
    theirs["d_numerator"] = float(sum(held["d_numerator"] for held in saved["state"].values()))
    return {"state": states, "param_groups": [theirs]}


@pytest.mark.parametrize("slice_p", [1, 2, 11])
def test_prodigy_goes_on_with_its_slices_and_is_refused_with_others(slice_p):
    model = problems.net()
    reference = untuned.Prodigy(model.parameters(), d0=1e-2, slice_p=slice_p)
    train(model, reference, range(20))
    saved = as_prodigyopt_keeps_it(reference, slice_p)
    ours = copy.deepcopy(model)
    optimizer = untuned.Prodigy(ours.parameters(), slice_p=slice_p)
    migrate(optimizer, saved)
    for held, expected in zip(optimizer.state.values(), reference.state.values(), strict=True):
        assert all(torch.equal(held[key], expected[key]) for key in ("s", "p0", "exp_avg", "exp_avg_sq"))
    before = problems.vector(ours)
    for net, opt in ((model, reference), (ours, optimizer)):
        train(net, opt, range(20, 40))
    assert (problems.vector(ours) - before).abs().max() > 1e-2
    torch.testing.assert_close(problems.vector(ours), problems.vector(model), rtol=0, atol=1e-12)
    other = untuned.Prodigy(ours.parameters(), slice_p=slice_p + 1)
    sentence = (
        f"^Prodigy: the run has slice_p={slice_p}, this optimizer has slice_p={slice_p + 1}: "
        rf"build it with slice_p={slice_p}\.$"
    )
    with pytest.raises(ValueError, match=sentence):
        migrate(other, saved)


def test_what_load_state_dict_advises_works():
    model, reference = begun(ADAM, lr=0.1)
    optimizer = untuned.Adam(model.parameters())
    with pytest.raises(ValueError, match=r"go on with untuned\.migrate\(optimizer, state_dict\)\.$"):
        optimizer.load_state_dict(reference.state_dict())
    untuned.migrate(optimizer, reference.state_dict())
    assert optimizer.metrics()["steps"] == 20
    with pytest.raises(ValueError, match=r"Load it into the optimizer that saved it\.$"):  # one of ours is no other's
        untuned.AdamW(model.parameters()).load_state_dict(optimizer.state_dict())


def test_other_refusals_change_nothing():
    model, reference = begun(ADAM, lr=0.1)
    optimizer = untuned.Adam([torch.nn.Parameter(torch.zeros_like(p.flatten())) for p in model.parameters()])
    before = problems.everything(optimizer)
    with pytest.raises(ValueError, match=r"'exp_avg' of parameter 0 has shape \(4, 3\) in this checkpoint"):
        migrate(optimizer, reference.state_dict())
    with pytest.raises(ValueError, match=r"it has no 'param_groups'"):
        migrate(optimizer, {"state": {}})
    wrong = copy.deepcopy(reference.state_dict())
    wrong["param_groups"][0]["betas"] = (0.9, 1.0)
    with pytest.raises(ValueError, match="Adam: betas must be two numbers in"):
        migrate(optimizer, wrong)
    del wrong["state"][3]["step"]
    with pytest.raises(ValueError, match="the state of parameter 3 has no 'step'"):
        migrate(optimizer, wrong)
    assert not problems.different(problems.everything(optimizer), before)
    optimizer = untuned.Adam(model.parameters())
    train(model, optimizer, range(1))
    with pytest.raises(ValueError, match="has taken steps already"):
        migrate(optimizer, reference.state_dict())

"""MomentumDecay and LargerSteps: what they set, their warning, their checkpoints, their refusals."""

import math
import warnings
from typing import Any

import pytest
import torch
from problems import EVERY, different, everything, net, train
from torch import nn

import untuned
from untuned.schedules import LargerSteps, LinearDecay, MomentumDecay


def spa(**options: Any) -> untuned.Optimizer:
    return untuned.SGDSPA([nn.Parameter(torch.ones(1))], **{"lr": 2.0, "execution": "reference"} | options)


def used(optimizer: torch.optim.Optimizer, schedules: list[Any], steps: int, key: str) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(float(optimizer.param_groups[0][key]))
        optimizer.step()
        for schedule in schedules:
            schedule.step()
    return found


@pytest.mark.parametrize(
    ("shape", "shares"),
    [("linear", [0, 1 / 4, 2 / 4, 3 / 4, 1, 1, 1]), ("cosine", [0, (1 - math.sqrt(0.5)) / 2, 0.5, None, 1, 1, 1])],
)
def test_c_falls_from_its_own_value_to_the_final_one_and_stays(shape: str, shares: list[float | None]) -> None:
    optimizer = spa(momentum=0.6)
    found = used(optimizer, [MomentumDecay(optimizer, 5, final_c=0.1, shape=shape)], len(shares), "momentum")
    for momentum, share in zip(found, shares, strict=True):
        assert share is None or momentum == pytest.approx(0.6 + 0.3 * share, abs=1e-15)
    assert found == sorted(found)
    assert optimizer.param_groups[0]["lr"] == 2.0


def test_every_group_keeps_its_own_start() -> None:
    groups = [{"params": [nn.Parameter(torch.ones(1))], "momentum": m} for m in (0.0, 0.9)]
    optimizer = untuned.SGDSPA(groups)
    schedule = MomentumDecay(optimizer, 3, final_c=0.05)
    optimizer.step()
    schedule.step()
    assert [group["momentum"] for group in optimizer.param_groups] == pytest.approx([0.475, 0.925], abs=1e-15)
    assert schedule.get_last_lr() == [0.1, 0.1]


@pytest.mark.parametrize("order", [1, -1])
def test_beside_a_schedule_of_lr(order: int) -> None:
    optimizer = spa()
    factors = [1 - k / 40 for k in range(20)]
    schedules = [
        MomentumDecay(optimizer, 20, lr_factors=factors),
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1 - k / 40),
    ]
    lrs = used(optimizer, schedules[::order], 20, "lr")
    assert lrs == pytest.approx([2 * factor for factor in factors])
    assert optimizer.param_groups[0]["momentum"] == pytest.approx(0.99)


def warned(build: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        build()
    assert all(entry.filename == __file__ for entry in caught)
    return [str(entry.message) for entry in caught]


DROP = [1.0] * 5 + [0.1] * 5
SENTENCE = (
    "MomentumDecay: at {} descent is not guaranteed where losses are as curved as 1 / lr; "
    "let c and lr change more slowly there."
)


@pytest.mark.parametrize(
    ("momentum", "options", "where"),
    [
        (0.9, {"total_steps": 10, "final_c": 1e-6}, None),  # however deep it falls
        (0.9, {"total_steps": 2, "final_c": 0.01}, None),  # and however suddenly
        (
            0.99,
            {"total_steps": 10, "final_c": 0.1, "shape": "cosine"},
            "7 steps from 1 to 7",
        ),  # 1 / c falls > 1
        (0.99, {"total_steps": 400, "final_c": 0.1}, "22 steps from 1 to 22"),  # c^2 below 0.09 / 399
        (0.9, {"total_steps": 2, "final_c": 1.0}, "step 1"),
        (0.9, {"total_steps": 4000, "final_c": 0.11}, None),  # c may rise slowly
        (0.9, {"total_steps": 10, "final_c": 0.1, "lr_factors": DROP}, "step 4"),
        (0.9, {"total_steps": 10, "final_c": 0.1, "lr_factors": [0.91**k for k in range(10)]}, None),
        (0.9, {"total_steps": 10, "final_c": 0.1, "lr_factors": [0.8**k for k in range(10)]}, "8 steps from 1 to 8"),
    ],
)
def test_one_sentence_warns_where_descent_is_not_guaranteed(
    momentum: float, options: dict[str, Any], where: str | None
) -> None:
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in (2.0, 0.3)]
    optimizer = untuned.SGDSPA(groups, momentum=momentum)
    found = warned(lambda: MomentumDecay(optimizer, **options))
    assert found == ([] if where is None else [SENTENCE.format(where)])


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda o: MomentumDecay(o, 1), "total_steps must be a whole number of at least 2, not 1"),
        (lambda o: MomentumDecay(o, 5.0), r"total_steps must be a whole number of at least 2, not 5\.0"),
        (lambda o: MomentumDecay(o, 5, 0.0), r"^MomentumDecay: final_c must be a number in \(0, 1\], not 0\.0\.$"),
        (lambda o: MomentumDecay(o, 5, 1.5), r"final_c must be a number in \(0, 1\], not 1\.5\.$"),
        (lambda o: MomentumDecay(o, 5, math.nan), r"final_c must be a number in \(0, 1\], not nan\.$"),
        (lambda o: MomentumDecay(o, 5, "0.1"), r"final_c must be a number in \(0, 1\], not '0\.1'\.$"),
        (lambda o: MomentumDecay(o, 5, shape="cubic"), r"shape must be one of linear, cosine, not 'cubic'\.$"),
        (lambda o: MomentumDecay(o, 5, lr_factors=[1.0]), r"lr_factors must have 5 entries, one per step, not 1\.$"),
        (
            lambda o: MomentumDecay(o, 2, lr_factors=[1.0, 0.0]),
            r"must be positive and finite; at step 1 there is 0\.$",
        ),
        (lambda o: MomentumDecay(o, 3, shape=["linear"]), r"shape must be one of linear, cosine, not \['linear'\]\.$"),
        (lambda o: MomentumDecay(o, 3, lr_factors=3), r"lr_factors must be numbers, one per step, not 3\.$"),
        (lambda o: MomentumDecay(o, 3, lr_factors=["a", 1, 1]), r"must be numbers, one per step, not \['a', 1, 1\]\.$"),
        (lambda o: MomentumDecay(o, 3, lr_factors=[1, 1, math.nan]), r"at step 2 there is nan\.$"),
        (lambda o: LargerSteps(o, 0, 2.0), r"every must be a whole number of at least 1, not 0"),
        (lambda o: LargerSteps(o, 3), r"^LargerSteps: give either factor or lr\.$"),
        (lambda o: LargerSteps(o, 3, 2.0, 1.0), r"^LargerSteps: give either factor or lr\.$"),
        (lambda o: LargerSteps(o, 3, -1.0), r"^LargerSteps: factor must be a positive number, not -1\.0\.$"),
        (lambda o: LargerSteps(o, 3, lr=math.inf), r"^LargerSteps: lr must be a positive number, not inf\.$"),
    ],
)
def test_bad_options_are_refused_and_the_groups_are_left(build: Any, sentence: str) -> None:
    optimizer = spa()
    before = dict(optimizer.param_groups[0])
    with pytest.raises(ValueError, match=sentence):
        build(optimizer)
    assert optimizer.param_groups[0] == before


def test_other_optimizers_are_refused() -> None:
    for other in (untuned.SGD, torch.optim.SGD):
        optimizer = other([nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.9)
        with pytest.raises(TypeError, match=r"^MomentumDecay: SGD has no primal averaging; use it with SGDSPA\.$"):
            MomentumDecay(optimizer, 5)
        assert "initial_momentum" not in optimizer.param_groups[0]


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_a_run_with_momentum_decay_resumes_bitwise(shape: str) -> None:
    model = net()
    optimizer = EVERY["sgd_spa"](model.parameters())
    schedules = [MomentumDecay(optimizer, 8, 0.02, shape, [0.999**k for k in range(8)]), LinearDecay(optimizer, 20)]

    def run(model: nn.Module, optimizer: untuned.Optimizer, schedules: list[Any], steps: range) -> None:
        for k in steps:
            train(model, optimizer, range(k, k + 1))
            for schedule in schedules:
                schedule.step()

    run(model, optimizer, schedules, range(3))
    for early in (False, True):  # the state of the optimizer is loaded after or before the schedules are made
        other = net()
        other.load_state_dict(model.state_dict())
        resumed = EVERY["sgd_spa"](other.parameters())
        if early:
            resumed.load_state_dict(optimizer.state_dict())
        again = [MomentumDecay(resumed, 8, 0.02, shape), LinearDecay(resumed, 20)]
        if not early:
            resumed.load_state_dict(optimizer.state_dict())
        for new, old in zip(again, schedules, strict=True):
            state = old.state_dict()
            assert all(isinstance(value, (int, float, str, list, bool)) or value is None for value in state.values())
            new.load_state_dict(state)
        if early:
            resumed.load_state_dict(optimizer.state_dict())
        straight = net()
        straight.load_state_dict(model.state_dict())
        kept = EVERY["sgd_spa"](straight.parameters())
        kept.load_state_dict(optimizer.state_dict())
        by_hand = [
            1 - (0.1 - 0.08 * (lambda s: s if shape == "linear" else (1 - math.cos(math.pi * s)) / 2)(k / 7))
            for k in range(8)
        ]
        run(other, resumed, again, range(3, 6))
        assert resumed.param_groups[0]["momentum"] == pytest.approx(by_hand[6], abs=1e-15)
        for k in range(3, 6):
            kept.param_groups[0]["momentum"] = by_hand[k]
            kept.param_groups[0]["lr"] = 0.5 * (20 - k) / 20
            train(straight, kept, range(k, k + 1))
        for p, q in zip(other.parameters(), straight.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-13, atol=1e-13)


def test_a_schedule_made_again_checks_from_where_the_first_began() -> None:
    optimizer = spa(momentum=0.99)
    with pytest.warns(UserWarning, match="at 22 steps from 1 to 22 "):
        schedule = MomentumDecay(optimizer, 400, final_c=0.1)
    used(optimizer, [schedule], 300, "momentum")
    with pytest.warns(UserWarning, match="at 22 steps from 1 to 22 "):
        MomentumDecay(optimizer, 400, final_c=0.1)


def test_two_resumed_runs_are_the_same_bits() -> None:
    runs = []
    for stop in (None, 3):
        model = net()
        optimizer = EVERY["sgd_spa"](model.parameters())
        schedule = MomentumDecay(optimizer, 6, 0.02)
        for k in range(8):
            if k == stop:
                saved = optimizer.state_dict(), schedule.state_dict()
                optimizer = EVERY["sgd_spa"](model.parameters())
                schedule = MomentumDecay(optimizer, 6, 0.02)
                optimizer.load_state_dict(saved[0])
                schedule.load_state_dict(saved[1])
            train(model, optimizer, range(k, k + 1))
            schedule.step()
        runs.append(everything(optimizer))
    assert different(*runs) == []


def test_a_group_that_comes_later_starts_from_its_own_momentum() -> None:
    optimizer = spa(momentum=0.5)
    schedule = MomentumDecay(optimizer, 3, final_c=0.25)
    optimizer.step()
    schedule.step()
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "momentum": 0.75})
    assert used(optimizer, [schedule], 2, "momentum") == [0.625, 0.75]
    assert optimizer.param_groups[1]["momentum"] == 0.75


@pytest.mark.parametrize("kind", [list, tuple, iter, torch.tensor])
def test_factors_of_lr_may_be_anything_that_can_be_gone_through(kind: Any) -> None:
    with pytest.warns(UserWarning, match="at 2 steps from 0 to 1 "):
        MomentumDecay(spa(), 3, lr_factors=kind([1.0, 0.1, 0.01]))


def test_larger_steps_of_a_run_that_had_another_lr() -> None:
    """The schedule of the checkpoint counts: its lr, and how often it is larger."""
    first, other = [untuned.SGD([nn.Parameter(torch.ones(1))], lr=lr) for lr in (0.5, 0.1)]
    schedule, resumed = LargerSteps(first, 3, lr=2.0), LargerSteps(other, 4, lr=3.0)
    other.load_state_dict(first.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    assert used(first, [schedule], 7, "lr") == used(other, [resumed], 7, "lr") == [2.0, 0.5, 0.5, 2.0, 0.5, 0.5, 2.0]


@pytest.mark.parametrize(("how", "larger"), [({"factor": 3.0}, [6.0, 1.5]), ({"lr": 5.0}, [5.0, 5.0])])
def test_larger_steps(how: dict[str, float], larger: list[float]) -> None:
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in (2.0, 0.5)]
    optimizer = untuned.SGD(groups, momentum=0.9)
    schedule = LargerSteps(optimizer, 3, **how)
    for k in range(7):
        wanted = larger if k % 3 == 0 else [2.0, 0.5]
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(wanted, rel=1e-15)
        optimizer.step()
        schedule.step()
        if k == 3:
            state = schedule.state_dict()
            schedule = LargerSteps(optimizer, 3, **how)
            schedule.load_state_dict(state)
            for group, lr in zip(optimizer.param_groups, schedule.get_last_lr(), strict=True):
                group["lr"] = lr

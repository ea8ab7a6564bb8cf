"""The graduated schedule reaches the noise it aims at where that can be reached, and keeps the momentum buffer."""

from itertools import pairwise

import pytest
import torch
from torch import nn

import untuned
from untuned.diagnostics import noise_scale
from untuned.schedules import GraduatedSchedule

CIFAR = {"batch_size": 128, "C2": 25.318, "K": 1.77}


def sgd(beta: float = 0.9, dampening: float = 0.0, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=lr, momentum=beta, dampening=dampening)


@pytest.mark.parametrize("power", [0.5, 1.0])
@pytest.mark.parametrize("kind", ["sgd", "shb", "nshb"])
def test_the_learning_rate_falls_as_delta_shall(kind: str, power: float) -> None:
    optimizer = sgd(0.0 if kind == "sgd" else 0.9, 0.9 if kind == "nshb" else 0.0)
    schedule = GraduatedSchedule(optimizer, 10, vary="lr", kind=kind, power=power, **CIFAR)
    first, rates = schedule.delta, []
    for t in range(1, 11):
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
        assert schedule.delta == pytest.approx(first * ((10 - t) / 10) ** power, abs=1e-15) == schedule.target
    assert rates == pytest.approx([0.1 * ((10 - t) / 10) ** power for t in range(1, 11)])


def test_each_stage_multiplies_delta_by_the_published_factor() -> None:
    optimizer = sgd()
    schedule = GraduatedSchedule(optimizer, 8, vary="beta", kind="shb", power=0.7, **CIFAR)
    deltas = [schedule.delta]
    for _ in range(5):
        schedule.step()
        deltas.append(schedule.delta)
    M = 8
    wanted = [((M - m) / (M - (m - 1))) ** 0.7 for m in range(1, 6)]
    assert [b / a for a, b in pairwise(deltas)] == pytest.approx(wanted)


@pytest.mark.parametrize("kind", ["shb", "nshb"])
def test_beta_is_set_so_that_the_formula_gives_the_target(kind: str) -> None:
    optimizer = sgd(0.9, 0.9 if kind == "nshb" else 0.0)
    schedule = GraduatedSchedule(optimizer, 20, vary="beta", kind=kind, **CIFAR)
    betas = [0.9]
    for _ in range(20):
        schedule.step()
        group = optimizer.param_groups[0]
        betas.append(group["momentum"])
        assert group["dampening"] == (group["momentum"] if kind == "nshb" else 0.0) and group["lr"] == 0.1
        floor = noise_scale(kind, 0.1, 128, 0.0, 25.318, 1.77)
        assert schedule.delta == pytest.approx(max(schedule.target, floor), rel=1e-9)
    assert betas == sorted(betas, reverse=True) and betas[-1] == 0.0
    assert noise_scale(kind, 0.1, 128, betas[10], 25.318, 1.77) == pytest.approx(schedule._start[3] / 2)


def test_the_batch_grows_with_the_inverse_square_of_delta_for_sgd() -> None:
    schedule = GraduatedSchedule(sgd(0.0), 4, vary="batch", kind="sgd", batch_size=16, C2=3.0, K=1.0, largest=200)
    sizes = []
    for _ in range(4):
        schedule.step()
        sizes.append(schedule.batch_size)
    assert sizes == [29, 64, 200, 200]  # 16 / 0.75^2 = 28.4, 64, 256 and no bound


def test_no_batch_size_takes_heavy_ball_below_the_part_of_the_gradient() -> None:
    schedule = GraduatedSchedule(sgd(0.9), 4, vary="batch", kind="shb", largest=10**6, **CIFAR)
    schedule.step()
    assert schedule.batch_size == 10**6 and schedule.delta > 1.2 * schedule.target


@pytest.mark.parametrize("make", [torch.optim.SGD, untuned.SGD], ids=["torch", "untuned"])
def test_the_momentum_buffer_stays(make) -> None:
    w = nn.Parameter(torch.ones(2))
    optimizer = make([w], lr=0.1, momentum=0.9)
    schedule = GraduatedSchedule(optimizer, 4, vary="beta", kind="shb", **CIFAR)

    def step() -> torch.Tensor:
        before = w.detach().clone()
        w.grad = torch.ones(2)
        optimizer.step()
        return (before - w.detach()) / 0.1

    step()
    m = step()  # 1.9
    schedule.step()
    assert torch.allclose(step(), optimizer.param_groups[0]["momentum"] * m + 1)


def test_it_goes_on_where_it_was_saved() -> None:
    one = GraduatedSchedule(sgd(), 6, vary="beta", kind="shb", **CIFAR)
    for _ in range(2):
        one.step()
    optimizer = sgd()
    other = GraduatedSchedule(optimizer, 6, vary="beta", kind="shb", **CIFAR)
    other.load_state_dict(one.state_dict())
    assert optimizer.param_groups[0]["momentum"] == one.beta
    one.step()
    other.step()
    assert (other.beta, other.target) == (one.beta, one.target)


@pytest.mark.parametrize(
    ("optimizer", "change", "message"),
    [
        (sgd(), {"vary": "color"}, "varies 'lr', 'batch' or"),
        (sgd(), {"kind": "adam"}, "not 'lr' of 'adam'"),
        (sgd(0.0), {"kind": "sgd", "vary": "beta"}, "not 'beta' of 'sgd'"),
        (sgd(), {"stages": 0}, "stages must be a whole number"),
        (sgd(), {"vary": "batch"}, "needs largest"),
        (sgd(), {"kind": "nshb"}, "'nshb' needs dampening equal to momentum"),
        (sgd(0.9, 0.9), {}, "'shb' needs dampening 0"),
        (sgd(), {"kind": "sgd"}, "'sgd' needs momentum 0"),
        (torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1, 0.9, nesterov=True), {}, "Nesterov"),
    ],
)
def test_bad_input_is_one_sentence(optimizer: torch.optim.Optimizer, change: dict, message: str) -> None:
    before = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    with pytest.raises(ValueError, match=message):
        GraduatedSchedule(optimizer, **{"stages": 4, "vary": "lr", "kind": "shb"} | CIFAR | change)
    assert before == [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]


def test_groups_of_different_learning_rates_are_refused() -> None:
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in (0.1, 0.2)]
    with pytest.raises(ValueError, match="all groups must have the same lr"):
        GraduatedSchedule(torch.optim.SGD(groups, lr=0.1, momentum=0.9), 4, vary="lr", kind="shb", **CIFAR)

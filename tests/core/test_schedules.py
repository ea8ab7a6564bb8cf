"""LinearDecay and Warmup: the multipliers, by hand, and their checkpoints."""

from typing import Any

import pytest
import torch
from problems import EVERY, different, everything, net, train
from torch import nn

import untuned
from untuned.schedules import LinearDecay, Warmup


def multipliers(schedule: Any, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    used = []
    for _ in range(steps):
        used.append(optimizer.param_groups[0]["lr"] / 2.0)
        optimizer.step()
        schedule.step()
    return used


def sgd() -> untuned.Optimizer:
    return untuned.SGD([nn.Parameter(torch.ones(1))], lr=2.0)


@pytest.mark.parametrize(
    ("total", "warmup", "wanted"),
    [
        (4, 0, [1, 3 / 4, 2 / 4, 1 / 4, 0, 0]),
        (5, 2, [1 / 2, 1, 1, 2 / 3, 1 / 3, 0, 0]),
        (1, 0, [1, 0, 0]),
        (3, 2, [1 / 2, 1, 1, 0]),
    ],
)
def test_linear_decay(total: int, warmup: int, wanted: list[float]) -> None:
    optimizer = sgd()
    used = multipliers(LinearDecay(optimizer, total, warmup), optimizer, len(wanted))
    assert used == pytest.approx(wanted, abs=1e-15)


@pytest.mark.parametrize(("warmup", "wanted"), [(1, [1, 1]), (4, [1 / 4, 2 / 4, 3 / 4, 1, 1, 1])])
def test_warmup(warmup: int, wanted: list[float]) -> None:
    optimizer = sgd()
    assert multipliers(Warmup(optimizer, warmup), optimizer, len(wanted)) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda o: LinearDecay(o, 0), "LinearDecay: total_steps must be a whole number of at least 1, not 0"),
        (lambda o: LinearDecay(o, 3, 3), "LinearDecay: total_steps must be a whole number of at least 4, not 3"),
        (lambda o: LinearDecay(o, 3, -1), "LinearDecay: warmup_steps must be a whole number of at least 0, not -1"),
        (lambda o: LinearDecay(o, 1e4), r"LinearDecay: total_steps must be a whole number of at least 1, not 10000\.0"),
        (lambda o: LinearDecay(o, True), "LinearDecay: total_steps must be a whole number of at least 1, not True"),
        (lambda o: LinearDecay(o, "9"), "LinearDecay: total_steps must be a whole number of at least 1, not '9'"),
        (lambda o: Warmup(o, 0), "Warmup: warmup_steps must be a whole number of at least 1, not 0"),
    ],
)
def test_wrong_counts_are_refused_and_the_lr_is_left(build: Any, sentence: str) -> None:
    optimizer = sgd()
    with pytest.raises(ValueError, match=sentence):
        build(optimizer)
    assert optimizer.param_groups[0]["lr"] == 2.0


def test_every_group_keeps_its_own_lr() -> None:
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in (2.0, 0.5)]
    optimizer = untuned.Prodigy(groups)
    schedule = LinearDecay(optimizer, 4)
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [1.5, 0.375]
    assert schedule.get_last_lr() == [1.5, 0.375]


def test_an_lr_tensor_is_filled_in_place() -> None:
    lr = torch.tensor(2.0)
    optimizer = untuned.Prodigy([nn.Parameter(torch.ones(1))], lr=lr)
    schedule = Warmup(optimizer, 4)
    seen = []
    for _ in range(5):
        assert optimizer.param_groups[0]["lr"] is lr
        seen.append(lr.item())
        optimizer.step()
        schedule.step()
    assert seen == [0.5, 1.0, 1.5, 2.0, 2.0]


@pytest.mark.parametrize("name", ["momo_adam", "prodigy", "schedule_free_adamw", "mechanic on tam"])
def test_a_run_with_a_schedule_resumes_bitwise(name: str) -> None:
    model = net()
    optimizer = EVERY[name](model.parameters())
    schedule = LinearDecay(optimizer, total_steps=6, warmup_steps=2)

    def run(model: nn.Module, optimizer: untuned.Optimizer, schedule: Any, steps: range) -> None:
        for k in steps:
            train(model, optimizer, range(k, k + 1))
            schedule.step()

    run(model, optimizer, schedule, range(3))
    other = net()
    other.load_state_dict(model.state_dict())
    resumed = EVERY[name](other.parameters())
    schedules = LinearDecay(resumed, total_steps=6, warmup_steps=2)
    resumed.load_state_dict(optimizer.state_dict())
    schedules.load_state_dict(schedule.state_dict())
    run(model, optimizer, schedule, range(3, 8))
    run(other, resumed, schedules, range(3, 8))
    assert different(everything(optimizer), everything(resumed)) == []
    assert optimizer.metrics()["steps"] == 6  # the last two had lr 0

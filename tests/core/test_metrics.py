"""metrics(), against values computed by hand, and repr()."""

import math
from typing import Any

import pytest
import torch
from problems import EVERY, net, train
from torch import nn

import untuned
from untuned.directions import Adam, Gradient, Momentum
from untuned.iterates import Mechanic
from untuned.step_sizes import Fixed, MoMo, Prodigy
from untuned.weight_decay import Proximal


def scalar(value: float = 4.0) -> nn.Parameter:
    return nn.Parameter(torch.tensor([value], dtype=torch.float64))


def step(optimizer: untuned.Optimizer, *gradients: float, loss: float | None = None) -> dict[str, float]:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for p, g in zip(params, gradients, strict=True):
        p.grad = torch.tensor([g], dtype=torch.float64)
    optimizer.step(loss=loss)
    return optimizer.metrics()


@pytest.mark.parametrize("name", EVERY)
def test_metrics_are_finite_floats_before_and_after_the_first_step(name: str) -> None:
    model = net()
    params = list(model.parameters())
    optimizer = EVERY[name]([{"params": params[:2]}, {"params": params[2:]}])
    keys = None
    for steps in (0, 1, 3):
        train(model, optimizer, range(steps))
        found = optimizer.metrics()
        assert {"lr_effective", "lr_effective_1", "steps", "skipped"} <= found.keys()
        assert all(type(value) is float and math.isfinite(value) for value in found.values())
        assert keys is None or keys == list(found)
        keys = list(found)
    assert found["steps"] == 4
    # LDoG has a step of its own for every tensor; the recorded losses may lie above the batch's.
    assert name == "ldog" or found["lr_effective"] == found["lr_effective_1"]
    assert found["lr_effective"] > 0 or name == "motaps"


def test_a_fixed_step_and_the_warm_up() -> None:
    optimizer = untuned.AdamW([{"params": [scalar()]}, {"params": [scalar()], "lr": 0.25}], lr=0.5)
    for k in range(3):
        found = optimizer.metrics()
        assert (found["lr_effective"], found["lr_effective_1"], found["steps"]) == (0.5, 0.25, k)
        step(optimizer, 1.0, 2.0)
    optimizer.param_groups[0]["lr"] = 0.125
    assert optimizer.metrics()["lr_effective"] == 0.5  # of the last step, whatever a schedule has set since
    assert step(optimizer, 1.0, 2.0)["lr_effective"] == 0.125
    optimizer = untuned.AdamWScheduleFree([scalar()], lr=0.5, warmup_steps=4)
    assert optimizer.metrics()["lr_effective"] == 0.125
    assert [step(optimizer, 1.0)["lr_effective"] for _ in range(5)] == [0.125, 0.25, 0.375, 0.5, 0.5]


def test_a_tensor_without_gradients_does_not_speak_for_its_group() -> None:
    spare = scalar()
    optimizer = untuned.SGDScheduleFree([spare, scalar()], lr=0.5, warmup_steps=4)
    other = optimizer.param_groups[0]["params"][1]
    for _ in range(3):
        other.grad = torch.ones(1, dtype=torch.float64)
        optimizer.step()
    assert optimizer.metrics()["lr_effective"] == 0.375


def test_momo_by_hand() -> None:
    """x = 4, loss 3, gradient 2, no momentum: gap 3, the Polyak step 3 / 4, below the cap of lr = 1."""
    optimizer = untuned.MoMo([scalar()], lr=1.0, beta=0.0)
    assert optimizer.metrics()["lr_effective"] == 0.0
    found = step(optimizer, 2.0, loss=3.0)
    assert found["lr_effective"] == pytest.approx(0.75, rel=1e-14)
    assert (found["loss_avg"], found["weights"]) == (3.0, 1.0)
    assert (found["mx"], found["model_offset"]) == (
        2 * 4,
        2 * 4 - 2 * 4,
    )  # <m, x> and <m, x> - G where the gradient was
    assert optimizer.param_groups[0]["params"][0].item() == pytest.approx(4 - 0.75 * 2)
    assert step(optimizer, 2.0, loss=100.0)["lr_effective"] == 1.0  # the cap
    assert step(optimizer, 2.0, loss=-1.0)["lr_effective"] == 0.0  # below the bound


def test_momo_with_momentum_lower_bound_and_two_groups_by_hand() -> None:
    """lr 1 and 1/2; m = (1, 2); loss 3, bound 1: theta = 2 / (1 * 1 + 1/2 * 4)."""
    optimizer = untuned.MoMo(
        [{"params": [scalar(1.0)]}, {"params": [scalar(1.0)], "lr": 0.5}], lr=1.0, beta=0.5, lb=1.0
    )
    found = step(optimizer, 1.0, 2.0, loss=3.0)
    assert found["theta"] == pytest.approx(2 / 3, rel=1e-14)
    assert found["lr_effective"] == pytest.approx(2 / 3, rel=1e-14)
    assert found["lr_effective_1"] == pytest.approx(1 / 3, rel=1e-14)
    one, other = (group["params"][0].item() for group in optimizer.param_groups)
    assert (one, other) == pytest.approx((1 - 2 / 3, 1 - 2 * 1 / 3), rel=1e-14)


def test_momo_adam_by_hand() -> None:
    """First step of Adam: m = 0.1 g, D = |g|, weights 0.1; lr_effective is that of the corrected direction m / 0.1."""
    optimizer = untuned.MoMoAdam([scalar(4.0)], lr=10.0, eps=1e-300)
    found = step(optimizer, 2.0, loss=3.0)
    assert found["weights"] == pytest.approx(0.1)
    assert found["lr_effective"] == pytest.approx(1.5, rel=1e-12)  # 3 / |g|: the linear model reaches 0 there
    assert optimizer.param_groups[0]["params"][0].item() == pytest.approx(4 - 1.5, rel=1e-12)


def test_prodigy_by_hand() -> None:
    """<g, x0 - x> = 0 in the first step; in the second r = d0 g (x0 - x) over |s|_1."""
    w = scalar(4.0)
    optimizer = untuned.Prodigy([{"params": [w]}, {"params": [scalar()], "lr": 0.5}], d0=0.01, beta3=0.5)
    assert optimizer.metrics()["lr_effective"] == pytest.approx(0.01)
    assert optimizer.metrics()["lr_effective_1"] == pytest.approx(0.005)
    found = step(optimizer, 2.0, 0.0)
    assert (found["d"], found["lr_effective"]) == (0.01, pytest.approx(0.01))
    moved = 4 - w.item()
    assert moved == pytest.approx(0.01 * 0.1 / math.sqrt(0.001), rel=1e-6)
    found = step(optimizer, 2.0, 0.0)
    d_hat = (0.01 * 2 * moved) / (0.5 * 0.01 * 2 + 0.01 * 2)
    assert found["d"] == pytest.approx(max(0.01, d_hat), rel=1e-12)
    assert found["d"] > 0.01
    assert found["lr_effective"] == pytest.approx(0.01)  # this step still used the old d
    assert step(optimizer, 2.0, 0.0)["lr_effective"] == pytest.approx(max(0.01, d_hat), rel=1e-12)


def test_dadaptation_by_hand() -> None:
    """s = 0 before the first step; the second step's d_hat = r / ((1 - beta) |s|_1)."""
    w = scalar(4.0)
    optimizer = untuned.DAdaptAdam([w], d0=0.01, eps=1e-8, betas=(0.9, 0.25), lr=0.5)
    assert optimizer.metrics()["lr_effective"] == pytest.approx(0.005)
    found = step(optimizer, 2.0)
    assert (found["d"], found["lr_effective"]) == (0.01, pytest.approx(0.005))
    beta, h, g = 0.5, 0.005, 2.0
    s, scale = (1 - beta) * h * g, math.sqrt(0.75) * g + 1e-8
    found = step(optimizer, 2.0)
    r = (1 - beta) * h * g * s / scale
    s = beta * s + (1 - beta) * h * g
    assert found["d"] == pytest.approx(max(0.01, r / ((1 - beta) * s)), rel=1e-12)
    assert found["lr_effective"] == pytest.approx(0.005)
    assert found["numerator_weighted"] == pytest.approx(r, rel=1e-12)


def test_mechanic_by_hand() -> None:
    """Nothing to bet on in the first step: h = 0 and s = s_init m / n / eps; the scale multiplies the lr."""
    optimizer = untuned.MechanicSGD([{"params": [scalar()]}, {"params": [scalar()], "lr": 0.5}], momentum=0.0)
    assert optimizer.metrics()["lr_effective"] == 0.0
    found = step(optimizer, 2.0, 0.0)
    decays = optimizer.param_groups[0]["decays"]
    scale = sum(1e-8 * 1e-6 * beta / 6 / 1e-8 for beta in decays)  # m starts at 1e-6 in each of the six bettors
    assert found["mechanic_S"] == pytest.approx(scale, rel=1e-6)
    assert found["lr_effective"] == pytest.approx(scale, rel=1e-6)
    assert found["lr_effective_1"] == pytest.approx(scale / 2, rel=1e-6)
    w = optimizer.param_groups[0]["params"][0].item()
    assert 4 - w == pytest.approx(scale * 2, rel=1e-6)
    found = step(optimizer, 2.0, 0.0)
    h = -2.0 * 2.0 + 0.01 * scale * 2 / math.hypot(w - 2.0, 4.0) * (w - 2.0) * -2.0
    scale = (1e-8 * abs(h) - scale * h) / (abs(h) + 1e-8)  # stake and winnings of all over sqrt(v)
    assert found["mechanic_S"] == pytest.approx(scale, rel=1e-6)


def test_mechanic_around_momo_multiplies_the_two() -> None:
    params = [scalar()]
    optimizer = untuned.compose(params, direction=Gradient(), step_size=MoMo(1.0), iterate=Mechanic(s_init=0.1))
    found = step(optimizer, 2.0, loss=3.0)
    assert found["theta"] == pytest.approx(0.75)
    assert found["lr_effective"] == pytest.approx(0.75 * found["mechanic_S"], rel=1e-12)


def test_a_bias_correction_does_not_divide_by_zero_before_the_first_step() -> None:
    optimizer = untuned.compose([scalar()], direction=Adam(), step_size=Prodigy(bias_correction=True))
    assert math.isfinite(optimizer.metrics()["lr_effective"])


def test_lr_effective_of_a_resting_group_is_0_and_metrics_of_a_skipped_step_are_those_before() -> None:
    optimizer = untuned.Prodigy([{"params": [scalar()]}, {"params": [scalar()], "lr": 0.0}], d0=0.5)
    before = step(optimizer, 1.0, 1.0)
    assert before["lr_effective_1"] == 0.0
    after = step(optimizer, math.nan, 1.0)
    assert after == before | {"skipped": 1.0}


def test_metrics_read_the_device_once() -> None:
    from test_step import HostReads

    model = net()
    optimizer = EVERY["mechanic on momo_adam"](model.parameters())
    train(model, optimizer, range(2))
    with HostReads() as reads:
        optimizer.metrics()
    assert reads.count == 0  # tolist() is one copy, not one read per value


# ---------------------------------------------------------------- repr


def test_repr_names_library_version_recipe_and_groups() -> None:
    model = net()
    params = list(model.parameters())
    optimizer = untuned.MoMoAdam(
        [{"params": params[:4]}, {"params": params[4:], "lr": 0.5}], weight_decay=0.1, execution="reference"
    )
    assert repr(optimizer) == (
        f"MoMoAdam (untuned {untuned.__version__}, reference execution): Adam(betas=(0.9, 0.999), eps=1e-08, "
        "correct=True) x MoMo(lr=0.01, lb=0.0, online=False) x Plain() x Proximal(weight_decay=0.1)\n"
        "  group 0: 4 tensors, 36 parameters, betas=(0.9, 0.999), eps=1e-08, lr=0.01, lb=0.0, weight_decay=0.1\n"
        "  group 1: 2 tensors, 10 parameters, betas=(0.9, 0.999), eps=1e-08, lr=0.5, lb=0.0, weight_decay=0.1"
    )


@pytest.mark.parametrize("name", EVERY)
def test_repr_of_everything(name: str) -> None:
    optimizer: Any = EVERY[name](net().parameters(), lr=torch.tensor(0.5))
    shown = repr(optimizer)
    assert f"untuned {untuned.__version__}" in shown
    assert shown.startswith(type(optimizer).__name__)
    for part in optimizer.parts.values():
        assert f"{type(part).__name__}(" in shown


def test_parts_show_their_options() -> None:
    assert (
        repr(Momentum(0.5, nesterov=True))
        == "Momentum(momentum=0.5, dampening=0.0, nesterov=True, correct=False, from_zero=False)"
    )
    assert repr(Fixed(1)) == "Fixed(lr=1)"
    assert repr(Proximal()) == "Proximal(weight_decay=0.0)"

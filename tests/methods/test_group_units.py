"""A group at a fraction of the largest lr moves as if its parameters were measured in larger units at the full lr.

Where the gradient itself is followed, x = sqrt(fraction) y: then g_y = sqrt(fraction) g, and a step of y at the full lr
is one of x at that fraction of it. Where the step does not change with the scale of the gradient, x = fraction y.
"""

from typing import Any

import numpy as np
import pytest
import torch

import untuned
from untuned import iterates, step_sizes
from untuned.parts import Iterate, StepSize

STEPS, FRACTION = 20, 0.2
WAVE = 0.6 + 0.4 * np.sin(np.arange(STEPS))
START = [np.array([[0.3, -1.2], [0.8, 0.1], [-0.4, 1.5]]), np.array([0.2, -0.7])]


def logistic(w: torch.Tensor, b: torch.Tensor, k: int) -> torch.Tensor:
    """Two logistic regressions on a batch that changes with the step."""
    rng = np.random.default_rng(k)
    inputs, labels = torch.tensor(rng.normal(size=(5, 3))), torch.tensor(np.sign(rng.normal(size=(5, 2))))
    return torch.nn.functional.softplus(-labels * (inputs @ w + b)).sum() / 5


def follow(
    name: str, options: dict[str, Any], unit: float, fraction: float, loss_scale: float = 1.0, **own: float
) -> tuple[np.ndarray, dict[str, Any]]:
    """The weights after each step and the last metrics; the second group, in `unit`, has lr and options of its own."""
    w, b = (torch.nn.Parameter(torch.tensor(x / u)) for x, u in zip(START, (1.0, unit), strict=True))
    optimizer = untuned.create([{"params": [w]}, {"params": [b], **own}], name, execution="reference", **options)
    lr, points = optimizer.param_groups[0]["lr"], []
    for k in range(STEPS):
        for group, f in zip(optimizer.param_groups, (1.0, fraction), strict=True):
            group["lr"] = f * lr * WAVE[k]
        optimizer.zero_grad()
        loss = loss_scale * logistic(w, unit * b, k)
        loss.backward()
        optimizer.step(loss=loss, sample_ids=[0, 5, 2, 2])
        points.append(torch.cat([w.flatten(), unit * b]).detach().numpy())
    return np.array(points), optimizer.metrics()


EPS = 1e-3  # of the gradient, in whose unit it has to be given
SCALED = {  # method -> options; the step does not change with the scale of the gradient
    "prodigy": [
        {},
        {"use_bias_correction": True},
        {"safeguard_warmup": True},
        {"growth_rate": 1.3},
        {"freeze_after": 10},
        {"beta3": 0.9, "d_coef": 0.5},
        {"decouple": False},
    ],
    "dadapt_adam": [{}, {"use_bias_correction": True}, {"growth_rate": 1.3}, {"freeze_after": 5}, {"decouple": True}],
    "dadapt_adan": [{"growth_rate": 1.3}, {"growth_rate": 1.3, "no_prox": True}],
    "dadapt_lion": [{}, {"scale_average": False}, {"growth_rate": 1.1}, {"freeze_after": 9}],
    "momo_adam": [{"lr": 1.0}, {"lr": 1.0, "use_fstar": True}, {"lr": 1.0, "divide": False}],
    "prodigy_schedule_free": [{}, {"use_bias_correction": False}, {"growth_rate": 1.3}],
}
BY_GRADIENT = {
    "dadapt_sgd": [{}, {"momentum": 0.9}, {"growth_rate": 1.1}, {"freeze_after": 5}],
    "dadapt_da": [{}, {"growth_rate": 1.02}],
    "dadapt_gd": [{}, {"growth_rate": 1.02}, {"G": 1.0}],
    "prodigy_da": [{}, {"growth_rate": 1.02}, {"G": 1.0}],
    "prodigy_gd": [{}, {"growth_rate": 1.02}, {"G": 1.0}],
    "resetting": [{}, {"G": 1.0}],
    "resetting_gd": [{}, {"G": 1.0}],
    "dog": [{}, {"eps": 0.1}],
    "dowg": [{"eps": 1e-2}],
    "gradagrad": [{"lr": 0.05}, {"lr": 0.05, "rho": 5.0, "momentum": 0.5}],
    "sps": [{}],
    "dec_sps": [{}],
    "prox_sps": [{}],
    "sp": [{"lr": 0.2}],
    "alig": [{}],
    "ngn": [{}, {"momentum": 0.5}],
    "momo": [{}, {"use_fstar": True, "lb": -1.0}],
    "taps": [{"samples": 7, "lr": 0.2}],
    "motaps": [{"samples": 7, "target_lr": 0.5, "momentum": 0.5, "lr": 0.2}],
}
ADAPTIVE = {"prodigy", "prodigy_schedule_free", "dadapt_adam", "dadapt_adan", "momo_adam"}
COUPLED = {*BY_GRADIENT} - {"momo", "prox_sps"} | {"dadapt_adagrad"}
FIRST = {"dog": {"reps_rel": 1e-2}, "dadapt_lion": {"d0": 0.03}, "dadapt_adam": {"d0": 1e-2}, "prodigy": {"d0": 1e-2}}
FIRST |= {"prodigy_schedule_free": {"d0": 1e-2}}
FIRST |= {
    "dadapt_adan": {"d0": 1e-2},
    "resetting": {"d0": 0.2},
    "resetting_gd": {"d0": 0.2},
    "dadapt_sgd": {"d0": 1e-2},
}
FIRST |= {name: {"d0": 0.1} for name in ("dadapt_da", "dadapt_gd", "prodigy_da", "prodigy_gd")}
CASES = [(name, options) for table in (SCALED, BY_GRADIENT) for name, rows in table.items() for options in rows]


def units(name: str, options: dict[str, Any], decay: float, **more: Any) -> tuple[Any, Any]:
    """One run with a fraction of lr, one with another unit; what decays a weight by as much in both."""
    unit = FRACTION ** (0.5 if name in BY_GRADIENT else 1.0)
    coupled = options["decouple"] is False if "decouple" in options else name in {*COUPLED, "dadapt_adam"}
    in_unit = decay * (unit**2 if coupled else FRACTION)
    eps, in_its_unit = ({"eps": EPS}, {"eps": unit * EPS}) if name in ADAPTIVE else ({}, {})
    slow = follow(name, options, 1.0, FRACTION, weight_decay=decay, **eps, **more)
    return slow, follow(name, options, unit, 1.0, weight_decay=in_unit, **in_its_unit, **more)


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_a_fraction_of_lr_is_another_unit(name: str, options: dict[str, Any]) -> None:
    options = FIRST.get(name, {}) | ({"eps": EPS} if name in ADAPTIVE else {}) | options
    (slow, numbers), (rescaled, same_numbers) = units(name, options, 0.1)
    full, _ = follow(name, options, 1.0, 1.0, weight_decay=0.1)
    way = np.abs(slow - np.concatenate([x.ravel() for x in START])).max()
    assert way > 1e-3
    assert np.abs(slow - rescaled).max() <= 1e-10 * way
    assert np.abs(slow - full).max() > 1e-2 * way
    for key in numbers.keys() & {"d", "d_hat", "theta", "eta", "rbar", "gamma", "alpha"}:
        assert numbers[key] == pytest.approx(same_numbers[key], rel=1e-9)


def test_dadapt_adagrad_measures_in_units_but_for_its_constant() -> None:
    """The 1e-6 that is added to the sum of squares has no unit; both runs begin with the same gradients."""
    options, start = {"d0": 1e-2, "eps": 0.0}, np.concatenate([x.ravel() for x in START])
    (slow, _), (rescaled, _) = units("dadapt_adagrad", options, 0.0)
    b = torch.tensor(START[1], requires_grad=True)
    (g,) = torch.autograd.grad(logistic(torch.tensor(START[0]), b, 0), b)
    square = g.numpy() ** 2
    longer = (slow - start)[0, 6:] / (rescaled - start)[0, 6:]
    np.testing.assert_allclose(longer, np.sqrt((square + 1e-6 / FRACTION**2) / (square + 1e-6)), rtol=1e-12)
    np.testing.assert_allclose(longer - 1, (1 / FRACTION**2 - 1) * 5e-7 / square, rtol=0.02)

    large = 1e8  # the method does not change with the scale of the loss, and then the constant is nothing
    (slow, numbers), (rescaled, same_numbers) = units("dadapt_adagrad", options, 0.1 * large, loss_scale=large)
    assert np.abs(slow - rescaled).max() <= 1e-10 * np.abs(slow - start).max()
    assert numbers["d"] == pytest.approx(same_numbers["d"], rel=1e-10)


def test_every_part_that_speaks_of_units_is_tried() -> None:
    promised = {
        part.__name__
        for room, kind in ((step_sizes, StepSize), (iterates, Iterate))
        for part in vars(room).values()
        if isinstance(part, type) and issubclass(part, kind) and "units" in (part.__doc__ or "")
    }
    tried = {
        part.name
        for name in {*SCALED, *BY_GRADIENT, "dadapt_adagrad"}
        for part in untuned.create([torch.nn.Parameter(torch.ones(1))], name, **options_of(name)).parts.values()
    }
    assert promised - tried == set()


def options_of(name: str) -> dict[str, Any]:
    return {"samples": 7} if name in ("taps", "motaps") else {}

"""Every method with options under which it moves visibly in a few steps, and the tiny problems they run on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import untuned
from untuned.directions import TAM, Adam, Gradient, Momentum, RMSProp
from untuned.iterates import Mechanic, ScheduleFree
from untuned.step_sizes import Fixed, MoMo, Prodigy
from untuned.weight_decay import Coupled, Decoupled, Proximal

Build = Callable[..., untuned.Optimizer]

execution = "reference"  # set by the option --execution

OPTIONS: dict[str, dict[str, Any]] = {
    "adam": {"lr": 0.05, "weight_decay": 0.01},
    "alig": {"lr": 0.1, "weight_decay": 0.01},
    "dec_sps": {"lr": 0.5, "weight_decay": 0.01},
    "dadapt_adagrad": {"d0": 1e-3, "momentum": 0.9, "weight_decay": 0.01},
    "dadapt_adan": {"d0": 1e-3, "growth_rate": 1.5},
    "dadapt_da": {"d0": 1e-1, "weight_decay": 0.01},
    "dadapt_gd": {"d0": 1e-1, "weight_decay": 0.01},
    "dadapt_lion": {"d0": 1e-3, "weight_decay": 0.1},
    "dadapt_sgd": {"d0": 1e-2, "momentum": 0.9, "weight_decay": 0.01},
    "dog": {"reps_rel": 1e-2, "weight_decay": 0.01},
    "dowg": {"eps": 1e-2, "weight_decay": 0.01},
    "gradagrad": {"lr": 0.02, "momentum": 0.5, "weight_decay": 0.01},
    "gradagrad_diagonal": {"lr": 0.02, "momentum": 0.5, "weight_decay": 0.01},
    "ldog": {"reps_rel": 1e-2, "weight_decay": 0.01},
    "madgrad": {"lr": 0.02, "weight_decay": 0.1, "decouple_decay": True},
    "mda": {"lr": 0.5, "weight_decay": 0.01},
    "mirror_madgrad": {"lr": 0.02, "weight_decay": 0.01},
    "adarem": {"lr": 0.2, "momentum": 0.5, "weight_decay": 0.01},
    "multiplicative_sgd": {"lr": 0.2, "momentum": 0.5, "weight_decay": 0.01, "mix": 0.5},
    "multiplicative_adam": {"lr": 0.05, "weight_decay": 0.01},
    "motaps": {"samples": 7, "lr": 0.2, "target_lr": 0.5, "momentum": 0.5},
    "adamw": {"lr": 0.05, "weight_decay": 0.1},
    "adatam": {"lr": 0.005, "weight_decay": 0.01},
    "adatamw": {"lr": 0.005, "weight_decay": 0.1},
    "dadapt_adam": {"d0": 1e-3, "weight_decay": 0.01},
    "mechanic_adamw": {"lr": 0.1, "s_init": 0.1, "weight_decay": 0.1},
    "mechanic_sgd": {"lr": 1.0, "s_init": 0.1, "weight_decay": 0.01},
    "momo": {"lr": 1.0, "weight_decay": 0.01},
    "momo_adam": {"lr": 0.1, "weight_decay": 0.01, "use_fstar": True},
    "prodigy": {"d0": 1e-2, "weight_decay": 0.1},
    "prodigy_da": {"d0": 1e-1, "weight_decay": 0.01},
    "prodigy_gd": {"d0": 1e-1, "weight_decay": 0.01},
    "prox_sps": {"lr": 0.5, "weight_decay": 0.01},
    "resetting": {"d0": 1e-1, "weight_decay": 0.01},
    "resetting_gd": {"d0": 1e-1, "weight_decay": 0.01},
    "schedule_free_adamw": {"lr": 0.05, "weight_decay": 0.1, "warmup_steps": 3},
    "schedule_free_sgd": {"lr": 0.5, "weight_decay": 0.01},
    "sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
    "sgd_spa": {"lr": 0.5, "weight_decay": 0.01},
    "sgdf": {"lr": 0.2, "weight_decay": 0.01},
    "ahb_adam": {"lr": 0.05, "weight_decay": 0.1},
    "ahb_sgd": {"lr": 0.1, "weight_decay": 0.01},
    "am_msgd": {"lr": 0.1, "weight_decay": 0.01},
    "sngm": {"lr": 0.05, "weight_decay": 0.01},
    "sp": {"lr": 0.2, "weight_decay": 0.01},
    "sps": {"lr": 0.5, "weight_decay": 0.01},
    "tam": {"lr": 0.1, "weight_decay": 0.01},
    "gpa_adamw": {"lr": 0.05, "weight_decay": 0.1, "keep": 0.8},
    "ngn": {"lr": 0.5, "weight_decay": 0.01},
    "ormo": {"lr": 0.1, "num_workers": 3, "weight_decay": 0.01},
    "prodigy_schedule_free": {"d0": 1e-2, "weight_decay": 0.1, "use_bias_correction": False},
    "random_scaling_adamw": {"lr": 0.05, "weight_decay": 0.1},
    "random_scaling_sgd": {"lr": 0.5, "weight_decay": 0.01},
    "relative_muon": {"lr": 0.1, "weight_decay": 0.1},
    "taps": {"samples": 7, "lr": 0.2, "target": 0.1, "weight_decay": 0.01},
}


class _SameSamples(untuned.Optimizer):
    """Every batch holds the same samples, one of them twice, so that one loop serves all methods."""

    def step(self, closure: Any = None, *, loss: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().step(closure, loss=loss, sample_ids=[0, 5, 2, 2])

    def record_loss(self, loss: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().record_loss(loss, [0, 5, 2, 2])


class TAPS(_SameSamples, untuned.TAPS):
    pass


class MOTAPS(_SameSamples, untuned.MOTAPS):
    pass


RECORDED = {"taps": TAPS, "motaps": MOTAPS}


def _registered(name: str) -> Build:
    def build(params: Any, **changes: Any) -> untuned.Optimizer:
        options = {"execution": execution} | OPTIONS[name] | changes
        return RECORDED[name](params, **options) if name in RECORDED else untuned.create(params, name, **options)

    return build


def _composed(lr: float, parts: Callable[[Any], dict[str, Any]]) -> Build:
    def build(params: Any, lr: Any = lr, **engine: Any) -> untuned.Optimizer:
        return untuned.compose(params, **parts(lr), **{"execution": execution} | engine)

    return build


COMPOSITIONS: dict[str, Build] = {
    "mechanic on momo_adam": _composed(
        0.1,
        lambda lr: {
            "direction": Adam(),
            "step_size": MoMo(lr),
            "iterate": Mechanic(s_init=0.1),
            "decay": Proximal(0.01),
        },
    ),
    "mechanic on tam": _composed(
        1.0,
        lambda lr: {
            "direction": TAM(),
            "step_size": Fixed(lr),
            "iterate": Mechanic(s_init=0.1),
            "decay": Coupled(0.01),
        },
    ),
    "momo on schedule_free": _composed(
        1.0, lambda lr: {"direction": Gradient(), "step_size": MoMo(lr), "iterate": ScheduleFree()}
    ),
    "momo on tam of the model": _composed(
        1.0, lambda lr: {"direction": TAM(scope="model"), "step_size": MoMo(lr), "decay": Proximal(0.01)}
    ),
    "prodigy on adam, corrected": _composed(
        1.0, lambda lr: {"direction": Adam(), "step_size": Prodigy(lr, d0=1e-2), "decay": Decoupled(0.1)}
    ),
    "prodigy on momentum": _composed(
        1.0, lambda lr: {"direction": Momentum(0.9), "step_size": Prodigy(lr, d0=0.5), "decay": Decoupled(0.1)}
    ),
    "schedule_free on prodigy": _composed(
        1.0, lambda lr: {"direction": RMSProp(), "step_size": Prodigy(lr, d0=1e-2), "iterate": ScheduleFree()}
    ),
    "tam of the group": _composed(0.1, lambda lr: {"direction": TAM(scope="group"), "step_size": Fixed(lr)}),
}

EVERY: dict[str, Build] = {name: _registered(name) for name in OPTIONS} | COMPOSITIONS
LOSS_DRIVEN = [
    name for name in EVERY if "momo" in name or name in (*RECORDED, "alig", "dec_sps", "ngn", "prox_sps", "sp", "sps")
]
DIVIDING = ["relative_muon"]  # these make several groups of one, by the kinds of its tensors
AVERAGING = [name for name in EVERY if "schedule_free" in name or name == "gpa_adamw"]


def net(dtype: torch.dtype = torch.float64) -> nn.Module:
    """Three tanh layers: six tensors, 44 numbers."""
    torch.manual_seed(0)
    layers = nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)
    return nn.Sequential(*layers).to(dtype)


def loss_of(model: nn.Module, k: int) -> Tensor:
    """The loss on batch k: the angle of points of the plane, which three tanh layers can learn slowly."""
    generator = torch.Generator().manual_seed(k)
    x = torch.rand(5, 3, generator=generator, dtype=torch.float64) * 2 - 1
    y = torch.stack([torch.sin(3 * x[:, 0]), x[:, 1] * x[:, 2]], dim=1)
    dtype = next(model.parameters()).dtype
    return (model(x.to(dtype)) - y.to(dtype)).square().mean()


def train(model: nn.Module, optimizer: untuned.Optimizer, steps: range) -> list[float]:
    """Steps on the batches of these numbers; returns their losses."""
    losses: list[float] = []
    for k in steps:
        optimizer.zero_grad()
        loss = loss_of(model, k)
        loss.backward()
        optimizer.step(loss=loss)
        losses.append(loss.item())
    return losses


def groups_of(optimizer: torch.optim.Optimizer, params: list[nn.Parameter]) -> list[dict[str, Any]]:
    """The groups that hold these tensors: one for each group that was given, or several where it was divided."""
    return [group for group in optimizer.param_groups if any(p is q for p in group["params"] for q in params)]


def twin(optimizer: untuned.Optimizer) -> untuned.Optimizer:
    """A copy over parameters of its own, with copies of their gradients, which deepcopy leaves out."""
    other = copy.deepcopy(optimizer)
    for group, copied in zip(optimizer.param_groups, other.param_groups, strict=True):
        for p, q in zip(group["params"], copied["params"], strict=True):
            q.grad = None if p.grad is None else p.grad.clone()
    return other


def everything(optimizer: torch.optim.Optimizer) -> dict[tuple[Any, ...], Tensor]:
    """Copies of all that a step may change: parameters, slots, numbers and counters, by where they are."""
    optimizer.state_dict()  # makes the state that a first step would make
    found: dict[tuple[Any, ...], Tensor] = {}
    for i, group in enumerate(optimizer.param_groups):
        for key, value in group.items():
            if isinstance(value, Tensor):
                found["group", i, key] = value.detach().clone()
        for j, p in enumerate(group["params"]):
            found["parameter", i, j] = p.detach().clone()
            for key, value in optimizer.state[p].items():
                found["state", i, j, key] = value.detach().clone()
    return found


def different(left: dict[tuple[Any, ...], Tensor], right: dict[tuple[Any, ...], Tensor]) -> list[tuple[Any, ...]]:
    """Where two results of `everything` differ in a bit, a dtype, a shape or a key."""
    return [
        key
        for key in left.keys() | right.keys()
        if key not in left
        or key not in right
        or left[key].dtype != right[key].dtype
        or not torch.equal(left[key], right[key])
    ]


def vector(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])

"""Methods by name, for configuration files and the command line."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from typing import Any

import torch

from untuned import optimizers
from untuned.optimizer.optimizer import Optimizer
from untuned.optimizer.options import EngineOptions


@dataclasses.dataclass(frozen=True)
class Method:
    """One method: its class, a line about it, and where it comes from."""

    name: str
    optimizer: type[Optimizer]
    summary: str
    paper: str

    @property
    def lr(self) -> float:
        """The default learning rate of the class."""
        return inspect.signature(self.optimizer).parameters["lr"].default

    @property
    def divides_groups(self) -> bool:
        """Whether it makes several groups of one by itself, so that its class says what decays."""
        return "add_param_group" in vars(self.optimizer)

    @property
    def records_samples(self) -> bool:
        """Whether it keeps a number per sample: it is built with `samples=` and needs `step(sample_ids=...)`."""
        return "samples" in inspect.signature(self.optimizer).parameters


_SCHEDULE_FREE = "averaging in place of a schedule"
_DADAPT = "distance estimated by D-Adaptation"
_PRODIGY = "distance estimated by Prodigy"
_MECHANIC = "scale of the displacement learned"
_METHODS = {
    name: Method(name, cls, summary, paper)
    for name, cls, summary, paper in (
        ("sgd", optimizers.SGD, "gradient descent, with momentum as an option", "Polyak 1964"),
        ("adam", optimizers.Adam, "Adam, coupled weight decay", "arXiv 1412.6980"),
        ("adamw", optimizers.AdamW, "Adam, decoupled weight decay", "arXiv 1711.05101"),
        ("momo", optimizers.MoMo, "momentum, step from the loss, capped by lr", "arXiv 2305.07583"),
        ("momo_adam", optimizers.MoMoAdam, "Adam, step from the loss, capped by lr", "arXiv 2305.07583"),
        ("prodigy", optimizers.Prodigy, "Adam, distance to the solution estimated", "arXiv 2306.06101"),
        ("dadapt_adam", optimizers.DAdaptAdam, f"Adam, {_DADAPT}", "arXiv 2301.07733"),
        ("mechanic_sgd", optimizers.MechanicSGD, f"momentum, {_MECHANIC}", "arXiv 2306.00144"),
        ("mechanic_adamw", optimizers.MechanicAdamW, f"AdamW, {_MECHANIC}", "arXiv 2306.00144"),
        ("sps", optimizers.SPS, "gradient descent, Polyak step from the loss, capped by lr", "arXiv 2002.10542"),
        ("dec_sps", optimizers.DecSPS, "decreasing Polyak step from the loss", "arXiv 2205.04583"),
        ("prox_sps", optimizers.ProxSPS, "capped Polyak step, proximal weight decay", "arXiv 2301.04935"),
        ("sp", optimizers.SP, "Polyak step from the loss, uncapped", "arXiv 2106.11851"),
        ("alig", optimizers.ALIG, "Polyak step from the loss for interpolation, capped by lr", "arXiv 1906.05661"),
        ("taps", optimizers.TAPS, "Polyak step to a recorded loss per sample", "arXiv 2106.11851"),
        ("motaps", optimizers.MOTAPS, "Polyak step to a recorded loss per sample, target learned", "arXiv 2106.11851"),
        ("dadapt_sgd", optimizers.DAdaptSGD, f"SGD, {_DADAPT}", "arXiv 2301.07733"),
        ("dadapt_adagrad", optimizers.DAdaptAdaGrad, f"AdaGrad, {_DADAPT}", "arXiv 2301.07733"),
        ("dadapt_lion", optimizers.DAdaptLion, f"Lion, {_DADAPT}", "arXiv 2301.07733"),
        ("dadapt_adan", optimizers.DAdaptAdan, f"Adan, {_DADAPT}", "arXiv 2301.07733"),
        ("dadapt_da", optimizers.DAdaptDA, f"dual averaging, {_DADAPT}; convex", "arXiv 2301.07733"),
        ("dadapt_gd", optimizers.DAdaptGD, f"plain SGD, {_DADAPT}; convex", "arXiv 2301.07733"),
        (
            "prodigy_da",
            optimizers.ProdigyDA,
            f"dual averaging, {_PRODIGY}; convex",
            "arXiv 2306.06101",
        ),
        (
            "prodigy_gd",
            optimizers.ProdigyGD,
            f"gradient descent, {_PRODIGY}; convex",
            "arXiv 2306.06101",
        ),
        ("resetting", optimizers.Resetting, "D-Adaptation that starts over; convex", "arXiv 2306.06101"),
        (
            "resetting_gd",
            optimizers.ResettingGD,
            "D-Adaptation that starts over, as SGD; convex",
            "arXiv 2306.06101",
        ),
        ("dog", optimizers.DoG, "gradient descent, distance moved over gradients", "arXiv 2302.12022"),
        ("ldog", optimizers.LDoG, "distance moved over gradients, tensor by tensor", "arXiv 2302.12022"),
        ("dowg", optimizers.DoWG, "gradient descent, distance moved over weighted gradients", "arXiv 2305.16284"),
        ("gradagrad", optimizers.GradaGrad, "AdaGrad-Norm whose step can grow", "arXiv 2206.06900"),
        (
            "gradagrad_diagonal",
            optimizers.DiagonalGradaGrad,
            "AdaGrad whose steps can grow",
            "arXiv 2206.06900",
        ),
        ("madgrad", optimizers.MADGRAD, "dual averaging over cube roots, momentum by averaging", "arXiv 2101.11075"),
        ("mirror_madgrad", optimizers.MirrorMADGRAD, "MADGRAD as mirror descent", "arXiv 2101.11075"),
        ("mda", optimizers.MDA, "dual averaging, momentum by averaging", "arXiv 2010.10502"),
        ("sngm", optimizers.SNGM, "momentum of normalised gradients", "arXiv 2007.13985"),
        ("adarem", optimizers.AdaRem, "gradient with a gain per element; experimental, recalled", "arXiv 2010.11041"),
        (
            "multiplicative_sgd",
            optimizers.MultiplicativeSGD,
            "SGD, steps in proportion to the weights",
            "arXiv 2307.07189",
        ),
        (
            "multiplicative_adam",
            optimizers.MultiplicativeAdam,
            "Adam, steps in proportion to the weights",
            "arXiv 2307.07189",
        ),
        ("sgdf", optimizers.SGDF, "gradient filtered by its variance", "arXiv 2311.02818"),
        (
            "ahb_sgd",
            optimizers.AdaptiveHeavyBall,
            "SGD, momentum from the curvature met",
            "arXiv 2110.09057",
        ),
        ("ahb_adam", optimizers.AdaptiveHeavyBallAdam, "Adam, momentum from the curvature met", "arXiv 2110.09057"),
        ("am_msgd", optimizers.AMMSGD, "momentum weighed by the gradient's distance from it", "arXiv 2510.04988"),
        ("ormo", optimizers.OrMo, "momentum in the order of the gradients, however late", "arXiv 2407.19234"),
        ("tam", optimizers.TAM, "momentum damped by its angle to the gradient", "arXiv 2412.18790"),
        ("adatam", optimizers.AdaTAM, "Adam damped by its angle to the gradient", "arXiv 2412.18790"),
        ("adatamw", optimizers.AdaTAMW, "AdaTAM, decoupled weight decay", "arXiv 2412.18790"),
        ("sgd_spa", optimizers.SGDSPA, "momentum by averaging the iterates", "arXiv 2010.00406"),
        ("schedule_free_sgd", optimizers.SGDScheduleFree, f"SGD, {_SCHEDULE_FREE}", "arXiv 2405.15682"),
        ("schedule_free_adamw", optimizers.AdamWScheduleFree, f"AdamW, {_SCHEDULE_FREE}", "arXiv 2405.15682"),
        (
            "prodigy_schedule_free",
            optimizers.ProdigyScheduleFree,
            "Schedule-Free AdamW, lr estimated by Prodigy",
            "arXiv 2405.15682",
        ),
        ("gpa_adamw", optimizers.GPAAdamW, "AdamW, primal averaging of iterates", "arXiv 2512.17131"),
        (
            "random_scaling_sgd",
            optimizers.RandomScalingSGD,
            "SGD, every step times a random number",
            "arXiv 2405.09742",
        ),
        (
            "random_scaling_adamw",
            optimizers.RandomScalingAdamW,
            "AdamW, every step times a random number",
            "arXiv 2405.09742",
        ),
        ("relative_muon", optimizers.RelativeMuon, "Muon and Adam, steps in shares of the weights", "arXiv 2502.16982"),
        ("ngn", optimizers.NGN, "Gauss-Newton step from the loss, below lr", "arXiv 2407.04358"),
    )
}


def names() -> list[str]:
    """The names of all methods, in alphabetical order."""
    return sorted(_METHODS)


def get(name: str) -> Method:
    """The method of that name; raises `ValueError` with the nearest names otherwise."""
    if name not in _METHODS:
        near = difflib.get_close_matches(str(name).lower(), _METHODS, n=3) or names()
        raise ValueError(f"no method is called {name!r}; did you mean {', '.join(near)}? `untuned list` shows all.")
    return _METHODS[name]


def create(model_or_params: Any, name: str, **options: Any) -> Optimizer:
    """The optimizer called `name` with `options` of its class.

    Given a module, parameters with fewer than two dimensions (biases and norm weights) are put in a group without
    weight decay, if there is any and the method does not divide groups by itself; parameters that need no gradient are
    left out. Given parameters or groups, these are used as they are.

    >>> import torch, untuned
    >>> model = torch.nn.Linear(3, 2)
    >>> optimizer = untuned.create(model, "adamw", lr=1e-3, weight_decay=0.1)
    >>> [(len(g["params"]), g["weight_decay"]) for g in optimizer.param_groups]
    [(1, 0.1), (1, 0.0)]
    """
    method = get(name)
    signature = inspect.signature(method.optimizer).parameters
    known = {*signature, *EngineOptions.__annotations__} - {"params", "engine"}
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=3) or sorted(known)
            raise TypeError(f"{name} has no option {option!r}; did you mean {', '.join(near)}?")
    params = model_or_params
    if isinstance(model_or_params, torch.nn.Module):
        decayed = options.get("weight_decay", signature["weight_decay"].default) != 0.0
        params = grouped(model_or_params, decayed and not method.divides_groups)
    return method.optimizer(params, **options)


def grouped(model: torch.nn.Module, decayed: bool) -> list[Any]:
    """The named parameters of a model that need a gradient; if `decayed`, those below two dimensions in a group apart.

    >>> import torch
    >>> [len(group["params"]) for group in grouped(torch.nn.Linear(3, 2), decayed=True)]
    [1, 1]
    """
    params = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if not decayed:
        return params
    matrices = [(n, p) for n, p in params if p.dim() >= 2]
    rest = [(n, p) for n, p in params if p.dim() < 2]
    groups = [{"params": matrices}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]

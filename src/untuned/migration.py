"""Runs begun with another package, continued here: what its checkpoint holds, put where ours keeps it."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from untuned.directions import Momentum
from untuned.iterates import Plain
from untuned.memory.buckets import number_from, sliced
from untuned.optimizer.groups import check_shared
from untuned.optimizer.optimizer import Optimizer
from untuned.optimizers.averaging import AdamWScheduleFree, SGDScheduleFree
from untuned.optimizers.classic import SGD, Adam, AdamW
from untuned.optimizers.distance import DAdaptAdaGrad, DAdaptAdam, DAdaptAdan, DAdaptLion, DAdaptSGD, Prodigy
from untuned.optimizers.dual import MADGRAD, MirrorMADGRAD
from untuned.optimizers.momo import MoMo, MoMoAdam
from untuned.parts.declare import check
from untuned.weight_decay import Decoupled

State = dict[str, Any]


class _Tensor(NamedTuple):
    """A parameter that has taken a step: its group there, its state there and here."""

    p: torch.Tensor
    group: State
    theirs: State
    ours: State


class _Run(NamedTuple):
    """A saved run and the optimizer that is to go on with it; its groups there and here."""

    optimizer: Optimizer
    saved: State
    groups: list[tuple[State, State]]
    tensors: list[_Tensor]

    def refusal(self, why: str) -> ValueError:
        return ValueError(f"{type(self.optimizer).__name__}: {why}")

    def must_be(self, option: str, saved: Any, built: Any) -> None:
        """Refuse a run that does otherwise, and say which option of ours does as it does, or what it lacks."""
        if saved == built:
            return
        advice = "no option here does it, so the run can only go on where it began"
        if option in {*inspect.signature(type(self.optimizer)).parameters, "maximize"}:
            advice = f"build it with {option}={saved!r}"
        elif option == "decoupled_weight_decay":
            advice = "it is True of AdamW and False of Adam, so migrate into the other of them"
        raise self.refusal(f"the run has {option}={saved!r}, this optimizer has {option}={built!r}: {advice}.")


def _sgd(run: _Run) -> None:
    for theirs, ours in run.groups:
        if not isinstance(run.optimizer.parts["direction"], Momentum):
            run.must_be("momentum", theirs["momentum"], 0)
        elif not theirs["momentum"]:
            ours["dampening"] = 0.0  # torch dampens nothing then
    for t in run.tensors:
        t.ours["step"] = 1.0  # torch does not count; what matters is that the first is over


def _adam(run: _Run) -> None:
    for t in run.tensors:
        t.ours["rho"] = 1 - t.group["betas"][0] ** float(t.theirs["step"])


def _momo(run: _Run) -> None:
    """momo-opt keeps its step count and its average of the losses outside its state dict."""
    opt, held, ours = run.optimizer, run.saved["state"], run.groups[0][1]
    average, beta = ("momentum_buffer", ours["momentum"]) if "momentum" in ours else ("exp_avg", ours["betas"][0])
    kept = {"loss_avg", "_number_steps"} <= run.saved.keys()
    k = run.saved["_number_steps"] if kept else 0
    ours["lower_bound"] = held.get("fstar", ours["lb"])
    ours["weights"] = 1 - beta**k if opt.recipe.corrects(opt.parts) or not k else 1.0
    ours["loss_avg"] = run.saved["loss_avg"] if kept else 0.0
    for t in run.tensors:
        run.must_be("use_fstar", "fstar" in held, opt.parts["step_size"].online)
        if average == "momentum_buffer":
            run.must_be("bias_correction", t.theirs["grad_dot_w"].dim() == 1, opt.recipe.corrects(opt.parts))
        t.ours[average] = t.theirs["grad_avg"] if kept else torch.zeros_like(t.p)
        t.ours["mx"] = (t.ours[average] * t.p.detach()).sum(dtype=torch.float64)
        t.ours["model_offset"] = t.ours["mx"] - t.theirs["grad_dot_w"].reshape(()).double() if kept else 0.0
        t.ours["step"] = t.theirs.get("step", k)
        if opt.recipe.corrects(opt.parts):
            t.ours["rho"] = ours["weights"]
    if run.tensors and not kept:
        warnings.warn(
            f"{type(opt).__name__}: momo-opt saves neither its average of the losses nor its step count, so that the "
            "averages of losses and gradients start anew. To keep them, save its optimizer.state_dict() | "
            "{k: getattr(optimizer, k) for k in ('loss_avg', '_number_steps')}.",
            stacklevel=3,
        )


Size = Callable[[_Tensor], torch.Tensor]


def _norm1(t: _Tensor) -> torch.Tensor:
    return t.group.get("layer_scale", 1.0) * t.theirs["s"].abs().sum()


def _one_estimate(run: _Run, key: str = "numerator_weighted", here: str = "", size: Size = _norm1) -> None:
    """One d for the model, options read in its first group, and one numerator, which is kept per tensor here.

    It is divided as the sizes are, so that d_hat does not rise because a tensor rests.
    """
    rule, first = run.optimizer.parts["step_size"], run.groups[0][0]
    run.must_be("scope", "model", rule.scope)
    run.must_be("scale_average", True, getattr(rule, "scale_average", True))
    shared = {k: first[k] for k in ("betas", "beta3", "d0", "d_coef", "growth_rate", "momentum") if k in first}
    if len(shared.get("betas", ())) == 3:
        shared |= {"beta3": first["betas"][2], "d_coef": 2 * first["betas"][2]}
    elif "betas" in shared and shared.get("beta3") is None:
        shared["beta3"] = math.sqrt(first["betas"][1])
    for _, ours in run.groups:
        ours |= {k: v for k, v in shared.items() if k in ours}
    sizes = [float(size(t)) for t in run.tensors]
    for t, part in zip(run.tensors, sizes, strict=True):
        t.ours[here or key] = first[key] * part / (sum(sizes) or 1.0)


def _prodigy(run: _Run) -> None:
    _one_estimate(run, "d_numerator")
    for t in run.tensors:
        seen = sliced(t.p, run.optimizer.parts["step_size"].every)  # theirs are flat, also of whole tensors
        p0 = t.theirs["p0"]  # a single zero, if the tensor was all zeros
        t.ours["p0"] = p0.reshape(seen.shape) if p0.dim() else torch.zeros_like(seen)
        t.ours["s"] = t.theirs["s"].reshape(seen.shape)


def _dadapt_adam(run: _Run) -> None:
    """Their layer_scale is our lr of a group. Our unit is that of the largest lr: in it d and s are so much larger."""
    _one_estimate(run)
    top = max(theirs["layer_scale"] for theirs, _ in run.groups)
    for theirs, ours in run.groups:
        ours["lr"], ours["d"] = theirs["lr"] * theirs["layer_scale"] / top, top * theirs["d"]
        if theirs["decouple"]:  # decay does not follow layer_scale
            ours["weight_decay"] = theirs["weight_decay"] / (theirs["layer_scale"] or 1.0)
    for t in run.tensors:
        t.ours["s"] = top * t.theirs["s"]
        t.ours["numerator_weighted"] *= top


def _dadapt_sgd(run: _Run) -> None:
    first = run.groups[0][0]
    if isinstance(run.optimizer.parts["iterate"], Plain):
        run.must_be("momentum", first["momentum"], 0)
    _one_estimate(run, size=lambda t: t.theirs["s"].square().sum())
    for _, ours in run.groups:
        ours["weight_decay"] = first["weight_decay"]
    for t in run.tensors:  # their s is divided by the norm of the first gradient
        t.ours["s"] = first["g0_norm"] * t.theirs["s"]
        t.ours["numerator_weighted"] *= first["g0_norm"] ** 2


def _dadapt_adagrad(run: _Run) -> None:
    def size(t: _Tensor) -> torch.Tensor:
        return (t.theirs["sk"].square() / (t.theirs["alphak"].sqrt() + t.group["eps"])).sum()

    _one_estimate(run, "gsq_weighted", "d_penalty", size)
    for t in run.tensors:
        t.ours["grad_sum_sq"] = (t.theirs["alphak"] - 1e-6).clamp(min=0)  # where theirs starts


def _schedule_free(run: _Run) -> None:
    if len({theirs["train_mode"] for theirs, _ in run.groups}) > 1:
        raise run.refusal(
            "some groups of the run are in training mode and others in evaluation mode, as their train_mode says: "
            "call train() or eval() of the optimizer there and save again."
        )
    for theirs, ours in run.groups:
        ours["training"] = theirs["train_mode"]
        if "betas" in theirs:
            ours["beta"], ours["beta2"] = theirs["betas"]
        else:
            ours["beta"] = theirs["momentum"]
    for t in run.tensors:
        t.ours.update({key: t.group[key] for key in ("lr_max", "weight_sum")})


def _madgrad(run: _Run) -> None:
    for theirs, ours in run.groups:
        ours["lr"] = theirs["lr"] + theirs["eps"] if theirs["lr"] else theirs["lr"]  # as they use it
    for t in run.tensors:
        t.ours["step"] = float(run.saved["state"]["k"])
        if "x0" in t.ours and "x0" not in t.theirs:  # without momentum, p is the step from x0
            moved = t.theirs["s"] / (t.theirs["grad_sum_sq"].pow(1 / 3) + t.group["eps"])
            t.ours["x0"] = t.p.detach() + torch.where(t.theirs["s"] == 0, 0.0, moved).to(t.p.device)


# Who saved it; what is not copied by name; the keys by which the checkpoint is known: of a tensor's state (with "?" not
# of every tensor's, with ":" and its name here), of a group, and beside the tensors. DAdaptAdanIP has two exchanged.
_ADAM, _MOMO, _DADAPT = "step exp_avg exp_avg_sq", "grad_avg grad_dot_w", "d numerator_weighted growth_rate"
_ADAN = "step s exp_avg exp_avg_sq:exp_avg_diff exp_avg_diff:exp_avg_sq pre_grad:previous_grad"
_ADAGRAD, _FREE = "sk:grad_sum alphak:grad_sum_sq x0", "train_mode weight_sum lr_max warmup_steps"
_METHODS: dict[type[Optimizer], tuple[str, Callable[[_Run], None], str, str, str]] = {
    SGD: ("torch.optim.SGD", _sgd, "momentum_buffer?", "momentum dampening nesterov", ""),
    Adam: ("torch.optim.Adam", _adam, _ADAM, "betas amsgrad", ""),
    AdamW: ("torch.optim.AdamW", _adam, _ADAM, "betas amsgrad", ""),
    MoMo: ("momo.Momo", _momo, _MOMO, "lr weight_decay", "step_size_list"),
    MoMoAdam: ("momo.MomoAdam", _momo, f"{_MOMO} step grad_avg_sq:exp_avg_sq", "betas", "step_size_list"),
    Prodigy: ("prodigyopt.Prodigy", _prodigy, "step exp_avg? exp_avg_sq s p0", "d d_max d_numerator beta3 betas", ""),
    DAdaptSGD: ("dadaptation.DAdaptSGD", _dadapt_sgd, "s x0 z", f"{_DADAPT} momentum", ""),
    DAdaptAdam: ("dadaptation.DAdaptAdam", _dadapt_adam, f"{_ADAM} s", f"{_DADAPT} layer_scale decouple betas", ""),
    DAdaptAdaGrad: ("dadaptation.DAdaptAdaGrad", _dadapt_adagrad, _ADAGRAD, "d gsq_weighted eps momentum", ""),
    DAdaptLion: ("dadaptation.DAdaptLion", _one_estimate, "exp_avg s", "d numerator_weighted betas", ""),
    DAdaptAdan: ("dadaptation's DAdaptAdanIP", _one_estimate, _ADAN, f"{_DADAPT} no_prox betas", ""),
    MADGRAD: ("madgrad.MADGRAD", _madgrad, "s:grad_sum grad_sum_sq x0?", "eps decouple_decay", "k"),
    MirrorMADGRAD: ("madgrad.MirrorMADGRAD", _madgrad, "grad_sum_sq z", "eps decouple_decay", "k"),
    SGDScheduleFree: ("schedulefree.SGDScheduleFree", _schedule_free, "z", f"{_FREE} momentum", ""),
    AdamWScheduleFree: ("schedulefree.AdamWScheduleFree", _schedule_free, "z exp_avg_sq", f"{_FREE} betas", ""),
}


def migrate(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    """Continue a run of another package: load the `state_dict()` of its optimizer into ours.

    `optimizer` is freshly built, on the same parameters in the same order and groups, with the options that shape the
    method as they were there. The checkpoint is of the optimizer of that name in torch.optim, momo-opt 0.1,
    prodigyopt 1.1, dadaptation 3.2, madgrad 1.3 or schedulefree 1.4; of Adan in dadaptation, DAdaptAdanIP. lr, weight
    decay, betas and the like are taken from it. Load the weights into the model first; schedulefree's are those of the
    mode in which the checkpoint was saved.

    The run goes on as it would have there, up to what the docstrings name as differences. But momo-opt saves too
    little: its averages start anew, and a warning says what to save to keep them; beta, lb and divide are those that
    `optimizer` was built with. torch.optim.SGD does not count its steps: `metrics()["steps"]` counts from here.

    Raises `ValueError`, with nothing changed, if another optimizer saved the checkpoint or the run cannot go on.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.tensor([4.0]))
    >>> before = torch.optim.Adam([w], lr=0.5)
    >>> (w**2).sum().backward()
    >>> before.step()
    >>> optimizer = untuned.Adam([w])
    >>> untuned.migrate(optimizer, before.state_dict())
    >>> optimizer.param_groups[0]["lr"], optimizer.metrics()["steps"]
    (0.5, 1.0)
    """
    new = optimizer.state_dict()
    new["state"] = {i: dict(held) for i, held in new["state"].items()}
    run = _Run(optimizer, state_dict, [], [])
    published = next((_METHODS[c] for c in type(optimizer).__mro__ if c in _METHODS), None)
    if published is None:
        raise run.refusal(f"migrate() is for {', '.join(c.__name__ for c in _METHODS)}.")
    if any(held["step"] for held in new["state"].values()):
        raise run.refusal("this optimizer has taken steps already; migrate into a fresh one.")
    name, fill, *keys = published
    _copy_by_name(run, new, name, *(column.split() for column in keys))
    fill(run)
    for t in run.tensors:
        t.ours.update({key: number_from(v, t.p.device) for key, v in t.ours.items() if not isinstance(v, torch.Tensor)})
    steps = max((float(t.ours["step"]) for t in run.tensors), default=0.0)
    for _, ours in run.groups:
        ours["steps"] = steps
        for part in optimizer.parts.values():
            ours |= {key: check(part.name, part.fields[key], ours[key]) for key in part.hypers()}
    check_shared(optimizer.recipe, [ours for _, ours in run.groups])
    optimizer.load_state_dict(new)


def _copy_by_name(run: _Run, new: State, name: str, tensor: list[str], group: list[str], model: list[str]) -> None:
    """Fill `run` from its checkpoint, and refuse what is not of this method or of another shape."""

    def require(where: str, found: State, wanted: set[str], known: set[str] | None = None) -> None:
        if wrong := sorted(wanted - found.keys()) or sorted(found.keys() - (known or found.keys())):
            has = "no" if wrong[0] in wanted else "a foreign"
            raise run.refusal(f"this is not a checkpoint of {name}: {where} has {has} {wrong[0]!r}.")

    parts, saved = run.optimizer.parts, run.saved
    decoupled = ("decouple", "decouple_decay", "decoupled_weight_decay", "no_prox")
    shape = dict.fromkeys(decoupled, isinstance(parts["decay"], Decoupled)) | {
        "amsgrad": False,
        "maximize": run.optimizer.recipe.maximize,
        "nesterov": getattr(parts["direction"], "nesterov", False),
        "safeguard_warmup": getattr(parts["step_size"], "safeguard_warmup", False),
        "slice_p": parts["step_size"].every,
        "use_bias_correction": getattr(parts["step_size"], "bias_correction", False),
    }
    require("it", saved, {"state", "param_groups"})
    require("its state", saved["state"], set(model))
    theirs, ours = ([len(g["params"]) for g in groups] for groups in (saved["param_groups"], new["param_groups"]))
    if theirs != ours:
        raise run.refusal(f"the run has groups of {theirs} parameters, the optimizer of {ours}: build it alike.")
    always = {key.partition(":")[0] for key in tensor if not key.endswith("?")}
    names = {there: here or there for there, _, here in (key.rstrip("?").partition(":") for key in tensor)}
    for built, theirs, ours in zip(run.optimizer.param_groups, saved["param_groups"], new["param_groups"], strict=True):
        require("a group", theirs, set(group))
        for option in shape.keys() & theirs.keys():
            run.must_be(option, theirs[option], shape[option])
        ours |= {key: theirs[key] for key in ours.keys() & theirs.keys() - {"params", "param_names"}}
        run.groups.append((theirs, ours))
        for p, i, j in zip(built["params"], theirs["params"], ours["params"], strict=True):
            held = {key: v for key, v in saved["state"].get(i, {}).items() if v is not None}
            if held and j in new["state"]:  # a parameter that is frozen here keeps no state
                require(f"the state of parameter {i}", held, always, set(names))
                copied = {"step": theirs.get("k")} | {names[key]: v for key, v in held.items()}
                new["state"][j].update({key: v for key, v in copied.items() if key in new["state"][j]})
                run.tensors.append(_Tensor(p, theirs, held, new["state"][j]))

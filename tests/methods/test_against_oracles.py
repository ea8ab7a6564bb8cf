"""Every method against its NumPy transcription: 20 steps in float64, option by option."""

import copy
import inspect
import pickle
from functools import cache, partial
from math import inf

import numpy as np
import pytest
import torch

import untuned
from untuned.parts import uniform
from untuned.testing import oracles

STEPS = 20
START = [
    np.array([[0.3, -1.2], [0.8, 0.1], [-0.4, 1.5]]),
    np.array([0.2, -0.7]),
    np.array(1.3),
    np.array([[[0.5, -0.1]], [[0.9, 0.6]]]),
]


def problem(x, k):
    """Two logistic regressions with a common gain and a skip connection, on a batch that changes with k."""
    rng = np.random.default_rng(k)
    inputs, labels = rng.normal(size=(5, 3)), np.sign(rng.normal(size=(5, 2)))
    features = inputs[:, :2]
    weights, bias, gain, skip = x
    hidden = inputs @ weights + bias
    scores = gain * hidden + features @ skip[:, 0]
    slopes = -labels / (1 + np.exp(labels * scores)) / 5
    loss = float(np.log1p(np.exp(-labels * scores)).sum() / 5)
    inward = gain * slopes
    return loss, [inputs.T @ inward, inward.sum(0), (slopes * hidden).sum(), (features.T @ slopes)[:, None]]


DECAY = [{"weight_decay": 0.1}]
COUPLED_OR_NOT = [{"weight_decay": 0.1, "decouple": True}, {"weight_decay": 0.1, "decouple": False}]
SCHEDULE_FREE = [
    *DECAY,
    {"warmup_steps": 7},
    {"r": 1.5},
    {"weight_lr_power": 0.0, "warmup_steps": 7},
    {"warmup_steps": 30, "r": 0.5, "weight_lr_power": 1.0, "weight_decay": 0.05},
]
TAMS = [*DECAY, {"decay": 0.5}, {"floor": 0.1}, {"scope": "model"}, {"scope": "model", "weight_decay": 0.1}]
MOMOS = [
    *DECAY,
    {"lr": 50.0},
    {"lr": 50.0, "lb": 0.6, "weight_decay": 0.01},
    {"use_fstar": True, "lr": 50.0},
    {"use_fstar": True, "lr": 50.0, "lb": -2.0, "weight_decay": 0.01},
]
SCOPES = [{"scope": "group"}, {"scope": "tensor"}]
DECOUPLED = [{"weight_decay": 0.1}, {"weight_decay": 0.1, "decouple_decay": True}]
# Methods with a recorded loss per sample: seven samples, four of them, or one more often, in a batch.
SAMPLES = {"samples": 7, "ids": [np.random.default_rng(k).integers(7, size=4) for k in range(1, STEPS + 1)]}
# The rows of each method beside those that every method has.
OPTIONS = {
    "sgd": [
        *DECAY,
        {"momentum": 0.9},
        {"momentum": 0.5, "weight_decay": 0.1},
        {"momentum": 0.9, "nesterov": True},
    ],
    "adam": [*DECAY, {"betas": (0.0, 0.9)}, {"eps": 0.1}],
    "adamw": [{"weight_decay": 0.0}, {"weight_decay": 0.1}, {"betas": (0.5, 0.9)}, {"eps": 0.1}],
    "momo": [
        *MOMOS,
        {"beta": 0.5},
        {"bias_correction": True},
        {"bias_correction": True, "use_fstar": True, "lr": 50.0},
    ],
    "momo_adam": [*MOMOS, {"divide": False, "weight_decay": 0.1}, {"betas": (0.5, 0.9)}, {"eps": 0.1}],
    "prodigy": [
        *COUPLED_OR_NOT,
        {"lr": 0.3},
        {"betas": (0.0, 0.9)},
        {"beta3": 0.9},
        {"eps": 0.1},
        {"use_bias_correction": True},
        {"safeguard_warmup": True, "lr": 0.3},
        {"d0": 1e-2, "d_coef": 0.5},
        {"growth_rate": 1.3},
        {"freeze_after": 5},
        {"slice_p": 2, "weight_decay": 0.1},
        *SCOPES,
    ],
    "dadapt_adam": [
        *COUPLED_OR_NOT,
        {"lr": 0.3},
        {"betas": (0.0, 0.9)},
        {"eps": 0.1},
        {"use_bias_correction": True},
        {"d0": 1e-2},
        {"growth_rate": 1.3},
        {"freeze_after": 5},
        *SCOPES,
    ],
    "mechanic_sgd": [*DECAY, {"momentum": 0.0}, {"s_decay": 0.5}, {"s_init": 1e-4}, {"s_init": 1e-4, "s_decay": 0.0}],
    "mechanic_adamw": [*DECAY, {"betas": (0.0, 0.9)}, {"eps": 0.1}, {"s_decay": 0.5}, {"s_init": 1e-4}],
    "tam": [*TAMS, {"momentum": 0.5}],
    "adatam": [*TAMS, {"betas": (0.5, 0.9)}, {"eps": 0.1}],
    "adatamw": [*TAMS, {"betas": (0.5, 0.9)}, {"eps": 0.1}],
    "sps": [*DECAY, {"c": 1.0}, {"lr": 50.0}, {"lr": 50.0, "lb": 0.6}, {"lr": 50.0, "c": 2.0, "weight_decay": 0.1}],
    "dec_sps": [*DECAY, {"c0": 3.0}, {"lr": 50.0}, {"lr": 50.0, "lb": 0.6}, {"lr": 50.0, "weight_decay": 0.1}],
    "prox_sps": [*DECAY, {"lr": 50.0}, {"lr": 50.0, "lb": 0.6}, {"lr": 50.0, "weight_decay": 0.01}],
    "sp": [*DECAY, {"lr": 0.3}, {"lb": 0.6}, {"lr": 1.5, "weight_decay": 0.05}],
    "alig": [*DECAY, {"lr": 50.0}, {"lr": 50.0, "eps": 0.5}, {"lr": 50.0, "lb": 0.6}, {"eps": 50.0}],
    "taps": [*DECAY, {"target": 0.5}, {"lr": 0.3}, {"momentum": 0.5}, {"momentum": 0.9, "target": -1.0, "lr": 0.1}],
    "motaps": [*DECAY, {"target_lr": 0.5}, {"lr": 0.3}, {"momentum": 0.5}, {"momentum": 0.9, "target_lr": 1.0}],
    "dadapt_sgd": [*DECAY, {"momentum": 0.9}, {"d0": 1e-2}, {"growth_rate": 1.3}, {"lr": 0.3}],
    "dadapt_adagrad": [*DECAY, {"momentum": 0.9}, {"d0": 1e-2, "eps": 0.1}, {"growth_rate": 1.1}, {"lr": 0.3}],
    "dadapt_lion": [*DECAY, {"betas": (0.5, 0.9)}, {"d0": 1e-2}, {"lr": 0.3}, {"lr": 3.0, "weight_decay": 0.05}],
    "dadapt_adan": [
        {"weight_decay": 0.0},
        {"weight_decay": 0.1, "no_prox": True},
        {"betas": (0.5, 0.6, 0.9)},
        {"eps": 0.1},
        {"growth_rate": 1.3},
    ],
    "dadapt_da": [*DECAY, {"d0": 0.1}, {"d0": 0.1, "growth_rate": 1.02}, {"lr": 0.3}, {"d0": 0.1, "weight_decay": 0.1}],
    "dadapt_gd": [*DECAY, {"d0": 0.1}, {"d0": 0.1, "growth_rate": 1.02}, {"lr": 0.3}, {"G": 1.0}],
    "prodigy_da": [*DECAY, {"d0": 0.1}, {"d0": 0.1, "growth_rate": 1.02}, {"lr": 0.3}, {"G": 1.0}],
    "prodigy_gd": [*DECAY, {"d0": 0.1}, {"d0": 0.1, "growth_rate": 1.02}, {"lr": 0.3}, {"G": 1.0}],
    "resetting": [*DECAY, {"d0": 0.1}, {"d0": 0.1, "weight_decay": 0.1}, {"lr": 0.3}, {"G": 1.0}],
    "resetting_gd": [*DECAY, {"d0": 0.1}, {"d0": 0.1, "weight_decay": 0.1}, {"lr": 0.3}, {"G": 1.0}],
    "dog": [*DECAY, {"reps_rel": 1e-2}, {"eps": 0.1}, {"lr": 0.3}, {"reps_rel": 0.1, "weight_decay": 0.1}],
    "ldog": [*DECAY, {"reps_rel": 1e-2}, {"eps": 0.1}, {"lr": 0.3}, {"reps_rel": 0.1, "weight_decay": 0.1}],
    "dowg": [*DECAY, {"eps": 1e-2}, {"eps": 1.0}, {"lr": 0.3}, {"eps": 1e-2, "weight_decay": 0.3}],
    "gradagrad": [*DECAY, {"momentum": 0.9}, {"rho": 0.0}, {"rho": 5.0, "r": 0.5}, {"r": 0.0, "rho": 5.0}, *SCOPES],
    "gradagrad_diagonal": [*DECAY, {"momentum": 0.9}, {"rho": 0.0}, {"rho": 5.0, "r": 0.5}, {"r": 0.0}],
    "madgrad": [*DECOUPLED, {"momentum": 0.0}, {"eps": 0.0}, {"eps": 0.1}, {"lr": 0.3}],
    "mirror_madgrad": [*DECOUPLED, {"momentum": 0.0}, {"eps": 1e-3}, {"eps": 0.1}, {"lr": 0.3}],
    "mda": [*DECAY, {"momentum": 0.0}, {"momentum": 0.5}, {"lr": 0.3}, {"lr": 3.0, "weight_decay": 0.05}],
    "ahb_sgd": [*DECAY, {"cap": inf}, {"cap": 0.1}, {"cap": 0.1, "delta": 0.7}, {"lr": 0.3, "weight_decay": 0.1}],
    "ahb_adam": [
        {"weight_decay": 0.1},
        {"cap": inf},
        {"cap": 0.1},
        {"cap": 0.1, "delta": 0.7},
        {"beta2": 0.5},
        {"eps": 0.1},
    ],
    "sgd_spa": [*DECAY, {"momentum": 0.0}, {"momentum": 0.5}, {"lr": 1.0}, {"lr": 1.0, "weight_decay": 0.1}],
    "am_msgd": [*DECAY, {"penalty": 0.0}, {"penalty": 2.0}, {"beta_max": 0.0}, {"beta_max": 0.99}, {"lr": 0.3}],
    "sgdf": [
        {"weight_decay": 0.1, "weight_decouple": True},
        {"weight_decay": 0.1},
        {"betas": (0.0, 0.999)},
        {"betas": (0.5, 0.9)},
        {"eps": 0.1},
        {"gamma": 1.0},
        {"gamma": 2.5, "weight_decay": 0.1},
        {"version": "v2025-03"},
        {"version": "v2024-04", "betas": (0.5, 0.9)},
        {"version": "v2024-03"},
    ],
    "adarem": [*DECAY, {"beta": 0.5}, {"lam": 0.9}, {"eps": 0.1}, {"lr": 0.1}],
    "multiplicative_sgd": [
        *DECAY,
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.5, "weight_decay": 0.1},
        {"eta_in": 5.0, "mix": 0.3, "additive": 2.0},
        {"rule": "power", "lr": 0.3},
    ],
    "multiplicative_adam": [
        *DECAY,
        {"betas": (0.5, 0.9)},
        {"eps": 0.1},
        {"eta_in": 5.0, "mix": 0.3, "additive": 2.0},
        {"rule": "power", "lr": 0.3},
    ],
    "sngm": [*DECAY, {"momentum": 0.0}, {"momentum": 0.5}, {"lr": 0.3}, *SCOPES],
    "schedule_free_sgd": [*SCHEDULE_FREE, {"momentum": 0.5}],
    "schedule_free_adamw": [*SCHEDULE_FREE, {"betas": (0.5, 0.9)}, {"eps": 0.1}],
    "gpa_adamw": [*DECAY, {"betas": (0.5, 0.9)}, {"eps": 0.1}, {"train": 0.3}, {"keep": 0.5, "weight_decay": 0.1}],
    "ngn": [*DECAY, {"momentum": 0.9}, {"lr": 50.0}, {"lr": 50.0, "lb": 0.6}, {"momentum": 0.5, "weight_decay": 0.1}],
    "ormo": [
        *DECAY,
        {"momentum": 0.0},
        {"num_workers": 3},
        {"num_workers": 4, "weight_decay": 0.2},
    ],
    "prodigy_schedule_free": [
        *DECAY,
        {"lr": 0.3},
        {"betas": (0.5, 0.9)},
        {"beta3": 0.9},
        {"eps": 0.1},
        {"r": 1.5, "weight_lr_power": 0.0},
        {"use_bias_correction": False},
        {"d0": 1e-2, "d_coef": 0.5},
        {"growth_rate": 1.3},
    ],
    "random_scaling_adamw": [{"weight_decay": 0.1}, {"seed": 7}, {"betas": (0.5, 0.9)}, {"eps": 0.1}],
    "random_scaling_sgd": [*DECAY, {"seed": 7}, {"beta": 0.5}, {"lr": 3.0}],
    "relative_muon": [
        {"weight_decay": 0.5},
        {"weight_decay": 0.0},
        {"momentum": 0.5},
        {"betas": (0.5, 0.9)},
        {"ns_steps": 3},
    ],
}

# What every method has: a group may rest, from the start or in between, and a schedule may begin and end near 0.
COMMON = {
    "defaults": ({}, None, None),
    "groups": ({}, {"indices": [0, 2], "lr": 0.3, "weight_decay": 0.2}, None),
    "late group": ({}, {"indices": [0, 2], "lr": 2.0, "schedule": [0.0] * 6 + [1.0] * 14}, None),
    "pausing group": (
        {},
        {"indices": [1, 2], "weight_decay": 0.2, "schedule": [1.0] * 7 + [0.0] * 6 + [0.5] * 7},
        None,
    ),
    "warm-up from 0": ({}, None, [0.0, 0.25, 0.5, 0.75, *oracles.linear_decay(STEPS - 4)]),
}
TWO_GROUPS = {"indices": [0, 2]}
SETTINGS = {
    name: COMMON
    | {
        ", ".join(f"{k}={v}" for k, v in row.items()): (row, TWO_GROUPS if "scope" in row else None, None)
        for row in OPTIONS[name]
    }
    for name in untuned.list()
}
# Every setting as the verbs are written; a few methods as kernels too, which have tests of their own.
CASES = [pytest.param(n, s, "reference", marks=pytest.mark.processors) for n in SETTINGS for s in SETTINGS[n]]
CASES += [
    (n, "pausing group", "auto") if i % 3 == 0 else pytest.param(n, "pausing group", "auto", marks=pytest.mark.slow)
    for i, n in enumerate(SETTINGS)
]


def factors(seed, steps):
    return -np.log(1 - uniform(seed, np.arange(1, steps + 1)))


def random_scaling_sgd(x0, problem, steps, *, seed, lr, beta, weight_decay, groups, schedule):
    options = {"lr": lr, "beta": beta, "weight_decay": weight_decay, "groups": groups, "schedule": schedule}
    return oracles.random_scaled(x0, problem, steps, factors=factors(seed, steps), **options)


def random_scaling_adamw(x0, problem, steps, *, seed, lr, betas, eps, weight_decay, groups, schedule):
    options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    options |= {"groups": groups, "schedule": schedule}
    return oracles.random_scaled(x0, problem, steps, factors=factors(seed, steps), base="adamw", **options)


def ormo(x0, problem, steps, *, num_workers, weight_decay, groups, schedule, **options):
    """The oracle moves a tensor while its lr is 0; ours rests, where gradient and decay are taken, and catches up."""
    rates, decay, points = [schedule or [1.0] * steps] * len(x0), [weight_decay] * len(x0), [list(x0)]
    for group in groups or []:
        for i in group["indices"]:
            rates[i], decay[i] = group.get("schedule", rates[i]), group.get("weight_decay", weight_decay)

    def shown(x, k):
        return [a if rates[i][k - 1] else points[-1][i] for i, a in enumerate(x)]

    def at_rest(x, k):
        points.append(shown(x, k - 1) if k > 1 else list(x0))
        loss, grads = problem(points[-1], k)
        return loss, [g + d * a for g, d, a in zip(grads, decay, points[-1], strict=True)]

    groups = groups and [{k: v for k, v in group.items() if k != "weight_decay"} for group in groups]
    options |= {"workers": num_workers, "groups": groups, "schedule": schedule}
    iterates, _ = oracles.ordered_momentum(x0, at_rest, range(steps), **options)
    return [*points[2:], shown(iterates[-1], steps)], {}


ormo.__signature__ = inspect.signature(untuned.OrMo)


def prodigy_schedule_free(x0, problem, steps, *, betas, **options):
    """Schedule-Free's Adam has no first moment; its betas[0] is the share of x in y."""
    options |= {"betas": (0.0, betas[1]), "momentum": betas[0], "weigh": "step"}
    return oracles.prodigy_schedule_free(x0, problem, steps, **options)


prodigy_schedule_free.__signature__ = inspect.signature(oracles.prodigy_schedule_free)
ORACLES = {name: getattr(oracles, name, None) for name in untuned.list()} | {
    "gpa_adamw": partial(oracles.gpa, base="adamw"),
    "prodigy_schedule_free": prodigy_schedule_free,
    "ormo": ormo,
    "random_scaling_sgd": random_scaling_sgd,
    "multiplicative_sgd": partial(oracles.multiplicative, base="sgd"),
    "multiplicative_adam": partial(oracles.multiplicative, base="adam"),
    "random_scaling_adamw": random_scaling_adamw,
    "mechanic_sgd": partial(oracles.mechanic, base="sgd"),
    "mechanic_adamw": partial(oracles.mechanic, base="adamw"),
}
RENAMED = {
    "gpa_adamw": {"train": "mu_y", "keep": "mu_x"},
    "tam": {"momentum": "beta", "decay": "gamma", "floor": "gain_floor"},
    "adatam": {"decay": "gamma", "floor": "gain_floor"},
    "adatamw": {"decay": "gamma", "floor": "gain_floor"},
    "mechanic_adamw": {"betas": "adam_betas", "eps": "adam_eps"},
}
# The oracle's name of a number -> where ours stands in the groups.
NUMBERS = {
    "d": "d",
    "d_max": "d_max",
    "S": "mechanic_S",
    "theta": "theta",
    "lower_bound": "lower_bound",
    "loss_average": "loss_avg",
    "beta": "adaptive_beta",
    "kept": "kept",
    "rms_of_model": "rms_of_model",
}


def resolve(name, setting):
    """-> the method's options in full, its second group with its own lr, and the schedule."""
    options, group, schedule = SETTINGS[name][setting]
    signature = inspect.signature(untuned.get(name).optimizer).parameters
    options = {k: p.default for k, p in signature.items() if k not in ("params", "engine")} | options
    if "samples" in options:
        options["samples"] = SAMPLES["samples"]
    if group is not None:
        group = group | {"lr": options["lr"] * group.get("lr", 1.0)}
    return options, group, schedule


@cache
def run_oracle(name, setting):
    options, group, schedule = resolve(name, setting)
    options = {RENAMED.get(name, {}).get(k, k): v for k, v in options.items()}
    if "samples" in options:
        options |= SAMPLES
    known = inspect.signature(ORACLES[name]).parameters
    for option in options.keys() - known.keys():
        assert options.pop(option) == inspect.signature(untuned.get(name).optimizer).parameters[option].default
    return ORACLES[name](START, problem, STEPS, groups=group and [group], schedule=schedule, **options)


def run_ours(name, setting, execution):
    options, group, schedule = resolve(name, setting)
    params = [torch.tensor(a, requires_grad=True) for a in START]
    second = group["indices"] if group else []
    groups = [{"params": [p for i, p in enumerate(params) if i not in second]}]
    schedules = [schedule or [1.0] * STEPS]  # one for each group that is given; a method may divide it
    if group:
        own = {k: group[k] for k in ("lr", "weight_decay") if k in group}
        groups.append({"params": [params[i] for i in second], **own})
        schedules.append(group.get("schedule", schedules[0]))
    optimizer = untuned.get(name).optimizer(groups, execution=execution, **options)
    lrs = [g["lr"] for g in optimizer.param_groups]
    of = [schedules[any(g["params"][0] is params[i] for i in second)] for g in optimizer.param_groups]
    first = optimizer.param_groups[0]

    points, numbers = [], []
    for k in range(1, STEPS + 1):
        loss, grads = problem([p.detach().numpy() for p in params], k)
        for p, g in zip(params, grads, strict=True):
            p.grad = torch.tensor(g)
        for g, lr, multipliers in zip(optimizer.param_groups, lrs, of, strict=True):
            g["lr"] = lr * multipliers[k - 1]
        optimizer.step(loss=loss, sample_ids=SAMPLES["ids"][k - 1])
        points.append([p.detach().clone().numpy() for p in params])
        row = {oracles_name: first[key].item() for oracles_name, key in NUMBERS.items() if key in first}
        if "cosine" in first:
            row["alignment"] = [first["cosine"].item()]
        elif "cosine" in optimizer.state[params[0]]:
            row["alignment"] = [optimizer.state[p]["cosine"].item() for p in params]
        if optimizer.recipe.has_modes:
            with optimizer.averaged_parameters():
                row["averaged"] = [p.detach().clone().numpy() for p in params]
        numbers.append(row)
    return points, {key: [row[key] for row in numbers] for key in numbers[0]}


def vector(points):
    return np.array([np.concatenate([np.ravel(a) for a in x]) for x in points])


def largest(a, b):
    return np.abs(np.asarray(a) - np.asarray(b)).max()


@pytest.mark.parametrize(("name", "setting", "execution"), CASES)
def test_method_follows_its_oracle(name, setting, execution):
    theirs, scalars = run_oracle(name, setting)
    ours, numbers = run_ours(name, setting, execution)
    way = largest(vector(theirs), vector([START]))  # not the size of x, which would hide errors of small steps
    assert largest(vector(ours), vector(theirs)) <= 1e-10 * way
    shared = numbers.keys() & scalars.keys()
    assert shared == scalars.keys() & {*NUMBERS, "alignment", "averaged"} or SETTINGS[name][setting][0].get("scope")
    for key in shared:
        values = numbers[key]
        if isinstance(scalars[key][0], list) and not isinstance(
            values[0], list
        ):  # a number of each group or tensor, of which ours shows the first
            continue
        if key == "averaged":
            assert largest(vector(values), vector(scalars[key])) <= 1e-10 * way
        else:
            assert largest(values, scalars[key]) <= 1e-10 * largest(scalars[key], 0.0), key


@pytest.mark.parametrize("execution", ["reference", "auto"])
@pytest.mark.parametrize("scope", ["model", "tensor"])
@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_mechanize_follows_its_oracle(base, scope, execution):
    options = {"lr": 0.5, "weight_decay": 0.1, "s_init": 1e-3}
    options |= {"momentum": 0.9} if base == "sgd" else {}
    theirs, scalars = oracles.mechanize(START, problem, STEPS, base=base, scope=scope, **options)
    params = [torch.tensor(a, requires_grad=True) for a in START]
    adam, decay = base == "adamw", {"weight_decay": 0.1}
    optimizer = untuned.compose(
        params,
        untuned.directions.Adam() if adam else untuned.directions.Momentum(0.9),
        untuned.step_sizes.Fixed(0.5),
        untuned.iterates.Mechanize(s_init=1e-3, scope=scope),
        untuned.weight_decay.Decoupled(**decay) if adam else untuned.weight_decay.Coupled(**decay),
        execution=execution,
    )
    points = []
    for k in range(1, STEPS + 1):
        _, grads = problem([p.detach().numpy() for p in params], k)
        for p, g in zip(params, grads, strict=True):
            p.grad = torch.tensor(g)
        optimizer.step()
        points.append([p.detach().clone().numpy() for p in params])
    way = largest(vector(theirs), vector([START]))
    assert way > 1e-3
    assert largest(vector(points), vector(theirs)) <= 1e-10 * way
    if scope == "model":
        assert optimizer.metrics()["mechanic_S"] == pytest.approx(scalars["S"][-1], rel=1e-10)


@pytest.mark.parametrize("execution", ["reference", "auto"])
@pytest.mark.parametrize("n", [1, 2, 6, 9])
@pytest.mark.parametrize("iterate", ["Mechanic", "Mechanize"])
def test_any_number_of_bettors_follows_the_oracle(iterate, n, execution):
    decays = tuple(1 - 10.0 ** -np.arange(1, n + 1))
    oracle = oracles.mechanic if iterate == "Mechanic" else oracles.mechanize
    theirs, scalars = oracle(START, problem, STEPS, base="sgd", lr=0.5, momentum=0.9, s_init=1e-3, betas=decays)

    def build(params, decays=decays):
        rule = getattr(untuned.iterates, iterate)(s_init=1e-3, decays=decays)
        momentum, fixed = untuned.directions.Momentum(0.9), untuned.step_sizes.Fixed(0.5)
        return untuned.compose(params, momentum, fixed, rule, execution=execution)

    params = [torch.tensor(a, requires_grad=True) for a in START]
    optimizer, points = build(params), []
    for k in range(1, STEPS + 1):
        _, grads = problem([p.detach().numpy() for p in params], k)
        for p, g in zip(params, grads, strict=True):
            p.grad = torch.tensor(g)
        if k == STEPS // 2:  # and goes on from a checkpoint
            saved, optimizer = optimizer.state_dict(), build(params)
            optimizer.load_state_dict(saved)
        optimizer.step()
        points.append([p.detach().clone().numpy() for p in params])
    way = largest(vector(theirs), vector([START]))
    assert way > 1e-3
    assert largest(vector(points), vector(theirs)) <= 1e-10 * way
    assert optimizer.metrics()["mechanic_S"] == pytest.approx(scalars["S"][-1], rel=1e-10)

    other = build(params, (0.9,) * (n + 1))
    with pytest.raises(ValueError, match=rf"'mechanic_\w+' of a group has shape \({n},\) in this checkpoint, not"):
        other.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="decays shapes the method"):
        other.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "decays": decays})
    other.step()


@pytest.mark.parametrize("name", untuned.list())
def test_every_setting_says_something_of_its_own(name):
    points = [vector(run_oracle(name, setting)[0]) for setting in SETTINGS[name]]
    way = largest(points[0], vector([START]))
    for i, one in enumerate(points):
        assert all(largest(one, other) > 1e-6 * way for other in points[:i]), list(SETTINGS[name])[i]


def shaken(x, k):
    """The same problem, with weights that somebody else changes before some steps."""
    if k in (4, 5, 11):
        x[0] = 0.5 * x[0]
        x[2] = x[2] + 0.25
    return problem(x, k)


def in_place(p, x):
    with torch.no_grad():
        p.copy_(x)


def by_numpy(p, x):
    p.detach().numpy()[...] = x.numpy()


CHANGES = {
    "in place": in_place,
    "data": lambda p, x: p.data.copy_(x),
    "new data": lambda p, x: setattr(p, "data", x.clone()),
    "numpy": by_numpy,
    "vector": lambda p, x: torch.nn.utils.vector_to_parameters(x.flatten(), [p]),
}


@pytest.mark.parametrize("execution", ["native", "reference"])
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"use_fstar": True}], ids=str)
@pytest.mark.parametrize("name", ["momo", "momo_adam"])
@pytest.mark.parametrize("change", CHANGES)
def test_momo_takes_weights_as_they_are_whoever_changed_them(change, name, options, execution):
    """Most of these ways leave no trace: no version counter shows them."""
    bare = options | {"lr": 50.0} if name == "momo" else options
    iterates, _ = getattr(oracles, name)(START, shaken, STEPS, **bare)
    params = [torch.nn.Parameter(torch.tensor(x)) for x in START]
    optimizer = untuned.create(params, name, execution=execution, **bare)
    for k, wanted in enumerate(iterates, start=1):
        if k in (4, 5, 11):
            CHANGES[change](params[0], 0.5 * params[0].detach())
            CHANGES[change](params[2], 0.25 + params[2].detach())
        loss, grads = problem([p.detach().numpy() for p in params], k)
        for p, g in zip(params, grads, strict=True):
            p.grad = torch.tensor(g)
        optimizer.step(loss=loss)
        for p, x in zip(params, wanted, strict=True):
            assert torch.allclose(p.detach(), torch.tensor(x), rtol=1e-10, atol=1e-12)


def pulled(params, change, bad_at=None, save_at=None, by="load", execution="native", lr=1e-2):
    """Nine steps of MoMo towards 1; `change` the weights after each, skip one step, go on in a copy after another."""
    optimizer = untuned.MoMo(params, lr=lr, execution=execution)
    for k in range(9):
        loss = sum(((p - 1) ** 2).sum() for p in params)
        optimizer.zero_grad()
        loss.backward()
        if k == bad_at:
            params[1].grad.fill_(torch.nan)
        optimizer.step(loss=loss.detach())
        change(params, k)
        if k == save_at and by == "load":
            params = [torch.nn.Parameter(p.detach().clone()) for p in params]
            other = untuned.MoMo(params, lr=lr, execution=execution)
            other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            optimizer = other
        elif k == save_at:
            params, optimizer = copy.deepcopy((params, optimizer)) if by == "deepcopy" else pickled((params, optimizer))
    return optimizer, params


def pickled(these):
    return pickle.loads(pickle.dumps(these))


def two(dtype=torch.float64):
    rng = np.random.default_rng(0)
    return [torch.nn.Parameter(torch.tensor(rng.normal(size=5), dtype=dtype)) for _ in range(2)]


def clamp(params, k):
    with torch.no_grad():
        for p in params:
            p.clamp_(-0.5, 0.5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("by", ["load", "deepcopy", "pickle"])
def test_momo_saved_after_a_change_goes_on_as_if_unbroken(by, dtype):
    for change in (clamp, lambda params, k: None):
        _, unbroken = pulled(two(dtype), change)
        _, resumed = pulled(two(dtype), change, save_at=4, by=by)
        assert all(map(torch.equal, unbroken, resumed))


@pytest.mark.parametrize("execution", ["native", "reference"])
def test_momo_takes_a_change_in_though_the_next_step_is_skipped(execution):
    """E = <m, x> - G, with G from the definition: the average of <g, x>, the weights being changed before step 4."""

    def halve(params, k):
        if k == 3:
            with torch.no_grad():
                params[0].mul_(0.5)

    for bad_at in (None, 4):
        replayed, m, G = two(), 0.0, 0.0
        other = untuned.MoMo(replayed, lr=1e-2, execution=execution)
        taken = 0
        for k in range(9):
            loss = sum(((p - 1) ** 2).sum() for p in replayed)
            other.zero_grad()
            loss.backward()
            before, g = replayed[0].detach().clone(), replayed[0].grad.clone()
            if k == bad_at:
                replayed[1].grad.fill_(torch.nan)
            else:
                keep, taken = 0.9 if taken else 0.0, taken + 1
                m, G = keep * m + (1 - keep) * g, keep * G + (1 - keep) * (g * before).sum()
                x = before
            other.step(loss=loss.detach())
            halve(replayed, k)
        E = (m * x).sum() - G  # at the weights of the last gradient
        assert other.state[replayed[0]]["model_offset"].item() == pytest.approx(E.item(), rel=1e-10)

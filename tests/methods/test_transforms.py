"""Transforms of the gradient and of the plain step: against their oracles, in chains, in every execution."""

import copy
import itertools
from functools import partial

import numpy as np
import pytest
import torch
from test_against_oracles import START, STEPS, largest, problem, vector

import untuned
from untuned.around import Project, RandomScaling
from untuned.directions import Adam, Gradient, Momentum
from untuned.gradients import AdaRem
from untuned.iterates import Plain, PrimalAverage, RandomPoint, ScheduleFree
from untuned.parts import GradientTransform, StepTransform, hyper, slot, uniform
from untuned.run import launch
from untuned.step_sizes import Fixed, MoMo, Prodigy
from untuned.testing import oracles
from untuned.weight_decay import Anchored, Cautious, Coupled, Decoupled, Independent

RATES = [0.5 + 0.4 * np.sin(k) for k in range(STEPS)]
SEED = 7


def factor(k, seed=SEED):
    """For whole numbers or vectors of them."""
    s = -np.log(1 - uniform(seed, np.atleast_1d(k)))
    return s if len(s) > 1 else s.item()


# the oracle, its options, and the parts that are equal to it
CASES = {
    "adarem": (
        partial(oracles.adarem, lr=0.4, beta=0.8, lam=0.95, weight_decay=0.1),
        lambda: {"direction": Gradient(), "step_size": Fixed(0.4), "gradient": [AdaRem(0.8, 0.95)]},
    ),
    "random scaling": (
        partial(oracles.random_scaled, factors=factor, lr=0.3, beta=0.9, weight_decay=0.1),
        lambda: {"direction": Averaged(), "step_size": Fixed(0.3), "around": [RandomScaling(SEED)]},
    ),
    "random scaling of schedule-free": (
        partial(oracles.random_scaled_schedule_free, factors=factor, lr=0.3, momentum=0.8, weight_decay=0.1),
        lambda: {
            "direction": Gradient(),
            "step_size": Fixed(0.3),
            "iterate": ScheduleFree(0.8),
            "around": [RandomScaling(SEED)],
        },
    ),
    "project": (
        partial(oracles.normalize_and_project, base="sgd", lr=0.2, momentum=0.9, weight_decay=0.1),
        lambda: {
            "direction": Momentum(0.9),
            "step_size": Fixed(0.2),
            "decay": Coupled(0.1),
            "around": [Project()],
        },
    ),
    "random point": (
        partial(
            oracles.random_point,
            factors=lambda k: uniform(SEED, np.atleast_1d(k)).item(),
            base="adamw",
            lr=0.1,
            weight_decay=0.1,
        ),
        lambda: {"direction": Adam(), "step_size": Fixed(0.1), "iterate": RandomPoint(SEED)},
    ),
    "anchored": (
        partial(oracles.adamw_decay, kind="anchored", lr=0.1),
        lambda: {"direction": Adam(), "step_size": Fixed(0.1), "decay": Anchored()},
    ),
    "anchored by a power": (
        partial(oracles.adamw_decay, kind="anchored", lr=0.1, power=2.0),
        lambda: {"direction": Adam(), "step_size": Fixed(0.1), "decay": Anchored(2.0)},
    ),
    "cautious": (
        partial(oracles.adamw_decay, kind="cautious", lr=0.1, weight_decay=0.3),
        lambda: {"direction": Adam(), "step_size": Fixed(0.1), "decay": Cautious(0.3)},
    ),
    "independent": (
        partial(oracles.adamw_decay, kind="independent", lr=0.1, weight_decay=0.02),
        lambda: {"direction": Adam(), "step_size": Fixed(0.1), "decay": Independent(0.02)},
    ),
    "project rows": (
        partial(oracles.normalize_and_project, base="adamw", lr=0.1, weight_decay=0.1, rows=True),
        lambda: {"direction": Adam(), "step_size": Fixed(0.1), "around": [Project(scope="row")]},
    ),
}
every_case = pytest.mark.parametrize("case", CASES)
every_execution = pytest.mark.parametrize("execution", ["reference", "native"])


class Averaged(untuned.parts.Direction):
    """u = m <- 0.9 m + 0.1 g, from 0, uncorrected."""

    m = slot("average")

    def accumulate(self, x):
        x.m = 0.9 * x.m + 0.1 * x.g

    def unit(self, x):
        return x.m


class Doubled(GradientTransform):
    def gradient(self, x, g):
        return 2 * g


class Clamped(GradientTransform):
    """g' = g where |g| < at, else 0; remembers what came in."""

    at: float = hyper(default=0.1, within="(0, inf)")
    seen = slot("seen")

    def gradient(self, x, g):
        return untuned.parts.where(abs(g) < x.at, g, 0.0)

    def remember(self, x):
        x.seen = x.g


class Shifted(StepTransform):
    def around(self, x, w, new):
        return new + 0.25


class Halved(StepTransform):
    def around(self, x, w, new):
        return w + 0.5 * (new - w)


def tensors(dtype=torch.float64):
    return [torch.nn.Parameter(torch.tensor(a, dtype=dtype)) for a in START]


def made(case, params, execution="reference", **engine):
    """Two groups that train and one that does not; the decay is that of the case."""
    parts = {"decay": Decoupled(0.1)} | CASES[case][1]()
    first = {"params": params[:2]}
    slow, frozen = {"params": params[2:3], "lr": 0.03}, {"params": params[3:], "lr": 0.0}
    return untuned.compose([first, slow, frozen], **parts, execution=execution, **engine)


def backward(params, k):
    loss, grads = problem([p.detach().double().numpy() for p in params], k)
    for p, g in zip(params, grads, strict=True):
        p.grad = torch.tensor(g, dtype=p.dtype)
    return loss


def step(optimizer, params, k):
    loss = backward(params, k)
    optimizer.param_groups[0]["lr"] = optimizer.defaults["lr"] * RATES[k - 1]
    optimizer.step(loss=loss)


def values(params):
    return [p.detach().clone().double().numpy() for p in params]


def theirs(case):
    groups = [{"indices": [0, 1], "schedule": RATES}, {"indices": [2], "lr": 0.03}, {"indices": [3], "lr": 0.0}]
    return CASES[case][0](START, problem, STEPS, groups=groups)


@every_execution
@every_case
def test_transform_follows_its_oracle_with_groups_a_schedule_and_a_frozen_tensor(case, execution):
    iterates, scalars = theirs(case)
    params = tensors()
    optimizer = made(case, params, execution)
    points, averaged = [], []
    for k in range(1, STEPS + 1):
        step(optimizer, params, k)
        points.append(values(params))
        with optimizer.averaged_parameters():
            averaged.append(values(params))
    assert largest(vector(points), vector(iterates)) <= 1e-12
    assert largest(vector(iterates), vector([START])) > 0.1
    assert largest(vector(averaged), vector(scalars.get("averaged", iterates))) <= 1e-12
    assert bool(optimizer._launch.batches) == (execution == "native")


@every_case
def test_float32_kernel_equals_reference(case):
    found = []
    for execution in ("native", "reference"):
        params = tensors(torch.float32)
        optimizer = made(case, params, execution)
        for k in range(1, 4):
            step(optimizer, params, k)
        found.append(vector([values(params)]))
        assert [len(optimizer._launch.batches), len(optimizer._launch.rest)] == (
            [1, 0] if not len(found) - 1 else [0, 3]
        )
    assert 0 <= largest(*found) < 1e-6 * largest(found[1], 0.0)
    assert largest(found[1], vector([START])) > 1e-3


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of lanes that are masked out
@every_case
def test_triton_equals_reference(case, monkeypatch):
    pytest.importorskip("triton")
    from untuned.kernels import triton as kernels

    device = "cuda" if torch.cuda.is_available() else "cpu"
    monkeypatch.setattr(launch, "TRITON_DEVICES", {device})
    monkeypatch.setattr(kernels, "CHUNK", 2 * kernels.BLOCK)
    found = []
    for execution in ("native", "reference"):
        generator = torch.Generator().manual_seed(0)
        shapes = (5, 3), (2 * kernels.BLOCK + 3,), (), (0, 3)  # two chunks, a scalar, nothing
        params = [torch.nn.Parameter(torch.randn(s, generator=generator).to(device)) for s in shapes]
        optimizer = untuned.compose(params, **CASES[case][1](), execution=execution)
        for _ in range(3):
            for p in params:
                p.grad = p.detach() + 0.3 * torch.randn(p.shape, generator=generator).to(device)
            optimizer.step()
        found.append(torch.cat([p.detach().double().flatten() for p in params]))
        calls = [call for batch in optimizer._launch.batches for call in batch.calls.values() if call]
        assert all(isinstance(call, kernels.Call) for call in calls)
        assert bool(calls) == (execution == "native")
    assert largest(*(v.cpu() for v in found)) < 1e-6 * float(found[1].abs().max())


@every_execution
@every_case
def test_resumed_in_the_middle_it_goes_on_bit_by_bit(case, execution):
    params = tensors()
    optimizer = made(case, params, execution)
    for k in range(1, STEPS + 1):
        if k == 8:
            others = [torch.nn.Parameter(p.detach().clone()) for p in params]
            other = made(case, others, execution)
            other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            params, unbroken, optimizer = others, (params, optimizer), other
        if k >= 8:
            step(unbroken[1], unbroken[0], k)
        step(optimizer, params, k)
    assert all(map(torch.equal, params, unbroken[0]))
    assert optimizer.metrics() == unbroken[1].metrics()


# AdaRem


def gains(gradients, *options, start=None, execution="reference"):
    """The steps of one tensor at lr 1, divided by its gradients."""
    p = torch.nn.Parameter(torch.zeros_like(torch.tensor(gradients[0], dtype=torch.float64)))
    optimizer = untuned.compose([p], Gradient(), Fixed(1.0), gradient=[AdaRem(*options)], execution=execution)
    found = []
    for g in gradients:
        before = p.detach().clone()
        p.grad = torch.tensor(g, dtype=torch.float64)
        optimizer.step()
        found.append(((before - p.detach()) / p.grad).tolist())
    return found


@every_execution
def test_adarem_without_eps_has_the_closed_gains(execution):
    """1 in the first step; then 1 + lam^t for what leads, in proportion for the rest, 1 - lam^t after a turn."""
    found = gains([[4.0, -1.0], [4.0, -1.0], [-2.0, -1.0]], 0.5, 0.9, 0.0, execution=execution)
    assert found[0] == [1.0, 1.0]  # 0 / 0 is no gain
    assert found[1] == pytest.approx([1.9, 1 + 0.9 / 4], rel=1e-15)
    assert found[2] == pytest.approx([1 - 0.81, 1 + 0.81 / 4], rel=1e-14)
    scaled = gains([[4e9, -1e9], [4e9, -1e9], [-2e9, -1e9]], 0.5, 0.9, 0.0, execution=execution)
    assert np.ravel(scaled) == pytest.approx(np.ravel(found), rel=1e-14)
    assert gains([[3.0], [-1.0], [2.0]], 0.9, 0.0, execution=execution) == [[1.0], [1.0], [1.0]]


def test_adarem_stands_before_the_weight_decay():
    """Coupled decay is added to the gradient with its gain, and is no part of what the gain follows."""
    found = []
    for decay in (Coupled(0.1), Decoupled(0.1)):
        params = tensors()
        optimizer = untuned.compose(params, Gradient(), Fixed(0.4), None, decay, gradient=[AdaRem(0.8, 0.95)])
        for k in range(1, 9):
            step(optimizer, params, k)
        found.append(vector([values(params)]))
    assert largest(*found) < 1e-13


def test_adarem_names_the_entry_that_another_part_has():
    for parts in ({"direction": Adam()}, {"direction": Gradient(), "iterate": ScheduleFree()}):
        with pytest.raises(TypeError, match=r"both declare the group entry '(eps|beta)'"):
            untuned.compose(tensors(), **parts, gradient=[AdaRem()])


@pytest.mark.parametrize("on", ["reference", "native", "triton"])
def test_a_maximum_takes_nan_from_one_tensor_and_0_from_none(on, monkeypatch):
    if on == "triton":
        pytest.importorskip("triton")
        monkeypatch.setattr(launch, "TRITON_DEVICES", {"cpu"})
    spoiled, fine, empty = params = [torch.nn.Parameter(torch.zeros(n, dtype=torch.float64)) for n in (3, 3, 0)]
    execution = "native" if on == "triton" else on
    optimizer = untuned.compose(
        params, Gradient(), Fixed(0.1), gradient=[AdaRem()], execution=execution, skip_nonfinite=False
    )
    for k in range(3):
        for p in params:
            p.grad = torch.arange(len(p), dtype=torch.float64) - 1
        if k == 0:
            spoiled.grad[0] = torch.nan
        optimizer.step()
    # The maximum is NaN, and a number that is not finite is not written.
    assert optimizer.state[spoiled]["gradient_avg_max"] == 0 == optimizer.state[empty]["gradient_avg_max"]
    assert optimizer.state[fine]["gradient_avg_max"] > 0
    assert spoiled.isnan().tolist() == [True, False, False]


# Random scaling


def test_factors_are_exponential_and_independent():
    """At 1e5 draws; the bounds are those of five standard errors, and of a probability of 1e-6 for the distance."""
    n = 100_000
    k = np.arange(1, n + 1)
    draws = [factor(k, seed) for seed in (0, 1, 2, 1000, 2**32 - 1)]
    for s in draws:
        assert abs(s.mean() - 1) < 5 / np.sqrt(n)
        assert abs(s.var() - 1) < 5 * np.sqrt(8 / n)
        below = 1 - np.exp(-np.sort(s))
        distance = max((k / n - below).max(), (below - (k - 1) / n).max())
        assert distance < np.sqrt(np.log(2e6) / 2 / n)  # 2 exp(-2 n D^2) = 1e-6
        for lag in (1, 2, 16):
            assert abs(np.corrcoef(s[lag:], s[:-lag])[0, 1]) < 5 / np.sqrt(n)
    for one, other in itertools.combinations(draws, 2):
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(n)
    by_seed = factor(1, np.arange(n))
    assert abs(by_seed.mean() - 1) < 5 / np.sqrt(n)
    assert abs(np.corrcoef(by_seed[1:], by_seed[:-1])[0, 1]) < 5 / np.sqrt(n)
    # seed and step are no shifts of each other
    assert not np.intersect1d(draws[0], draws[1]).size


def test_uniform_is_the_same_number_everywhere_and_never_0_or_1():
    for seed, k in [(0, 1), (3, 10**6), (2**32 - 1, 2**31)]:
        in_torch = uniform(*torch.tensor([seed, k], dtype=torch.float64))
        assert in_torch.dtype == torch.float64
        assert in_torch == uniform(seed, torch.tensor(k, dtype=torch.float64))
        assert in_torch.item() == uniform(seed, np.array([k])).item()
    u = uniform(0, np.arange(2_000_000))
    assert 0 < u.min() < 1e-5
    assert 1 - 1e-5 < u.max() < 1


BASES = {
    "adam": lambda: {"direction": Adam(), "step_size": Fixed(0.05)},
    "momo": lambda: {"direction": Adam(), "step_size": MoMo(0.1)},
    "prodigy under schedule-free": lambda: {
        "direction": Gradient(),
        "step_size": Prodigy(d0=0.1),
        "iterate": ScheduleFree(),
    },
    "primal averaging": lambda: {"direction": Gradient(), "step_size": Fixed(0.3), "iterate": PrimalAverage(0.8)},
    "mechanic": lambda: {
        "direction": Gradient(),
        "step_size": Fixed(0.3),
        "iterate": untuned.iterates.Mechanic(s_init=0.1),
    },
}


@every_execution
@pytest.mark.parametrize("base", BASES)
def test_one_factor_multiplies_the_first_step_of_the_whole_model(base, execution):
    moved = []
    for around in ([], [RandomScaling(SEED)]):
        params = tensors()
        state = torch.get_rng_state()
        optimizer = untuned.compose(params, **BASES[base](), decay=Decoupled(0.1), around=around, execution=execution)
        step(optimizer, params, 1)
        assert torch.equal(torch.get_rng_state(), state)
        moved.append(vector([values(params)]) - vector([START]))
    assert largest(moved[0], 0.0) > 1e-3 or base == "mechanic"
    np.testing.assert_allclose(moved[1], factor(1) * moved[0], rtol=1e-12, atol=1e-15)
    assert optimizer.metrics()["random_scale"] == pytest.approx(factor(1), rel=1e-15)


def test_skipped_steps_use_no_factor():
    params = tensors()
    optimizer = made("random scaling", params)
    step(optimizer, params, 1)
    params[0].grad.fill_(torch.nan)
    optimizer.step()
    assert optimizer.metrics()["random_scale"] == pytest.approx(factor(1), rel=1e-15)
    step(optimizer, params, 2)
    assert optimizer.metrics()["random_scale"] == pytest.approx(factor(2), rel=1e-15)


def test_the_seed_is_one_for_all_groups_and_is_saved():
    params = tensors()
    with pytest.raises(ValueError, match="seed must be equal in all groups"):
        untuned.compose([{"params": params[:1], "seed": 1}, {"params": params[1:]}], around=[RandomScaling()])
    other = untuned.compose(params, around=[RandomScaling(5)])
    other.load_state_dict(untuned.compose(tensors(), around=[RandomScaling(3)]).state_dict())
    assert other.param_groups[0]["seed"] == 3


# Projection


@every_execution
@pytest.mark.parametrize("scope", ["tensor", "row"])
@pytest.mark.parametrize("iterate", [Plain, ScheduleFree, PrimalAverage])
def test_the_point_that_plain_steps_start_from_keeps_its_norms(iterate, scope, execution):
    def norms(a):
        return np.linalg.norm(np.reshape(a, (len(a) if scope == "row" and a.ndim > 1 else 1, -1)), axis=1)

    params = tensors()
    optimizer = untuned.compose(
        params, Adam(), Fixed(0.1), iterate(), Decoupled(0.5), around=[Project(scope=scope)], execution=execution
    )
    for k in range(1, STEPS + 1):
        step(optimizer, params, k)
    for p, a in zip(params, START, strict=True):
        point = optimizer.state[p].get("z", p).detach().numpy()
        np.testing.assert_allclose(norms(point), norms(a), rtol=1e-14)
    assert largest(vector([values(params)]), vector([START])) > 0.1


@every_execution
@pytest.mark.parametrize("scope", ["tensor", "row"])
def test_zeros_are_left_alone(scope, execution):
    params = [torch.nn.Parameter(torch.tensor(a)) for a in ([[0.0, 0.0], [3.0, 4.0]], [0.0, 0.0], [3.0, 4.0])]
    optimizer = untuned.compose(params, Gradient(), Fixed(1.0), around=[Project(scope=scope)], execution=execution)
    for first in (True, False):
        gradients = [[1.0, 2.0], [0.0, 0.0]], [1.0, -1.0], [3.0, 4.0] if first else [-1.0, 0.0]
        for p, g in zip(params, gradients, strict=True):
            p.grad = torch.tensor(g)
        optimizer.step()
        assert params[1].tolist() == ([-1.0, 1.0] if first else [-2.0, 2.0])  # it began at zero
        assert params[2].tolist() == ([0.0, 0.0] if first else [5.0, 0.0])  # a step into zero, and out of it
    if scope == "row":
        assert params[0].tolist() == [[-2.0, -4.0], [3.0, 4.0]]
    else:
        assert params[0].norm().item() == pytest.approx(5.0, rel=1e-6)


@every_execution
@pytest.mark.parametrize("scope", ["tensor", "row"])
def test_hidden_matrices_are_projected_and_the_rest_is_free(scope, execution):
    """Every label does what an optimizer of its own does."""
    params, apart = tensors(), tensors()
    hidden, rest = [0, 3], [1, 2]
    build = partial(untuned.compose, execution=execution)
    parts = Adam(), Fixed(0.1), Plain(), Decoupled(0.1)
    groups = [{"params": [params[i] for i in of], "label": label} for label, of in (("hidden", hidden), ("rest", rest))]
    together = build(groups, *parts, around={"hidden": [Project(scope=scope)], "rest": []})
    ones = [
        build([apart[i] for i in hidden], *parts, around=[Project(scope=scope)]),
        build([apart[i] for i in rest], *parts),
    ]
    for k in range(1, STEPS + 1):
        backward(params, k)
        backward(apart, k)
        for optimizer in (together, *ones):
            optimizer.step()
    assert largest(vector([values(params)]), vector([values(apart)])) <= 1e-14
    kept = [np.linalg.norm(a) for a in START]
    now = [np.linalg.norm(a) for a in values(params)]
    assert [now[i] for i in hidden] == pytest.approx([kept[i] for i in hidden], rel=1e-14)
    assert all(abs(now[i] - kept[i]) > 1e-2 for i in rest)
    assert all("kept_norm" not in together.state[params[i]] for i in rest)


def test_momo_takes_random_scaling_and_refuses_the_projection_in_a_sentence():
    untuned.compose(tensors(), step_size=MoMo(), around=[RandomScaling()])
    with pytest.raises(TypeError) as refused:
        untuned.compose(tensors(), step_size=MoMo(), around=[RandomScaling(), Project()])
    assert str(refused.value) == (
        "MoMo cannot use Project: it needs 'additive' (the parameters move by a multiple of u); Project rescales the "
        "weights after every step. Leave it out."
    )


def test_transforms_of_the_step_need_plain_steps():
    with pytest.raises(TypeError, match="RandomScaling cannot use Resetting: it needs 'plain_step'"):
        untuned.compose(tensors(), Gradient(), iterate=untuned.iterates.Resetting(), around=[RandomScaling()])


# Chains


@every_execution
def test_gradients_go_along_the_chain_and_each_remembers_what_came_to_it(execution):
    g = torch.tensor([0.06, 0.02], dtype=torch.float64)
    for chain, expected in [([Doubled(), Clamped()], [0.0, 0.04]), ([Clamped(), Doubled()], [0.12, 0.04])]:
        p = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
        optimizer = untuned.compose([p], Gradient(), Fixed(1.0), gradient=chain, execution=execution)
        p.grad = g.clone()
        optimizer.step()
        assert p.tolist() == [-v for v in expected]
        assert torch.equal(optimizer.state[p]["seen"], g * (2 if isinstance(chain[0], Doubled) else 1))


@every_execution
def test_what_comes_after_adarem_remembers_the_gradient_that_was_used(execution):
    """Not one with the average of this step, though that is stored in the same sweep."""
    params, alone = tensors(), tensors()
    chain = untuned.compose(
        params, Gradient(), Fixed(0.4), gradient=[AdaRem(0.8, 0.95), Clamped(at=1e9)], execution=execution
    )
    other = untuned.compose(alone, Gradient(), Fixed(0.4), gradient=[AdaRem(0.8, 0.95)], execution=execution)
    for k in range(1, 6):
        before = values(params)
        step(chain, params, k)
        step(other, alone, k)
        assert largest(vector([values(params)]), vector([values(alone)])) < 1e-14
        for p, a in zip(params, before, strict=True):
            used = (a - p.detach().numpy()) / (0.4 * RATES[k - 1])
            np.testing.assert_allclose(chain.state[p]["seen"].numpy(), used, atol=1e-13)


@every_execution
def test_steps_go_along_the_chain(execution):
    for chain, expected in [([Halved(), Shifted()], [0.75]), ([Shifted(), Halved()], [0.625])]:
        p = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = untuned.compose([p], Gradient(), Fixed(1.0), around=chain, execution=execution)
        p.grad = torch.ones_like(p)
        optimizer.step()
        assert p.tolist() == expected


@every_execution
@pytest.mark.parametrize("scope", ["tensor", "row"])
@pytest.mark.parametrize("step_size", [Fixed, Prodigy])
def test_the_projection_measures_the_step_with_the_factor_of_this_step(step_size, scope, execution):
    """Scaled, then projected: the norms are kept. Projected, then scaled: a point on the line to the projected one."""
    params = tensors()
    base = {"direction": Gradient(), "step_size": step_size(0.4), "execution": execution}
    optimizer = untuned.compose(params, **base, around=[RandomScaling(SEED), Project(scope=scope)])
    for k in range(1, 6):
        step(optimizer, params, k)
        for a, p in zip(START, values(params), strict=True):
            assert np.linalg.norm(p) == pytest.approx(np.linalg.norm(a), rel=1e-14)
    ends = []
    for around in ([Project(scope=scope)], [Project(scope=scope), RandomScaling(SEED)]):
        params = tensors()
        step(untuned.compose(params, **base, around=around), params, 1)
        ends.append(vector([values(params)]))
    start = vector([START])
    np.testing.assert_allclose(ends[1], start + factor(1) * (ends[0] - start), rtol=1e-13)

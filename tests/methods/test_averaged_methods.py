"""The named averaging methods: Prodigy with Schedule-Free, and AdamW with generalized primal averaging."""

from math import inf

import numpy as np
import pytest
import torch
from test_against_oracles import START as FOUR
from test_against_oracles import STEPS, largest, problem, vector
from test_closed_forms import NO_EPS, START, assert_close, follow, linear, logistic, path

import untuned
from untuned import directions, iterates, step_sizes
from untuned.testing import oracles
from untuned.weight_decay import Decoupled

EXECUTIONS = pytest.mark.parametrize("execution", ["reference", "native"])
OPTIONS = {
    "defaults": {},
    "authors": {"betas": (0.9, 0.9955), "r": 0.75, "weight_lr_power": 0.0, "use_bias_correction": False},
    "decay": {"weight_decay": 0.1, "betas": (0.6, 0.9)},
    "estimate": {"d0": 1e-2, "d_coef": 0.5, "growth_rate": 1.2, "beta3": 0.9},
}


# ---------------------------------------------------------------- Prodigy with Schedule-Free


@EXECUTIONS
@pytest.mark.parametrize("options", OPTIONS)
def test_prodigy_schedule_free_is_its_oracle(options, execution):
    options = {"lr": 1.0, "d0": 1e-3} | OPTIONS[options]
    b1, b2 = options.get("betas", (0.9, 0.999))
    corrected = {"use_bias_correction": True} | options
    theirs, scalars = oracles.prodigy_schedule_free(
        FOUR, problem, STEPS, **(corrected | {"betas": (0.0, b2), "momentum": b1, "weigh": "step"})
    )
    params = [torch.nn.Parameter(torch.tensor(a)) for a in FOUR]
    optimizer = untuned.ProdigyScheduleFree(params, execution=execution, **options)
    points, averaged = [], []
    for k in range(1, STEPS + 1):
        _, grads = problem([p.detach().numpy() for p in params], k)
        for p, g in zip(params, grads, strict=True):
            p.grad = torch.tensor(g)
        optimizer.step()
        points.append([p.detach().numpy().copy() for p in params])
        with optimizer.averaged_parameters():
            averaged.append([p.detach().numpy().copy() for p in params])
        assert optimizer.metrics()["d"] == pytest.approx(scalars["d"][k - 1], rel=1e-10)
    way = largest(vector(theirs), vector([FOUR]))
    assert largest(vector(points), vector(theirs)) <= 1e-10 * way
    assert largest(vector(averaged), vector(scalars["averaged"])) <= 1e-10 * way
    assert scalars["d"][-1] > 2 * scalars["d"][0]


def test_with_equal_weights_of_the_average_all_steps_are():
    options = {"betas": (0.8, 0.99), "eps": NO_EPS, "weight_decay": 0.0, "r": 0.5, "weight_lr_power": 0.0}
    ours = path(lambda p: untuned.ProdigyScheduleFree(p, d0=0.03, d_coef=0.0, **options), steps=30)
    assert_close(ours, path(lambda p: untuned.AdamWScheduleFree(p, lr=0.03, **options), steps=30), 1e-11)


@pytest.mark.parametrize(
    ("beta2", "corrected", "length"), [(0.999, True, 1), (0.999, False, 31.6), (0.9955, False, 14.9)]
)
def test_the_first_step_is_as_long_as_d0_or_15_times_with_the_defaults_of_the_authors(beta2, corrected, length):
    options = {"d0": 1e-3, "eps": NO_EPS, "betas": (0.9, beta2), "use_bias_correction": corrected}
    assert length == round(1 if corrected else 1 / np.sqrt(1 - beta2), 1)
    length = 1 if corrected else 1 / np.sqrt(1 - beta2)
    points, numbers, _ = follow(lambda p: untuned.ProdigyScheduleFree(p, **options), linear([1.0, -7.0]), [[0, 0]], 1)
    assert_close(points[1] / 1e-3, [-length, length], 1e-12)
    assert numbers["d"][0] == 1e-3


@EXECUTIONS
def test_the_estimate_is_measured_at_z(execution):
    """On a constant gradient without decay of the sums: d_hat = d sum <g, x0 - z> / |sum d g|_1."""
    w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = untuned.ProdigyScheduleFree([w], d0=0.1, beta3=0.0, execution=execution)
    for _ in range(5):
        z = optimizer.state[w]["z"].item() if optimizer.state else 0.0
        w.grad = torch.ones_like(w)
        optimizer.step()
        assert optimizer.metrics()["d_hat"] == pytest.approx(-z, rel=1e-9, abs=1e-15)  # g = 1, x0 = 0
    assert abs(w.item() - optimizer.state[w]["z"].item()) > 0.01


def test_it_scales_with_the_parameters_and_not_with_the_loss():
    def run(loss=logistic, unit=1.0, shift=0.0):
        make = lambda p: untuned.ProdigyScheduleFree(p, d0=unit * 1e-3, eps=NO_EPS)  # noqa: E731
        points, numbers, _ = follow(make, loss, [unit * a + shift for a in START], 30)
        return (points - points[0]) / unit, numbers["d"] / unit

    moves, d = run()
    assert d[-1] > 10 * d[0]
    for other in [
        run(lambda p, k: logistic([a / 50 for a in p], k), unit=50.0),
        run(lambda p, k: logistic([a - 3.0 for a in p], k), shift=3.0),
        run(lambda p, k: 1e3 * logistic(p, k)),
    ]:
        assert_close(other[0], moves, 1e-9)
        assert_close(other[1] / d, 1.0, 1e-9)


def valley(params, k):
    """A convex loss whose minimum is 3 away in every coordinate, with noise of its gradient."""
    noise = torch.tensor(np.random.default_rng(k).normal(size=50))
    return ((params[0].double() - 3.0) ** 2 * torch.linspace(0.1, 1, 50)).mean() + 0.01 * (noise @ params[0].double())


@pytest.mark.parametrize("d0", [1e-8, 1e-6, 1e-3])
def test_it_needs_neither_a_warm_up_nor_a_schedule_nor_a_good_d0(d0):
    """Without noise the loss at x = 0 is 4.95."""
    _, numbers, optimizer = follow(lambda p: untuned.ProdigyScheduleFree(p, d0=d0), valley, [np.zeros(50)], 600)
    curvature = np.linspace(0.1, 1, 50)
    optimizer.eval()
    x = optimizer.param_groups[0]["params"][0].detach().numpy()
    assert ((x - 3.0) ** 2 * curvature).mean() < 0.1
    assert 0.01 < numbers["d"][-1] < 3.0


def test_of_bfloat16_weights_it_makes_what_it_makes_of_float32():
    """Steps of d0 are far below a rounding of the weights: what is lost to it is kept beside them."""
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        p = torch.nn.Parameter(torch.ones(50, dtype=dtype))
        optimizer = untuned.ProdigyScheduleFree([p])
        for k in range(400):
            optimizer.zero_grad()
            valley([p], k).backward()
            optimizer.step()
        optimizer.eval()
        found.append((p.detach().float(), optimizer.metrics()["d"]))
    (x, d), (x_bf16, d_bf16) = found
    assert d_bf16 == pytest.approx(d, rel=0.1)
    assert d > 1e-2
    assert (x - x_bf16).abs().mean() < 0.05 * (x - 1).abs().mean()


def test_slices_of_a_tensor_of_equal_pairs_estimate_the_same():
    found = []
    for every in (1, 2):
        p = torch.nn.Parameter(torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64).repeat_interleave(2))
        optimizer = untuned.ProdigyScheduleFree([p], d0=1e-2, slice_p=every)
        for _ in range(10):
            p.grad = p.detach() - 3
            optimizer.step()
        found.append((p.detach().clone(), optimizer.metrics()["d"]))
    torch.testing.assert_close(*found, rtol=1e-12, atol=0)
    assert found[0][1] > 0.02


def test_the_estimate_may_not_grow_faster_than_asked():
    _, numbers, _ = follow(lambda p: untuned.ProdigyScheduleFree(p, d0=1e-3, growth_rate=1.1), logistic, START, 30)
    d = numbers["d"][numbers["d"] > 1e-3]  # at its first rise it goes to the first estimate
    assert (d[1:] <= 1.1 * d[:-1] * (1 + 1e-12)).all()
    assert d[-1] > 2 * d[0]
    assert untuned.ProdigyScheduleFree([torch.nn.Parameter(torch.ones(1))]).param_groups[0]["growth_rate"] == inf


# ---------------------------------------------------------------- GPA


@EXECUTIONS
def test_gpa_adamw_follows_its_oracle(execution):
    options = {"lr": 0.05, "betas": (0.8, 0.9), "weight_decay": 0.1}
    theirs, scalars = oracles.gpa(FOUR, problem, STEPS, base="adamw", mu_y=0.6, mu_x=0.9, **options)
    params = [torch.nn.Parameter(torch.tensor(a)) for a in FOUR]
    optimizer = untuned.GPAAdamW(params, train=0.6, keep=0.9, execution=execution, **options)
    points, averaged = [], []
    for k in range(1, STEPS + 1):
        _, grads = problem([p.detach().numpy() for p in params], k)
        for p, g in zip(params, grads, strict=True):
            p.grad = torch.tensor(g)
        optimizer.step()
        points.append([p.detach().numpy().copy() for p in params])
        with optimizer.averaged_parameters():
            averaged.append([p.detach().numpy().copy() for p in params])
    way = largest(vector(theirs), vector([FOUR]))
    assert largest(vector(points), vector(theirs)) <= 1e-10 * way
    assert largest(vector(averaged), vector(scalars["averaged"])) <= 1e-10 * way


def test_gpa_without_an_average_is_torchs_adamw():
    ours = path(lambda p: untuned.GPAAdamW(p, lr=0.03, keep=0.0, weight_decay=0.1))
    assert_close(ours, path(lambda p: torch.optim.AdamW(p, lr=0.03, weight_decay=0.1)), 1e-13)


def test_gpa_at_its_average_is_primal_averaging():
    ours = path(lambda p: untuned.GPAAdamW(p, lr=0.03, train=1.0, keep=0.9))
    parts = directions.Adam(), step_sizes.Fixed(0.03), iterates.PrimalAverage(0.9), Decoupled(0.0)
    assert_close(ours, path(lambda p: untuned.compose(p, *parts)), 1e-13)


def test_the_authors_table_of_inner_steps_is_a_power_of_nine_tenths():
    """As the docstring has it."""
    document = " ".join((untuned.GPAAdamW.__doc__ or "").split())
    rounded = [float(f"{0.9 ** (1 / H):.4f}") for H in (1, 4, 8, 16, 32, 64, 128)]
    assert "128 gives " + ", ".join(f"{keep:g}" for keep in rounded) in document
    group = untuned.GPAAdamW([torch.nn.Parameter(torch.ones(1))]).param_groups[0]
    assert (group["train"], group["keep"]) == (0.7, rounded[4])


def test_the_average_of_a_run_forgets_as_keep_says():
    """On a constant gradient of ones Adam's z is -lr k, and x the average of it with weights keep^i."""
    _, _, optimizer = follow(lambda p: untuned.GPAAdamW(p, lr=1.0, keep=0.8, eps=NO_EPS), linear([1.0]), [[0.0]], 12)
    optimizer.eval()
    x = 0.0
    for k in range(1, 13):
        x = 0.8 * x - 0.2 * k
    assert optimizer.param_groups[0]["params"][0].item() == pytest.approx(x, rel=1e-12)

"""AdaRem, the versions of SGDF, and multiplicative updates: what their equations imply in closed form."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_closed_forms import START, assert_close, linear, logistic, path

import untuned
from untuned.around import Multiplicative, Project, RandomScaling
from untuned.around.multiplicative import _tanh
from untuned.directions import SGDF, Adam, Gradient, Momentum
from untuned.iterates import ScheduleFree
from untuned.parts import Direction, uniform
from untuned.step_sizes import Fixed, MoMo
from untuned.weight_decay import Coupled, Decoupled, Proximal

every_execution = pytest.mark.parametrize("execution", ["reference", "native"])


def given_gradients(gradients):
    """A loss whose gradient of the one parameter is row k."""
    return lambda params, k: (torch.tensor(gradients[k], dtype=torch.float64) * params[0]).sum()


def moves(make, gradients, start=None):
    """The steps of one parameter [steps, n], from 0 or from `start`, along given gradients [steps, n]."""
    begin = np.zeros(np.shape(gradients)[1:]) if start is None else start
    return np.diff(path(make, given_gradients(gradients), [begin], len(gradients)), axis=0)


# ---------------------------------------------------------------- AdaRem


def test_adarem_takes_the_first_step_of_gradient_descent():
    ours = path(lambda p: untuned.AdaRem(p, 0.3, weight_decay=0.0), steps=2)
    theirs = path(lambda p: torch.optim.SGD(p, 0.3), steps=2)
    assert_close(ours[:2], theirs[:2], 1e-15)
    assert np.abs(ours[2] - theirs[2]).max() > 1e-3


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_adarem_without_influence_is_gradient_descent(momentum):
    """lam = 0, the 0^0 of the first step meeting an average of 0."""
    ours = path(lambda p: untuned.AdaRem(p, 0.3, momentum, lam=0.0))
    assert_close(ours, path(lambda p: torch.optim.SGD(p, 0.3, momentum)), 1e-14)


@every_execution
def test_adarem_of_one_weight_doubles_what_goes_on_and_stops_what_turns(execution):
    """1 + lam^(t-1) while signs agree, 1 - lam^(t-1) against them."""
    gradients = np.array([[3.0], [2.0], [5.0], [-1.0]])
    found = moves(lambda p: untuned.AdaRem(p, 0.1, lam=0.9, eps=0.0, execution=execution), gradients)
    assert_close(found[:, 0] / (-0.1 * gradients[:, 0]), [1, 1.9, 1.81, 1 - 0.9**3], 1e-14)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), beta=st.floats(0.0, 0.99), lam=st.floats(0.0, 1.0))
def test_gains_of_adarem_lie_around_1_and_reach_the_bound_where_the_average_is_largest(seed, beta, lam):
    gradients = np.random.default_rng(seed).normal(size=(12, 3))
    gains = moves(lambda p: untuned.AdaRem(p, 1.0, beta=beta, lam=lam, eps=0.0), gradients) / -gradients
    m = np.zeros(3)
    for t, (g, gain) in enumerate(zip(gradients, gains, strict=True)):
        assert (np.abs(gain - 1) <= lam**t + 1e-12).all()
        most = np.abs(m).argmax()
        if t:
            assert gain[most] - 1 == pytest.approx(lam**t * np.sign(g[most] * m[most]), abs=1e-12)
        m = beta * m + (1 - beta) * g


def test_adarem_scales_with_the_loss():
    one = path(lambda p: untuned.AdaRem(p, 0.3, eps=0.0))
    assert_close(path(lambda p: untuned.AdaRem(p, 0.3 / 50, eps=0.0), lambda p, k: 50 * logistic(p, k)), one)
    assert np.abs(one - path(lambda p: untuned.AdaRem(p, 0.3, eps=0.1))).max() > 1e-3


def test_adarem_sees_tensors_apart():
    """A tensor that is cut in two has other gains, but for the part with the largest average."""
    gradients = [[4.0, 2.0, 1.0]] * 3
    whole = path(lambda p: untuned.AdaRem(p, 0.1, lam=1.0, eps=0.0), given_gradients(gradients), [np.zeros(3)], 3)
    parts = [np.zeros(2), np.zeros(1)]
    cut = path(lambda p: untuned.AdaRem(p, 0.1, lam=1.0, eps=0.0), linear([4.0, 2.0], [1.0]), parts, 3)
    assert_close(cut[:, :2], whole[:, :2], 1e-14)
    assert_close(whole[-1, 2], -0.1 * (1 + 1.25 + 1.25), 1e-14)
    assert_close(cut[-1, 2], -0.1 * (1 + 2 + 2), 1e-14)


def test_momentum_of_adarem_is_a_heavy_ball_of_gained_gradients():
    gained = moves(lambda p: untuned.AdaRem(p, 1.0, lam=0.9), gradients := np.random.default_rng(0).normal(size=(9, 3)))
    found, m = moves(lambda p: untuned.AdaRem(p, 0.1, 0.8, lam=0.9), gradients), np.zeros(3)
    for step, g in zip(found, gained, strict=True):
        m = 0.8 * m + g
        assert_close(step, 0.1 * m, 1e-14)


def test_decay_of_adarem_has_no_gain():
    points = path(lambda p: untuned.AdaRem(p, 0.1, weight_decay=0.5), linear([0.0]), [[1.0]], 3)
    assert_close(points[:, 0], 0.95 ** np.arange(4), 1e-15)


def quadratic(p, k):
    """Half of 100 x^2 + y^2."""
    return (torch.tensor([100.0, 1.0], dtype=torch.float64) * p[0] ** 2).sum() / 2


def descent(lr):
    return lambda p: torch.optim.SGD(p, lr)


@pytest.mark.parametrize("lr", [0.0105, 0.011, 0.0115])
def test_adarem_oscillates_less_on_an_ill_conditioned_quadratic(lr):
    """With lr above 0.01 gradient descent changes the sign of x in every step; where x turns round, AdaRem waits."""
    ours, theirs = (path(make, quadratic, [[1.0, 1.0]], 30) for make in (lambda p: untuned.AdaRem(p, lr), descent(lr)))
    turns = [(points[1:, 0] * points[:-1, 0] < 0).sum() for points in (ours, theirs)]
    assert turns[1] == 30 and turns[0] < 20
    assert 0 < ours[-1, 1] < theirs[-1, 1]  # what does not turn is faster


def test_adarem_is_stable_up_to_half_the_rate_of_gradient_descent():
    """A gain of 2 doubles lr: above 1 / 100 some rates diverge, where gradient descent may go up to 2 / 100."""
    ends = {lr: path(lambda p, lr=lr: untuned.AdaRem(p, lr), quadratic, [[1.0, 1.0]], 100)[-1] for lr in (0.009, 0.015)}
    assert np.abs(ends[0.009]).max() < 0.3
    assert np.abs(ends[0.015][0]) > 1e6
    assert np.abs(path(descent(0.015), quadratic, [[1.0, 1.0]], 100)[-1]).max() < 0.3


# ---------------------------------------------------------------- versions of SGDF

VERSIONS = ["final", "v2025-03", "v2024-04", "v2024-03"]
every_version = pytest.mark.parametrize("version", VERSIONS)


@every_version
@pytest.mark.parametrize(
    ("options", "loss", "steps"),
    [({}, logistic, 1), ({}, linear(START[0], [3.0, -7.0]), 20), ({"betas": (0.0, 0.9)}, logistic, 20)],
    ids=["first step", "constant gradients", "no average"],
)
def test_every_version_of_sgdf_is_gradient_descent_where_it_has_nothing_to_filter(version, options, loss, steps):
    ours = path(lambda p: untuned.SGDF(p, lr=0.3, version=version, **options), loss, steps=steps)
    assert_close(ours, path(lambda p: torch.optim.SGD(p, lr=0.3), loss, steps=steps))


def averages(gradients, beta1=0.9):
    m, found = np.zeros(3), []
    for t, g in enumerate(gradients, 1):
        m = beta1 * m + (1 - beta1) * g
        found.append(m / (1 - beta1**t))
    return np.array(found)


@every_execution
def test_gains_of_the_versions_of_sgdf(execution):
    """Each from the others: gamma = 1 is that of April 2024, 2025 took twice that, and March 2024 another variance."""
    gradients = np.random.default_rng(0).normal(size=(30, 3))
    averaged = averages(gradients)

    def gain(**options):
        steps = moves(lambda p: untuned.SGDF(p, 1.0, eps=0.0, execution=execution, **options), gradients)
        return (-steps - averaged)[1:] / (gradients - averaged)[1:]

    K = gain(version="v2024-04")
    assert (K > 0).all() and (K < 1).all()
    assert_close(gain(gamma=1.0), K, 1e-12)
    assert_close(gain(), np.sqrt(K), 1e-12)
    assert_close(gain(gamma=0.25), K**0.25, 1e-12)
    assert_close(gain(version="v2025-03"), 2 * K, 1e-12)
    assert gain(version="v2025-03").max() > 1  # beyond the gradient
    naive, t = gain(version="v2024-03"), np.arange(2, 31)[:, None]
    assert_close(K / (1 - K), naive / (1 - naive) * 0.1 * (1 - 0.81**t) / 1.9, 1e-9)  # K is near 1 where g is near n


def test_the_factor_of_the_variance_is_the_sum_of_squared_weights():
    beta = 0.9
    for t in (1, 2, 10, 100):
        weights = (1 - beta) * beta ** np.arange(t)
        assert (weights**2).sum() == pytest.approx((1 - beta) * (1 - beta ** (2 * t)) / (1 + beta), rel=1e-14)


@every_version
def test_every_version_of_sgdf_scales_with_the_loss(version):
    one = path(lambda p: untuned.SGDF(p, lr=0.3, eps=0.0, version=version))
    scaled = path(lambda p: untuned.SGDF(p, lr=0.3 / 50, eps=0.0, version=version), lambda p, k: 50 * logistic(p, k))
    assert_close(scaled, one)


@every_version
def test_every_version_of_sgdf_without_gain_is_the_corrected_average(version):
    ours = path(lambda p: untuned.SGDF(p, lr=0.3, eps=1e100, version=version))
    assert_close(ours, path(lambda p: untuned.compose(p, Momentum(0.9, 0.9, correct=True), Fixed(0.3))))


def test_versions_of_sgdf_are_words_and_only_the_final_has_a_power():
    with pytest.raises(ValueError, match="version must be one of final, v2025-03, v2024-04, v2024-03, not '2024'"):
        SGDF(version="2024")
    with pytest.raises(ValueError, match=r"version 'v2024-04' has no power of the gain: leave gamma out"):
        SGDF(gamma=1.0, version="v2024-04")
    w = torch.nn.Parameter(torch.ones(1))
    old, new = untuned.SGDF([w], version="v2024-04"), untuned.SGDF([w])
    with pytest.raises(ValueError, match="another method saved this checkpoint"):
        new.load_state_dict(old.state_dict())
    with pytest.raises(ValueError, match=r"gamma shapes the method and is 0\.5 for all groups, not 1\.0"):
        untuned.SGDF([{"params": [w], "gamma": 1.0}])


# ---------------------------------------------------------------- multiplicative updates


@every_execution
def test_one_multiplicative_step_by_hand(execution):
    """2 - 0.1 * 2 tanh(1), and the same with what tanh needs near 0, far out, and for weights below 0."""
    gradients = np.array([[1.0, 1e-9, -40.0, 3.0]])
    start = np.array([2.0, 5.0, -3.0, 0.0])
    found = start + moves(lambda p: untuned.MultiplicativeSGD(p, 0.1, execution=execution), gradients, start)[0]
    assert found[0] == pytest.approx(1.847681, abs=5e-7)
    wanted = [w - 0.1 * abs(w) * math.tanh(g) for w, g in zip(start, gradients[0], strict=True)]
    assert found == pytest.approx(wanted, rel=1e-15, abs=0)


class Squashed(Direction):
    """u = tanh(g), as the multiplicative step has it."""

    def unit(self, x):
        return _tanh(x.g)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@every_execution
def test_the_tanh_of_a_multiplicative_step_is_right_everywhere(dtype, execution):
    """A step of lr 1 from 0 is -tanh itself; its relative error is that of a few roundings, also near 0."""
    q = torch.cat([torch.logspace(-30, 0, 200), torch.linspace(0.5, 25, 500), torch.tensor([1e3, 1e18])]).to(dtype)
    q = torch.cat([q, -q, torch.zeros(1, dtype=dtype)])
    p = torch.nn.Parameter(torch.zeros_like(q))
    optimizer = untuned.compose([p], Squashed(), Fixed(1.0), execution=execution)
    p.grad = q.clone()
    optimizer.step()
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(-p.detach().double(), torch.tanh(q.double()), rtol=6 * eps, atol=0)
    assert p.detach().abs().max() <= 1 + 2 * eps


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), lr=st.floats(0.0, 0.999), rule=st.sampled_from(["abs", "power"]))
def test_multiplicative_steps_keep_signs_and_zeros(seed, lr, rule):
    rng = np.random.default_rng(seed)
    gradients, start = rng.normal(size=(12, 5)) * 10.0 ** rng.integers(-3, 6, size=(12, 5)), rng.normal(size=5)
    start[2] = 0.0
    make = lambda p: untuned.MultiplicativeSGD(p, lr, rule=rule)  # noqa: E731
    points = path(make, given_gradients(gradients), [start], len(gradients))
    assert (np.sign(points) == np.sign(start)).all()
    change = np.abs(np.diff(points, axis=0))
    most = lr if rule == "abs" else 2**lr - 1
    assert (change <= (most + 1e-15) * np.abs(points[:-1])).all()


BASES = {
    "sgd": (Momentum(0.9, nesterov=True), Coupled(0.1)),
    "adamw": (Adam(), Decoupled(0.1)),
    "proximal": (Adam(), Proximal(0.1)),
}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@every_execution
def test_without_a_multiplicative_part_it_is_the_base(base, dtype, execution):
    """Bitwise where verbs run as written; kernels may group the products of a step otherwise: a rounding each step."""
    found = []
    for around in ([], [Multiplicative(eta_in=3.0, mix=0.0)]):
        p = torch.nn.Parameter(torch.randn(5000, generator=torch.Generator().manual_seed(0)).to(dtype))
        direction, decay = BASES[base]
        optimizer = untuned.compose([p], direction, Fixed(0.05), None, decay, around=around, execution=execution)
        generator = torch.Generator().manual_seed(1)
        for _ in range(8):
            p.grad = torch.randn(5000, generator=generator).to(dtype)
            optimizer.step()
        found.append(p.detach().double())
    largest = 0.0 if execution == "reference" else 8 * torch.finfo(dtype).eps
    gap = (found[0] - found[1]).abs().max() / 4  # of weights below 4
    print(base, dtype, execution, gap)
    assert gap <= largest


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_mixture_of_steps_and_the_rule_alone(momentum):
    """By the equations in NumPy: mix and additive, and with mix=1 the multiplicative rule alone."""
    gradients, start = np.random.default_rng(0).normal(size=(9, 4)), np.array([1.0, -2.0, 0.5, 3.0])
    for mix, additive in ((1.0, 1.0), (0.3, 1.0), (0.3, 2.5), (0.7, 0.0)):
        x, m, wanted = start.copy(), np.zeros(4), []
        for g in gradients:
            m = momentum * m + g
            x = x - mix * 0.2 * np.abs(x) * np.tanh(3 * m) - (1 - mix) * additive * 0.2 * m
            wanted.append(x)
        make = partial(untuned.MultiplicativeSGD, lr=0.2, momentum=momentum, eta_in=3.0, mix=mix, additive=additive)
        assert_close(path(make, given_gradients(gradients), [start], 9)[1:], wanted, 1e-13)


def test_the_power_rule_moves_the_logarithm():
    gradients, start = np.random.default_rng(0).normal(size=(9, 4)), np.array([1.0, -2.0, 0.5, -3.0])
    make = lambda p: untuned.MultiplicativeSGD(p, 0.2, eta_in=3.0, rule="power")  # noqa: E731
    points = path(make, given_gradients(gradients), [start], 9)
    assert_close(np.diff(np.log2(np.abs(points)), axis=0), -np.sign(start) * 0.2 * np.tanh(3 * gradients), 1e-13)
    assert (np.sign(points) == np.sign(start)).all()


def test_the_ends_of_the_inner_rate():
    """Large: the sign of u decides. Small: linear in u, up to |w| |eta_in u|^3 / 3."""
    gradients, start = np.random.default_rng(0).normal(size=(1, 4)), np.array([1.0, -2.0, 0.5, -3.0])
    found = moves(lambda p: untuned.MultiplicativeSGD(p, 0.2, eta_in=1e9), gradients, start)
    assert_close(found[0], -0.2 * np.abs(start) * np.sign(gradients[0]), 1e-15)
    for eta in (1e-1, 1e-2):
        found = moves(lambda p, eta=eta: untuned.MultiplicativeSGD(p, 0.2, eta_in=eta), gradients, start)[0]
        rest = np.abs(found + 0.2 * eta * np.abs(start) * gradients[0])
        most = 0.2 * np.abs(start) * np.abs(eta * gradients[0]) ** 3 / 3
        assert (rest <= most + 1e-15).all() and (rest >= 0.9 * most - 1e-15).all()


@pytest.mark.parametrize("rule", ["abs", "power"])
def test_multiplicative_steps_scale_with_the_weights(rule):
    gradients, start = np.random.default_rng(0).normal(size=(9, 4)), np.array([1.0, -2.0, 0.5, -3.0])
    make = lambda p: untuned.MultiplicativeAdam(p, 0.05, rule=rule)  # noqa: E731
    assert_close(moves(make, gradients, 1e6 * start) / 1e6, moves(make, gradients, start), 1e-9)


def test_the_correction_of_adam_stands_outside_the_tanh():
    """In the first step u is a tenth of the gradient's sign, and the outer rate ten times lr."""
    found = moves(lambda p: untuned.MultiplicativeAdam(p, 0.02, eps=1e-30), [[5.0, -5.0]], np.array([1.0, 1.0]))
    assert_close(found[0], [-0.2 * math.tanh(0.1), 0.2 * math.tanh(0.1)], 1e-14)


def test_positive_targets_are_reached_in_proportion():
    """The sum of |w - target|^2, targets over six powers of ten: plain steps of one lr do not fit all."""
    target = torch.tensor([1e-3, 1.0, 1e3], dtype=torch.float64)
    loss = lambda p, k: ((p[0] - target) ** 2 / target).sum()  # noqa: E731
    end = path(lambda p: untuned.MultiplicativeSGD(p, 0.05), loss, [[2e-3, 2.0, 2e3]], 300)[-1]
    assert np.abs(end / target.numpy() - 1).max() < 1e-6


def test_decay_stands_beside_the_multiplicative_step():
    """With a gradient of 0 what remains is the decay, decoupled or proximal; coupled, it goes through the tanh."""
    for decay, wanted in (
        (Decoupled(0.5), 2 * 0.95),
        (Proximal(0.5), 2 / 1.05),
        (Coupled(0.5), 2 - 0.1 * 2 * math.tanh(1)),
    ):
        make = lambda p, d=decay: untuned.compose(  # noqa: E731
            p, Gradient(), Fixed(0.1), None, d, around=[Multiplicative()]
        )
        assert_close(path(make, linear([0.0]), [[2.0]], 1)[1, 0], wanted, 1e-15)


@every_execution
def test_what_others_change_comes_on_top(execution):
    """Random scaling after it scales the whole step; before it, what it changes of the plain one; decay stays at y."""
    s = -math.log(1 - float(uniform(3, 1)))
    make = partial(untuned.compose, direction=Gradient(), step_size=Fixed(0.1), execution=execution)
    step = lambda around: moves(partial(make, around=around), [[3.0]], np.array([2.0]))[0, 0]  # noqa: E731
    whole = -0.1 * 2 * math.tanh(3)
    assert step([Multiplicative(), RandomScaling(3)]) == pytest.approx(s * whole, rel=1e-13)
    assert step([RandomScaling(3), Multiplicative()]) == pytest.approx(whole - (s - 1) * 0.3, rel=1e-12)
    assert step([Multiplicative(), Project()]) == 0
    free = lambda p: untuned.compose(  # noqa: E731
        p, Gradient(), Fixed(0.1), ScheduleFree(0.5), Decoupled(1.0), around=[Multiplicative()], execution=execution
    )
    y = path(free, given_gradients([[3.0], [-1.0]]), [[2.0]], 2)[:, 0]
    z, x = 2.0, 2.0
    for t, g in enumerate((3.0, -1.0), 1):
        decayed = (1 - 0.5) * z + 0.5 * x
        z = z - 0.1 * z * math.tanh(g) - 0.1 * decayed
        x = x + (z - x) / t
        assert y[t] == pytest.approx(0.5 * z + 0.5 * x, rel=1e-12)


def test_tensors_of_zeros_are_warned_of():
    bias, weight = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.ones(3))
    with pytest.warns(UserWarning, match=r"1 tensor of zeros \(biases.*\) will never move.*a group with mix=0\.$"):
        untuned.MultiplicativeSGD([weight, bias])
    with pytest.warns(UserWarning, match="2 tensors of zeros"):
        untuned.MultiplicativeAdam([("a", bias), ("b", torch.nn.Parameter(torch.zeros(1)))])
    frozen, nothing = torch.nn.Parameter(torch.zeros(3), requires_grad=False), torch.nn.Parameter(torch.zeros(0))
    away = torch.nn.Parameter(torch.zeros(3, device="meta"))
    untuned.MultiplicativeSGD([weight, frozen, nothing, away])  # a warning is an error here
    untuned.MultiplicativeSGD([{"params": [weight]}, {"params": [bias], "mix": 0.0}])
    with pytest.warns(UserWarning, match=r"rule='power' has no additive share: the mix of a group is not read"):
        untuned.MultiplicativeSGD([{"params": [weight], "mix": 0.5}], rule="power")
    with pytest.raises(ValueError, match=r"rule='power' has no additive share: mix must be 1, not 0\.5"):
        Multiplicative(mix=0.5, rule="power")


def test_step_sizes_that_read_the_loss_are_refused():
    with pytest.raises(TypeError, match=r"MoMo cannot use Multiplicative: it needs 'additive'.*in proportion"):
        untuned.compose([torch.nn.Parameter(torch.ones(1))], step_size=MoMo(), around=[Multiplicative()])


def test_a_network_with_its_biases_apart_trains():
    """Groups as the caution says: weights by proportion, zero biases by plain steps."""
    torch.manual_seed(0)
    hidden, last = torch.nn.Linear(4, 16), torch.nn.Linear(16, 1)
    model, biases = torch.nn.Sequential(hidden, torch.nn.Tanh(), last), [hidden.bias, last.bias]
    for bias in biases:
        torch.nn.init.zeros_(bias)
    x = torch.randn(64, 4)
    y = x[:, :1] * x[:, 1:2] + 2
    groups = [{"params": [hidden.weight, last.weight]}, {"params": biases, "mix": 0.0}]
    optimizer = untuned.MultiplicativeAdam(groups, lr=0.03)
    losses = []
    for _ in range(300):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    assert all(bias.abs().min() > 0 for bias in biases)

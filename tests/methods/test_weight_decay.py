"""Weight decays that are anchored, cautious, or scaled by nothing: what they are equal to, and when they rest."""

import copy
import itertools

import numpy as np
import pytest
import torch
from test_closed_forms import START, assert_close, follow, logistic, path

import untuned
from untuned import directions, iterates, step_sizes
from untuned.weight_decay import Anchored, Cautious, Decoupled, Independent

EXECUTIONS = pytest.mark.parametrize("execution", ["reference", "native"])
FALLING = np.linspace(1.0, 0.0, 20, endpoint=False)


def sgd(decay, lr=0.5, execution="reference"):
    rule = step_sizes.Fixed(lr)
    return lambda p: untuned.compose(p, directions.Gradient(), rule, decay=decay, execution=execution)


def adamw(decay, execution="reference", iterate=None):
    rule = step_sizes.Fixed(0.05)
    return lambda p: untuned.compose(p, directions.Adam(), rule, iterate, decay, execution=execution)


# ---------------------------------------------------------------- anchored


def gradients(points):
    found = []
    for k, point in enumerate(points):
        params = [torch.tensor(part.reshape(a.shape), requires_grad=True) for part, a in split(point)]
        found.append(np.concatenate([g.numpy().ravel() for g in torch.autograd.grad(logistic(params, k), params)]))
    return np.array(found)


def split(point):
    return zip(np.split(point, [START[0].size]), START, strict=True)


@EXECUTIONS
@pytest.mark.parametrize("power", [1.0, 0.5, 2.0])
def test_anchored_gradient_descent_is_dual_averaging(power, execution):
    """SODA: x0 - (1 / (k + 2)) sum lr (i + 2) g_i, k and i from 0, with a schedule of lr."""
    points, _, _ = follow(sgd(Anchored(power), execution=execution), logistic, START, 20, FALLING)
    found = gradients(points[:-1])
    for k in range(20):
        weights = 0.5 * FALLING[: k + 1] * (np.arange(k + 1) + 2.0) ** power
        expected = points[0] - weights @ found[: k + 1] / (k + 2.0) ** power
        assert_close(points[k + 1], expected, 1e-14)
    assert np.abs(points[-1] - points[0]).max() > 0.1


@EXECUTIONS
def test_an_anchored_base_step_is_pulled_by_a_share_of_the_way(execution):
    """x <- x + base step + (x0 - x) / (k + 2), the base step being that of AdamW at the same gradients."""
    points, _, optimizer = follow(adamw(Anchored(), execution), logistic, START, 1)
    base = path(adamw(Decoupled(0.0)), steps=1)
    assert_close(points, base, 1e-14)  # nothing to be pulled back from yet
    for k in range(1, 6):
        before = np.concatenate([p.detach().numpy().ravel() for p in params_of(optimizer)])
        copies = [torch.nn.Parameter(p.detach().clone()) for p in params_of(optimizer)]
        plain = adamw(Decoupled(0.0))(copies)
        state = copy.deepcopy(optimizer.state_dict())
        for held in state["state"].values():
            held.pop("anchor")
        state["param_groups"] = [
            g | {"method": plain.param_groups[0]["method"], "weight_decay": 0.0} for g in state["param_groups"]
        ]
        for g in state["param_groups"]:
            g.pop("power")
        plain.load_state_dict(state)
        for params, one in ((params_of(optimizer), optimizer), (copies, plain)):
            one.zero_grad()
            logistic(params, k).backward()
            one.step()
        after, moved = (np.concatenate([p.detach().numpy().ravel() for p in q]) for q in (params_of(optimizer), copies))
        assert_close(after, moved + (points[0] - before) / (k + 2), 1e-13)


def params_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


@EXECUTIONS
def test_without_a_gradient_the_pull_undoes_an_excursion_as_one_over_t(execution):
    w = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = sgd(Anchored(), 1.0, execution)([w])
    for t in range(1, 9):
        w.grad = torch.full_like(w, 3.0 if t == 1 else 0.0)
        optimizer.step()
        assert_close(w.detach(), np.array([1.0, -2.0]) - 3.0 * 2 / (t + 1), 1e-14)


@EXECUTIONS
def test_a_late_tensor_has_its_own_anchor_and_count_and_a_group_may_be_left_alone(execution):
    first, late, alone = (torch.nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(3))
    groups = [{"params": [first, late]}, {"params": [alone], "weight_decay": 0.0}]
    optimizer = sgd(Anchored(), 0.5, execution)(groups)
    for t in range(1, 8):
        for p in (first, alone):
            p.grad = torch.ones_like(p)
        if t == 4:
            with torch.no_grad():
                late.fill_(5.0)
        late.grad = torch.ones_like(late) if t >= 4 else None
        optimizer.step()
    assert_close(alone.detach(), 1 - 0.5 * 7, 1e-14)
    assert_close(first.detach(), 1 - 0.5 * sum(i + 1 for i in range(1, 8)) / 8, 1e-14)
    assert_close(late.detach(), 5 - 0.5 * sum(i + 1 for i in range(1, 5)) / 5, 1e-14)


# ---------------------------------------------------------------- cautious


@EXECUTIONS
def test_a_cautious_decay_is_decoupled_where_the_step_shrinks_the_weight(execution):
    with_it, without, full = (
        follow(adamw(decay, execution), logistic, START, 1)[0] for decay in (Cautious(0.3), Cautious(), Decoupled(0.3))
    )
    shrinks = (without[0] - without[1]) * without[0] >= 0
    assert 0 < shrinks.sum() < shrinks.size
    assert_close(with_it[1], np.where(shrinks, full[1], without[1]), 1e-15)
    assert np.abs(full[1] - without[1]).min() > 1e-4


@EXECUTIONS
def test_a_cautious_step_of_20(execution):
    """In NumPy, with momentum and a schedule."""
    rule = step_sizes.Fixed(0.3)
    make = lambda p: untuned.compose(p, directions.Momentum(0.8), rule, decay=Cautious(0.4), execution=execution)  # noqa: E731
    points, _, _ = follow(make, logistic, START, 20, FALLING)
    x, m = points[0], 0.0
    for k, g in enumerate(gradients(points[:-1])):
        m = 0.8 * m + g
        lr = 0.3 * FALLING[k]
        x = x - lr * m - np.where(m * x >= 0, lr * 0.4 * x, 0.0)
        assert_close(points[k + 1], x, 1e-13)


# ---------------------------------------------------------------- independent


@EXECUTIONS
@pytest.mark.parametrize("schedule", [None, FALLING])
@pytest.mark.parametrize("lr", [1e-3, 0.5])
def test_an_independent_decay_takes_its_share_whatever_lr_is(lr, schedule, execution):
    still = lambda params, k: sum((0.0 * p).sum() for p in params)  # noqa: E731
    points, _, _ = follow(sgd(Independent(0.1), lr, execution), still, START, 20, schedule)
    assert_close(points, points[0] * 0.9 ** np.arange(21)[:, None], 1e-13)


@EXECUTIONS
def test_at_a_constant_lr_it_is_decoupled(execution):
    ours, theirs = (path(adamw(decay, execution)) for decay in (Independent(0.01), Decoupled(0.2)))
    assert_close(ours, theirs, 1e-14)


@EXECUTIONS
def test_an_estimate_of_d_does_not_scale_it(execution):
    found = []
    for d0 in (1e-6, 1e-3):
        rule, decay = step_sizes.Prodigy(d0=d0, growth_rate=1.0), Independent(0.1)
        w = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
        optimizer = untuned.compose([w], directions.Adam(correct=False), rule, decay=decay, execution=execution)
        for _ in range(3):
            w.grad = torch.zeros_like(w)
            optimizer.step()
        found.append(w.detach().numpy())
    assert_close(found, 0.9**3, 1e-14)


# ---------------------------------------------------------------- all of them

KINDS = {"anchored": Anchored, "cautious": lambda: Cautious(0.2), "independent": lambda: Independent(0.1)}
KIND = pytest.mark.parametrize("kind", KINDS)


@KIND
@EXECUTIONS
def test_a_group_at_lr_0_rests(kind, execution):
    moving, resting = (torch.nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2))
    optimizer = adamw(KINDS[kind](), execution)([{"params": [moving]}, {"params": [resting], "lr": 0.0}])
    for _ in range(3):
        for p in (moving, resting):
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert resting.tolist() == [1.0, 1.0]
    assert (moving < 0.95).all()


ITERATES = {
    "plain": lambda: None,
    "schedule_free": lambda: iterates.ScheduleFree(0.7),
    "gpa": lambda: iterates.GPA(0.7, 0.5),
    "mechanic": lambda: iterates.Mechanic(s_init=0.1),
}


DTYPES = [torch.float64, torch.float32, torch.bfloat16]


@KIND
@pytest.mark.parametrize(
    ("iterate", "dtype"), [(i, d) for i in ITERATES for d in DTYPES if i == "plain" or d == DTYPES[0]]
)
def test_kernels_equal_the_reference_and_a_resumed_run_goes_on(kind, iterate, dtype):
    def params():
        return [torch.nn.Parameter(torch.tensor(a, dtype=dtype)) for a in START]

    def train(optimizer, steps):
        for k in steps:
            optimizer.zero_grad()
            logistic([p.double() for p in params_of(optimizer)], k).backward()
            optimizer.step()

    ends = []
    for execution in ("reference", "native"):
        optimizer = adamw(KINDS[kind](), execution, ITERATES[iterate]())(params())
        train(optimizer, range(5))
        other = adamw(KINDS[kind](), execution, ITERATES[iterate]())(
            [torch.nn.Parameter(p.detach().clone()) for p in params_of(optimizer)]
        )
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for one in (optimizer, other):
            train(one, range(5, 10))
        assert all(torch.equal(p, q) for p, q in zip(params_of(optimizer), params_of(other), strict=True))
        ends.append(torch.cat([p.detach().double().flatten() for p in params_of(optimizer)]))
    unit = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    torch.testing.assert_close(*ends, rtol=unit, atol=unit)


@pytest.mark.parametrize(("kind", "rule"), [*itertools.product(KINDS, ["SPS", "MoMo", "NGN", "Prodigy", "DoG"])])
def test_they_go_with_estimated_steps(kind, rule):
    options = {"Prodigy": {"d0": 0.5}, "DoG": {"reps_rel": 0.1}}.get(rule, {"lr": 1.0})
    rule = getattr(step_sizes, rule)(**options)
    points = path(lambda p: untuned.compose(p, directions.Gradient(), rule, decay=KINDS[kind]()))
    assert np.isfinite(points).all()
    assert np.abs(points[-1] - points[0]).max() > 1e-2


@pytest.mark.parametrize(("kind", "wrong"), [(Anchored, 1.5), (Anchored, -0.1), (Cautious, -1.0), (Independent, 1.0)])
def test_what_is_no_coefficient_is_refused(kind, wrong):
    with pytest.raises(ValueError, match=rf"^{kind.__name__}: weight_decay must be a number in .*, not {wrong}\."):
        kind(weight_decay=wrong)

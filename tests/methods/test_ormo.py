"""`untuned.OrMo`: what the paper promises of it, its ablations, and how it is called."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from test_ordered_momentum import EXECUTIONS, START, arrivals, assert_same, logistic, parameters, values

import untuned
from untuned.testing import oracles

KINDS = [
    {"open_rule": open_rule, "late_step": late_step, "delay_cap": delay_cap}
    for open_rule in ("index", "lazy")
    for late_step in ("ordered", "vanilla")
    for delay_cap in (math.inf, 1.0, 2.0)
]


def served(optimizer: untuned.Optimizer, indexes: Sequence[int | None], problem: Callable[..., Any] = logistic) -> Any:
    """A run whose gradients are those of the model of their index, None being the latest. -> models; momenta."""
    params = optimizer.param_groups[0]["params"]
    models, momenta = [values(params)], []
    for t, index in enumerate(indexes):
        for p, g in zip(params, problem(models[t if index is None else index], t + 1)[1], strict=True):
            p.grad = torch.as_tensor(g, dtype=p.dtype)
        if index is None:
            optimizer.step()
        else:
            optimizer.step(index=index)
        models.append(values(params))
        momenta.append([optimizer.state[p]["momentum_buffer"].numpy().copy() for p in params])
    return models[1:], momenta


def coefficients(indexes: Sequence[int], **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """How much of each gradient is in the momentum and in the displacement at the end, in units of lr."""
    p = torch.nn.Parameter(torch.zeros(len(indexes), dtype=torch.float64))
    optimizer = untuned.OrMo([p], lr=1.0, **options)
    for t, index in enumerate(indexes):
        p.grad = torch.eye(len(indexes), dtype=torch.float64)[t]
        optimizer.step(index=index)
    return optimizer.state[p]["momentum_buffer"].numpy(), -p.detach().numpy()


# ---------------------------------------------------------------------- the method


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def test_it_is_its_oracle(kind: dict[str, Any], execution: str) -> None:
    indexes, options = arrivals(3, 40, seed=3), {"lr": 0.05, "momentum": 0.8, "weight_decay": 0.0}
    optimizer = untuned.OrMo(parameters(), num_workers=3, execution=execution, **options, **kind)
    expected, scalars = oracles.ordered_momentum(START, logistic, indexes, workers=3, **options, **kind)
    ours, momenta = served(optimizer, indexes)
    assert_same(ours, expected)
    assert_same(momenta, scalars["momentum"])
    plain, _ = oracles.ordered_momentum(START, logistic, indexes, workers=3, **options)
    changed = max(np.abs(a - b).max() for a, b in zip(expected[-1], plain[-1], strict=True))
    assert (changed > 1e-3) == (kind != KINDS[0])


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("open_rule", ["index", "lazy"])
def test_one_worker_is_torchs_sgd_with_momentum(open_rule: str, execution: str) -> None:
    params, theirs = parameters(), parameters()
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    optimizer = untuned.OrMo(params, open_rule=open_rule, execution=execution, **options)
    torchs = torch.optim.SGD(theirs, **options)
    for k in range(300):
        for p, q, g in zip(params, theirs, logistic(values(params), k)[1], strict=True):
            p.grad = q.grad = torch.as_tensor(g)
        optimizer.step()
        torchs.step()
    assert_same([values(params)], [values(theirs)])


@pytest.mark.parametrize("open_rule", ["index", "lazy"])
def test_fresh_gradients_have_the_weights_of_the_closed_form(open_rule: str) -> None:
    """After 10 steps with 3 workers buckets 0 to 3 have 1, 3, 3 and 3 gradients."""
    momentum, moved = coefficients(range(10), num_workers=3, momentum=0.8, open_rule=open_rule)
    ages = np.array([3] + [2] * 3 + [1] * 3 + [0] * 3)
    np.testing.assert_allclose(momentum, 0.8**ages, rtol=1e-14)
    np.testing.assert_allclose(moved, (1 - 0.8 ** (ages + 1)) / (1 - 0.8), rtol=1e-14)


def test_no_index_means_the_weights_as_they_are() -> None:
    runs = [served(untuned.OrMo(parameters(), 0.1, num_workers=3), given) for given in ([None] * 20, range(20))]
    assert_same(runs[0][0], runs[1][0], 0.0)
    params = parameters()
    optimizer = untuned.OrMo(params, 0.1, num_workers=3)
    for t in range(20):
        for p, g in zip(params, logistic(values(params), t + 1)[1], strict=True):
            p.grad = torch.as_tensor(g)
        optimizer.step(index=None)
    assert_same([values(params)], runs[0][0][-1:], 0.0)


@pytest.mark.parametrize("open_rule", ["index", "lazy"])
def test_the_order_of_arrival_does_not_matter(open_rule: str) -> None:
    """Nor with the lazy rule, once all gradients are there, so that all orders have opened the same buckets."""
    rng, indexes = np.random.default_rng(1), arrivals(4, 40, seed=0)
    gradients, ends = rng.normal(size=(40, 2)), []
    for shuffle in (0, 400, 400, 400):
        order = list(range(40))
        for _ in range(shuffle):
            t = rng.integers(39)
            if indexes[order[t + 1]] <= t:
                order[t], order[t + 1] = order[t + 1], order[t]
        optimizer = untuned.OrMo(parameters()[1:], 0.1, 0.8, 4, open_rule=open_rule)
        problem = lambda x, k, order=order: (0.0, [gradients[order[k - 1]]])  # noqa: E731
        models, momenta = served(optimizer, [indexes[j] for j in order], problem)
        ends.append([*models[-1], *momenta[-1]])
    assert_same(ends[1:], ends[:1] * 3)


@pytest.mark.parametrize("open_rule", ["index", "lazy"])
def test_synchronous_workers_do_torchs_steps_on_the_mean_gradient(open_rule: str) -> None:
    """Nesterov's momentum if the index opens buckets, the heavy ball's if their first gradient does."""
    K, rounds, theirs = 4, 15, parameters()
    torchs = torch.optim.SGD(theirs, lr=0.2, momentum=0.8, nesterov=open_rule == "index")
    indexes = [K * (t // K) for t in range(K * rounds)]
    ours, _ = served(untuned.OrMo(parameters(), 0.2 / K, 0.8, K, open_rule=open_rule), indexes)
    for r in range(rounds):
        found = [logistic(values(theirs), K * r + j + 1)[1] for j in range(K)]
        for p, gradients in zip(theirs, zip(*found, strict=True), strict=True):
            p.grad = torch.as_tensor(sum(gradients) / K)
        torchs.step()
        assert_same([ours[K * (r + 1) - 1]], [values(theirs)])


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_without_momentum_it_is_asynchronous_sgd_to_the_bit(execution: str) -> None:
    indexes = arrivals(3, 40, seed=2)
    ours, _ = served(untuned.OrMo(parameters(), 0.1, 0.0, 3, execution=execution), indexes)
    theirs = served_by_sgd(indexes, 0.1, execution)
    assert_same(ours, theirs, 0.0)


def served_by_sgd(indexes: Sequence[int], lr: float, execution: str) -> list[Any]:
    params = parameters()
    optimizer = untuned.SGD(params, lr, execution=execution)
    models = [values(params)]
    for t, index in enumerate(indexes):
        for p, g in zip(params, logistic(models[index], t + 1)[1], strict=True):
            p.grad = torch.as_tensor(g)
        optimizer.step()
        models.append(values(params))
    return models[1:]


@pytest.mark.parametrize("lag", [0, 1, 2, 5, 10])
def test_a_late_gradient_moves_further(lag: int) -> None:
    """By 1, 1.9, 2.71, 4.69 and 6.86 lr at momentum 0.9, and by lr alone as the ablation has it."""
    known = {0: 1.0, 1: 1.9, 2: 2.71, 5: 4.69, 10: 6.86}[lag]
    indexes = [*range(4 * lag), 0]
    for late_step, expected in (("ordered", known), ("vanilla", 1.0)):
        momentum, moved = coefficients(indexes, num_workers=4, late_step=late_step)
        np.testing.assert_allclose(moved[-1], expected, atol=5e-3)
        np.testing.assert_allclose(momentum[-1], 0.9**lag, rtol=1e-14)


@pytest.mark.parametrize("indexes", [[0, 0, 0, 0, 1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 4, 4, 4, 4, 8, 8]])
def test_the_coefficients_of_the_papers_figure(indexes: list[int]) -> None:
    """K = 4, momentum 1/2, ten gradients: a quarter of the first four, half of the next four, all of the last two.

    So it is with the lazy rule. By the count of gradients the tenth opens a bucket, and all are halved.
    """
    powers = np.array([0.25] * 4 + [0.5] * 4 + [1.0] * 2)
    options = {"num_workers": 4, "momentum": 0.5}
    np.testing.assert_array_equal(coefficients(indexes, open_rule="lazy", **options)[0], powers)
    np.testing.assert_array_equal(coefficients(indexes[:9], **options)[0], powers[:9])
    np.testing.assert_array_equal(coefficients(indexes, **options)[0], powers / 2)


def test_the_cap_of_the_delay() -> None:
    """lr min(1, cap K / tau): a cap that no delay reaches is OrMo to the bit, and none is damped up to 2 K steps."""
    indexes = arrivals(3, 60, seed=8)
    delays = [t - index for t, index in enumerate(indexes)]
    assert max(delays) > 6
    plain, _ = served(untuned.OrMo(parameters(), 0.1, num_workers=3), indexes)
    capped, _ = served(untuned.OrMo(parameters(), 0.1, num_workers=3, delay_cap=max(delays) / 3), indexes)
    assert_same(plain, capped, 0.0)
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = untuned.OrMo([p], lr=1.0, momentum=0.0, num_workers=3, delay_cap=2.0)
    for t, index in enumerate(indexes):
        before, p.grad = p.item(), torch.ones_like(p)
        optimizer.step(index=index)
        factor = min(1.0, 6 / delays[t]) if delays[t] else 1.0
        assert before - p.item() == pytest.approx(factor, rel=1e-12)
        assert optimizer.metrics()["delay_factor"] == factor


# ---------------------------------------------------------------------- how it is called


def test_hooks_run_once_and_a_closure_is_called() -> None:
    params, seen = parameters(), []
    optimizer = untuned.OrMo(params, 0.1, num_workers=2)
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = sum((p**2).sum() for p in params)
        loss.backward()
        return loss

    before = closure().item()
    assert optimizer.step(closure, index=0).item() == before
    assert optimizer.step(closure).item() < before
    assert seen == ["before", "after"] * 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_workers": 0}, r"workers must be a whole number in \[1, inf\), not 0"),
        ({"momentum": 1.0}, r"momentum must be a number in \[0, 1\), not 1.0"),
        ({"open_rule": "eager"}, "open_rule must be one of index, lazy, not 'eager'"),
        ({"late_step": "late"}, "late_step must be one of ordered, vanilla, not 'late'"),
        ({"delay_cap": 0.5}, r"delay_cap must be a number in \[1, inf\], not 0.5"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        untuned.OrMo(parameters(), **options)


def test_a_negative_index_is_refused_and_changes_nothing() -> None:
    params = parameters()
    optimizer = untuned.OrMo(params)
    for p in params:
        p.grad = torch.ones_like(p)
    state = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"OrMo: index must be a number in \[0, inf\), not -1"):
        optimizer.step(index=-1)
    assert all(map(np.array_equal, values(params), START))
    assert optimizer.state_dict()["state"].keys() == state["state"].keys()

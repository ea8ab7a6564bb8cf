"""The warnings of step sizes that read the loss: when its steps raise it, and when it lies below the bound."""

import copy
import re
import warnings
from typing import Any

import pytest
import torch
from test_step import HostReads
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import untuned
from untuned.step_sizes.loss_advice import bounded
from untuned.study import tasks

BOUNDED = ["alig", "dec_sps", "momo", "momo_adam", "ngn", "prox_sps", "sp", "sps"]
RECORDED = ["motaps", "taps"]
ROWS = 1000


def run(name: str, model: nn.Module, losses: Any, steps: int, **options: Any) -> list[float]:
    """Train on `losses(ids)`, 16 rows at a time, without a call of metrics()."""
    if name in RECORDED:
        options["samples"] = ROWS
    optimizer = untuned.create(model.parameters(), name, **options)
    rows = torch.Generator().manual_seed(0)
    sign, found = -1 if options.get("maximize") else 1, []
    for _ in range(steps):
        ids = torch.randint(0, ROWS, (16,), generator=rows)
        optimizer.zero_grad()
        loss = sign * losses(model, ids)
        loss.backward()
        optimizer.step(loss=loss, sample_ids=ids)
        found.append(sign * loss.item())
    return found


def steps(optimizer: untuned.Optimizer, losses: Any) -> None:
    """Steps of given losses on one weight, whose gradient is 1."""
    for loss in losses:
        optimizer.param_groups[0]["params"][0].grad = torch.ones(1)
        optimizer.step(loss=loss)


def one() -> nn.Parameter:
    return nn.Parameter(torch.ones(1))


def noise() -> tuple[nn.Module, Any]:
    """Labels that no model can tell: the loss cannot come near 0, nor much below its first value."""
    torch.manual_seed(0)
    x, y = torch.randn(ROWS, 20), torch.randint(0, 10, (ROWS,))
    return nn.Linear(20, 10), lambda model, ids: cross_entropy(model(x[ids]), y[ids])


class Normal(nn.Module):
    """Mean and log-deviation of a normal distribution; its likelihood of data with deviation 0.01 exceeds 1."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.log_deviation = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def loss(self, values: Tensor) -> Tensor:
        return (((values - self.mean) / self.log_deviation.exp()) ** 2 / 2 + self.log_deviation).mean()


def normal() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    values = 3 + 0.01 * torch.randn(ROWS)
    return Normal(), lambda model, ids: model.loss(values[ids])


# ---------------------------------------------------------------- steps that raise the loss


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("momo", {"lr": 10.0}),
        ("momo_adam", {"lr": 1.0}),
        ("momo_adam", {"lr": 1.0, "maximize": True}),
        ("sps", {"lr": 10.0, "maximize": True}),
        ("sp", {"lr": 1.9}),
    ],
)
def test_steps_that_raise_the_loss_are_named_once(name: str, options: dict[str, Any]) -> None:
    model, loss = noise()
    with pytest.warns(UserWarning, match="lower lr, (or )?raise lb to the lowest loss you expect") as caught:
        losses = run(name, model, loss, 400, **options)
    [text] = [str(warning.message) for warning in caught]
    steps, now, before = map(float, re.findall(r"after (\d+) steps .* \((.*)\) has risen from (\S+):", text)[0])
    assert now > 2 * before and losses[0] == pytest.approx(before, rel=1e-3)
    hundred = sorted(losses[int(steps) - 100 : int(steps)])
    assert hundred[50] == pytest.approx(now, rel=1e-3)


@pytest.mark.parametrize("name", RECORDED)
def test_so_are_those_towards_recorded_losses(name: str) -> None:
    model, loss = noise()
    with pytest.warns(UserWarning, match=rf"^{name.upper()}: after \d+ steps the loss .* lower lr"):
        run(name, model, loss, 300, lr=3.0)


@pytest.mark.parametrize("chosen", [False, True])
def test_the_option_that_is_set_already_is_not_recommended(chosen: bool) -> None:
    with pytest.warns(UserWarning, match=r"\(2\) has risen from 1: the steps are too long") as caught:
        steps(untuned.MoMo([one()], lr=1e-6, use_fstar=chosen), [1.0] * 100 + [2.0] * 100)
    assert ("use_fstar" in str(caught[0].message)) != chosen


def test_a_loss_that_fell_and_rises_again_is_named() -> None:
    """A language model of characters: at 4.0 in the first step, at 3.0 soon after, above 3.5 by step 300 and rising."""
    optimizer = untuned.MoMo([one()], lr=1e-6)
    levels = torch.tensor([4.0] + [3.0] * 199 + [3.4] * 100 + [3.6] * 100)  # 0.4 is less than half of what it fell
    losses = levels + 0.1 * torch.randn(400, generator=torch.Generator().manual_seed(0))
    steps(optimizer, losses[:300])  # an error if it warned
    with pytest.warns(UserWarning, match=r"after 400 steps the loss it models \(3\.6\S*\) has risen from (3\.0|2\.9)"):
        steps(optimizer, losses[300:])


# ---------------------------------------------------------------- a loss below the bound


@pytest.mark.parametrize(
    ("name", "maximize"), [*((name, False) for name in BOUNDED if name != "dec_sps"), ("momo_adam", True)]
)
def test_a_loss_below_its_bound_is_named_once(name: str, maximize: bool) -> None:
    model, loss = normal()
    with pytest.warns(UserWarning, match=r"the loss \(-.*\) lies below lb=0, .* training has stopped") as caught:
        losses = run(name, model, loss, 300, maximize=maximize, lr=0.1 if name == "momo_adam" else 1.0)
    assert len(caught) == 1 and -0.1 < min(losses[-100:]) < 0  # what can be reached is about -3.6


def test_a_batch_that_ends_the_training_of_dec_sps_is_named() -> None:
    optimizer = untuned.DecSPS([one()])
    with pytest.warns(UserWarning, match="DecSPS: a batch's loss fell to lb=0, which ended the training"):
        steps(optimizer, [1.0] * 20 + [0.0] + [1.0] * 79)


def test_the_bound_is_that_of_the_groups() -> None:
    """Given in a group, or set later: not that of the constructor."""
    optimizer = untuned.SPS([{"params": [one()], "lb": -4.0}])
    steps(optimizer, [-3.0] * 200)  # an error if it warned
    optimizer.param_groups[0]["lb"] = -2.0
    with pytest.warns(UserWarning, match=r"the loss \(-3\) lies below lb=-2"):
        steps(optimizer, [-3.0] * 100)


# ---------------------------------------------------------------- silence


@pytest.mark.parametrize("name", [*BOUNDED, *RECORDED])
@pytest.mark.parametrize(
    "task", ["logreg-vehicle", pytest.param("logreg-vowel", marks=pytest.mark.slow), "fashion-mlp"]
)
def test_a_healthy_run_is_silent(name: str, task: str) -> None:
    chosen = tasks.load(task)
    model = chosen.model(0)
    given = {"samples": chosen.samples} if name in RECORDED else {}
    optimizer = untuned.create(model, name, **given)
    first = last = 0.0
    for k in range(300 // (steps := sum(1 for _ in chosen.batches(0, 0))) + 1):
        for batch, ids in zip(chosen.batches(0, k), chosen.ids(0, k), strict=True):
            optimizer.zero_grad()
            loss = chosen.loss(model, batch)
            loss.backward()
            optimizer.step(loss=loss, sample_ids=ids)  # an error if it warned
            first, last = first or loss.item(), loss.item()
    assert optimizer.metrics()["steps"] >= 300 > steps
    assert last < first


@pytest.mark.parametrize("draw", ["exponential", "lognormal", "uniform"])
def test_losses_that_only_differ_from_batch_to_batch_are_no_reason(draw: str) -> None:
    """Runs that do not learn: the first loss and all after it are samples of one distribution."""
    rows = torch.Generator().manual_seed(0)
    u = torch.rand(1000, 10, 100, generator=rows, dtype=torch.float64)
    normal = torch.randn(1000, 10, 100, generator=rows, dtype=torch.float64)
    losses = {"exponential": -u.log(), "lognormal": normal.exp(), "uniform": 1 + u}[draw]
    for first, hundreds in zip(losses[:, 0, 0].tolist(), losses.sort(2).values, strict=True):
        medians, lows = hundreds[:, 50].tolist(), hundreds[:, 10].tolist()
        for k in range(10):
            course = {"first": first, "least": min(medians[: k + 1]), "last": medians[k], "low": lows[k]}
            numbers = {f"loss_{key}": value for key, value in course.items()} | {"steps": 100.0 * k, "lb": 0.0}
            assert bounded("SPS", numbers) is None


def test_a_little_rise_is_no_reason() -> None:
    """Weight decay does that late in training; the loss of the model is without it."""
    steps(untuned.MoMo([one()], lr=1e-6), [1.4] + [1.3] * 99 + [1.42] * 100)  # an error if it warned
    with pytest.warns(UserWarning, match="has risen"):
        steps(untuned.MoMo([one()], lr=1e-6), [1.4] + [1.3] * 99 + [1.44] * 100)


def test_a_loss_that_reaches_its_bound_and_stays_is_no_reason() -> None:
    for name in BOUNDED:
        w = nn.Parameter(torch.ones(3))
        optimizer = untuned.create([w], name)
        for _ in range(300):
            optimizer.zero_grad()
            loss = (w**2).sum()
            loss.backward()
            optimizer.step(loss=loss)
        assert loss.item() < 3


# ---------------------------------------------------------------- how it is looked at


@pytest.mark.parametrize("name", [*BOUNDED, "prodigy"])
def test_the_step_that_looks_back_does_not_wait_for_the_device(name: str) -> None:
    w = nn.Parameter(torch.ones(3))
    optimizer = untuned.create([w], name, d0=1e-3) if name == "prodigy" else untuned.create([w], name)
    w.grad = torch.ones(3)
    with HostReads() as reads, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(100):
            optimizer.step(loss=torch.ones(()))
    assert optimizer._watch.course or name == "prodigy"
    assert reads.count == 0


def test_what_was_heard_is_not_saved() -> None:
    optimizer = untuned.SPS([one()])
    keys = [set(group) for group in optimizer.state_dict()["param_groups"]]
    steps(optimizer, [2.0] * 100)
    assert [set(group) for group in optimizer.state_dict()["param_groups"]] == keys
    assert "loss_last" not in optimizer.metrics()
    twin = copy.deepcopy(optimizer)
    steps(twin, [5.0] * 100)  # an error if it compared them with 2

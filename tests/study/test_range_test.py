"""The learning-rate range test: what it reads off a curve, and what a run pays for it."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import Line
from torch import Tensor, nn

from untuned.study.building import create
from untuned.study.config import Run
from untuned.study.methods import parse_methods
from untuned.study.range_test import find_lr, steepest, valley
from untuned.study.runner import train
from untuned.study.tasks import load

LRS = np.geomspace(1e-7, 10, 100).tolist()


def make(probe: str = "range_test(steps=20)", **changes: object) -> Run:
    fields = {"task": "tiny:Line", "method": "adam", "lr": 1.0, "seed": 1, "epochs": 20, "batch_size": 4}
    return Run.model_validate({**fields, "version": "1", "probe": probe, **changes})


def find(task: Line, run: Run, total: int = 1000, model: nn.Module | None = None) -> tuple[float, int]:
    def optimizer(of: nn.Module, lr: float) -> torch.optim.Optimizer:
        return create(of, run.method, lr, run.options)

    torch.manual_seed(run.seed)
    return find_lr(task, run, model or task.model(run.seed), optimizer, total)


# --- Reading off.


@pytest.mark.parametrize("fastest", [12, 40, 63, 90])
def test_steepest_is_where_a_sigmoid_falls_fastest(fastest: int) -> None:
    losses = [1 / (1 + math.exp((i - fastest) / 4)) for i in range(100)]
    assert steepest(LRS, losses) == LRS[fastest]


def test_steepest_leaves_out_the_first_ten_steps_and_the_last() -> None:
    fall = [3.0] * 100
    fall[5:] = [1.0] * 95  # at the start, where the mean has just begun
    fall[50:] = [0.9] * 50
    fall[99] = -5.0
    assert steepest(LRS, fall) in LRS[49:51]
    assert steepest(LRS[:13], [5.0, 4.0, 0.0, *[0.0] * 10]) == LRS[1]  # too few to leave any out
    assert steepest(LRS[:14], [5.0, 0.0, *[0.0] * 9, -1.0, -1.0, -9.0]) == LRS[10]


def test_steepest_of_few_losses() -> None:
    assert steepest([0.5], [1.0]) == 0.5
    assert steepest([0.5, 1.0], [1.0, 0.0]) == 0.5
    assert steepest([0.5, 1.0, 2.0], [1.0, 1.5, -3.0]) == 2.0


@given(st.lists(st.floats(-5, 5), min_size=15, max_size=60), st.floats(0.1, 10), st.floats(-3, 3))
def test_steepest_does_not_depend_on_the_unit_of_the_loss(losses: list[float], scale: float, shift: float) -> None:
    rounded = [round(loss, 2) for loss in losses]  # no ties that rounding could break
    slopes = np.sort(np.gradient(rounded[10:-1]))
    if len(slopes) > 1 and slopes[1] - slopes[0] < 1e-3:
        return
    found = steepest(LRS, rounded)
    assert steepest(LRS, [scale * loss + shift for loss in rounded]) == found
    assert found in LRS[10 : len(losses) - 1]


def longest_fall(losses: list[float]) -> int:
    """The length of the longest strictly decreasing subsequence, by trying all."""
    for length in range(len(losses), 0, -1):
        if any(all(a > b for a, b in itertools.pairwise(one)) for one in itertools.combinations(losses, length)):
            return length
    return 0


@given(st.lists(st.integers(0, 6).map(float), min_size=1, max_size=9))
def test_valley_is_the_middle_of_a_longest_decreasing_subsequence(losses: list[float]) -> None:
    length = longest_fall(losses)
    middles = {
        (chosen[0] + chosen[-1]) // 2
        for chosen in itertools.combinations(range(len(losses)), length)
        if all(losses[i] > losses[j] for i, j in itertools.pairwise(chosen))
    }
    assert valley(LRS, losses) in [LRS[i] for i in middles]


def test_valley_of_known_curves() -> None:
    assert valley([0.5], [1.0]) == 0.5
    assert valley(LRS, [1.0] * 100) in LRS
    assert valley(LRS[:9], [5.0, 5, 4, 3, 2, 1, 6, 7, 8]) == LRS[3]  # steps 1 (or 0) to 5
    flat_fall_rise = [1.0] * 30 + [1 - 0.02 * i for i in range(40)] + [0.3 + i for i in range(30)]
    assert valley(LRS, flat_fall_rise) == LRS[(30 + 69) // 2]
    long = np.random.default_rng(0).permutation(2000).astype(float).tolist()
    assert valley(list(range(2000)), long) >= 0  # 2,000 losses take no time


# --- The test itself.


def test_lr_grows_geometrically_and_the_batches_are_those_of_the_run() -> None:
    seen: list[tuple[float, Tensor]] = []

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            seen.append((self.param_groups[0]["lr"], x[-1]))

    class Spied(Line):
        def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            x.append(batch[0])
            return super().loss(model, batch)

    x: list[Tensor] = []
    task, run = Spied(), make("range_test(steps=12, low=1e-3, high=0.1)")
    torch.manual_seed(1)
    _, used = find_lr(task, run, task.model(1), lambda of, lr: Watched(of.parameters(), lr=lr), 1000)
    assert used == 12
    assert [lr for lr, _ in seen] == pytest.approx(np.geomspace(1e-3, 0.1, 12))
    batches = [batch for epoch in range(3) for batch in task.batches(1, epoch)]
    assert all(torch.equal(inputs, batches[i][0]) for i, (_, inputs) in enumerate(seen))


def test_the_suggestion_is_what_a_plain_loop_finds() -> None:
    for rule, read_off in (("steepest", steepest), ("valley", valley)):
        task, run = Line(), make(f"range_test(steps=40, low=1e-4, high=1.0, rule='{rule}')")
        found, used = find(task, run)
        torch.manual_seed(1)
        model = task.model(1)
        optimizer = torch.optim.Adam(model.parameters())
        lrs, smoothed, losses = np.geomspace(1e-4, 1.0, 40), [], []
        batches = [batch for epoch in range(8) for batch in task.batches(1, epoch)]
        for i, batch in enumerate(batches):
            optimizer.param_groups[0]["lr"] = lrs[i]
            optimizer.zero_grad()
            loss = task.loss(model, batch)
            losses.append(loss.item())
            weights = 0.98 ** np.arange(i, -1, -1)
            value = float(np.dot(weights, losses) / weights.sum())
            if value > 4 * min([math.inf, *smoothed]):
                break
            smoothed.append(value)
            loss.backward()
            optimizer.step()
        assert found == pytest.approx(read_off(lrs.tolist(), smoothed), rel=1e-4)
        assert used == len(losses)


@pytest.mark.parametrize("method", ["adam", "compose(adam, momo)", "torch.optim:SGD", "schedule_free_adamw"])
def test_the_model_is_untouched(method: str) -> None:
    task = Line()
    model = task.model(1)
    model.append(nn.BatchNorm1d(1))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found, used = find(task, make(method=method), model=model)
    assert used > 10 and 1e-7 <= found <= 10
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


class Scripted(Line):
    """Has the losses it is told, whatever the model does."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.losses, self.asked = losses, 0

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        self.asked += 1
        return super().loss(model, batch) * 0 + self.losses[min(self.asked, len(self.losses)) - 1]


def test_it_stops_where_the_smoothed_loss_is_four_times_its_least() -> None:
    constant = [1.0] * 15
    _, used = find(Scripted(constant), make("range_test(steps=30)"))
    assert used == 30
    # The mean after 15 ones and a jump to h is (1 w + 0.02 h) / (w + 0.02), w = 1 - 0.98^15 after one more step.
    w = 0.98 * (1 - 0.98**15)
    height = 3 * (w + 0.02) / 0.02 + 1
    _, used = find(Scripted([*constant, 1.01 * height]), make("range_test(steps=30)"))
    assert used == 16
    _, used = find(Scripted([*constant, 0.99 * height, 1.0]), make("range_test(steps=30)"))
    assert used == 30


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_it_stops_at_a_loss_that_is_not_finite(bad: float) -> None:
    found, used = find(Scripted([*np.linspace(3, 1, 15), bad]), make("range_test(steps=30, low=1e-3, high=1.0)"))
    assert used == 16
    # What is read off are 15 falling means: the first ten and the last are left out.
    assert any(found == pytest.approx(lr) for lr in np.geomspace(1e-3, 1, 30)[10:14])
    assert find(Scripted([bad]), make("range_test(steps=30, low=1e-3)")) == (1e-3, 1)  # no loss at all: the lowest


@pytest.mark.parametrize("method", ["momo", "compose(adam, momo)", "taps"])
def test_methods_are_told_the_loss_and_the_samples(method: str) -> None:
    changes = {"method": method, "task": "logreg-iris", "batch_size": 16, "epochs": 5}
    result, curve = train(load("logreg-iris"), make("range_test(steps=20, low=1e-3)", **changes))
    assert result.status == "done", result.error
    assert 10 <= curve["step"][0].as_py() <= 20


# --- In a run.


def test_its_steps_are_paid_for_and_the_schedule_covers_the_rest() -> None:
    task = Line()
    plain_result, plain = train(task, make("", lr=0.01))
    result, curve = train(task, make(schedule="linear", warmup=0.25))
    assert (result.status, result.steps) == (plain_result.status, plain_result.steps) == ("done", 100)
    steps, plain_steps = curve["step"].to_pylist(), plain["step"].to_pylist()
    assert plain_steps == list(range(0, 101, 5))
    [lr], used = np.unique(curve["lr_effective"].to_numpy().max()), steps[0]  # before the first step
    assert 10 <= used <= 20
    assert steps == [used, *(step for step in plain_steps if step > used)]
    assert curve["epoch"].to_pylist() == pytest.approx([step / 5 for step in steps])
    assert curve["val_loss"][0].as_py() == plain["val_loss"][0].as_py()  # the model is still untrained

    # The schedule has so many steps as are left, and its peak is what was found.
    found, _ = find(task, make(), total=100)
    left = 100 - used
    warmup = round(0.25 * left)
    expected = [found * ((s + 1) / warmup if s < warmup else (left - s) / (left - warmup)) for s in range(left)]
    got = curve["lr_effective"].to_pylist()
    # A row is written before the scheduler steps: it has the lr of the step just made.
    assert got[1:] == pytest.approx([expected[step - used - 1] for step in steps[1:]], rel=1e-5)
    assert lr <= found * (1 + 1e-6)


def test_lr_is_a_multiple_of_what_is_found() -> None:
    found, used = find(Line(), make(), total=100)
    for multiple in (0.5, 1.0, 3.0):
        result, curve = train(Line(), make(lr=multiple))
        assert result.steps == 100
        assert curve["step"][0].as_py() == used
        assert curve["lr_effective"].to_pylist() == pytest.approx([multiple * found] * curve.num_rows, rel=1e-5)


def test_an_early_stop_costs_fewer_steps() -> None:
    class Explodes(Line):
        """From the 13th loss on, which is within the range test."""

        asked = 0

        def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            self.asked += 1
            return super().loss(model, batch) * (1e6 if self.asked == 13 else 1)

    result, curve = train(Explodes(), make("range_test(steps=60)"))
    assert curve["step"][0].as_py() == 13
    assert (result.status, result.steps) == ("done", 100)


def test_the_budget_pays_for_it_too() -> None:
    result, curve = train(Line(), make(budget=0.4))
    assert result.steps == 40
    assert curve["step"].to_pylist()[-1] == 40


@pytest.mark.parametrize(("steps", "crashes"), [(99, False), (100, True), (101, True)])
def test_a_run_that_is_too_short_says_so(steps: int, crashes: bool) -> None:
    result, curve = train(Line(), make(f"range_test(steps={steps}, high=1e-6)"))
    assert (result.status == "crashed") is crashes
    if crashes:
        last = (result.error or "").strip().splitlines()[-1]
        assert last == f"ValueError: tiny:Line: a range test of {steps} steps leaves none of 100 to train with"
        assert curve.num_rows == 0
    else:
        assert curve["step"].to_pylist() == [99, 100]


def test_the_default_has_100_steps_from_1e_7_to_10() -> None:
    assert parse_methods("adam(lr=range_test)")[0].probe == "range_test"
    task = Scripted([1.0])
    lrs: list[float] = []

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            lrs.append(self.param_groups[0]["lr"])

    _, used = find_lr(task, make("range_test"), task.model(0), lambda of, lr: Watched(of.parameters(), lr=lr), 1000)
    assert used == 100
    assert lrs == pytest.approx(LRS)

"""One run: its numbers, its curve and its three endings."""

import math
import random

import numpy as np
import pytest
import torch
from tiny import Line, Raises
from torch import Tensor, nn

import untuned
from untuned.study.config import Run
from untuned.study.runner import CURVE, train
from untuned.study.tasks import load

TIMES = ["step_us", "fwdbwd_us"]


def make(**changes: object) -> Run:
    fields = {"task": "tiny:Line", "method": "sgd", "options": {"momentum": 0.9}, "lr": 0.03, "seed": 1, "epochs": 4}
    return Run.model_validate({**fields, "batch_size": 4, "version": "1", **changes})


def test_the_curve_is_that_of_a_plain_loop() -> None:
    task = Line()
    torch.manual_seed(1)
    model = task.model(1)
    optimizer = untuned.create(model, "sgd", lr=0.03, momentum=0.9)
    losses, values = [], [task.evaluate(model)]
    for epoch in range(4):
        for batch in task.batches(1, epoch):
            optimizer.zero_grad()
            loss = task.loss(model, batch)
            loss.backward()
            optimizer.step(loss=loss.detach())
            losses.append(loss.item())
            values.append(task.evaluate(model))

    result, curve = train(task, make())
    assert curve.schema == CURVE
    assert (result.status, result.steps, result.error) == ("done", 20, None)
    assert result.final == values[-1]
    assert result.seconds > 0
    rows = curve.to_pylist()
    assert [row["step"] for row in rows] == list(range(21))
    assert [row["epoch"] for row in rows] == pytest.approx([step / 5 for step in range(21)])
    assert rows[0]["train_loss"] is rows[0]["step_us"] is rows[0]["fwdbwd_us"] is None
    assert [row["train_loss"] for row in rows[1:]] == pytest.approx(losses, rel=1e-6)
    assert [row["val_loss"] for row in rows] == pytest.approx([v["val_loss"] for v in values], rel=1e-6)
    assert [row["metric"] for row in rows] == pytest.approx([v["val_accuracy"] for v in values], rel=1e-6)
    assert [row["lr_effective"] for row in rows] == pytest.approx([0.03] * 21)
    assert min(row["step_us"] for row in rows[1:]) > 0
    assert min(row["fwdbwd_us"] for row in rows[1:]) > 0


@pytest.mark.parametrize(("epochs", "steps"), [(0.01, 1), (0.5, 2), (1, 5), (1.4, 7), (30, 150)])
def test_the_budget_is_in_epochs_and_may_be_a_fraction(epochs: float, steps: int) -> None:
    result, curve = train(Line(), make(epochs=epochs))
    assert result.steps == steps
    seen = curve["step"].to_pylist()
    assert seen[0] == 0
    assert seen[-1] == steps
    assert len(seen) == min(steps, 20) + 1
    assert seen == sorted(set(seen))


def test_the_advice_of_a_method_does_not_end_a_run_that_is_meant_to_be_bad() -> None:
    result, curve = train(Line(), make(method="prodigy", options={}, lr=1e-9, epochs=30))
    assert (result.status, result.steps) == ("done", 150)
    assert curve["lr_effective"][-1].as_py() == pytest.approx(1e-15)  # d has not left d0


def test_train_loss_is_the_mean_since_the_last_row() -> None:
    fine = train(Line(), make(epochs=4))[1]["train_loss"].to_pylist()[1:]
    coarse = train(Line(), make(epochs=80))[1]["train_loss"].to_pylist()[1:]
    assert coarse[0] == pytest.approx(sum(fine) / 20, rel=1e-6)  # 400 steps in 20 rows


def test_numbers_depend_on_nothing_that_happened_before() -> None:
    task = Line()
    first = train(task, make())[1].drop_columns(TIMES)
    train(task, make(seed=2, lr=1.0, method="adam", options={}))
    for disturb in (torch.manual_seed, np.random.seed, random.seed):
        disturb(12345)
    torch.set_num_threads(2)
    again = train(task, make())[1].drop_columns(TIMES)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert again.equals(first)
    assert not train(task, make(seed=2))[1].drop_columns(TIMES).equals(first)


def test_a_training_loss_that_overflows_is_divergence_and_keeps_its_curve() -> None:
    result, curve = train(Line(), make(lr=1e30))
    assert result.status == "diverged"
    assert result.final is None
    assert result.steps == 1
    assert result.error == "val_loss is inf after step 1"
    assert curve["step"].to_pylist() == [0, 1]

    result, curve = train(Line(), make(lr=1e30, epochs=40))  # ten steps between evaluations
    assert result.status == "diverged"
    assert 1 <= result.steps < 10
    assert result.error.startswith("train_loss is ")
    last = curve.to_pylist()[-1]
    assert last["step"] == result.steps
    assert not math.isfinite(last["train_loss"])
    assert last["val_loss"] is last["metric"] is None


def test_a_weight_that_is_not_finite_is_divergence() -> None:
    class Blind(Line):
        """A weight that no output depends on."""

        def model(self, seed: int) -> nn.Module:
            model = super().model(seed)
            model.register_parameter("loose", nn.Parameter(torch.zeros(1)))
            return model

        def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            model.loose.data.fill_(math.nan)
            return super().loss(model, batch)

    result, curve = train(Blind(), make())
    assert (result.status, result.error) == ("diverged", "weights are not finite after step 1")
    assert curve.num_rows == 2


def test_an_exception_is_recorded_with_its_traceback_and_the_curve_so_far() -> None:
    result, curve = train(Raises(), make())
    assert (result.status, result.steps, result.final) == ("crashed", 10, None)
    assert result.error.endswith("RuntimeError: the third epoch is lost\n")
    assert "in batches" in result.error
    assert curve["step"].to_pylist() == list(range(11))


def test_a_task_without_batches_crashes_instead_of_hanging() -> None:
    class Empty(Line):
        def batches(self, seed: int, epoch: int):
            return iter(())

    result, _ = train(Empty(), make())
    assert result.status == "crashed"
    assert "tiny:Line: batches(seed=1, epoch=0) is empty" in result.error


@pytest.mark.parametrize(
    ("member", "value", "sentence"),
    [
        ("loss", lambda *_: 5.5, "loss() must return a scalar tensor to call backward() on, not 5.5"),
        ("loss", lambda *_: torch.ones(2, 3), "a scalar tensor to call backward() on, not one of shape (2, 3)"),
        ("loss", lambda *_: torch.ones(()), "a scalar tensor to call backward() on, not one that has no gradient"),
        ("evaluate", lambda *_: 0.5, "evaluate() must return a dict of numbers, not 0.5"),
        (
            "evaluate",
            lambda *_: torch.eye(2),
            "evaluate() must return a dict of numbers, not tensor([[1., ... [0., 1.]])",
        ),
        ("evaluate", lambda *_: {"val_loss": "x"}, "evaluate() must return a dict of numbers, not {'val_loss': 'x'}"),
        ("evaluate", lambda *_: {"val_accuracy": 1}, "evaluate() must return 'val_loss'; it returned only val_accurac"),
        ("metric", "val_acc", "evaluate() must return 'val_acc'; it returned only val_loss, val_accuracy"),
        ("model", lambda *_: None, "model(seed) must return a torch.nn.Module, not None"),
    ],
)
def test_a_broken_task_is_named_with_what_is_wrong(member: str, value: object, sentence: str) -> None:
    task = Line()
    setattr(task, member, value)
    result, _ = train(task, make())
    assert (result.status, result.steps) == ("crashed", 0)
    last = result.error.strip().splitlines()[-1]
    assert "tiny:Line: " in last and sentence in last


def test_the_optimizer_is_put_into_eval_mode_around_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    mode: list[str] = []
    create = untuned.create

    def spied(*args: object, **options: object) -> torch.optim.Optimizer:
        optimizer = create(*args, **options)
        optimizer.eval = lambda: mode.append("eval")
        optimizer.train = lambda: mode.append("train")
        return optimizer

    class Watched(Line):
        def evaluate(self, model: nn.Module) -> dict[str, float]:
            mode.append("evaluate")
            return super().evaluate(model)

        def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            mode.append("loss")
            return super().loss(model, batch)

    monkeypatch.setattr(untuned, "create", spied)
    train(Watched(), make(epochs=0.4))
    assert mode == ["eval", "evaluate", "train", *["loss", "eval", "evaluate", "train"] * 2]


@pytest.mark.parametrize("method", ["taps", "motaps"])
def test_methods_with_a_record_per_sample_are_told_the_samples(method: str) -> None:
    options = {"options": {}, "method": method, "lr": 0.5}
    result, curve = train(load("logreg-iris"), make(task="logreg-iris", epochs=5, **options))
    assert result.status == "done"
    assert result.final is not None
    assert result.final["val_loss"] < 0.9 * curve["val_loss"][0].as_py()
    result, _ = train(Line(), make(**options))
    assert result.status == "crashed"
    assert "records a loss per sample, and tiny:Line does not number its samples" in (result.error or "")

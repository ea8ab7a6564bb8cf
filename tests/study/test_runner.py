"""One run: its numbers, its curve and its three endings."""

import math
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import Line, Raises
from torch import Tensor, nn

import untuned
from untuned.schedules import Schedule
from untuned.study.config import Run
from untuned.study.memory import reset_peak, resident_peak, state_bytes
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


# --- Schedules, budget, early stop.


def lrs_of(schedule: str, warmup: int, steps: int, lr: float, **options: object) -> list[float]:
    """The lr of each step when torch's SGD follows a schedule of the library."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=lr)
    scheduler = Schedule(optimizer, schedule, steps, warmup=warmup, **options)
    used = []
    for _ in range(steps):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return used


@pytest.mark.parametrize("method", ["sgd", "adam", "torch.optim:SGD", "compose(momentum)", "schedule_free_sgd"])
@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("", 0.0, lrs_of("constant", 0, 20, 0.03)),
        ("", 0.25, lrs_of("constant", 5, 20, 0.03)),
        ("linear", 0.0, lrs_of("linear", 0, 20, 0.03)),
        ("cosine(final=0.1)", 0.1, lrs_of("cosine", 2, 20, 0.03, final=0.1)),
        ("wsd(decay=0.5)", 0.2, lrs_of("wsd", 4, 20, 0.03, decay=0.5)),
    ],
)
def test_schedule_and_warm_up_change_lr_step_by_step(
    method: str, schedule: str, warmup: float, expected: list[float]
) -> None:
    result, curve = train(Line(), make(method=method, options={}, schedule=schedule, warmup=warmup))
    assert (result.status, result.steps) == ("done", 20)
    assert curve["step"].to_pylist() == list(range(21))
    # A row follows each step, before the scheduler moves on; the first tells the lr of the first step.
    assert curve["lr_effective"].to_pylist() == pytest.approx([expected[0], *expected], rel=1e-6)


@pytest.mark.parametrize("name", ["adam", "torch.optim:AdamW"])
def test_a_schedule_is_followed_as_in_a_plain_loop(name: str) -> None:
    task, options = Line(), {"weight_decay": 0.1}
    result, _ = train(task, make(method=name, options=options, schedule="cosine", warmup=0.2, epochs=2))
    torch.manual_seed(1)
    model = task.model(1)
    if name == "adam":
        optimizer = untuned.create(model, "adam", lr=0.03, **options)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.03, **options)
    scheduler = Schedule(optimizer, "cosine", 10, warmup=2)
    for epoch in range(2):
        for batch in task.batches(1, epoch):
            optimizer.zero_grad()
            loss = task.loss(model, batch)
            loss.backward()
            optimizer.step(**({"loss": loss.detach()} if name == "adam" else {}))
            scheduler.step()
    assert result.final == task.evaluate(model)


@pytest.mark.parametrize(
    ("name", "cls", "options"),
    [
        ("torch.optim:AdamW", torch.optim.AdamW, {"betas": (0.8, 0.9), "weight_decay": 0.1}),
        ("torch.optim:SGD", torch.optim.SGD, {"momentum": 0.9}),
        ("torch.optim:RMSprop", torch.optim.RMSprop, {}),
    ],
)
def test_an_optimizer_of_another_package_ends_where_a_plain_loop_ends(
    name: str, cls: type[torch.optim.Optimizer], options: dict
) -> None:
    task = Line()
    result, curve = train(task, make(method=name, options=options))
    torch.manual_seed(1)
    model = task.model(1)
    optimizer = cls(model.parameters(), lr=0.03, **options)
    for epoch in range(4):
        for batch in task.batches(1, epoch):
            optimizer.zero_grad()
            task.loss(model, batch).backward()
            optimizer.step()
    assert (result.status, result.final) == ("done", task.evaluate(model))
    assert curve["lr_effective"].to_pylist() == pytest.approx([0.03] * 21)


def test_lr_effective_of_optimizers_that_estimate_a_distance(tmp_path, monkeypatch) -> None:
    """They keep it as "d" in their groups."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "estimates.py").write_text(
        "import torch\n"
        "class Grows(torch.optim.SGD):\n"
        "    def __init__(self, params, lr=1.0):\n"
        "        super().__init__(params, lr=lr)\n"
        "        self.param_groups[0]['d'] = 1e-3\n"
        "    def step(self, closure=None):\n"
        "        self.param_groups[0]['d'] *= 2\n"
    )
    _, curve = train(Line(), make(method="estimates:Grows", options={}, lr=0.5, epochs=0.4))
    assert curve["lr_effective"].to_pylist() == pytest.approx([0.5e-3, 1e-3, 2e-3])


@pytest.mark.parametrize(("budget", "steps"), [(1.0, 20), (0.5, 10), (0.26, 5), (0.001, 1)])
def test_the_budget_of_a_method_cuts_its_steps(budget: float, steps: int) -> None:
    result, curve = train(Line(), make(budget=budget, schedule="linear"))
    assert (result.steps, curve["step"].to_pylist()[-1]) == (steps, steps)
    expected = lrs_of("linear", 0, steps, 0.03)  # its schedule ends where it ends
    assert curve["lr_effective"].to_pylist() == pytest.approx([expected[0], *expected])
    same, same_curve = train(Line(), make(epochs=4 * budget, schedule="linear"))
    assert same.final == result.final
    assert same_curve.drop_columns(TIMES).equals(curve.drop_columns(TIMES))


class Told(Line):
    """Has the validation losses it is told: untrained, then after each of 20 steps."""

    def __init__(self, *losses: float) -> None:
        super().__init__()
        self.losses = iter(losses)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {"val_loss": next(self.losses), "val_accuracy": 0.5}


@pytest.mark.parametrize(
    ("losses", "stops_after"),
    [
        ([1.0] * 21, None),  # no worse than untrained
        ([1.0, 9.0, 9.0, 9.0, 9.0, *[0.9] * 16], None),  # worse only in the first quarter
        ([1.0, 9.0, 9.0, 9.0, 9.0, 1.1], 5),
        ([1.0, *[0.1] * 12, 1.1], 13),
        ([1.0, *[0.1] * 19, 1.1], 20),
        ([-1.0, *[-2.0] * 8, -0.5], 9),
        ([1.0, *np.linspace(1, 0.2, 20).tolist()], None),
    ],
)
def test_a_run_that_got_worse_than_untrained_is_stopped_if_asked(losses: list[float], stops_after: int | None) -> None:
    result, curve = train(Told(*losses), make(stop_hopeless=True))
    if stops_after is None:
        assert (result.status, result.steps, result.error) == ("done", 20, None)
        return
    assert (result.status, result.steps, result.final) == ("diverged", stops_after, None)
    assert curve["step"].to_pylist()[-1] == stops_after
    assert result.error == (
        f"hopeless: val_loss {losses[-1]:.4g} is above that of the untrained model, {losses[0]:.4g}, "
        f"after step {stops_after}"
    )
    assert train(Told(*losses, *[9.0] * 21), make())[0].status == "done"


def test_stopping_what_is_hopeless_changes_nothing_of_a_run_that_learns() -> None:
    for lr in (1e-6, 0.003, 0.03, 0.1):
        result, curve = train(Line(), make(stop_hopeless=True, lr=lr))
        free, free_curve = train(Line(), make(lr=lr))
        assert result.status == "done"
        assert result.final == free.final
        assert curve.drop_columns(TIMES).equals(free_curve.drop_columns(TIMES))
    far = {"method": "torch.optim:Adam", "options": {}, "lr": 100.0, "epochs": 40}
    free, _ = train(Line(), make(**far))
    stopped, curve = train(Line(), make(stop_hopeless=True, **far))
    assert (free.status, stopped.status, stopped.steps) == ("done", "diverged", 50)
    assert curve["val_loss"][-1].as_py() > curve["val_loss"][0].as_py()


# --- Memory and warnings.

COUNT, TENSORS = 8 + 8 + 8 + 1, 4  # of the parameters of Line


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("torch.optim:SGD", {}, 0),
        ("torch.optim:SGD", {"momentum": 0.9}, 4 * COUNT),
        ("torch.optim:Adam", {}, 2 * 4 * COUNT + 4 * TENSORS),  # and a number of steps for each tensor
        ("torch.optim:Adam", {"amsgrad": True}, 3 * 4 * COUNT + 4 * TENSORS),
    ],
)
def test_state_bytes_of_torch(method: str, options: dict, expected: int) -> None:
    result, _ = train(Line(), make(method=method, options=options))
    assert result.status == "done"
    assert result.state_bytes == expected


@pytest.mark.parametrize(
    ("method", "options", "slots"),
    [("sgd", {}, 0), ("sgd", {"momentum": 0.9}, 1), ("adam", {}, 2), ("schedule_free_adamw", {}, 2)],
)
def test_state_bytes_of_our_own(method: str, options: dict, slots: int) -> None:
    """Slots as large as the parameters, and up to two dozen numbers in float64 however many these are."""

    class Wide(Line):
        def model(self, seed: int) -> nn.Module:
            return nn.Sequential(nn.Linear(1, 1000), nn.Tanh(), nn.Linear(1000, 1))

    small, large = (train(task, make(method=method, options=options))[0].state_bytes for task in (Line(), Wide()))
    assert small is not None and large is not None
    assert large - small == slots * 4 * (3001 - COUNT)
    assert 0 <= small - slots * 4 * COUNT <= 8 * 24


def test_state_bytes_counts_a_storage_once_and_no_parameters() -> None:
    flat = torch.zeros(10)
    first, second = nn.Parameter(flat[:4]), nn.Parameter(flat[4:])
    optimizer = torch.optim.SGD([first, second], lr=0.1)
    assert state_bytes(optimizer) == state_bytes(torch.optim.SGD([second], lr=0.1)) == 0
    state = torch.zeros(10, dtype=torch.float64)
    optimizer.state[first] = {"a": state[:4], "again": [state[4:], {"deep": (state,)}], "itself": first.data}
    assert state_bytes(optimizer) == 80
    optimizer.param_groups[0]["d"] = torch.tensor(1.0)
    assert state_bytes(optimizer) == 84


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells")
def test_peak_bytes_are_those_of_the_run() -> None:
    size = 300_000_000

    class Large(Line):
        def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            torch.ones(size // 4)
            return super().loss(model, batch)

    before = train(Line(), make())[0].peak_bytes
    large = train(Large(), make(epochs=0.2))[0].peak_bytes
    assert before is not None and large is not None
    assert 50_000_000 < before < 30_000_000_000
    assert size * 0.9 < large - before < size * 1.5
    after = train(Line(), make())[0].peak_bytes
    reset_peak()
    if (resident_peak() or 0) < large:  # the system lets a process forget its peak
        assert after is not None and after < large - 0.9 * size + 50_000_000


def test_warnings_come_back_once_each() -> None:
    class Warns(Line):
        def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            warnings.warn("the data are old", DeprecationWarning, stacklevel=1)
            warnings.warn("the data are few", stacklevel=1)
            warnings.warn("the data are old", UserWarning, stacklevel=1)
            warnings.warn("the data are few", stacklevel=1)
            return super().loss(model, batch)

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of who calls: it does not reach the run
        result, _ = train(Warns(), make())
        assert result.status == "done"
        assert train(Line(), make())[0].warnings == ()
    assert result.warnings == (
        "DeprecationWarning: the data are old",
        "UserWarning: the data are few",
        "UserWarning: the data are old",
    )

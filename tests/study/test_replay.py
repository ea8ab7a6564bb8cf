"""Published tables beside made-up results, and the protocol of one of them for real."""

import csv
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import Line

import untuned
from untuned.study import cli, replay
from untuned.study.config import MethodEntry, Run, Study, StudyError, TaskEntry, label, parse_methods
from untuned.study.runner import Result, train
from untuned.study.store import Store
from untuned.study.tasks.logistic import LogisticRegression

TASK = TaskEntry(
    name="mnist-mlp", title="T", metric="val_accuracy", maximize=True, chance=0.1135, batch_size=128, epochs=10
)
STUDY = Study(
    version="1",
    tasks=(TASK,),
    methods=tuple(
        MethodEntry(name=name, options=options, lrs=tuple(table)) for name, options, table in replay.MOMO_MNIST
    ),
    seeds=(0, 1, 2),
)
PUBLISHED = {
    (label(name, options), lr): accuracy for name, options, table in replay.MOMO_MNIST for lr, accuracy in table.items()
}
SGD = "sgd(momentum=0.9, dampening=0.9)"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Every seed of every cell is as published, but for a spread of 0.002 around it."""
    store = Store.create(tmp_path / "study", STUDY)
    with store.writing():
        for run in STUDY.runs():
            published = PUBLISHED[label(run.method, run.options), run.lr]
            enter(store, run, done(published + 0.001 * (run.seed - 1)))
    return store


def enter(store: Store, run: Run, result: Result) -> None:
    store.start(run)
    store.finish(run, result)


def change(store: Store, method: str, lr: float, *results: Result) -> None:
    runs = [run for run in STUDY.runs() if (label(run.method, run.options), run.lr) == (method, lr)]
    with store.writing():
        for run, result in zip(runs, results, strict=True):
            enter(store, run, result)


def cell(store: Store, method: str, lr: float) -> replay.Cell:
    [found] = [cell for cell in replay.momo_mnist_cells(store) if (cell.method, cell.lr) == (method, lr)]
    return found


def done(accuracy: float) -> Result:
    return Result("done", final={"val_loss": 1.0, "val_accuracy": accuracy})


DIVERGED = Result("diverged", error="train_loss is nan after step 7")


def test_the_table_has_the_25_published_cells_of_three_seeds(store: Store) -> None:
    assert len(PUBLISHED) == 25
    assert len(STUDY.runs()) == 75
    table = replay.momo_mnist_cells(store)
    assert len(table) == 25
    assert all(cell.agrees for cell in table)
    assert [cell.ours for cell in table] == pytest.approx([cell.published for cell in table], abs=1e-12)


def test_a_cell_agrees_within_one_point_of_the_mean(store: Store) -> None:
    change(store, "momo", 1.0, done(0.9797 - 0.02), done(0.9797), done(0.9797 - 0.0095))
    assert cell(store, "momo", 1.0).ours == pytest.approx(0.9797 - 0.0295 / 3)
    assert cell(store, "momo", 1.0).agrees
    change(store, "momo", 1.0, done(0.9797 - 0.02), done(0.9797), done(0.9797 - 0.011))
    assert not cell(store, "momo", 1.0).agrees


def test_divergence_equals_published_divergence_and_nothing_else(store: Store) -> None:
    change(store, SGD, 10.0, DIVERGED, DIVERGED, done(0.1028))
    assert cell(store, SGD, 10.0).ours == pytest.approx((2 * 0.1135 + 0.1028) / 3)
    assert cell(store, SGD, 10.0).diverged == 2
    assert cell(store, SGD, 10.0).agrees
    change(store, SGD, 1.0, DIVERGED, DIVERGED, DIVERGED)
    assert cell(store, SGD, 1.0).ours == pytest.approx(0.1135)
    assert not cell(store, SGD, 1.0).agrees
    change(store, "adam", 1.0, done(0.3), done(0.1), done(0.1))
    assert not cell(store, "adam", 1.0).agrees


def test_a_crashed_seed_leaves_the_cell_open(store: Store) -> None:
    change(store, "adam", 1.0, Result("crashed", error="x"), done(0.1), done(0.1))
    assert math.isnan(cell(store, "adam", 1.0).ours)
    assert not cell(store, "adam", 1.0).agrees


def test_files_and_plateaus(store: Store) -> None:
    change(store, "momo_adam", 10.0, done(0.5), done(0.5), done(0.5))
    text = replay.write_momo_mnist(store)
    assert (store.folder / "momo-mnist.md").read_text() == text
    assert "24 of 25 cells agree" in text
    unsigned = text.replace("-0.0000", "+0.0000")
    assert "| mnist-mlp | momo | 0.001 | 0.8705 | 0.0006 | 3 | 0.8705 | +0.0000 | yes | 0 |" in unsigned
    assert "| mnist-mlp | momo_adam | 10 | 0.5000 | 0.0000 | 3 | 0.9795 | -0.4795 | NO | 0 |" in text
    # Published MoMo: 0.9697 is passed between lr 0.01 (0.9472) and 0.1 (0.9765), and never again up to 1000.
    decades = 3 - (-2 + (0.9697 - 0.9472) / (0.9765 - 0.9472))
    assert f"- momo: at least {decades:.1f}, published at least {decades:.1f}\n" in text
    low = -4 + (0.9696 - 0.9598) / (0.9787 - 0.9598)
    high = (0.9795 - 0.9696) / (0.9795 - 0.5)
    assert f"- momo_adam: {high - low:.1f}, published at least {1 - low:.1f}\n" in text

    with (store.folder / "momo-mnist.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 25
    [row] = [row for row in rows if row["method"] == "momo_adam" and float(row["lr"]) == 10]
    assert float(row["difference"]) == pytest.approx(-0.4795)
    assert row["agrees"] == "False"


# --- Logistic regression in the protocol of D-Adaptation.


def logreg12(tmp_path: Path, accuracies: dict[tuple[str, str, float], list[Result]]) -> Store:
    """A store of iris and glass, in which every (set, method, lr) ended as given, one result a seed."""
    study = replay.logreg12(["iris", "glass"], parse_methods("adam(lr=(0.1, 1.0)),prodigy,momo_adam(lr=1.0)"), seeds=2)
    store = Store.create(tmp_path / "study", study)
    with store.writing():
        for run in study.runs():
            enter(store, run, accuracies[run.task.removeprefix("logreg-"), run.method, run.lr][run.seed])
    return store


def ended(*accuracies: float) -> list[Result]:
    return [Result("done", final={"val_loss": 1.0, "train_accuracy": accuracy}) for accuracy in accuracies]


def test_the_protocol_is_that_of_the_paper() -> None:
    study = replay.logreg12(["iris", "dna"], parse_methods("momo_adam,adamw,adam(lr=0.3, weight_decay=0.1)"), seeds=2)
    assert [(task.name, task.metric, task.batch_size, task.epochs) for task in study.tasks] == [
        ("logreg-iris", "train_accuracy", 16, 100),
        ("logreg-dna", "train_accuracy", 16, 100),
    ]
    assert {method.schedule for method in study.methods} == {"step(at=(0.6, 0.8, 0.95))"}
    assert study.seeds == (0, 1)
    assert [(method.name, method.options, method.lrs) for method in study.methods] == [
        ("momo_adam", {}, (untuned.get("momo_adam").lr,)),
        ("adamw", {"weight_decay": 0.0}, (untuned.get("adamw").lr,)),
        ("adam", {"weight_decay": 0.1}, (0.3,)),
    ]
    with pytest.raises(StudyError, match="sets: no accuracy is published for 'shuttle'; choose from dna,glass,iris,"):
        replay.logreg12(["iris", "shuttle"], parse_methods("prodigy"), seeds=1)


def test_sets_are_the_training_files_of_libsvm() -> None:
    """Statlog publishes how many samples of each class its training files have."""
    expected = {
        "dna": [464, 485, 1051],
        "satimage": [415, 470, 479, 961, 1038, 1072],
        "shuttle": [6, 11, 37, 132, 2458, 6748, 34108],
        "vowel": [48] * 11,
    }
    for table, counts in expected.items():
        task = LogisticRegression(table)
        assert sorted(task.y.bincount().tolist()) == counts, table
        assert len(task.x) == len(task.y_val) == sum(counts)
    assert len(LogisticRegression("letter").y) == 15_000


def test_lr_falls_tenfold_at_each_drop() -> None:
    fields = {"task": "tiny:Line", "method": "sgd", "options": {"momentum": 0.9}, "lr": 0.03, "seed": 1, "epochs": 4}
    run = Run.model_validate({**fields, "batch_size": 4, "version": "1", "schedule": "step(at=(0.6, 0.8, 0.95))"})
    result, curve = train(Line(), run)
    used = [0.03] * 12 + [0.003] * 4 + [0.0003] * 3 + [0.00003]
    assert curve["lr_effective"].to_pylist()[1:] == pytest.approx(used)

    torch.manual_seed(1)
    task, model = Line(), Line().model(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [12, 16, 19], 0.1)
    for epoch in range(4):
        for batch in task.batches(1, epoch):
            optimizer.zero_grad()
            task.loss(model, batch).backward()
            optimizer.step()
            schedule.step()
    assert result.final
    assert result.final["val_loss"] == pytest.approx(task.evaluate(model)["val_loss"], rel=1e-5)


def test_what_a_run_is_trained_with_is_part_of_what_it_is() -> None:
    fields = {"task": "t", "method": "sgd", "options": {}, "lr": 0.1, "seed": 0, "epochs": 4, "batch_size": 4}
    plain = Run.model_validate({**fields, "version": "1"})
    others = {"schedule": "linear", "warmup": 0.1, "budget": 0.5, "probe": "range_test", "stop_hopeless": True}
    changed = [plain.model_copy(update={field: value}) for field, value in others.items()]
    assert len({run.id for run in (plain, *changed)}) == 1 + len(changed)
    assert not any(field in plain.canonical() for field in others)
    for run in changed:
        assert Run.model_validate_json(run.model_dump_json()) == run
    for wrong in ({"warmup": 1.0}, {"warmup": -0.1}, {"budget": 0.0}, {"budget": 1.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Run.model_validate({**fields, "version": "1", **wrong})


def test_the_best_lr_counts_and_each_set_has_a_verdict(tmp_path: Path) -> None:
    store = logreg12(
        tmp_path,
        {
            ("iris", "adam", 0.1): ended(0.980, 0.984),
            ("iris", "adam", 1.0): [Result("diverged", error="x"), *ended(0.990)],
            ("iris", "prodigy", 1.0): ended(0.976, 0.9761),
            ("iris", "momo_adam", 1.0): ended(0.975, 0.9769),
            ("glass", "adam", 0.1): [Result("crashed", error="x"), *ended(0.99)],
            ("glass", "adam", 1.0): ended(0.71, 0.73),
            ("glass", "prodigy", 1.0): [Result("diverged", error="x"), *ended(0.72)],
            ("glass", "momo_adam", 1.0): [Result("crashed", error="x"), *ended(0.72)],
        },
    )
    text = replay.write_logreg12(store)
    assert (store.folder / "logreg12.md").read_text() == text
    assert (store.folder / "logreg12.png").read_bytes().startswith(b"\x89PNG")
    assert "3 of 6 cells agree" in text
    assert "| logreg-iris | adam | 0.1 | 0.9820 | 0.0020 | 2 | 0.9830 | -0.0010 | yes | 0 |" in text
    assert "| logreg-glass | adam | 1 | 0.7200 | 0.0100 | 2 | 0.7200 | +0.0000 | yes | 0 |" in text
    chance = 76 / 214
    assert f"| logreg-glass | prodigy | 1 | {(chance + 0.72) / 2:.4f} |" in text
    assert text.splitlines()[-2:] == [
        "- logreg-iris: 2 of 3 within one point, not momo_adam -0.0101",
        f"- logreg-glass: 1 of 3 within one point, not prodigy {(chance + 0.72) / 2 - 0.723:+.4f}, not momo_adam +nan",
    ]
    with (store.folder / "logreg12.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["task"], row["method"], row["diverged"]) for row in rows] == [
        (f"logreg-{name}", method, str(int((name, method) == ("glass", "prodigy"))))
        for name in ("iris", "glass")
        for method in ("adam", "prodigy", "momo_adam")
    ]


def test_the_command_repeats_the_published_iris(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["untuned", "replay", "logreg12", "--sets", "iris", "--methods", "adam(lr=(0.1, 1.0)),dadapt_adam"]
    monkeypatch.setattr(sys, "argv", [*command, "--workers", "1"])
    for _ in range(2):
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert not left.value.code
    output = capfd.readouterr().out
    [folder] = Path("studies").iterdir()
    store = Store(folder)
    assert folder.name == f"logreg12-{store.study.id[:8]}"
    assert "3 of 3 runs are there already" in output
    assert output.count("- logreg-iris: 2 of 2 within one point\n") == 2
    dadaptation = replay.logreg12_cells(store)[1]
    assert dadaptation.accuracies == (148 / 150,)
    assert math.isnan(dadaptation.standard_error)
    for row in store.runs().to_pylist():
        assert row["steps"] == 100 * math.ceil(150 / 16)
        used = np.array(store.curve(row["run"])["lr_effective"])
        if row["method"] == "adam":
            parts = np.repeat([1.0, 0.1, 0.01, 0.001], [12, 4, 3, 1])
            np.testing.assert_allclose(used[1:], row["lr"] * parts, rtol=1e-6)

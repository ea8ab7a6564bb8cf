"""The published table beside made-up results."""

import csv
import math
from pathlib import Path

import pytest

from untuned.study import replay
from untuned.study.config import MethodEntry, Run, Study, TaskEntry
from untuned.study.runner import Result
from untuned.study.store import Store

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
PUBLISHED = {(name, lr): accuracy for name, _, table in replay.MOMO_MNIST for lr, accuracy in table.items()}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Every seed of every cell is as published, but for a spread of 0.002 around it."""
    store = Store.create(tmp_path / "study", STUDY)
    with store.writing():
        for run in STUDY.runs():
            enter(store, run, done(PUBLISHED[run.method, run.lr] + 0.001 * (run.seed - 1)))
    return store


def enter(store: Store, run: Run, result: Result) -> None:
    store.start(run)
    store.finish(run, result)


def change(store: Store, method: str, lr: float, *results: Result) -> None:
    runs = [run for run in STUDY.runs() if (run.method, run.lr) == (method, lr)]
    with store.writing():
        for run, result in zip(runs, results, strict=True):
            enter(store, run, result)


def cell(store: Store, method: str, lr: float) -> replay.Cell:
    [found] = [cell for cell in replay.cells(store) if (cell.method, cell.lr) == (method, lr)]
    return found


def done(accuracy: float) -> Result:
    return Result("done", final={"val_loss": 1.0, "val_accuracy": accuracy})


DIVERGED = Result("diverged", error="train_loss is nan after step 7")


def test_the_table_has_the_25_published_cells_of_three_seeds(store: Store) -> None:
    assert len(PUBLISHED) == 25
    assert len(STUDY.runs()) == 75
    table = replay.cells(store)
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
    change(store, "sgd", 10.0, DIVERGED, DIVERGED, done(0.1028))
    assert cell(store, "sgd", 10.0).ours == pytest.approx((2 * 0.1135 + 0.1028) / 3)
    assert cell(store, "sgd", 10.0).diverged == 2
    assert cell(store, "sgd", 10.0).agrees
    change(store, "sgd", 1.0, DIVERGED, DIVERGED, DIVERGED)
    assert cell(store, "sgd", 1.0).ours == pytest.approx(0.1135)
    assert not cell(store, "sgd", 1.0).agrees
    change(store, "adam", 1.0, done(0.3), done(0.1), done(0.1))
    assert not cell(store, "adam", 1.0).agrees


def test_a_crashed_seed_leaves_the_cell_open(store: Store) -> None:
    change(store, "adam", 1.0, Result("crashed", error="x"), done(0.1), done(0.1))
    assert math.isnan(cell(store, "adam", 1.0).ours)
    assert not cell(store, "adam", 1.0).agrees


def test_files_and_plateaus(store: Store) -> None:
    change(store, "momo_adam", 10.0, done(0.5), done(0.5), done(0.5))
    text = replay.write(store)
    assert (store.folder / "momo-mnist.md").read_text() == text
    assert "24 of 25 cells agree" in text
    assert "| momo | 0.001 | 0.8705 | 0.8705 | +0.0000 | yes | 0 |" in text.replace("-0.0000", "+0.0000")
    assert "| momo_adam | 10 | 0.5000 | 0.9795 | -0.4795 | NO | 0 |" in text
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

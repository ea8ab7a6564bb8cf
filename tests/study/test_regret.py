"""Regret: what is run, what comes out of the runs, and the report."""

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from typer.testing import CliRunner

from untuned.study import regret, regret_report, regret_tables, tasks
from untuned.study.cli import app
from untuned.study.config import StudyError, parse_methods
from untuned.study.execute import execute
from untuned.study.looks import styles
from untuned.study.regret import HORIZONS, REFERENCE, Contender, Curve, Regrets, TaskRegret
from untuned.study.runner import train
from untuned.study.store import Store
from untuned.study.suites import CONFIRMED_ON, FETCHED, LOOKED_AT, SUITES

OWN = {"tiny:Line": None}


def made(folder: Path, methods: str, seeds: int = 2) -> Store:
    study, contenders = regret.plan(OWN, parse_methods(methods), seeds)
    store = Store.create(folder, study)
    regret.remember(folder, contenders)
    execute(store, 1, more=regret.untried)
    return Store(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three contenders on a task of one's own, with tuned AdamW."""
    folder = tmp_path_factory.mktemp("regret") / "study"
    made(folder, "sgd(momentum=0.9, lr=(0.03, 1e30)),prodigy")
    return folder


def test_suites_name_tasks_that_there_are() -> None:
    assert not LOOKED_AT.keys() & CONFIRMED_ON.keys()
    assert len(SUITES["public"]) >= 14
    assert SUITES["shipped"].keys() == SUITES["public"].keys() - {*FETCHED}
    for name in SUITES["public"]:
        assert name.partition("/")[0] in tasks.names()
    assert sum("/" in name for name in SUITES["public"]) == 2
    assert SUITES["demo"].items() <= SUITES["shipped"].items()


def test_tuned_adamw_is_run_for_every_share_of_the_budget_and_contenders_at_their_default() -> None:
    study, contenders = regret.plan(OWN, parse_methods("prodigy,momo_adam(lr=(0.1, 1.0)),adamw(lr=0.001)"), seeds=3)
    assert [(c.label, c.lr) for c in contenders] == [
        ("prodigy", 1.0), ("momo_adam(lr=0.1)", 0.1), ("momo_adam(lr=1)", 1.0), ("adamw", 0.001),
    ]  # fmt: skip
    reference = [m for m in study.methods if m.added]
    assert [m.budget for m in reference] == list(HORIZONS)
    assert {(m.name, m.schedule, m.warmup) for m in reference} == {("adamw", "linear", 0.05)}
    assert reference[-1].label == parse_methods(REFERENCE)[0].label
    assert {m.rates("tiny:Line") for m in reference} == {(0.001, 0.01)}
    assert len(study.runs()) == 3 * (4 + 5 * 2)


def test_a_contender_that_is_the_reference_shares_its_runs() -> None:
    study, [contender] = regret.plan(OWN, parse_methods("adamw(lr=0.01, schedule=linear, warmup=0.05)"), seeds=1)
    assert contender.label == "adamw(schedule=linear, warmup=0.05, lr=0.01)"
    assert len(study.methods) == len(HORIZONS)
    assert len(study.runs()) == len({run.id for run in study.runs()}) == 10


def test_a_method_may_be_named_at_several_learning_rates() -> None:
    _, contenders = regret.plan(OWN, parse_methods("adamw,adamw(lr=0.01),adamw(lr=0.001)"), seeds=1)
    assert [c.label for c in contenders] == ["adamw", "adamw(lr=0.01)"]


def test_the_range_test_has_a_short_name() -> None:
    _, [contender] = regret.plan(OWN, parse_methods("range-test"), seeds=1)
    assert contender.label == "range-test"


def test_a_suite_may_give_a_task_another_budget() -> None:
    study, _ = regret.plan({"tiny:Line": 2.0}, parse_methods("adamw"), seeds=1)
    assert {run.epochs for run in study.runs()} == {2.0}


def test_regret_is_that_of_the_definition(folder: Path) -> None:
    store, found = Store(folder), regret.load(folder)
    [task] = found.tasks
    assert task.curve is not None
    assert task.curve.horizons == HORIZONS
    assert not task.curve.shipped

    # The same from the ledger, by hand.
    rows = [row for row in store.runs().to_pylist() if row["method"] == "adamw"]
    best = []
    for horizon in HORIZONS:
        by_lr: dict[float, list[float]] = {}
        for row in rows:
            if row["budget"] == horizon:
                by_lr.setdefault(row["lr"], []).append(json.loads(row["final"])["val_loss"])
        assert len(by_lr) >= 3
        best.append(min((np.mean(losses), lr) for lr, losses in by_lr.items()))
    assert task.curve.losses == pytest.approx([loss for loss, _ in best])
    assert task.curve.lrs == tuple(lr for _, lr in best)
    models = [tiny.Line().model(seed) for seed in (0, 1)]
    assert task.curve.untrained == pytest.approx(
        np.mean([tiny.Line().evaluate(m)["val_loss"] for m in models]), rel=1e-5
    )

    sgd, wild, prodigy = found.contenders
    run = next(r for r in store.study.runs() if (r.method, r.lr, r.seed) == ("sgd", 0.03, 1))
    result, _ = train(tiny.Line(), run)
    assert result.final is not None
    assert task.finals[sgd][1] == result.final["val_loss"]
    assert np.isinf(task.finals[wild]).all()
    assert (task.regrets[wild] == 1).all()
    for contender in (sgd, prodigy):
        for loss, value in zip(task.finals[contender], task.regrets[contender], strict=True):
            levels = np.minimum.accumulate([task.curve.untrained, *task.curve.losses])
            share = np.interp(-loss, -levels, [0, *HORIZONS])  # linear between horizons: an outer bound
            first = next((h for h, level in zip([0, *HORIZONS], levels, strict=True) if level <= loss), 1.0)
            assert 1 - first <= value <= 1 - max(h for h in [0, *HORIZONS] if h <= share) + 1e-9


def test_tuning_ends_when_every_neighbour_of_a_near_best_rate_has_run(folder: Path) -> None:
    store = Store(folder)
    assert regret.untried(store) == {}
    for entry in store.study.methods:
        for lrs in entry.added.values():
            assert len(lrs) > 2  # it has grown
            steps = np.diff(np.log10(lrs))
            assert ((abs(steps - 0.5) < 1e-5) | (abs(steps - 1) < 1e-5)).all()


def test_one_method_more_runs_only_what_is_new(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "study"
    shutil.copytree(folder, again)
    before = {row["run"]: row["started"] for row in Store(again).runs().to_pylist()}
    store = made(again, "adamw(lr=0.02)")
    after = {row["run"]: row for row in store.runs().to_pylist()}
    new = [row for run, row in after.items() if run not in before]
    assert {run: after[run]["started"] for run in before} == before
    assert [(row["method"], row["lr"]) for row in new] == [("adamw", 0.02)] * 2
    assert [c.label for c in regret.load(again).contenders][-1] == "adamw(lr=0.02)"


def test_missing_and_crashed_runs_are_no_regret(tmp_path: Path) -> None:
    study, contenders = regret.plan(OWN, parse_methods("sgd(lr=0.03)"), seeds=1)
    Store.create(tmp_path / "study", study)
    regret.remember(tmp_path / "study", contenders)
    found = regret.load(tmp_path / "study")
    assert found.tasks[0].curve is None
    assert np.isnan(found.scores(contenders[0])).all()
    [row] = regret_tables.rows_of(found)
    assert math.isnan(row.mean) and row.n == 0
    page = regret_report.write(tmp_path / "study")
    assert "No run has finished yet." in page.read_text()


def test_exported_runs_stand_for_those_of_the_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "baseline.csv"
    regret.export(Store(folder), file, "runs of a test")
    monkeypatch.setattr(regret, "BASELINE", file)
    regret._shipped_rows.cache_clear()
    try:
        assert regret.shipped("tiny:Line", 4)
        assert not regret.shipped("tiny:Line", 5)  # another budget
        assert not regret.shipped("tiny:Slow", 4)
        study, _ = regret.plan(OWN, parse_methods("prodigy"), seeds=2)
        assert [m.name for m in study.methods] == ["prodigy"]
        store = made(tmp_path / "study", "prodigy,sgd(momentum=0.9, lr=0.03)")
        assert {row["method"] for row in store.runs().to_pylist()} == {"prodigy", "sgd"}
        ours, theirs = regret.load(tmp_path / "study").tasks[0], regret.load(folder).tasks[0]
        assert ours.curve is not None and theirs.curve is not None
        assert ours.curve.shipped
        assert ours.curve.losses == pytest.approx(theirs.curve.losses, rel=1e-6)
        sgd = Contender("sgd(momentum=0.9)", 0.03, False)
        assert ours.regrets[sgd] == pytest.approx(theirs.regrets[sgd], abs=1e-5)
        fresh, _ = regret.plan(OWN, parse_methods("prodigy"), seeds=2, fresh=True)
        assert len(fresh.methods) == 1 + len(HORIZONS)
    finally:
        regret._shipped_rows.cache_clear()


def test_runs_that_are_not_tuned_are_not_exported(tmp_path: Path) -> None:
    study, _ = regret.plan(OWN, parse_methods("sgd(lr=0.03)"), seeds=1)
    store = Store.create(tmp_path / "study", study)
    with store.writing():
        for run in study.runs():
            store.start(run)
            result, curve = train(tiny.Line(), run)
            store.write_curve(run, curve)
            store.finish(run, result)
    with pytest.raises(StudyError, match="AdamW is not tuned yet"):
        regret.export(store, tmp_path / "baseline.csv", "")


def synthetic() -> Regrets:
    """Two contenders on three tasks with known regrets."""
    a, b = Contender("adamw", 1e-3, True), Contender("prodigy", 0.5, False)
    scores = {a: [[0.0, 0.2], [0.4, 0.6], [1.0, 1.0]], b: [[0.5, 0.5], [0.5, 0.5], [0.5, math.nan]]}
    curve = Curve((0.5, 1.0), np.array([2.0, 1.0]), (0.1, 0.1), 4.0, None, False)
    found = []
    for i in range(3):
        regrets = {c: np.array(scores[c][i]) for c in (a, b)}
        finals = {c: np.where(values == 0, 0.9, 1 + values) for c, values in regrets.items()}
        found.append(TaskRegret(f"t{i}", f"Task {i}", curve, finals, regrets))
    study, _ = regret.plan(OWN, parse_methods("adamw,prodigy(lr=0.5)"), seeds=2)
    return Regrets(study, (a, b), tuple(found), [])


def test_rows_hold_mean_worst_and_wins() -> None:
    first, second = regret_tables.rows_of(synthetic())
    assert (first.contender.label, second.contender.label) == ("prodigy(lr=0.5)", "adamw")
    assert (first.mean, first.worst, first.n, first.better) == (0.5, 0.5, 5, 0)
    assert second.mean == pytest.approx((0.1 + 0.5 + 1) / 3)
    assert (second.worst, second.worst_task, second.n) == (1.0, "t2", 6)
    assert second.by_task == pytest.approx({"t0": 0.1, "t1": 0.5, "t2": 1.0})
    assert second.interval is not None
    assert 0 <= second.interval[0] < second.mean < second.interval[1] <= 1


def test_contenders_are_compared_on_the_same_tasks_and_seeds() -> None:
    regrets = synthetic()
    [(row, paired)] = regret_tables.beside(regrets, regret_tables.rows_of(regrets))
    assert row.contender.label == "adamw"
    assert (paired.won, paired.tied, paired.lost) == (1, 1, 1)  # .1 and .5, .5 and .5, 1 and .5
    assert paired.mean.value == pytest.approx((-0.4 + 0 + 0.5) / 3)
    assert paired.runs == 5


def test_the_report_is_written_in_all_its_forms(folder: Path) -> None:
    page = regret_report.write(folder).read_text()
    assert "loses least" in page
    assert "tasks won, tied, lost" in page
    for label in ("sgd(momentum=0.9, lr=0.03)", "prodigy"):
        assert label in page
    assert page.count("<svg") >= 3  # overview, profile, one task
    rows = list(csv.DictReader((folder / "regret.csv").read_text().splitlines()))
    by_hand = regret_tables.rows_of(regret.load(folder))
    assert [float(row["mean"]) for row in rows] == pytest.approx([row.mean for row in by_hand], abs=1e-4)
    runs = list(csv.DictReader((folder / "regret-runs.csv").read_text().splitlines()))
    assert len(runs) == 3 * 2
    assert {float(row["regret"]) for row in runs if row["lr"] == "1e+30"} == {1.0}
    assert (folder / "regret.png").read_bytes()[:4] == b"\x89PNG"
    assert "| tiny:Line |" in (folder / "regret.md").read_text()


def test_the_command_prints_the_table_and_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    words = ["regret", "sgd(lr=0.03)", "--task", "tiny:Line", "--seeds", "1", "--workers", "1", "--out", tmp_path / "s"]
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 0, result.output
    assert "Regret over 1 task, 1 seed" in result.output
    assert "regret.html" in result.output
    result = CliRunner().invoke(app, ["regret", "--suite", "nothing"])
    assert isinstance(result.exception, StudyError)
    assert "no suite is called 'nothing'; there are public, shipped, demo" in str(result.exception)


def test_the_page_says_what_its_runs_say() -> None:
    """docs/regret.md: mean and worst regret of each default, again from docs/regret-runs.csv."""
    docs = Path(__file__).parents[2] / "docs"
    by_default: dict[str, dict[str, list[float]]] = {}
    for row in csv.DictReader((docs / "regret-runs.csv").read_text().splitlines()):
        curve = regret._baseline(row["task"])
        assert curve is not None
        value = float(regret._regret(curve, np.array([float(row["val_loss"])]))[0])
        assert value == pytest.approx(float(row["regret"]), abs=2e-3), row  # losses are written with six digits
        usual = Contender(row["method"], float(row["lr"]), True).label
        given = Contender(row["method"], float(row["lr"]), False).label
        by_default.setdefault(f"{usual}|{given}", {}).setdefault(row["task"], []).append(value)
    page = (docs / "regret.md").read_text()
    for labels, tasks_ in by_default.items():
        means = [np.mean(values) for values in tasks_.values()]
        cells = [f"{100 * value:.0f} %" for value in (np.mean(means), max(means))]
        assert any(
            line.startswith(f"| {label} | {cells[0]} |") and f"| {cells[1]} (" in line
            for line in page.splitlines()
            for label in labels.split("|")
        ), labels


def test_shipped_runs_are_those_of_the_tasks_as_they_are() -> None:
    """Whoever changes a task of a suite has to run tuned AdamW on it again: scripts/regret_baseline.py."""
    there = regret._shipped_rows()
    assert SUITES["public"].keys() <= there.keys()
    for name, epochs in SUITES["shipped"].items():
        assert regret.shipped(name, epochs or tasks.load(name).epochs), name
    for name in SUITES["public"]:
        curve = regret._baseline(name)
        assert curve is not None
        assert curve.horizons == HORIZONS
        assert curve.losses[-1] < curve.losses[0] < curve.untrained


@pytest.mark.parametrize("name", ["Broken", "Undefined"])
def test_a_task_without_a_loss_has_no_curve_and_stops_no_command(name: str, tmp_path: Path) -> None:
    study, contenders = regret.plan({f"tiny:{name}": None}, parse_methods("sgd"), seeds=1)
    store = Store.create(tmp_path / "study", study)
    regret.remember(store.folder, contenders)
    execute(store, 1, more=regret.untried)
    assert len(Store(store.folder).study.runs()) == 11  # no learning rate was added
    found = regret.load(store.folder)
    assert found.tasks[0].curve is None
    assert np.isnan(found.scores(contenders[0])).all()
    assert "none of its runs has finished" in regret_report.write(store.folder).read_text()


@pytest.mark.filterwarnings("error")
def test_a_task_on_which_nothing_is_learned_is_drawn_without_a_warning(tmp_path: Path) -> None:
    flat = Curve((0.5, 1.0), np.array([0.0, 0.0]), (0.1, 0.1), 0.0, None, shipped=False)
    contender = Contender("sgd", 0.1, default=True)
    task = TaskRegret("t", "T", flat, {contender: np.array([0.0])}, {contender: np.array([1.0])})
    looks = styles({"sgd": "sgd"})
    assert regret_report._draw(lambda ax: regret_report.on_the_way(ax, task, looks), "flat", 3.0)

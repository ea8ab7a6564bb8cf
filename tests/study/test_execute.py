"""A study in a folder: its grid grows until the learning rates are tuned, and nothing runs twice."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

from untuned.study import execute as execution
from untuned.study import results, sweep
from untuned.study.config import Run, Study, StudyError, parse_methods
from untuned.study.execute import execute, untried
from untuned.study.resolve import resolve
from untuned.study.results import last_command
from untuned.study.runner import Result, train
from untuned.study.store import Store
from untuned.study.tuning import missing


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Run]:
    """Runs take no time: what `train` returns is made up from lr. The list has all that were made, in order."""
    made: list[Run] = []

    def quick(store: Store, _: int, view: sweep.View, retry_crashed: bool = False, *others: object) -> None:
        with store.writing():
            for run in sweep.pending(store, retry_crashed):
                made.append(run)
                store.start(run)
                _, curve = train(tiny.Line(), run.model_copy(update={"lr": 1e-3, "method": "sgd", "epochs": 0.2}))
                store.write_curve(run, curve)
                result = made_up(run)
                store.finish(run, result)
                view.started(run)
                view.ended(run, result)

    monkeypatch.setattr(execution, "sweep", quick)
    monkeypatch.setattr(sys, "argv", ["/bin/untuned", "compare", "tiny:Line", "--methods", "adam,sgd (x)"])
    return made


def made_up(run: Run) -> Result:
    """adam has its valley at 10^-1.6, sgd at 10^0.1, prodigy learns nothing, momo crashes where lr is above 0.5."""
    if run.method == "momo" and run.lr > 0.5:
        return Result("crashed", error="Traceback\nRuntimeError: too large")
    if run.method == "dog":
        return Result("crashed", error="Traceback\nRuntimeError: never")
    if run.method == "prodigy":
        return Result("diverged", steps=1, error="val_loss is inf after step 1")
    middle = {"adam": -1.6, "adamw": -1.6, "sgd": 0.1, "momo": -0.4}[run.method]
    accuracy = max(0.0, 0.9 - 0.1 * (np.log10(run.lr) - middle) ** 2 + 0.001 * run.seed)
    return Result("done", steps=1, final={"val_loss": 1.0, "val_accuracy": float(accuracy)})


def accuracy(run: Run) -> float:
    final = made_up(run).final
    assert final is not None
    return final["val_accuracy"]


def study(methods: str, lrs: tuple[float, ...] = (1.0,), seeds: int = 2) -> Study:
    return resolve(["tiny:Line"], parse_methods(methods), lrs, seeds=seeds)


def rates(store: Store) -> dict[str, list[float]]:
    """The rates that have run with every seed, by method."""
    found: dict[str, dict[float, set[int]]] = {}
    for row in store.runs().to_pylist():
        found.setdefault(row["method"], {}).setdefault(row["lr"], set()).add(row["seed"])
    return {m: sorted(lr for lr, seeds in by.items() if seeds == {*store.study.seeds}) for m, by in found.items()}


def test_without_more_the_study_is_what_it_was(here: list[Run], tmp_path: Path) -> None:
    of = study("adam,sgd")
    execute(Store.create(tmp_path / "study", of), 1)
    assert [run.id for run in here] == [run.id for run in of.runs()]
    assert Store(tmp_path / "study").study == of


def test_the_grid_grows_until_every_neighbour_of_a_near_best_rate_has_run(
    here: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store.create(tmp_path / "study", study("adam,sgd"))
    execute(store, 1, more=untried)
    assert untried(store) == untried(Store(tmp_path / "study")) == {}
    assert len({run.id for run in here}) == len(here)  # nothing twice
    grown = rates(store)
    step = 10**0.5
    for method, tried in grown.items():
        of_method = [run for run in here if run.method == method]
        by_rate = {lr: np.mean([accuracy(run) for run in of_method if run.lr == lr]) for lr in tried}
        top = max(by_rate.values())
        near = [lr for lr, value in by_rate.items() if value >= top - 0.02]
        for lr in near:
            for neighbour in (lr / step, lr * step):
                assert any(abs(np.log(neighbour / other)) < 0.1 for other in tried), (method, lr)
        assert missing(tried, [by_rate[lr] for lr in tried], 0.02, limit=execution.LIMIT, maximize=True) == []
    assert min(abs(np.log10(lr) + 1.6) for lr in grown["adam"]) < 0.25  # the valley has been found
    assert min(abs(np.log10(lr) - 0.1) for lr in grown["sgd"]) < 0.25
    # Only one task and one method asked for a rate: others have not run at it.
    assert grown["adam"] != grown["sgd"]
    assert "learning rates more: the best so far has neighbours that have not run" in capsys.readouterr().out
    # The study on disk has grown with it, and to run it again makes nothing.
    assert {m.name: list(m.rates("tiny:Line")) for m in Store(tmp_path / "study").study.methods} == grown
    before = len(here)
    execute(Store(tmp_path / "study"), 1, more=untried)
    execute(Store.create(tmp_path / "study", study("adam,sgd")), 1, more=untried)
    assert len(here) == before


def test_a_study_that_was_stopped_while_it_grew_goes_on(here: list[Run], tmp_path: Path) -> None:
    whole = Store.create(tmp_path / "whole", study("adam,sgd"))
    execute(whole, 1, more=untried)
    store = Store.create(tmp_path / "stopped", study("adam,sgd"))
    here.clear()

    class StoppedError(Exception):
        pass

    def once(of: Store) -> execution.Rates:
        if len(here) > 8:
            raise StoppedError
        return untried(of)

    with pytest.raises(StoppedError):
        execute(store, 1, more=once)
    execute(Store.create(tmp_path / "stopped", study("adam,sgd")), 1, more=untried)
    assert rates(Store(tmp_path / "stopped")) == rates(whole)
    assert len({run.id for run in here}) == len(here)


def test_methods_that_crash_or_probe_are_left_as_they_are(here: list[Run], tmp_path: Path) -> None:
    store = Store.create(tmp_path / "study", study("dog,adamw(lr=range_test(steps=10)),adam(lr=0.02)"))
    execute(store, 1, more=untried)
    grown = rates(store)
    assert grown["dog"] == [1.0]
    assert grown["adamw"] == [1.0]
    assert len(grown["adam"]) > 1


def test_a_rate_that_crashes_is_not_asked_for_again(here: list[Run], tmp_path: Path) -> None:
    """Its neighbour below is near-best; it crashed, and stays so."""
    store = Store.create(tmp_path / "study", study("momo", lrs=(0.1,)))
    execute(store, 1, more=untried)
    assert len({run.id for run in here}) == len(here)
    crashed = {row["lr"] for row in store.runs().to_pylist() if row["status"] == "crashed"}
    assert crashed == {1.0}
    execute(store, 1, more=untried)
    assert len({run.id for run in here}) == len(here)
    execute(store, 1, more=untried, retry_crashed=True)
    assert [run.lr for run in here[-2:]] == [1.0, 1.0]


def test_where_nothing_learns_the_grid_goes_down_to_the_limit(here: list[Run], tmp_path: Path) -> None:
    """And no further; above the limit nothing is tried either."""
    store = Store.create(tmp_path / "study", study("prodigy", lrs=(1e-5,), seeds=1))
    execute(store, 1, more=untried)
    assert rates(store)["prodigy"] == [1e-7, 3.16228e-7, 1e-6, 3.16228e-6, 1e-5]


def test_what_learned_no_more_than_the_tolerance_is_nothing(here: list[Run], tmp_path: Path) -> None:
    """Accuracies within 0.02 of chance, 0.25, are not near-best, even if nothing is better."""
    far = study("adam", lrs=(1e-4,), seeds=1)  # 0.9 - 0.1 * 2.4^2 = 0.324
    store = Store.create(tmp_path / "study", far)
    execute(store, 1)
    assert untried(store) == {("adam", "tiny:Line"): [3.16228e-05, 0.000316228]}
    nothing = study("adam", lrs=(1e-7, 1e2), seeds=1)  # 0 and 0
    store = Store.create(tmp_path / "nothing", nothing)
    execute(store, 1)
    outcome = results.load(tmp_path / "nothing").tasks[0].outcomes[0]
    assert np.allclose(outcome.finals, 0.25)  # counted as chance
    assert untried(store) == {}  # it is at the limit


def test_rates_of_tasks_grow_apart(here: list[Run], tmp_path: Path) -> None:
    two = resolve(["tiny:Line", "tiny:Slow"], parse_methods("adam"), (0.01, 0.0316228, 0.1), seeds=1)
    store = Store.create(tmp_path / "study", two)
    asked = [{("adam", "tiny:Slow"): [0.5]}, {}]
    execute(store, 1, more=lambda of: asked.pop(0))
    assert [(run.task, run.lr) for run in here[6:]] == [("tiny:Slow", 0.5)]


def test_the_command_is_kept_with_its_time(here: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert last_command(tmp_path / "study") == ""
    store = Store.create(tmp_path / "study", study("adam"))
    assert last_command(tmp_path / "study") == ""
    execute(store, 1)
    path = tmp_path / "study" / "command.txt"
    [line] = path.read_text().splitlines()
    time, _, command = line.partition(" UTC: ")
    assert len(time) == len("2026-01-01 00:00:00") and time[10] == " "
    assert command == last_command(store.folder) == "untuned compare tiny:Line --methods 'adam,sgd (x)'"
    monkeypatch.setattr(sys, "argv", ["untuned", "compare", "tiny:Line", "--tune"])
    execute(store, 1)
    assert len(path.read_text().splitlines()) == 2
    assert last_command(store.folder) == "untuned compare tiny:Line --tune"


def test_on_real_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study that grows by one rate: nothing runs twice, and what ran is what `train` gives."""
    of = resolve(["tiny:Line"], parse_methods("sgd(momentum=0.9)"), (1e-3,), seeds=1)
    monkeypatch.setenv("PYTHONPATH", ":".join([str(Path(__file__).parent), *sys.path]))
    store = Store.create(tmp_path / "study", of)
    asked: list[execution.Rates] = [{("sgd(momentum=0.9)", "tiny:Line"): [1e-2]}, {}]
    execute(store, 1, more=lambda of: asked.pop(0))
    rows = {row["run"]: row for row in store.runs().to_pylist()}
    assert [run.lr for run in store.study.runs()] == [1e-3, 1e-2]
    assert {run.id for run in store.study.runs()} == rows.keys()
    for run in store.study.runs():
        result, _ = train(tiny.Line(), run)
        assert (rows[run.id]["status"], json.loads(rows[run.id]["final"])) == (result.status, result.final)
    execute(Store(tmp_path / "study"), 1)
    assert {row["run"]: row for row in store.runs().to_pylist()} == rows


def test_a_folder_that_cannot_be_written_is_one_sentence(here: list[Run], tmp_path: Path) -> None:
    store = Store.create(tmp_path / "study", resolve(["tiny:Line"], parse_methods("adam"), (0.1,), 1))
    (store.folder / "command.txt").mkdir()  # stands for a read-only or full disk, which root does not notice
    with pytest.raises(StudyError, match=r"^cannot write to .*command.txt.*; its runs are kept$"):
        execute(store, 1)
    assert not here


def test_a_task_that_named_a_metric_it_lacks_may_be_mended(tmp_path: Path) -> None:
    """Also where the name of the metric was wrong, not what `evaluate()` returns."""
    wrong = resolve(["tiny:Mute"], parse_methods("adam"), (0.1,), 1)
    store = Store.create(tmp_path / "study", wrong)
    execute(store, 1)
    assert set(store.statuses().values()) == {"crashed"}
    task = wrong.tasks[0].model_copy(update={"metric": "val_accuracy", "source": "mended"})
    right = wrong.model_copy(update={"tasks": (task,)})
    with pytest.raises(StudyError, match="metric of its task"):
        Store.create(store.folder, right)
    store = Store.create(store.folder, right, mended=True)
    assert [run.id for run in store.study.runs()] == [run.id for run in wrong.runs()]
    assert store.study.tasks[0].metric == "val_accuracy"
    with store.writing():
        [run] = store.study.runs()
        store.start(run)
        store.finish(run, Result("done", 1.0, 10, {"val_loss": 0.5, "val_accuracy": 0.5}))
    with pytest.raises(StudyError, match="metric of its task"):  # what is finished was ranked by it
        Store.create(store.folder, wrong, mended=True)


def test_what_cannot_be_read_costs_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StudyError, match="holds no study"):
        Store(tmp_path / "file")
    store = Store.create(tmp_path / "study", resolve(["tiny:Line"], parse_methods("adam"), (0.1,), 1))
    execute(store, 1)
    [run] = store.study.runs()
    assert store.curve(run.id).num_rows
    path = store.folder / "curves" / f"{run.id}.parquet"
    path.write_bytes(path.read_bytes()[:100])
    assert not store.curve(run.id).num_rows
    assert results.load(store.folder).finished[0].value >= 0

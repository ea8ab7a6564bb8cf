"""`untuned study refined`: its rule, its files, its words; and the norms that `untuned compare` records."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import nn

import untuned
from untuned.schedules import Schedule, refine, tables
from untuned.study import refined, refined_report
from untuned.study.config import MethodSpec, StudyError
from untuned.study.refined import SCHEDULES, TUNING_SEEDS, Column, Trial, read
from untuned.study.resolve import resolve
from untuned.study.store import Store
from untuned.study.sweep import sweep

CLEAN, NOISY = refined.PROBLEMS[:2]
BEST = {"flat": -4, "1/sqrt": 0, "step": -2, "cosine": -1, "linear": -3, "refined": 2}


def test_a_fifth_of_the_labels_is_drawn_anew_always_the_same() -> None:
    clean, noisy, again = (refined.load(name).y for name in (CLEAN, NOISY, NOISY))
    assert torch.equal(noisy, again)
    assert (clean != noisy).double().mean().item() == pytest.approx(0.2 * 0.9, abs=0.02)  # one in ten stays by chance


class Small(tiny.Line):
    """Without dropout."""

    def model(self, seed: int) -> nn.Module:
        return super().model(seed)[1:]  # pyright: ignore[reportIndexIssue]


def test_a_run_follows_its_schedule_and_logs_its_norms(tmp_path: Path) -> None:
    def schedule(optimizer: torch.optim.Optimizer, steps: int) -> Schedule:
        return Schedule(optimizer, "linear", steps)

    (tmp_path / "norms").mkdir()
    (tmp_path / "norms" / "000000000001.parquet").touch()  # of a run that was stopped
    task = Small()
    found = refined.train(task, untuned.SGD, schedule, 0.1, 3, 2, tmp_path / "norms")
    model = task.model(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    norms = []
    for k, batch in enumerate(batch for epoch in range(2) for batch in task.batches(3, epoch)):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        norms.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm().item())
        optimizer.param_groups[0]["lr"] = 0.1 * (10 - k) / 10
        optimizer.step()
    assert found == pytest.approx(task.loss(model, (task.x, task.y)).item(), rel=1e-5)
    log = tables.read(tmp_path / "norms")
    assert log["l2"] == pytest.approx(norms, rel=1e-5)
    assert log["lr"] == pytest.approx([0.1 * (10 - k) / 10 for k in range(10)])
    assert refined.train(task, untuned.SGD, schedule, 1e30, 3, 2, None) == math.inf


Fake = Callable[..., float]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, int]]:
    """Runs that take no time: the loss is least at the lr of `BEST`, and refined is worse by 0.1 on clean labels."""
    made: list[tuple[float, int]] = []

    def train(task: Any, make: Any, schedule: Any, lr: float, seed: int, epochs: int, norms: Path | None) -> float:
        made.append((lr, seed))
        if norms is not None:
            norms.mkdir(parents=True, exist_ok=True)
            values = np.exp(-0.1 * np.arange(50)) if task == CLEAN else np.ones(50)
            tables.write(norms / "000000000001.parquet", {"step": np.arange(1, 51), "l1": values, "l2": values})
        name = schedule
        worse = 0.1 if name == "refined" and task == CLEAN else 0.0
        return (math.log2(lr) - BEST[name]) ** 2 + worse + 1e-3 * (seed % 10)

    monkeypatch.setattr(refined, "train", train)
    monkeypatch.setattr(refined, "load", str)
    scheduler = Column._scheduler

    def named(self: Column, schedule: str) -> Any:
        scheduler(self, schedule)  # what it needs is made
        return schedule

    monkeypatch.setattr(Column, "_scheduler", named)
    return made


def test_the_rule_walks_to_the_best_power_of_two(made: list[tuple[float, int]], tmp_path: Path) -> None:
    column = Column(tmp_path, CLEAN, "sgd", 5)
    assert {name: column.tuned(name) for name in SCHEDULES} == BEST
    assert {seed for _, seed in made} == {*TUNING_SEEDS}
    flat = {trial.exponent for trial in column.trials.values() if trial.schedule == "flat"}
    assert flat == {-5, -4, -3, -2, -1}  # from -2 downhill, and one beyond
    assert tables.read(column.norms(BEST["linear"]))["l2"].size == 50


def test_a_study_goes_on_where_it_died(made: list[tuple[float, int]], tmp_path: Path) -> None:
    first = Column(tmp_path, CLEAN, "sgd", 5)
    wanted = first.finals(2)
    count = len(made)
    assert Column(tmp_path, CLEAN, "sgd", 5).finals(2) == wanted
    assert len(made) == count  # nothing was made again
    with first.path.open("a") as file:
        file.write("fashion-cnn,sgd,fl")  # died in a line
    last = read(first.path)[-1]
    assert last == Trial(CLEAN, "sgd", "flat", -4, 1, wanted["flat"][1], last.seconds)
    assert Column(tmp_path, CLEAN, "sgd", 5).finals(3).keys() == wanted.keys()
    assert len(made) == count + len(SCHEDULES)
    assert len(read(first.path)) == len(made)
    assert Column(tmp_path, CLEAN, "sgd", 6).trials == {}  # another length is another study


def test_the_page_says_whether_the_finding_is_reproduced(made: list[tuple[float, int]], tmp_path: Path) -> None:
    columns = [Column(tmp_path, name, "sgd", 5) for name in (CLEAN, NOISY)]
    page = refined_report.write(tmp_path, columns, 3).read_text()
    words = "refined loses with the clean labels, is not told apart with random ones: reproduced."
    assert f"- SGD on fashion-cnn: {words}" in page
    assert "Refined loses (refined minus linear: +0.1000, 95 % interval +0.1000 to +0.1000, n = 3)." in page
    where = 100 * refine(np.exp(-0.1 * np.arange(50)), 2).argmax() / 50
    assert f"Its peak comes after {where:.0f} % of the run; warning: the largest lr comes after {where:.0f} %" in page
    assert "| refined | 2^2 | 0.1010 | 0.1000 to 0.1020 | 3 |" in page
    assert (tmp_path / "refined.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("losses", "word"),
    [
        ({"linear": [1.0, 1.1, 1.2], "refined": [1.5, 1.4, 1.6]}, "loses"),
        ({"linear": [1.0, 1.1, 1.2], "refined": [0.9, 0.8, 1.1]}, "wins"),
        ({"linear": [1.0, 1.1, 1.2], "refined": [0.9, 1.2, 1.1]}, "is not told apart"),
        ({"linear": [1.0], "refined": [0.9]}, "is not told apart"),
        ({"linear": [1.0, 1.0], "refined": [math.inf, 0.5]}, "loses"),
        ({"linear": [math.inf, 1.0], "refined": [0.9, 0.5]}, "wins"),
    ],
)
def test_the_verdict(losses: dict[str, list[float]], word: str) -> None:
    assert refined_report.verdict(losses)[0] == word


def test_an_unknown_method_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="methods: 'momo' is not in this study; it has sgd, adam"):
        refined.run(tmp_path / "new", ["sgd", "momo"], 1, 1, 1)
    assert not (tmp_path / "new").exists()


def test_a_method_that_is_named_twice_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two processes would write to its files."""
    monkeypatch.setattr(refined, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))
    monkeypatch.setattr(refined, "PROBLEMS", (CLEAN,))
    monkeypatch.setattr(refined, "_make", lambda *_: None)
    assert [column.method for column in refined.run(tmp_path, ["sgd", "adam", "sgd"], 1, 1, 1)] == ["sgd", "adam"]


@pytest.mark.skipif(sys.platform == "win32", reason="has no process groups that a signal reaches")
@pytest.mark.parametrize("send", [os.kill, os.killpg])  # from another program, or from a terminal to the whole group
def test_control_c_stops_a_study_at_once_and_says_how_to_go_on(
    tmp_path: Path, send: Callable[[int, int], None]
) -> None:
    command = [sys.executable, "-c", "from untuned.study.cli import main; main()", "study", "refined"]
    command += ["--out", str(tmp_path), "--epochs", "1", "--seeds", "1", "--workers", "1"]
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  (a test run in the background ignores it)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, preexec_fn=heard
    )
    try:
        assert process.stdout is not None
        assert ", lr 2^" in process.stdout.readline()  # the first of some hundred runs
        send(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=20)
        assert process.returncode == 130, output
        assert output.endswith("stopped; the same command goes on from here\n")
        assert "Traceback" not in output
        assert len(output.splitlines()) < 20
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    until = time.monotonic() + 20
    with suppress(ProcessLookupError):
        while True:  # soon its workers are gone, too
            os.killpg(process.pid, 0)
            assert time.monotonic() < until
            time.sleep(0.1)


class Silent:
    def started(self, run: Any) -> None: ...
    def ended(self, run: Any, result: Any) -> None: ...


def test_a_sweep_records_norms_and_its_numbers_are_the_same(tmp_path: Path) -> None:
    study = resolve(["tiny:Line"], [MethodSpec("sgd", {}, (0.1, 1e30))], (), 1)
    stores = [Store.create(tmp_path / name, study) for name in ("with", "without")]
    for store, norms in zip(stores, (True, False), strict=True):
        sweep(store, 1, Silent(), norms=norms)
    assert [store.folder.joinpath("norms").exists() for store in stores] == [True, False]
    for one, other in zip(*(store.runs().to_pylist() for store in stores), strict=True):
        assert (one["run"], one["status"], one["final"]) == (other["run"], other["status"], other["final"])
        log = tables.read(stores[0].folder / "norms" / one["run"])
        assert len(log["step"]) == one["steps"]
        assert (log["lr"] == one["lr"]).all()
        if one["status"] == "done":
            assert (log["l1"] > log["l2"]).all()
            assert (log["l2"] > 0).all()

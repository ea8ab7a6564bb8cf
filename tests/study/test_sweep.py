"""Studies on real worker processes that are killed: what is on disk afterwards equals an undisturbed study."""

import contextlib
import json
import multiprocessing
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest
import tiny

from untuned.study import tasks
from untuned.study.config import Run, Study, StudyError, parse_methods
from untuned.study.resolve import resolve
from untuned.study.runner import Result, train
from untuned.study.store import Store
from untuned.study.sweep import _interruptible, pending, sweep

HERE = Path(__file__).parent
TIMES = ["step_us", "fwdbwd_us"]
PATIENCE = 120  # seconds; far more than is needed on a quiet machine


class Silent:
    def started(self, run: Run) -> None: ...
    def ended(self, run: Run, result: Result) -> None: ...


def study(task: str, methods: str = "sgd(momentum=0.9),adam", lrs: tuple[float, ...] = (0.01, 0.1, 1.0)) -> Study:
    return resolve([task], parse_methods(methods), lrs, seeds=2)


def numbers(store: Store) -> dict[str, tuple[str, str | None, int, pa.Table]]:
    """All that a report shows, by run, apart from times."""
    return {
        row["run"]: (row["status"], row["final"], row["steps"], store.curve(row["run"]).drop_columns(TIMES))
        for row in store.runs().to_pylist()
    }


def undisturbed(of: Study) -> dict[str, tuple[str, str | None, int, pa.Table]]:
    """The same, from runs made here one after the other, without store or worker."""
    expected = {}
    for run in of.runs():
        result, curve = train(tasks.load(run.task), run)
        final = None if result.final is None else json.dumps(result.final)
        expected[run.id] = (result.status, final, result.steps, curve.drop_columns(TIMES))
    return expected


class Command:
    """`untuned compare` on a slow tiny task in a process of its own."""

    def __init__(self, out: Path, workers: int) -> None:
        self.out = out
        self.process = subprocess.Popen(
            [sys.executable, "-m", "untuned.study.cli", "compare", "tiny:Slow", "--methods", "sgd(momentum=0.9),adam",
             "--lr", "1e-2,1e-1,1", "--seeds", "2", "--workers", str(workers), "--out", out],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )  # fmt: skip

    def until(self, runs: int, *statuses: str) -> None:
        """Wait until so many runs are in the ledger with one of the statuses."""
        limit = time.monotonic() + PATIENCE
        seen: list[str] = []
        while sum(status in statuses for status in seen) < runs:
            assert time.monotonic() < limit, "waited too long"
            assert self.process.poll() is None, self.output()
            time.sleep(0.02)
            with contextlib.suppress(StudyError, sqlite3.OperationalError):  # not there yet
                seen = list(Store(self.out).statuses().values())

    def output(self) -> str:
        """All output; comes when the last process that can write any has ended, workers included."""
        return self.process.communicate(timeout=PATIENCE)[0]


@pytest.fixture
def command() -> Iterator[Callable[[Path, int], Command]]:
    started: list[Command] = []

    def start(out: Path, workers: int) -> Command:
        started.append(Command(out, workers))
        return started[-1]

    yield start
    for one in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.process.pid, signal.SIGKILL)
        one.process.communicate()


def test_kill_nine_of_parent_and_worker_loses_only_what_was_running(
    tmp_path: Path, command: Callable[[Path, int], Command]
) -> None:
    out = tmp_path / "study"
    least, pause = random.randint(1, 4), random.uniform(0, 0.4)
    print(f"the parent is killed {pause:.3f} s after {least} runs")
    compare = command(out, 2)
    compare.until(least, "done", "diverged")
    time.sleep(pause)
    compare.process.kill()
    compare.output()  # no worker is left
    store = Store(out)
    before = store.runs().to_pylist()
    finished = {row["run"]: row["started"] for row in before if row["status"] != "running"}
    assert len(before) - len(finished) <= 2
    assert least <= len(finished) < 12
    (out / "curves" / ".half-written").touch()

    class KillWorker(Silent):
        """Kills the worker at a random moment of its second run."""

        runs = 0

        def started(self, run: Run) -> None:
            self.runs += 1
            if self.runs == 2:
                [worker] = multiprocessing.active_children()
                threading.Timer(random.uniform(0, 0.1), worker.kill).start()

    sweep(store, 1, KillWorker())
    crashed = [row for row in store.runs().to_pylist() if row["status"] == "crashed"]
    assert [row["error"] for row in crashed] == ["the worker process was killed by SIGKILL"]
    assert pending(store) == []
    assert [run.id for run in pending(store, retry_crashed=True)] == [crashed[0]["run"]]

    sweep(store, 1, Silent(), retry_crashed=True)
    assert multiprocessing.active_children() == []
    after = {row["run"]: row["started"] for row in store.runs().to_pylist()}
    assert after.items() >= finished.items()  # nothing was done twice
    assert numbers(store) == undisturbed(store.study)
    assert {"done", "diverged"} == set(store.statuses().values())
    assert not list((out / "curves").glob(".*"))


def test_control_c_at_any_moment_stops_everything_and_says_how_to_go_on(
    tmp_path: Path, command: Callable[[Path, int], Command]
) -> None:
    pause = random.uniform(0, 3)
    print(f"Ctrl-C {pause:.3f} s after the first worker was started")  # it imports, then it works
    compare = command(tmp_path / "study", 1)
    compare.until(1, "running", "done", "diverged")
    time.sleep(pause)
    os.killpg(compare.process.pid, signal.SIGINT)  # a terminal sends it to the whole group
    output = compare.output()
    assert compare.process.returncode == 130, output
    assert output.endswith("stopped; the same command goes on from here\n")
    assert "Traceback" not in output


BLOCKED = """
import sys, time
from pathlib import Path
from untuned.study.sweep import _Worker

if __name__ == "__main__":
    worker = _Worker()  # the first one of a process
    [line] = [line for line in Path(f"/proc/{worker.process.pid}/status").read_text().splitlines() if "SigBlk" in line]
    worker.stop()
    print(line.split()[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads what Linux says of a process")
def test_a_worker_is_deaf_to_control_c_from_its_first_moment(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(BLOCKED)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert int(done.stdout, 16) & 1 << (signal.SIGINT - 1)


def test_only_one_process_writes(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "study", study("tiny:Line"))
    with store.writing(), pytest.raises(StudyError, match="is being written by another process"):
        sweep(Store(tmp_path / "study"), 1, Silent())
    with store.writing():
        pass
    with pytest.raises(RuntimeError, match="inside `with store"):
        store.start(store.study.runs()[0])


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    of = study("tiny:Line")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StudyError, match="exists and holds no study; choose another --out"):
        Store.create(tmp_path, of)
    with pytest.raises(StudyError, match=r"cannot write a study to .*notes.txt .*File exists.*; choose another --out"):
        Store.create(tmp_path / "notes.txt", of)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

    Store.create(tmp_path / "study", of)
    written = (tmp_path / "study" / "study.json").read_bytes()
    with pytest.raises(StudyError, match=r"study: epochs of its task 'tiny:Line' is 4.0, not 9.0; else choose another"):
        Store.create(tmp_path / "study", resolve(["tiny:Line"], parse_methods("adam"), (0.1,), seeds=2, epochs=9))
    with pytest.raises(StudyError, match=r"study: its version is '.*', not '0'; else choose another --out"):
        Store.create(tmp_path / "study", of.model_copy(update={"version": "0"}))
    assert (tmp_path / "study" / "study.json").read_bytes() == written
    assert Store.create(tmp_path / "study", of).study == of

    with pytest.raises(StudyError, match="holds no study"):
        Store(tmp_path / "nothing")
    (tmp_path / "study" / "study.json").write_text("{}")
    with pytest.raises(StudyError, match=r"study.json cannot be read"):
        Store(tmp_path / "study")


def test_a_study_grows_and_never_shrinks(tmp_path: Path) -> None:
    of = study("tiny:Line", methods="adam", lrs=(0.01, 1.0))
    Store.create(tmp_path, of)
    more = resolve(["tiny:Slow", "tiny:Line"], parse_methods("adam(lr=0.1),sgd"), (0.3,), seeds=1)
    grown = Store.create(tmp_path, more).study
    assert [task.name for task in grown.tasks] == ["tiny:Line", "tiny:Slow"]
    assert [(method.name, method.lrs) for method in grown.methods] == [("adam", (0.01, 0.1, 1.0)), ("sgd", (0.3,))]
    assert grown.seeds == (0, 1)
    assert {run.id for run in [*of.runs(), *more.runs()]} < {run.id for run in grown.runs()}
    assert len(grown.runs()) == 2 * (3 + 1) * 2
    assert Store(tmp_path).study == Store.create(tmp_path, of).study == grown


def test_a_full_disk_is_one_sentence_and_the_study_goes_on_from_there(tmp_path: Path) -> None:
    of = study("tiny:Line", methods="adam", lrs=(0.01,))
    store = Store.create(tmp_path, of)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # its tables lie below, a page more does not
    try:
        full = pytest.raises(
            StudyError, match=rf"the ledger in {tmp_path} cannot be used \(.*(full|I/O).*\); runs that"
        )
        with full, store.writing():
            for run in of.runs():
                store.start(run)
                store.finish(run, Result("crashed", error="long" * 10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    sweep(store, 1, Silent())
    assert numbers(store) == undisturbed(of)


def test_tables_read_back(tmp_path: Path) -> None:
    of = study("tiny:Line", methods="sgd(momentum=0.9)", lrs=(0.01, 1e30))
    store = Store.create(tmp_path / "study", of)
    assert store.runs().num_rows == store.curves().num_rows == 0
    with store.writing():
        for run in of.runs():
            store.start(run)
            result, curve = train(tiny.Line(), run)
            store.write_curve(run, curve)
            store.finish(run, result)
        store.start(of.runs()[0].model_copy(update={"seed": 7}))
    rows = store.runs().to_pylist()
    assert [(row["lr"], row["seed"], row["status"]) for row in rows] == [
        (0.01, 0, "done"), (1e30, 0, "diverged"), (0.01, 1, "done"), (1e30, 1, "diverged"), (0.01, 7, "running"),
    ]  # fmt: skip
    assert json.loads(rows[0]["options"]) == {"momentum": 0.9}
    assert json.loads(rows[0]["final"])["val_loss"] == pytest.approx(
        store.curve(rows[0]["run"])["val_loss"][-1].as_py()
    )
    assert rows[4]["final"] is rows[4]["seconds"] is None
    assert set(json.loads(rows[0]["versions"])) == {"untuned", "torch", "numpy", "python"}

    curves = store.curves()
    keys = ["run", "task", "method", "options", "schedule", "warmup", "budget", "probe", "lr", "seed"]
    assert curves.column_names[: len(keys)] == keys
    assert curves.num_rows == 2 * 21 + 2 * 2
    one = curves.filter(pa.compute.equal(curves["run"], rows[2]["run"])).drop_columns(keys)
    assert one.equals(store.curve(rows[2]["run"]))


def test_an_interrupt_that_is_lost_on_its_way_is_remembered() -> None:
    before = signal.getsignal(signal.SIGINT)
    with _interruptible() as interrupted:
        with suppress(KeyboardInterrupt):  # as Python does in a destructor
            signal.raise_signal(signal.SIGINT)
        assert interrupted.is_set()
    assert signal.getsignal(signal.SIGINT) is before

"""A study on two Ray nodes on this machine: a node is lost, the driver is killed, a run kills its own process.

What is on disk afterwards equals a study without any of it, bit for bit.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from untuned.study import tasks
from untuned.study.config import Run, StudyError, parse_methods
from untuned.study.resolve import resolve
from untuned.study.runner import Result, train
from untuned.study.store import Store
from untuned.study.sweep import sweep

pytestmark = [pytest.mark.integrations, pytest.mark.timeout(500)]
TINY = Path(__file__).parents[1] / "study"
PATIENCE = 120  # seconds
RUNS = 8
TIMES = ["step_us", "fwdbwd_us"]

OWN = """
import os, signal
from pathlib import Path
from own_parts import note
from tiny import Slow

class Shipped(Slow):
    def evaluate(self, model):
        import own_parts  # is there until the end of the run
        beside = Path(__file__).parent == Path(own_parts.__file__).parent
        return {**super().evaluate(model), "shipped": float(beside and Path(__file__).parent != Path.cwd())}

class Deadly(Slow):
    def batches(self, seed, epoch):
        if seed == 1 and epoch == 2:
            note()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().batches(seed, epoch)
"""
OWN_PARTS = """
from pathlib import Path

def note():
    with Path("tries").open("a") as file:
        file.write("killed\\n")
"""


class Silent:
    def started(self, run: Run) -> None: ...
    def ended(self, run: Run, result: Result) -> None: ...


class Node:
    """A Ray node as `ray start` makes it, of one core."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", "--num-cpus=1", "--object-store-memory=100000000",
             "--block", *arguments],
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def processes(self) -> list[Any]:
        psutil = pytest.importorskip("psutil")
        with suppress(psutil.NoSuchProcess):
            own = psutil.Process(self.process.pid)
            return [own, *own.children(recursive=True)]
        return []

    def works(self) -> bool:
        """Whether a run is being made on it."""
        return any(process.name().startswith("ray::make") for process in self.processes())

    def kill(self) -> None:
        """As a machine that loses its power."""
        for process in self.processes():
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        self.process.wait()


def environment(**more: str) -> dict[str, str]:
    search = os.pathsep.join([str(TINY), *filter(None, sys.path)])
    given = {"PYTHONPATH": search, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    return os.environ | given | more


def until(true: Callable[[], bool]) -> None:
    limit = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < limit, "waited too long"
        time.sleep(0.02)


class Cluster:
    def __init__(self, folder: Path) -> None:
        self.nodes = [Node("--head", "--port=0", f"--temp-dir={folder}", "--include-dashboard=false")]
        found = folder / "ray_current_cluster"
        until(lambda: found.exists() and bool(found.read_text()))
        self.address = found.read_text()
        self.nodes.append(Node(f"--address={self.address}"))


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    pytest.importorskip("ray")
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # short: the names of sockets are limited
    made = Cluster(folder)
    yield made
    for node in made.nodes:
        node.kill()
    shutil.rmtree(folder, ignore_errors=True)


def driver(out: Path, task: str, address: str) -> subprocess.Popen[str]:
    """This file as a program in the folder of the study."""
    return subprocess.Popen(
        [sys.executable, __file__, str(out), task],
        env=environment(RAY_ADDRESS=address),
        cwd=out.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def statuses(out: Path) -> list[str]:
    with suppress(StudyError, sqlite3.OperationalError):  # not there yet
        return list(Store(out).statuses().values())
    return []


def finished(out: Path) -> dict[str, float]:
    """When the finished runs were started."""
    return {row["run"]: row["started"] for row in Store(out).runs().to_pylist() if row["status"] != "running"}


def numbers(store: Store) -> dict[str, tuple[str, str | None, int, pa.Table]]:
    """All that a report shows, by run, apart from times."""
    return {
        row["run"]: (row["status"], row["final"], row["steps"], store.curve(row["run"]).drop_columns(TIMES))
        for row in store.runs().to_pylist()
    }


def undisturbed(store: Store) -> dict[str, tuple[str, str | None, int, pa.Table]]:
    """The same, from runs made here one after the other."""
    expected = {}
    for run in store.study.runs():
        result, curve = train(tasks.load(run.task), run)
        final = None if result.final is None else json.dumps(result.final)
        expected[run.id] = (result.status, final, result.steps, curve.drop_columns(TIMES))
    return expected


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(TINY)


def test_a_lost_node_loses_only_its_runs(tmp_path: Path, cluster: Cluster) -> None:
    out = tmp_path / "study"
    started = driver(out, "tiny:Slow", cluster.address)
    until(lambda: statuses(out).count("done") >= 2 and cluster.nodes[1].works())
    cluster.nodes[1].kill()
    before = finished(out)
    assert 2 <= len(before) < RUNS
    output, _ = started.communicate(timeout=PATIENCE)
    assert started.returncode == 0, output
    assert f"ended {RUNS}, lost 1, died 0" in output
    assert finished(out).items() >= before.items()  # nothing was done twice
    assert numbers(Store(out)) == undisturbed(Store(out))


def test_kill_nine_of_the_driver_loses_nothing_finished(tmp_path: Path, cluster: Cluster) -> None:
    out = tmp_path / "study"
    pause = random.uniform(0, 1)
    print(f"the driver is killed {pause:.3f} s after two runs")
    started = driver(out, "tiny:Slow", cluster.address)
    until(lambda: statuses(out).count("done") >= 2)
    time.sleep(pause)
    started.kill()
    started.communicate()
    before = finished(out)
    assert 2 <= len(before) < RUNS

    started = driver(out, "tiny:Slow", cluster.address)
    output, _ = started.communicate(timeout=PATIENCE)
    assert started.returncode == 0, output
    assert f"ended {RUNS - len(before)}, lost 0, died 0" in output
    assert finished(out).items() >= before.items()
    assert numbers(Store(out)) == undisturbed(Store(out))


def test_a_run_that_kills_its_process_has_one_more_try_and_costs_itself(tmp_path: Path, cluster: Cluster) -> None:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "own_parts.py").write_text(OWN_PARTS)
    out = tmp_path / "study"
    started = driver(out, "own:Deadly", cluster.address)
    output, _ = started.communicate(timeout=PATIENCE)
    assert started.returncode == 0, output
    rows = Store(out).runs().to_pylist()
    assert {row["status"] for row in rows if row["seed"] == 0} == {"done"}
    deadly = [row for row in rows if row["seed"] == 1]
    assert len(deadly) == RUNS // 2 and {row["status"] for row in deadly} == {"crashed"}
    assert deadly[0]["error"].startswith("the worker process died in each of 2 tries: ")
    assert (tmp_path / "tries").read_text() == "killed\n" * RUNS


def test_a_local_cluster_gets_the_source_of_a_task_of_ones_own(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "own_parts.py").write_text(OWN_PARTS)
    out = tmp_path / "study"
    started = driver(out, "own:Shipped", "local")
    output, _ = started.communicate(timeout=PATIENCE)
    assert started.returncode == 0, output
    assert {json.loads(row["final"])["shipped"] for row in Store(out).runs().to_pylist()} == {1.0}


@pytest.mark.parametrize("address", ["127.0.0.1:1", "no address"])
def test_a_cluster_that_is_not_there_is_one_sentence(address: str, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    started = driver(tmp_path / "study", "tiny:Slow", address)
    output, _ = started.communicate(timeout=PATIENCE)
    assert started.returncode == 2, output
    last = output.splitlines()[-1]
    assert last.startswith(f"untuned: --on ray: the Ray cluster at {address} cannot be used ("), output


def main(out: Path, task: str) -> None:
    from untuned.study import on_ray

    pools = []

    class Kept(on_ray.Nodes):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            pools.append(self)

    class Counting(Silent):
        count = 0

        def ended(self, run: Run, result: Result) -> None:
            self.count += 1

    on_ray.Nodes = Kept
    study = resolve([task], parse_methods("sgd(momentum=0.9),adam"), (0.01, 0.1), seeds=2)
    view = Counting()
    try:
        sweep(Store.create(out, study), None, view, on="ray")
    except StudyError as error:
        sys.exit(print(f"untuned: {error}", flush=True) or 2)
    print(f"ended {view.count}, lost {pools[0].lost.total()}, died {pools[0].died.total()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

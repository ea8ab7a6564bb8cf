"""What needs no Ray: refusals, the source that travels, how a pool is asked; tests/integrations has a cluster."""

import importlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from untuned.study import on_ray
from untuned.study.config import Run, StudyError, parse_methods
from untuned.study.resolve import resolve
from untuned.study.runner import Result
from untuned.study.store import Store
from untuned.study.sweep import Ended, attempt, sweep


class Silent:
    def started(self, run: Run) -> None: ...
    def ended(self, run: Run, result: Result) -> None: ...


def made(folder: Path, task: str = "tiny:Line") -> Store:
    return Store.create(folder, resolve([task], parse_methods("adam"), (0.01, 0.1), seeds=2))


@pytest.mark.parametrize(
    ("on", "norms", "said"),
    [
        ("ray", False, r'--on ray: ray is missing; run: pip install "untuned\[ray\]"'),
        ("ray", True, "norms are recorded by processes of this machine only: leave out --record-norms or --on ray"),
        ("moon", False, "on: must be processes or ray, not 'moon'"),
    ],
)
def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on: str, norms: bool, said: str) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    store = made(tmp_path)
    with pytest.raises(StudyError, match=said):
        sweep(store, 1, Silent(), norms=norms, on=on)
    assert store.statuses() == {}


class FakeRay:
    """What `Nodes` asks of Ray, on one node of three cores; `fates` tells how a run ends, one after the other."""

    class exceptions:
        class RayError(Exception): ...

        class RayTaskError(RayError):
            cause = StudyError("it has torch 2.0, not 2.1; install the same on every node")

        class WorkerCrashedError(RayError): ...

        class OutOfMemoryError(RayError): ...

        class NodeDiedError(RayError): ...

        class LocalRayletDiedError(RayError): ...

        class ObjectLostError(RayError): ...

    def __init__(self, fates: list[str]) -> None:
        self.fates, self.orders, self.stopped, self.up = fates, [], False, False

    def is_initialized(self) -> bool:
        return self.up

    def init(self, **options: object) -> None:
        self.up = True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 3.0}

    def remote(self, **options: object) -> "type[FakeRay] | object":
        assert options == {"num_cpus": 1, "max_calls": 1, "max_retries": 0}
        ray = self

        class Remote:
            def __init__(self, function: object) -> None: ...

            def remote(self, order: on_ray.Order) -> int:
                ray.orders.append(order)
                return len(ray.orders) - 1

        return Remote

    def wait(self, references: list[int], num_returns: int, timeout: float) -> tuple[list[int], list[int]]:
        assert 0 < len(references) <= 3
        return references[:num_returns], references[num_returns:]

    def get(self, reference: int) -> Ended:
        fate = self.fates.pop(0) if self.fates else ""
        if fate:
            raise getattr(self.exceptions, fate)("as it was told")
        order = self.orders[reference]
        return attempt(order.run, on_ray.tasks.load)

    def shutdown(self) -> None:
        self.stopped = True


def on(fake: FakeRay, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setenv("RAY_ADDRESS", "local")  # whatever runs on this machine
    store = made(folder)
    sweep(store, None, Silent(), on="ray")
    assert fake.stopped
    return [(row["status"], row["error"]) for row in store.runs().to_pylist()]


def test_a_lost_node_or_a_first_death_of_the_process_is_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(["NodeDiedError", "WorkerCrashedError", "", "ObjectLostError"])
    assert on(fake, tmp_path, monkeypatch) == [("done", None)] * 4
    assert len(fake.orders) == 4 + 3
    assert {order.run.id for order in fake.orders} == {run.id for run in Store(tmp_path).study.runs()}
    assert all(Store(tmp_path).curve(order.run.id).num_rows == 21 for order in fake.orders)
    assert set(fake.orders[0].code) >= {"tiny.py"}


@pytest.mark.parametrize(
    ("fate", "times", "said"),
    [
        ("WorkerCrashedError", 2, "the worker process died in each of 2 tries: as it was told"),
        ("OutOfMemoryError", 2, "the worker process died in each of 2 tries: as it was told"),
        ("NodeDiedError", 3, "3 nodes were lost while they made this run: as it was told"),
    ],
)
def test_a_run_that_always_dies_is_crashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fate: str, times: int, said: str
) -> None:
    fake = FakeRay([fate] * 4 * times)
    assert on(fake, tmp_path, monkeypatch) == [("crashed", said)] * 4
    assert len(fake.orders) == 4 * times


@pytest.mark.parametrize(
    ("fate", "said"),
    [
        ("RayTaskError", "a Ray node cannot make runs of this study: it has torch 2.0, not 2.1; install the same"),
        ("RayError", r"the Ray cluster fails \(as it was told\); runs that have finished are kept, and the same"),
    ],
)
def test_a_cluster_that_fails_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fate: str, said: str
) -> None:
    fake = FakeRay(["", fate])
    with pytest.raises(StudyError, match=said):
        on(fake, tmp_path, monkeypatch)
    assert fake.stopped
    assert sorted(Store(tmp_path).statuses().values()) == ["done", "running", "running", "running"]


def test_a_cluster_of_another_version_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: object) -> None:
        raise RuntimeError("Version mismatch: the cluster has Ray 2.0\n  this process has 2.60")

    fake = FakeRay([])
    monkeypatch.setattr(fake, "init", init)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setitem(sys.modules, "ray", fake)
    said = (
        r"a local Ray cluster cannot be used \(Version mismatch: the cluster has Ray 2.0 this process has 2.60\); RAY"
    )
    with pytest.raises(StudyError, match=said):
        sweep(made(tmp_path), 1, Silent(), on="ray")


def test_a_node_with_other_versions_makes_no_run(tmp_path: Path) -> None:
    run = made(tmp_path).study.runs()[0]
    order = on_ray.Order(run, str(tmp_path), versions={**on_ray.VERSIONS, "torch": "1.0"})
    with pytest.raises(StudyError, match=r"it has torch \d+\.\d+\.\d+.*, not 1.0; install the same on every node"):
        on_ray.make(order)


PARTS = {
    "mine.py": "from helpers.lines import Line\nclass Mine(Line): ...",
    "helpers/__init__.py": "",
    "helpers/lines.py": "from tiny import Line",
    "unrelated.py": "raise RuntimeError",
}
ELSEWHERE = """
import pickle, sys
from untuned.study import on_ray
result, curve = on_ray.make(pickle.loads(open(sys.argv[1], "rb").read()))
print(result.status, curve.num_rows, sys.modules["mine"].__file__)
"""


def test_the_source_of_ones_own_tasks_travels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for path, text in PARTS.items():
        (here / path).parent.mkdir(parents=True, exist_ok=True)
        (here / path).write_text(text)
    there.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(here)
    importlib.invalidate_caches()
    code = on_ray.own_code(["mine:Mine", "fashion-mlp"])
    assert code == {path: text.encode() for path, text in PARTS.items() if path != "unrelated.py"}
    run = made(tmp_path / "study", "mine:Mine").study.runs()[0]
    order = on_ray.Order(run, str(tmp_path / "not on this machine"), code)
    (there / "order").write_bytes(pickle.dumps(order))
    for name in ("mine.py", "helpers/__init__.py", "helpers/lines.py"):
        (here / name).unlink()
    search = os.pathsep.join(filter(None, sys.path))  # tiny is among the installed packages, so to say
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, there / "order"],
        cwd=there,
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
        check=True,
    )
    status, rows, file = done.stdout.split()
    assert (status, rows) == ("done", "21")
    assert not Path(file).is_relative_to(tmp_path)

    for name in ("mine", "helpers", "helpers.lines"):
        sys.modules.pop(name)
    with pytest.raises(StudyError, match="task 'mine:Mine': 'mine' cannot be imported: No module named 'mine'"):
        on_ray.own_code(["mine:Mine"])

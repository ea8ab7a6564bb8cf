"""A study on a Ray cluster: one process per run, on whichever node has a free core.

The cluster is the one of RAY_ADDRESS, else the one that `ray start` started on this machine, else a local one for this
study. Nodes need untuned and torch in the versions of the driver, which is the process that runs the study; they need
no file of the study, as a run's curve comes back through Ray and the driver alone writes. A lost node costs the runs it
was at, which are made again elsewhere; a run whose process dies has one more try. Tasks of one's own travel as source.
"""

import importlib
import os
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import untuned
from untuned.study import tasks
from untuned.study.config import Run, StudyError
from untuned.study.pool import Ended, attempt
from untuned.study.runner import Result

TRIES = 2  # of a run whose process dies
NODES = 3  # that may be lost under a run, before it is taken for what kills them
PAUSE = 1.0  # seconds in which nothing ends, after which the cluster's size is asked for again
VERSIONS = {"untuned": untuned.__version__, "torch": torch.__version__.split("+")[0]}


@dataclass(frozen=True)
class Order:
    """A run as a node gets it. `code`: the source files of tasks of one's own, by relative path."""

    run: Run
    folder: str  # where the study was started
    code: dict[str, bytes] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=lambda: VERSIONS)


class Nodes:
    """The pool of a Ray cluster's cores, at most `workers` of them."""

    def __init__(self, workers: int | None, task_names: Iterable[str]) -> None:
        self.workers = workers
        self.code = own_code(task_names)
        self.ray = _ray()
        self.theirs = self.ray.is_initialized()  # by the program that calls
        if not self.theirs:
            _connect(self.ray)
        self.make = self.ray.remote(num_cpus=1, max_calls=1, max_retries=0)(make)
        self.busy: dict[Any, Run] = {}
        self.since: dict[str, float] = {}
        self.died: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()

    @property
    def free(self) -> int:
        cores = int(self.ray.cluster_resources().get("CPU", 0))
        return max(0, min(cores, self.workers or cores) - len(self.busy))

    def start(self, run: Run) -> None:
        self.since[run.id] = time.perf_counter()
        self.busy[self.make.remote(Order(run, os.getcwd(), self.code))] = run

    def ended(self) -> list[tuple[Run, Ended]]:
        if not self.busy:  # every node is lost: one that joins goes on
            time.sleep(PAUSE)
            return []
        ready, _ = self.ray.wait(list(self.busy), num_returns=1, timeout=PAUSE)
        found = []
        for reference in ready:
            run = self.busy.pop(reference)
            if end := self._end(reference, run):
                found.append((run, end))
            else:
                self.start(run)
        return found

    def stop(self) -> None:
        if self.theirs:
            for reference in self.busy:
                self.ray.cancel(reference, force=True)
        else:
            self.ray.shutdown()  # which ends what this process has started

    def _end(self, reference: Any, run: Run) -> Ended | None:
        """How the run ended, None if it shall be made again."""
        failures = self.ray.exceptions
        try:
            return self.ray.get(reference)
        except failures.RayTaskError as error:
            said = str(error.cause).strip().splitlines()[-1]  # a function that cannot be loaded comes as a traceback
            raise StudyError(f"a Ray node cannot make runs of this study: {said}") from error
        except (failures.WorkerCrashedError, failures.OutOfMemoryError) as error:
            self.died[run.id] += 1
            again = self.died[run.id] < TRIES
            what = f"the worker process died in each of {TRIES} tries: {_line(error)}"
        except (failures.NodeDiedError, failures.LocalRayletDiedError, failures.ObjectLostError) as error:
            self.lost[run.id] += 1
            again = self.lost[run.id] < NODES
            what = f"{NODES} nodes were lost while they made this run: {_line(error)}"
        except failures.RayError as error:
            kept = "runs that have finished are kept, and the same command goes on from there"
            raise StudyError(f"the Ray cluster fails ({_line(error)}); {kept}") from error
        if again:
            return None
        return Result("crashed", seconds=time.perf_counter() - self.since[run.id], error=what), None


def make(order: Order) -> Ended:
    """Make a run in this process of a node, which ends with it. Raises StudyError on a node with other versions."""
    for package, version in order.versions.items():
        if VERSIONS[package] != version:
            raise StudyError(f"it has {package} {VERSIONS[package]}, not {version}; install the same on every node")
    with tempfile.TemporaryDirectory(prefix="untuned-") as folder:
        if os.path.isdir(order.folder):  # on this machine, or shared
            os.chdir(order.folder)
        for path, content in order.code.items():
            (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / path).write_bytes(content)
        sys.path[:0] = [folder, os.getcwd()]
        return attempt(order.run, tasks.load)


def own_code(task_names: Iterable[str]) -> dict[str, bytes]:
    """The source files that tasks of one's own, written module:Class, are made of, by path relative to their folder.

    These are the module and what it has imported from the folder that holds it. Installed packages stay where they are.
    """
    found: dict[str, bytes] = {}
    for name in sorted(task_names):
        if ":" not in name:
            continue
        module = name.partition(":")[0]
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        try:
            importlib.import_module(module)
        except Exception as error:
            raise StudyError(f"task {name!r}: {module!r} cannot be imported: {error}") from error
        if file := _source(module):
            found |= _beneath(file.parents[module.count(".") + (file.name == "__init__.py")])
    return found


def _beneath(root: Path) -> dict[str, bytes]:
    found = {}
    for name in list(sys.modules):
        file = _source(name)
        if file and file.is_relative_to(root) and name.partition(".")[0] not in ("__main__", "untuned"):
            found[file.relative_to(root).as_posix()] = file.read_bytes()
    return found


def _source(module: str) -> Path | None:
    """The source file of an imported module that is not an installed one."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if not file or not file.endswith(".py"):
        return None
    path = Path(file).resolve()
    return None if {"site-packages", "dist-packages"} & set(path.parts) or not path.exists() else path


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise StudyError(f'--on ray: {error.name} is missing; run: pip install "untuned[ray]"') from error


def _connect(ray: Any) -> None:
    """Join the cluster there is, or start a local one."""
    where = os.environ.get("RAY_ADDRESS", "") or _started_here()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a local cluster reports to nobody
    try:
        host, _, port = where.rpartition(":")
        if host and port.isdigit():  # Ray itself asks for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # OSError, RuntimeError for other versions, ValueError for a bad address
        cluster = f"the Ray cluster at {where}" if where not in ("", "local") else "a local Ray cluster"
        raise StudyError(
            f"--on ray: {cluster} cannot be used ({_line(error)}); RAY_ADDRESS=HOST:PORT names another, "
            "RAY_ADDRESS=local starts one here"
        ) from error


def _started_here() -> str:
    """The address of the cluster that `ray start` started last on this machine, "" if none."""
    note = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")
    return note.read_text().strip() if note.exists() else ""


def _line(error: BaseException) -> str:
    """What the error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__

"""Run checks, in this process or in worker processes that may die."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import pickle
import tempfile
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from untuned.testing.conformance import checks as _registered  # noqa: F401
from untuned.testing.conformance.check import CHECKS, Check, DoesNotApply, Harm
from untuned.testing.conformance.checks.processes import World
from untuned.testing.conformance.target import CAPABILITIES, Target, TargetError

GRACE = 3.0  # seconds that the other process of a check has to say what went wrong for it


@dataclasses.dataclass(frozen=True)
class Result:
    """How a check ended. `remark`: what a user would suffer, why it does not apply, or what was measured."""

    check: str
    status: Literal["passed", "failed", "expected failure", "does not apply"]
    remark: str
    seconds: float

    def judged(self, expected: Mapping[str, str]) -> Result:
        """The same if `expected`, names of checks with reasons, has some to fail: one that passes fails, then."""
        reason = expected.get(self.check)
        if reason is None or self.status == "does not apply":
            return self
        if self.status == "passed":
            return dataclasses.replace(self, status="failed", remark=f"it passes, but was to fail: {reason}")
        return dataclasses.replace(self, status="expected failure", remark=f"{reason} ({self.remark})")


def run_check(check: Check, target: Target, world: World | None = None) -> Result:
    """Run a check in this process; `target` has all its capabilities."""
    since = time.perf_counter()
    status, remark = _outcome(check, target, world)
    return Result(check.name, status, remark, time.perf_counter() - since)


def _outcome(check: Check, target: Target, world: World | None) -> tuple[Any, str]:
    for capability in check.needs:
        if not target.can(capability):
            return "does not apply", f"only where {CAPABILITIES[capability]}"
    random, grad, default = torch.get_rng_state(), torch.is_grad_enabled(), torch.get_default_dtype()
    torch.manual_seed(0)
    try:
        with warnings.catch_warnings(action="ignore"):
            remark = check.run(target, world) if world else check.run(target)
        return "passed", remark or ""
    except Harm as harm:
        return "failed", str(harm)
    except DoesNotApply as reason:
        return "does not apply", str(reason)
    except Exception as error:
        return "failed", f"{check.harm}: {_first_line(error)}"
    finally:
        torch.set_grad_enabled(grad)
        torch.set_default_dtype(default)
        torch.set_rng_state(random)


def _first_line(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    where = traceback.extract_tb(error.__traceback__)[-1]
    said = f": {text[:160]}" if text else f" in {Path(where.filename).name}, line {where.lineno}"
    return type(error).__name__ + said


class Pool:
    """Worker processes of one thread each; a check that hangs or dies costs its worker, which is replaced.

    A worker serves many checks and targets, because importing torch takes longer than all of them. A check of two
    processes is given to two workers at once. Use it in a `with` statement: no worker outlives the block.
    """

    def __init__(self, workers: int = 2, timeout: float = 60.0) -> None:
        self._workers = [_Worker(timeout) for _ in range(max(workers, max(c.processes for c in CHECKS.values())))]

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:
            worker.kill()

    def detect(self, target: Target) -> Target:
        """The target with all its capabilities; raises `TargetError` if it cannot do a step."""
        worker = self._workers[0]
        worker.send(("detect", target))
        answer = worker.answer()
        if isinstance(answer, str):
            raise TargetError(f"{target.name} cannot be tried: {answer}")
        if isinstance(answer, TargetError):
            raise answer
        return answer

    def run(self, target: Target, names: Sequence[str]) -> Iterator[Result]:
        """The results as they come; those of several processes last."""
        queue = deque(name for name in names if CHECKS[name].processes == 1)
        busy: dict[_Worker, str] = {}
        while queue or busy:
            for worker in self._workers:
                if queue and worker not in busy:
                    busy[worker] = queue.popleft()
                    worker.send((busy[worker], target, None))
            wait([w.connection for w in busy], timeout=min(w.remaining() for w in busy))
            for worker, name in list(busy.items()):
                if worker.connection.poll() or not worker.remaining():
                    del busy[worker]
                    yield self._result(name, worker.answer(), worker)
        for name in names:
            if CHECKS[name].processes > 1:
                yield self._together(target, name)

    def _together(self, target: Target, name: str) -> Result:
        team = self._workers[: CHECKS[name].processes]
        with tempfile.TemporaryDirectory() as folder:
            for rank, worker in enumerate(team):
                worker.send((name, target, World(rank, len(team), Path(folder))))
            wait([w.connection for w in team], timeout=team[0].remaining())
            first = sorted(team, key=lambda w: not w.connection.poll())
            results = [self._result(name, first[0].answer(), first[0])]
            wait_for = None if results[0].status == "passed" else GRACE
            results += [self._result(name, worker.answer(wait_for), worker) for worker in first[1:]]
        return next((r for r in results if r.status == "failed"), results[0])

    def _result(self, name: str, answer: Any, worker: _Worker) -> Result:
        if isinstance(answer, Result):
            return answer
        return Result(name, "failed", f"{CHECKS[name].harm}: {answer}", worker.elapsed())


class _Worker:
    """The parent's end of a worker process."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.process: Any = None
        self.connection: Any = None
        self.since = 0.0

    def send(self, job: Any) -> None:
        if self.process is None or not self.process.is_alive():
            context = multiprocessing.get_context("spawn")
            self.connection, theirs = context.Pipe()
            self.process = context.Process(target=_serve, args=(theirs,))
            self.process.start()
            theirs.close()
            try:
                self.connection.recv()  # it has imported torch: the time of the check starts now
            except EOFError:
                raise RuntimeError(
                    'a worker process cannot start: a script that uses them needs if __name__ == "__main__":'
                ) from None
        self.since = time.perf_counter()
        with contextlib.suppress(OSError):  # it died just now: answer() will say so
            self.connection.send(job)

    def elapsed(self) -> float:
        return time.perf_counter() - self.since

    def remaining(self) -> float:
        return max(0.0, self.timeout - self.elapsed())

    def answer(self, patience: float | None = None) -> Any:
        """What the worker sends in time; a sentence if it does not or dies, and then it is gone."""
        try:
            if self.connection.poll(self.remaining() if patience is None else patience):
                return self.connection.recv()
            reason = f"it does not end within {self.timeout:g} s"
        except (EOFError, OSError):
            self.process.join()
            reason = f"it ends the Python process with exit code {self.process.exitcode}"
        self.kill()
        return reason

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.connection.close()
            self.process = None


def _serve(connection: Connection) -> None:
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        connection.send("ready")
        while True:
            kind, target, *rest = connection.recv()
            if dist.is_initialized():
                dist.destroy_process_group()  # of an earlier check that failed
            if kind != "detect":
                connection.send(run_check(CHECKS[kind], target, *rest))
                continue
            try:
                with warnings.catch_warnings(action="ignore"):
                    connection.send(target.with_capabilities())
            except TargetError as error:
                connection.send(error)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def check_optimizer(
    factory: str | Callable[..., Any],
    *,
    options: dict[str, Any] | None = None,
    only: Sequence[str] | None = None,
    expected: dict[str, str] | None = None,
    **capabilities: bool,
) -> list[Result]:
    """Run the conformance checks on an optimizer in this process; `AssertionError` says what its users would suffer.

    factory: a class or function of parameters and options, or what `untuned check` takes. options: given to it. only:
    names of checks, by default all. expected: checks that are known to fail, each with its reason; if one passes, that
    is a failure too. capabilities: those of `CAPABILITIES` that are not to be detected. Checks of two processes need a
    factory that can be pickled, and do not apply to others.

    >>> import torch
    >>> from untuned.testing import check_optimizer
    >>> [r.status for r in check_optimizer(torch.optim.Adam, options={"lr": 0.01}, only=["two_groups", "resume"])]
    ['passed', 'passed']
    """
    chosen, expected = list(only or CHECKS), expected or {}
    if unknown := [name for name in (*chosen, *expected) if name not in CHECKS]:
        raise ValueError(f"no check is called {unknown[0]!r}; there are {', '.join(CHECKS)}.")
    with warnings.catch_warnings(action="ignore"):
        target = Target(factory, options or {}, capabilities).with_capabilities()
    results = [run_check(CHECKS[name], target) for name in chosen if CHECKS[name].processes == 1]
    if together := [name for name in chosen if CHECKS[name].processes > 1]:
        results += _in_processes(target, together)
    results = [r.judged(expected) for r in results]
    if wrong := [f"{r.check}: {r.remark}" for r in results if r.status == "failed"]:
        raise AssertionError("\n".join([f"{target.name} fails {len(wrong)} of {len(results)} checks.", *wrong]))
    return results


def _in_processes(target: Target, names: list[str]) -> list[Result]:
    try:
        pickle.dumps(target)
    except Exception:
        return [Result(name, "does not apply", "the factory cannot be pickled", 0.0) for name in names]
    with Pool() as pool:
        return list(pool.run(target, names))

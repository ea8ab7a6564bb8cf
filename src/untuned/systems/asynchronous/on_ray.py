"""Asynchronous training with Ray actors as workers, on this machine or on the nodes of a cluster."""

from __future__ import annotations

import functools
import importlib
import os
import platform
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch

from untuned._version import __version__
from untuned.systems.asynchronous.exchange import Back, CallExchange, Lost, Run, Watch
from untuned.systems.asynchronous.messages import Answer, Compute, Gradient, Worker
from untuned.systems.asynchronous.server import Server

_VERSIONS = {"untuned": __version__, "torch": torch.__version__.split("+")[0]}


def train(
    server: Server,
    work: Callable[[int], Compute],
    *,
    timeout: float = 600.0,
    silence: float | None = None,
    watch: Watch | None = None,
    restarts: int = 0,
    cpus: float = 1.0,
) -> Run:
    """Run a server in this process and its workers as actors of a Ray cluster, one thread each, until it is done.

    The cluster is the one that this process is connected to, else that of RAY_ADDRESS, else the one that `ray start`
    has started on this machine, else a local one for this run. An actor that dies, with or without its node, is lost,
    and so is one whose gradient cannot be computed; the others go on. `replay(server.trace, ...)` repeats the run to
    the bit on a processor of the same kind.

    Args:
        server: one with `steps`; on the CPU.
        work: called in each actor with the worker's number; what it returns computes gradients. It is pickled, so nodes
            must be able to import its module.
        timeout: seconds that the actors may take to be ready, and that any gradient may take.
        silence: an actor that has not answered for so many seconds counts as lost, and is heard again if it answers
            after all; None waits for `timeout`.
        watch: called with the server and the seconds since the start after every gradient that was applied.
        restarts: how often Ray starts an actor anew that has died; it then rejoins with the present weights.
        cpus: of the cluster's, for each actor.

    Raises:
        RuntimeError: Ray is not installed, or the cluster cannot be used, has no room for the actors, or has another
            version of untuned or torch; or an actor cannot begin.
        ValueError: the server has no steps to end at.
    """
    ray = _ray()
    if server.steps is None:
        raise ValueError("on_ray.train: nothing ends it; give the server steps.")
    theirs = ray.is_initialized()
    if not theirs:
        _connect(ray, server.workers, cpus)
    threads, actors = torch.get_num_threads(), list[Any]()
    torch.set_num_threads(1)
    try:
        kind = ray.remote(num_cpus=cpus, max_restarts=restarts, max_task_retries=0)(_Actor)
        actors += [kind.remote(worker, work, _VERSIONS) for worker in range(server.workers)]
        _await(ray, actors, timeout)
        return _Exchange(ray, server, actors, timeout, silence, watch).run()
    finally:
        torch.set_num_threads(threads)
        for actor in actors:
            ray.kill(actor)
        if not theirs:
            ray.shutdown()


class _Exchange(CallExchange):
    """A call for each piece of work; what it returns, or that it failed, comes by a thread of Ray's."""

    def __init__(
        self, ray: Any, server: Server, actors: list[Any], timeout: float, silence: float | None, watch: Watch | None
    ) -> None:
        super().__init__(server, timeout, silence, watch)
        self.ray, self.actors = ray, actors

    def listen(self, worker: int) -> None:
        answer = self.given[worker]
        call = self.actors[worker].respond.remote(answer.index, answer.draw, answer.weights)
        call.future().add_done_callback(functools.partial(self._arrived, worker))

    def _arrived(self, worker: int, call: Future[Any]) -> None:
        try:
            found = call.result()
        except self.ray.exceptions.ActorUnavailableError:  # it died, and Ray starts it anew
            self.inbox.put(Lost(worker, "died", coming=True))
            again = self.actors[worker].ready.options(max_task_retries=-1).remote()
            again.future().add_done_callback(functools.partial(self._there_again, worker))
        except self.ray.exceptions.RayError as error:
            self.inbox.put(Lost(worker, _why(self.ray, error)))
        else:
            self.inbox.put(Gradient(worker, *found))

    def _there_again(self, worker: int, call: Future[Any]) -> None:
        error = call.exception()
        self.inbox.put(Back(worker) if error is None else Lost(worker, _why(self.ray, error)))


class _Actor:
    """A worker in a process of Ray's."""

    def __init__(self, worker: int, work: Callable[[int], Compute], versions: dict[str, str]) -> None:
        for package, version in versions.items():
            if _VERSIONS[package] != version:
                found = f"{package} {_VERSIONS[package]}, not {version}"
                raise RuntimeError(f"node {platform.node()} has {found}; install the same on every node")
        torch.set_num_threads(1)
        self.respond_to = Worker(worker, work(worker))

    def ready(self) -> None:
        pass

    def respond(self, index: int, draw: int, weights: torch.Tensor) -> tuple[int, int, int, torch.Tensor]:
        """Index, draw, number and gradient."""
        sent = self.respond_to(Answer(self.respond_to.worker, index, draw, weights))
        return sent.index, sent.draw, sent.number, sent.gradient


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f'on_ray.train: {error.name} is missing, which the extra ray brings; from the clone: pip install ".[ray]"'
        ) from error


def _connect(ray: Any, workers: int, cpus: float) -> None:
    """Join the cluster there is, or start a local one with room for the workers."""
    note = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")  # of `ray start`
    where = os.environ.get("RAY_ADDRESS", "") or (note.read_text().strip() if note.exists() else "")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a local cluster reports to nobody
    options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    local = where in ("", "local")
    if local:
        options |= {"address": "local", "num_cpus": max(os.cpu_count() or 1, int(workers * cpus + 1))}
    try:
        ray.init(**options)
    except Exception as error:  # OSError, RuntimeError for other versions, ValueError for a bad address
        cluster = "a local Ray cluster" if local else f"the Ray cluster at {where}"
        raise RuntimeError(f"on_ray.train: {cluster} cannot be used: {_line(error)}") from error


def _await(ray: Any, actors: list[Any], timeout: float) -> None:
    """Until every actor is there."""
    calls = [actor.ready.remote() for actor in actors]
    ready, waiting = ray.wait(calls, num_returns=len(calls), timeout=timeout)
    for call in ready:
        try:
            ray.get(call)
        except ray.exceptions.RayError as error:
            raise RuntimeError(f"on_ray.train: worker {calls.index(call)} {_why(ray, error)}.") from error
    if waiting:
        room = f"the cluster has {ray.cluster_resources().get('CPU', 0):g} CPUs in all"
        raise RuntimeError(
            f"on_ray.train: {len(waiting)} of {len(actors)} actors were not ready within {timeout:g} s; {room}."
        )


def _why(ray: Any, error: Any) -> str:
    """What became of a worker, as a verb with what belongs to it."""
    if isinstance(error, ray.exceptions.RayTaskError):
        return f"raised {type(error.cause).__name__}: {_line(error.cause)}"
    if isinstance(error, ray.exceptions.ActorDiedError):
        return f"could not begin: {str(error).strip().splitlines()[-1]}" if "creation task" in str(error) else "died"
    return f"failed: {_line(error)}"


def _line(error: BaseException) -> str:
    """What the error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__

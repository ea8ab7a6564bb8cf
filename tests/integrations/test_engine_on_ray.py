"""Asynchronous training with Ray actors: the checks of all engines, actors that come back, and a cluster too small."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator

import asynchronous_workers
import engine_checks
import pytest
import torch
from engine_checks import EngineChecks, Ran, server

from untuned.systems.asynchronous import on_ray, replay

ray = pytest.importorskip("ray")

pytestmark = [pytest.mark.integrations, pytest.mark.timeout(300), pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """A local one for all tests; its processes find the modules of this test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def ran(cluster: None) -> Ran:
    return engine_checks.ran(on_ray.train, "died")


class TestRay(EngineChecks):
    pass


def test_an_actor_that_has_died_comes_back_with_the_present_weights() -> None:
    one = server()
    one.steps = 20_000
    killed, last, gaps = functools.partial(engine_checks.work, moment=0.1, extra=False), [0], list[int]()

    def watch(server: engine_checks.Server, _: float) -> None:
        """End the run when worker 1 has delivered again after a pause."""
        if server.trace[-1][0] == 1:
            gaps.append(server.index - last[0])
            last[0] = server.index
            if gaps[-1] > 50:
                server.steps = server.index

    run = on_ray.train(one, killed, timeout=60.0, watch=watch, restarts=1)
    assert gaps[-1] > 50 and len(gaps) > 1 and run.lost == {}
    again = server()
    again.steps = None
    replay(one.trace, asynchronous_workers.compute, again)
    assert torch.equal(one.weights(), again.weights())


def test_an_actor_that_cannot_begin_is_named() -> None:
    sentence = r"^on_ray\.train: worker [012] could not begin: OSError: there is no data\.$"
    with pytest.raises(RuntimeError, match=sentence):
        on_ray.train(server(), asynchronous_workers.failing, timeout=60.0)


def test_a_cluster_without_room_for_the_actors_is_refused() -> None:
    sentence = r"^on_ray\.train: 1 of 3 actors were not ready within 8 s; the cluster has 4 CPUs in all\.$"
    with pytest.raises(RuntimeError, match=sentence):
        on_ray.train(server(), asynchronous_workers.work, timeout=8.0, cpus=2.0)

"""Real engines of asynchronous training: the same run in each, and what a worker can do to one."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator

import asynchronous_workers
import engine_checks
import pytest
import torch
from engine_checks import EngineChecks, Ran, server

from untuned.systems.asynchronous import gloo, on_ray, rpc

TRAIN = {"gloo": gloo.train, "rpc": rpc.train}


@pytest.fixture(scope="module", params=list(TRAIN))
def ran(request: pytest.FixtureRequest) -> Iterator[Ran]:
    yield engine_checks.ran(TRAIN[request.param], "was killed by signal 9", extra=request.param == "gloo")
    assert not multiprocessing.active_children()
    assert not torch.distributed.is_initialized()


class TestEngines(EngineChecks):
    pass


@pytest.mark.parametrize("train", [gloo.train, rpc.train])
def test_a_server_without_an_end_is_refused(train) -> None:
    endless = server()
    endless.steps = None
    with pytest.raises(ValueError, match=r"^(gloo|rpc)\.train: nothing ends it; give the server steps\.$"):
        train(endless, asynchronous_workers.work)


def test_without_ray_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    sentence = r'^on_ray\.train: ray is missing, which the extra ray brings; from the clone: pip install "\.\[ray\]"$'
    with pytest.raises(RuntimeError, match=sentence):
        on_ray.train(server(), asynchronous_workers.work)

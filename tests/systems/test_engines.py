"""Real engines of asynchronous training: the same run in each, and what a worker can do to one."""

from __future__ import annotations

import multiprocessing
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import asynchronous_workers
import engine_checks
import pytest
import torch
from engine_checks import EngineChecks, Ran, server

from untuned.systems.asynchronous import Run, gloo, on_ray, rpc

EXAMPLE = Path(__file__).parents[2] / "examples" / "asynchronous.py"
TRAIN = {"gloo": gloo.train, "rpc": rpc.train}


@pytest.fixture(scope="module", params=list(TRAIN))
def ran(request: pytest.FixtureRequest) -> Iterator[Ran]:
    yield engine_checks.ran(TRAIN[request.param], "was killed by signal 9", extra=request.param == "gloo")
    assert not multiprocessing.active_children()
    assert not torch.distributed.is_initialized()


class TestEngines(EngineChecks):
    pass


@pytest.mark.parametrize("train", [gloo.train, rpc.train])
def test_a_server_without_an_end_is_refused(train: Callable[..., Run]) -> None:
    endless = server()
    endless.steps = None
    with pytest.raises(ValueError, match=r"^(gloo|rpc)\.train: nothing ends it; give the server steps\.$"):
        train(endless, asynchronous_workers.work)


def test_without_ray_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    sentence = r'^on_ray\.train: ray is missing, which the extra ray brings; from the clone: pip install "\.\[ray\]"$'
    with pytest.raises(RuntimeError, match=sentence):
        on_ray.train(server(), asynchronous_workers.work)


@pytest.mark.slow  # processes import torch
def test_over_rpc_a_worker_that_raises_and_a_silent_one_are_lost() -> None:
    one = server()
    one.steps = 10_000
    run = rpc.train(one, asynchronous_workers.raising_or_hanging, timeout=60.0, silence=1.0)
    assert run.lost == {
        0: "raised OSError: the disk is gone",
        1: "was silent for 1 s",
        2: "raised OSError: the disk is gone",
    }
    assert one.failure.startswith("no worker is left: worker 0 raised OSError: the disk is gone; worker 1 was silent")
    assert 10 < one.index < 100


@pytest.mark.slow  # processes import torch
def test_over_gloo_a_gradient_of_another_shape_ends_its_worker_and_not_the_run(
    capfd: pytest.CaptureFixture[str],
) -> None:
    one = server()
    run = gloo.train(one, asynchronous_workers.cutting, timeout=60.0)
    assert run.lost == {1: "ended with exit code 1"} and one.index == engine_checks.STEPS
    assert "worker 1: the gradient has shape (1,), not (7,)." in capfd.readouterr().err


@pytest.mark.slow  # trains a network
@pytest.mark.parametrize("engine", ["gloo", "rpc"])
def test_the_example_trains_and_its_trace_is_replayed(engine: str) -> None:
    command = [sys.executable, str(EXAMPLE), "--engine", engine, "--methods", "OrMo", "SSGDm", "--seconds", "3"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    found = re.findall(r"^(OrMo|SSGDm): \[(\d+), (\d+), (\d+)\] gradients, replayed to the bit: (\w+)$", said, re.M)
    (first, slow, *quick, replayed), (second, *rounds, also) = found
    assert (first, second, replayed, also) == ("OrMo", "SSGDm", "True", "True")
    assert all(int(count) > int(slow) for count in quick) and len(set(rounds)) == 1
    losses = [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", said.partition("SSGDm")[0])]
    assert losses[-1] < 0.9 * losses[0]

"""What the sinks wrote, read back from the files and stores of the real loggers."""

from __future__ import annotations

import json
import runpy
import sqlite3
import struct
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import untuned
from untuned.integrations import loggers

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("default")]

Curves = dict[str, dict[int, float]]  # by name and step


def train(*sinks: loggers.Sink) -> Curves:
    """Five steps of MoMo, logged at every second; returns what should have been written."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = untuned.MoMo(model.parameters(), lr=10.0, execution="reference")
    x, y = torch.randn(8, 3), torch.randn(8, 2)
    expected: Curves = defaultdict(dict)
    for step in range(1, 6):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step(loss=loss)
        if step % 2:
            for sink in sinks:
                sink(optimizer.metrics(), step)
            for name, value in optimizer.metrics().items():
                expected[f"optimizer/{name}"][step] = value
    assert len(set(expected["optimizer/lr_effective"].values())) == 3
    assert max(expected["optimizer/lr_effective"].values()) < 10.0
    return dict(expected)


def agree(found: Curves, expected: Curves, rel: float = 1e-12) -> None:
    assert found.keys() == expected.keys()
    for name, curve in expected.items():
        assert found[name].keys() == curve.keys() == {1, 3, 5}
        assert found[name] == pytest.approx(curve, rel=rel), name


def test_any_callable_is_a_sink() -> None:
    found: Curves = defaultdict(dict)

    def sink(values: Any, step: int) -> None:
        for name, value in values.items():
            found[f"optimizer/{name}"][step] = value

    agree(found, train(sink))


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from torch.utils.tensorboard import SummaryWriter
    with SummaryWriter(str(tmp_path)) as writer:
        expected = train(loggers.tensorboard(writer))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    names = events.Tags()["scalars"]
    agree({name: {e.step: e.value for e in events.Scalars(name)} for name in names}, expected, rel=1e-6)


def wandb_records(data: bytes) -> Iterator[bytes]:
    """The file of an offline run: LevelDB's log format, 32 KiB blocks, after a header of seven bytes."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        if size == 0 or at + 7 + size > len(data):
            return  # not yet written
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def test_wandb(tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    settings = wandb.Settings(silent=True, x_disable_stats=True, x_disable_meta=True)
    with wandb.init(mode="offline", dir=tmp_path, project="test", settings=settings) as run:
        expected = train(loggers.wandb(run))
    file, deadline, kinds = next(tmp_path.rglob("*.wandb")), time.monotonic() + 60, set[str]()
    while "exit" not in kinds:  # W&B's service writes the file, and may still do so when the run is finished
        assert time.monotonic() < deadline
        found: Curves = defaultdict(dict)
        for data in wandb_records(file.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            kinds.add(str(record.WhichOneof("record_type")))
            for item in record.history.item:
                name = item.key or "/".join(item.nested_key)
                if name.startswith("optimizer/"):
                    found[name][record.history.step.num] = json.loads(item.value_json)
    agree(found, expected)


def test_mlflow(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    with mlflow.start_run() as active:
        expected = train(loggers.mlflow())
    with mlflow.start_run() as other:
        train(loggers.mlflow(active.info.run_id, prefix="again/"))
    client = mlflow.MlflowClient()
    assert client.get_run(other.info.run_id).data.metrics == {}
    for prefix in ("optimizer/", "again/"):
        histories = {
            name: client.get_metric_history(active.info.run_id, name.replace("optimizer/", prefix)) for name in expected
        }
        agree({name: {m.step: m.value for m in history} for name, history in histories.items()}, expected)


def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))  # read when trackio is imported, so in a process of its own
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    curves = json.loads(done.stdout.splitlines()[-1])
    expected = {name: {int(step): value for step, value in curve.items()} for name, curve in curves.items()}
    with sqlite3.connect(next(tmp_path.rglob("*.db"))) as base:
        rows = base.execute("select step, metrics from metrics").fetchall()
    found: Curves = defaultdict(dict)
    for step, values in rows:
        for name, value in json.loads(values).items():
            found[name][step] = value
    agree(found, expected)


def test_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    example = Path(__file__).parents[2] / "examples" / "loggers.py"
    monkeypatch.setattr(sys, "argv", [str(example), "tensorboard", "--out", str(tmp_path)])
    runpy.run_path(str(example), run_name="__main__")
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [int(step) for step, _ in printed] == list(range(20, 201, 20))
    assert all(0 < float(lr) < 1 for _, lr in printed)
    assert list(tmp_path.glob("events.*"))


if __name__ == "__main__":
    import trackio

    run = trackio.init("test", embed=False)
    written = train(loggers.trackio(run))
    trackio.finish()
    print(json.dumps(written))

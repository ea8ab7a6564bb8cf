"""The Ray Train example on a local cluster of two workers: one is killed, the run fails and is started again."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

pytestmark = [pytest.mark.integrations, pytest.mark.timeout(500)]
EXAMPLES = Path(__file__).parents[2] / "examples"
CONFIG = {"optimizer": "momo_adam", "options": {"lr": 1.0, "execution": "reference"}, "steps": 60, "report_every": 10}


def test_a_killed_run_ends_as_one_without_a_break(tmp_path: Path) -> None:
    pytest.importorskip("ray.train.torch")
    search = os.pathsep.join([str(EXAMPLES), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": search, "OMP_NUM_THREADS": "1"}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}  # nothing sent, no token in the home
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=480
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "begun").read_text().split() == ["0", "20"]
    ends = {}
    for name in ("whole", "broken"):
        metrics, where = json.loads((tmp_path / f"{name}.json").read_text())
        assert metrics["step"] == 60 and 0 < metrics["lr_effective"] < 1
        ends[name] = torch.load(Path(where, "state.pt"), weights_only=True)
    assert ends["whole"]["step"] == ends["broken"]["step"] == 60
    for key, value in ends["whole"]["model"].items():
        assert torch.equal(value, ends["broken"]["model"][key])
    for i, held in ends["whole"]["optimizer"]["state"].items():
        for key, value in held.items():
            assert torch.equal(value, ends["broken"]["optimizer"]["state"][i][key])


def crashing(config: dict[str, Any]) -> None:
    """The example's loop, in which worker 1 dies once, at step 25."""
    from ray import train

    out = Path(config["out"])
    if train.get_context().get_world_rank() == 0:
        checkpoint, done = train.get_checkpoint(), 0
        if checkpoint:
            with checkpoint.as_directory() as folder:
                done = torch.load(Path(folder, "state.pt"), weights_only=True)["step"]
        with (out / "begun").open("a") as file:
            file.write(f"{done}\n")

    def die(optimizer: Any, args: Any, kwargs: Any) -> None:
        here = train.get_context().get_world_rank() == 1 and optimizer.param_groups[0]["steps"] == 25
        if here and not (out / "died").exists():
            (out / "died").touch()
            time.sleep(3)  # Ray hears of the last report
            os.kill(os.getpid(), signal.SIGKILL)

    hook = register_optimizer_step_pre_hook(die)
    importlib.import_module("ray_train").loop(config)
    hook.remove()


def main(out: Path) -> None:
    import ray
    from ray import train
    from ray.train.torch import TorchTrainer

    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)

    def fit(name: str, loop: Any) -> Any:
        return TorchTrainer(
            loop,
            train_loop_config=CONFIG | {"out": str(out)},
            scaling_config=train.ScalingConfig(num_workers=2),
            run_config=train.RunConfig(name=name, storage_path=str(out)),
        ).fit()

    ends = {"whole": fit("whole", importlib.import_module("ray_train").loop)}
    try:
        fit("broken", crashing)
    except Exception as error:
        print(f"as it should be: {type(error).__name__}")
    else:
        raise AssertionError("the death of a worker should have ended the run")
    ends["broken"] = fit("broken", crashing)
    for name, end in ends.items():
        (out / f"{name}.json").write_text(json.dumps([end.metrics, end.checkpoint.path]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

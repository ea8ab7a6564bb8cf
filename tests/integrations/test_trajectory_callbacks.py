"""The trajectory recorder in real runs of the Trainer and of Lightning, beside plain loops."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from untuned.diagnostics import TrajectoryRecorder

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("default")]

EVERY = 2


class Regression(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1, dtype=torch.float64)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.layer(x).squeeze(1) - y).square().mean()}


def points(count: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return [{"x": row, "y": row.sum()} for row in x]


def by_hand(steps: int) -> tuple[nn.Module, TrajectoryRecorder]:
    """Steps of two samples each, in order, and what a recorder says of them."""
    model, rows = Regression(), points(12)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    recorder = TrajectoryRecorder(model, every=EVERY, center="init")
    recorder.attach(optimizer)
    for k in range(steps):
        batch = rows[2 * k % 12 : 2 * k % 12 + 2]
        optimizer.zero_grad()
        model(torch.stack([row["x"] for row in batch]), torch.stack([row["y"] for row in batch]))["loss"].backward()
        optimizer.step()
    return model, recorder


def agree(found: TrajectoryRecorder | None, expected: TrajectoryRecorder) -> None:
    assert found is not None and found.attached is None
    assert found.series().steps.tolist() == expected.series().steps.tolist()
    for name in ("norm", "distance", "update", "product"):
        assert np.allclose(getattr(found.series(), name), getattr(expected.series(), name), rtol=1e-9, equal_nan=True)
    assert found.summary()["all"].mds == pytest.approx(expected.summary()["all"].mds, rel=1e-9)


# ------------------------------------------------------------------ transformers


def trained(folder: Path, callback: Any, resume: Any = None, **changes: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "train_sampling_strategy": "sequential",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "num_train_epochs": 2,
        "save_strategy": "steps",
        "save_steps": 5,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }
    model = Regression()
    how = {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9})}
    trainer = transformers.Trainer(
        model,
        transformers.TrainingArguments(**settings | changes),
        train_dataset=points(12),
        callbacks=[] if callback is None else [callback],
        **how,
    )
    trainer.train(resume_from_checkpoint=resume)
    return model


def test_the_trainer_records_what_a_plain_loop_does_and_resumes(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from untuned.integrations.huggingface import TrajectoryCallback

    def callback(**more: Any) -> Any:
        return TrajectoryCallback(every=EVERY, center="init", **more)

    whole, alone = callback(), trained(tmp_path / "alone", None)
    model = trained(tmp_path / "a", whole)
    assert torch.equal(model.layer.weight, alone.layer.weight)  # pyright: ignore[reportAttributeAccessIssue]
    agree(whole.recorder, by_hand(12)[1])

    resumed = callback()
    trained(tmp_path / "a", resumed, str(tmp_path / "a" / "checkpoint-5"))
    agree(resumed.recorder, by_hand(12)[1])

    (tmp_path / "a" / "checkpoint-10").rename(tmp_path / "moved")
    elsewhere = callback(resume=tmp_path / "moved")
    trained(tmp_path / "a", elsewhere, str(tmp_path / "moved"))
    agree(elsewhere.recorder, by_hand(12)[1])

    (tmp_path / "moved" / "trajectory.pt").unlink()
    late = callback(resume=tmp_path / "moved")
    with pytest.warns(UserWarning, match=r"there is no .*trajectory.pt, so that the trajectory begins here"):
        trained(tmp_path / "a", late, str(tmp_path / "moved"))
    assert late.recorder is not None and late.recorder.series().steps.tolist() == [10, 12]


# ------------------------------------------------------------------ Lightning


def test_lightning_records_what_a_plain_loop_does_and_resumes(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pl = pytest.importorskip("lightning.pytorch", exc_type=ImportError)
    from untuned.integrations.lightning import TrajectoryCallback

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Task(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = Regression()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            return self.model(**batch)["loss"]

    def fit(epochs: int, callbacks: list[Any], start: Any = None) -> tuple[Any, Any]:
        rows, task = points(12), Task()
        batches = [{k: torch.stack([row[k] for row in rows[i : i + 2]]) for k in "xy"} for i in range(0, 12, 2)]
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            callbacks=callbacks,
        )
        trainer.fit(task, torch.utils.data.DataLoader(batches, batch_size=None), ckpt_path=start)  # pyright: ignore
        return trainer, task

    first = TrajectoryCallback(every=EVERY, center="init")
    trainer, _ = fit(1, [first])
    agree(first.recorder, by_hand(6)[1])
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    second = TrajectoryCallback(every=EVERY, center="init")
    _, task = fit(2, [second], tmp_path / "one.ckpt")
    agree(second.recorder, by_hand(12)[1])
    _, alone = fit(2, [])
    assert torch.equal(task.model.layer.weight, alone.model.layer.weight)

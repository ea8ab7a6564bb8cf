"""Real Lightning runs of a tiny network, beside plain torch loops on the same batches."""

from __future__ import annotations

import ast
import copy
import logging
import runpy
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kill_and_resume
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader

import untuned

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its dependencies
    pl = pytest.importorskip("lightning.pytorch", exc_type=ImportError)

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision

from untuned.integrations.lightning import OptimizerCallback

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("default")]
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

Batch = dict[str, Tensor]
Build = Any  # parameters -> optimizer


def net(dtype: torch.dtype = torch.float64, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 2)).to(dtype)


def batches(count: int, first: int = 0, dtype: torch.dtype = torch.float64) -> list[Batch]:
    """Points of a plane curve, four in a batch, with their numbers."""
    rows = []
    for i in range(first, first + count):
        generator = torch.Generator().manual_seed(i)
        x = torch.randn(4, 3, generator=generator, dtype=torch.float64)
        y = torch.stack([torch.sin(2 * x[:, 0]), x[:, 1] * x[:, 2]], 1)
        rows.append({"x": x.to(dtype), "y": y.to(dtype), "sample_ids": torch.arange(4 * i, 4 * i + 4) % 20})
    return rows


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    return mse_loss(model(batch["x"]), batch["y"])


class Task(pl.LightningModule):
    """The network; `build` makes its optimizer."""

    def __init__(self, model: nn.Module, build: Build) -> None:
        super().__init__()
        self.model, self.build = model, build

    def configure_optimizers(self) -> Any:
        return self.build(self.model.parameters())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return loss_of(self.model, batch)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("validation", loss_of(self.model, batch), batch_size=1)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("test", loss_of(self.model, batch), batch_size=1)


def loader(rows: list[Batch]) -> DataLoader[Any]:
    return DataLoader(rows, batch_size=None)  # pyright: ignore[reportArgumentType]


def trainer(folder: Path, callbacks: list[Any] | None = None, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": folder,
        "callbacks": [OptimizerCallback(), *(callbacks or [])],
    }
    return pl.Trainer(**settings | changes)


def builder(name: str, **options: Any) -> Build:
    return lambda params: untuned.create(params, name, **{"execution": "reference"} | options)


def vector(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


def plain(model: nn.Module, optimizer: Any, windows: list[list[Batch]], divisor: int, scaler: Any = None) -> None:
    """The same training by hand: the sum of the window's losses over `divisor` is differentiated and given."""
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    for window in windows:
        optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for batch in window:
            loss = loss_of(model, batch) / divisor
            scaler.scale(loss).backward()
            total += loss.detach()
        scaler.step(optimizer, loss=total)
        scaler.update()


# ------------------------------------------------------------------ the loss


@pytest.mark.parametrize("name", ["momo", "momo_adam", "sps", "alig"])
def test_accumulation_gives_the_mean_of_the_micro_batches(name: str, tmp_path: Path) -> None:
    options = {"lr": 10.0 if name != "momo_adam" else 0.1}  # the cap of alig and sps is out of reach: the loss decides
    data = batches(8)
    task = Task(net(), builder(name, **options))
    trainer(tmp_path, accumulate_grad_batches=3).fit(task, loader(data))
    by_hand, last_only = net(), net()
    # Lightning divides the last window's two losses by three as well, and so its gradient.
    windows = [data[:3], data[3:6], data[6:]]
    plain(by_hand, builder(name, **options)(by_hand.parameters()), windows, 3)
    assert torch.allclose(vector(task.model), vector(by_hand), rtol=1e-12, atol=1e-14)

    optimizer = builder(name, **options)(last_only.parameters())  # what the closure of Lightning would give
    for window in windows:
        optimizer.zero_grad()
        for batch in window:
            loss = loss_of(last_only, batch) / 3
            loss.backward()
        optimizer.step(loss=loss)
    assert (vector(last_only) - vector(by_hand)).abs().max() > 1e-3


def test_half_precision_gives_the_unscaled_loss_and_forgets_that_of_a_skipped_step(tmp_path: Path) -> None:
    def scaler() -> Any:  # too large at first, then right
        return torch.amp.GradScaler("cpu", init_scale=2.0**60, backoff_factor=2.0**-50)

    data = batches(8, dtype=torch.float32)
    build = builder("momo", lr=10.0)
    task = Task(net(torch.float32), build)
    mixed = MixedPrecision("16-mixed", device="cpu", scaler=scaler())
    optimizers: list[Any] = []
    task.build = lambda params: optimizers.append(build(params)) or optimizers[0]
    trainer(tmp_path, plugins=mixed, accumulate_grad_batches=2).fit(task, loader(data))
    by_hand = net(torch.float32)
    optimizer = build(by_hand.parameters())
    with torch.autocast("cpu", torch.float16, cache_enabled=False):
        plain(by_hand, optimizer, [data[i : i + 2] for i in range(0, 8, 2)], 2, scaler())
    assert optimizers[0].metrics()["steps"] == 3  # of four
    assert optimizers[0].metrics() == pytest.approx(optimizer.metrics(), rel=1e-6)
    assert torch.allclose(vector(task.model), vector(by_hand), rtol=1e-6)


def test_bfloat16_autocast(tmp_path: Path) -> None:
    data = batches(6, dtype=torch.float32)
    task = Task(net(torch.float32), builder("momo_adam", lr=0.1))
    trainer(tmp_path, precision="bf16-mixed").fit(task, loader(data))
    by_hand = net(torch.float32)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        plain(by_hand, builder("momo_adam", lr=0.1)(by_hand.parameters()), [[batch] for batch in data], 1)
    assert torch.allclose(vector(task.model), vector(by_hand), rtol=1e-6)


class Manual(Task):
    """Two optimizers: the first one's loss comes by `manual_backward`, the second is given its own, twice as large."""

    def __init__(self, model: nn.Module, build: Build) -> None:
        super().__init__(model, build)
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return [self.build(self.model[0].parameters()), self.build(self.model[3].parameters())]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        first, second = self.optimizers()
        first.zero_grad()
        self.manual_backward(0.5 * loss_of(self.model, batch))
        self.manual_backward(0.25 * loss_of(self.model, batch))
        first.step()
        second.zero_grad()
        loss = loss_of(self.model, batch)
        self.manual_backward(loss)
        second.step(loss=2 * loss)


def test_manual_optimization(tmp_path: Path) -> None:
    data, build = batches(5), builder("sps", lr=10.0)
    task = Manual(net(), build)
    trainer(tmp_path).fit(task, loader(data))
    by_hand = net()
    first, second = build(by_hand[0].parameters()), build(by_hand[3].parameters())
    for batch in data:
        first.zero_grad()
        loss = 0.75 * loss_of(by_hand, batch)
        loss.backward()
        first.step(loss=loss)
        second.zero_grad()
        loss = loss_of(by_hand, batch)
        loss.backward()
        second.step(loss=2 * loss)
    assert torch.allclose(vector(task.model), vector(by_hand), rtol=1e-12, atol=1e-14)


class Numbered(Task):
    """For methods that record a number per sample: `training_step` gives the loss itself."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        each = (self.model(batch["x"]) - batch["y"]).square().mean(1)
        self.optimizers().record_loss(each, batch["sample_ids"])
        return each.mean()


def test_a_loss_that_training_step_gives_itself_stays(tmp_path: Path) -> None:
    data, build = batches(6), builder("taps", samples=20, lr=0.3)
    task = Numbered(net(), build)
    trainer(tmp_path).fit(task, loader(data))
    by_hand = net()
    optimizer = build(by_hand.parameters())
    for batch in data:
        optimizer.zero_grad()
        each = (by_hand(batch["x"]) - batch["y"]).square().mean(1)
        each.mean().backward()
        optimizer.step(loss=each, sample_ids=batch["sample_ids"])
    assert torch.allclose(vector(task.model), vector(by_hand), rtol=1e-12, atol=1e-14)


class Share(Task):
    """Every second batch, from the number of the rank on."""

    def train_dataloader(self) -> DataLoader[Any]:
        return loader(batches(8)[self.trainer.global_rank :: self.trainer.world_size])


def test_two_processes_are_as_one(tmp_path: Path) -> None:
    build = builder("momo", lr=10.0)
    task = Share(net(), build)
    two: dict[str, Any] = {"devices": 2, "strategy": "ddp_fork", "use_distributed_sampler": False}
    trainer(tmp_path, accumulate_grad_batches=2, **two).fit(task)
    by_hand, data = net(), batches(8)
    plain(by_hand, build(by_hand.parameters()), [data[:4], data[4:]], 4)
    assert torch.allclose(vector(task.model), vector(by_hand), rtol=1e-12, atol=1e-14)


def test_other_optimizers_are_left_alone(tmp_path: Path) -> None:
    data = batches(4)
    task = Task(net(), lambda params: torch.optim.AdamW(params, lr=0.1))
    trainer(tmp_path).fit(task, loader(data))
    by_hand = net()
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=0.1)
    for batch in data:
        optimizer.zero_grad()
        loss_of(by_hand, batch).backward()
        optimizer.step()
    assert torch.equal(vector(task.model), vector(by_hand))


# ------------------------------------------------------------------ the log


def test_the_log_has_the_effective_learning_rate(tmp_path: Path) -> None:
    data, build = batches(8), builder("momo", lr=10.0)
    logger = pl.loggers.CSVLogger(tmp_path)
    trainer(tmp_path, logger=logger, log_every_n_steps=2, accumulate_grad_batches=2).fit(
        Task(net(), build), loader(data)
    )
    lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    by_hand = net()
    optimizer = build(by_hand.parameters())
    expected = []
    for i in range(0, 8, 2):
        plain(by_hand, optimizer, [data[i : i + 2]], 2)
        expected.append(optimizer.metrics())
    logged = [float(row["lr_effective"]) for row in rows]
    assert logged == pytest.approx([expected[1]["lr_effective"], expected[3]["lr_effective"]], rel=1e-6)
    assert [float(row["steps"]) for row in rows] == [2.0, 4.0]
    assert len({round(m["lr_effective"], 6) for m in expected}) == 4 and logged[0] < 10.0


# ------------------------------------------------------------------ the averaged point


def test_validation_checkpoints_and_the_end_hold_the_averaged_point(tmp_path: Path) -> None:
    data, held_out, build = batches(6), batches(2, first=6), builder("schedule_free_sgd", lr=0.7)
    task = Task(net(), build)
    saved = ModelCheckpoint(tmp_path, every_n_train_steps=3, filename="{step}", save_top_k=-1)
    fitted = trainer(tmp_path, [saved], enable_checkpointing=True, val_check_interval=4, check_val_every_n_epoch=None)
    seen: list[float] = []
    task.on_validation_epoch_end = lambda: seen.append(float(fitted.callback_metrics["validation"]))  # pyright: ignore
    fitted.fit(task, loader(data), loader(held_out))

    def held_out_loss(model: nn.Module) -> float:
        with torch.no_grad():
            return sum(loss_of(model, batch).item() for batch in held_out) / 2

    by_hand = net()
    optimizer = build(by_hand.parameters())
    points: dict[int, tuple[Tensor, Tensor, float, float]] = {}
    for i, batch in enumerate(data):
        plain(by_hand, optimizer, [[batch]], 1)
        training = vector(by_hand), held_out_loss(by_hand)
        with optimizer.averaged_parameters():
            points[i + 1] = training[0], vector(by_hand), training[1], held_out_loss(by_hand)
    assert (points[3][0] - points[3][1]).abs().max() > 1e-3
    assert abs(points[4][2] - points[4][3]) > 1e-4
    assert seen == pytest.approx([points[4][3]], rel=1e-12)
    for step in (3, 6):
        held = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)
        weights = torch.cat([v.flatten() for v in held["state_dict"].values()])
        assert torch.allclose(weights, points[step][1], rtol=1e-12, atol=1e-14)
        assert not held["optimizer_states"][0]["param_groups"][0]["training"]
    assert torch.allclose(vector(task.model), points[6][1], rtol=1e-12, atol=1e-14)

    tested = fitted.test(task, loader(held_out), ckpt_path=tmp_path / "step=3.ckpt", verbose=False)
    assert tested[0]["test"] == pytest.approx(points[3][3], rel=1e-12)
    fitted.optimizers[0].train()  # as a fit that broke off leaves it; the file's weights are not its own
    fitted.validate(task, loader(held_out), ckpt_path=tmp_path / "step=3.ckpt", verbose=False)
    assert fitted.callback_metrics["validation"].item() == pytest.approx(points[3][3], rel=1e-12)


# ------------------------------------------------------------------ the example


def test_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    example = Path(__file__).parents[2] / "examples" / "lightning_training.py"
    ends = []
    for epochs in ("1", "4"):  # the second start goes on
        monkeypatch.setattr(sys, "argv", [str(example), "--out", str(tmp_path), "--epochs", epochs])
        runpy.run_path(str(example), run_name="__main__")
        ends.append(ast.literal_eval(capsys.readouterr().out.splitlines()[-1]))
    assert ends[1]["validation_loss"] < 0.5 * ends[0]["validation_loss"]
    assert 0 < ends[1]["lr_effective"] < 1
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == saved["optimizer_states"][0]["param_groups"][0]["steps"] == 4 * 32


# ------------------------------------------------------------------ kill and resume


class Loader:
    """Shuffled batches; a loader with a state is taken up where it was, in the middle of an epoch."""

    def __init__(self) -> None:
        self.batches, self.epoch, self.at = batches(10, dtype=torch.float32), 0, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        if self.at == len(self):
            self.epoch, self.at = self.epoch + 1, 0
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(self.epoch)).tolist()
        while self.at < len(self):
            self.at += 1
            yield self.batches[order[self.at - 1]]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.at = state["epoch"], state["at"]


class Resumable(Task):
    """Lightning saves no random state, so the module does."""

    def configure_optimizers(self) -> Any:
        optimizer = self.build(self.model.parameters())
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, total_iters=7)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = loss_of(self.model, batch)
        if "samples" in self.trainer.optimizers[0].param_groups[0]["method"]:
            self.optimizers().record_loss(loss, batch["sample_ids"])
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["random"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        torch.set_rng_state(checkpoint["random"])


class Breaks(pl.Callback):
    """Notes where the run began; SIGKILL between two micro-batches of step 6; the last checkpoint is of step 3."""

    def __init__(self, kill: bool) -> None:
        self.kill, self.begun_at = kill, -1

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.begun_at = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.kill and trainer.global_step == 5 and batch_idx % 2 == 0:
            kill_and_resume.die()


def train(name: str, folder: Path, kill: bool, resume: bool) -> dict[str, Any]:
    """Seven steps over an end of an epoch, with dropout, shuffling, clipping, a schedule and validations."""
    model = net(torch.float32, dropout=0.2)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    task = Resumable(model, builder(name, **kill_and_resume.options(name)))
    breaks = Breaks(kill)
    fitted = trainer(
        folder,
        [breaks, ModelCheckpoint(folder, every_n_train_steps=3, filename="last", enable_version_counter=False)],
        enable_checkpointing=True,
        max_epochs=2,
        max_steps=7,
        accumulate_grad_batches=2,
        gradient_clip_val=10.0,
        val_check_interval=4,
        check_val_every_n_epoch=None,
    )
    held_out = loader(batches(2, first=10, dtype=torch.float32))
    fitted.fit(task, Loader(), held_out, ckpt_path=folder / "last.ckpt" if resume else None, weights_only=True)
    end = {"weights": model.state_dict(), "optimizer": fitted.optimizers[0].state_dict()}
    return copy.deepcopy(end) | {"begun_at": breaks.begun_at, "start": start}


@pytest.mark.parametrize("name", untuned.list())
def test_a_killed_run_ends_as_one_without_a_break(runs: Path, name: str) -> None:
    kill_and_resume.compare(runs, name)


if __name__ == "__main__":
    kill_and_resume.main(train)

"""Real Accelerate loops, beside plain torch loops on the same batches."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kill_and_resume
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import untuned

accelerate = pytest.importorskip("accelerate")

from accelerate.utils import DataLoaderConfiguration  # noqa: E402

from untuned.integrations.accelerate import backward  # noqa: E402

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("default"), pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]


def net(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(dropout), nn.Linear(4, 1)).double()


def points(count: int) -> list[tuple[Tensor, Tensor, int]]:
    """Inputs, outputs and the number of the sample."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    y = torch.sin(2 * x[:, :1]) + torch.randn(count, 1, generator=generator, dtype=torch.float64)
    return [(x[i], y[i], i) for i in range(count)]


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    x, y, _ = batch
    return (model(x) - y).square().mean()


def vector(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


def accelerated(steps: int = 1, **options: Any) -> Any:
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    return accelerate.Accelerator(cpu=True, gradient_accumulation_steps=steps, **options)


def prepared(accelerator: Any, name: str, count: int = 10, **options: Any) -> tuple[nn.Module, Any, Any]:
    model = net()
    optimizer = untuned.create(model.parameters(), name, execution="reference", **options)
    return accelerator.prepare(model, optimizer, DataLoader(points(count), batch_size=2))


# ------------------------------------------------------------------ the loss


@pytest.mark.parametrize("name", ["momo", "taps"])
def test_the_loss_is_the_one_whose_gradient_is_applied(name: str) -> None:
    options = {"momo": {"lr": 10.0}, "taps": {"samples": 10, "lr": 0.5, "target": 0.1}}[name]
    accelerator = accelerated(steps=2)
    model, optimizer, data = prepared(accelerator, name, **options)
    for _ in range(3):
        for batch in data:
            with accelerator.accumulate(model):
                backward(accelerator, optimizer, loss_of(model, batch), sample_ids=batch[2])
                optimizer.step()
                optimizer.zero_grad()

    plain = net()
    own = untuned.create(plain.parameters(), name, execution="reference", **options)
    batches = list(DataLoader(points(10), batch_size=2))
    for _ in range(3):
        for group in (batches[:2], batches[2:4], batches[4:]):
            # Accelerate divides by 2 also where the last group has one micro-batch only: gradient and loss agree.
            loss = torch.stack([loss_of(plain, batch) for batch in group]).sum() / 2
            own.zero_grad()
            loss.backward()
            own.step(loss=loss, sample_ids=torch.cat([batch[2] for batch in group]))
    torch.testing.assert_close(vector(model), vector(plain), rtol=1e-12, atol=1e-12)
    assert optimizer.optimizer.metrics() == pytest.approx(own.metrics(), rel=1e-12)
    assert name != "momo" or own.metrics()["lr_effective"] < 9.0  # the loss decides, not the cap


def test_what_was_dropped_with_its_gradient_is_in_no_later_step() -> None:
    accelerator = accelerated()
    model, optimizer, data = prepared(accelerator, "momo", lr=10.0)
    batches = list(data)
    backward(accelerator, optimizer, 100 * loss_of(model, batches[0]))
    optimizer.zero_grad()
    loss = loss_of(model, batches[1])
    backward(accelerator, optimizer, loss)
    optimizer.step()
    assert optimizer.optimizer.metrics()["loss_avg"] == pytest.approx(loss.item(), rel=1e-12)


def test_micro_batches_count_whose_gradients_are_kept_elsewhere() -> None:
    """FSDP2 shows no p.grad until the micro-batch that synchronises; here they are put away by hand."""
    accelerator = accelerated(steps=2)
    model, optimizer, data = prepared(accelerator, "momo", lr=10.0)
    kept: list[Tensor] = []
    losses = []
    for batch in list(data)[:2]:
        with accelerator.accumulate(model):
            losses.append(loss_of(model, batch))
            backward(accelerator, optimizer, losses[-1])
            if not accelerator.sync_gradients:
                for p in model.parameters():
                    assert p.grad is not None
                    kept.append(p.grad)
                    p.grad = None
            else:
                for p, gradient in zip(model.parameters(), kept, strict=True):
                    assert p.grad is not None
                    p.grad += gradient
            optimizer.step()
    assert optimizer.optimizer.metrics()["loss_avg"] == pytest.approx((losses[0] + losses[1]).item() / 2, rel=1e-12)


def test_a_step_that_the_scaler_leaves_out_takes_its_loss_with_it() -> None:
    accelerator = accelerated(steps=2)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    model, optimizer, data = prepared(accelerator, "momo", lr=10.0, count=12)
    losses = []
    for k, batch in enumerate(data):
        with accelerator.accumulate(model):
            loss = loss_of(model, batch)
            backward(accelerator, optimizer, loss * (torch.inf if k == 2 else 1.0))
            before = vector(model)
            optimizer.step()
            if k in (2, 3):
                assert torch.equal(vector(model), before)
            optimizer.zero_grad()
        losses.append(loss.item())
    assert optimizer.optimizer.metrics()["steps"] == 2  # of three groups
    assert optimizer.optimizer.metrics()["skipped"] == 0

    plain = net()
    own = untuned.MoMo(plain.parameters(), lr=10.0, execution="reference")
    for i in (0, 4):
        own.zero_grad()
        loss = torch.stack([loss_of(plain, batch) for batch in list(DataLoader(points(12), batch_size=2))[i : i + 2]])
        loss.mean().backward()
        own.step(loss=loss.mean())
    torch.testing.assert_close(vector(model), vector(plain), rtol=1e-12, atol=1e-12)


def test_a_prepared_optimizer_takes_no_loss_and_a_loss_driven_method_says_what_it_needs() -> None:
    accelerator = accelerated()
    model, optimizer, data = prepared(accelerator, "momo")
    loss = loss_of(model, next(iter(data)))
    accelerator.backward(loss)
    with pytest.raises(TypeError, match="loss"):  # if this ever works, the page can say so
        optimizer.step(loss=loss)
    with pytest.raises(ValueError, match="needs the loss"):
        optimizer.step()


def test_an_optimizer_of_torch_runs_as_with_accelerator_backward() -> None:
    ends = []
    for ours in (True, False):
        accelerator = accelerated(steps=2)
        model = net()
        model, optimizer, data = accelerator.prepare(
            model, torch.optim.AdamW(model.parameters(), lr=0.1), DataLoader(points(10), batch_size=2)
        )
        for batch in data:
            with accelerator.accumulate(model):
                loss = loss_of(model, batch)
                backward(accelerator, optimizer, loss) if ours else accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
        ends.append(vector(model))
    assert torch.equal(*ends)


def test_the_modes_of_averaging_methods_pass_through() -> None:
    accelerator = accelerated()
    model, optimizer, data = prepared(accelerator, "schedule_free_sgd", lr=0.5)
    for batch in data:
        backward(accelerator, optimizer, loss_of(model, batch))
        optimizer.step()
        optimizer.zero_grad()
    with optimizer.optimizer.averaged_parameters():
        averaged = vector(model)
    assert (averaged - vector(model)).abs().max() > 1e-3
    optimizer.eval()
    torch.testing.assert_close(vector(model), averaged, rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------ what the page says


def test_the_code_of_the_page_runs() -> None:
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    page = (ROOT / "docs" / "integrations" / "accelerate.md").read_text()
    block = page.split("```python\n")[1].split("```")[0]
    rows = [(torch.randn(3), i % 2) for i in range(12)]
    names: dict[str, Any] = {"torch": torch, "model": nn.Linear(3, 2), "data": DataLoader(rows, batch_size=2)}
    exec(block, names)
    assert names["optimizer"].optimizer.metrics()["steps"] == 3


def test_the_example_trains_and_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "examples" / "accelerate_training.py")]
    lines = []
    for _ in range(2):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr[-3000:]
        lines.append(done.stdout.splitlines())
        for epoch in (11, 12):
            shutil.rmtree(tmp_path / "accelerate-run" / f"epoch_{epoch}")
    assert len(lines[0]) == 12
    assert float(lines[0][-1].split()[3].rstrip(",")) > 0.97
    assert lines[1] == lines[0][10:]


# ------------------------------------------------------------------ two processes


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """MoMo reads the loss of both ranks: micro-batches of 2 on each against 4 in one process."""
    one, first, second = kill_and_resume.one_and_two(__file__, tmp_path, ACCELERATE_USE_CPU="1")
    assert torch.equal(first["weights"], second["weights"]) and first["metrics"] == second["metrics"]
    torch.testing.assert_close(first["weights"], one["weights"], rtol=1e-10, atol=1e-10)
    assert first["metrics"] == pytest.approx(one["metrics"], rel=1e-10)
    assert one["metrics"]["lr_effective"] < 9.0


def together(folder: Path) -> None:
    accelerator = accelerate.Accelerator(gradient_accumulation_steps=2)
    model = net()
    optimizer = untuned.MoMo(model.parameters(), lr=10.0, execution="reference")
    size = 4 // accelerator.num_processes
    # Accelerate deals the batches out in turn.
    model, optimizer, data = accelerator.prepare(model, optimizer, DataLoader(points(20), batch_size=size))
    for _ in range(3):
        for batch in data:
            with accelerator.accumulate(model):
                backward(accelerator, optimizer, loss_of(model, batch))
                optimizer.step()
                optimizer.zero_grad()
    found = {"weights": vector(model), "metrics": optimizer.optimizer.metrics()}
    torch.save(found, folder / f"{accelerator.process_index}of{accelerator.num_processes}.pt")
    accelerator.end_training()


# ------------------------------------------------------------------ kill and resume


def train(name: str, folder: Path, kill: bool, resume: bool) -> dict[str, Any]:
    """Seven steps over an end of an epoch, with dropout, shuffling, clipping and a schedule; saves after step 3."""
    accelerator = accelerated(
        steps=2,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
        step_scheduler_with_optimizer=True,
    )
    model = net(dropout=0.2)
    start = copy.deepcopy(model.state_dict())
    optimizer = untuned.create(model, name, **kill_and_resume.options(name))
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, total_iters=7)
    # A generator of its own: else an iterator begins with a number of torch's, and after a resume dropout would differ.
    data = DataLoader(points(20), batch_size=2, shuffle=True, generator=torch.Generator())  # five steps an epoch
    model, optimizer, data, scheduler = accelerator.prepare(model, optimizer, data, scheduler)
    step = begun_at = 0
    if resume:
        step = begun_at = 3
        accelerator.load_state(str(folder / "step_3"))
    while step < 7:
        data.set_epoch(step // 5)
        for batch in accelerate.skip_first_batches(data, 2 * (step % 5)):
            with accelerator.accumulate(model):
                backward(accelerator, optimizer, loss_of(model, batch), sample_ids=batch[2])
                if kill and step == 5:
                    kill_and_resume.die()
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 10.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                step += 1
                if step == 3 and not resume:
                    accelerator.save_state(str(folder / "step_3"))
                if step == 7:
                    break
    end = {"weights": model.state_dict(), "optimizer": optimizer.state_dict()}
    return end | {"begun_at": begun_at, "start": start}


@pytest.mark.parametrize("name", untuned.list())
def test_a_killed_run_ends_as_one_without_a_break(runs: Path, name: str) -> None:
    kill_and_resume.compare(runs, name)


if __name__ == "__main__":
    if sys.argv[1] == "together":
        together(Path(sys.argv[2]))
        kill_and_resume.leave()
    else:
        kill_and_resume.main(train)

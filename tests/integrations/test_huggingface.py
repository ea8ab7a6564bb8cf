"""Real `transformers.Trainer` runs of a tiny GPT-2, beside plain torch loops on the same batches."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kill_and_resume
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import untuned

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is imported
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")

from untuned.integrations.huggingface import TrainerMixin  # noqa: E402

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("default"), pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
VOCABULARY, LENGTH = 11, 6


class Trainer(TrainerMixin, transformers.Trainer):
    pass


def gpt2(dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    size = {"vocab_size": VOCABULARY, "n_positions": LENGTH, "n_embd": 8, "n_layer": 1, "n_head": 2}
    config = transformers.GPT2Config(**size, **drops, bos_token_id=0, eos_token_id=0)
    return transformers.GPT2LMHeadModel(config).to(dtype)


def texts(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Sequences in which a token follows from the one before; each has another number of labels that count."""
    rows = []
    for i in range(first, first + count):
        generator = torch.Generator().manual_seed(i)
        ids = [int(torch.randint(0, VOCABULARY, (), generator=generator))]
        for _ in range(LENGTH - 1):
            ids.append((3 * ids[-1] + 1 + int(torch.randint(0, 2, (), generator=generator))) % VOCABULARY)
        labels = torch.tensor(ids)
        labels[0] = -100  # a first token is nobody's next one
        labels[2 + i % (LENGTH - 1) :] = -100
        rows.append({"input_ids": torch.tensor(ids), "labels": labels})
    return rows


def numbered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"sample_ids": i} for i, row in enumerate(rows)]


def arguments(folder: Path, **changes: Any) -> Any:
    """Two sequences in a micro-batch, two micro-batches in a step, in order, and the gradient as it is."""
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "train_sampling_strategy": "sequential",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }
    return transformers.TrainingArguments(**settings | changes)


def token_loss(model: nn.Module, rows: list[dict[str, Any]]) -> Tensor:
    """The mean over all tokens that count in these sequences."""
    ids, labels = (torch.stack([row[key] for row in rows]) for key in ("input_ids", "labels"))
    logits = model(input_ids=ids).logits
    return cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def vector(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


# ------------------------------------------------------------------ the loss


@pytest.mark.parametrize("given", ["class", "optimizer"])
def test_the_loss_is_the_mean_over_the_tokens_of_all_micro_batches(tmp_path: Path, given: str) -> None:
    rows = texts(10)  # five micro-batches an epoch: steps of 4, 4 and 2 sequences
    model, plain = gpt2(), gpt2()
    start = vector(model)
    options = {"lr": 5.0, "lb": 1.0, "execution": "reference"}
    how: dict[str, Any] = {"optimizer_cls_and_kwargs": (untuned.MoMo, options)}
    if given == "optimizer":
        optimizer = untuned.MoMo(model.parameters(), **options)
        how = {"optimizers": (optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0))}
    trainer = Trainer(model, arguments(tmp_path, num_train_epochs=2), train_dataset=rows, **how)
    trainer.train()

    own = untuned.MoMo(plain.parameters(), **options)
    logged = [entry for entry in trainer.state.log_history if "learning_rate" in entry]
    assert len(logged) == 6
    for entry, first in zip(logged, [0, 4, 8, 0, 4, 8], strict=True):
        own.zero_grad()
        loss = token_loss(plain, rows[first : first + 4])
        loss.backward()
        own.step(loss=loss)
        expected = own.metrics()
        assert entry["learning_rate"] == 5.0
        assert entry["lr_effective"] == pytest.approx(expected["lr_effective"], rel=1e-5)
        assert entry["loss_avg"] == pytest.approx(expected["loss_avg"], rel=1e-6)
        assert expected["lr_effective"] < 4.9  # the loss decides, not the cap
    # transformers computes this loss in float32.
    torch.testing.assert_close(vector(model), vector(plain), rtol=1e-5, atol=1e-6)
    assert (vector(plain) - start).abs().max() > 0.01


class Regression(nn.Module):
    """A model that knows nothing of the Trainer's arguments: it returns the mean of its batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1, dtype=torch.float64)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.layer(x).squeeze(1) - y).square().mean()}


def points(count: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    y = x.sum(1) + torch.randn(count, generator=generator, dtype=torch.float64)
    return [{"x": a, "y": b} for a, b in zip(x, y, strict=True)]


def regression_loss(model: nn.Module, rows: list[dict[str, Any]]) -> Tensor:
    return model(*(torch.stack([row[key] for row in rows]) for key in "xy"))["loss"]


def test_the_loss_is_the_mean_of_the_micro_batches_where_the_model_averages_itself(tmp_path: Path) -> None:
    rows = points(9)  # micro-batches of 2, 2 | 2, 2 | 1
    model, plain = Regression(), Regression()
    options = {"lr": 10.0, "execution": "reference"}
    how = {"optimizer_cls_and_kwargs": (untuned.MoMo, options)}
    Trainer(model, arguments(tmp_path, num_train_epochs=3), train_dataset=rows, **how).train()

    own = untuned.MoMo(plain.parameters(), **options)
    for k in range(9):
        first = [0, 4, 8][k % 3]
        parts = [regression_loss(plain, rows[i : i + 2]) for i in range(first, min(first + 4, 9), 2)]
        loss = torch.stack(parts).mean()
        own.zero_grad()
        loss.backward()
        own.step(loss=loss)
    torch.testing.assert_close(vector(model), vector(plain), rtol=1e-12, atol=1e-12)
    assert own.metrics()["lr_effective"] < 9.0


def test_batches_may_carry_the_numbers_of_their_samples(tmp_path: Path) -> None:
    rows = points(9)
    model, plain = Regression(), Regression()
    options = {"samples": 9, "lr": 0.5, "target": 0.1, "execution": "reference"}
    how = {"optimizer_cls_and_kwargs": (untuned.TAPS, options)}
    Trainer(model, arguments(tmp_path, num_train_epochs=2), train_dataset=numbered(rows), **how).train()

    own = untuned.TAPS(plain.parameters(), **options)
    for first in [0, 4, 8] * 2:
        loss = regression_loss(plain, rows[first : first + 4])
        own.zero_grad()
        loss.backward()
        own.step(loss=loss, sample_ids=range(first, min(first + 4, 9)))
    torch.testing.assert_close(vector(model), vector(plain), rtol=1e-12, atol=1e-12)


def test_without_the_mixin_a_loss_driven_method_says_what_it_needs(tmp_path: Path) -> None:
    how = {"optimizer_cls_and_kwargs": (untuned.MoMo, {})}
    trainer = transformers.Trainer(Regression(), arguments(tmp_path), train_dataset=points(4), **how)
    with pytest.raises(ValueError, match="needs the loss"):
        trainer.train()


def test_an_optimizer_of_torch_runs_as_without_the_mixin(tmp_path: Path) -> None:
    ends = []
    for cls in (Trainer, transformers.Trainer):
        model = Regression()
        how = {"optimizer_cls_and_kwargs": (torch.optim.AdamW, {"lr": 0.1})}
        trainer = cls(model, arguments(tmp_path), train_dataset=points(8), **how)
        trainer.train()
        assert not any("lr_effective" in entry for entry in trainer.state.log_history)
        ends.append(vector(model))
    assert torch.equal(*ends)


# ------------------------------------------------------------------ averaging


def test_evaluation_and_files_hold_the_averaged_point(tmp_path: Path) -> None:
    rows, held_out = points(8), points(12)[8:]
    model, plain = Regression(), Regression()
    options = {"lr": 0.1, "execution": "reference"}
    settings = {"max_steps": 5, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 3}
    trainer = Trainer(
        model,
        arguments(tmp_path, **settings, label_names=["y"]),
        train_dataset=rows,
        eval_dataset=held_out,
        optimizer_cls_and_kwargs=(untuned.SGDScheduleFree, options),
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))

    own = untuned.SGDScheduleFree(plain.parameters(), **options)
    averaged: list[Tensor] = []
    evaluated: list[float] = []
    for k in range(5):
        own.zero_grad()
        torch.stack([regression_loss(plain, rows[i : i + 2]) for i in (4 * (k % 2), 4 * (k % 2) + 2)]).mean().backward()
        own.step()
        with own.averaged_parameters():
            averaged.append(vector(plain))
            evaluated.append(regression_loss(plain, held_out).item())
    assert (averaged[4] - vector(plain)).abs().max() > 0.01  # the points differ
    found = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    for step in (2, 4):
        assert found[step] == pytest.approx(evaluated[step - 1], rel=1e-9)
    for name, step in (("checkpoint-3", 3), ("checkpoint-5", 5), ("final", 5)):
        torch.testing.assert_close(weights_in(tmp_path / name), averaged[step - 1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(vector(model), averaged[4], rtol=1e-12, atol=1e-12)


def weights_in(folder: Path) -> Tensor:
    held = safetensors.load_file(folder / "model.safetensors")
    return torch.cat([held["layer.weight"].flatten(), held["layer.bias"]])


def test_the_best_model_is_left_as_it_was_saved(tmp_path: Path) -> None:
    """Loading it last must not be followed by another change of the point."""
    model = Regression()
    settings = {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "best", "save_steps": 1}
    trainer = Trainer(
        model,
        arguments(tmp_path, **settings, load_best_model_at_end=True, metric_for_best_model="loss", label_names=["y"]),
        train_dataset=points(8),
        eval_dataset=points(12)[8:],
        optimizer_cls_and_kwargs=(untuned.SGDScheduleFree, {"lr": 0.7, "execution": "reference"}),
    )
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert min(losses) < losses[-1]  # the best is not the last
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-12)


def test_without_checkpoints_too_the_model_is_left_averaged(tmp_path: Path) -> None:
    model = Regression()
    how = {"optimizer_cls_and_kwargs": (untuned.SGDScheduleFree, {"lr": 0.1, "execution": "reference"})}
    trainer = Trainer(model, arguments(tmp_path, max_steps=3), train_dataset=points(8), **how)
    trainer.train()
    left = vector(model)
    trainer.optimizer.train()
    assert (vector(model) - left).abs().max() > 0.01
    trainer.optimizer.eval()
    torch.testing.assert_close(vector(model), left, rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------ what the page says


def test_the_groups_have_the_decay_of_the_arguments_and_the_lr_of_the_keywords(tmp_path: Path) -> None:
    how = {"optimizer_cls_and_kwargs": (untuned.AdamW, {"lr": 0.3, "weight_decay": 0.5})}
    settings = arguments(tmp_path, weight_decay=0.01, learning_rate=0.7)
    groups = Trainer(gpt2(), settings, train_dataset=texts(4), **how).create_optimizer().param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.3, 0.01), (0.3, 0.0)]


def test_the_code_of_the_page_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "integrations" / "huggingface.md").read_text()
    block = page.split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {"model": Regression(), "arguments": arguments(tmp_path, max_steps=2), "data": points(8)}
    exec(block, names)
    assert names["trainer"].state.global_step == 2


def test_the_example_trains_and_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "examples" / "huggingface_trainer.py")]
    losses = []
    for _ in range(2):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr[-3000:]
        found = re.findall(r"'eval_loss': '([^']*)'", done.stdout)
        losses.append([float(loss) for loss in found])
        shutil.rmtree(tmp_path / "trainer-run" / "checkpoint-200")
    assert len(losses[0]) == 4 and losses[0][-1] < 2.7 < losses[0][0]
    assert losses[1] == losses[0][-1:]  # from the checkpoint of step 150


# ------------------------------------------------------------------ two processes


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Each rank has other tokens and another number of them; MoMo reads the mean over all of them."""
    one, first, second = kill_and_resume.one_and_two(__file__, tmp_path, HF_HUB_OFFLINE="1")
    assert torch.equal(first["weights"], second["weights"]) and first["metrics"] == second["metrics"]
    torch.testing.assert_close(first["weights"], one["weights"], rtol=1e-5, atol=1e-6)  # a loss in float32
    assert first["metrics"] == pytest.approx(one["metrics"], rel=1e-4)
    assert one["metrics"]["lr_effective"] < 4.9


def together(folder: Path) -> None:
    model = gpt2()
    settings = arguments(folder, num_train_epochs=2, max_grad_norm=0.0)
    settings.per_device_train_batch_size = 4 // settings.world_size  # the batches are dealt out in turn
    how = {"optimizer_cls_and_kwargs": (untuned.MoMo, {"lr": 5.0, "lb": 1.0, "execution": "reference"})}
    trainer = Trainer(model, settings, train_dataset=texts(16), **how)
    trainer.train()
    found = {"weights": vector(model), "metrics": trainer.optimizer.optimizer.metrics()}
    torch.save(found, folder / f"{settings.process_index}of{settings.world_size}.pt")


# ------------------------------------------------------------------ kill and resume


class Kill(transformers.TrainerCallback):
    """SIGKILL between two micro-batches of step 6; the last checkpoint is of step 3."""

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            kill_and_resume.die()


class Begin(transformers.TrainerCallback):
    at = -1

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.at = state.global_step


def train(name: str, folder: Path, kill: bool, resume: bool) -> dict[str, Any]:
    """Seven steps over an end of an epoch, with dropout, shuffling, clipping, a schedule and evaluations."""
    model = gpt2(dropout=0.1, dtype=torch.float32)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    settings = {"max_steps": 7, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 3}
    settings |= {"train_sampling_strategy": "random", "lr_scheduler_type": "linear", "max_grad_norm": 10.0}
    settings |= {"weight_decay": 0.01}
    begin = Begin()
    trainer = Trainer(
        model,
        arguments(folder, **settings),
        train_dataset=numbered(texts(20)),
        eval_dataset=texts(4, first=20),
        optimizer_cls_and_kwargs=(untuned.registry.get(name).optimizer, kill_and_resume.options(name)),
        callbacks=[begin, *([Kill()] if kill else [])],
    )
    trainer.train(resume_from_checkpoint=True if resume else None)
    end = {"weights": model.state_dict(), "optimizer": trainer.optimizer.state_dict()}
    return end | {"begun_at": begin.at, "start": start}


@pytest.mark.parametrize("name", untuned.list())
def test_a_killed_run_ends_as_one_without_a_break(runs: Path, name: str) -> None:
    kill_and_resume.compare(runs, name)


if __name__ == "__main__":
    if sys.argv[1] == "together":
        together(Path(sys.argv[2]))
        kill_and_resume.leave()
    else:
        kill_and_resume.main(train)

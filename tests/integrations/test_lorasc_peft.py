"""LoRASC over the LoRA layers of PEFT, in a plain loop and under the Trainer, beside PEFT's own merge."""

from __future__ import annotations

import copy
import io
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import untuned
from untuned.systems.lorasc import CascadeLoRA

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is imported
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
accelerate = pytest.importorskip("accelerate")

import test_huggingface as hf  # noqa: E402
from peft.optimizers import create_loraplus_optimizer  # noqa: E402

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("default"), pytest.mark.timeout(900)]
ROWS = hf.texts(8)


def adapted(seed: int = 1, **options: Any) -> Any:
    """The tiny GPT-2, whose layers hold their weights transposed, with adapters on its attention."""
    torch.manual_seed(seed)
    options = {"task_type": "CAUSAL_LM", "r": 2, "target_modules": ["c_attn"], "fan_in_fan_out": True} | options
    return peft.get_peft_model(hf.gpt2(), peft.LoraConfig(**options))


def trained(model: Any) -> list[Any]:
    return [p for p in model.parameters() if p.requires_grad]


def adamw(model: Any) -> Any:
    return torch.optim.AdamW(trained(model), lr=1e-2)


def train(model: Any, optimizer: Any, steps: int) -> float:
    loss = torch.zeros(())
    for k in range(steps):
        optimizer.zero_grad()
        loss = hf.token_loss(model, ROWS[4 * (k % 2) : 4 * (k % 2) + 4])
        loss.backward()
        optimizer.step()
    return loss.item()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.stack([row["input_ids"] for row in ROWS])).logits


def base(model: Any) -> dict[str, torch.Tensor]:
    return {key: p.detach().clone() for key, p in model.named_parameters() if "lora" not in key}


def test_one_cascade_with_pace_one_and_no_noise_is_peft_bitwise() -> None:
    model = adapted()
    plain = copy.deepcopy(model)
    optimizer = adamw(model)
    cascade = CascadeLoRA(model, optimizer, pace=1.0, noise=0.0)
    cascade.begin()
    assert train(model, optimizer, 6) == train(plain, adamw(plain), 6)
    before = logits(model)
    cascade.finish()
    merged = plain.merge_and_unload()
    assert torch.equal(logits(model), logits(merged))
    assert torch.equal(logits(model.unload()), logits(merged))
    assert 0 < (logits(model) - before).abs().max() < 1e-5


@pytest.mark.parametrize("of", ["torch", "untuned", "LoRA+"])
def test_a_cascade_trains_and_its_noise_leaves_no_bit(of: str) -> None:
    """LoRA+ is an optimizer whose second factors have a larger lr: nothing else changes."""
    model = adapted()
    first = base(model)
    optimizer = {
        "torch": lambda: adamw(model),
        "untuned": lambda: untuned.AdamW(trained(model), lr=1e-2),
        "LoRA+": lambda: create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16.0),
    }[of]()
    start = hf.token_loss(model, ROWS).item()
    cascade = CascadeLoRA(model, optimizer, merge="final", every=4)
    cascade.begin()
    assert any(not torch.equal(p, first[key]) for key, p in base(model).items())
    for _ in range(11):
        train(model, optimizer, 1)
        if cascade.step():
            assert not any(p in optimizer.state for p in trained(model))
            with cascade.without_noise():
                assert all(torch.equal(p, first[key]) for key, p in base(model).items())
    cascade.finish()
    assert cascade.cascades == 3
    changed = {key for key, p in base(model).items() if not torch.equal(p, first[key])}
    assert changed == {key for key in first if "c_attn" in key and "weight" in key} and changed
    assert hf.token_loss(model, ROWS).item() < start


def test_an_adapter_checkpoint_and_the_cascade_resume_bitwise() -> None:
    """Of the model only what PEFT saves is kept: the merged backbone is in the state of the cascade."""
    model = adapted()
    optimizer = adamw(model)
    cascade = CascadeLoRA(model, optimizer, every=4)

    def go_on(steps: int, *these: Any) -> None:
        for _ in range(steps):
            train(*these[:2], 1)
            these[2].step()

    cascade.begin()
    go_on(6, model, optimizer, cascade)
    file = io.BytesIO()
    torch.save([peft.get_peft_model_state_dict(model), optimizer.state_dict(), cascade.state_dict()], file)
    go_on(5, model, optimizer, cascade)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = adapted()
    its_optimizer = adamw(other)
    its_cascade = CascadeLoRA(other, its_optimizer, every=4)
    peft.set_peft_model_state_dict(other, saved[0])
    its_optimizer.load_state_dict(saved[1])
    its_cascade.load_state_dict(saved[2])
    go_on(5, other, its_optimizer, its_cascade)
    assert torch.equal(logits(other), logits(model)) and its_cascade.cascades == 2


def test_a_callback_makes_the_trainer_do_cascades(tmp_path: Path) -> None:
    """Begin when training begins, step after each step, finish when it ends: the Trainer needs nothing else."""
    model = adapted()
    plain = copy.deepcopy(model)

    class Cascades(transformers.TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.cascade = CascadeLoRA(kwargs["model"], kwargs["optimizer"], every=2)
            self.cascade.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.cascade.step()

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.cascade.finish()

    callback = Cascades()
    settings = hf.arguments(tmp_path, max_steps=5, weight_decay=0.0, learning_rate=1e-2, lr_scheduler_type="constant")
    how = {"optimizer_cls_and_kwargs": (torch.optim.AdamW, {"lr": 1e-2})}
    hf.Trainer(model, settings, train_dataset=ROWS, callbacks=[callback], **how).train()
    assert callback.cascade.cascades == 3

    optimizer = torch.optim.AdamW(trained(plain), lr=1e-2, weight_decay=0.0)
    cascade = CascadeLoRA(plain, optimizer, every=2)
    cascade.begin()
    for k in range(5):
        optimizer.zero_grad()
        hf.token_loss(plain, ROWS[4 * (k % 2) : 4 * (k % 2) + 4]).backward()
        optimizer.step()
        cascade.step()
    cascade.finish()
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-4, atol=1e-5)


def test_the_averaged_point_is_merged_also_behind_accelerate() -> None:
    model = adapted()
    accelerator = accelerate.Accelerator(cpu=True)
    optimizer = accelerator.prepare(untuned.AdamWScheduleFree(trained(model), lr=1e-2))
    cascade = CascadeLoRA(model, optimizer, slow="last", pace=1.0, noise=0.0)
    cascade.begin()
    train(model, optimizer, 10)
    training = logits(model)
    with optimizer.optimizer.averaged_parameters():
        averaged = logits(model)
    cascade.end()
    torch.testing.assert_close(logits(model), averaged)
    assert (averaged - training).abs().max() > 1e-5
    assert not any(p in optimizer.state for p in trained(model))


def test_adapters_that_cannot_be_merged_are_refused() -> None:
    model = adapted()
    model.add_adapter("style", copy.deepcopy(model.peft_config["default"]))
    with pytest.raises(ValueError, match=r"^the model has the adapters default, style: say by adapter= which of them"):
        CascadeLoRA(model, adamw(model))
    with pytest.raises(ValueError, match=r"^the model has no adapter 'tone'; it has default, style$"):
        CascadeLoRA(model, adamw(model), adapter="tone")
    assert len(CascadeLoRA(model, adamw(model), adapter="default").experts) == 1

    for options, what in [({"use_dora": True}, "DoraLinearVariant"), ({"lora_bias": True}, "lora_bias")]:
        other = adapted(**options)
        with pytest.raises(ValueError, match=rf"^the adapter of .* uses {what}, and LoRASC merges plain products"):
            CascadeLoRA(other, adamw(other))
    embedding = adapted(target_modules=["wte"], fan_in_fan_out=False)
    with pytest.raises(ValueError, match=r"^'.*wte' is a Embedding of PEFT, and LoRASC merges experts only into"):
        CascadeLoRA(embedding, adamw(embedding))

    tied = adapted(target_modules=["lm_head"], fan_in_fan_out=False)  # its weight is that of the embedding
    with pytest.raises(ValueError, match=r"wte' and '.*lm_head\.base_layer' share one weight: merging an expert"):
        CascadeLoRA(tied, adamw(tied))
    quantised = adapted()
    base_layer = quantised.base_model.model.transformer.h[0].attn.c_attn.base_layer
    base_layer.weight = torch.nn.Parameter(torch.zeros(base_layer.weight.shape, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"is a torch\.int8: .* refuses weights that are quantised"):
        CascadeLoRA(quantised, adamw(quantised))


def test_a_merged_adapter_is_refused_until_it_is_unmerged() -> None:
    model = adapted()
    cascade = CascadeLoRA(model, adamw(model))
    model.merge_adapter()
    with pytest.raises(RuntimeError, match=r"^PEFT has merged an adapter into '.*': unmerge it first$"):
        cascade.begin()
    model.unmerge_adapter()
    cascade.begin()

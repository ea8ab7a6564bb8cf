"""timm's optimizer factory, parameter groups, schedules and checkpoints on a tiny vision transformer."""

from __future__ import annotations

import inspect
import math
import re
import runpy
import sys
import warnings
from pathlib import Path
from typing import Any

import kill_and_resume
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import untuned

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its dependencies
    timm = pytest.importorskip("timm", exc_type=ImportError)
    import timm.optim  # noqa: F811
    import timm.utils
    from timm.models import resume_checkpoint
    from timm.models.vision_transformer import VisionTransformer
    from timm.scheduler import CosineLRScheduler

from untuned.integrations.timm import register

pytestmark = [pytest.mark.integrations, pytest.mark.filterwarnings("default")]
NAMES = dict(zip(untuned.list(), register(), strict=True))


def vit() -> nn.Module:
    torch.manual_seed(0)
    size = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": 3}
    return VisionTransformer(**size).double()  # pyright: ignore[reportArgumentType]


def loss_of(model: nn.Module, k: int) -> Tensor:
    generator = torch.Generator().manual_seed(k)
    images = torch.randn(4, 3, 8, 8, generator=generator, dtype=torch.float64)
    return cross_entropy(model(images), (images.mean((1, 2, 3)) * 10).long().abs() % 3)


def train(model: nn.Module, optimizer: Any, steps: range) -> None:
    ids = {"sample_ids": [0, 1, 2, 3]} if "samples" in optimizer.param_groups[0]["method"] else {}
    for k in steps:
        optimizer.zero_grad()
        loss = loss_of(model, k)
        loss.backward()
        optimizer.step(loss=loss, **ids)


def test_names() -> None:
    assert register() == [NAMES[name] for name in untuned.list()]  # a second time, without a warning
    assert set(NAMES.values()) <= set(timm.optim.list_optimizers())
    assert NAMES["momo_adam"] == "untuned-momo-adam"
    model = vit()
    for name, known_as in NAMES.items():
        options = kill_and_resume.options(name)
        assert type(timm.optim.create_optimizer_v2(model, known_as, **options)) is untuned.get(name).optimizer
    # Why not underscores: timm looks up the last piece.
    assert type(timm.optim.create_optimizer_v2(model, "untuned_momo_adam")) is torch.optim.Adam


@pytest.mark.parametrize("name", untuned.list())
def test_weight_decay_is_filtered_as_by_timm(name: str) -> None:
    """Built by timm, a method trains as one built by hand on timm's groups, which decay matrices alone."""
    cls, options = untuned.get(name).optimizer, kill_and_resume.options(name) | {"weight_decay": 0.1}
    model, by_hand, bare = vit(), vit(), vit()
    optimizer = timm.optim.create_optimizer_v2(model, NAMES[name], **options)
    spared = {n for n, p in by_hand.named_parameters() if p.ndim < 2} | {"pos_embed", "cls_token"}
    groups = [
        {"params": [p for n, p in by_hand.named_parameters() if n in spared], "weight_decay": 0.0},
        {"params": [p for n, p in by_hand.named_parameters() if n not in spared], "weight_decay": 0.1},
    ]
    if "momentum" in inspect.signature(cls).parameters:
        options = {"momentum": 0.9} | options  # timm's default for all that have one
    other, undecayed = cls(groups, **options), cls(bare.parameters(), **options | {"weight_decay": 0.0})
    for m, o in ((model, optimizer), (by_hand, other), (bare, undecayed)):
        train(m, o, range(3))
    ours, theirs, without = (torch.cat([p.flatten() for p in m.parameters()]) for m in (model, by_hand, bare))
    assert torch.equal(ours, theirs)
    assert (ours - without).abs().max() > 1e-9


@pytest.mark.parametrize("name", ["prodigy", "momo_adam", "schedule_free_adamw", "dog"])
def test_layer_decay_scales_what_each_layer_moves(name: str) -> None:
    """timm's schedules apply `lr_scale`: the method trains as one whose groups are given those learning rates."""
    options = kill_and_resume.options(name) | {"lr": 0.1, "weight_decay": 0.1}
    model, by_hand, unscaled = vit(), vit(), vit()
    optimizer = timm.optim.create_optimizer_v2(model, NAMES[name], layer_decay=0.5, **options)
    assert {group["lr_scale"] for group in optimizer.param_groups} == {1.0, 0.5, 0.25, 0.125}  # embedding to head
    schedule = CosineLRScheduler(optimizer, t_initial=10, t_in_epochs=False)

    names = {p: n for n, p in model.named_parameters()}

    def groups_of(other: nn.Module) -> list[dict[str, Any]]:
        own = dict(other.named_parameters())
        return [
            {"params": [own[names[p]] for p in group["params"]], "weight_decay": group["weight_decay"]}
            for group in optimizer.param_groups
        ]

    cls = untuned.get(name).optimizer
    other, without = cls(groups_of(by_hand), **options), cls(groups_of(unscaled), **options)
    for k in range(4):
        lr = 0.05 * (1 + math.cos(math.pi * k / 10))
        for i, group in enumerate(optimizer.param_groups):
            other.param_groups[i]["lr"], without.param_groups[i]["lr"] = lr * group["lr_scale"], lr
            assert group["lr"] == pytest.approx(lr * group["lr_scale"], rel=1e-12)
        for m, o in ((model, optimizer), (by_hand, other), (unscaled, without)):
            train(m, o, range(k, k + 1))
        schedule.step_update(k + 1)
    ours, theirs, flat = (torch.cat([p.flatten() for p in m.parameters()]) for m in (model, by_hand, unscaled))
    assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    assert (ours - flat).abs().max() > 1e-6


def test_the_loss_of_the_training_script() -> None:
    """Its `_backward` with the one line: micro-batches' losses, divided by their number, and a bare step."""
    model, by_hand = vit(), vit()
    build = {"lr": 10.0, "execution": "reference"}
    optimizer = timm.optim.create_optimizer_v2(model, "untuned-momo", **build)
    other = untuned.MoMo(by_hand.parameters(), lr=10.0, execution="reference")
    for step in range(3):
        optimizer.zero_grad()
        other.zero_grad()
        for k in (2 * step, 2 * step + 1):
            _loss = loss_of(model, k)
            _loss /= 2
            optimizer.record_loss(_loss * 2)
            _loss.backward()
        optimizer.step()
        mean = (loss_of(by_hand, 2 * step) + loss_of(by_hand, 2 * step + 1)) / 2
        mean.backward()
        other.step(loss=mean)
    assert optimizer.metrics()["lr_effective"] < 10.0
    for p, q in zip(model.parameters(), by_hand.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", untuned.list())
def test_resume_from_the_checkpoint_of_timm(name: str, tmp_path: Path) -> None:
    options = kill_and_resume.options(name) | {"weight_decay": 0.1}
    whole, broken, resumed = vit(), vit(), vit()
    optimizer = timm.optim.create_optimizer_v2(whole, NAMES[name], **options)
    train(whole, optimizer, range(5))
    optimizer = timm.optim.create_optimizer_v2(broken, NAMES[name], **options)
    train(broken, optimizer, range(3))
    timm.utils.CheckpointSaver(broken, optimizer, checkpoint_dir=str(tmp_path)).save_checkpoint(0)
    optimizer = timm.optim.create_optimizer_v2(resumed, NAMES[name], **options)
    resume_checkpoint(resumed, str(tmp_path / "last.pth.tar"), optimizer, log_info=False)
    train(resumed, optimizer, range(3, 5))
    for p, q, before in zip(resumed.parameters(), whole.parameters(), broken.parameters(), strict=True):
        assert torch.equal(p, q) and not torch.equal(p, before)


def test_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    example = Path(__file__).parents[2] / "examples" / "timm_training.py"
    for epochs in ("2", "4"):  # the second start goes on
        options = ["--out", str(tmp_path), "--opt", "untuned-momo-adam", "--lr", "0.1", "--epochs", epochs]
        monkeypatch.setattr(sys, "argv", [str(example), *options])
        runpy.run_path(str(example), run_name="__main__")
    printed = re.findall(r"epoch (\d): accuracy (\S+),", capsys.readouterr().out)
    assert [int(epoch) for epoch, _ in printed] == [0, 1, 2, 3]
    assert float(printed[-1][1]) > 0.9  # of four classes

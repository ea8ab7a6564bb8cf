"""Checkpoints written by released versions load for ever: each goes on for three steps as it did then.

`python tests/core/test_golden_checkpoints.py` writes those that are missing. One that is there is never written anew: a
change that cannot go on with it needs a new folder, and a way to load the old one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from problems import OPTIONS
from torch import nn

import untuned
from untuned import registry

FORMAT = "v1"
FOLDER = Path(__file__).parents[1] / "golden" / "checkpoints" / FORMAT
BEFORE, AFTER = range(5), range(5, 8)
SHAPES = ((2, 3), (3,), (2,))  # the first two in a group of their own; the last in bfloat16
SAMPLES = 7


def parameters() -> list[nn.Parameter]:
    """Two of float64 and one of bfloat16, with numbers that no generator of random numbers has to repeat."""
    found = []
    for i, shape in enumerate(SHAPES):
        count = torch.Size(shape).numel()
        values = ((torch.arange(count) * 5 + 3 * i) % 11 - 5).to(torch.float64) / 8
        found.append(nn.Parameter(values.reshape(shape).to(torch.bfloat16 if i == 2 else torch.float64)))
    return found


def build(name: str, params: list[nn.Parameter]) -> untuned.Optimizer:
    """Named parameters in two groups, the second at half the lr and without weight decay."""
    lr = OPTIONS[name].get("lr", registry.get(name).lr)
    groups = [
        {"params": [("weight", params[0]), ("bias", params[1])]},
        {"params": [("scale", params[2])], "lr": lr / 2, "weight_decay": 0.0},
    ]
    return untuned.create(groups, name, execution="reference", **OPTIONS[name])


def step(optimizer: untuned.Optimizer, params: list[nn.Parameter], k: int) -> None:
    """Step k: gradients by an integer formula, plus a part of the parameters; the loss is 1 / (k + 1)."""
    for i, p in enumerate(params):
        wave = ((torch.arange(p.numel()) * 7 + 5 * k + 3 * i) % 13 - 6).reshape(p.shape).to(p.dtype) / 16
        p.grad = wave + p.detach() / 4
    optimizer.step(loss=1 / (k + 1), sample_ids=[k % SAMPLES, (3 * k + 1) % SAMPLES])


def write(name: str) -> Path:
    """The state after five steps, and the parameters and metrics after three more."""
    params = parameters()
    optimizer = build(name, params)
    for k in BEFORE:
        step(optimizer, params, k)
    saved: dict[str, Any] = {
        "version": untuned.__version__,
        "parameters": numbers(params),
        "optimizer": optimizer.state_dict(),
    }
    path = FOLDER / f"{name}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(saved, path)  # now, since the next steps replace what the state dict refers to
    saved = torch.load(path, weights_only=True)
    for k in AFTER:
        step(optimizer, params, k)
    optimizer.eval()
    averaged = numbers(params)
    optimizer.train()
    saved |= {"end": numbers(params), "averaged": averaged, "metrics": optimizer.metrics()}
    torch.save(saved, path)
    return path


def numbers(params: list[nn.Parameter]) -> list[list[float]]:
    """All of them, exactly; a tensor takes ten times as many bytes in a file."""
    return [p.detach().double().flatten().tolist() for p in params]


def assert_near(params: list[nn.Parameter], expected: list[list[float]]) -> None:
    """To 1e-12 of the largest number for float64, to a unit in its last place, 2^-8 of it, for bfloat16.

    The root and the power of another machine may differ in the last bit, and rounding to bfloat16 turns that into one.
    """
    for p, values in zip(params, expected, strict=True):
        bound = (1e-12 if p.dtype == torch.float64 else 2.0**-8) * max(map(abs, values))
        found, wanted = p.detach().double().flatten(), torch.tensor(values, dtype=torch.float64)
        torch.testing.assert_close(found, wanted, rtol=0, atol=bound)


@pytest.mark.parametrize("name", untuned.list())
def test_a_golden_checkpoint_goes_on(name: str) -> None:
    saved = torch.load(FOLDER / f"{name}.pt", weights_only=True)
    params = parameters()
    optimizer = build(name, params)
    with torch.no_grad():
        for p, value in zip(params, saved["parameters"], strict=True):
            p.copy_(torch.tensor(value, dtype=torch.float64).reshape(p.shape))
    for group in optimizer.param_groups:
        group["lr"] = 17.0  # that of the checkpoint wins
    optimizer.load_state_dict(saved["optimizer"])
    assert all(group["lr"] != 17.0 for group in optimizer.param_groups)
    for k in AFTER:
        step(optimizer, params, k)
    assert_near(params, saved["end"])
    assert all(start != end for start, end in zip(saved["parameters"][:2], saved["end"][:2], strict=True))
    metrics = optimizer.metrics()
    assert {key: metrics.get(key) for key in saved["metrics"]} == pytest.approx(saved["metrics"], rel=1e-11, abs=1e-300)
    assert metrics["steps"] == 8
    optimizer.eval()
    assert_near(params, saved["averaged"])


def test_every_method_has_one_and_all_are_small() -> None:
    files = {path.stem: path.stat().st_size for path in FOLDER.glob("*.pt")}
    assert sorted(files) == untuned.list(), "run `python tests/core/test_golden_checkpoints.py` for a new method"
    assert sum(files.values()) < 300_000
    assert max(files.values()) < 12_000


if __name__ == "__main__":
    torch.set_num_threads(1)
    for method in untuned.list():
        if not (FOLDER / f"{method}.pt").exists():
            sys.stdout.write(f"{write(method)}\n")

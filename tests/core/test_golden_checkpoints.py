"""Checkpoints written by released versions load for ever: each goes on for three steps as it did then.

`python tests/core/test_golden_checkpoints.py` writes those that are missing. One that is there is never written anew: a
change that cannot go on with it needs a new folder, and a way to load the old one.
"""

from __future__ import annotations

import copy
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from problems import OPTIONS
from processor import OtherProcessor
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


def lasting(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics, with the average of <g, x> in place of the two numbers that MoMo keeps it in.

    They are <m, x> and the same minus that average, with the x that the last gradient was taken at; when these files
    were written it was the x after the step.
    """
    kept = {key: value for key, value in metrics.items() if key not in ("mx", "model_offset")}
    return kept | ({"gx_avg": metrics["mx"] - metrics["model_offset"]} if "mx" in metrics else {})


def load(name: str) -> dict[str, Any]:
    saved = torch.load(FOLDER / f"{name}.pt", weights_only=True)
    return saved | {"metrics": lasting(saved["metrics"])}


Numbers = tuple[dict[str, float], list[list[float]], list[list[float]]]  # metrics, weights, averaged weights


def gone_on(name: str, saved: dict[str, Any]) -> Numbers:
    """The metrics and the weights three steps after a checkpoint was loaded."""
    params = parameters()
    optimizer = build(name, params)
    with torch.no_grad():
        for p, value in zip(params, saved["parameters"], strict=True):
            p.copy_(torch.tensor(value, dtype=torch.float64).reshape(p.shape))
    for group in optimizer.param_groups:
        group["lr"] = 17.0  # that of the checkpoint wins
    optimizer.load_state_dict(copy.deepcopy(saved["optimizer"]))
    assert all(group["lr"] != 17.0 for group in optimizer.param_groups)
    for k in AFTER:
        step(optimizer, params, k)
    metrics, end = lasting(optimizer.metrics()), numbers(params)
    assert metrics["steps"] == 8
    optimizer.eval()
    return {key: metrics[key] for key in saved["metrics"]}, end, numbers(params)


def roundings(name: str, saved: dict[str, Any]) -> Numbers:
    """What four roundings of every term do to each number: twice the largest of eight runs, which are samples.

    The numbers in the metrics are made of sums over all tensors, and the bfloat16 tensor's terms are float32. What the
    roundings of another processor do to a number is in proportion to the size of these terms, also where they cancel
    and the number itself is small. So it is measured, by moving every term as it arises. A run in which a bfloat16
    weight became another number has measured that jump instead, and is left out.
    """
    still = gone_on(name, saved)
    largest = (dict.fromkeys(still[0], 0.0), *([[0.0] * len(p) for p in weights] for weights in still[1:]))
    runs = 0
    for seed in range(100, 108):
        with OtherProcessor(seed, times=4, every=True):
            moved = gone_on(name, saved)
        if any(weights[2] != others[2] for weights, others in zip(still[1:], moved[1:], strict=True)):
            continue
        runs += 1
        for key, value in still[0].items():
            largest[0][key] = max(largest[0][key], 2 * abs(moved[0][key] - value))
        for bounds, found, others in zip(largest[1:], still[1:], moved[1:], strict=True):
            for bound, p, q in zip(bounds, found, others, strict=True):
                bound[:] = map(max, bound, (2 * abs(x - y) for x, y in zip(p, q, strict=True)))
    assert runs >= 6
    return largest


def apart(found: Numbers, expected: dict[str, Any], bounds: Numbers | None = None) -> list[str]:
    """What differs by more than its bound and 1e-12 of the number or of the largest weight, or a unit of bfloat16."""
    names = [
        key
        for key, value in expected["metrics"].items()
        if not abs(found[0][key] - value) <= 1e-12 * abs(value) + (bounds[0][key] if bounds else 0)
    ]
    for part, key in enumerate(("end", "averaged"), 1):
        for i, (p, values) in enumerate(zip(found[part], expected[key], strict=True)):
            least = (2.0**-8 if i == 2 else 1e-12) * max(map(abs, values))
            more = bounds[part][i] if bounds else [0.0] * len(values)
            if not all(abs(x - y) <= least + z for x, y, z in zip(p, values, more, strict=True)):
                names.append(f"{key}[{i}]")
    return names


@pytest.mark.processors
@pytest.mark.parametrize("processor", [nullcontext(), OtherProcessor(1), OtherProcessor(2)], ids=["here", "1", "2"])
@pytest.mark.parametrize("name", untuned.list())
def test_a_golden_checkpoint_goes_on(name: str, processor: Any) -> None:
    """On this processor, and on two whose roots, powers and sums have other last places."""
    saved = load(name)
    with processor:
        found = gone_on(name, saved)
    if apart(found, saved):
        assert not apart(found, saved, roundings(name, saved))
    assert all(start != end for start, end in zip(saved["parameters"][:2], saved["end"][:2], strict=True))


@pytest.mark.parametrize(
    "name", ["dadapt_adagrad", "dadapt_adam", "dadapt_adan", "mechanic_adamw", "momo_adam", "prodigy"]
)
def test_five_millionths_are_more_than_roundings(name: str) -> None:
    """Of these methods, whose numbers another processor's roundings do move by more than 1e-12."""
    saved = load(name)
    metrics, *weights = gone_on(name, saved)
    changed = {key: value * (1 + 5e-6) for key, value in metrics.items()}
    assert apart((changed, *weights), saved, roundings(name, saved)) == [key for key, value in metrics.items() if value]


def test_every_method_has_one_and_all_are_small() -> None:
    files = {path.stem: path.stat().st_size for path in FOLDER.glob("*.pt")}
    assert sorted(files) == untuned.list(), "run `python tests/core/test_golden_checkpoints.py` for a new method"
    assert sum(files.values()) < 6_000 * len(files)
    assert max(files.values()) < 12_000


if __name__ == "__main__":
    torch.set_num_threads(1)
    for method in untuned.list():
        if not (FOLDER / f"{method}.pt").exists():
            sys.stdout.write(f"{write(method)}\n")

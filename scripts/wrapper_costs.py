"""What goes around a step adds to it, in fused AdamW steps: `OMP_NUM_THREADS=1 python scripts/wrapper_costs.py`.

On the parameter list of a ResNet-50, in float32, on one thread, without the guard: medians over rounds in which every
contender takes one step, relative to torch's fused AdamW in the same rounds. The projection of every 100th step is the
sum of its parts: 99 calls that count, and one that projects.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import untuned
from untuned.around import Project
from untuned.gradients import Norms
from untuned.study.contenders import MODELS
from untuned.wrappers import WeightProjector

ROUNDS, FIRST, APART = 40, 5, 100
SHAPES = MODELS["resnet50"]


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator) * 0.02) for shape in SHAPES]
    for p, g in zip(params, GRADIENTS, strict=True):
        p.grad = g
    return params


def ours(name: str, **options: Any) -> Callable[[], object]:
    optimizer = untuned.create(parameters(), name, lr=1e-6, skip_nonfinite=False, **options)
    return lambda: optimizer.step(loss=1.0)


GRADIENTS = [torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.01 for shape in SHAPES]


def main() -> None:
    torch.set_num_threads(1)
    weights = parameters()
    hidden = [p for p in weights if p.dim() > 1][:-1]  # all but the last layer
    projector, rare = WeightProjector(hidden), WeightProjector(hidden, every=APART)

    def counted() -> None:
        rare.step()
        rare.steps = 0  # never the one that projects

    calls: dict[str, Callable[[], object]] = {
        "torch AdamW(fused)": torch.optim.AdamW(weights, lr=1e-6, fused=True).step,
        "a projection": projector.step,
        "a call that does not project": counted,
    }
    for name in ("adamw", "momo_adam", "prodigy"):
        calls |= {name: ours(name), f"{name} with Norms": ours(name, gradient=[Norms()])}
    calls["adamw around Project"] = ours("adamw", around=[Project()])
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            start = time.thread_time()
            call()
            times[name].append(time.thread_time() - start)
    medians = {name: statistics.median(of[FIRST:]) for name, of in times.items()}
    reference = medians["torch AdamW(fused)"]
    ratios = {name: seconds / reference for name, seconds in medians.items()}
    for name, ratio in ratios.items():
        print(f"{name:30} {1e3 * medians[name]:7.2f} ms {ratio:7.3f}")
    for name in ("adamw", "momo_adam", "prodigy"):
        print(f"Norms on {name}: {ratios[f'{name} with Norms'] - ratios[name]:+.3f}")
    rarely = ((APART - 1) * ratios["a call that does not project"] + ratios["a projection"]) / APART
    print(f"projection in every step {ratios['a projection']:+.3f}, in every {APART}th {rarely:+.4f}")


if __name__ == "__main__":
    main()

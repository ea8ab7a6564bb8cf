"""What projecting weights after a step adds to fused AdamW: `OMP_NUM_THREADS=1 python scripts/projector_cost.py`.

On the parameter list of a ResNet-50, in float32, on one thread: medians of what a step of AdamW takes, of the
projection behind it, and of a call that does not project, as most are with every=100.
"""

import statistics
import time

import torch

from untuned.study.contenders import MODELS
from untuned.wrappers import WeightProjector

ROUNDS, APART = 60, 100


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    shapes = MODELS["resnet50"]
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator) * 0.02) for shape in shapes]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator) * 0.01
    optimizer = torch.optim.AdamW(params, lr=1e-6, fused=True)
    hidden = [p for p in params if p.dim() > 1][:-1]  # all but the last layer
    projector = WeightProjector(hidden)
    rare = WeightProjector(hidden, every=APART)
    times = [list[float]() for _ in range(3)]
    for _ in range(ROUNDS):
        for kind, call in enumerate((optimizer.step, projector.step, rare.step)):
            start = time.perf_counter()
            call()
            times[kind].append(time.perf_counter() - start)
        rare.steps = 0  # never the one that projects
    base, every, count = (statistics.median(of[5:]) for of in times)
    print(f"fused AdamW {1e3 * base:.2f} ms, a projection {1e3 * every:.2f} ms: + {every / base:.3f}")
    print(f"every {APART}: + {((APART - 1) * count + every) / APART / base:.4f}")


if __name__ == "__main__":
    main()

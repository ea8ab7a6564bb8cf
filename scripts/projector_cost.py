"""What projecting weights after a step adds to fused AdamW: `OMP_NUM_THREADS=1 python scripts/projector_cost.py`.

Medians of interleaved steps on the parameter list of a ResNet-50, in float32, on one thread. A step with every=100 is
99 steps without and one with a projection.
"""

import statistics
import time

import torch

from untuned.study.contenders import MODELS
from untuned.wrappers import WeightProjector

ROUNDS, APART = 40, 100


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
    plain, projected, counted = list[float](), list[float](), list[float]()
    for _ in range(ROUNDS):
        for after, times in ((None, plain), (projector.step, projected), (rare.step, counted)):
            start = time.perf_counter()
            optimizer.step()
            if after:
                after()
            times.append(time.perf_counter() - start)
            rare.steps = 0  # never the one that projects
    base, every, count = (statistics.median(times[5:]) for times in (plain, projected, counted))
    print(f"fused AdamW {1e3 * base:.2f} ms, with a projection {1e3 * every:.2f} ms: + {every / base - 1:.3f}")
    print(f"every {APART}: + {((APART - 1) * count + every) / APART / base - 1:.4f}")


if __name__ == "__main__":
    main()

"""What one pass over tensors that fit the cache would gain Torque-Aware Momentum: decision 0008.

    python benchmarks/tam_one_pass.py

A kernel written by hand takes the sums of a tensor, then its step, tensor after tensor. Printed is the ratio to fused
AdamW on as many elements, measured side by side on one thread. The last row is one tensor, too large for any cache.
"""

import time

import numpy as np
import torch
from numba import njit

ELEMENTS = 2**25
CHUNK = 16384
SIZES = (65_536, 131_072, 262_144, 524_288, 1_048_576, 2_359_296, ELEMENTS)
FAST = {"reassoc", "nsz", "contract", "arcp", "afn"}


@njit(fastmath=FAST, error_model="numpy")
def look(m, g):
    mg = mm = gg = np.float32(0)
    for i in range(m.size):
        mg += m[i] * g[i]
        mm += m[i] * m[i]
        gg += g[i] * g[i]
    return mg / np.sqrt(mm * gg + np.float32(1e-30))


@njit(fastmath=FAST, error_model="numpy")
def move(p, m, g, take):
    for i in range(p.size):
        m[i] = np.float32(0.9) * m[i] + take * g[i]
        p[i] -= np.float32(1e-6) * m[i]


@njit(fastmath=FAST, error_model="numpy")
def step(p, m, g, size):
    for first in range(0, p.size, size):
        end = min(first + size, p.size)
        cosine = np.float32(0)
        for o in range(first, end, CHUNK):
            cosine += look(m[o : min(o + CHUNK, end)], g[o : min(o + CHUNK, end)])
        take = np.float32(0.5) + np.float32(1e-9) * cosine
        for o in range(first, end, CHUNK):
            here = slice(o, min(o + CHUNK, end))
            move(p[here], m[here], g[here], take)


def main() -> None:
    torch.set_num_threads(1)
    p, m, g = (torch.randn(ELEMENTS).numpy() for _ in range(3))
    weight = torch.nn.Parameter(torch.randn(ELEMENTS))
    weight.grad = torch.randn(ELEMENTS)
    adamw = torch.optim.AdamW([weight], lr=1e-6, fused=True)

    def seconds(run, *arguments) -> float:
        start = time.thread_time()
        run(*arguments)
        return time.thread_time() - start

    adamw.step()
    for size in SIZES:
        step(p, m, g, size)
        rounds = [(seconds(adamw.step), seconds(step, p, m, g, size), seconds(adamw.step)) for _ in range(9)]
        print(f"{size:>10,} elements a tensor: {np.median([2 * b / (a + c) for a, b, c in rounds]):.2f}")


if __name__ == "__main__":
    main()

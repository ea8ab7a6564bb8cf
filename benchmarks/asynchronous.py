"""Gradients per second of an asynchronous server with three workers, by engine.

    python benchmarks/asynchronous.py [--dim 2000] [--gradients 3000] [--workers 3]

The gradient is that of a parabola of `dim` float32 elements, which costs next to nothing: what is measured is the
server's step, the copy of the weights and the transport, in one process per worker and one thread each. A rate is the
gradients after the first tenth over the seconds they took, without the start of the processes. `server alone` is the
upper bound: the same messages from the process of the server, without any transport.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time

import torch

import untuned
from untuned.systems.asynchronous import Compute, Constant, Server, simulate

ENGINES = ("gloo", "rpc", "on_ray")  # modules of untuned.systems.asynchronous with a train(server, work)
METHODS = ("ormo", "sgd")


def compute(weights: torch.Tensor, draw: int) -> torch.Tensor:
    return weights * (0.5 + draw % 2)


def work(worker: int) -> Compute:
    return compute


def server(method: str, dim: int, workers: int, steps: int) -> Server:
    p = torch.nn.Parameter(torch.ones(dim))
    if method == "ormo":
        optimizer = untuned.OrMo([p], 1e-3, num_workers=workers, skip_nonfinite=False)
    else:
        optimizer = untuned.SGD([p], 1e-3, 0.9, skip_nonfinite=False)
    return Server(optimizer, workers, steps=steps)


def rate(times: list[float]) -> float:
    first = len(times) // 10
    return (len(times) - 1 - first) / (times[-1] - times[first])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, default in (("--dim", 2000), ("--gradients", 3000), ("--workers", 3)):
        parser.add_argument(option, type=int, default=default)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    write = sys.stdout.write
    write(f"{asked.dim} elements, {asked.workers} workers, {asked.gradients} gradients\n\n")
    write(f"| engine | {' | '.join(f'{method}, gradients/s' for method in METHODS)} |\n|---|{'---:|' * len(METHODS)}\n")
    for engine in ("server alone", *ENGINES):
        if engine == "on_ray" and importlib.util.find_spec("ray") is None:
            write("| on_ray | needs the extra ray | |\n")
            continue
        cells = []
        for method in METHODS:
            served, times = server(method, asked.dim, asked.workers, asked.gradients), list[float]()
            if engine in ENGINES:
                module = importlib.import_module(f"untuned.systems.asynchronous.{engine}")
                times = module.train(served, work).times
            else:
                simulate(served, compute, Constant(), watch=lambda *_, times=times: times.append(time.perf_counter()))
            cells.append(f"{rate(times):,.0f}")
        write(f"| {engine} | {' | '.join(cells)} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

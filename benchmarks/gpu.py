"""Every method on a CUDA GPU at the size of GPT-2 small, as a ratio to torch.optim.AdamW(fused=True).

    python benchmarks/gpu.py

needs torch with CUDA, Triton and this package with its extra `kernels`, takes less than eight minutes, and prints one
table. Columns:

    B/param     what a step reads and writes, by the programs of its sweeps, the check for bad gradients included
    bytes       the same as a ratio to fused AdamW in the same dtype: what the ratio would be if only bytes counted
    ratio       time on the device / mean of the fused AdamW steps before and after, median over the rounds
    graph       the same for a step captured in a CUDA graph
    GB/s, copy  bytes over time of the captured step (else of the plain one), and as a share of a copy's in this run
    kernels     what the device ran in one step: sweeps (with the sums of their chunks) + small operations
    syncs       times the host waited for the device in one step
    host        microseconds until `step()` returns

Gradients are random and change sign from step to step, lr is 1e-6, and the device sleeps while a timed step is
enqueued, so that `ratio` holds no host time.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

import untuned
from untuned.study.programs import streams

LIMIT = 420.0  # seconds after which no row is begun
SLEEP = 6_000_000  # cycles, about 3 ms: longer than any step takes to enqueue
REFERENCE = "torch AdamW(fused=True)"
DTYPES = {
    "float32": (torch.float32, None),
    "bfloat16, slots float32": (torch.bfloat16, None),
    "bfloat16, slots bfloat16": (torch.bfloat16, torch.bfloat16),
}
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy", "cuStreamSynchronize")


def gpt2_small(width: int = 768, layers: int = 12, tokens: int = 50257, context: int = 1024) -> list[tuple[int, ...]]:
    attention = [(3 * width, width), (3 * width,), (width, width), (width,)]
    mlp = [(4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    norm = [(width,), (width,)]
    return [(tokens, width), (context, width), *(norm + attention + norm + mlp) * layers, *norm]


class Contender:
    """An optimizer, ours or the reference, with parameters and gradients of its own."""

    def __init__(self, name: str, dtype: str, shapes: list[tuple[int, ...]]) -> None:
        kind, slot_dtype = DTYPES[dtype]
        generator = torch.Generator("cuda").manual_seed(0)

        def random(shape: tuple[int, ...]) -> torch.Tensor:
            return torch.empty(shape, dtype=kind, device="cuda").normal_(0, 0.01, generator=generator)

        self.size = sum(map(math.prod, shapes))
        self.params = [torch.nn.Parameter(random(shape)) for shape in shapes]
        for p in self.params:
            p.grad = random(tuple(p.shape))
        if name == REFERENCE:
            self.optimizer: Any = torch.optim.AdamW(self.params, lr=1e-6, fused=True)
            self.arguments: dict[str, Any] = {}
        else:
            self.optimizer = untuned.create(self.params, name, lr=1e-6, slot_dtype=slot_dtype, execution="native")
            self.arguments = {"loss": torch.ones((), device="cuda")}
        for _ in range(3):
            self.step()
            self.turn_gradients()

    def step(self) -> None:
        self.optimizer.step(**self.arguments)

    def turn_gradients(self) -> None:
        torch._foreach_neg_([p.grad for p in self.params])

    def bytes(self) -> int:
        """What a step reads and writes by name."""
        if not isinstance(self.optimizer, untuned.Optimizer):
            return 7 * sum(p.nbytes for p in self.params)  # p, g, m and v in, p, m and v out
        if self.optimizer._launch.rest:
            raise RuntimeError(f"{len(self.optimizer._launch.rest)} tensors went the reference way")
        keys = streams(self.optimizer, guard=True)
        held = [{"p": p, "g": p.grad} | self.optimizer.state[p] for p in self.params]
        return sum(tensors[key].nbytes for tensors in held for key in keys)

    def capture(self) -> Callable[[], None]:
        """A step as a CUDA graph."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        return graph.replay


def device_seconds(call: Callable[[], object]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(SLEEP)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def host_seconds(call: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def side_by_side(reference: Contender, contender: Contender, step: Callable[[], object], rounds: int) -> Iterator[Any]:
    """Pairs of the ratio to the reference's steps around a step, and the seconds of the step."""
    before = device_seconds(reference.step)
    for _ in range(rounds):
        contender.turn_gradients()
        seconds = device_seconds(step)
        reference.turn_gradients()
        after = device_seconds(reference.step)
        yield 2 * seconds / (before + after), seconds
        before = after


def count(step: Callable[[], object]) -> tuple[int, int, int]:
    """Kernels of sweeps, other work of the device, and waits of the host, in one step."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        with record_function("step"):
            step()
        torch.cuda.synchronize()
    events = profiled.events() or []
    span = next(e.time_range for e in events if e.name == "step" and e.device_type == DeviceType.CPU)
    ran = [e.name for e in events if e.device_type == DeviceType.CUDA and e.name != "step"]
    sweeps = sum(name in ("sweep", "add_chunks") for name in ran)
    waits = sum(e.name in WAITS and span.start <= e.time_range.start <= span.end for e in events)
    return sweeps, len(ran) - sweeps, waits


def copy_bandwidth(rounds: int) -> float:
    """Bytes read and written per second by a copy of 1 GiB."""
    source, target = (torch.ones(2**28, device="cuda") for _ in range(2))
    return 2 * source.nbytes / statistics.median(device_seconds(lambda: target.copy_(source)) for _ in range(rounds))


def row(name: str, dtype: str, reference: Contender, copy: float, rounds: int) -> str:
    contender = Contender(name, dtype, gpt2_small())
    ratios, seconds = zip(*side_by_side(reference, contender, contender.step, rounds), strict=True)
    low, ratio, high = statistics.quantiles(ratios, n=4)
    sweeps, others, waits = count(contender.step)
    host = statistics.median(host_seconds(contender.step) for _ in range(rounds))
    plain = statistics.median(seconds)
    try:
        pairs = side_by_side(reference, contender, contender.capture(), rounds)
        captured, seconds = map(statistics.median, zip(*pairs, strict=True))
        graph = f"{captured:.2f}"
    except (RuntimeError, AttributeError) as error:
        captured, seconds, graph = ratio, plain, "-"
        print(f"{name}, {dtype}: not captured: {str(error).splitlines()[0]}", file=sys.stderr)
    named = contender.bytes()
    speed = named / seconds
    return (
        f"{name:24s} {named / contender.size:7.1f} {named / reference.bytes():6.2f} "
        f"{ratio:6.2f} [{low:.2f}, {high:.2f}] {graph:>6s} {speed / 1e9:7.0f} {speed / copy:5.0%} "
        f"{sweeps:4d} +{others:3d} {waits:5d} {host * 1e6:7.0f}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=50, help="timed steps of each row (default 50)")
    parser.add_argument("methods", nargs="*", default=untuned.list(), help="default: all")
    options = parser.parse_args()
    if not torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        print("benchmarks/gpu.py needs a CUDA GPU, torch built for CUDA, and triton: this machine lacks one of them.")
        return 2
    begun = time.perf_counter()
    copy = copy_bandwidth(options.rounds)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, untuned {untuned.__version__}, {time.ctime()}")
    print(f"GPT-2 small, {options.rounds} rounds; a copy moves {copy / 1e9:.0f} GB/s")
    for dtype in DTYPES:
        print(f"\n{dtype:24s} B/param  bytes  ratio  quartiles     graph    GB/s  copy   kernels syncs host us")
        reference = Contender(REFERENCE, dtype, gpt2_small())
        for name in [REFERENCE, *options.methods]:
            if time.perf_counter() - begun > LIMIT:
                print(f"{name:24s} not measured: the time is up")
                continue
            print(row(name, dtype, reference, copy, options.rounds), flush=True)
            gc.collect()
    print(f"\n{time.perf_counter() - begun:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

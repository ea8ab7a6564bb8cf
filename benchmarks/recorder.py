"""What a trajectory recorder costs, as a share of a training step.

    python benchmarks/recorder.py [TASK ...]

needs the extra `study` and takes about a minute. Each task (fashion-mlp, fashion-cnn, fashion-vit if none is named) is
trained by SGD with momentum on one thread, a point being recorded after every second step. What a point costs is its
own time and what the next step takes longer than others, since the recorder has filled the cache. The table says what
that adds to a step if every so many are recorded. The line below names the smallest `every` of the table that stays
below 5 %, and what it adds when attached: blocks of that many steps with the recorder between blocks without. All times
are processor time, which other programs on the machine disturb less.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from untuned.diagnostics import TrajectoryRecorder
from untuned.study import tasks

EVERY = (1, 2, 5, 10, 20, 50)
LIMIT = 0.05
OPTIONS: dict[str, dict[str, Any]] = {"plain": {}, "by layer": {"groups": "layer"}, "sketch 2048": {"sketch": 2048}}


def steps_of(name: str) -> tuple[torch.nn.Module, torch.optim.Optimizer, Callable[[], None]]:
    """A model of the task, its optimizer, and a function that does one step."""
    task = tasks.load(name)
    model = task.model(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def batches() -> Iterator[Any]:
        for epoch in itertools.count():
            yield from (batch for batch in task.batches(0, epoch) if len(batch[0]) == task.batch_size)

    following = batches()

    def step() -> None:
        optimizer.zero_grad()
        task.loss(model, next(following)).backward()
        optimizer.step()

    return model, optimizer, step


def costs(name: str, options: dict[str, Any], rounds: int = 120) -> tuple[float, float]:
    """Seconds of a step, and what a recorded point adds: medians over rounds of step, point, step."""
    model, _, step = steps_of(name)
    recorder, taken = TrajectoryRecorder(model, **options), []
    for _ in range(rounds + 20):
        times = [time.thread_time()]
        for do in (step, recorder.record, step):
            do()
            times.append(time.thread_time())
        taken.append([b - a for a, b in itertools.pairwise(times)])
    one, point, following = (statistics.median(column) for column in zip(*taken[20:], strict=True))
    return one, point + following - one


def attached(name: str, every: int, steps: int = 1200) -> float:
    """What the recorder adds to a step: the median block of steps with it over the median one without, minus 1."""
    model, optimizer, step = steps_of(name)
    recorder = TrajectoryRecorder(model, every=every)

    def block() -> float:
        start = time.thread_time()
        for _ in range(every):
            step()
        return time.thread_time() - start

    without, with_it = [], []
    for _ in range(steps // (2 * every)):
        without.append(block())
        handle = recorder.attach(optimizer)
        with_it.append(block())
        handle.remove()
    return statistics.median(with_it) / statistics.median(without) - 1


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    print("| task | recorder | parameters | step, ms | point, ms |", " | ".join(f"every {e}" for e in EVERY), "|")
    print("| --- | --- |" + " --: |" * (3 + len(EVERY)))
    for name in names:
        model, _, _ = steps_of(name)
        size, enough = sum(p.numel() for p in model.parameters()), EVERY[-1]
        for kind, options in OPTIONS.items():
            one, point = costs(name, options)
            shares = [point / one / every for every in EVERY]
            if kind == "plain":
                enough = next((e for e, share in zip(EVERY, shares, strict=True) if share < LIMIT), EVERY[-1])
            cells = " | ".join(f"{100 * share:.1f} %" for share in shares)
            print(f"| {name} | {kind} | {size:,} | {1e3 * one:.2f} | {1e3 * point:.3f} | {cells} |", flush=True)
        print(
            f"{name}: attached with every={enough} it adds {100 * attached(name, enough):.1f} % to a step.", flush=True
        )


if __name__ == "__main__":
    main(sys.argv[1:] or ["fashion-mlp", "fashion-cnn", "fashion-vit"])

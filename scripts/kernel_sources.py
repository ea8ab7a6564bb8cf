"""Write the CPU kernels that Numba would compile for every method and many compositions to a file.

    python scripts/kernel_sources.py FILE.json                  # at one commit, with PYTHONPATH=src of that commit
    python scripts/kernel_sources.py FILE.json OTHER.json       # and say which recipes differ from another one's

No kernel is compiled: this takes seconds. Of a change that should not touch kernels, all sources are equal.
"""

from __future__ import annotations

import itertools
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import untuned
from untuned import directions, iterates, step_sizes
from untuned.kernels import native

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.core.problems import OPTIONS

Build = Callable[[list[torch.nn.Parameter]], untuned.Optimizer]


def recipes() -> dict[str, Build]:
    """What is built on two small tensors, by name."""

    def named(name: str, **options: Any) -> Build:
        return lambda params: untuned.create(params, name, **options)

    def composed(*parts: Any) -> Build:
        return lambda params: untuned.compose(params, *(part() for part in parts))

    found: dict[str, Build] = {}
    for name, options in OPTIONS.items():
        found[name] = named(name, **options)
        found[f"{name}, defaults"] = named(name, **{k: v for k, v in options.items() if k == "samples"})
        more = {"maximize": True, "clip_grad_norm": 1.0, "skip_nonfinite": False}
        found[f"{name}, other options"] = named(name, **options, **more)
        found[f"{name}, bfloat16 slots"] = named(name, **options, slot_dtype=torch.bfloat16)
        found[f"{name}, stochastic rounding"] = named(name, **options, stochastic_rounding=True)
    for d, s, i in itertools.product(
        (directions.Momentum, directions.Adam, directions.Lion, directions.TAM, directions.SNGM),
        (step_sizes.Fixed, step_sizes.MoMo, step_sizes.Prodigy, step_sizes.SPS),
        (iterates.Plain, iterates.PrimalAverage, iterates.ScheduleFree, iterates.Mechanic),
    ):
        found[f"{d.__name__} x {s.__name__} x {i.__name__}"] = composed(d, s, i)
    return found


def sources() -> dict[str, list[str]]:
    """The sources of each recipe and dtype; of one that is refused, its sentence."""
    found: dict[str, list[str]] = {}
    for (name, build), dtype in itertools.product(recipes().items(), (torch.float32, torch.float64, torch.bfloat16)):
        here = found[f"{name}, {dtype}"] = list[str]()

        def kept(source: str, here: list[str] = here) -> Callable[..., None]:
            here.append(source)
            return lambda *arguments: None

        native.compile_source = kept
        params = [torch.nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in ((5, 4), (7,))]
        try:
            optimizer = build(params)
            for _ in range(2):
                for p in params:
                    p.grad = torch.ones_like(p)
                optimizer.step(loss=1.0, sample_ids=[0, 1])
        except TypeError as refused:
            here.append(str(refused))
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    found = sources()
    Path(sys.argv[1]).write_text(json.dumps(found))
    print(f"{len(found)} recipes, {sum(map(len, found.values()))} sources and sentences")
    if len(sys.argv) > 2:
        other = json.loads(Path(sys.argv[2]).read_text())
        print("\n".join(["these differ:", *sorted(name for name in found if found[name] != other.get(name))]))

"""The recorder of sharded parameters: two processes over gloo say what one process says."""

import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from untuned.diagnostics import TrajectoryRecorder

SIZES = {"rows": (5, 3), "one": (1, 4), "copies": (6,), "plain": (7,)}


def points(count: int = 6) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in SIZES.items()} for _ in range(count)
    ]


def found(recorder: TrajectoryRecorder) -> dict[str, Any]:
    numbers = {group: [float(value) for value in vars(one).values()] for group, one in recorder.summary().items()}
    series = recorder.series("rows")
    return {"numbers": numbers, "update": torch.tensor(series.update), "left_out": recorder.left_out}


def watch(parameters: dict[str, Any], set_to: Any) -> dict[str, Any]:
    """Record the points, one that is not finite among them."""
    recorder = TrajectoryRecorder(parameters.items(), every=1, groups="tensor", sketch=16)
    for point in points()[1:]:
        for name, p in parameters.items():
            set_to(p, point[name])
        recorder.step()
    set_to(parameters["rows"], torch.full(SIZES["rows"], torch.nan, dtype=torch.float64).triu(2))
    recorder.step()
    return found(recorder) | {"map": torch.tensor(recorder.map().matrix)}


def rank(number: int, folder: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2, timeout=limit)
    try:
        mesh = init_device_mesh("cpu", (2,))
        places = {"rows": Shard(0), "one": Shard(0), "copies": Replicate()}  # rank 1 has nothing of "one"

        def spread(name: str, value: Tensor) -> Any:
            return distribute_tensor(value, mesh, [places[name]]) if name in places else value

        def set_to(p: Any, value: Tensor) -> None:
            name = next(n for n in parameters if parameters[n] is p)
            p.data.copy_(spread(name, value))

        parameters = {name: nn.Parameter(spread(name, value)) for name, value in points()[0].items()}
        torch.save(watch(parameters, set_to), folder / f"{number}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.timeout(120)
def test_two_ranks_say_what_one_process_says(tmp_path: Path) -> None:
    mp.spawn(rank, args=(tmp_path,), nprocs=2)
    whole = {name: nn.Parameter(value.clone()) for name, value in points()[0].items()}
    expected = watch(whole, lambda p, value: p.data.copy_(value))
    for number in range(2):
        one = torch.load(tmp_path / f"{number}.pt")
        assert one["left_out"] == expected["left_out"] == 1
        assert one["numbers"].keys() == expected["numbers"].keys()
        for group, numbers in expected["numbers"].items():
            assert one["numbers"][group] == pytest.approx(numbers, rel=1e-12, nan_ok=True), group
        assert torch.allclose(one["update"], expected["update"], equal_nan=True)
        assert one["map"].isfinite().all() and one["map"].shape == (6, 6)
    sketched = [torch.load(tmp_path / f"{number}.pt")["map"] for number in range(2)]
    assert torch.equal(*sketched)

"""Four processes against one, for every method: data parallel, sharded, sharded replicas, tensor parallel."""

from typing import Any

import processes
import pytest
import torch
from processes import LAYOUTS, OPTIONS, STEPS

import untuned

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return processes.run(processes.every_layout, tmp_path_factory.mktemp("four"), 4)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_four_processes_are_one(layout: str, name: str, ranks: list[dict[str, Any]]) -> None:
    found = [rank[f"{layout} {name}"] for rank in ranks]
    assert all(one["metrics"] == found[0]["metrics"] for one in found)
    assert all(torch.equal(one["end"], found[0]["end"]) for one in found)
    model = processes.network(processes.WIDTHS[layout])
    optimizer = untuned.create(model, name, **OPTIONS[name])
    processes.train(model, optimizer, range(STEPS))
    expected = processes.vector(model)
    way = (expected - processes.vector(processes.network(processes.WIDTHS[layout]))).abs().max()
    assert (found[0]["end"] - expected).abs().max() <= 1e-9 * way
    for key, value in optimizer.metrics().items():
        assert found[0]["metrics"][key] == pytest.approx(value, rel=1e-9, abs=1e-12), key

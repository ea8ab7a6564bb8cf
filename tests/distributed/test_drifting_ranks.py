"""Replicas whose ranks hold parameters of their own, with and without the option for it: seen from their numbers."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import forked
import processes
import pytest
import torch
from processes import OPTIONS
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import untuned

pytestmark = pytest.mark.xdist_group("drifting_ranks")  # its processes serve all tests of the file

# those that need the loss
SEEN = ["momo", "momo_adam", "sps", "dec_sps", "prox_sps", "sp", "alig", "taps", "motaps", "ngn"]
UNCAPPED = {"momo_adam": {"lr": 10.0}, "sps": {"lr": 10.0}}  # with a cap that binds the numbers are equal everywhere
HELD: dict[str, dict[str, Any]] = {"common": {}, "own": {}, "own and given": {"shard_group": "world"}}


def expert(rank: int, name: str, held: str) -> dict[str, Any]:
    """A network in common and an expert, which both ranks have or each has its own of; rank 0 alone asks for metrics
    in the middle of the run, as a logger does."""
    model = processes.network()
    wrapped = DistributedDataParallel(model)
    own = nn.Parameter(torch.full((3,), 1.0 if held == "common" else 1.0 + 2 * rank, dtype=torch.float64))
    optimizer = untuned.create([*model.parameters(), own], name, **OPTIONS[name] | UNCAPPED.get(name, {}) | HELD[held])
    for k in range(6):
        optimizer.zero_grad()
        loss = processes.loss_on(wrapped, k, slice(rank, None, 2)) + own.square().sum()
        loss.backward()
        optimizer.step(loss=loss, sample_ids=torch.arange(8)[rank::2] + 8 * (k % 2))
        if k == 3 and rank == 0:
            with warnings.catch_warnings(record=True) as early:
                optimizer.metrics()
    texts = []
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            keys = optimizer.metrics().keys()
        texts.append([str(w.message) for w in caught if "ranks" in str(w.message)])
    texts[0] += [str(w.message) for w in early if "ranks" in str(w.message)] if rank == 0 else []
    return {"end": processes.vector(model), "texts": texts, "keys": [*keys]}


def every_expert(rank: int, folder: Path) -> dict[str, Any]:
    return {f"{name} {held}": expert(rank, name, held) for name in SEEN for held in HELD}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return forked.run(every_expert, tmp_path_factory.mktemp("drifting") / "ranks", 2)


def test_all_methods_that_need_the_loss_are_here() -> None:
    def needs_loss(name: str) -> bool:
        optimizer = untuned.create([torch.ones(1, requires_grad=True)], name, **OPTIONS[name])
        return any("loss" in part.needs for part in optimizer.parts.values())

    assert [name for name in OPTIONS if needs_loss(name)] == SEEN


@pytest.mark.parametrize("name", SEEN)
def test_ranks_with_parameters_of_their_own_warn_once_and_name_the_option(
    name: str, ranks: list[dict[str, Any]]
) -> None:
    one, two = (rank[f"{name} own"] for rank in ranks)
    assert (one["end"] - two["end"]).abs().max() > 1e-6
    wanted = r"^\w+: numbers differ between ranks; parameters of one alone need shard_group\.$"
    for found in (one, two):
        first, second = found["texts"]
        assert len(first) == 1
        assert re.search(wanted, first[0])
        assert second == []
        assert "drifted" not in found["keys"]


@pytest.mark.parametrize("held", ["common", "own and given"])
@pytest.mark.parametrize("name", SEEN)
def test_ranks_whose_numbers_are_equal_do_not_warn(name: str, held: str, ranks: list[dict[str, Any]]) -> None:
    one, two = (rank[f"{name} {held}"] for rank in ranks)
    assert torch.equal(one["end"], two["end"])
    assert one["texts"] == two["texts"] == [[], []]

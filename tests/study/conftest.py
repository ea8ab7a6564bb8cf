"""Fixtures of the tests of tasks."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import stand_ins


@pytest.fixture(scope="session")
def stand_in_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    stand_ins.write(folder)
    return folder


@pytest.fixture(scope="module")
def fetched(stand_in_folder: Path) -> Iterator[None]:
    """Tasks whose data are fetched load small stand-ins of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNTUNED_DATA", str(stand_in_folder))
        yield

"""Settings of the whole test run."""

import importlib
import os

import pytest
import torch
from _pytest.doctest import DoctestItem
from hypothesis import settings

from untuned.run.launch import native_available

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, which torch.compile does too

# The examples are the same in every run; a busy machine is no failure.
settings.register_profile("untuned", deadline=None, derandomize=True)
settings.load_profile("untuned")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--execution",
        choices=["reference", "native"],
        default="reference",
        help="what runs the sweeps in tests/core; the kernels are compared with the reference in tests of their own",
    )


class Examples:
    """The examples in docstrings run by the reference: compiling kernels for each takes longer than all of them."""

    @pytest.fixture(autouse=True)
    def by_the_reference(self, request: pytest.FixtureRequest) -> None:
        if isinstance(request.node, DoctestItem):
            monkeypatch = request.getfixturevalue("monkeypatch")
            monkeypatch.setattr("untuned.run.launch.native_available", False)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Examples())  # not a fixture of this folder: docstrings lie outside it


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # the tensors are tiny, and the tests run in parallel


@pytest.fixture(scope="session", autouse=True)
def small_chunks() -> None:
    """Kernels take more than one chunk of the small tensors of tests, too."""
    if native_available:
        importlib.import_module("untuned.kernels.native").CHUNK = 16384

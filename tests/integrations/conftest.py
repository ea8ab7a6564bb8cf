"""What the tests of all trainers share."""

import sys
from pathlib import Path

import kill_and_resume
import pytest

SYSTEMS = Path(__file__).parents[1] / "systems"
sys.path.append(str(SYSTEMS))  # the checks of all engines of asynchronous training


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what every method did in the phases of the test's own file, started as a program."""
    folder = tmp_path_factory.mktemp("runs")
    kill_and_resume.run(str(request.path), folder)
    return folder

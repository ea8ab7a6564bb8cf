import problems
import pytest


@pytest.fixture(scope="session", autouse=True)
def execution(request: pytest.FixtureRequest) -> None:
    problems.execution = request.config.getoption("--execution")

"""Aggregates, profiles and intervals beside rliable (Agarwal et al. 2021, arXiv 2108.13264).

rliable takes arrays (seeds, tasks), the transpose of ours, and complete ones only. Its resampling uses NumPy's global
generator, so intervals agree up to the noise of resampling.

It is not in the extra `parity`: rliable 1.2.0 needs arch < 8, whose last release (7.2.0) cannot be imported beside
pandas 3, which constraints.txt pins. `pip install rliable==1.2.0 "pandas<3"` into an environment runs these tests.
"""

import numpy as np
import pytest

from untuned.study.aggregate import compare, iqm, mean, performance_profile, stratified_interval

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

A = np.random.default_rng(0).gamma(2.0, size=(8, 5)) * np.linspace(0.5, 2, 8)[:, None]
B = np.random.default_rng(1).gamma(2.2, size=(8, 5)) * np.linspace(0.5, 2, 8)[:, None]


@pytest.fixture
def rliable():
    """rliable's two modules (metrics, library), with the global generator seeded."""
    metrics = pytest.importorskip("rliable.metrics")
    library = pytest.importorskip("rliable.library")
    state = np.random.get_state()
    np.random.seed(0)
    yield metrics, library
    np.random.set_state(state)


@pytest.mark.parametrize("tasks", [False, True])
@pytest.mark.parametrize("level", [0.95, 0.8])
def test_mean_and_interquartile_mean(rliable, tasks: bool, level: float):
    metrics, library = rliable
    for ours, theirs in ((mean, metrics.aggregate_mean), (iqm, metrics.aggregate_iqm)):
        points, intervals = library.get_interval_estimates(
            {"a": A.T},
            lambda x, theirs=theirs: np.array([theirs(x)]),
            task_bootstrap=tasks,
            reps=4000,
            confidence_interval_size=level,
        )
        assert ours(A) == pytest.approx(points["a"][0], rel=1e-14)
        expected = intervals["a"][:, 0]
        assert stratified_interval(A, ours, level, tasks=tasks) == pytest.approx(expected, abs=0.05 * np.ptp(expected))


def test_probability_of_improvement(rliable):
    metrics, library = rliable
    points, intervals = library.get_interval_estimates(
        {"ab": [A.T, B.T]}, lambda x, y: np.array([metrics.probability_of_improvement(x, y)]), reps=2000
    )
    found = compare(A, B, "probability", higher_is_better=True, tasks=False)
    assert found.value == pytest.approx(points["ab"][0], rel=1e-14)
    expected = intervals["ab"][:, 0]
    assert found.interval == pytest.approx(expected, abs=0.05 * np.ptp(expected))


@pytest.mark.parametrize("tasks", [False, True])
def test_performance_profile(rliable, tasks: bool):
    _, library = rliable
    taus = np.linspace(0, 6, 25)
    shares, bands = library.create_performance_profile({"a": A.T}, taus, task_bootstrap=tasks, reps=2000)
    ours = performance_profile(A, taus, tasks=tasks)
    np.testing.assert_allclose(ours.share, shares["a"], rtol=0, atol=1e-14)
    np.testing.assert_allclose([ours.low, ours.high], bands["a"], rtol=0, atol=0.051)  # two of the 40 runs


def test_a_mean_over_tasks_whose_spread_is_ten_times_larger(rliable):
    """The two kinds of interval differ where they must, and both packages say so alike."""
    metrics, library = rliable
    scores = A + 10 * np.arange(8.0)[:, None]
    widths = {}
    for tasks in (False, True):
        _, theirs = library.get_interval_estimates(
            {"a": scores.T}, lambda x: np.array([metrics.aggregate_mean(x)]), task_bootstrap=tasks, reps=2000
        )
        widths[tasks] = np.ptp(stratified_interval(scores, mean, tasks=tasks))
        assert widths[tasks] == pytest.approx(np.ptp(theirs["a"]), rel=0.1)
    assert widths[True] > 10 * widths[False]

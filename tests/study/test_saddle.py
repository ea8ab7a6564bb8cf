"""The study of saddles: its problems, what the monitor computes, and the finding."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from untuned.diagnostics import SaddleMonitor
from untuned.study.papers import pages
from untuned.study.papers.rows import Record, read_csv, write_csv
from untuned.study.papers.saddle import STUDY
from untuned.study.papers.saddle_problems import PhaseRetrieval, Problem, Saddle, growth
from untuned.study.papers.saddle_runs import (
    BETAS,
    SETTINGS,
    Outcome,
    flagged,
    outcomes_of,
    points_of,
    predicted,
    run,
    scaled_means,
)

PROBLEMS = pytest.mark.parametrize("build", [Saddle, PhaseRetrieval])


def somewhere(problem: Problem, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.5 * torch.randn(problem.w.shape, generator=generator, dtype=torch.float64)


# ---------------------------------------------------------------- the problems


@PROBLEMS
def test_derivatives_are_exact(build: type[Problem]) -> None:
    problem = build([3, 4, 5])
    w = somewhere(problem).requires_grad_()
    index = next(problem.samples(batch=4))
    for chosen in (None, index):
        (g,) = torch.autograd.grad(problem.losses(w, chosen).sum(), w)
        torch.testing.assert_close(problem.gradient(w, chosen), g, rtol=1e-12, atol=1e-12)
    H = torch.autograd.functional.jacobian(lambda v: problem.gradient(v).sum(0), w.detach())  # [d, runs, d]
    torch.testing.assert_close(problem.hessian(w.detach()), H.transpose(0, 1), rtol=1e-12, atol=1e-12)
    problem.w.data = w.detach()
    problem(index).backward()
    torch.testing.assert_close(problem.w.grad, g, rtol=1e-12, atol=1e-12)


@PROBLEMS
def test_gradients_of_samples_have_the_gradient_as_mean(build: type[Problem]) -> None:
    problem = build([0, 1])
    w = somewhere(problem)
    each = [problem.gradient(w, torch.full((2, 1), i)) for i in range(problem.n)]
    torch.testing.assert_close(torch.stack(each).mean(0), problem.gradient(w), rtol=1e-12, atol=1e-12)
    drawn = torch.stack(list(itertools.islice(problem.samples(), 3000)))
    assert drawn.shape == (3000, 2, 1)
    counts = torch.bincount(drawn[:, 0, 0], minlength=problem.n).double()
    assert len(counts) == problem.n
    assert ((counts - 3000 / problem.n) ** 2).sum() / (3000 / problem.n) < 2 * problem.n  # chi squared


@PROBLEMS
def test_a_run_depends_on_its_seed_alone(build: type[Problem]) -> None:
    one, many = build([7]), build([2, 7, 9])
    for (name, alone), (_, among) in zip(one.named_buffers(), many.named_buffers(), strict=True):
        torch.testing.assert_close(
            alone if name == "curvature" else alone[0], among if name == "curvature" else among[1]
        )
    assert torch.equal(one.w[0], many.w[1])
    first, second = (list(itertools.islice(many.samples(), 1100)) for _ in range(2))
    alone = list(itertools.islice(one.samples(), 1100))
    assert all(torch.equal(a, b) and torch.equal(a[1], c[0]) for a, b, c in zip(first, second, alone, strict=True))


def test_the_data_have_the_published_spread() -> None:
    plane, phase = Saddle(range(300)), PhaseRetrieval(range(300))
    assert plane.b.var((0, 1)).tolist() == pytest.approx([0.1, 0.001], rel=0.1)
    assert phase.solution.var().item() == pytest.approx(1 / 10, rel=0.1)
    assert phase.w.var().item() == pytest.approx(1e-5, rel=0.1)
    assert phase.a.var().item() == pytest.approx(1, rel=0.01)


def test_the_valleys_of_the_saddle_without_noise() -> None:
    problem = Saddle([0], noise=0.0)
    ends = problem.valleys()[0]
    root = 0.01 ** (1 / 8)
    assert root == pytest.approx(0.5623, abs=5e-5)
    torch.testing.assert_close(ends, torch.tensor([[0, -root], [0, root]], dtype=torch.float64), rtol=1e-14, atol=1e-14)
    assert problem.losses(ends[:1]).item() == pytest.approx(-0.01265, abs=5e-6)
    assert problem.losses(torch.zeros(1, 2).double()).item() == 0
    half = 0.0
    for half in np.linspace(0, root, 4001):
        if problem.arrived(torch.tensor([[0.0, half]], dtype=torch.float64)).item():
            break
    assert -(half**2) / 20 + half**10 == pytest.approx(-0.01265 / 2, rel=1e-3)


def test_valleys_are_minima() -> None:
    problem = Saddle(range(50))
    for side in (0, 1):
        w = problem.valleys()[:, side]
        assert problem.gradient(w).abs().max() < 1e-14
        assert torch.linalg.eigvalsh(problem.hessian(w)).min() > 0.1
        assert (w[:, 1].sign() == 2 * side - 1).all()


def test_phase_retrieval_is_solved_at_both_signs() -> None:
    problem = PhaseRetrieval([0, 1])
    for w in (problem.solution, -problem.solution):
        assert problem.losses(w).abs().max() < 1e-25
        assert problem.error(w).tolist() == [0, 0]
        assert torch.linalg.eigvalsh(problem.hessian(w)).min() > 0
    assert problem.error(0 * problem.solution).tolist() == [1, 1]
    assert torch.linalg.eigvalsh(problem.hessian(0 * problem.solution)).max() < 0  # w = 0 is no minimum at all


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.99])
def test_growth_is_what_momentum_does_on_a_saddle(beta: float) -> None:
    eta, curvature, w, m = 5e-3, 0.1, 1e-8, 0.0
    for _ in range(int(30 / (1 - beta))):
        before, m = w, beta * m - curvature * w
        w -= eta * m
    assert w / before - 1 == pytest.approx(growth(beta, eta, curvature), rel=1e-9)


def test_growth_of_the_paper() -> None:
    assert growth(0.0, 5e-3, 0.1) == pytest.approx(5e-4, rel=1e-9)
    assert growth(0.9, 5e-3, 0.1) == pytest.approx(4.79e-3, rel=2e-3)
    for beta in BETAS:
        assert growth(beta, 5e-7, 0.1) == pytest.approx(5e-8 / (1 - beta), rel=1e-5)


# ---------------------------------------------------------------- the monitor


@PROBLEMS
@pytest.mark.parametrize("first", [1, 4])
@pytest.mark.parametrize("beta", [0.0, 0.6])
def test_the_ratios_are_their_formulas(build: type[Problem], first: int, beta: float) -> None:
    problem, eta, tau = build([0, 1, 2]), 2e-3, 9
    w, g, m = (somewhere(problem, seed) for seed in (0, 1, 2))
    m = g if beta == 0 else m
    found = SaddleMonitor(problem.losses, eta, beta, tau, problem.hessian, first)(w, g, m)
    products = SaddleMonitor(problem.losses, eta, beta, tau, first=first, rounds=3000)(w, g, m)
    for i in range(3):
        H, grad = problem.hessian(w)[i].numpy(), problem.gradient(w)[i].numpy()
        values, vectors = np.linalg.eigh(H)
        G = [np.eye(len(H)) - eta * sum(beta ** (s - k) for k in range(1, s + 1)) * H for s in range(1, tau)]
        M = np.linalg.multi_dot([np.eye(len(H)), *G, *G[first - 1 :]])
        if beta == 0:
            alone = np.eye(len(H)) - eta * H
            np.testing.assert_allclose(M, np.linalg.matrix_power(alone, 2 * tau - 1 - first), rtol=1e-12, atol=1e-15)
        one, other = g[i].numpy(), m[i].numpy()
        expected = {
            "gradient": np.linalg.norm(grad),
            "curvature": values[0],
            "cnc": (other @ vectors[:, 0]) ** 2,
            "apag": grad @ (other - one) / (grad @ grad),
            "apcg": grad @ M @ other / (eta * np.linalg.norm(M, 2) * (grad @ grad)),
            "grace": eta * grad @ (one - other) + eta**2 / 2 * other @ H @ other,
        }
        for key, value in expected.items():
            assert getattr(found, key)[i].item() == pytest.approx(value, rel=1e-9, abs=1e-14), key
            assert getattr(products, key)[i].item() == pytest.approx(value, rel=1e-6, abs=1e-12), key
        if beta == 0:
            assert found.apag[i] == 0
            assert found.grace[i].item() == pytest.approx(eta**2 / 2 * one @ H @ one, rel=1e-12)


def test_power_iteration_finds_the_lowest_eigenvalue_whatever_its_sign() -> None:
    generator = np.random.default_rng(0)
    rows = []
    for spectrum in ([-3, 1, 2], [-1, 2, 5], [1, 2, 5], [-5, -2, -1]):
        Q = np.linalg.qr(generator.normal(size=(3, 3)))[0]
        rows.append(Q @ np.diag(spectrum) @ Q.T)
    H = torch.tensor(np.array(rows))
    w = torch.ones(4, 3, dtype=torch.float64)
    monitor = SaddleMonitor(lambda x: (x[:, None] @ H @ x[..., None]).flatten() / 2, 0.1, 0.0, 1)
    assert monitor(w, w, w).curvature.tolist() == pytest.approx([-3, -1, 1, -5], rel=1e-9)


@pytest.mark.parametrize("options", [(0.0, 0.5, 3), (0.1, 1.0, 3), (0.1, -0.1, 3), (0.1, 0.5, 0)])
def test_monitors_that_make_no_sense_are_refused(options: tuple[float, float, int]) -> None:
    with pytest.raises(ValueError, match=r"^SaddleMonitor: eta must be positive, beta in \[0, 1\) and first between"):
        SaddleMonitor(lambda w: w.sum(-1), *options)


# ---------------------------------------------------------------- the finding


def off(means: dict[float, float]) -> np.ndarray:
    values = np.array(list(means.values()))
    return values / values.mean() - 1


@pytest.mark.slow
def test_escape_times_over_one_minus_beta_are_constant_within_two_per_cent() -> None:
    """Six seeds, as in the prototype, whose median times are 3292, 3283, 3278, 3232, 3270."""
    found = [o for beta in BETAS for o in run("saddle", beta, range(6))[0]]
    assert not any(o.diverged or math.isnan(o.steps) for o in found)
    assert np.abs(off(scaled_means(found))).max() < 0.02
    medians = [np.median([o.scaled for o in found if o.beta == beta]) for beta in BETAS]
    assert medians == pytest.approx([3292, 3283, 3278, 3232, 3270], rel=0.01)
    assert all(o.apag_mean > -0.5 for o in found)


def test_escape_is_faster_by_the_factor_one_minus_beta() -> None:
    """The same with the two largest betas."""
    found = [o for beta in (0.7, 0.9) for o in run("saddle", beta, range(6))[0]]
    assert np.abs(off(scaled_means(found))).max() < 0.02
    steps = {beta: np.mean([o.steps for o in found if o.beta == beta]) for beta in (0.7, 0.9)}
    assert steps[0.7] / steps[0.9] == pytest.approx(3, rel=0.04)


@pytest.mark.slow
def test_with_exact_gradients_the_growth_per_step_says_how_long_it_takes() -> None:
    """At beta 0.9 that is 7 % longer than the factor 1 - beta would have it."""
    found = [o for beta in BETAS for o in run("saddle", beta, range(6), batch=None)[0]]
    means = scaled_means(found)
    assert np.abs(off({beta: mean / predicted(beta, means[0.0]) for beta, mean in means.items()})).max() < 0.01
    assert 1.05 < means[0.9] / means[0.0] < 1.09


@pytest.mark.slow
def test_with_many_seeds_no_beta_differs_by_more_than_its_standard_error_explains() -> None:
    """Six seeds know their means to 10 % only. Of 64, seed by seed, no beta is more than 3 standard errors off."""
    found = {beta: run("saddle", beta, range(64))[0] for beta in BETAS}
    at_zero = np.array([o.scaled for o in found[0.0]])
    for beta in BETAS[1:]:
        apart = np.array([o.scaled for o in found[beta]]) - at_zero
        error = apart.std(ddof=1) / 8
        assert abs(apart.mean()) < 3 * error
        assert error < 0.04 * at_zero.mean()


def test_phase_retrieval_flags_the_beta_that_is_too_large() -> None:
    found = [o for beta in (0.5, 0.7, 0.9) for o in run("phase", beta, range(6))[0]]
    assert flagged(found) == [0.9]
    assert {o.beta for o in found if o.diverged} == {0.9}
    share = {beta: np.mean([o.apag_within for o in found if o.beta == beta]) for beta in (0.5, 0.7, 0.9)}
    assert share[0.5] > share[0.7] > 0.97 > 0.9 > share[0.9]
    assert all(o.measured > 20 for o in found)


def test_rows_give_back_the_runs_and_the_page_has_both_problems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("untuned.study.papers.saddle.BETAS", (0.0, 0.9))
    monkeypatch.setitem(SETTINGS, "saddle", replace(SETTINGS["saddle"], eta=0.05))
    jobs = STUDY.jobs(2, {})
    assert [job.arguments for job in jobs[:4]] == [
        {"problem": problem, "beta": beta, "seeds": 2} for problem in ("saddle", "phase") for beta in (0.0, 0.9)
    ]
    records = [
        Record(job.function.__name__, job.arguments, job.function(**job.arguments), 1.0, "2026-01-01", "here", "2.13.0")
        for job in jobs
    ]
    write_csv(STUDY, tmp_path, records)
    rows = read_csv(STUDY, tmp_path)
    outcomes, points = outcomes_of(rows), points_of(rows)
    assert [(o.problem, o.beta, o.seed) for o in outcomes] == list(
        itertools.product(("saddle", "phase"), (0.0, 0.9), (0, 1))
    )
    assert (outcomes[2:4], [p for p in points if p.problem == "saddle" and p.beta == 0.9]) == run(
        "saddle", 0.9, range(2)
    )
    pages.write(STUDY, tmp_path)
    text = (tmp_path / "saddle.md").read_text()
    for words in ("## Saddle in the plane", "## Phase retrieval", "| 0.9 | ", "largest beta to use: 0.", "n = 2 seeds"):
        assert words in text
    with Image.open(tmp_path / "saddle.png") as picture:
        assert min(picture.size) > 800


def test_runs_that_do_not_arrive_are_counted(tmp_path: Path) -> None:
    def outcome(problem: str, beta: float, seed: int, steps: float) -> Outcome:
        return Outcome(problem, beta, seed, steps, math.isnan(steps), 5, 0.5 if beta else 1.0, 0.1, 0.1, 0.1, 0.1)

    found = [outcome("phase", 0.0, s, 100.0) for s in (0, 1, 2)]
    found += [outcome("phase", 0.9, s, steps) for s, steps in enumerate((20.0, math.nan, math.nan))]
    assert scaled_means(found) == pytest.approx({0.0: 100.0, 0.9: 200.0})
    assert flagged(found) == [0.9]
    found[3:4] = [outcome("phase", 0.9, 0, math.nan)]
    assert math.isnan(scaled_means(found)[0.9])

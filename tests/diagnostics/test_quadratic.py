"""The one-dimensional laboratory: closed forms against a Lyapunov solve, simulation and the numbers of its source."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import solve_discrete_lyapunov

from untuned.diagnostics import coupled_eta, coupled_gamma, stationary_variance
from untuned.diagnostics.quadratic import largest_stable_eta, mean_path, mean_path_gap, simulate

H, S2 = 1.3, 0.7


def transition(eta: float, beta: float) -> np.ndarray:
    """Of (x, m) in averaged form."""
    return np.array([[1 - eta * (1 - beta) * H, -eta * beta], [(1 - beta) * H, beta]])


def lyapunov(eta: float, beta: float, s2: float) -> float:
    noise = np.array([[-eta * (1 - beta)], [1 - beta]])
    return solve_discrete_lyapunov(transition(eta, beta), s2 * noise @ noise.T)[0, 0]


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("eta", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("l", [1, 4])
def test_the_variance_matches_a_lyapunov_solve(eta: float, beta: float, l: int) -> None:  # noqa: E741
    assert stationary_variance(eta, beta, H, S2, l) == pytest.approx(lyapunov(eta / l, beta, l * S2), rel=1e-9)


@pytest.mark.parametrize(("eta", "ratio"), [(1.0, 0.362), (0.1, 0.938), (0.01, 0.994)])
def test_momentum_changes_the_curvature_term_alone(eta: float, ratio: float) -> None:
    found = stationary_variance(eta, 0.9, H, S2) / stationary_variance(eta, 0.0, H, S2)
    assert found == pytest.approx(ratio, abs=5e-4)


@pytest.mark.parametrize(
    ("l", "sgd", "momentum"), [(1, 0.1994, 0.1370), (4, 0.1465, 0.1352), (16, 0.1374, 0.1348), (10**9, 0.1346, 0.1346)]
)
def test_svag_closes_the_gap_from_the_side_of_sgd(l: int, sgd: float, momentum: float) -> None:  # noqa: E741
    assert stationary_variance(0.5, 0.0, H, S2, l) == pytest.approx(sgd, abs=5e-5)
    assert stationary_variance(0.5, 0.9, H, S2, l) == pytest.approx(momentum, abs=5e-5)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_the_bound_of_stability_is_where_the_spectral_radius_is_one(beta: float) -> None:
    bound = largest_stable_eta(beta, H)
    assert bound == pytest.approx(2 * (1 + beta) / (H * (1 - beta)))
    radii = [np.abs(np.linalg.eigvals(transition(s * bound, beta))).max() for s in (0.999, 1.001)]
    assert radii[0] < 1 < radii[1]
    assert math.isinf(stationary_variance(bound, beta, H, S2))
    assert math.isfinite(stationary_variance(bound, beta, H, S2, 2))
    assert largest_stable_eta(beta, H, 4) == pytest.approx(4 * bound)


def test_the_gap_of_the_mean_paths_is_of_first_order_in_eta() -> None:
    found = [mean_path_gap(0.1 / 2**i, 0.9) for i in range(5)]
    assert found == pytest.approx([0.301, 0.203, 0.129, 0.077, 0.044], abs=6e-4)


def test_the_gap_is_of_half_order_where_beta_grows_as_eta_falls() -> None:
    found = [mean_path_gap(eta, 1 - eta**0.5) for eta in (0.1 / 4**i for i in range(4))]
    assert found == pytest.approx([0.124, 0.088, 0.055, 0.032], abs=6e-4)


@pytest.mark.parametrize(("beta", "l"), [(0.0, 1), (0.9, 1), (0.0, 4)])
def test_simulation_has_the_variance(beta: float, l: int) -> None:  # noqa: E741
    found = simulate(0.5, beta, H, S2, l, steps=60 * l, runs=20_000, seed=3)
    assert found.var() == pytest.approx(stationary_variance(0.5, beta, H, S2, l), rel=0.04)
    assert abs(found.mean()) < 0.02


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_the_averaged_form_is_torch_with_the_coupled_learning_rate(beta: float) -> None:
    eta = 0.3
    w = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([w], lr=coupled_gamma(eta, beta), momentum=beta)
    path = [w.item()]
    for _ in range(40):
        optimizer.zero_grad()
        (H * w**2 / 2).sum().backward()
        optimizer.step()
        path.append(w.item())
    assert mean_path(eta, beta, H, 40 * eta) == pytest.approx(path, rel=1e-12, abs=1e-13)


def test_the_coupling_and_its_inverse() -> None:
    assert coupled_eta(0.02, 0.9) == pytest.approx(0.2)
    assert coupled_gamma(coupled_eta(0.3, 0.7, 0.2), 0.7, 0.2) == pytest.approx(0.3)
    assert coupled_gamma(0.123, 0.0) == 0.123  # bitwise: beta 0 is plain SGD
    assert coupled_eta(0.2, 0.9, dampening=0.9) == pytest.approx(0.2)  # the averaged form
    with pytest.raises(ValueError, match="beta must be in"):
        coupled_eta(0.1, 1.0)

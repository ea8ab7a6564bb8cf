"""The formulas of noise: published bounds, exact values, the cubic, and where they meet."""

import math

import numpy as np
import pytest

from untuned.diagnostics import critical_batch, noise_parts, noise_scale
from untuned.diagnostics.critical_batch import critical_of
from untuned.noise_scale import FORMULAS, beta_of, bhat

CIFAR = {"b": 128, "C2": 25.318, "K": 1.77}  # ResNet18 in the published code


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.9, 0.99])
def test_bhat_has_a_simpler_form(beta: float) -> None:
    assert bhat(beta) == pytest.approx((beta / (1 - beta)) ** 2 + beta)
    assert bhat(0.9) == pytest.approx(81.9)


@pytest.mark.parametrize(
    ("kind", "source", "delta"),
    [("shb", "published", 16.52), ("shb", "exact", 15.96), ("nshb", "published", 3.32), ("nshb", "exact", 0.10)],
)
def test_bound_and_exact_value_at_the_published_constants(kind: str, source: str, delta: float) -> None:
    assert noise_scale(kind, 1.0, beta=0.9, source=source, **CIFAR) == pytest.approx(delta, abs=6e-3)
    assert noise_scale(kind, 0.1, beta=0.9, source=source, **CIFAR) == pytest.approx(delta / 10, abs=6e-4)


def test_the_published_scale_at_beta_09_is_step_length_not_randomness() -> None:
    assert noise_parts("shb", beta=0.9, **CIFAR).share > 0.9
    assert noise_parts("shb", beta=0.9, source="exact", **CIFAR).share > 0.99


@pytest.mark.parametrize(("kind", "source"), FORMULAS)
def test_all_forms_are_sgd_at_beta_zero(kind: str, source: str) -> None:
    assert noise_scale(kind, 0.3, 16, 0.0, 5.0, 2.0, source=source) == pytest.approx(0.3 * math.sqrt(5 / 16))


@pytest.mark.parametrize(("kind", "source"), FORMULAS)
def test_an_infinite_batch_leaves_the_part_of_the_gradient(kind: str, source: str) -> None:
    parts = noise_parts(kind, math.inf, 0.9, 5.0, 2.0, source=source)
    bias = {"sgd": 0.0, "shb": 81.9 * 4 if source == "published" else 81.0 * 4, "nshb": 4 * 0.81 * 4, "qhm": 0.0}[kind]
    assert (parts.noise, parts.gradient) == (0.0, pytest.approx(0.0 if (kind, source) == ("nshb", "exact") else bias))


@pytest.mark.parametrize("kind", ["sgd", "shb", "nshb"])
@pytest.mark.parametrize("beta", [0.0, 0.2, 0.9, 0.99])
def test_the_bound_is_above_the_exact_value(kind: str, beta: float) -> None:
    for b, C2, K in [(1, 1.0, 0.0), (64, 100.0, 0.1), (math.inf, 1.0, 1.0)]:
        bound, exact = (noise_parts(kind, b, beta, C2, K, source=source) for source in ("published", "exact"))
        assert exact.gradient <= bound.gradient * (1 + 1e-12) and exact.noise <= bound.noise * (1 + 1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.7, 1.0])
def test_the_factor_of_qhm_is_the_energy_of_its_weights(gamma: float) -> None:
    beta = 0.9
    weights = gamma * (1 - beta) * beta ** np.arange(2000)
    weights[0] += 1 - gamma
    parts = noise_parts("qhm", 4, beta, 8.0, 3.0, gamma=gamma, source="exact")
    assert (parts.noise, parts.gradient) == (pytest.approx(2 * (weights**2).sum()), 0.0)


def test_qhm_is_between_sgd_and_nshb() -> None:
    def of(kind: str, **kw: float) -> float:
        return noise_parts(kind, 4, 0.9, 8.0, 3.0, source="exact", **kw).total

    assert of("qhm", gamma=0.0) == of("sgd") and of("qhm", gamma=1.0) == of("nshb")


@pytest.mark.parametrize("beta", [0.0, 1e-6, 0.2, 0.5, 0.9, 0.99, 0.9999])
def test_the_root_of_the_cubic_is_the_beta_it_came_from(beta: float) -> None:
    q = bhat(beta)
    assert beta_of(q) == pytest.approx(beta, rel=1e-9, abs=1e-12)
    real = [z.real for z in np.roots([1, -(1 + q), 1 + 2 * q, -q]) if abs(z.imag) < 1e-9 and 0 <= z.real < 1]
    assert max(real) == pytest.approx(beta, abs=1e-6)


def test_bad_input_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="no formula 'qhm' from 'published'; it has sgd published"):
        noise_scale("qhm", 0.1, 8, 0.9, 1.0, 1.0)
    for wrong in ({"b": 0}, {"beta": 1.0}, {"C2": -1.0}, {"K": math.nan}, {"gamma": 2.0}):
        with pytest.raises(ValueError, match="noise_parts: b must be positive"):
            noise_parts("shb", **{"b": 8, "beta": 0.9, "C2": 1.0, "K": 1.0} | wrong)
    with pytest.raises(ValueError, match="eta must not be negative"):
        noise_scale("sgd", -0.1, 8, 0.9, 1.0, 1.0)
    with pytest.raises(ValueError, match="q must be finite"):
        beta_of(-1.0)


# ------------------------------------------------------------------ critical batch size


def test_from_the_bound_itself_the_variance_comes_back_within_the_powers_of_two() -> None:
    eta, eps, C2 = 0.1, 0.3, 40.0

    def steps(b: int) -> int | None:
        left = eps**2 - eta * C2 / (2 * b)
        return math.ceil(1000 / left) if left > 0 else None

    found = critical_batch(steps, eta=eta, eps=eps, largest=1024)
    assert found.batch in (32, 64) and found.inside  # the minimum of the bound: eta C2 / eps^2 = 44.4
    assert C2 / 2 < found.C2 < 2 * C2
    assert "order of magnitude only" in str(found)
    assert max(found.tried) < 1024  # it stopped when two in a row were worse


def noisy_quadratic(b: int, eta: float, eps: float, C2: float, limit: int = 20_000) -> int | None:
    """SGD on |x|^2 / 2 in ten dimensions; the first step at which the mean of |grad f|^2 so far is at most eps^2."""
    rng = np.random.default_rng(b)
    x, total = np.full(10, 1.0), 0.0
    for k in range(1, limit):
        total += float(x @ x)
        if total / k <= eps**2:
            return k
        x -= eta * (x + math.sqrt(C2 / b / 10) * rng.standard_normal(10))
    return None


def test_on_a_noisy_quadratic_the_order_of_magnitude_is_right() -> None:
    eta, eps, C2 = 0.05, 0.2, 4.0
    found = critical_batch(lambda b: noisy_quadratic(b, eta, eps, C2), eta=eta, eps=eps, largest=512)
    assert C2 / 10 < found.C2 < 10 * C2


def test_the_number_of_runs_is_capped_and_edges_are_told() -> None:
    asked = []

    def steps(b: int) -> int:
        asked.append(b)
        return 1000 // b**2 + 1  # larger is always better

    found = critical_batch(steps, eta=0.1, eps=0.5, smallest=2, largest=4096, runs=3)
    assert asked == [2, 4, 8] and found.batch == 8 and not found.inside and "at an end of the sweep" in str(found)
    none = critical_of({4: None, 8: None}, eta=0.1, eps=0.5)
    assert none.batch is None and math.isnan(none.C2) and str(none) == "none of the batch sizes 4, 8 reached the goal"
    with pytest.raises(ValueError, match="smallest between 1 and largest"):
        critical_batch(steps, eta=0.1, eps=0.5, smallest=8, largest=4)

"""The machine against its equations written naively, exact limits, and what can go wrong."""

import math
import re
import time
import warnings
from typing import Any

import numpy as np
import pytest
import torch

import untuned
from untuned.systems.ising import CIM, BoxQP, Ising, Samples, conditioned, sherrington_kirkpatrick, sparse_boxqp
from untuned.systems.ising.feedback import mixes

NAMED = pytest.mark.parametrize("feedback", ["gradient", "momentum", "adam"])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def double(**options: Any) -> dict[str, Any]:
    return {"samples": 3, "steps": 200, "dtype": torch.float64} | options


def naive(problem: BoxQP, feedback: str, T: int, samples: int, lam: float = 550.0) -> tuple[Any, Any]:
    """mu and sigma at the end, element by element as the equations stand, with draws from the same generator."""
    dt, g, pT, j0 = 0.0025, 0.01, 2.5, 25.0
    Q, V, n = problem.Q.numpy(), problem.V.numpy(), problem.n
    draw = seeded()
    s = math.sqrt(pT - 1 - j0 * math.exp(-3)) / g
    mu = torch.rand((samples, n), generator=draw, dtype=torch.float64).numpy() * 2 * s - s
    sigma = 1 + torch.rand((samples, n), generator=draw, dtype=torch.float64).numpy() / 2
    B, m, v = np.zeros_like(mu), np.zeros_like(mu), np.zeros_like(mu)
    for t in range(1, T):
        j, p = j0 * math.exp(-3 * t / T), pT * t / T
        Z = torch.randn((samples, n), generator=draw, dtype=torch.float64).numpy()
        x = np.clip((mu + Z / (2 * math.sqrt(j * dt)) + s) / (2 * s), 0, 1)
        G = (2 * x @ Q + V) / (2 * s)
        if feedback == "gradient":
            U = -G
        elif feedback == "momentum":
            B = 0.9 * B + G
            U = -B
        else:
            m, v = 0.9 * m + 0.1 * G, 0.999 * v + 0.001 * G**2
            U = -(m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        drift = (-(1 + j) + p - g**2 * mu**2) * mu + lam * U
        spread = 2 * (-(1 + j) + p - 3 * g**2 * mu**2) * sigma - 2 * j * (sigma - 0.5) ** 2
        spread += (1 + j) + 2 * g**2 * mu**2
        mu, sigma = mu + dt * drift + math.sqrt(j) * (sigma - 0.5) * Z * math.sqrt(dt), sigma + dt * spread
    return mu, sigma


# ---------------------------------------------------------------- the equations


@NAMED
def test_the_machine_follows_its_equations(feedback: str) -> None:
    problem = sparse_boxqp(6, 0.7, seeded(1))
    found = CIM(feedback, **double()).solve(problem, seeded())
    mu, sigma = naive(problem, feedback, T=200, samples=3)
    np.testing.assert_allclose(found.amplitude.numpy(), mu, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.variance.numpy(), sigma, rtol=1e-9)
    s = CIM().saturation
    assert s == pytest.approx(50.53, abs=0.005)
    np.testing.assert_allclose(found.x.numpy(), np.clip((mu + s) / (2 * s), 0, 1), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(found.value.numpy(), problem.value(found.x).numpy())


@NAMED
def test_single_precision_ends_at_the_same_points(feedback: str) -> None:
    problem = sparse_boxqp(6, 0.7, seeded(1))
    found = CIM(feedback, samples=3, steps=50).solve(problem, seeded())
    assert found.amplitude.dtype == torch.float32
    again = CIM(feedback, samples=3, steps=50).solve(problem, seeded())
    assert torch.equal(found.amplitude, again.amplitude) and torch.equal(found.history, again.history)
    assert not torch.equal(found.amplitude, CIM(feedback, samples=3, steps=50).solve(problem, seeded(1)).amplitude)


def test_uncoupled_and_without_noise_amplitudes_come_to_rest_at_the_saturation() -> None:
    machine = CIM("gradient", **double(steps=4000), strength=0, noise=0, pump=lambda _: 3.5, measurement=lambda _: 0.5)
    found = machine.solve(sparse_boxqp(4, 1.0, seeded()), seeded())
    expected = math.sqrt(3.5 - 1 - 0.5) / 0.01
    assert machine.saturation == expected
    torch.testing.assert_close(
        found.amplitude.abs(), torch.full((3, 4), expected, dtype=torch.float64), rtol=1e-6, atol=0
    )


def test_measurement_and_back_action_have_the_same_noise() -> None:
    # one round trip: without feedback mu moves by its drift and the back-action of Z, and for f = x'x inside the box
    # the gradient is linear in the measured mu + Z / (2 sqrt(j dt)).
    problem = BoxQP(torch.eye(50), torch.zeros(50))
    start, silent, fed = (
        CIM("gradient", **double(steps=steps), strength=strength).solve(problem, seeded())
        for steps, strength in ((1, 0), (2, 0), (2, 1))
    )
    dt, s, j, p = 0.0025, CIM().saturation, 25 * math.exp(-1.5), 2.5 / 2
    mu = start.amplitude
    drift = dt * ((-(1 + j) + p) * mu - 1e-4 * mu**3)
    back_action = (silent.amplitude - mu - drift) / (math.sqrt(j * dt) * (start.variance - 0.5))
    measured = 2 * s * (2 * s / 2) * (silent.amplitude - fed.amplitude) / dt - s
    inside = measured.abs() < 0.999 * s
    assert 50 < inside.sum() < 150
    torch.testing.assert_close(((measured - mu) * 2 * math.sqrt(j * dt))[inside], back_action[inside])


def test_the_sign_of_the_gradient_by_two_variables() -> None:
    problem = BoxQP(torch.tensor([[0.0, 10.0], [10.0, 0.0]]), torch.tensor([-10.0, -5.0]), optimum=-10)  # at (1, 0)
    for feedback in ("gradient", "momentum", "adam"):
        found = CIM(feedback, samples=16, steps=3000).solve(problem, seeded())
        assert found.value.min().item() == pytest.approx(-10, rel=1e-3)
        assert (found.value < -4.9).all()  # the other minimum, (0, 1), has -5; the maximum has +5


def test_spins_align_with_their_coupling() -> None:
    found = CIM("gradient", samples=8, steps=3000).solve(Ising(torch.tensor([[0.0, 50.0], [50.0, 0.0]])), seeded())
    assert (found.x[:, 0] == found.x[:, 1]).all() and (found.value == -50).all()


# ---------------------------------------------------------------- feedback


def run(feedback: Any, problem: Any = None, **options: Any) -> Samples:
    return CIM(feedback, **double(**options)).solve(problem or sparse_boxqp(5, 1.0, seeded(2)), seeded())


@pytest.mark.parametrize("library", [untuned, torch.optim])
def test_an_optimizer_as_feedback_is_the_feedback_of_its_name(library: Any) -> None:
    for factory, name in (
        (lambda p: library.SGD(p, lr=1), "gradient"),
        (lambda p: library.SGD(p, lr=1, momentum=0.0), "gradient"),
        (lambda p: library.SGD(p, lr=1, momentum=0.9), "momentum"),
        (lambda p: library.Adam(p, lr=1), "adam"),
    ):
        for per_sample in (False, True):
            found = run(factory, per_sample=per_sample)
            torch.testing.assert_close(found.amplitude, run(name).amplitude, rtol=1e-9, atol=1e-9)


def test_the_damped_momentum_of_the_equation_is_a_tenth_of_the_strength() -> None:
    class Damped(torch.optim.Optimizer):
        """B = theta B + (1 - theta) G."""

        def __init__(self, params: Any) -> None:
            super().__init__(params, {})

        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            for p in self.param_groups[0]["params"]:
                B = self.state[p]["B"] = 0.9 * self.state[p].get("B", 0) + 0.1 * p.grad
                p.sub_(B)

    a, b = run(Damped), run("momentum", strength=55.0)
    torch.testing.assert_close(a.amplitude, b.amplitude, rtol=1e-9, atol=1e-9)


def test_adam_does_not_see_the_scale_of_the_problem_and_the_gradient_does() -> None:
    problem = sparse_boxqp(5, 1.0, seeded(2))
    moved = {
        name: (run(name, problem.scaled(2.5)).amplitude - run(name, problem).amplitude).abs().max().item()
        for name in ("gradient", "adam")
    }
    assert moved["adam"] < 1e-3 and moved["gradient"] > 1


def test_a_rule_that_looks_at_the_whole_model_says_that_it_mixes_samples() -> None:
    problem = sparse_boxqp(5, 1.0, seeded(2))
    with pytest.warns(RuntimeWarning, match="^SNGM as feedback mixes the samples.*per_sample=True"):
        mixed = run(lambda p: untuned.SNGM(p, lr=1), problem)
    apart = run(lambda p: untuned.SNGM(p, lr=1), problem, per_sample=True)
    with pytest.warns(RuntimeWarning, match="mixes"):
        fewer = CIM(lambda p: untuned.SNGM(p, lr=1), **double(samples=2)).solve(problem, seeded())
    assert not torch.allclose(mixed.amplitude, apart.amplitude)
    assert not torch.allclose(mixed.amplitude[:2], fewer.amplitude)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sgd", False),
        ("adam", False),
        ("sngm", True),
        ("momo", True),
        ("prodigy", True),
        ("multiplicative_adam", False),
    ],
)
def test_whether_rules_mix_samples(name: str, expected: bool) -> None:
    assert mixes(lambda p: untuned.create(p, name, lr=1.0), 4) is expected


def test_samples_of_their_own_do_not_depend_on_each_other() -> None:
    """A first sample whose neighbours follow another rule."""
    problem = sparse_boxqp(5, 1.0, seeded(2))

    def first(scale: float) -> torch.Tensor:
        def factory(p: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
            made.append(untuned.MoMo(p, lr=scale if made else 1.0))
            return made[-1]

        made: list[torch.optim.Optimizer] = []
        return run(factory, problem, per_sample=True, steps=30).amplitude

    a, b = first(1.0), first(0.1)
    torch.testing.assert_close(a[0], b[0], rtol=0, atol=0)
    assert not torch.allclose(a[1:], b[1:])


def test_rules_that_need_the_loss_get_f_at_the_measured_points() -> None:
    seen: list[float] = []

    class Spy(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            seen.append(closure().item())
            return super().step()

    problem = BoxQP(torch.eye(3), torch.tensor([1.0, -1.0, 0.5]), constant=7.0)
    start = CIM("gradient", **double(steps=1), noise=0).solve(problem, seeded())
    run(lambda p: Spy(p, lr=1.0), problem, steps=2, noise=0)
    assert seen[-1] == pytest.approx(problem.value(start.x).sum().item())


@pytest.mark.parametrize(
    ("feedback", "error", "message"),
    [
        (
            "nesterov",
            ValueError,
            "feedback is one of gradient, momentum, adam or a function of parameters, not 'nesterov'",
        ),
        (3, TypeError, "feedback is one of gradient, momentum, adam or a function of parameters, not 3"),
        (lambda p: None, TypeError, "feedback must return an optimizer of the parameters it is given, not None"),
        (
            lambda p: torch.optim.SGD([torch.zeros(2, requires_grad=True)], lr=1.0),
            TypeError,
            "feedback must return an optimizer of the parameters it is given: SGD",
        ),
    ],
)
def test_a_feedback_that_is_none_is_refused(feedback: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        run(feedback)


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "CIM: samples must be a whole number from 1 on, not 0."),
        ({"steps": 1.5}, "CIM: steps must be a whole number from 1 on, not 1.5."),
        ({"dt": 0.0}, "CIM: dt must be a finite number above 0, not 0.0."),
        ({"strength": -1.0}, "CIM: strength must be a finite number from 0 on, not -1.0."),
        ({"g": math.nan}, "CIM: g must be a finite number above 0, not nan."),
        ({"measurement": 0.0}, "CIM: measurement must be positive and finite, not 0.0."),
        ({"pump": 2.0}, "CIM: the pump ends below threshold: 2 must be above 1 + j = 2.24468 at the end."),
        ({"dtype": torch.float16}, "CIM: dtype must be torch.float32 or torch.float64, not torch.float16."),
    ],
)
def test_options_outside_their_ranges_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="CIM") as caught:
        CIM(**options)
    assert str(caught.value) == message


def test_recording_every_no_round_trip_is_refused() -> None:
    with pytest.raises(ValueError, match="every must be"):
        CIM().solve(sparse_boxqp(2, 1.0, seeded()), every=0)


def test_diverged_samples_are_counted_and_keep_their_place() -> None:
    problem = conditioned(8, 1000, seeded())
    with pytest.warns(
        RuntimeWarning, match=r"^CIM: 5 of 5 samples diverged \(dt 0.0025, strength 550\) and count as fail"
    ):
        found = CIM("gradient", samples=5, steps=3000).solve(problem, seeded())
    assert found.diverged.all() and found.x.shape == (5, 8) and found.x.isnan().all()
    assert found.value.isinf().all() and found.best.isinf().all() and found.history[-1].isinf().all()


def test_one_sample_that_diverges_leaves_the_others_as_they_are() -> None:
    problem = sparse_boxqp(4, 1.0, seeded())
    clean = run(lambda p: untuned.Adam(p, lr=1), problem)

    class Broken(untuned.Adam):
        def step(self, *a: Any, **k: Any) -> Any:
            out = super().step(*a, **k)
            with torch.no_grad():
                self.param_groups[0]["params"][0][1] = math.inf
            return out

    with pytest.warns(RuntimeWarning, match="1 of 3 samples diverged"):
        found = CIM(Broken, **double()).solve(problem, seeded())  # Adam's own lr, 1e-3
    assert found.diverged.tolist() == [False, True, False]
    with pytest.warns(RuntimeWarning, match="1 of 3 samples diverged"):
        found = CIM(lambda p: Broken(p, lr=1), **double()).solve(problem, seeded())
    torch.testing.assert_close(found.amplitude[[0, 2]], clean.amplitude[[0, 2]])


def test_a_dt_that_is_too_large_is_told_before_the_run() -> None:
    machine = CIM("gradient", samples=2, steps=20, dt=0.05)
    assert machine.fastest_rate == pytest.approx(2 * 26 + 100 + 6 * 0.2553, rel=1e-3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        machine.solve(sparse_boxqp(3, 1.0, seeded()), seeded())
    assert str(caught[0].message).startswith(
        "CIM: dt = 0.05 is too large for Euler's method: times the fastest rate, 153.5"
    )


def test_a_variance_below_zero_is_noted() -> None:
    with pytest.warns(RuntimeWarning, match="too large"):
        found = CIM("gradient", samples=4, steps=200, dt=0.02).solve(sparse_boxqp(3, 1.0, seeded()), seeded(), every=1)
    assert found.negative_variance.any()
    assert not run("gradient").negative_variance.any()


def test_what_is_recorded() -> None:
    problem = sherrington_kirkpatrick(6, seeded())
    found = CIM("adam", samples=4, steps=28).solve(problem, seeded(), every=10)
    assert found.rounds.tolist() == [1, 10, 20, 27] and found.history.shape == (4, 4)
    assert torch.equal(found.best, found.history.min(0).values) and torch.equal(found.value, found.history[-1])
    assert set(found.x.flatten().tolist()) <= {0.0, 1.0}
    finer = CIM("adam", samples=4, steps=28).solve(problem, seeded(), every=1)
    assert torch.equal(finer.history[[0, 9, 19, 26]], found.history) and torch.equal(finer.x, found.x)
    start = CIM("adam", samples=4, steps=1).solve(problem, seeded())
    assert start.history.shape == (0, 4) and torch.equal(start.best, start.value)


@pytest.mark.parametrize("feedback", ["gradient", "momentum", "adam", lambda p: untuned.SGD(p, lr=1, momentum=0.9)])
def test_a_thousand_round_trips_take_less_than_three_seconds(feedback: Any) -> None:
    """200 samples of 100 variables on one core: a fifteenth of that on a quiet one, see benchmarks/ising.py."""
    problem = sparse_boxqp(100, 0.5, seeded())
    begin = time.process_time()
    CIM(feedback, samples=200, steps=1001).solve(problem)
    assert time.process_time() - begin < 3

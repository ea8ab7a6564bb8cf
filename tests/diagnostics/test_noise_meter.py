"""The meter finds the noise that is there, splits it, and changes no number of the run."""

import math

import pytest
import torch
from torch import nn

import untuned
from untuned.diagnostics import NoiseMeter, gradient_noise, noise_parts

G = torch.Generator().manual_seed(0)
X, Y = torch.randn(40, 5, generator=G), torch.randn(40, 2, generator=G)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 2))


def loss(model: nn.Module, index: torch.Tensor) -> torch.Tensor:
    return ((model(X[index]) - Y[index]) ** 2).mean()


OPTIMIZERS = {
    "torch-sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "torch-adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "untuned-sgd": lambda p: untuned.SGD(p, lr=0.05, momentum=0.9),
    "untuned-adamw": lambda p: untuned.AdamW(p, lr=0.01),
}


def trained(make, measure: bool) -> tuple[list[torch.Tensor], NoiseMeter | None]:
    """24 steps with dropout and batch normalisation; parameters, gradients, buffers, state and one random number."""
    model = network()
    optimizer = make(model.parameters())
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 8)
    everything = torch.arange(40)
    meter = None
    for k in range(24):
        if measure and k == 4:
            meter = NoiseMeter(model, optimizer, lambda: (loss(model, i) / 2 for i in everything.split(20)), 8, 40)
        if measure and k == 20:
            meter.remove()
        optimizer.zero_grad()
        loss(model, torch.randperm(40)[:8]).backward()
        optimizer.step()
        schedule.step()
    kept = [p.detach() for p in model.parameters()] + [p.grad for p in model.parameters()] + [*model.buffers()]
    kept += [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    return [*kept, torch.rand(1)], meter


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_attaching_and_removing_it_changes_no_number_of_the_run(name: str) -> None:
    plain, _ = trained(OPTIMIZERS[name], measure=False)
    measured, meter = trained(OPTIMIZERS[name], measure=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, measured, strict=True))
    assert meter is not None and meter.noise().steps == 16 and all(map(math.isfinite, meter.history[-1]))


DIM = 400


def constant_gradient(kind: str, beta: float, b: int, C2: float, K: float, steps: int) -> NoiseMeter:
    """f(w) = <g, w>, |g| = K, with normal noise of variance C2 / b in all."""
    rng = torch.Generator().manual_seed(1)
    g = torch.full((DIM,), K / math.sqrt(DIM), dtype=torch.float64)
    w = nn.Parameter(torch.zeros(DIM, dtype=torch.float64))
    optimizer = torch.optim.SGD([w], lr=0.1, momentum=beta, dampening=beta if kind == "nshb" else 0.0)
    meter = NoiseMeter(None, optimizer, lambda: (g * w).sum(), b)
    for _ in range(steps):
        w.grad = g + math.sqrt(C2 / b / DIM) * torch.randn(DIM, dtype=torch.float64, generator=rng)
        optimizer.step()
    return meter


@pytest.mark.parametrize("kind", ["sgd", "shb", "nshb"])
def test_with_a_constant_gradient_it_finds_the_exact_values(kind: str) -> None:
    b, C2, K, beta = 128, 25.318, 1.77, 0.0 if kind == "sgd" else 0.9
    meter = constant_gradient(kind, beta, b, C2, K, 800)
    found, exact = meter.noise(skip=200), noise_parts(kind, b, beta, C2, K, source="exact")
    assert found.C2 == pytest.approx(C2, rel=0.02) and found.K == pytest.approx(K)
    assert found.variance == pytest.approx(exact.noise, rel=0.05)
    assert found.bias == pytest.approx(exact.gradient, rel=1e-6, abs=1e-12)
    assert found.total == pytest.approx(exact.total, rel=0.05)
    assert abs(found.cross) < 0.05 * found.total
    assert found.delta(0.1) == pytest.approx(0.1 * math.sqrt(exact.total), rel=0.03)
    assert found.total < noise_parts(kind, b, beta, C2, K).total * (1 + 1e-2)


def test_without_replacement_the_variance_of_a_sample_is_the_same() -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 2)
    each = [torch.tensor([i]) for i in range(40)]
    true, norm = gradient_noise(
        model, lambda: loss(model, torch.arange(40)), [lambda i=i: loss(model, i) for i in each], 1
    )
    drawn = [torch.randperm(40)[:20] for _ in range(600)]
    found, _ = gradient_noise(
        model, lambda: loss(model, torch.arange(40)), [lambda i=i: loss(model, i) for i in drawn], 20, population=40
    )
    assert found == pytest.approx(true, rel=0.08) and norm > 0
    assert all(p.grad is None for p in model.parameters())


def test_the_batch_that_is_everything_has_no_noise_to_tell_the_variance_from() -> None:
    model = nn.Linear(5, 2)
    everything = torch.arange(40)
    found, _ = gradient_noise(model, lambda: loss(model, everything), [lambda: loss(model, everything)], 40, 40)
    assert math.isnan(found)


def test_attached_twice_is_one_sentence_and_the_first_goes_on() -> None:
    w = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([w], lr=0.1)
    with NoiseMeter(None, optimizer, lambda: w.sum(), 4) as first:
        with pytest.raises(ValueError, match="has a meter already; remove"):
            NoiseMeter(None, optimizer, lambda: w.sum(), 4)
        w.grad = torch.ones(1)
        optimizer.step()
    assert first.noise().steps == 1 and first.metrics()["noise/gradient_sq"] == 1
    first.remove()  # again: nothing happens
    NoiseMeter(None, optimizer, lambda: w.sum(), 4).remove()
    with pytest.raises(ValueError, match="batch_size must be positive"):
        NoiseMeter(None, optimizer, lambda: w.sum(), 8, population=4)
    NoiseMeter(None, optimizer, lambda: w.sum(), 8).remove()  # what was refused has left no meter


def test_steps_at_rest_are_not_measured_and_nothing_is_found_without_steps() -> None:
    w = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([w], lr=0.0)
    meter = NoiseMeter(None, optimizer, lambda: w.sum(), 4)
    w.grad = torch.ones(1)
    optimizer.step()
    assert meter.noise().steps == 0 and math.isnan(meter.noise().total) and meter.metrics() == {}

"""SVAG keeps the mean of the gradient and multiplies its covariance; the rest of a run stays as it is."""

import pytest
import torch
from torch import nn

import untuned
from untuned.wrappers import SVAG, pairs
from untuned.wrappers.svag import coefficients


def data() -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(6, 3, generator=g), torch.randn(6, 2, generator=g)) for _ in range(24)]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return ((model(batch[0]) - batch[1]) ** 2).mean()


def values(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def trained(make, l: int) -> list[torch.Tensor]:  # noqa: E741
    model = network()
    svag = SVAG(make(model.parameters()), l)
    for a, b in pairs(data()):
        svag.step(lambda a=a: loss(model, a), lambda b=b: loss(model, b))
    return values(model)


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("l", [1, 2, 4, 16, 100])
def test_coefficients_keep_the_mean_and_multiply_the_covariance(l: int) -> None:  # noqa: E741
    c1, c2 = coefficients(l)
    assert c1 + c2 == pytest.approx(1, abs=1e-14) and c1**2 + c2**2 == pytest.approx(l, rel=1e-14)


def test_mean_and_covariance_of_the_gradients_that_a_run_sees() -> None:
    count, l = 10_000, 4  # noqa: E741
    noise = torch.randn(count, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mix = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.0, -0.5, 2.0]], dtype=torch.float64)
    g = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) + noise @ mix.T
    w = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    svag = SVAG(torch.optim.SGD([w], lr=1.0), l)
    seen = []
    for a, b in g:
        before = w.detach().clone()
        svag.step(lambda a=a: (w * a).sum(), lambda b=b: (w * b).sum())
        seen.append((before - w.detach()) * l)  # the step had lr 1 / l
    found = torch.stack(seen)
    covariance = l * mix @ mix.T
    assert ((found.mean(0) - torch.tensor([1.0, -2.0, 0.5])).abs() < 4 * (covariance.diag() / count).sqrt()).all()
    spread = (covariance**2 + covariance.diag()[:, None] * covariance.diag()).div(count).sqrt()
    assert ((torch.cov(found.T) - covariance).abs() < 4 * spread).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.AdamW(p, lr=0.01),
        lambda p: untuned.SGD(p, lr=0.1, momentum=0.9),
        lambda p: untuned.AdamW(p, lr=0.01),
    ],
    ids=["torch-sgd", "torch-adamw", "untuned-sgd", "untuned-adamw"],
)
def test_l_one_is_the_plain_run_on_the_first_batches_bitwise(make) -> None:
    model = network()
    optimizer = make(model.parameters())
    for a, _ in pairs(data()):
        optimizer.zero_grad()
        loss(model, a).backward()
        optimizer.step()
    assert same(trained(make, 1), values(model))
    assert not same(trained(make, 2), values(model))


def test_l_one_does_not_compute_the_second_batch() -> None:
    w = nn.Parameter(torch.ones(1))
    SVAG(torch.optim.SGD([w], lr=0.1), 1).step(lambda: w.sum(), lambda: pytest.fail("computed"))


@pytest.mark.parametrize("l", [1, 4])
def test_momentum_zero_is_plain_sgd_bitwise(l: int) -> None:  # noqa: E741
    plain = trained(lambda p: torch.optim.SGD(p, lr=0.1), l)
    assert same(plain, trained(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.0), l))
    assert same(plain, trained(lambda p: untuned.SGD(p, lr=0.1), l))
    assert not same(plain, trained(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5), l))


def test_learning_rates_and_schedules_stay_those_of_the_plain_run() -> None:
    w = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([w], lr=0.8)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.1)
    svag = SVAG(optimizer, 4, [schedule])
    moved, rates = [], []
    for _ in range(svag.steps_for(4)):
        before = w.item()
        svag.step(lambda: w.sum(), lambda: w.sum())
        moved.append(before - w.item())
        rates.append(optimizer.param_groups[0]["lr"])
    assert sum(moved[:8]) == pytest.approx(2 * 0.8, rel=1e-6) and sum(moved[8:]) == pytest.approx(2 * 0.08, rel=1e-5)
    assert rates[:7] == [0.8] * 7 and rates[7] == pytest.approx(0.08) and svag.time == 4


def test_the_learning_rate_comes_back_when_a_step_raises() -> None:
    w = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([w], lr=0.8)
    optimizer.register_step_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        SVAG(optimizer, 4).step(lambda: w.sum(), lambda: w.sum())
    assert optimizer.param_groups[0]["lr"] == 0.8


def test_a_parameter_without_a_gradient_in_one_batch_has_zero_there() -> None:
    a, b, idle = (nn.Parameter(torch.zeros(1)) for _ in range(3))
    svag = SVAG(torch.optim.SGD([a, b, idle], lr=5.0), 5)  # coefficients 2 and -1, lr / l = 1
    svag.step(lambda: a.sum(), lambda: b.sum())
    assert (a.item(), b.item(), idle.grad) == (-2.0, 1.0, None)


def test_bad_input_is_one_sentence() -> None:
    w = nn.Parameter(torch.zeros(1))
    for wrong in (0, 1.5, True, "2"):
        with pytest.raises(ValueError, match="l must be a whole number from 1"):
            SVAG(torch.optim.SGD([w], lr=0.1), wrong)  # type: ignore[arg-type]
    svag = SVAG(torch.optim.SGD([w], lr=0.1), 2)
    with pytest.raises(ValueError, match="the second closure must return a loss"):
        svag.step(lambda: w.sum(), lambda: 1.0)  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match="cannot load"):
        svag.load_state_dict(SVAG(torch.optim.SGD([w], lr=0.1), 3).state_dict())
    with pytest.raises(TypeError, match=r"needs a torch\.optim\.Optimizer"):
        SVAG(w, 2)  # type: ignore[arg-type]


def test_the_count_is_saved() -> None:
    w = nn.Parameter(torch.zeros(1))
    svag, other = (SVAG(torch.optim.SGD([w], lr=0.1), 3) for _ in range(2))
    for _ in range(4):
        svag.step(lambda: w.sum(), lambda: w.sum())
    other.load_state_dict(svag.state_dict())
    assert other.steps == 4

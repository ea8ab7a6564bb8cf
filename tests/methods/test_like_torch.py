"""SGD, Adam and AdamW beside those of torch, under schedules that also move momentum, beta1 and weight decay."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

import untuned

CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"lr": 0.1, "weight_decay": 0.1}),
    "momentum": ("SGD", {"lr": 0.1, "momentum": 0.9}),
    "nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "dampened": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    "adam": ("Adam", {"lr": 0.1, "weight_decay": 0.1}),
    "adamw": ("AdamW", {"lr": 0.1, "weight_decay": 0.1, "betas": (0.8, 0.99)}),
}


class DecaySchedule(lr_scheduler.LRScheduler):
    """Moves weight_decay, which no scheduler of torch does."""

    def get_lr(self) -> list[Any]:
        for group in self.optimizer.param_groups:
            group["weight_decay"] = 0.05 * (1 + self.last_epoch % 3)
        return list(self.base_lrs)


SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=20, cycle_momentum=has_momentum(o)),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 0.1, step_size_up=3, cycle_momentum=has_momentum(o)),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 20),
    "weight decay": DecaySchedule,
}


def has_momentum(optimizer: torch.optim.Optimizer) -> bool:
    return bool(optimizer.defaults.get("momentum") or "betas" in optimizer.defaults)


def follow(make: Any, schedule: Any, gradients: list[list[float]], **options: Any) -> tuple[torch.Tensor, Any]:
    """-> [steps, n]: the weights after each step from these gradients, and what they weigh against."""
    w = torch.nn.Parameter(torch.linspace(1.0, 2.0, len(gradients[0]), dtype=torch.float64))
    optimizer = make([w], **options)
    scheduler, points = schedule(optimizer), []
    for gradient in gradients:
        w.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        scheduler.step()
        points.append(w.detach().clone())
    return torch.stack(points), optimizer


@pytest.mark.parametrize("execution", ["reference", "auto"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("method", CLASSES)
def test_steps_are_torchs_under_every_schedule(method: str, schedule: str, execution: str) -> None:
    name, options = CLASSES[method]
    gradients = torch.randn(15, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    theirs, _ = follow(getattr(torch.optim, name), SCHEDULES[schedule], gradients, **options)
    ours, _ = follow(getattr(untuned, name), SCHEDULES[schedule], gradients, execution=execution, **options)
    assert (ours[-1] - ours[0]).abs().max() > 1e-2
    assert (ours - theirs).abs().max() <= 1e-13  # the weights are of the order of 1


def test_one_cycle_of_adamw_in_numbers() -> None:
    """The third step divides m by 1 - beta1^3 with the beta1 of that step, as torch does."""

    def one_cycle(optimizer: torch.optim.Optimizer) -> Any:
        return lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)

    for make in (untuned.AdamW, torch.optim.AdamW):
        points, _ = follow(make, one_cycle, [[1.0]] * 3, weight_decay=0.0)
        lrs, m, v, x = [0.004, 0.052, 0.1], 0.0, 0.0, 1.0
        for t, (lr, beta) in enumerate(zip(lrs, [0.95, 0.9, 0.85], strict=True), 1):
            m, v = beta * m + 1 - beta, 0.999 * v + 0.001
            x -= lr * m / (1 - beta**t) / ((v / (1 - 0.999**t)) ** 0.5 + 1e-8)
        assert points[-1].item() == pytest.approx(x, rel=1e-12)


def at_lr_0_twice(optimizer: torch.optim.Optimizer) -> Any:
    return lr_scheduler.LambdaLR(optimizer, lambda k: float(k > 1))


@pytest.mark.parametrize("execution", ["reference", "auto"])
def test_a_group_at_lr_0_rests_where_torchs_averages_go_on(execution: str) -> None:
    """The documented difference: gradients 1, 1 at lr 0, then 1 for SGD, whose m is 1 + .9 + .81 then, 0 for Adam."""
    options = {"lr": 1.0, "momentum": 0.9}
    theirs, _ = follow(torch.optim.SGD, at_lr_0_twice, [[1.0]] * 3, **options)
    ours, _ = follow(untuned.SGD, at_lr_0_twice, [[1.0]] * 3, execution=execution, **options)
    assert (theirs[2] - 1).item() == pytest.approx(-2.71, rel=1e-12)
    assert (ours[2] - 1).item() == -1.0

    for name in ("Adam", "AdamW"):
        options = {"lr": 1.0, "weight_decay": 0.0}
        theirs, _ = follow(getattr(torch.optim, name), at_lr_0_twice, [[1.0], [1.0], [0.0]], **options)
        ours, optimizer = follow(
            getattr(untuned, name), at_lr_0_twice, [[1.0], [1.0], [0.0]], execution=execution, **options
        )
        corrected = 0.9 * 0.19 / 0.271, 0.999 * 0.001999 / (1 - 0.999**3)
        assert (theirs[2] - 1).item() == pytest.approx(-corrected[0] / corrected[1] ** 0.5, rel=1e-6)
        assert ours[2].item() == 1.0
        assert float(optimizer.state[optimizer.param_groups[0]["params"][0]]["step"]) == 1


def test_momentum_that_falls_to_0_for_a_while_forgets() -> None:
    """The documented difference: ours holds the gradient of that step, torch's what it held before."""

    def drop(optimizer: torch.optim.Optimizer) -> Any:
        def momentum(k: int) -> float:
            optimizer.param_groups[0]["momentum"] = 0.0 if k == 1 else 0.9
            return 1.0

        return lr_scheduler.LambdaLR(optimizer, momentum)

    theirs, _ = follow(torch.optim.SGD, drop, [[1.0], [2.0], [0.0]], lr=1.0, momentum=0.9)
    ours, _ = follow(untuned.SGD, drop, [[1.0], [2.0], [0.0]], lr=1.0, momentum=0.9)
    assert torch.equal(ours[:2], theirs[:2])
    assert (theirs[2] - theirs[1]).item() == pytest.approx(-0.9, rel=1e-12)
    assert (ours[2] - ours[1]).item() == pytest.approx(-1.8, rel=1e-12)


def test_sgd_without_momentum_cannot_be_given_it_later() -> None:
    w = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="support momentum"):
        lr_scheduler.OneCycleLR(untuned.SGD([w], lr=0.1), 0.1, total_steps=5)
    with pytest.raises(ValueError, match="momentum is an option of the optimizer, not of a group"):
        untuned.SGD([{"params": [w], "momentum": 0.9}], lr=0.1)

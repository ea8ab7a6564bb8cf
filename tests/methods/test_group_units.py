"""A group at a fraction of the largest lr moves as if its parameters were measured in larger units at the full lr."""

from typing import Any

import pytest
import torch

import untuned


@pytest.mark.parametrize("name", ["prodigy", "dadapt_adam"])
@pytest.mark.parametrize("options", [{}, {"use_bias_correction": True}, {"safeguard_warmup": True}])
def test_a_fraction_of_lr_is_another_unit(name: str, options: dict[str, Any]) -> None:
    if name == "dadapt_adam" and "safeguard_warmup" in options:
        options = {"growth_rate": 1.3}
    fraction = 0.2
    generator = torch.Generator().manual_seed(0)
    A, b = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((20, 5), (20,)))

    def run(unit: float, lr: float) -> tuple[torch.Tensor, list[float]]:
        """x = (first, unit * second); a group of its own for `second`, at lr."""
        first, second = (torch.nn.Parameter(torch.ones(n, dtype=torch.float64) / u) for n, u in ((2, 1.0), (3, unit)))
        groups = [{"params": [first]}, {"params": [second], "lr": lr}]
        optimizer = untuned.create(groups, name, lr=1.0, d0=1e-3, eps=1e-300, **options)
        estimates = []
        for k in range(20):
            scale = min(1.0, (k + 1) / 5)
            for group, full in zip(optimizer.param_groups, (1.0, lr), strict=True):
                group["lr"] = scale * full
            optimizer.zero_grad()
            (A @ torch.cat([first, unit * second]) - b).square().sum().backward()
            optimizer.step()
            estimates.append(optimizer.metrics()["d"])
        return torch.cat([first, unit * second]).detach(), estimates

    slowed, d = run(1.0, fraction)
    rescaled, d_too = run(fraction, 1.0)
    full, _ = run(1.0, 1.0)
    assert d[-1] > 3 * d[0]
    assert d == pytest.approx(d_too, rel=1e-9)
    torch.testing.assert_close(slowed, rescaled, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(slowed, full, rtol=1e-3)

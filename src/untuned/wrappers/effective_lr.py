"""How fast the layers of a normalised model turn: the learning rate divided by the norms of the weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from untuned.wrappers.weights import innermost, norms_of, weights_of


class EffectiveLR:
    """The effective learning rates of hidden weights: arXiv 2407.01800 (its use; the exponents are derived).

    A weight W in front of a normalisation turns by what a step is relative to its norm, and its gradient grows as
    1 / |W|. So the effective learning rate is lr / |W|^2 for steps in proportion to the gradient (SGD) and lr / |W| for
    steps whose size does not depend on the gradient's (Adam, sign). SGD with lr (rho / |W(t)|)^2 in each layer and
    weights projected to the norm rho follows SGD with lr, without projection, exactly, where |W(t)| is the norm there.

    `target` and `exclude` as in `WeightProjector`. lr is that of the weight's group; of this library's optimizers it is
    `lr_effective`, what the method made of it in its last step.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.full((2, 2), 2.0))
    >>> untuned.wrappers.EffectiveLR([("w", w)], torch.optim.SGD([w], lr=0.8)).metrics()
    {'norm/w': 4.0, 'lr_per_norm/w': 0.2, 'lr_per_norm_sq/w': 0.05}
    """

    def __init__(
        self, target: nn.Module | Iterable[Any], optimizer: torch.optim.Optimizer, *, exclude: Any = "last"
    ) -> None:
        self.optimizer = innermost(optimizer, "EffectiveLR")
        self.weights = weights_of(target, exclude, "EffectiveLR")
        members = {p for group in self.optimizer.param_groups for p in group["params"]}
        for name, p in self.weights.items():
            if p not in members:
                raise ValueError(f"EffectiveLR: '{name}' is in no group of the optimizer; exclude it.")

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        """For each weight its norm, lr / norm and lr / norm^2, as numbers worth logging; read when called."""
        groups = self.optimizer.param_groups
        lrs = [float(group["lr"]) for group in groups]
        own: Any = getattr(self.optimizer, "metrics", None)
        if callable(own):
            chosen: Any = own()
            lrs = [chosen.get(f"lr_effective_{i}" if i else "lr_effective", lr) for i, lr in enumerate(lrs)]
        lr_of = {id(p): lr for group, lr in zip(groups, lrs, strict=True) for p in group["params"]}
        norms = [float(norms_of([p], rows=False)[0]) for p in self.weights.values()]
        found: dict[str, float] = {}
        for (name, p), norm in zip(self.weights.items(), norms, strict=True):
            lr = lr_of.get(id(p), 0.0)
            found |= {f"norm/{name}": norm, f"lr_per_norm/{name}": _ratio(lr, norm)}
            found[f"lr_per_norm_sq/{name}"] = _ratio(lr, norm * norm)
        return found


def _ratio(a: float, b: float) -> float:
    return a / b if b else float("inf")

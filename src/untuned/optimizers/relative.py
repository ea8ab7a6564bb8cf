"""Steps in proportion to the weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Unpack

import torch

from untuned.directions import Adam, Muon
from untuned.iterates import Plain
from untuned.optimizer.groups import listed
from untuned.optimizer.optimizer import Optimizer
from untuned.optimizer.options import EngineOptions
from untuned.step_sizes import Relative
from untuned.weight_decay import Cautious

_LABELS = {"matrices": "matrices", "tables": "rest", "vectors": "rest"}
THIN = 8  # how many times its shorter side the longer one of a matrix may be; of embeddings and factors it is more


class RelativeMuon(Optimizer):
    """Muon for matrices and Adam for the rest, both in shares of the weights they move: a composite of this library.

    Every step moves a matrix by about a fifth of lr times its own root mean square r, in all its directions alike:

        m <- momentum m + (1 - momentum) g
        W <- W - lr (0.2 sqrt(max(rows, columns)) r polar(m) + weight_decay W where polar(m) W >= 0)

    polar(m) is m with all its singular values near 1, as in `untuned.directions.Muon` with adjust="match_rms_adamw".
    Weights decay where the step shrinks them as well, as in cautious weight decay (arXiv 2510.12402). Kernels of
    convolutions are matrices with a row per output channel. A tensor one side of which is more than 8 times the other
    (embeddings, logits of a large vocabulary, factors of LoRA), or which has one row or column, takes Adam's step times
    lr r, a tensor with fewer than two dimensions (offsets, scales of norms) Adam's step times lr R, R being the root
    mean square of the whole model; see `untuned.step_sizes.Relative`. So lr is a share that means the same in every
    model: leave it at 0.12, and let a schedule warm up over the first twentieth of a run and fall to 0 with its end.
    Every step is the same when the loss or the weights are measured in other units, while R is above 1e-3 and gradients
    are far above 1e-15.

    What bounds it: Muon's part of a step has 0.2 lr times the Frobenius norm of W, up to Newton and Schulz's error (0.7
    to 1.2), whatever the gradient is, so a run changes the logarithm of |W| by at most a fifth of the sum of lr, decay
    aside. With r = 1 that part is torch's Muon with match_rms_adamw and no Nesterov.

    Each parameter group that comes in becomes up to three, for matrices, tables and vectors, with `label` "matrices" or
    "rest", and own=0 for vectors; a group that has a `label` stays as it is. All of them decay, vectors too. Sources:
    Muon as in arXiv 2502.16982, the scale as in Adafactor (arXiv 1804.04235) and LARS; the composite, its defaults and
    the 8 come from studies of this library (docs/decisions/0013-the-default.md), and no theory covers it. Sweeps: 2,
    and the matrix math. Slots: 1 for matrices, 2 for the rest.

    >>> import torch, untuned
    >>> model = torch.nn.Linear(3, 2)
    >>> optimizer = untuned.RelativeMuon(model.parameters())
    >>> [(group["label"], group["own"], len(group["params"])) for group in optimizer.param_groups]
    [('matrices', 1.0, 1), ('rest', 0.0, 1)]
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.12,
        momentum: float = 0.8,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.1,
        ns_steps: int = 5,
        **engine: Unpack[EngineOptions],
    ) -> None:
        matrices = Muon(momentum, nesterov=False, ns_steps=ns_steps, eps=1e-30, adjust="match_rms_adamw")
        directions = {"matrices": matrices, "rest": Adam(betas, 1e-15)}
        super().__init__(params, directions, Relative(lr), Plain(), Cautious(weight_decay), **engine)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, as up to three groups; see the class."""
        given: Any = param_group
        if not isinstance(given, dict) or "params" not in given or "label" in given:
            super().add_param_group(given)
            return
        params = given["params"]
        kinds = {"matrices": [], "tables": [], "vectors": []}
        for p in [params] if isinstance(params, torch.Tensor) else listed(params):
            kinds[_kind(p[1] if isinstance(p, tuple) and len(p) == 2 else p)].append(p)
        count, labels = len(self.param_groups), {_LABELS[kind] for kind, tensors in kinds.items() if tensors}
        own = {label: {*self.recipe.variants[label]["direction"].hypers()} for label in labels}
        try:
            for group in _divided(given, kinds):
                others = set[str]().union(*own.values()) - own.get(group["label"], set())
                super().add_param_group({key: value for key, value in group.items() if key not in others})
        except (TypeError, ValueError):
            del self.param_groups[count:]  # all of them or none
            raise


def _divided(group: dict[str, Any], kinds: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """A group for each kind that has tensors, or one for all if there are none."""
    for kind in [kind for kind, params in kinds.items() if params] or ["matrices"]:
        own = {"own": 0.0} if kind == "vectors" else {}
        yield {**own, **group, "params": kinds[kind], "label": _LABELS[kind]}


def _kind(p: Any) -> str:
    """What a tensor is; anything else is refused as a vector."""
    if not isinstance(p, torch.Tensor) or p.dim() < 2:
        return "vectors"
    rows, columns = len(p), p[0].numel() if len(p) else 0
    return "matrices" if min(rows, columns) > 1 and max(rows, columns) <= THIN * min(rows, columns) else "tables"

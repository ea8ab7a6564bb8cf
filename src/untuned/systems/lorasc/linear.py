"""Low-rank adaptation of plain linear layers (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class LoRALinear(nn.Linear):
    """x to x W' + bias + alpha / rank (x A') B', with a frozen W (out, in), A (rank, in) and B (out, rank).

    A starts as the weight of a new nn.Linear does and B at zero, so that the layer starts as the linear one it is made
    from. It takes over that one's `weight` and `bias`, names included; A and B are called `lora_a` and `lora_b`. They
    are float32, or float64 as the weight is.
    """

    def __init__(self, plain: nn.Linear, rank: int, alpha: float | None = None) -> None:
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise ValueError(f"the rank of LoRA is a positive whole number, not {rank!r}")
        if alpha is not None and not (math.isfinite(alpha) and alpha > 0):
            raise ValueError(f"alpha of LoRA is a positive number, not {alpha!r}")
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.weight, self.bias = plain.weight, plain.bias
        self.scaling = (rank if alpha is None else alpha) / rank
        like = {"device": self.weight.device, "dtype": torch.promote_types(self.weight.dtype, torch.float32)}
        self.lora_a = nn.Parameter(torch.empty(rank, self.in_features, **like))
        self.lora_b = nn.Parameter(torch.zeros(self.out_features, rank, **like))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        self.train(plain.training)
        # In evaluation nn.TransformerEncoderLayer reads the weights of its layers and skips their forward, unless one
        # of them has a hook.
        self.register_forward_pre_hook(_nothing)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002, as the layer it stands for calls it
        y = super().forward(input)
        change = linear(linear(input.to(self.lora_a.dtype), self.lora_a), self.lora_b)
        return y + (self.scaling * change).to(y.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={len(self.lora_a)}, scaling={self.scaling:g}"


def _nothing(*_: object) -> None:
    pass


def add_lora(model: nn.Module, targets: Iterable[str], rank: int, alpha: float | None = None) -> nn.Module:
    """Put low-rank experts beside linear layers of a model and freeze everything else in it; gives the model back.

    Args:
        model: is changed in place. What else is to be trained, a new last layer say, is unfrozen by its owner.
        targets: names of layers, each the whole name or its end behind a dot, as PEFT's `target_modules`.
        rank: of the experts, at least 1.
        alpha: the change of the weight is alpha / rank B A; `rank` if None.

    Raises:
        ValueError: a name matches no layer, or a layer is not exactly an `nn.Linear`; nothing is changed then.

    >>> model = add_lora(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1)), ["2"], rank=1)
    >>> [name for name, p in model.named_parameters() if p.requires_grad]
    ['2.lora_a', '2.lora_b']
    """
    targets = [targets] if isinstance(targets, str) else list(targets)
    places = dict(model.named_modules(remove_duplicate=False))
    chosen = {name: part for name, part in places.items() if any(_matches(name, target) for target in targets)}
    for target in targets:
        if not any(_matches(name, target) for name in chosen):
            there = ", ".join(name for name, part in places.items() if type(part) is nn.Linear) or "none"
            raise ValueError(f"no layer is called {target!r} and could have LoRA; the linear layers are: {there}")
    for name, part in chosen.items():
        if type(part) is not nn.Linear:
            raise ValueError(
                f"{name!r} is a {type(part).__name__}, and LoRA is added to layers that are exactly nn.Linear: others "
                f"may read their weight in their own way"
            )
        if not part.weight.is_floating_point():
            raise ValueError(f"{name!r} has a weight of {part.weight.dtype}, and LoRA needs one in floating point")
    made = {id(part): LoRALinear(part, rank, alpha) for part in chosen.values()}  # type: ignore[arg-type]
    model.requires_grad_(False)
    for name, part in places.items():
        if id(part) in made:  # also under the other names of a layer that has several
            _put(model, name, made[id(part)])
    return model


def remove_lora(model: nn.Module) -> nn.Module:
    """Merge what the experts of all `LoRALinear` hold and make these plain `nn.Linear` again; gives the model back.

    After `CascadeLoRA.finish` the experts hold nothing, and the function of the model stays bitwise the same.
    """
    made: dict[int, nn.Linear] = {}
    for name, part in dict(model.named_modules(remove_duplicate=False)).items():
        if isinstance(part, LoRALinear):
            if id(part) not in made:
                plain = nn.Linear(part.in_features, part.out_features, bias=False, device="meta")
                plain.weight, plain.bias = part.weight, part.bias
                with torch.no_grad():
                    wide = part.weight.to(part.lora_a.dtype) + part.scaling * (part.lora_b @ part.lora_a)
                    plain.weight.copy_(wide)
                made[id(part)] = plain.train(part.training)
            _put(model, name, made[id(part)])
    return model


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _put(model: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, part)

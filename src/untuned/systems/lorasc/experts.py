"""The fast experts of a model: what the controller of the cascade has to know of a LoRA layer, whoever made it."""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from typing import Any, cast

import torch
from torch import Tensor, nn

from untuned.systems.lorasc.linear import LoRALinear


class Expert(ABC):
    """A low-rank matrix D = scaling B A that a layer adds to its frozen weight: A (rank, in), B (out, rank)."""

    def __init__(self, name: str, module: Any) -> None:
        self.name, self.module = name, module

    @property
    @abstractmethod
    def weight(self) -> nn.Parameter:
        """The frozen weight: (out, in), or (in, out) if `transposed`."""

    @property
    @abstractmethod
    def factors(self) -> tuple[nn.Parameter, nn.Parameter]:
        """A and B, which are trained."""

    @property
    @abstractmethod
    def scaling(self) -> float: ...

    transposed = False

    def check(self) -> None:  # noqa: B027, most layers are always ready
        """Raises RuntimeError if the layer is in a state in which its weight may not be changed."""

    @property
    def wide(self) -> torch.dtype:
        """What is computed in: float32, or float64 as the weight is."""
        return torch.promote_types(self.weight.dtype, torch.float32)

    def delta(self, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
        """D, shaped as the weight, of the factors that are given or of the expert's own."""
        a = self.factors[0].detach() if a is None else a
        b = self.factors[1].detach() if b is None else b
        product = b.to(self.wide) @ a.to(self.wide)
        return (product.T if self.transposed else product) * self.scaling

    def set(self, a: Tensor, b: Tensor) -> None:
        for factor, value in zip(self.factors, (a, b), strict=True):
            factor.detach().copy_(value)

    def reset(self, generator: torch.Generator) -> None:
        """A fresh expert: A is drawn as the weight of a new nn.Linear, by a generator on the CPU, and B is zero."""
        a, b = self.factors
        drawn = torch.empty(a.shape)
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
        self.set(drawn, torch.zeros(b.shape))


class OwnExpert(Expert):
    """That of a `LoRALinear`."""

    module: LoRALinear

    @property
    def weight(self) -> nn.Parameter:
        return cast(nn.Parameter, self.module.weight)

    @property
    def factors(self) -> tuple[nn.Parameter, nn.Parameter]:
        return self.module.lora_a, self.module.lora_b

    @property
    def scaling(self) -> float:
        return self.module.scaling


class PeftExpert(Expert):
    """That of an adapter of a linear layer of PEFT."""

    def __init__(self, name: str, module: Any, adapter: str) -> None:
        super().__init__(name, module)
        self.adapter = adapter
        self.transposed = bool(module.fan_in_fan_out)

    @property
    def weight(self) -> nn.Parameter:
        return self.module.get_base_layer().weight

    @property
    def factors(self) -> tuple[nn.Parameter, nn.Parameter]:
        return self.module.lora_A[self.adapter].weight, self.module.lora_B[self.adapter].weight

    @property
    def scaling(self) -> float:
        return self.module.scaling[self.adapter]

    def check(self) -> None:
        if self.module.merged:
            raise RuntimeError(f"PEFT has merged an adapter into {self.name!r}: unmerge it first")


def find(model: nn.Module, adapter: str | None = None) -> list[Expert]:
    """The experts of all LoRA layers of a model. `adapter`: which of PEFT's, if it has several.

    Raises:
        ValueError: there is none, one cannot be merged, or the weight of one is shared with another module.
    """
    names = sorted({key for part in model.modules() if _is_peft(part) for key in _adapters(part)})
    if adapter is None and len(names) > 1:
        raise ValueError(f"the model has the adapters {', '.join(names)}: say by adapter= which of them is to be used")
    if adapter is not None and adapter not in names:
        raise ValueError(f"the model has no adapter {adapter!r}; it has {', '.join(names) or 'none'}")
    chosen = adapter or (names[0] if names else None)
    found: list[Expert] = []
    for name, part in model.named_modules():
        if isinstance(part, LoRALinear):
            found.append(OwnExpert(name, part))
        elif chosen is not None and _is_peft(part) and chosen in _adapters(part):
            found.append(_peft(name, part, chosen))
    if not found:
        raise ValueError(
            "the model has no LoRA layer: call add_lora(model, ...) or peft.get_peft_model(model, ...) first"
        )
    _check_weights(model, found)
    return found


def _is_peft(part: nn.Module) -> bool:
    """Whether it is a LoRA layer of PEFT, which whoever has one has imported."""
    layer = sys.modules.get("peft.tuners.lora.layer")
    return layer is not None and isinstance(part, layer.LoraLayer)


def _adapters(part: Any) -> set[str]:
    return {*part.lora_A, *part.lora_embedding_A}


def _peft(name: str, part: Any, adapter: str) -> PeftExpert:
    if type(part) is not sys.modules["peft.tuners.lora.layer"].Linear:
        raise ValueError(
            f"{name!r} is a {type(part).__name__} of PEFT, and LoRASC merges experts only into weights of linear "
            f"layers that are not quantised"
        )
    if adapter in part.lora_variant or part.lora_bias.get(adapter):
        what = type(part.lora_variant[adapter]).__name__ if adapter in part.lora_variant else "lora_bias"
        raise ValueError(f"the adapter of {name!r} uses {what}, and LoRASC merges plain products of two matrices only")
    return PeftExpert(name, part, adapter)


def _check_weights(model: nn.Module, experts: list[Expert]) -> None:
    owners: dict[int, list[str]] = {}
    for name, part in model.named_modules():
        for own in part._parameters.values():
            if own is not None:
                owners.setdefault(id(own), []).append(name)
    for expert in experts:
        weight = expert.weight
        if type(weight) is not nn.Parameter or not weight.is_floating_point():
            kind = type(weight).__name__ if type(weight) is not nn.Parameter else str(weight.dtype)
            raise ValueError(
                f"the weight of {expert.name!r} is a {kind}: merging an expert would round it, and LoRASC refuses "
                f"weights that are quantised or not plain"
            )
        if len(shared := owners.get(id(weight), [])) > 1:
            raise ValueError(
                f"{' and '.join(map(repr, shared))} share one weight: merging an expert of one would change the other"
            )
        if weight.requires_grad:
            raise ValueError(f"the weight of {expert.name!r} is trained itself: freeze it with requires_grad_(False)")

"""What a benchmark steps: the parameter lists of real models, and optimizers by name, ours and other packages'."""

import math
from importlib import import_module
from typing import Any

import torch

import untuned
from untuned.study.building import takes_loss
from untuned.study.config import label, parse_methods
from untuned.study.memory import state_bytes
from untuned.study.programs import streams

Shapes = list[tuple[int, ...]]
LR = 1e-6  # small: the parameters stay where they are
SAMPLES = 50_000  # of methods that record a number per sample


def _conv(out: int, into: int, kernel: int) -> Shapes:
    return [(out, into, kernel, kernel), (out,), (out,)]  # with its batch norm


def _resnet50() -> Shapes:
    shapes, into = _conv(64, 3, 7), 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += _conv(width, into, 1) + _conv(width, width, 3) + _conv(4 * width, width, 1)
            shapes += _conv(4 * width, into, 1) if block == 0 else []
            into = 4 * width
    return [*shapes, (1000, into), (1000,)]


def _transformer(d: int, layers: int) -> Shapes:
    block = [(d,), (d,), (3 * d, d), (3 * d,), (d, d), (d,), (d,), (d,), (4 * d, d), (4 * d,), (d, 4 * d), (d,)]
    return [*block * layers, (d,), (d,)]


MODELS: dict[str, Shapes] = {
    "resnet50": _resnet50(),
    "gpt2": [(50257, 768), (1024, 768), *_transformer(768, 12)],
    "vit-b": [(1, 1, 768), (1, 197, 768), (768, 3, 16, 16), (768,), *_transformer(768, 12), (1000, 768), (1000,)],
    "lora": [(8, 4096), (4096, 8)] * 200,
    "tiny": [(64,)] * 2000,
}

_FUSED, _MOMENTUM = {"fused": True}, {"momentum": 0.9}
PEERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    f"{package} {label(cls, options)}": (module, cls, options)
    for package, module, options, classes in (
        ("torch", "torch.optim", _FUSED, "AdamW Adam"),
        ("torch", "torch.optim", {}, "AdamW Adam"),
        ("torch", "torch.optim", _MOMENTUM | _FUSED, "SGD"),
        ("torch", "torch.optim", _MOMENTUM, "SGD"),
        ("momo-opt", "momo", {}, "Momo MomoAdam"),
        ("prodigyopt", "prodigyopt", {}, "Prodigy"),
        ("dadaptation", "dadaptation", {}, "DAdaptAdam DAdaptAdaGrad DAdaptLion"),
        ("dadaptation", "dadaptation", _MOMENTUM, "DAdaptSGD"),
        ("schedulefree", "schedulefree", {}, "AdamWScheduleFree SGDScheduleFree"),
        ("mechanic-pytorch", "mechanic_pytorch", _FUSED, "mechanize:AdamW"),  # the class mechanize(torch.optim.AdamW)
        ("mechanic-pytorch", "mechanic_pytorch", _MOMENTUM | _FUSED, "mechanize:SGD"),
        ("madgrad", "madgrad", {}, "MADGRAD MirrorMADGRAD"),
        ("pytorch_optimizer", "pytorch_optimizer", {}, "TAM AdaTAM Prodigy MADGRAD DAdaptAdam ScheduleFreeAdamW"),
        ("timm", "timm.optim", {}, "MADGRAD Lion Adan"),
        ("heavyball", "heavyball", {}, "AdamW SFAdamW SGD"),
    )
    for cls in classes.split()
}
PACKAGES = {name.partition(" ")[0]: module for name, (module, _, _) in PEERS.items()}
REFERENCE = "torch AdamW(fused=True)"


class Contender:
    """An optimizer with parameters and gradients of its own.

    `name`: a key of PEERS, or a method with options as in adam(eps=1e-6), for which `guard` is its `skip_nonfinite` and
    `slot_dtype` that of its slots. Raises TypeError, ValueError or ImportError as the optimizer does.
    """

    def __init__(
        self,
        name: str,
        shapes: Shapes,
        *,
        dtype: torch.dtype = torch.float32,
        slot_dtype: torch.dtype | None = None,
        guard: bool = True,
        device: str = "cpu",
    ) -> None:
        self.name, self.size = name, sum(map(math.prod, shapes))
        self.generator = torch.Generator(device).manual_seed(0)
        self.gradients = [torch.empty(shape, dtype=dtype, device=device) for shape in shapes]
        self.params = [torch.nn.Parameter(self._random(torch.empty_like(g))) for g in self.gradients]
        self.optimizer = self._optimizer(name, guard, slot_dtype)
        if hasattr(self.optimizer, "train"):
            self.optimizer.train()
        given = takes_loss(self.optimizer)
        self.arguments: dict[str, Any] = {"loss": torch.ones((), device=device)} if given else {}
        if isinstance(self.optimizer, untuned.Optimizer):
            self.arguments["sample_ids"] = torch.arange(128, device=device)

    def _optimizer(self, name: str, guard: bool, slot_dtype: torch.dtype | None) -> Any:
        if name in PEERS:
            module, cls, options = PEERS[name]
            cls, _, wrapped = cls.partition(":")
            create = getattr(import_module(module), cls)
            create = create(getattr(torch.optim, wrapped)) if wrapped else create
            return create(self.params, lr=LR, **options)
        [spec] = parse_methods(name)
        engine = {"skip_nonfinite": guard, "slot_dtype": slot_dtype}
        given = {"samples": SAMPLES} if untuned.get(spec.name).records_samples else {}
        return untuned.create(self.params, spec.name, lr=LR, **given, **engine, **spec.options)

    def _random(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.normal_(0, 0.01, generator=self.generator)

    def draw_gradients(self) -> None:
        for g in self.gradients:
            self._random(g)
        self.turn_gradients()

    def turn_gradients(self) -> None:
        """Change their sign, so that the parameters stay, and attach them, since some optimizers drop them."""
        for p, g in zip(self.params, self.gradients, strict=True):
            p.grad = g.neg_()

    def step(self) -> None:
        self.optimizer.step(**self.arguments)

    def state_bytes(self) -> int:
        """Memory that the optimizer holds beside parameters and gradients."""
        return state_bytes(self.optimizer)

    def named_bytes(self) -> int | None:
        """What a step reads and writes, by the programs of its sweeps; None for optimizers that do not say.

        Nor where labels divide the tensors, since each then has other slots.
        """
        if self.name == REFERENCE:
            return 7 * sum(p.nbytes for p in self.params)  # p g m v in, p m v out
        if not isinstance(self.optimizer, untuned.Optimizer) or len(self.optimizer.recipe.variants) > 1:
            return None
        keys = streams(self.optimizer, guard=self.optimizer.recipe.skip_nonfinite)
        held = [{"p": p, "g": g} | self.optimizer.state[p] for p, g in zip(self.params, self.gradients, strict=True)]
        return sum(tensors[key].nbytes for tensors in held for key in keys)

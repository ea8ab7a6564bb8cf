"""Torque-Aware Momentum and its Adam form."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.parts import Direction, Place, choice, dot, hyper, number, slot, sqrt, where

_PER_TENSOR = "TAM damps each tensor differently; scope='model' gives one damping for the whole model"


def _alignment(mg: Any, mm: Any, gg: Any) -> Any:
    """cos(m, g); 0 where m is 0 or has cancelled to rounding error, which would decide the sign of the cosine."""
    meaningful = (mm > 1e-12 * gg) & (gg > 0)
    return where(meaningful, mg / sqrt(where(meaningful, mm * gg, 1.0)), 0.0)


class TAM(Direction):
    """Torque-Aware Momentum: arXiv 2412.18790, the SGD form.

        s <- decay s + (1 - decay) cos(m, g)
        m <- momentum m + (floor + (1 + s) / 2) a g
        u  = m

    The cosine is one number per tensor (`scope="tensor"`), or one of the group or the model, as the paper's formulas
    for a single vector read. There is no published code; a widely copied implementation multiplies normalised tensors
    elementwise instead of taking a cosine, and does not do this. Differs from the text in a floor: the cosine is 0
    where |m| <= 1e-6 |g|. TAM starts at half the step of heavy ball, so its lr is up to twice as large. Slots: 1,
    and one number per tensor.
    """

    momentum: float = hyper(default=0.9, within="[0, 1)")
    decay: float = hyper(default=0.9, within="[0, 1]")
    floor: float = hyper(default=1e-8, within="[0, inf)")
    scope: str = choice(default="tensor", others=("group", "model"))
    m = slot("momentum_buffer")
    s = number(0.0, key="cosine")

    @property
    def gives(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return frozenset({"average", "weighted"} if self.scope == "model" else {"weighted"})

    lacks: ClassVar[dict[str, str]] = {"average": _PER_TENSOR}

    def look(self, x: Place) -> tuple[Any, Any, Any]:
        return dot(x.m, x.g), dot(x.m, x.m), dot(x.g, x.g)

    def decide(self, c: Place, mg: Any, mm: Any, gg: Any) -> None:
        c.s = c.decay * c.s + (1 - c.decay) * _alignment(mg, mm, gg)

    def weight(self, x: Place) -> tuple[Any, Any]:
        return x.momentum, x.floor + (1 + x.s) / 2

    def accumulate(self, x: Place) -> None:
        x.m = x.keep * x.m + x.a * x.take * x.g

    def unit(self, x: Place) -> Any:
        return x.m


class AdaTAM(Direction):
    """Torque-Aware Momentum in Adam: arXiv 2412.18790, AdaTAM (AdaTAMW with decoupled weight decay).

        s <- decay s + (1 - decay) cos(m, g)
        m <- beta1 m + (floor + (1 + s) / 2) a g           no factor 1 - beta1
        v <- beta2 v + (1 - beta2) b g^2
        u  = m / (sqrt(v) + sqrt(b) eps)                   no bias correction

    Literal to the paper as its readers quote it, so steps are longer than Adam's at the same lr: 16 times at first, 33
    (gradients of noise) to 53 times (a steady gradient) after 12 to 22 steps, and 5 to 10 times in the end. Divide lr
    by that and warm up. Scope and floor as in TAM. Slots: 2, and one number per tensor.
    """

    betas: tuple[float, float] = hyper(default=(0.9, 0.999), within="[0, 1)")
    decay: float = hyper(default=0.9, within="[0, 1]")
    floor: float = hyper(default=1e-8, within="[0, inf)")
    eps: float = hyper(default=1e-8, within="(0, inf)")
    scope: str = choice(default="tensor", others=("group", "model"))
    m = slot("exp_avg")
    v = slot("exp_avg_sq")
    s = number(0.0, key="cosine")

    @property
    def gives(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return frozenset({"diagonal", "weighted"} | ({"average"} if self.scope == "model" else set()))

    lacks: ClassVar[dict[str, str]] = {"average": _PER_TENSOR}

    def look(self, x: Place) -> tuple[Any, Any, Any]:
        return dot(x.m, x.g), dot(x.m, x.m), dot(x.g, x.g)

    def decide(self, c: Place, mg: Any, mm: Any, gg: Any) -> None:
        c.s = c.decay * c.s + (1 - c.decay) * _alignment(mg, mm, gg)

    def weight(self, x: Place) -> tuple[Any, Any]:
        return x.beta1, x.floor + (1 + x.s) / 2

    def accumulate(self, x: Place) -> None:
        x.m = x.keep * x.m + x.a * x.take * x.g
        x.v = x.beta2 * x.v + (1 - x.beta2) * x.b * x.g * x.g

    def scale(self, x: Place) -> Any:
        return sqrt(x.v) + sqrt(x.b) * x.eps

    def unit(self, x: Place) -> Any:
        return x.m / x.scale

"""ALI-G: a capped Polyak step for models that interpolate."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.parts import Place, StepSize, dot, hyper, maximum, minimum, number, ratio
from untuned.step_sizes.loss_advice import bounded
from untuned.step_sizes.polyak import loss_shift


class ALIG(StepSize):
    """ALI-G: arXiv 1906.05661, Algorithm 1, without its projection.

        theta = min(max(f - lb, 0) / (sum lr <g, u> + top delta), 1);   x <- x - theta lr u

    lr caps the step, delta keeps it finite near the solution. Weight decay, averaging iterates and needs as in `SPS`.
    Sweeps: 2. Slots: none.
    """

    lr: float = hyper(default=0.1, within="[0, inf)")
    lb: float = hyper(default=0.0, within="(-inf, inf)")
    delta: float = hyper(default=1e-5, within="(0, inf)")
    needs: ClassVar[frozenset[str]] = frozenset({"loss", "additive"})
    theta = number(0.0)

    def measure(self, x: Place) -> tuple[Any, Any]:
        return x.lr / x.bias * dot(x.g, x.u), loss_shift(x)

    def decide(self, c: Place, slope: Any, decay: Any) -> None:
        c.theta = minimum(ratio(maximum(c.loss + decay - c.lb, 0.0), slope + c.top * c.delta), 1.0)

    def advice(self, numbers: dict[str, Any]) -> str | None:
        return bounded(self.name, numbers)

    def size(self, x: Place) -> tuple[Any, Any]:
        return x.theta * x.lr / x.bias, x.theta * x.lr

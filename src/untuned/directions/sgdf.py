"""SGDF: a Wiener filter of the gradient."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.parts import Direction, Place, choice, hyper, ratio, slot, sqrt


class SGDF(Direction):
    """SGD with a filter: arXiv 2311.02818, as its final version (arXiv 2603.06120) has it, or as its code had it once.

        m <- beta1 m + (1 - beta1) a g
        s <- beta2 s + (1 - beta2) (a g - m)^2                               with the new m
        n  = m / (1 - beta1^t)
        V  = s (1 - beta1) (1 - beta1^2t) / ((1 + beta1) (1 - beta2^t))      the variance of m
        K  = V / (V + (a g - n)^2 + b eps)                                   0 / 0 = 0
        u  = n + K^gamma (a g - n)                                           version="final"
        u  = n + 2 K (a g - n)                                               version="v2025-03"
        u  = n + K (a g - n)                                                 version="v2024-04"
        V  = s / (1 - beta2^t),  u as before                                 version="v2024-03"

    u lies between the average n and the gradient, whose coupled weight decay is filtered with it; only that of
    "v2025-03" may go beyond. a and b are the weights of the step size (1 for a fixed one). The sign and the matrix form
    of u are not here. t counts the steps of the tensor, and the corrections take the betas of the step. `gamma` is one
    for all groups: the square root of 0.5 takes a fifth of the time that another power takes on a CPU. Slots: 2.
    """

    betas: tuple[float, float] = hyper(default=(0.9, 0.999), within="[0, 1)")
    eps: float = hyper(default=1e-8, within="[0, inf)")
    gamma: float = hyper(default=0.5, within="(0, inf)", fixed=True)
    version: str = choice(default="final", others=("v2025-03", "v2024-04", "v2024-03"))
    gives: ClassVar[frozenset[str]] = frozenset({"weighted"})
    lacks: ClassVar[dict[str, str]] = {"average": "SGDF steps along a mixture of the average and the current gradient"}
    m = slot("exp_avg")
    s = slot("exp_avg_var")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.version != "final" and self.gamma != 0.5:
            raise ValueError(f"SGDF: version {self.version!r} has no power of the gain: leave gamma out.")

    def weight(self, x: Place) -> tuple[Any, Any]:
        return x.beta1, 1 - x.beta1

    def accumulate(self, x: Place) -> None:
        x.m = x.keep * x.m + x.a * x.take * x.g
        x.s = x.beta2 * x.s + (1 - x.beta2) * (x.a * x.g - x.m) * (x.a * x.g - x.m)

    def _gain(self, K: Any) -> Any:
        if self.version != "final":
            return 2 * K if self.version == "v2025-03" else K
        return sqrt(K) if self.gamma == 0.5 else K**self.gamma

    def unit(self, x: Place) -> Any:
        average = x.m / (1 - x.beta1**x.t)
        shrunk = (1 - x.beta1) * (1 - x.beta1 ** (2 * x.t)) / (1 + x.beta1) if self.version != "v2024-03" else 1.0
        rest, variance = x.a * x.g - average, x.s * (shrunk / (1 - x.beta2**x.t))
        return average + self._gain(ratio(variance, variance + rest * rest + x.b * x.eps)) * rest

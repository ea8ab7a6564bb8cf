"""SGDF: a Wiener filter of the gradient."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.parts import Direction, Place, hyper, ratio, slot


class SGDF(Direction):
    """SGD with a filter: arXiv 2311.02818, as its final version (arXiv 2603.06120) has it.

        m <- beta1 m + (1 - beta1) a g
        s <- beta2 s + (1 - beta2) (a g - m)^2                               with the new m
        n  = m / (1 - beta1^t)
        V  = s (1 - beta1) (1 - beta1^2t) / ((1 + beta1) (1 - beta2^t))      the variance of m
        K  = V / (V + (a g - n)^2 + b eps)                                   0 / 0 = 0
        u  = n + K^gamma (a g - n)

    u lies between the average n and the gradient, whose coupled weight decay is filtered with it. a and b are the
    weights of the step size (1 for a fixed one). gamma = 1 is the form of 2024; those of before, without the factor of
    the variance, and of 2025, with 2 K, are not here, nor the sign or the matrix form of u. t counts the steps of the
    tensor, and the corrections take the betas of the step. On a CPU the power takes most of a step's time. Slots: 2.
    """

    betas: tuple[float, float] = hyper(default=(0.9, 0.999), within="[0, 1)")
    eps: float = hyper(default=1e-8, within="[0, inf)")
    gamma: float = hyper(default=0.5, within="(0, inf)")
    gives: ClassVar[frozenset[str]] = frozenset({"weighted"})
    lacks: ClassVar[dict[str, str]] = {"average": "SGDF steps along a mixture of the average and the current gradient"}
    m = slot("exp_avg")
    s = slot("exp_avg_var")

    def weight(self, x: Place) -> tuple[Any, Any]:
        return x.beta1, 1 - x.beta1

    def accumulate(self, x: Place) -> None:
        x.m = x.keep * x.m + x.a * x.take * x.g
        x.s = x.beta2 * x.s + (1 - x.beta2) * (x.a * x.g - x.m) * (x.a * x.g - x.m)

    def unit(self, x: Place) -> Any:
        average = x.m / (1 - x.beta1**x.t)
        shrunk = (1 - x.beta1) * (1 - x.beta1 ** (2 * x.t)) / ((1 + x.beta1) * (1 - x.beta2**x.t))
        rest, variance = x.a * x.g - average, x.s * shrunk
        return average + ratio(variance, variance + rest * rest + x.b * x.eps) ** x.gamma * rest

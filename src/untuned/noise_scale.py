"""How far search directions of SGD with momentum are from the full gradient, by formula: arXiv 2402.02325.

The published formulas are upper bounds. Beside them stand the exact values for a full gradient that does not change.
All of them have two parts: what is due to the norm of the gradient, K, and what is due to the noise of batches, C2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

PUBLISHED, EXACT = "published", "exact"


@dataclass(frozen=True)
class Parts:
    """The squared distance of the search direction from the full gradient, in two parts."""

    gradient: float  # proportional to K^2: a bias, which no batch size removes
    noise: float  # proportional to C2 / b

    @property
    def total(self) -> float:
        return self.gradient + self.noise

    @property
    def share(self) -> float:
        """The part of the gradient in the total; NaN if that is zero."""
        return self.gradient / self.total if self.total else math.nan


def bhat(beta: float) -> float:
    """beta (beta^2 - beta + 1) / (1 - beta)^2, which is (beta / (1 - beta))^2 + beta.

    >>> round(bhat(0.9), 6)
    81.9
    """
    return beta * (beta * beta - beta + 1) / (1 - beta) ** 2


def beta_of(q: float) -> float:
    """The beta in [0, 1) with bhat(beta) = q, q >= 0: the root there of z^3 - (1 + q) z^2 + (1 + 2 q) z - q.

    >>> round(beta_of(bhat(0.9)), 12)
    0.9
    """
    if not 0 <= q < math.inf:
        raise ValueError(f"beta_of: q must be finite and not negative, not {q!r}.")
    low, high = 0.0, 1.0
    while (middle := (low + high) / 2) not in (low, high):  # it grows through zero once between 0 and 1
        cubic = ((middle - (1 + q)) * middle + (1 + 2 * q)) * middle - q
        low, high = (middle, high) if cubic < 0 else (low, middle)
    return low


def _shb_exact(b: float, beta: float, C2: float, K: float, _: float) -> Parts:
    return Parts((beta / (1 - beta) * K) ** 2, C2 / (b * (1 - beta * beta)))


def _qhm_exact(b: float, beta: float, C2: float, K: float, gamma: float) -> Parts:
    damp = 1 - beta
    factor = (1 - gamma) ** 2 + 2 * gamma * (1 - gamma) * damp + gamma**2 * damp / (1 + beta)
    return Parts(0.0, C2 / b * factor)


Formula = Callable[[float, float, float, float, float], Parts]  # of b, beta, C2, K, gamma
FORMULAS: dict[tuple[str, str], tuple[Formula, str]] = {  # by kind and source: the formula, and where it stands
    ("sgd", PUBLISHED): (
        lambda b, beta, C2, K, gamma: Parts(0.0, C2 / b),
        "arXiv 2311.08745 as others summarise it, and the code iiduka-researches/igo-aaai25",
    ),
    ("shb", PUBLISHED): (
        lambda b, beta, C2, K, gamma: Parts(bhat(beta) * K**2, (1 + bhat(beta)) * C2 / b),
        "code iiduka-researches/igo-aaai25",
    ),
    ("nshb", PUBLISHED): (
        lambda b, beta, C2, K, gamma: Parts(4 * beta**2 * K**2, (1 + 4 * beta**2) * C2 / b),
        "code iiduka-researches/igo-aaai25",
    ),
    ("sgd", EXACT): (lambda b, beta, C2, K, gamma: Parts(0.0, C2 / b), "derived here"),
    ("shb", EXACT): (_shb_exact, "derived here"),
    ("nshb", EXACT): (lambda b, beta, C2, K, gamma: _qhm_exact(b, beta, C2, K, 1.0), "derived here"),
    ("qhm", EXACT): (_qhm_exact, "derived here, for the update of the code iiduka-researches/qhm_acml25"),
}


def noise_parts(
    kind: str, b: float, beta: float, C2: float, K: float, gamma: float = 1.0, source: str = PUBLISHED
) -> Parts:
    """E |d - grad f|^2 of the search direction d, in the part of the gradient and the part of noise.

    kind: "sgd" (d = g; beta plays no part), "shb" (d <- beta d + g), "nshb" (m <- beta m + (1 - beta) g, d = m) or
    "qhm" (d = (1 - gamma) g + gamma m, m as in nshb, which is gamma = 1).
    b: batch size, up to math.inf. beta in [0, 1). C2: variance of the gradient of one sample, E |g_1 - grad f|^2.
    K: bound on |grad f|. gamma in [0, 1], of QHM alone.
    source: "published", an upper bound, or "exact", for independent batches, a full gradient of constant norm K and
    momentum that has run for a while. ValueError for a pair that is not in `FORMULAS`, which names where each stands:
    a published form for QHM was not obtained.
    """
    if (kind, source) not in FORMULAS:
        raise ValueError(f"noise_parts has no formula {kind!r} from {source!r}; it has {_known()}.")
    if not (b > 0 and 0 <= beta < 1 and C2 >= 0 and K >= 0 and 0 <= gamma <= 1):
        raise ValueError("noise_parts: b must be positive, beta in [0, 1), C2 and K not negative, gamma in [0, 1].")
    return FORMULAS[kind, source][0](b, beta, C2, K, gamma)


def noise_scale(
    kind: str,
    eta: float,
    b: float,
    beta: float,
    C2: float,
    K: float,
    gamma: float = 1.0,
    source: str = PUBLISHED,
) -> float:
    """delta = eta sqrt(E |d - grad f|^2), the degree to which the noise of steps smooths the loss: arXiv 2402.02325.

    eta is the learning rate of the optimizer's own form; the rest as in `noise_parts`.

    >>> round(noise_scale("shb", 1.0, 128, 0.9, C2=25.318, K=1.77), 2)
    16.52
    >>> round(noise_scale("shb", 1.0, 128, 0.9, C2=25.318, K=1.77, source="exact"), 2)
    15.96
    """
    if not eta >= 0:
        raise ValueError(f"noise_scale: eta must not be negative, not {eta!r}.")
    return eta * math.sqrt(noise_parts(kind, b, beta, C2, K, gamma, source).total)


def _known() -> str:
    return ", ".join(f"{kind} {source}" for kind, source in FORMULAS)

"""Averages of the gradient whose weights follow from the gradients: AM-MSGD, and Adam with the adaptive heavy ball."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.iterates.adaptive_heavy_ball import best_momentum
from untuned.parts import Direction, Place, dot, each, hyper, maximum, minimum, number, ratio, slot, sqrt, where


class AdaptiveMemory(Direction):
    """AM-MSGD, adaptive memory momentum: arXiv 2510.04988, in a shorter form of the same numbers.

        theta = |g|^2 / |m - g|^2,   at least l / (1 + l) and at most (beta_max + l) / (1 + l),   l = penalty
        m <- theta m + (1 - theta) a g
        u  = m

    The average is kept where the new gradient is long against its distance from it. The norms are of the whole model,
    coupled weight decay included; theta is 0 in the model's first step, and at its lower end where m = g, where it
    changes nothing. Differs from the text, where m <- ((beta + l) m + (1 - beta) g) / (1 + l), in that theta is
    (beta + l) / (1 + l), and from the one public port (memory_align) in a tensor whose first gradient comes late: its
    average starts from zero with the model's weights, as in `Momentum`, not as its gradient. `penalty` pulls to the
    momentum of before. Sweeps: 2. Slots: 1, and one number.
    """

    penalty: float = hyper(default=0.1, within="[0, inf)")
    beta_max: float = hyper(default=0.9, within="[0, 1)")
    gives: ClassVar[frozenset[str]] = frozenset({"average", "weighted"})
    m = slot("momentum_buffer")
    theta = number(0.0, key="kept")

    def look(self, x: Place) -> tuple[Any, Any]:
        return dot(x.g, x.g), dot(x.m - x.a * x.g, x.m - x.a * x.g)

    def decide(self, c: Place, gg: Any, apart: Any) -> None:
        low, high = c.penalty / (1 + c.penalty), (c.beta_max + c.penalty) / (1 + c.penalty)
        kept = minimum(maximum(ratio(c.a * c.a * gg, apart), low), high)
        c.theta = where(c.k == 1, 0.0, kept)

    def weight(self, x: Place) -> tuple[Any, Any]:
        return x.theta, 1 - x.theta

    def accumulate(self, x: Place) -> None:
        x.m = x.keep * x.m + x.a * x.take * x.g

    def unit(self, x: Place) -> Any:
        return x.m


class AdaptiveAdam(Direction):
    """Adam with the momentum of the adaptive heavy ball: arXiv 2110.09057, recalled; see `iterates.AdaptiveHeavyBall`.

        beta = (1 - sqrt(lr |g - g_before| / |p - p_before|))^2,   at most 1 - delta     one for the model
        m <- beta m + (1 - beta) a g
        v <- beta2 v + (1 - beta2) b g^2
        u  = m / (sqrt(v / (1 - beta2^t)) + sqrt(b) eps)         the step divides by the sum of the weights in m

    beta, delta and cap are as there; lr is the rate that weight decay is multiplied by, p - p_before what the weights
    did in the step before, and g the gradient with the coupled weight decay. The text has beta in the place of Adam's
    beta1 and says nothing of its bias; no public implementation does this as it is meant. Sweeps: 2. Slots: 3, and two
    numbers per tensor.
    """

    beta2: float = hyper(default=0.999, within="[0, 1)")
    eps: float = hyper(default=1e-8, within="(0, inf)")
    delta: float = hyper(default=1e-3, within="(0, 1]")
    cap: float = hyper(default=1.0, within="(0, inf]")
    gives: ClassVar[frozenset[str]] = frozenset({"average", "diagonal", "weighted"})
    reads_displacement: ClassVar[bool] = True
    m = slot("exp_avg")
    v = slot("exp_avg_sq")
    before = slot("previous_grad")
    beta = number(0.0, key="adaptive_beta")
    moved = number(0.0, key="moved_sq", each=True)
    past = number(1.0, key="beta_product", each=True)

    def look(self, x: Place) -> Any:
        change = x.rate * (x.g - x.before)
        x.before = x.g
        return where(x.t > 1, dot(change, change), 0.0)

    def decide(self, c: Place, curvature: Any) -> None:
        c.beta = best_momentum(c, curvature, c.summed(c.moved))
        c.past = c.past * c.beta

    def weight(self, x: Place) -> tuple[Any, Any]:
        return x.beta, 1 - x.beta

    def accumulate(self, x: Place) -> None:
        x.m = x.keep * x.m + x.a * x.take * x.g
        x.v = x.beta2 * x.v + (1 - x.beta2) * x.b * x.g * x.g

    def scale(self, x: Place) -> Any:
        return sqrt(x.v / (1 - x.beta2**x.t)) + sqrt(x.b) * x.eps

    def unit(self, x: Place) -> Any:
        return x.m / x.scale

    def bias(self, x: Place) -> Any:
        return 1 - x.past

    def watch(self, x: Place) -> Any:
        return each(dot(x.p - x.old.p, x.p - x.old.p))

    def record(self, c: Place, moved: Any) -> None:
        c.moved = moved

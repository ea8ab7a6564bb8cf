"""Norms: what a refined schedule is made of, recorded as the gradients are read."""

from __future__ import annotations

from typing import Any

from untuned.parts import GradientTransform, Place, dot, norm1, number, sqrt


class Norms(GradientTransform):
    """The norms of the whole gradient, of which refined schedules are made (arXiv 2310.07831); it changes nothing.

        l1 = sum |g|,   l2 = sqrt(sum g^2)                over all tensors that take part, and over shards

    of the gradient as it was given, before clipping, other transforms that stand behind this one, and weight decay;
    with labels, of the tensors whose label has this part, and two parts have sums of their own. The sums are taken
    where the step reads the gradient anyway. `metrics()` and the groups have them as "grad_l1" and "grad_l2";
    `untuned.schedules.NormRecorder` writes them down. Slots: none, and two numbers.
    """

    l1 = number(0.0, key="grad_l1")
    l2 = number(0.0, key="grad_l2")

    def gradient(self, x: Place, g: Any) -> Any:
        return g

    def watch(self, x: Place) -> tuple[Any, Any]:
        return norm1(x.g), dot(x.g, x.g)

    def record(self, c: Place, one: Any, two: Any) -> None:
        c.l1, c.l2 = one / c.clip, sqrt(two) / c.clip

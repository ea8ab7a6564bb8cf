"""Multiplicative updates: steps in proportion to the weights."""

from __future__ import annotations

from typing import Any, ClassVar

from untuned.parts import Place, StepTransform, choice, hyper, maximum, minimum, sign


def _doubled(t: Any) -> Any:
    """tanh(2 q) of t = tanh(q)."""
    return 2 * t / (1 + t * t)


def _tanh(q: Any) -> Any:
    """tanh by arithmetic alone: Lambert's continued fraction at q / 4, cut after 17, and doubled twice.

    Right to rounding in float64 too. Kernels on a CPU take 16 elements of it at a time; a call of the library's tanh
    for each would take twenty times as long as the rest of a step.
    """
    s = minimum(maximum(q, -20.0), 20.0) / 4
    y = s * s
    t = s * (34459425 + y * (4729725 + y * (135135 + y * (990 + y))))
    t = t / (34459425 + y * (16216200 + y * (945945 + y * (13860 + y * 45))))
    return _doubled(_doubled(t))


def _stuck(p: Any) -> bool:
    """Whether all of a tensor that trains is 0 (of a sharded one, what this process holds)."""
    p = p[1] if isinstance(p, tuple) else p
    here = p.to_local() if hasattr(p, "to_local") else p
    return p.requires_grad and here.numel() > 0 and not here.is_meta and not bool(here.any())


class Multiplicative(StepTransform):
    """Multiplicative and hybrid updates: arXiv 2307.07189, with u and `size` of any direction and step size.

        w <- w - size (mix |w| tanh(eta_in u) + (1 - mix) additive u)             rule="abs"
        w <- w 2^(-sign(w) size tanh(eta_in u))                                   rule="power", mix = 1

    A weight moves by at most `size` times itself: below size 1 it keeps its sign, and what is 0 stays 0, so give
    tensors that start at 0 a group with mix=0, which is the plain step. In the authors' terms size is the outer rate
    and additive size the plain one: `additive` is the ratio of these. The decay is that of the plain step, beside the
    rest; theirs is coupled and goes through the tanh. What transforms before this one change comes on top, so it should
    stand first. Differs from the authors' code in that their momentum of tanh(eta_in g), which they mark as broken, is
    not here. Slots: none.
    """

    eta_in: float = hyper(default=1.0, within="[0, inf)")
    mix: float = hyper(default=1.0, within="[0, 1]")
    additive: float = hyper(default=1.0, within="[0, inf)")
    rule: str = choice(default="abs", others=("power",))
    removes: ClassVar[frozenset[str]] = frozenset({"additive"})
    lacks: ClassVar[dict[str, str]] = {"additive": "Multiplicative moves weights in proportion to themselves"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rule == "power" and self.mix != 1:
            raise ValueError(f"Multiplicative: rule='power' has no additive share: mix must be 1, not {self.mix}.")

    def caution(self, group: dict[str, Any], decay: frozenset[str]) -> str | None:
        if self.rule == "power" and group["mix"] != 1:
            return "Multiplicative: rule='power' has no additive share: the mix of a group is not read."
        if group["mix"] == 1 and (count := sum(map(_stuck, group["params"]))):
            return (
                f"Multiplicative: {count} tensor{'s' * (count > 1)} of zeros (biases, shifts of norms) will never "
                f"move, since steps are in proportion to the weights: give such tensors a group with mix=0."
            )
        return None

    def around(self, x: Place, w: Any, new: Any) -> Any:
        change = new - x.decayed(w - x.size * x.u, w)  # what else made `new`; 0 after the plain step
        share = _tanh(x.eta_in * x.u)
        if self.rule == "power":
            return x.decayed(w * 2.0 ** (-x.size * sign(w) * share), w) + change
        step = x.mix * abs(w) * share + (1 - x.mix) * x.additive * x.u
        return x.decayed(w - x.size * step, w) + change

"""Muon: matrices that move by an orthogonal matrix."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from untuned.parts import Direction, Place, choice, hyper, scratch, slot


class Muon(Direction):
    """Muon: Jordan et al. 2024, kellerjordan.github.io/posts/muon, as torch.optim.Muon computes it.

        m <- momentum m + (1 - momentum) g
        n  = momentum m + (1 - momentum) g  with `nesterov`,  else m
        X  = n / max(|n|, eps),   `ns_steps` times:   X <- a X + (b A + c A A) X,   A = X X'
        u  = bias r X,    bias = 1 - momentum^k,    r = sqrt(max(1, rows / columns))  or  0.2 sqrt(max(rows, columns))

    A wide or square X goes through Newton and Schulz's steps as it is, a tall one transposed; |n| is the Frobenius norm
    and a, b, c are `ns_coefficients`: the singular values come near 1. `adjust` chooses r: "original" is Jordan's, and
    with "match_rms_adamw" (arXiv 2502.16982) X has Adam's usual length. X has no scale, so bias gives u that of m,
    which starts at 0: the step divides by bias, and MoMo, whose step is at most lr u / bias, moves a matrix by lr r X
    at the most. k counts the steps of the model.

    X is computed in bfloat16, as in torch, but in float64 if the slots are float64. Kernels round m as torch does, and
    so equal it but for the last bit; the reference may round m otherwise, which bfloat16 shows (about 1e-3 of a step).
    For matrices, usually those of hidden layers, and kernels of convolutions, whose slices along the first dimension
    are rows, as in Jordan's code (torch's takes matrices only): other tensors need another direction. Where they are
    sharded, each rank gathers m, and g with `nesterov`. Slots: 1, and a tensor like the parameter that is not saved.
    """

    momentum: float = hyper(default=0.95, within="[0, 1)")
    nesterov: bool = True
    ns_steps: int = hyper(default=5, within="[1, 100]")
    ns_coefficients: tuple[float, float, float] = hyper(default=(3.4445, -4.7750, 2.0315), within="(-inf, inf)")
    eps: float = hyper(default=1e-7, within="(0, inf)")
    adjust: str = choice(default="original", others=("match_rms_adamw",))
    gives: ClassVar[frozenset[str]] = frozenset({"average"})
    lacks: ClassVar[dict[str, str]] = dict.fromkeys(
        ("diagonal", "weighted"), "Muon's distances are spectral norms, and the estimate of d in them is not derived"
    )
    m = slot("momentum_buffer")
    o = scratch("orthogonal")

    def weight(self, x: Place) -> tuple[Any, Any]:
        return x.momentum, 1 - x.momentum

    def accumulate(self, x: Place) -> None:
        x.m = x.m + x.take * (x.g - x.m)

    def reform(self, x: Place) -> None:
        n = x.g.to(x.m.dtype).lerp(x.m, x.momentum) if self.nesterov else x.m
        n = n.flatten(1)
        rows, columns = n.shape
        r = max(1.0, rows / max(columns, 1)) if self.adjust == "original" else 0.04 * max(rows, columns)
        x.o = (r**0.5 * _orthogonal(n, x.ns_steps, x.ns_coefficients, x.eps)).view_as(x.m)

    def unit(self, x: Place) -> Any:
        return x.bias * x.o

    def bias(self, x: Place) -> Any:
        return 1 - x.momentum**x.k

    def refuse(self, p: Any) -> str | None:
        if p.dim() >= 2:
            return None
        return (
            f"Muon takes matrices and kernels of convolutions, not a tensor of shape {tuple(p.shape)}. Give it the "
            f"matrices of a partition, direction={{'matrices': Muon(), 'rest': Adam()}}, and other tensors in groups "
            f"with label='rest'."
        )


def _orthogonal(n: torch.Tensor, steps: int, coefficients: tuple[float, ...], eps: float) -> torch.Tensor:
    """n with all its singular values near 1, by Newton and Schulz's steps for a polynomial of degree 5."""
    a, b, c = coefficients
    wide = n if n.dtype == torch.float64 else n.bfloat16()
    wide = wide.mT if len(n) > n.size(1) else wide
    wide = wide / wide.norm().clamp(min=eps)
    for _ in range(steps):
        gram = wide @ wide.mT
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return (wide.mT if len(n) > n.size(1) else wide).to(n.dtype)

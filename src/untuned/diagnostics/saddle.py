"""The four properties under which momentum leaves saddles faster, measured: arXiv 2106.02985."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ratios:
    """At one step; all of shape [runs]. Expectations of the paper are means over many of these."""

    gradient: Tensor  # |grad f|: APAG is needed where it is large
    curvature: Tensor  # the lowest eigenvalue of the Hessian: CNC and APCG are needed where it is negative
    cnc: Tensor  # <m, v>^2, v being its eigenvector: at least gamma
    apag: Tensor  # <grad f, m - g> / |grad f|^2: at least -1/2
    apcg: Tensor  # <grad f, M m> / (eta sigma_max(M) |grad f|^2): at least -c'
    grace: Tensor  # eta <grad f, g - m> + eta^2 / 2 m'Hm: at most eta^2 c_h


class SaddleMonitor:
    """Computes the four ratios of stochastic momentum at one point: `monitor(w, g, m)`, all of shape [runs, d].

    `losses` maps w to the full losses [runs]. g is the stochastic gradient at w and m the momentum with it in.
    Curvature comes from Hessian-vector products and power iteration (`rounds` of them), M m from 2 tau products; both
    from eigenvectors where `hessian(w)` is given, [runs, d, d]. M = (G_{tau-1} ... G_1) (G_{tau-1} ... G_k),
    G_s = I - eta (1 + beta + ... + beta^{s-1}) H, with k = `first`; its largest singular value by products is taken at
    the ends of the spectrum, which is right for eta (largest eigenvalue) <= 1 - beta.
    """

    def __init__(
        self,
        losses: Callable[[Tensor], Tensor],
        eta: float,
        beta: float,
        tau: int,
        hessian: Callable[[Tensor], Tensor] | None = None,
        first: int = 1,
        rounds: int = 300,
    ) -> None:
        if not (eta > 0 and 0 <= beta < 1 and 1 <= first <= tau):
            raise ValueError("SaddleMonitor: eta must be positive, beta in [0, 1) and first between 1 and tau.")
        self.losses, self.eta, self.beta, self.tau, self.hessian = losses, eta, beta, tau, hessian
        self.first, self.rounds = first, rounds

    def factors(self) -> Tensor:
        """eta (1 + beta + ... + beta^{s-1}) of all factors of M, [2 tau - 1 - first]."""
        s = torch.cat([torch.arange(1, self.tau), torch.arange(self.first, self.tau)]).double()
        return self.eta * (1 - self.beta**s) / (1 - self.beta)

    def _of_eigenvalue(self, values: Tensor) -> Tensor:
        return (1 - self.factors()[:, None, None] * values).prod(0)

    def __call__(self, w: Tensor, g: Tensor, m: Tensor) -> Ratios:
        w, g, m = (t.detach() for t in (w, g, m))
        with torch.enable_grad():
            at = w.clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.losses(at).sum(), at, create_graph=self.hessian is None)
        gradient = slope.detach()

        def inner(a: Tensor, b: Tensor) -> Tensor:
            return (a * b).sum(-1)

        if self.hessian is not None:
            H = self.hessian(w)
            values, vectors = torch.linalg.eigh(H)
            amplified = self._of_eigenvalue(values)
            Mm = (vectors @ (amplified[..., None] * (vectors.mT @ m[..., None])))[..., 0]
            lowest, v, sigma = values[:, 0], vectors[..., 0], amplified.abs().amax(-1)
            Hm = (H @ m[..., None])[..., 0]
        else:

            def times(x: Tensor) -> Tensor:
                return torch.autograd.grad(slope, at, x, retain_graph=True)[0]

            highest, lowest, v = self._ends(times, w)
            Mm = m
            for factor in self.factors().flip(0):
                Mm = Mm - factor * times(Mm)
            sigma = self._of_eigenvalue(torch.stack([lowest, highest], -1)).abs().amax(-1)
            Hm = times(m)
        norm = inner(gradient, gradient)
        return Ratios(
            gradient=norm.sqrt(),
            curvature=lowest,
            cnc=inner(m, v) ** 2,
            apag=inner(gradient, m - g) / norm,
            apcg=inner(gradient, Mm) / (self.eta * sigma * norm),
            grace=self.eta * inner(gradient, g - m) + self.eta**2 / 2 * inner(m, Hm),
        )

    def _ends(self, times: Callable[[Tensor], Tensor], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The largest and the lowest eigenvalue [runs], and the eigenvector of that [runs, d]."""

        def leading(apply: Callable[[Tensor], Tensor]) -> Tensor:
            x = torch.randn(like.shape, generator=torch.Generator().manual_seed(0), dtype=like.dtype)
            for _ in range(self.rounds):
                x = torch.nn.functional.normalize(apply(x), dim=-1)
            return x

        def value(x: Tensor) -> Tensor:
            return (x * times(x)).sum(-1)

        bound = 1.05 * value(leading(times)).abs()[:, None]  # of all |eigenvalues|
        high, low = (leading(lambda x, sign=sign: bound * x + sign * times(x)) for sign in (1, -1))
        return value(high), value(low), low

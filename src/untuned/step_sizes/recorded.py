"""Stochastic Polyak steps towards recorded losses: one number per sample of the data."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from untuned.parts import Place, StepSize, dot, hyper, number, where
from untuned.step_sizes.loss_advice import climbs
from untuned.step_sizes.polyak import loss_shift

_NEEDS = frozenset({"loss", "sample_ids", "additive"})


def _project(c: Place, samples: int, slope: Any, decay: Any) -> tuple[Any, Any]:
    """Project onto the batch's equation; -> the new targets of the samples, and whether an epoch of samples is over."""
    b, ids = c.ids.numel(), c.ids.sort().values
    repeats = torch.searchsorted(ids, ids, right=True) - torch.searchsorted(ids, ids)
    c.q = (c.loss + decay - c.alpha[ids].mean()) / (slope + repeats.double().sum() / b**2)
    epochs = c.seen // samples
    c.seen = c.seen + b
    return c.alpha.index_add(0, ids, (c.top * c.q / b).expand(b)), c.seen // samples > epochs


class TAPS(StepSize):
    """Targeted stochastic Polyak: arXiv 2106.11851, Algorithm 2, for mini-batches.

    Every sample i has a target alpha_i (from 0) of its own; their mean must be `target`, the smallest mean loss. In a
    batch of b samples with repetitions c_i, f its mean loss, w = lr / top per group:

        q = (f - mean alpha) / (sum w <g, u> + sum (c_i / b)^2)
        x <- x - lr q u;   alpha_i <- alpha_i + top q c_i / b
        once per `samples` samples seen:  alpha_i <- alpha_i + top (target - mean of all alpha)

    f below the targets gives q < 0, a step upwards: that is meant. The target equation is enforced once per epoch, as
    in the author's experiments, not sampled; the mini-batch form is derived (the paper has b = 1). Coupled weight decay
    adds its weight_decay/2 |x|^2 to f. Under an averaging iterate f is f(y) + <g, w - y>, w being its point: y of
    `PrimalAverage`, which is the author's momentum, and z of the others. Under data parallelism the ids of all ranks
    are gathered, so that every rank holds all targets. Needs the loss and `sample_ids`. Sweeps: 2. Slots: none; 8 bytes
    per sample.
    """

    lr: float = hyper(default=1.0, within="[0, inf)")
    samples: int = hyper(default=1, within="[1, inf)", fixed=True)
    target: float = hyper(default=0.0, within="(-inf, inf)")
    needs: ClassVar[frozenset[str]] = _NEEDS
    alpha = number(0.0, key="sample_targets", size="samples")
    seen = number(0.0, key="samples_seen")
    q = number(0.0)

    def measure(self, x: Place) -> tuple[Any, Any]:
        return x.lr / x.top * dot(x.g, x.u), loss_shift(x)

    def decide(self, c: Place, slope: Any, decay: Any) -> None:
        alpha, due = _project(c, self.samples, slope, decay)
        c.alpha = where(due, alpha + c.top * (c.target - alpha.mean()), alpha)

    def advice(self, numbers: dict[str, Any]) -> str | None:
        return climbs(self.name, numbers, "; lower lr, or raise target to the smallest mean loss you expect")

    def size(self, x: Place) -> tuple[Any, Any]:
        return x.q * x.lr, x.q * x.lr


class MOTAPS(StepSize):
    """Moving targeted stochastic Polyak: arXiv 2106.11851, Algorithm 3. TAPS that learns its target.

    As `TAPS`, with `target` a number tau from 0 that moves before the alphas do, once per n = `samples` samples seen:

        tau <- (1 - target_lr) tau + target_lr n / (n + 1) (mean of all alpha)

    Needs the loss and `sample_ids`. Sweeps: 2. Slots: none; 8 bytes per sample.
    """

    lr: float = hyper(default=1.0, within="[0, inf)")
    samples: int = hyper(default=1, within="[1, inf)", fixed=True)
    target_lr: float = hyper(default=0.01, within="[0, 1]")
    needs: ClassVar[frozenset[str]] = _NEEDS
    alpha = number(0.0, key="sample_targets", size="samples")
    seen = number(0.0, key="samples_seen")
    q = number(0.0)
    tau = number(0.0, key="target")

    def measure(self, x: Place) -> tuple[Any, Any]:
        return x.lr / x.top * dot(x.g, x.u), loss_shift(x)

    def decide(self, c: Place, slope: Any, decay: Any) -> None:
        alpha, due = _project(c, self.samples, slope, decay)
        learned = (1 - c.target_lr) * c.tau + c.target_lr * self.samples / (self.samples + 1) * alpha.mean()
        c.tau = where(due, learned, c.tau)
        c.alpha = where(due, alpha + c.top * (c.tau - alpha.mean()), alpha)

    def advice(self, numbers: dict[str, Any]) -> str | None:
        return climbs(self.name, numbers, "; lower lr")

    def size(self, x: Place) -> tuple[Any, Any]:
        return x.q * x.lr, x.q * x.lr

"""A schedule that lets the noise of steps fall from stage to stage: implicit graduated optimization."""

from __future__ import annotations

import math
from typing import Any

import torch

from untuned.noise_scale import beta_of, noise_parts, noise_scale
from untuned.wrappers.weights import innermost

DAMPENED = {"sgd": False, "shb": False, "nshb": True}


class GraduatedSchedule:
    """Varies the learning rate, the batch size or beta so that delta falls as ((M - t) / M)^power: arXiv 2402.02325.

    delta is the published `noise_scale` of the optimizer, M = `stages` and t the stages that have ended. The decay per
    stage is that of the code iiduka-researches/igo-aaai25, ((M - t) / (M - (t - 1)))^power. Call `step()` at the end of
    each stage (an epoch, as a rule). Options of the optimizer's groups are changed in place, so that its momentum
    buffer stays; that code makes a new optimizer instead, and one of another form for "nshb".

    vary="lr": delta is proportional to it, so the learning rate decays as ((M - t) / M)^power, linearly for power 1.
    vary="batch": `batch_size` grows; draw the next stage's batches with it. It is at most `largest`.
    vary="beta": the groups' momentum falls; for "shb" it is the root of a cubic (`beta_of`).
    `target` is the delta wanted and `delta` the one reached: a batch size is capped, beta ends at 0, and for "shb" no
    batch size goes below the part of the gradient, which is most of delta at beta 0.9.

    `kind` is "sgd" (momentum 0), "shb" (momentum as in torch, dampening 0) or "nshb" (dampening = momentum). Starting
    values are those in the groups at construction. C2 and K: see `noise_scale`; `NoiseMeter` measures them.
    ValueError, with nothing changed, if the groups are not of that kind, have different lr or momentum, or if nothing
    can vary (beta of "sgd").

    >>> import torch
    >>> from untuned.schedules import GraduatedSchedule
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1, momentum=0.9)
    >>> schedule = GraduatedSchedule(
    ...     optimizer, stages=4, vary="beta", kind="shb", batch_size=128, C2=25.318, K=1.77
    ... )
    >>> for _ in range(2):
    ...     schedule.step()
    >>> round(optimizer.param_groups[0]["momentum"], 3), round(schedule.delta / schedule.target, 6)
    (0.816, 1.0)
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        stages: int,
        *,
        vary: str,
        kind: str,
        batch_size: int,
        C2: float,
        K: float,
        power: float = 1.0,
        largest: int | None = None,
    ) -> None:
        if vary not in ("lr", "batch", "beta") or kind not in DAMPENED or (vary, kind) == ("beta", "sgd"):
            raise ValueError(
                f"GraduatedSchedule varies 'lr', 'batch' or, except for 'sgd', 'beta' of 'sgd', 'shb' or 'nshb', "
                f"not {vary!r} of {kind!r}."
            )
        if not (isinstance(stages, int) and stages >= 1 and power > 0):
            raise ValueError("GraduatedSchedule: stages must be a whole number from 1 and power positive.")
        if vary == "batch" and (largest is None or largest < batch_size):
            raise ValueError("GraduatedSchedule: vary='batch' needs largest, at least batch_size.")
        inner = innermost(optimizer, "GraduatedSchedule")
        forms = {
            (float(group["lr"]), float(group.get("momentum", 0.0)), float(group.get("dampening", 0.0)))
            for group in inner.param_groups
        }
        if len(forms) > 1:
            raise ValueError("GraduatedSchedule: all groups must have the same lr, momentum and dampening.")
        (eta, beta, dampening) = forms.pop()
        if any(group.get("nesterov") for group in inner.param_groups):
            raise ValueError("GraduatedSchedule has no formula for Nesterov's form.")
        if (kind == "sgd" and beta) or (beta and dampening != (beta if DAMPENED[kind] else 0.0)):
            wanted = {"sgd": "momentum 0", "shb": "dampening 0", "nshb": "dampening equal to momentum"}[kind]
            raise ValueError(f"GraduatedSchedule: kind {kind!r} needs {wanted}.")
        self.optimizer, self.stages, self.vary, self.kind, self.power = inner, stages, vary, kind, power
        self.C2, self.K, self.largest, self.stage = C2, K, largest, 0
        self.eta, self.beta, self.batch_size = eta, beta, batch_size
        self._start = (eta, beta, batch_size, self.delta)

    @property
    def delta(self) -> float:
        """The noise scale by formula with the values of now."""
        return noise_scale(self.kind, self.eta, self.batch_size, self.beta, self.C2, self.K)

    @property
    def target(self) -> float:
        """The noise scale that the schedule wants now."""
        return self._start[3] * self._left

    @property
    def _left(self) -> float:
        return max(0.0, (self.stages - self.stage) / self.stages) ** self.power

    def step(self) -> None:
        """End a stage and set what the next one uses; after the last stage the target is zero and stays so."""
        self.stage = min(self.stage + 1, self.stages)
        eta, beta, batch, _ = self._start
        if self.vary == "lr":
            self._set(eta * self._left, beta, batch)
        elif self.vary == "beta":
            self._set(eta, min(self._beta(), self.beta), batch)
        else:
            self._set(eta, beta, max(self._batch(), self.batch_size))

    def _beta(self) -> float:
        """The beta with the wanted delta, at least 0."""
        wanted, noise = (self.target / self.eta) ** 2 if self.eta else 0.0, self.C2 / self.batch_size
        q = max(0.0, wanted - noise) / (self.K**2 + noise) if self.K**2 + noise else 0.0
        return beta_of(q) if self.kind == "shb" else math.sqrt(q) / 2

    def _batch(self) -> int:
        """The smallest batch size with at most the wanted delta, at most `largest`."""
        one = noise_parts(self.kind, 1, self.beta, self.C2, self.K)
        room = (self.target / self.eta) ** 2 - one.gradient if self.eta else 0.0
        largest = self.largest or self.batch_size
        return largest if room * largest <= one.noise else math.ceil(one.noise / room * (1 - 1e-12))

    def _set(self, eta: float, beta: float, batch: int) -> None:
        self.eta, self.beta, self.batch_size = eta, beta, batch
        for group in self.optimizer.param_groups:
            if self.vary == "lr":
                lr = group["lr"]
                group["lr"] = lr.fill_(eta) if isinstance(lr, torch.Tensor) else eta
            elif self.vary == "beta":
                group["momentum"] = beta
                if DAMPENED[self.kind]:
                    group["dampening"] = beta

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule stands; the optimizer is saved by itself."""
        return {"stage": self.stage, "now": [self.eta, self.beta, self.batch_size], "start": list(self._start)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict()` gave, and set the groups to it."""
        eta, beta, batch, delta = state_dict["start"]
        self._start, self.stage = (eta, beta, batch, delta), state_dict["stage"]
        self._set(*state_dict["now"])

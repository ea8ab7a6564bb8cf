"""The continuous-variable coherent Ising machine of arXiv 2401.12135, simulated: many samples of it side by side."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from untuned.systems.ising.feedback import Factory, Feedback, feedback_of
from untuned.systems.ising.problems import Problem


@dataclass(frozen=True)
class Samples:
    """What a solver found; S samples, R recorded round trips, n variables. Values are of the function to minimise.

    A sample that diverged keeps its place: its `value` and `best` are infinite, so it counts as a failure everywhere.
    """

    problem: Problem
    x: Tensor  # [S, n], the answers: points of the box, corners of it for Ising; NaN where a sample diverged
    value: Tensor  # [S], float64, of the answers
    best: Tensor  # [S], float64, the least over the recorded round trips
    rounds: Tensor  # [R], which round trips were recorded: from 1 on, the last one included
    history: Tensor  # [R, S], float64, the values there
    diverged: Tensor  # [S], bool: an amplitude or a variance is no finite number at the end
    negative_variance: Tensor  # [S], bool: a variance was below 0 at a recorded round trip, which no state has
    amplitude: Tensor  # [S, n], mu at the end
    variance: Tensor  # [S, n], sigma at the end


@dataclass(frozen=True)
class CIM:
    """A measurement-feedback coherent Ising machine with Gaussian states and continuous variables.

    Amplitudes mu and variances sigma of n pulses over the round trips t = 1 .. steps - 1, by Euler's method; both right
    sides use the old mu and sigma, and Z ~ N(0, I) is one draw for both of its places:

        j = measurement exp(-3 t/steps);  p = pump t/steps;  s = sqrt(p_T - 1 - j_T) / g at t = steps
        x~ = clip((mu + Z / (2 sqrt(j dt)) + s) / (2 s), 0, 1)
        G = (2 Q x~ + V) / (2 s);  U = feedback(G)
        mu    += dt ((-(1 + j) + p - g^2 mu^2) mu + strength U) + sqrt(j dt) (sigma - 1/2) Z
        sigma += dt (2 (-(1 + j) + p - 3 g^2 mu^2) sigma - 2 j (sigma - 1/2)^2 + (1 + j) + 2 g^2 mu^2)

    from mu uniform in [-s, s] and sigma uniform in [1, 1.5]; amplitudes are not clipped. The answer is
    x = clip((mu + s) / (2 s), 0, 1). Source: arXiv 2401.12135, with the constants of its published runs as defaults,
    but `samples`, which was 1024.

    feedback: "gradient" (U = -G), "momentum" (B = 0.9 B + G, U = -B), "adam" (torch's, lr 1), or a function that makes
        an optimizer of a list of parameters, whose displacement is U: `lambda params: untuned.SGD(params, lr=1)`.
    samples, steps: how many machines, and round trips + 1; from 1 on.
    dt: step of Euler's method, above 0. strength: lambda, from 0 on. g: nonlinearity, above 0.
    pump, measurement: p at the end of its ramp, j0 at the start of its decay; or functions of t/steps, used instead.
    noise: a factor of Z, 1 for the machine and 0 for the limit without noise.
    dtype: torch.float32 or torch.float64.
    per_sample: for functions: an optimizer for every sample, where one for all would mix them.

    Raises ValueError in one sentence for options outside their ranges and if the pump ends below threshold
    (p_T <= 1 + j_T). Warns (RuntimeWarning) if dt is too large for the linear rates, and if samples diverged.

    >>> import torch
    >>> from untuned.systems.ising import BoxQP
    >>> problem = BoxQP(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([-1.0, -2.0]))   # least at (0, 1)
    >>> found = CIM("adam", samples=4, steps=2000).solve(problem, torch.Generator().manual_seed(0))
    >>> found.x.round().tolist(), [round(v, 2) for v in found.best.tolist()]
    ([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]], [-2.0, -2.0, -2.0, -2.0])
    """

    feedback: str | Factory = "adam"
    samples: int = 128
    steps: int = 15000
    dt: float = 0.0025
    strength: float = 550.0
    pump: float | Callable[[float], float] = 2.5
    measurement: float | Callable[[float], float] = 25.0
    g: float = 0.01
    noise: float = 1.0
    dtype: torch.dtype = torch.float32
    per_sample: bool = False

    def __post_init__(self) -> None:
        for name in ("samples", "steps"):
            if not isinstance(value := getattr(self, name), int) or value < 1:
                raise ValueError(f"CIM: {name} must be a whole number from 1 on, not {value!r}.")
        for name, least in (("dt", "above 0"), ("g", "above 0"), ("strength", "from 0 on"), ("noise", "from 0 on")):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0 or (value == 0 and least == "above 0"):
                raise ValueError(f"CIM: {name} must be a finite number {least}, not {value!r}.")
        if self.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"CIM: dtype must be torch.float32 or torch.float64, not {self.dtype}.")
        for name, of in (("pump", self.pump_at), ("measurement", self.measurement_at)):
            if not all(math.isfinite(of(share)) and of(share) > 0 for share in (0.5, 1.0)):
                raise ValueError(f"CIM: {name} must be positive and finite, not {getattr(self, name)!r}.")
        if self.pump_at(1.0) <= 1 + self.measurement_at(1.0):
            p, j = self.pump_at(1.0), self.measurement_at(1.0)
            raise ValueError(f"CIM: the pump ends below threshold: {p:g} must be above 1 + j = {1 + j:g} at the end.")
        feedback_of(self.feedback, self.per_sample)

    def pump_at(self, share: float) -> float:
        """p at t/steps = share."""
        return self.pump(share) if callable(self.pump) else self.pump * share

    def measurement_at(self, share: float) -> float:
        """j at t/steps = share."""
        return self.measurement(share) if callable(self.measurement) else self.measurement * math.exp(-3 * share)

    @property
    def saturation(self) -> float:
        """s, the amplitude that stands for x = 1; -s stands for x = 0."""
        return math.sqrt(self.pump_at(1.0) - 1 - self.measurement_at(1.0)) / self.g

    @property
    def fastest_rate(self) -> float:
        """The largest decay rate of the linearised variances at the start; Euler's method needs dt times it below 2."""
        j, p = self.measurement_at(0.0), self.pump_at(0.0)
        return 2 * (1 + j - p) + 4 * j * (1.5 - 0.5) + 6 * (self.g * self.saturation) ** 2

    def solve(self, problem: Problem, generator: torch.Generator | None = None, every: int = 10) -> Samples:
        """Run the machine. `generator` draws everything, a new one with seed 0 by default; its device is used.

        The values are recorded at the first round trip, every `every` of them and the last. Equal generators give equal
        bits. A point of the box costs a product with Q more when it is recorded.
        """
        generator = generator or torch.Generator().manual_seed(0)
        if every < 1:
            raise ValueError(f"CIM: every must be a whole number from 1 on, not {every!r}.")
        if self.dt * self.fastest_rate >= 2:
            warnings.warn(
                f"CIM: dt = {self.dt:g} is too large for Euler's method: times the fastest rate, "
                f"{self.fastest_rate:.4g}, it must be below 2.",
                RuntimeWarning,
                stacklevel=2,
            )
        with torch.no_grad():
            found = self._run(problem, feedback_of(self.feedback, self.per_sample), generator, every)
        if lost := int(found.diverged.sum()):
            warnings.warn(
                f"CIM: {lost} of {self.samples} samples diverged (dt {self.dt:g}, strength {self.strength:g}) and "
                "count as failures; a smaller dt or strength may help.",
                RuntimeWarning,
                stacklevel=2,
            )
        return found

    def _run(self, problem: Problem, feedback: Feedback, generator: torch.Generator, every: int) -> Samples:
        box, s, dt, g2, T = problem.box(), self.saturation, self.dt, self.g**2, self.steps
        as_ours = {"dtype": self.dtype, "device": generator.device}
        shape = (self.samples, box.n)
        Q, V = (box.Q / s).to(**as_ours), (box.V / (2 * s)).to(**as_ours)
        mu = torch.rand(shape, generator=generator, **as_ours).mul_(2 * s).sub_(s)
        sigma = torch.rand(shape, generator=generator, **as_ours).mul_(0.5).add_(1)
        Z, x, G, squared, centred, product = (torch.empty_like(mu) for _ in range(6))

        def loss() -> Tensor:  # f at the measured points x, as G = (2 Q x + V) / (2 s) gives it
            return ((G + V) * x).sum(-1) * s + box.constant

        rounds = sorted({t for t in (1, *range(every, T, every), T - 1) if 0 < t < T})
        places = {t: i for i, t in enumerate(rounds)}
        history = torch.full((len(rounds), self.samples), math.inf, dtype=torch.float64)
        negative = torch.zeros(self.samples, dtype=torch.bool)
        for t in range(1, T):
            j, p = self.measurement_at(t / T), self.pump_at(t / T)
            gain = dt * (p - 1 - j)
            torch.randn(shape, generator=generator, out=Z, **as_ours)
            if self.noise != 1:
                Z.mul_(self.noise)
            torch.add(mu, Z, alpha=1 / (2 * math.sqrt(j * dt)), out=x)
            x.mul_(1 / (2 * s)).add_(0.5).clamp_(0, 1)
            torch.addmm(V, x, Q, out=G)

            torch.mul(mu, mu, out=squared)
            torch.sub(sigma, 0.5, out=centred)
            torch.mul(sigma, squared, out=product)
            sigma.mul_(1 + 2 * gain).sub_(product, alpha=6 * g2 * dt).addcmul_(centred, centred, value=-2 * j * dt)
            sigma.add_(squared, alpha=2 * g2 * dt).add_(dt * (1 + j))

            Z.mul_(centred).mul_(math.sqrt(j * dt))  # from here on, what mu changes by beside the feedback
            Z.addcmul_(mu, squared, value=-g2 * dt).add_(mu, alpha=gain)
            feedback.push(mu, G, dt * self.strength, loss)
            mu.add_(Z)
            if t in places:
                history[places[t]] = box.value(self._answer(problem, mu))
                negative |= (sigma < 0).any(1).cpu()
                if not bool(mu.isfinite().all(1).any()):
                    break  # none comes back
        return self._samples(problem, mu, sigma, rounds, history, negative)

    def _answer(self, problem: Problem, mu: Tensor) -> Tensor:
        s = self.saturation
        return problem.answer(((mu.cpu() + s) / (2 * s)).clamp(0, 1))

    def _samples(
        self,
        problem: Problem,
        mu: Tensor,
        sigma: Tensor,
        rounds: list[int],
        history: Tensor,
        negative: Tensor,
    ) -> Samples:
        mu, sigma = mu.cpu(), sigma.cpu()
        diverged = ~(mu.isfinite().all(1) & sigma.isfinite().all(1))
        x = self._answer(problem, mu).masked_fill(diverged[:, None], math.nan)
        value = problem.box().value(x)
        best = history.min(0).values.masked_fill(diverged, math.inf) if rounds else value
        kept = torch.tensor(rounds, dtype=torch.int64)
        return Samples(problem, x, value, best, kept, history, diverged, negative, mu, sigma)

"""Where on tuned AdamW's way a loss lies: the share of the budget at which it is reached, and the exchange rate.

Tuned AdamW was run for several horizons h_1 < ... < h_k = 1, shares of the step budget, each with a schedule and a best
learning rate of its own. `losses` are its final validation losses at these horizons, means over seeds; `untrained` is
the loss of the untrained model, which belongs to the horizon 0.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares

Floats = NDArray[np.float64]

FLATTEST, STEEPEST = 0.01, 10.0  # bounds of the exponent B; below the first a power law is as good as a logarithm
LARGEST_RESIDUAL = 0.1  # of a useful fit, in units of the largest difference of the losses


def share_reached(horizons: ArrayLike, losses: ArrayLike, untrained: float, loss: ArrayLike) -> Floats:
    """Share of the step budget at which tuned AdamW reaches `loss`, in [0, 1], in the shape of `loss`.

    The losses are first made non-increasing: a horizon counts with the best loss of all up to it, also where its own is
    not finite. Between two horizons the loss is linear in the logarithm of the horizon, below the first it is linear in
    the horizon. On a flat stretch the earliest horizon counts. A loss of at least `untrained` and the NaN and
    infinities of a diverged run have share 0; a loss better than all of tuned AdamW's has share 1.
    """
    h = np.concatenate([[0.0], _checked(horizons, losses)])
    if not np.isfinite(untrained):
        raise ValueError(f"the loss of the untrained model is finite, not {untrained}")
    finite = np.where(np.isfinite(losses), np.asarray(losses, dtype=float), np.nan)
    levels = np.fmin.accumulate(np.concatenate([[untrained], finite]))
    wanted = np.asarray(loss, dtype=float)
    wanted = np.where(np.isfinite(wanted), wanted, np.inf)
    node = np.sum(levels > wanted[..., None], axis=-1)  # the first whose level is not above the wanted loss
    right = np.clip(node, 1, len(h) - 1)
    left = right - 1
    inside = (node > 0) & (node < len(h))
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(inside, (levels[left] - wanted) / (levels[left] - levels[right]), 1.0)
        between = np.where(left == 0, h[right] * t, h[left] * (h[right] / h[left]) ** t)
    share = np.where(t < 1, np.clip(between, h[left], h[right]), h[right])
    return np.where(node == 0, 0.0, np.where(inside, share, 1.0))


def regret(horizons: ArrayLike, losses: ArrayLike, untrained: float, loss: ArrayLike) -> Floats:
    """Tuning-free regret, 1 - `share_reached`, in [0, 1].

    It is 1 if nothing was learned and 0 if tuned AdamW needs its whole budget for `loss` or does not reach it. Where
    tuned AdamW's losses are flat its own loss has a regret, too: it was reached before.
    """
    return 1.0 - share_reached(horizons, losses, untrained, loss)


@dataclass(frozen=True)
class ExchangeRate:
    """Tuned AdamW's loss as L(h) = a h^-b + c, h the share of the step budget."""

    a: float
    b: float
    c: float  # the loss that no budget reaches
    residual: float  # root mean square over the horizons, in the unit of the loss; 0 says nothing with three horizons
    c_error: float  # standard error of c, NaN with three horizons
    problem: str  # why the fit is of no use, empty if it is

    @property
    def useful(self) -> bool:
        return not self.problem

    def loss(self, horizon: ArrayLike) -> Floats:
        """The fitted loss at a share of the budget."""
        return self.a * np.asarray(horizon, dtype=float) ** -self.b + self.c

    def effective(self, loss: ArrayLike) -> Floats:
        """The share of the budget that tuned AdamW needs for `loss`, ((loss - c)/a)^(-1/b).

        Above 1 it is extrapolated beyond what was run: read it as a trend. It is inf for a loss of c or below, 0 for
        the NaN and infinities of a diverged run, and NaN everywhere if the fit is not useful.
        """
        wanted = np.asarray(loss, dtype=float)
        if not self.useful:
            return np.full(wanted.shape, np.nan)
        wanted = np.where(np.isfinite(wanted), wanted, np.inf)
        with np.errstate(divide="ignore", over="ignore", under="ignore"):
            return (np.maximum(wanted - self.c, 0.0) / self.a) ** (-1 / self.b)

    def speed_up(self, loss: ArrayLike, spent: ArrayLike = 1.0) -> Floats:
        """How many times as many steps tuned AdamW needs for `loss` as the method, which spent `spent` of the budget.

        The cases of `effective` apply.
        """
        return self.effective(loss) / np.asarray(spent, dtype=float)


def fit_exchange_rate(horizons: ArrayLike, losses: ArrayLike) -> ExchangeRate:
    """Least-squares fit of L = a h^-b + c with a > 0 and b in [FLATTEST, STEEPEST].

    It is of use only if c comes out below the lowest loss by more than the residual; `problem` says if it does not, and
    what else can be wrong.
    NaN and infinite losses are left out; at least three must remain. The form is that of "Fantastic Pretraining
    Optimizers"; the horizons weigh the same.
    """
    h, y = _checked(horizons, losses), np.asarray(losses, dtype=float)
    h, y = h[np.isfinite(y)], y[np.isfinite(y)]
    if len(h) < 3:
        raise ValueError(f"an exchange rate needs the losses of at least three horizons, not {len(h)}")
    low, span = float(y.min()), float(np.ptp(y))
    if span == 0 or y[-1] >= y[0]:
        nan = float("nan")
        return ExchangeRate(nan, nan, nan, nan, nan, "the losses do not fall with the horizon")
    scaled = (y - low) / span  # so that the fit follows every shift and scale of the loss
    log_h = np.log(h)

    # Fitted are p = L(1), q = L(h_1) - L(1) and b, which are of order 1: L = p + q (h^-b - 1)/(h_1^-b - 1).
    def shape(b: float) -> Floats:
        return np.expm1(-b * log_h) / np.expm1(-b * log_h[0])

    def residuals(parameters: Floats) -> Floats:
        p, q, b = parameters
        return p + q * shape(b) - scaled

    def jacobian(parameters: Floats) -> Floats:
        _, q, b = parameters
        slope = (shape(b) * log_h[0] * h[0] ** -b - log_h * h**-b) / np.expm1(-b * log_h[0])
        return np.stack([np.ones_like(h), shape(b), q * slope], axis=1)

    starts = []
    for b in np.geomspace(FLATTEST, STEEPEST, 40)[1:-1]:  # p and q are linear once b is given
        (p, q), *_ = np.linalg.lstsq(np.stack([np.ones_like(h), shape(b)], axis=1), scaled, rcond=None)
        starts.append(np.array([p, max(q, 1e-9), b]))
    starts.sort(key=lambda start: float(np.sum(residuals(start) ** 2)))
    fits = [
        least_squares(
            residuals,
            start,
            jacobian,  # pyright: ignore[reportArgumentType]
            bounds=([-np.inf, 0.0, FLATTEST], [np.inf, np.inf, STEEPEST]),
            xtol=1e-15,
            ftol=1e-15,
            gtol=1e-15,
        )
        for start in starts[:3]
    ]
    fit = min(fits, key=lambda fit: fit.cost)
    p, q, b = (float(value) for value in fit.x)
    growth = float(np.expm1(-b * log_h[0]))
    a = q / growth
    c = p - a
    residual = float(np.sqrt(np.mean(fit.fun**2)))
    error = float("nan")
    if len(h) > 3:
        gradient = np.array([1.0, -1 / growth, -q * log_h[0] * (growth + 1) / growth**2])  # of c in p, q, b
        variance = 2 * fit.cost / (len(h) - 3) * gradient @ np.linalg.pinv(fit.jac.T @ fit.jac) @ gradient
        error = float(np.sqrt(max(variance, 0.0)))

    problem = ""
    if residual > LARGEST_RESIDUAL:
        problem = "the losses do not follow a power law of the horizon"
    elif b < 1.1 * FLATTEST:
        problem = "the losses fall like a logarithm: the loss that no budget reaches cannot be told"
    elif b > 0.9 * STEEPEST or c > -max(residual, 1e-6):
        problem = "the losses have reached their floor: more steps would change nothing"
    elif error > 1:
        problem = (
            "the loss that no budget reaches cannot be told: its error is larger than the whole fall of the losses"
        )
    return ExchangeRate(a * span, b, low + c * span, residual * span, error * span, problem)


def _checked(horizons: ArrayLike, losses: ArrayLike) -> Floats:
    h = np.asarray(horizons, dtype=float)
    if h.ndim != 1 or len(h) < 1 or np.shape(losses) != h.shape:
        raise ValueError(f"every horizon has one loss, not {h.shape} and {np.shape(losses)}")
    if not (h[0] > 0 and np.all(np.diff(h) > 0) and h[-1] == 1):
        raise ValueError(f"horizons rise from above 0 to 1, not {h.tolist()}")
    return h

"""Schedules from logged gradient norms: the refined one, the bound that ranks schedules, and its minimiser.

Both are of arXiv 2310.07831. A schedule is a sequence of multipliers of lr, one for each optimizer step.
"""

from __future__ import annotations

import math
import reprlib
from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def _array(values: Any, name: str, what: str) -> Floats:
    """As float64; ValueError in one sentence for what are no numbers."""
    try:
        values = values.detach().double().cpu() if isinstance(values, torch.Tensor) else values
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: {what} must be numbers, one a step, not {reprlib.repr(values)}.") from None


def checked(norms: ArrayLike, name: str = "refine") -> Floats:
    """Norms as a float64 vector (steps,); ValueError if there are fewer than two, or one is not positive and finite."""
    values = _array(norms, name, "norms")
    if values.ndim != 1 or len(values) < 2:
        have = f"{len(values)}" if values.ndim == 1 else f"an array of shape {values.shape}"
        raise ValueError(f"{name}: needs the gradient norms of at least two steps, one number a step, not {have}.")
    if not (good := (values > 0) & np.isfinite(values)).all():
        at = int(np.argmin(good))
        raise ValueError(f"{name}: a norm must be positive and finite; that of step {at + 1} is {values[at]}.")
    return values


def _too_far_apart(values: Floats, name: str) -> ValueError:
    return ValueError(f"{name}: norms from {values.min():g} to {values.max():g} are too far apart for a schedule.")


def window_of(tau: float, steps: int) -> int:
    """The odd window of the median filter for a fraction tau in [0, 1] of the steps; 0 does not smooth."""
    if isinstance(tau, bool) or not isinstance(tau, (int, float)) or not 0 <= tau <= 1:
        raise ValueError(f"refine: tau, the fraction of the run that is smoothed over, must be in [0, 1], not {tau!r}.")
    return 2 * math.floor(tau * steps / 2) + 1


def median_filter(values: ArrayLike, window: int) -> Floats:
    """Medians over an odd window around each value.

    On the left the first value is repeated, on the right the values are reflected without the last one: (x1 x1) x1 x2
    ... xn (xn-1 xn-2), as the authors' program pads them.
    """
    half = window // 2
    padded = np.pad(np.asarray(values, dtype=np.float64), (half, 0), mode="edge")
    padded = np.pad(padded, (0, half), mode="reflect").tolist()
    inside = sorted(padded[:window])  # kept in order: a window of 10 % of a long log would be slow and large in NumPy
    medians = [inside[half]]
    for leaves, enters in zip(padded, padded[window:], strict=False):
        del inside[bisect_left(inside, leaves)]
        insort(inside, enters)
        medians.append(inside[half])
    return np.array(medians)


def from_weights(weights: ArrayLike) -> Floats:
    """The schedule w_t (w_{t+1} + ... + w_T) divided by its largest value, for weights (T,) >= 0: its last is 0."""
    w = np.asarray(weights, dtype=np.float64)
    after = np.append(np.cumsum(w[:0:-1])[::-1], 0.0)
    eta = w * after
    return eta / eta.max()


def refine(norms: ArrayLike, power: float, tau: float = 0.1, steps: int | None = None) -> Floats:
    """The schedule that a run with these gradient norms should have had: multipliers in [0, 1], the largest 1.

        G = median filter of the norms, over a fraction tau of the steps        w_t = G_t^-power
        eta_t = w_t (w_{t+1} + ... + w_N + w_N)                                  divided by its largest value

    arXiv 2310.07831, algorithm 1. `power` is 2 for SGD and its relatives, with the L2 norms (N,) of the whole raw
    gradient, and 1 for Adam and its relatives, with L1 norms. The theory's T points make T - 1 useful steps; we take
    T = N + 1 with the last norm once more, so that no step is wasted: constant norms give (N - s) / N at step s =
    0, ..., N - 1, which is linear decay. `steps`: for a run of another length, read on the time axis [0, 1], see
    `resample`.

    >>> from untuned.schedules import refine
    >>> refine([3.0, 3.0, 3.0, 3.0], power=2).tolist()
    [1.0, 0.75, 0.5, 0.25]
    """
    values = checked(norms)
    if isinstance(power, bool) or not isinstance(power, (int, float)) or not 0 < power < math.inf:
        raise ValueError(f"refine: power must be 2 (SGD, L2 norms) or 1 (Adam, L1), or positive, not {power!r}.")
    smooth = median_filter(values, window_of(tau, len(values)))
    with np.errstate(all="ignore"):
        w = (smooth / smooth.min()) ** -power  # of a scale that cannot overflow, and exactly 1 for constant norms
        schedule = from_weights(np.append(w, w[-1]))[:-1]
    if not np.isfinite(schedule).all():
        raise _too_far_apart(values, "refine")
    return schedule if steps is None else resample(schedule, steps)


def resample(schedule: ArrayLike, steps: int) -> Floats:
    """A schedule (N,) read at `steps` evenly spaced times, linear in between and 0 at the end; the largest stays 1.

    Step s stands for the time s / N.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"refine: steps must be a whole number of at least 1, not {steps!r}.")
    values = np.asarray(schedule, dtype=np.float64)
    if len(values) == steps:
        return values
    read = np.interp(np.arange(steps) / steps, np.arange(len(values) + 1) / len(values), np.append(values, 0.0))
    if not read.any():
        raise ValueError(f"refine: the schedule is zero at each of the {steps} steps at which it is read; take more.")
    return read / read.max()


def bound(schedule: ArrayLike, norms: ArrayLike, distance: float = 1.0) -> tuple[float, float]:
    """What the last iterate is guaranteed with a schedule of this shape, and the lr that its multipliers need for it.

        B(eta) = D^2 / (2 S_1) + V_1 / (2 S_1) + 1/2 sum over k < T of (eta_k / S_{k+1}) (V_k / S_k)
        S_k = sum over t >= k of eta_t        V_k = sum over t >= k of eta_t^2 G_t^2

    arXiv 2310.07831, theorem 10, for subgradient descent on a convex function: `schedule` (T,) and L2 `norms` (T,),
    `distance` D from the start to a minimiser. With eta = c times the schedule B is a / c + b c: returned are its least
    value 2 sqrt(a b) and c = sqrt(a / b). Only sums of positive terms: nothing cancels, as it does in the public code
    (lr-scheduling), which subtracts sums, where the last multipliers are far below the first.
    """
    G = checked(norms, "bound")
    s = _array(schedule, "bound", "multipliers")
    if s.shape != G.shape:
        raise ValueError(f"bound: the schedule needs a multiplier for each of the {len(G)} norms, not {s.shape}.")
    if not (np.isfinite(s).all() and (s >= 0).all() and s[-1] > 0):
        raise ValueError("bound: multipliers must be finite and not negative, and the last must be positive.")
    if isinstance(distance, bool) or not isinstance(distance, (int, float)) or not 0 < distance < math.inf:
        raise ValueError(f"bound: distance must be positive and finite, not {distance!r}.")
    scale, size = float(s.max()), float(G.max())
    S, V = _tails(s / scale), _tails((s / scale) ** 2 * (G / size) ** 2)
    b = V[0] / S[0] + float(np.sum((s[:-1] / scale) / S[1:] * (V[:-1] / S[:-1])))
    a = 1 / S[0]
    return float(np.sqrt(a * b)) * distance * size, float(np.sqrt(a / b)) * distance / size / scale


def _tails(values: Floats) -> Floats:
    return np.cumsum(values[::-1])[::-1]


def numeric(norms: ArrayLike, rounds: int = 500) -> Floats:
    """The schedule (T,) with the least `bound` for these norms, divided by its largest value: found numerically.

    L-BFGS on the logarithms of the multipliers, from linear decay, until it stands still or for so many rounds. With
    constant norms it is nearly linear, but turns up on the last step, which the theory leaves free.
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 0:
        raise ValueError(f"numeric: rounds must be a whole number of at least 0, not {rounds!r}.")
    G = torch.from_numpy(checked(norms, "numeric"))
    G2 = (G / G.max()) ** 2
    x = torch.arange(len(G), 0, -1, dtype=torch.float64).log_().requires_grad_()
    enough = {"max_iter": rounds, "history_size": 20, "tolerance_grad": 1e-9, "tolerance_change": 1e-14}
    search: Any = torch.optim.LBFGS([x], line_search_fn="strong_wolfe", **enough)

    def tails(values: torch.Tensor) -> torch.Tensor:
        return values.flip(0).cumsum(0).flip(0)

    def value() -> torch.Tensor:
        search.zero_grad()
        eta = (x - x.detach().max()).exp()
        S, V = tails(eta), tails(eta**2 * G2)
        log = ((V[0] + (eta[:-1] / S[1:] * (V / S)[:-1]).sum() * S[0]) / S[0] ** 2).log()
        log.backward()
        return log

    with torch.enable_grad():
        search.step(value)
    found = x.detach().numpy()
    if not np.isfinite(found).all():
        raise _too_far_apart(G.numpy(), "numeric")
    return np.exp(found - found.max())


def peak(schedule: Sequence[float] | Floats) -> float:
    """Where the largest multiplier is, as a part of the run in [0, 1); the first, if several are equal."""
    return int(np.argmax(schedule)) / len(schedule)

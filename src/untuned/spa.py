"""SGD with momentum in the form of stochastic primal averaging: its map to heavy ball, and its Lyapunov function.

    SGD+M   m_{k+1} = beta_k m_k + g_k          x_{k+1} = x_k - alpha_k m_{k+1}                    m_0 = 0
    SPA     z_{k+1} = z_k - eta_k g_k           x_{k+1} = (1 - c_{k+1}) x_k + c_{k+1} z_{k+1}      z_0 = x_0

After arXiv 2010.00406; the map and the Lyapunov function below are derived here. `untuned.SGDSPA` runs the second form:
its lr at step k is eta_k, its momentum 1 - c_{k+1}. Sequences are one-dimensional and have one entry per step: etas[k]
is eta_k and cs[k] is c_{k+1}, what step k uses.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from untuned.directions import Gradient
from untuned.gradients import Norms
from untuned.iterates import PrimalAverage
from untuned.optimizer.optimizer import Optimizer
from untuned.step_sizes import Fixed
from untuned.weight_decay import Coupled

Floats = NDArray[np.float64]


def spa_from_sgdm(alphas: ArrayLike, betas: ArrayLike, eta0: float | None = None) -> tuple[Floats, Floats]:
    """-> (etas, cs), which lead through the same points as heavy ball with learning rates alphas > 0 and betas >= 0.

        c_{k+1} = alpha_k / eta_k,    eta_{k+1} = (eta_k - alpha_k) / beta_{k+1}

    The form is not unique: every eta_0 from the smallest feasible one on, the sum over k of alpha_k beta_1 ... beta_k,
    gives the same points. Without `eta0` it is alpha_0 / (1 - beta_1), which stays as it is while alpha and beta do, or
    the smallest feasible one where that leads to c > 1. Any other grows by up to 1 / beta a step, and so do errors:
    convert once, beforehand, and do not recover c while training. betas[0] does not matter.

    >>> from untuned.spa import spa_from_sgdm
    >>> etas, cs = spa_from_sgdm([0.5, 0.5, 0.05], [0.5, 0.5, 0.5])
    >>> etas.tolist(), cs.tolist()                        # the drop of alpha is one of c
    ([1.0, 1.0, 1.0], [0.5, 0.5, 0.05])
    """
    alpha, beta = _sequences("spa_from_sgdm", alphas=alphas, betas=betas)
    _within("spa_from_sgdm", "alphas must be positive", alpha > 0, alpha)
    _within("spa_from_sgdm", "betas must not be negative", beta >= 0, beta)
    smallest = alpha.copy()  # backwards from c = 1 at the last step
    for k in range(len(alpha) - 1, 0, -1):
        smallest[k - 1] += beta[k] * smallest[k]
    following = np.append(beta[1:], beta[-1])  # beta_{k+1}; at the last step it is not used
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        natural = np.where(following < 1, alpha / (1 - following), np.inf)
        if eta0 is None:
            eta = smallest
            if np.isfinite(natural[0]):
                found = _forward(natural[0], alpha, following, natural)
                eta = found if _feasible(found, alpha).all() else smallest
            return eta, alpha / eta
        if not (isinstance(eta0, (int, float)) and np.isfinite(eta0) and eta0 > 0):
            raise ValueError(f"spa_from_sgdm: eta0 must be a positive number, not {eta0!r}.")
        eta = smallest if eta0 == smallest[0] else _forward(float(eta0), alpha, following, natural)
    if not (good := _feasible(eta, alpha)).all():
        k = int(np.argmin(good))
        why = f"c = alpha / eta = {alpha[k] / eta[k]:.3g}" if eta[k] > 0 else f"eta = {eta[k]:.3g}"
        why = f"{why}, and c must be in (0, 1]; the smallest eta0 that fits is {smallest[0]:.17g}"
        raise ValueError(f"spa_from_sgdm: eta0 = {eta0:g} leads at step {k} to {why}.")
    return eta, alpha / eta


def _forward(eta: float, alpha: Floats, following: Floats, natural: Floats) -> Floats:
    """eta_{k+1} = (eta_k - alpha_k) / beta_{k+1}, as what eta exceeds its fixed point by: zero stays exactly zero."""
    etas, base, more = np.empty_like(alpha), eta, 0.0
    for k, (a, beta, n) in enumerate(zip(alpha, following, natural, strict=True)):
        etas[k] = base + more
        if beta == 0:  # what was averaged before counts no more, which only c = 1 says; the next eta is free
            base, more = (natural[min(k + 1, len(natural) - 1)], 0.0) if etas[k] == a else (np.nan, 0.0)
        elif beta < 1:
            base, more = n, (base - n + more) / beta
        else:
            base, more = (etas[k] - a) / beta, 0.0
    return etas


def _feasible(eta: Floats, alpha: Floats) -> NDArray[np.bool_]:
    return np.isfinite(eta) & (eta >= alpha)


def sgdm_from_spa(etas: ArrayLike, cs: ArrayLike) -> tuple[Floats, Floats]:
    """-> (alphas, betas) of heavy ball that leads through the same points; etas > 0, cs in (0, 1].

        alpha_k = eta_k c_{k+1},    beta_k = (1 - c_k) eta_{k-1} / eta_k

    beta_0, which does not matter, is 0. A drop of eta at fixed c makes one beta large, above 1 for most.

    >>> from untuned.spa import sgdm_from_spa
    >>> alphas, betas = sgdm_from_spa([1.0, 1.0, 0.125], [0.5, 0.5, 0.5])
    >>> alphas.tolist(), betas.tolist()
    ([0.5, 0.5, 0.0625], [0.0, 0.5, 4.0])
    """
    eta, c = _spa_sequences("sgdm_from_spa", etas, cs)
    return eta * c, np.append(0.0, (1 - c[:-1]) * eta[:-1] / eta[1:])


def spa_descent_margin(etas: ArrayLike, cs: ArrayLike, L: float) -> Floats:
    """q_k for every step: where it is not negative, a step on an L-smooth f does not raise V (see `lyapunov`).

        q_k = 1 / (eta_k c_{k+1}) - L / 2 - (1 - c_k) / (2 c_k eta_k) - (1 - c_{k+1}) / (2 c_{k+1} eta_{k+1})
        V_{k+1} <= V_k - q_k |x_{k+1} - x_k|^2

    c_0 is 1, and after the last step eta stays as it is. f need not be convex; gradients are exact. For constant eta
    and c, q = 1 / eta - L / 2: stable for eta <= 2 / L, whatever the momentum. At fixed eta a fall of c never hurts.

    >>> from untuned.spa import spa_descent_margin
    >>> spa_descent_margin([1.0] * 4, [0.1, 0.1, 0.01, 0.01], L=1.0).tolist()[1:]       # c falls tenfold
    [0.5, 45.5, 0.5]
    >>> spa_descent_margin([1.0, 1.0, 0.1, 0.1], [0.1] * 4, L=1.0).round(9).tolist()[1:]   # eta does
    [-40.0, 9.5, 9.5]
    """
    eta, c = _spa_sequences("spa_descent_margin", etas, cs)
    if not (isinstance(L, (int, float)) and np.isfinite(L) and L >= 0):
        raise ValueError(f"spa_descent_margin: L must be a number of at least 0, not {L!r}.")
    before, after = np.append(1.0, c[:-1]), np.append(eta[1:], eta[-1])
    return 1 / (eta * c) - L / 2 - (1 - before) / (2 * before * eta) - (1 - c) / (2 * c * after)


def lyapunov(f: float, x: ArrayLike, x_prev: ArrayLike, eta: float, c: float) -> float:
    """V_k = f(x_k) + (1 - c_k) / (2 c_k eta_k) |x_k - x_{k-1}|^2, for deterministic runs only.

    eta_k is the learning rate of the step that comes, c_k what the last step used. Before the first step x_prev is x,
    and V is f. With stochastic gradients V may rise, and says nothing.
    """
    eta_, c_ = _spa_sequences("lyapunov", [eta], [c])
    here, before = _numbers("lyapunov", "x", x), _numbers("lyapunov", "x_prev", x_prev)
    if here.shape != before.shape:
        raise ValueError(f"lyapunov: x and x_prev must be of one shape, not {here.shape} and {before.shape}.")
    moved = here - before
    return float(float(f) + (1 - c_[0]) / (2 * c_[0] * eta_[0]) * np.sum(moved**2))


class LyapunovMonitor:
    """Records V of an `untuned.SGDSPA`, for deterministic runs only: full batches, no dropout.

    Call `record(loss)` between `backward()` and `step()`, with the loss at the parameters as they are. It appends V to
    `values` and returns it; the loss gains the quadratic of a coupled weight decay, whose gradient the steps take. Of
    several groups each counts with its own lr and momentum. With stochastic gradients V may rise, and says nothing.
    It reads |x_k - x_{k-1}| = c / (1 - c) |z_k - x_k| off the slot z and keeps no copy of the parameters. Create it
    before the first step; a group at lr 0 counts as at rest.

    >>> import torch, untuned
    >>> from untuned.spa import LyapunovMonitor
    >>> w = torch.nn.Parameter(torch.tensor([4.0]))
    >>> optimizer = untuned.SGDSPA([w], lr=1.0)
    >>> monitor = LyapunovMonitor(optimizer)
    >>> for _ in range(20):
    ...     optimizer.zero_grad()
    ...     loss = (w**2 / 2).sum()
    ...     loss.backward()
    ...     value = monitor.record(loss)
    ...     optimizer.step()
    >>> monitor.values[0], monitor.values == sorted(monitor.values, reverse=True)
    (8.0, True)
    """

    def __init__(self, optimizer: Optimizer) -> None:
        roles = {"direction": Gradient, "step_size": Fixed, "iterate": PrimalAverage, "decay": Coupled}
        recipe = getattr(optimizer, "recipe", None)
        for parts in [{}] if recipe is None else recipe.variants.values():
            others = [part for role, part in parts.items() if role not in roles and not isinstance(part, Norms)]
            if others or any(type(parts.get(role)) is not kind for role, kind in roles.items()):
                what = f"{type(optimizer).__name__} with {others[0].name}" if others else type(optimizer).__name__
                raise TypeError(f"LyapunovMonitor: V is that of SGDSPA and of no other optimizer, not {what}.")
        self.values: list[float] = []
        self._optimizer = optimizer
        self._used: list[float] = []  # the momentum of the last step that was taken, by group
        self._steps = float(optimizer.param_groups[0]["steps"])
        optimizer.register_step_post_hook(self._after_step)

    def _after_step(self, *_: Any) -> None:
        groups = self._optimizer.param_groups
        if float(groups[0]["steps"]) != self._steps:  # it was not skipped
            self._steps, self._used = float(groups[0]["steps"]), [float(group["momentum"]) for group in groups]

    @torch.no_grad()
    def record(self, loss: Any) -> float:
        value = float(loss) * (-1 if self._optimizer.recipe.maximize else 1)
        for i, group in enumerate(self._optimizer.param_groups):
            lr, momentum = float(group["lr"]), self._used[i] if i < len(self._used) else 0.0
            for p in group["params"]:
                value += 0.5 * float(group["weight_decay"]) * p.double().square().sum().item()
                z = self._optimizer.state[p].get("z") if momentum and lr and p in self._optimizer.state else None
                if z is not None:
                    moved = (z.double() - p.double()).square().sum().item()
                    value += (1 - momentum) / (2 * momentum * lr) * moved
        self.values.append(value)
        return value


def _numbers(name: str, what: str, values: Any) -> Floats:
    try:
        return np.array(
            values.detach().double().cpu().numpy() if isinstance(values, torch.Tensor) else values, np.float64
        )
    except (TypeError, ValueError):
        raise TypeError(f"{name}: {what} must be numbers.") from None


def _sequences(name: str, **given: ArrayLike) -> list[Floats]:
    """As float64 arrays of one length; raises a sentence if they are not."""
    found = []
    for what, values in given.items():
        array = _numbers(name, what, values)
        if array.ndim != 1 or not array.size:
            raise ValueError(f"{name}: {what} must be a sequence of at least one number, not of shape {array.shape}.")
        _within(name, f"{what} must be finite", np.isfinite(array), array)
        found.append(array)
    if len({len(array) for array in found}) > 1:
        lengths = " and ".join(f"{len(array)} {what}" for array, what in zip(found, given, strict=True))
        raise ValueError(f"{name}: both sequences must have one entry per step; there are {lengths}.")
    return found


def _within(name: str, rule: str, good: NDArray[np.bool_], values: Floats) -> None:
    if not good.all():
        k = int(np.argmin(good))
        raise ValueError(f"{name}: {rule}; at step {k} there is {values[k]:g}.")


def _spa_sequences(name: str, etas: ArrayLike, cs: ArrayLike) -> list[Floats]:
    eta, c = _sequences(name, etas=etas, cs=cs)
    _within(name, "etas must be positive", eta > 0, eta)
    _within(name, "cs must be in (0, 1]", (c > 0) & (c <= 1), c)
    return [eta, c]

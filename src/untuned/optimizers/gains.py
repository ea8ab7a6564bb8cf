"""Methods that give every element a gain: of its gradient (AdaRem), or of the step by its weight."""

from __future__ import annotations

from typing import Any, Unpack

from untuned import directions, gradients
from untuned.around import Multiplicative
from untuned.directions import Gradient, Momentum
from untuned.iterates import Plain
from untuned.optimizer.optimizer import Optimizer
from untuned.optimizer.options import EngineOptions
from untuned.optimizers.chains import joined
from untuned.step_sizes import Fixed
from untuned.weight_decay import Coupled, Decoupled


class AdaRem(Optimizer):
    """AdaRem (experimental): arXiv 2010.11041, recalled from its one public implementation, for Flax.

    p <- p - lr weight_decay p - lr (1 + lam^(t-1) sign(g) m / max |m|) g, m being the average of past gradients: gains
    between 0 and 2, above 1 where an element agrees with its past, so that lr is stable up to half the rate of gradient
    descent only: see `untuned.gradients.AdaRem`. `momentum` puts a heavy ball behind the gain; weight decay is
    decoupled. The paper has no code, and the implementation says that it may not be right, so that nothing here can be
    confirmed; AdaRem-S, which projects, is left out. Differs from the recalled code, whose steps are the same, in that:
    a group at lr 0 rests; eps may be 0; and it has no momentum. Sweeps: 2. Slots: 1, 2 with momentum.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.tensor([4.0]))
    >>> optimizer = untuned.AdaRem([w], lr=0.5)
    >>> (w**2 / 2).sum().backward()
    >>> optimizer.step()                                  # the first step is that of gradient descent
    >>> w.item()
    2.0
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.4,
        momentum: float = 0.0,
        beta: float = 0.9,
        lam: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        direction, gain = Momentum(momentum), gradients.AdaRem(beta, lam, eps)
        direction = direction if momentum else Gradient()
        engine["gradient"] = joined(engine.get("gradient", ()), gain, first=False)
        super().__init__(params, direction, Fixed(lr), Plain(), Decoupled(weight_decay), **engine)


class MultiplicativeSGD(Optimizer):
    """SGD whose steps are in proportion to the weights, or a mixture with plain ones: arXiv 2307.07189.

    p <- p - mix lr |p| tanh(eta_in u) - (1 - mix) additive lr u, u being that of `SGD` with its momentum, dampening and
    Nesterov's form; weight decay is coupled. See `untuned.around.Multiplicative`, also for rule="power". What is 0
    stays 0 with mix=1: give biases that start at 0 a group with mix=0. The authors' lr_in, lr_out, lr and g are eta_in,
    lr, additive lr and mix. Differs from their code in that: the first step of Nesterov's form looks ahead as torch's
    does, where theirs takes the gradient; and in what `SGD` here says of torch's. Sweeps: 1. Slots: 0, 1 with momentum.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.tensor([2.0]))
    >>> optimizer = untuned.MultiplicativeSGD([w], lr=0.1)
    >>> w.sum().backward()
    >>> optimizer.step()                                  # 2 - 0.1 * 2 tanh(1)
    >>> round(w.item(), 6)
    1.847681
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        eta_in: float = 1.0,
        mix: float = 1.0,
        additive: float = 1.0,
        rule: str = "abs",
        **engine: Unpack[EngineOptions],
    ) -> None:
        direction = Momentum(momentum, dampening, nesterov)
        direction = direction if momentum else Gradient()
        own = Multiplicative(eta_in, mix, additive, rule)
        engine["around"] = joined(engine.get("around", ()), own, first=True)
        super().__init__(params, direction, Fixed(lr), Plain(), Coupled(weight_decay), **engine)


class MultiplicativeAdam(Optimizer):
    """Adam whose steps are in proportion to the weights, or a mixture with plain ones: arXiv 2307.07189.

    p <- p - lr / (1 - beta1^t) (mix |p| tanh(eta_in u) + (1 - mix) additive u),   u = m / (sqrt(v_hat) + eps)
    As in the authors' code the correction of m stands outside the tanh: in the first step the argument is a tenth of
    Adam's step and lr ten times itself. Weight decay is coupled. See `untuned.around.Multiplicative`, also for
    rule="power". What is 0 stays 0 with mix=1: give biases that start at 0 a group with mix=0. The authors' lr_in,
    lr_out, lr and g are eta_in, lr, additive lr and mix. Differs from their code, which also has amsgrad, at lr 0, as
    `Adam` does. Sweeps: 1. Slots: 2.

    >>> import torch, untuned
    >>> w = torch.nn.Parameter(torch.tensor([2.0]))
    >>> optimizer = untuned.MultiplicativeAdam([w], lr=0.1)
    >>> w.sum().backward()
    >>> optimizer.step()                                  # 2 - 0.1 / 0.1 * 2 tanh(0.1)
    >>> round(w.item(), 6)
    1.800664
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        eta_in: float = 1.0,
        mix: float = 1.0,
        additive: float = 1.0,
        rule: str = "abs",
        **engine: Unpack[EngineOptions],
    ) -> None:
        own = Multiplicative(eta_in, mix, additive, rule)
        engine["around"] = joined(engine.get("around", ()), own, first=True)
        direction = directions.Adam(betas, eps)
        super().__init__(params, direction, Fixed(lr), Plain(), Coupled(weight_decay), **engine)

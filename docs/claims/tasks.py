"""Learning problems, and optimizers around those of the library, that the claims in this folder need.

A study of this folder names them `tasks:SmallBatch` and `tasks:InUnits(unit=30.0)`: a study's file finds modules beside
itself. The data are those that come with the package. Everything is deterministic in the seeds, as
docs/tasks.md asks for.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, layer_norm, relu

import untuned
from untuned.schedules import MomentumDecay
from untuned.study.tasks import Task, evaluating, seeded, shuffled
from untuned.study.tasks.images import FashionMLP, mlp
from untuned.study.tasks.logistic import LogisticRegression
from untuned.wrappers import Extrapolated as Ahead

# ---------------------------------------------------------------- batches small and large


class SmallBatch(FashionMLP):
    name = "small-batch"
    title = "MLP 784-100-100-10 on 2,000 Fashion-MNIST images, batches of 16"
    batch_size = 16
    epochs = 8  # 1,000 steps


class LargeBatch(FashionMLP):
    name = "large-batch"
    title = "MLP 784-100-100-10 on 2,000 Fashion-MNIST images, batches of 1,000"
    batch_size = 1000
    epochs = 40  # 80 steps


class Interpolation(FashionMLP):
    """A model that comes to fit its data exactly. The metric is log10 of the mean loss over them, from 1e-8 up."""

    name = "interpolation"
    title = "MLP 784-100-100-10 on 500 Fashion-MNIST images, all of which it can fit"
    metric = "log10_train_loss"
    maximize = False
    batch_size = 20
    epochs = 20  # 500 steps

    def __init__(self) -> None:
        super().__init__()
        self.x, self.y, self.samples = self.x[:500], self.y[:500], 500
        self.chance = math.log10(math.log(10))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        with evaluating(model):
            losses = [cross_entropy(model(x), y).item() for x, y in ((self.x, self.y), (self.x_val, self.y_val))]
        return {"val_loss": losses[1], self.metric: math.log10(max(losses[0], 1e-8))}


# ---------------------------------------------------------------- convex, with and without noise


class Convex(LogisticRegression):
    """Softmax regression on a table, judged by the mean loss over its rows. `noise`: share of random labels."""

    metric = "train_loss"
    maximize = False
    table: str
    noise = 0.0

    def __init__(self) -> None:
        super().__init__(self.table)
        rng = np.random.default_rng(0)  # the labels belong to the task, not to a run
        wrong = torch.from_numpy(rng.random(len(self.y)) < self.noise)
        self.y = self.y_val = torch.where(wrong, torch.from_numpy(rng.integers(self.classes, size=len(self.y))), self.y)
        self.chance = math.log(self.classes)
        self.epochs = 40
        self.name, self.title = f"noisy-{self.table}", f"{self.title}, {self.noise:.0%} of the labels random"

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        with evaluating(model):
            loss = cross_entropy(model(self.x), self.y).item()
        return {"val_loss": loss, self.metric: loss}


class NoisyVehicle(Convex):
    table, noise = "vehicle", 0.2


class NoisyVowel(Convex):
    table, noise = "vowel", 0.2


class NoisyGlass(Convex):
    table, noise = "glass", 0.2


class NoisySegment(Convex):
    table, noise = "segment", 0.2


class WholeBatch(Convex):
    """The gradient of all rows, 300 times: no noise, so that seeds do not differ."""

    def __init__(self) -> None:
        super().__init__()
        self.batch_size, self.epochs = len(self.y), 300
        self.name, self.title = f"whole-{self.table}", f"{self.title}, in one batch"


class WholeVehicle(WholeBatch):
    table = "vehicle"


class WholeVowel(WholeBatch):
    table = "vowel"


class WholeGlass(WholeBatch):
    table = "glass"


class WholeIris(WholeBatch):
    table = "iris"


class WholeWine(WholeBatch):
    table = "wine"


class WholeSegment(WholeBatch):
    table = "segment"


# ---------------------------------------------------------------- problems that change while one learns


class Counted(nn.Module):
    """A classifier that holds a count of what it has been trained on: samples, right answers, sum of losses."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("counts", torch.zeros(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Changing(FashionMLP):
    """Phases of `phase_epochs` passes each, in which inputs or labels are other ones.

    The metric is the online accuracy: the share of training samples that were classified rightly when they came, before
    the step that uses them, from phase `counted_from` (numbered from 0) on. The model counts them.
    """

    metric = "online_accuracy"
    phases: int
    phase_epochs: int
    counted_from: int

    def __init__(self) -> None:
        super().__init__()
        self.epochs = self.phases * self.phase_epochs
        self.samples = 0  # what is drawn anew has no numbers
        self.chance = self.guess()

    def guess(self) -> float:
        """The share of right answers of one that always names the most frequent class."""
        return 0.1

    def drawn(self, seed: int, phase: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Inputs and labels of a pass."""
        raise NotImplementedError

    def net(self) -> nn.Module:
        return mlp()

    def model(self, seed: int) -> nn.Module:
        with seeded(seed):
            return Counted(self.net())

    def batches(self, seed: int, epoch: int) -> Iterator[Any]:
        phase = epoch // self.phase_epochs
        x, y = self.drawn(seed, phase, epoch)
        for index in shuffled(len(y), self.batch_size, seed, epoch):
            yield x.index_select(0, index), y.index_select(0, index), phase >= self.counted_from

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        x, y, counts = batch
        logits = model(x)
        loss = cross_entropy(logits, y)
        if counts:
            right = (logits.detach().argmax(1) == y).sum().item()
            model.get_buffer("counts").add_(torch.tensor([len(y), right, len(y) * loss.item()], dtype=torch.float64))
        return loss

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        samples, right, losses = model.get_buffer("counts").tolist()
        if not samples:
            return {"val_loss": math.log(10), self.metric: self.chance}
        return {"val_loss": losses / samples, self.metric: right / samples}


class LabelsPermuted(Changing):
    name = "labels-permuted"
    title = "MLP on 2,000 Fashion-MNIST images, whose ten labels change their meaning three times"
    batch_size = 64
    phases, phase_epochs, counted_from = 4, 3, 1

    def drawn(self, seed: int, phase: int, epoch: int) -> tuple[Tensor, Tensor]:
        meaning = np.random.default_rng([seed, phase]).permutation(10) if phase else np.arange(10)
        return self.x, torch.from_numpy(meaning)[self.y]


class MixChanged(Changing):
    """In each phase five of the ten classes, drawn anew, give 90 % of the samples."""

    name = "mix-changed"
    title = "MLP on Fashion-MNIST images, of which five classes, others in each of four phases, are 90 %"
    batch_size = 64
    phases, phase_epochs, counted_from = 4, 3, 1

    def guess(self) -> float:
        return 0.18

    def drawn(self, seed: int, phase: int, epoch: int) -> tuple[Tensor, Tensor]:
        often = np.random.default_rng([seed, phase]).permutation(10)[:5]
        weights = np.where(np.isin(self.y.numpy(), often), 9.0, 1.0)
        rows = np.random.default_rng([seed, phase, epoch]).choice(len(self.y), len(self.y), p=weights / weights.sum())
        return self.x[rows], self.y[rows]


class NormsOnDemand(nn.Module):
    """MLP 784-100-100-10 without biases in its hidden layers, whose layers are normalised if `normalise` is above 0.

    `normalise` has no gradient: an optimizer that wants the normalisation sets it, and all others leave it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.normalise = nn.Parameter(torch.zeros(()))
        self.first, self.second = nn.Linear(784, 100, bias=False), nn.Linear(100, 100, bias=False)
        self.last = nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in (self.first, self.second):
            x = layer(x)
            x = relu(layer_norm(x, x.shape[-1:]) if self.normalise.item() > 0 else x)
        return self.last(x)


class RandomLabels(Changing):
    """Labels that can only be learned by heart, and are drawn anew 14 times; the last five phases count."""

    name = "random-labels"
    title = "MLP that learns the random labels of 400 Fashion-MNIST images, drawn anew every 300 steps, 15 times"
    batch_size = 20
    phases, phase_epochs, counted_from = 15, 15, 10

    def __init__(self) -> None:
        super().__init__()
        self.x, self.y = self.x[:400], self.y[:400]

    def net(self) -> nn.Module:
        return NormsOnDemand()

    def drawn(self, seed: int, phase: int, epoch: int) -> tuple[Tensor, Tensor]:
        return self.x, torch.from_numpy(np.random.default_rng([seed, phase]).integers(10, size=len(self.y)))


# ---------------------------------------------------------------- optimizers


class NormalizedAdam(torch.optim.Adam):
    """Adam on `NormsOnDemand` with its normalisations and, with `project`, hidden weights held at their first norms:
    Normalize-and-Project, arXiv 2407.01800, in its form without scale and offset."""

    def __init__(self, params: Iterable[Tensor], lr: float = 1e-3, project: bool = True) -> None:
        params = list(params)
        with torch.no_grad():
            for switch in (p for p in params if p.dim() == 0):
                switch.fill_(1.0)
        hidden = [p for p in params if p.dim() == 2][:-1]
        self.held = [(p, p.detach().norm()) for p in hidden] if project else []
        super().__init__(params, lr=lr)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore
        loss = super().step(closure)
        for p, norm in self.held:
            p.mul_(norm / p.norm())
        return loss


class Extrapolated(Ahead):
    """SGD with Nesterov's momentum whose gradients are taken `inner` lr ahead: arXiv 2006.05720 in one process."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.1,
        momentum: float = 0.9,
        inner: float = 0.125,
        direction: str = "local",
    ) -> None:
        base = torch.optim.SGD(params, lr=lr, momentum=momentum, nesterov=True)
        super().__init__(base, inner_lr=inner * lr, direction=direction)
        self.inner = inner
        self.block: Any = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        self.inner_lr = self.inner * self.param_groups[0]["lr"] if self.direction != "noise" else self.inner
        self.block = self.extrapolated()
        self.block.__enter__()

    def step(self, closure: None = None) -> Any:  # pyright: ignore
        self.block.__exit__(None, None, None)
        return super().step()


class LowerC(untuned.SGDSPA):
    """`SGDSPA` whose c = 1 - momentum falls to `final_c` by half a cosine over so many steps: arXiv 2010.00406."""

    def __init__(self, params: Iterable[Tensor], lr: float = 0.1, *, steps: int, final_c: float = 0.01) -> None:
        super().__init__(params, lr=lr, momentum=0.9)
        self.fall = MomentumDecay(self, steps, final_c, shape="cosine")

    def step(self, *args: Any, **kwargs: Any) -> Any:
        result = super().step(*args, **kwargs)
        self.fall.step()
        return result


class LARS(torch.optim.Optimizer):
    """m <- momentum m + lr |w| / |g| g; w <- w - m, tensor by tensor: LARS, arXiv 1708.03888, recalled.

    Its trust coefficient is part of lr, and there is no weight decay. Where a norm is 0, the factor is 0.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 0.01, momentum: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                norm = p.grad.norm()
                m.mul_(group["momentum"])
                if norm > 0:
                    m.add_(p.grad, alpha=float(group["lr"] * p.norm() / norm))
                p.sub_(m)


class InUnits(torch.optim.Optimizer):
    """`method` of the library for parameters that are stored in units of 1/`unit`, as in the tasks NAME/30.

    The method sees q = unit p with the gradient g / unit, and p = q / unit follows: one that does not depend on units
    does the same for every `unit`.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 1.0, *, method: str, unit: float) -> None:
        super().__init__(params, {"lr": lr})
        self.unit, self.outside = unit, [p for group in self.param_groups for p in group["params"]]
        self.stored = [nn.Parameter(p.detach() * unit) for p in self.outside]
        self.inner = untuned.create(self.stored, method, lr=lr)

    @torch.no_grad()
    def step(self, closure: None = None, *, loss: Tensor | None = None) -> None:  # pyright: ignore
        for group in self.inner.param_groups:
            group["lr"] = self.param_groups[0]["lr"]
        for p, q in zip(self.outside, self.stored, strict=True):
            q.grad = None if p.grad is None else p.grad / self.unit
        self.inner.step(loss=loss)
        for p, q in zip(self.outside, self.stored, strict=True):
            p.copy_(q / self.unit)


TASKS: list[type[Task]] = [
    SmallBatch, LargeBatch, Interpolation, NoisyVehicle, NoisyVowel, NoisyGlass, NoisySegment, WholeVehicle, WholeVowel,
    WholeGlass, WholeIris, WholeWine, WholeSegment, LabelsPermuted, MixChanged, RandomLabels,
]  # fmt: skip

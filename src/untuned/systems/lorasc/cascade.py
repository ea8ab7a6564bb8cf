"""The controller of a cascade of low-rank experts, LoRASC: arXiv 2407.01491.

Of the paper the abstract and the first page were read: they state the three stages of a cascade, not the sizes of the
pace, the noise and a cascade. What they leave open are options here, with defaults of our own.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from untuned.systems.lorasc.experts import Expert, find
from untuned.systems.lorasc.slow import Factor, Last, Law, Product, State, Window


class CascadeLoRA:
    """Train one low-rank expert after the other, and merge a slow average of them into the weights.

    In cascade t every LoRA layer of the model has a weight W (the backbone, which gets no gradients) and a fresh fast
    expert D = scaling B A. `begin` adds noise to W; the training loop trains the experts; `end` takes the noise away
    again, takes D into the slow expert S, adds S to W, and makes a fresh fast expert, whose optimizer state it clears.
    `finish` ends the training. In between the training loop is the one it was:

        model = add_lora(model, ["query", "value"], rank=4)     # or peft.get_peft_model(model, LoraConfig(...))
        optimizer = AdamW([p for p in model.parameters() if p.requires_grad])
        cascade = CascadeLoRA(model, optimizer, every=100)
        cascade.begin()
        for batch in batches:
            ...                                                  # a step of the optimizer
            cascade.step()
        cascade.finish()

    Without `every` a cascade lasts from a call of `begin` to one of `end`, an epoch say.

    Args:
        model: has LoRA layers, those of `add_lora` or those of PEFT around linear layers, and is where it is trained.
        optimizer: trains the experts; one of this library or of torch. With an averaging method of this library it is
            the averaged point that is merged.
        slow: how S_t follows from the fast experts: "product", an average that forgets exponentially; "window", the
            mean of the last `window` experts; "factor", averages of A and B, from which the next fast expert starts;
            "last", the last one alone. See `untuned.systems.lorasc.slow`.
        pace: the portion of the fast expert that enters the slow one, in [0, 1]; the paper calls it alpha. "window" has
            none.
        window: how many experts "window" averages.
        merge: "cascade", W <- W + S_t at the end of each; "final", W <- W + S_T in `finish` only. Factors that the next
            expert starts from would count twice if they were merged before, so "factor" goes with "final".
        noise: strength of the noise, 0 for none. The noise of an element is uniform on +-noise / 2 times the standard
            deviation of W ("uniform", as in NoisyTune, recalled), or normal with the variance of that ("gaussian").
        noise_law: "uniform" or "gaussian".
        keep_noise: leave the noise in W at the end of a cascade.
        every: steps of a cascade, counted by `step`.
        seed: of the noise and of the first factors of all experts but those of the first cascade. They are functions of
            the seed, the cascade and the layer, so they are the same on all ranks, and nothing of them is stored.
        adapter: which adapter of PEFT, if there are several.

    With noise, or with weights of 16 bits, a copy of W in float32 is kept: it is what experts are added to, and what
    the weights are set back to, so that noise leaves no bit behind and small merges into 16 bits are not rounded away.
    The slow expert of "product" takes a second one, the others only factors.

    Raises:
        ValueError: an option out of range; no LoRA layer; one whose weight is quantised, trained itself or shared with
            another module; an expert that the optimizer does not train. Nothing is changed then.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        slow: Literal["product", "window", "factor", "last"] = "product",
        pace: float = 0.5,
        window: int = 3,
        merge: Literal["cascade", "final"] = "cascade",
        noise: float = 0.1,
        noise_law: Literal["uniform", "gaussian"] = "uniform",
        keep_noise: bool = False,
        every: int | None = None,
        seed: int = 0,
        adapter: str | None = None,
    ) -> None:
        self.options: dict[str, Any] = {
            "slow": slow,
            "pace": pace,
            "window": window,
            "merge": merge,
            "noise": noise,
            "noise_law": noise_law,
            "keep_noise": keep_noise,
            "every": every,
            "seed": seed,
        }
        self.law = _law(self.options)
        self.optimizer, self.noise, self.every = optimizer, noise, every
        self.cascades, self.steps, self.running, self.finished = 0, 0, False, False
        self.experts = find(model, adapter)
        _check_trained(optimizer, self.experts)
        self._kept = [  # W without noise; None where the weight itself is that
            expert.weight.detach().to(expert.wide, copy=True)
            if noise > 0 or expert.weight.dtype != expert.wide
            else None
            for expert in self.experts
        ]
        self._spread = [0.0 for _ in self.experts]  # the standard deviations of W in this cascade
        self._slow: list[State] = [{} for _ in self.experts]
        for state, expert in zip(self._slow, self.experts, strict=True):
            self.law.first(state, expert)

    # ------------------------------------------------------------------ a cascade

    @torch.no_grad()
    def begin(self) -> None:
        """Begin a cascade: add noise to the backbone. Raises RuntimeError if one is running or all are finished."""
        self._expect("begin", running=False)
        self.running, self.steps = True, 0
        for i in range(len(self.experts)):
            self._spread[i] = self._backbone(i).std(correction=0).item() if self.noise else 0.0
            self._add_noise(i)

    def step(self) -> bool:
        """Count a step of the optimizer; after `every` of them end the cascade, begin the next one and return True.

        Raises RuntimeError if no cascade is running.
        """
        self._expect("step", running=True)
        self.steps += 1
        if self.steps != self.every:
            return False
        self.end()
        self.begin()
        return True

    @torch.no_grad()
    def end(self) -> None:
        """End the cascade: merge, and start fresh experts. Raises RuntimeError if none is running.

        Also raises FloatingPointError, with nothing changed, if an expert holds a NaN or an infinity.
        """
        self._expect("end", running=True)
        for expert in self.experts:
            if not all(factor.isfinite().all() for factor in expert.factors):
                raise FloatingPointError(f"the expert of {expert.name!r} is not finite, so it was not merged")
        with _averaged(self.optimizer):
            for state, expert in zip(self._slow, self.experts, strict=True):
                self.law.take(state, expert)
        self.running, self.cascades, self.steps = False, self.cascades + 1, 0
        for i, expert in enumerate(self.experts):
            backbone = self._backbone(i)
            if self.options["keep_noise"] and self.noise:
                backbone += self._noise(i, self.cascades - 1)
            if self.options["merge"] == "cascade":
                backbone += self.law.value(self._slow[i], expert)
            self._put_back(i)
            self.law.restart(self._slow[i], expert, self._generator(self.cascades, i, stream=1))
        _forget(self.optimizer, [factor for expert in self.experts for factor in expert.factors])

    @torch.no_grad()
    def finish(self) -> None:
        """End the cascade that is running, and merge what is merged at the end only; B is zero in all experts then.

        A cascade that `step` has begun and in which no step was taken does not count. Raises RuntimeError if this was
        called before.
        """
        self._expect("finish", running=None)
        if self.running and (self.every is None or self.steps > 0):
            self.end()
        for i, expert in enumerate(self.experts):
            if self.options["merge"] == "final" and self.cascades:
                self._backbone(i).add_(self.law.value(self._slow[i], expert))
            self._put_back(i)
            expert.reset(self._generator(self.cascades, i, stream=1))
        self.running, self.steps, self.finished = False, 0, True

    @contextlib.contextmanager
    def without_noise(self) -> Iterator[None]:
        """The backbone without the noise of the cascade inside the `with` block, for an evaluation in its middle."""
        places = range(len(self.experts))
        with torch.no_grad():
            for i in places:
                self._put_back(i)
        try:
            yield
        finally:
            with torch.no_grad():
                for i in places if self.running else ():
                    self._add_noise(i)

    def _expect(self, call: str, running: bool | None) -> None:
        """Whether a call may come now, in the state in which the cascade and the layers are."""
        if self.finished:
            raise RuntimeError(f"{call}() was called after finish(): a new CascadeLoRA begins anew")
        if running is not None and running != self.running:
            state = (
                "a cascade is running: end() it first" if self.running else "no cascade is running: begin() one first"
            )
            raise RuntimeError(f"{call}() was called out of order, {state}")
        for expert in self.experts:
            expert.check()

    # ------------------------------------------------------------------ the backbone and its noise

    def _backbone(self, i: int) -> Tensor:
        """W without noise, in float32 or float64."""
        kept = self._kept[i]
        return self.experts[i].weight.detach() if kept is None else kept

    def _put_back(self, i: int) -> None:
        kept = self._kept[i]
        if kept is not None:
            self.experts[i].weight.copy_(kept)

    def _add_noise(self, i: int) -> None:
        if self.noise:
            self.experts[i].weight.copy_(self._backbone(i) + self._noise(i, self.cascades))

    def _noise(self, i: int, cascade: int) -> Tensor:
        """The noise of a weight in a cascade; its standard deviation is noise / sqrt(12) of W's under both laws."""
        like, generator = self._backbone(i), self._generator(cascade, i, stream=0)
        if self.options["noise_law"] == "uniform":
            drawn = torch.rand(like.shape, dtype=like.dtype, generator=generator) - 0.5
        else:
            drawn = torch.randn(like.shape, dtype=like.dtype, generator=generator) / math.sqrt(12)
        return drawn.mul_(self.noise * self._spread[i]).to(like.device)

    def _generator(self, cascade: int, i: int, stream: int) -> torch.Generator:
        lot = np.random.default_rng([self.options["seed"], cascade, i, stream]).integers(2**63)
        return torch.Generator().manual_seed(int(lot))

    # ------------------------------------------------------------------ resuming

    def state_dict(self) -> dict[str, Any]:
        """What a run needs beside the states of the model and the optimizer to go on bitwise; tensors are not copied.

        It holds the backbones, so of the model a checkpoint of the adapters alone, as PEFT saves it, is enough.
        """
        experts = {
            expert.name: {"backbone": self._backbone(i), "spread": self._spread[i], "slow": dict(self._slow[i])}
            for i, expert in enumerate(self.experts)
        }
        counted = {key: getattr(self, key) for key in ("cascades", "steps", "running", "finished")}
        return {"options": dict(self.options), **counted, "experts": experts}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict()` was taken; call it after the model has loaded its own.

        Raises ValueError, with nothing changed, if the options or the experts are not those that were saved.
        """
        if not isinstance(state, dict) or not {"options", "experts", "running"} <= state.keys():
            raise ValueError("this is not a state dict of CascadeLoRA")
        for key, value in self.options.items():
            if state["options"].get(key) != value:
                raise ValueError(
                    f"the cascade was saved with {key}={state['options'].get(key)!r}, and here it is {value!r}"
                )
        saved = state["experts"]
        for expert in self.experts:
            if expert.name not in saved or saved[expert.name]["backbone"].shape != expert.weight.shape:
                raise ValueError(f"the cascade was saved without an expert {expert.name!r} of this shape")
        if extra := saved.keys() - {expert.name for expert in self.experts}:
            raise ValueError(f"the cascade was saved with an expert {sorted(extra)[0]!r}, and here is none")
        for key in ("cascades", "steps", "running", "finished"):
            setattr(self, key, state[key])
        for i, expert in enumerate(self.experts):
            held, device = saved[expert.name], expert.weight.device
            self._backbone(i).copy_(held["backbone"])
            self._spread[i] = held["spread"]
            self._slow[i] = {key: value.detach().to(device, copy=True) for key, value in held["slow"].items()}
            self._put_back(i)
            if self.running:
                self._add_noise(i)


def _law(options: dict[str, Any]) -> Law:
    """The law of the slow expert; raises ValueError for an option that is out of range."""
    choices = {
        "slow": ("product", "window", "factor", "last"),
        "merge": ("cascade", "final"),
        "noise_law": ("uniform", "gaussian"),
        "keep_noise": (True, False),
    }
    for key, allowed in choices.items():
        if options[key] not in allowed:
            raise ValueError(f"{key} is one of {', '.join(map(repr, allowed))}, not {options[key]!r}")
    if not 0 <= options["pace"] <= 1:
        raise ValueError(f"pace is a number from 0 to 1, not {options['pace']!r}")
    if not (options["noise"] >= 0 and math.isfinite(options["noise"])):
        raise ValueError(f"noise is a number from 0 on, not {options['noise']!r}")
    for key, least in (("window", 1), ("seed", 0), ("every", 1)):
        value = options[key]
        if not (key == "every" and value is None) and (type(value) is not int or value < least):
            raise ValueError(f"{key} is a whole number from {least} on, not {value!r}")
    if options["slow"] == "factor" and options["merge"] == "cascade":
        raise ValueError(
            'slow="factor" needs merge="final": its experts start from the slow one, which counted twice else'
        )
    if options["slow"] == "window":
        return Window(options["window"])
    return {"product": Product, "factor": Factor, "last": Last}[options["slow"]](options["pace"])


def _check_trained(optimizer: torch.optim.Optimizer, experts: list[Expert]) -> None:
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for expert in experts:
        if not all(id(factor) in trained for factor in expert.factors):
            raise ValueError(
                f"the optimizer does not train the expert of {expert.name!r}: build it from the parameters of the "
                f"model after LoRA was added"
            )


def _averaged(optimizer: Any) -> contextlib.AbstractContextManager[Any]:
    """Inside, the parameters hold the point that an averaging method evaluates, also if accelerate has wrapped it."""
    inner = getattr(optimizer, "optimizer", optimizer)
    return getattr(inner, "averaged_parameters", contextlib.nullcontext)()


def _forget(optimizer: torch.optim.Optimizer, params: list[nn.Parameter]) -> None:
    """Clear what an optimizer keeps for these parameters: the next step finds none and starts it anew.

    That is how those of torch start, and what `reset(params)` of those of this library does.
    """
    for p in params:
        optimizer.state.pop(p, None)

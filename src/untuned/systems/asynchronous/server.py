"""The server of asynchronous training without any transport: it takes messages and says what to answer."""

from __future__ import annotations

import collections
import copy
import inspect
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from untuned.systems.asynchronous.messages import Answer, Gradient, flat

Row = tuple[int, int, int]  # worker, index, draw

REASONS = ("unknown", "duplicate", "lost", "future", "foreign", "shape", "nonfinite", "late", "ended")


class Server:
    """A parameter server around any `torch.optim.Optimizer`; threads may call it, one at a time is served.

    It counts the gradients it has applied, t = 0, 1, ...: a worker that gets the weights then gets index t with them,
    and a gradient that comes back with index i at the time t has the delay t - i. With `untuned.OrMo` it is OrMo
    (arXiv 2407.19234): an optimizer whose step takes an index is told that of the gradient. Others are not: with
    `untuned.SGD` it is asynchronous SGD, and with momentum in it the naive momentum of the order of arrival.

    Args:
        optimizer: of the server's parameters, all of one dtype on one device; those in its groups are served. One of
            this library may have skip_nonfinite=False, which is faster: the server looks itself.
        workers: how many there are, K, numbered from 0. It stays K when some are lost.
        synchronous: answer when all workers that compute have sent their gradient. An optimizer without an index then
            takes one step on the mean of the round (with momentum SSGDm); one with an index takes a step for each
            gradient as it comes, and only the answers wait.
        max_lag: the largest lag in buckets of K gradients, ceil(t / K) - ceil(i / K), that is taken as it is; None
            takes all.
        stale: what happens beyond it: "drop" refuses the gradient, "cap" applies it with the index that has max_lag,
            which only an optimizer with an index can do.
        steps: after so many gradients the answer is to stop; None goes on.
        scheduler: anything with `step()`, called after every step of the optimizer.
        patience: the server gives up (`failure`) after so many refusals without a gradient applied between them; the
            default is 10 workers.

    A gradient is refused, counted in `refused` under one of `REASONS`, and never applied, if it came twice, has an
    index the server has not reached, is not what its worker was told to compute, has another shape, is not finite, or
    is too late. `refusals` has the last hundred sentences. The worker gets the present weights instead, unless it has
    work already. `trace` is the list of (worker, index, draw) that were applied, in order: `replay` repeats them to the
    bit.

    >>> import untuned
    >>> w = torch.nn.Parameter(torch.tensor([4.0]))
    >>> server = Server(untuned.OrMo([w], lr=0.5, num_workers=2), workers=2)
    >>> first, second = server.start()
    >>> [answer] = server.receive(Gradient(1, second.index, second.draw, 0, torch.ones(1)))
    >>> answer.worker, answer.index, answer.draw, answer.weights
    (1, 1, 2, tensor([3.5000]))
    >>> server.receive(Gradient(1, second.index, second.draw, 0, torch.ones(1)))
    []
    >>> server.refusals[-1]
    'worker 1 sent gradient number 0 (draw 1) again; it was not applied.'
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        workers: int,
        *,
        synchronous: bool = False,
        max_lag: int | None = None,
        stale: str = "drop",
        steps: int | None = None,
        scheduler: Any = None,
        patience: int | None = None,
    ) -> None:
        self.params = [p for group in optimizer.param_groups for p in group["params"]]
        if len({(p.dtype, p.device) for p in self.params}) != 1:
            raise ValueError("Server: the parameters travel as one vector, so they must have one dtype and one device.")
        if workers < 1:
            raise ValueError(f"Server: workers must be 1 or more, not {workers!r}.")
        if stale not in ("drop", "cap"):
            raise ValueError(f"Server: stale must be 'drop' or 'cap', not {stale!r}.")
        if getattr(getattr(optimizer, "recipe", None), "driven", False):
            raise ValueError(f"Server: {type(optimizer).__name__} reads the loss in every step; workers send none.")
        self.indexed = takes_index(optimizer)
        if stale == "cap" and not self.indexed:
            raise ValueError(f"Server: stale='cap' needs a step with an index; {type(optimizer).__name__} has none.")
        if max_lag is not None and max_lag < 0:
            raise ValueError(f"Server: max_lag must be None or 0 or more, not {max_lag!r}.")
        self.optimizer, self.workers, self.synchronous, self.scheduler = optimizer, workers, synchronous, scheduler
        self.max_lag, self.stale, self.steps = max_lag, stale, steps
        self.patience = 10 * workers if patience is None else patience
        self.index = 0  # t, the gradients applied
        self.draws = 0  # answers given
        self.in_flight: dict[int, tuple[int, int]] = {}  # worker -> index and draw of what it computes
        self.trace: list[Row] = []
        self.refused: collections.Counter[str] = collections.Counter()
        self.refusals: collections.deque[str] = collections.deque(maxlen=100)
        self.failure = ""  # why the server gave up
        self._waiting: list[Gradient] = []  # of a synchronous round
        self._numbers: dict[int, int] = {}  # worker -> number of its last gradient
        self._in_a_row = 0  # refusals since a gradient was applied
        self._sizes = [p.numel() for p in self.params]
        self._lock = threading.RLock()

    # ------------------------------------------------------------------ messages

    @property
    def done(self) -> bool:
        """Whether every worker is told to stop from now on."""
        return bool(self.failure) or (self.steps is not None and self.index >= self.steps)

    def weights(self) -> torch.Tensor:
        """A flat copy of the weights, shape (parameters,)."""
        return flat(self.params)

    def start(self, workers: Iterable[int] | None = None) -> list[Answer]:
        """Work for all workers, or for those that are there: at the beginning, and after `load_state_dict`.

        What they computed before is no longer expected.
        """
        with self._lock:
            self.in_flight.clear()
            self._waiting.clear()
            self._numbers.clear()
            return [self._answer(worker) for worker in (range(self.workers) if workers is None else workers)]

    def receive(self, message: Gradient) -> list[Answer]:
        """Apply a gradient or refuse it. -> what to send now: nothing, an answer, or those of a whole round."""
        with self._lock:
            reason, sentence = self._judged(message)
            if reason:
                return self._refuse(message, reason, sentence)
            self._numbers[message.worker] = message.number
            del self.in_flight[message.worker]
            if not self.synchronous:
                self.apply([message])
                return [self._answer(message.worker)]
            if self.indexed:
                self.apply([message])
            self._waiting.append(message)
            return self._end_of_round()

    def lost(self, worker: int) -> list[Answer]:
        """A worker will not send what it was told to compute. -> the answers of a round that it held up."""
        with self._lock:
            if self.in_flight.pop(worker, None) is None:
                return []
            return self._end_of_round()

    def rejoin(self, worker: int) -> list[Answer]:
        """Work for a worker that is new, or back; in synchronous training it takes part in the present round."""
        with self._lock:
            if worker not in range(self.workers):
                raise ValueError(f"Server: there is no worker {worker!r}; they are numbered 0 to {self.workers - 1}.")
            self._numbers.pop(worker, None)
            return [self._answer(worker)]

    def _answer(self, worker: int) -> Answer:
        if self.done:
            self.in_flight.pop(worker, None)
            return Answer(worker, self.index, -1, None)
        answer = Answer(worker, self.index, self.draws, self.weights())
        self.in_flight[worker] = answer.index, answer.draw
        self.draws += 1
        return answer

    def _end_of_round(self) -> list[Answer]:
        """The answers of a synchronous round when nobody computes any more, else none."""
        if not self._waiting or self.in_flight:
            return []
        if not self.indexed and not self.done:
            self.apply(self._waiting)
        workers = list(dict.fromkeys(message.worker for message in self._waiting))
        self._waiting = []
        return [self._answer(worker) for worker in workers]

    # ------------------------------------------------------------------ what is refused

    def lag(self, index: int) -> int:
        """How many buckets late a gradient of that index would be now."""
        return -(-self.index // self.workers) + (-index // self.workers)

    def _judged(self, message: Gradient) -> tuple[str, str]:
        """Why a gradient cannot be applied, as one of `REASONS` and what it did; two empty strings if it can."""
        worker, index, gradient = message.worker, message.index, message.gradient
        if worker not in range(self.workers):
            return "unknown", f"is none of the workers 0 to {self.workers - 1}"
        if message.number <= self._numbers.get(worker, -1):
            return "duplicate", f"sent gradient number {message.number} (draw {message.draw}) again"
        if self.done:
            return "ended", f"sent a gradient of index {index} after the end at {self.index}"
        if worker not in self.in_flight:
            return "lost", f"sent a gradient of index {index}, but was taken for lost or has answered"
        if index > self.index:
            return "future", f"sent a gradient of index {index}, which lies ahead of the server's {self.index}"
        if (index, message.draw) != self.in_flight[worker]:
            wanted = "index {} and draw {}".format(*self.in_flight[worker])
            return "foreign", f"sent a gradient of index {index} and draw {message.draw} in the place of {wanted}"
        wanted = (sum(self._sizes),), self.params[0].dtype
        if (tuple(gradient.shape), gradient.dtype) != wanted:
            found = f"{tuple(gradient.shape)} and {gradient.dtype}"
            return "shape", f"sent a gradient of shape {found} in the place of {wanted[0]} and {wanted[1]}"
        if not torch.isfinite(gradient.dot(gradient)):
            return "nonfinite", f"sent a gradient {_spoiled(gradient)}"
        if self.max_lag is not None and self.stale == "drop" and self.lag(index) > self.max_lag:
            return "late", f"sent a gradient of index {index} at {self.index}, {self.lag(index)} buckets late"
        return "", ""

    def _refuse(self, message: Gradient, reason: str, sentence: str) -> list[Answer]:
        self.refused[reason] += 1
        self.refusals.append(f"worker {message.worker} {sentence}; it was not applied.")
        if reason in ("unknown", "duplicate"):
            return []
        self._numbers[message.worker] = message.number
        self._in_a_row += reason != "ended"
        if self._in_a_row >= self.patience and not self.failure:
            self.failure = f"{self._in_a_row} gradients in a row were refused; the last: {self.refusals[-1]}"
        if any(message.worker == waiting.worker for waiting in self._waiting):
            return []  # it gets its answer with the round
        return [self._answer(message.worker), *self._end_of_round()]

    # ------------------------------------------------------------------ the step

    def apply(self, messages: Sequence[Gradient]) -> None:
        """One step of the optimizer: on one gradient, or on the mean of several that have the same index.

        For messages that were judged already, or come from a trace. They count as many as they are.
        """
        with self._lock:
            gradient = messages[0].gradient
            if len(messages) > 1:
                gradient = torch.stack([message.gradient for message in messages]).mean(0)
            for p, piece in zip(self.params, gradient.split(self._sizes), strict=True):
                p.grad = piece.view_as(p)
            if self.indexed:
                self.optimizer.step(index=self._index(messages[0].index))  # pyright: ignore[reportCallIssue]
            else:
                self.optimizer.step()
            for p in self.params:
                p.grad = None
            if self.scheduler is not None:
                self.scheduler.step()
            self.trace += [(message.worker, message.index, message.draw) for message in messages]
            self.index += len(messages)
            self._in_a_row = 0

    def _index(self, index: int) -> int:
        """The index for the optimizer, which may have taken steps before the server, or rested in some at lr 0."""
        if self.max_lag is not None and self.lag(index) > self.max_lag:
            index = (-(-self.index // self.workers) - self.max_lag - 1) * self.workers + 1
        steps = self.optimizer.param_groups[0].get("steps", self.index)
        return max(int(steps) - self.index + index, 0)

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizer, t, the table of who computes what, and the trace; loads with `weights_only=True`.

        Gradients that have arrived in a synchronous round without an index, but are not applied, are not in it.
        """
        with self._lock:
            return {
                "weights": self.weights(),
                "optimizer": copy.deepcopy(self.optimizer.state_dict()),
                "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
                "index": self.index,
                "draws": self.draws,
                "in_flight": dict(self.in_flight),
                "refused": dict(self.refused),
                "trace": torch.tensor(self.trace, dtype=torch.int64).reshape(-1, 3),
                "workers": self.workers,
            }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint. What was being computed then is lost: call `start()` to give everybody new work."""
        with self._lock:
            if state["workers"] != self.workers:
                raise ValueError(f"Server: the checkpoint is of {state['workers']} workers, not of {self.workers}.")
            if state["weights"].shape != (sum(self._sizes),):
                raise ValueError(
                    f"Server: the checkpoint has {state['weights'].numel()} parameters, not {sum(self._sizes)}."
                )
            self.optimizer.load_state_dict(state["optimizer"])
            if self.scheduler is not None and state["scheduler"] is not None:
                self.scheduler.load_state_dict(state["scheduler"])
            with torch.no_grad():
                for p, piece in zip(self.params, state["weights"].split(self._sizes), strict=True):
                    p.copy_(piece.view_as(p))
            self.index, self.draws = state["index"], state["draws"]
            self.in_flight, self._waiting, self._numbers = dict(state["in_flight"]), [], {}
            self.refused = collections.Counter(state["refused"])
            self.trace = [(worker, index, draw) for worker, index, draw in state["trace"].tolist()]
            self.failure, self._in_a_row = "", 0


def takes_index(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `step(index=...)` is part of an optimizer: a signal of its recipe, or a parameter of its step."""
    recipe: Any = getattr(optimizer, "recipe", None)
    if recipe is not None:
        return any(key == "index" for key, _ in recipe.signals)
    return "index" in inspect.signature(type(optimizer).step).parameters


def _spoiled(gradient: torch.Tensor) -> str:
    bad = (~torch.isfinite(gradient)).nonzero()
    if len(bad):
        return f"whose element {int(bad[0])} is {float(gradient[bad[0]])}"
    return (
        f"whose squares add up to more than {gradient.dtype} holds, with an element {float(gradient.abs().max()):.3g}"
    )

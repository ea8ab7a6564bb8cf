"""The server of asynchronous training: what it applies, what it refuses, and what becomes of lost workers."""

from __future__ import annotations

import copy
import io
import itertools
import threading
from typing import Any

import numpy as np
import pytest
import torch

import untuned
from untuned.directions import Gradient as PlainGradient
from untuned.iterates import OrderedMomentum
from untuned.step_sizes import Fixed
from untuned.systems.asynchronous import Answer, Gradient, ModelGradient, Server, flat

DIM = 5


def compute(weights: torch.Tensor, draw: int) -> torch.Tensor:
    """The gradient of an ill-conditioned parabola, with noise that follows from the draw."""
    noise = torch.randn(DIM, generator=torch.Generator().manual_seed(draw), dtype=weights.dtype)
    return torch.logspace(-2, 0, DIM, dtype=weights.dtype) * weights + 0.1 * noise


def parameters() -> list[torch.nn.Parameter]:
    """Two tensors, one of which is not contiguous."""
    matrix = torch.arange(1.0, 5.0, dtype=torch.float64).reshape(2, 2).t()
    return [torch.nn.Parameter(matrix), torch.nn.Parameter(torch.tensor(-1.0, dtype=torch.float64))]


def server(kind: str = "ormo", workers: int = 3, lr: float = 0.1, **options: Any) -> Server:
    params = parameters()
    optimizer = {
        "ormo": lambda: untuned.OrMo(params, lr, num_workers=workers),
        "composed": lambda: untuned.compose(params, PlainGradient(), Fixed(lr), OrderedMomentum(workers=workers)),
        "asgd": lambda: untuned.SGD(params, lr),
        "naive": lambda: untuned.SGD(params, lr, 0.9),
        "torch": lambda: torch.optim.SGD(params, lr, 0.9),
        "adam": lambda: torch.optim.Adam(params, lr),
    }[kind]()
    return Server(optimizer, workers, **options)


class Workers:
    """Workers that hold their answers and send when they are told to."""

    def __init__(self, served: Server) -> None:
        self.server, self.holding, self.numbers = served, dict[int, Answer](), dict.fromkeys(range(served.workers), 0)
        self.told(served.start())

    def told(self, answers: list[Answer]) -> list[Answer]:
        self.holding |= {answer.worker: answer for answer in answers}
        return answers

    def message(self, of: int, /, **changed: Any) -> Gradient:
        answer = self.holding[of]
        fields = {"worker": of, "index": answer.index, "draw": answer.draw, "number": self.numbers[of]}
        fields["gradient"] = compute(answer.weights, answer.draw) if answer.weights is not None else torch.zeros(DIM)
        return Gradient(**(fields | changed))

    def send(self, worker: int, **changed: Any) -> list[Answer]:
        message = self.message(worker, **changed)
        self.numbers[worker] = message.number + 1
        return self.told(self.server.receive(message))

    def run(self, steps: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        while self.server.index < steps:
            self.send(int(rng.choice([w for w in self.server.in_flight if not self.holding[w].stop])))


def ends_alike(one: Server, other: Server) -> bool:
    return torch.equal(one.weights(), other.weights())


# ---------------------------------------------------------------------- what is applied


@pytest.mark.parametrize("kind", ["ormo", "composed", "asgd", "naive", "torch", "adam"])
def test_it_steps_as_its_optimizer_alone_would(kind: str) -> None:
    """The gradients of the weights of their index, one after the other."""
    ours, alone = server(kind), server(kind)
    Workers(ours).run(40)
    models = [alone.weights()]
    for _, index, draw in ours.trace:
        pieces = compute(models[index], draw).split([p.numel() for p in alone.params])
        for p, piece in zip(alone.params, pieces, strict=True):
            p.grad = piece.reshape(p.shape)
        alone.optimizer.step(**({"index": index} if kind in ("ormo", "composed") else {}))
        models.append(alone.weights())
    assert ends_alike(ours, alone)
    assert [row[2] for row in sorted(ours.trace, key=lambda row: row[2])] != [row[2] for row in ours.trace]
    assert {row[0] for row in ours.trace} == {0, 1, 2}
    assert all(p.grad is None for p in ours.params)


def test_every_index_after_the_first_is_given_to_one_worker_and_every_draw_once() -> None:
    ours = server()
    Workers(ours).run(50)
    indexes, draws = ([row[i] for row in ours.trace] for i in (1, 2))
    assert indexes.count(0) == 3 and len(set(indexes)) == 48
    assert len(set(draws)) == 50
    assert all(index <= t for t, index in enumerate(indexes))


@pytest.mark.parametrize("kind", ["naive", "torch"])
def test_synchronous_rounds_are_steps_on_the_mean(kind: str) -> None:
    ours = server(kind, synchronous=True)
    workers, weights = Workers(ours), parameters()
    theirs = torch.optim.SGD(weights, 0.1, 0.9)
    for r in range(6):
        assert [workers.holding[w].index for w in range(3)] == [3 * r] * 3
        sent = [workers.message(w).gradient for w in range(3)]
        for w in (2, 0):
            assert workers.send(w) == []
        assert [answer.worker for answer in workers.send(1)] == [2, 0, 1]
        for p, piece in zip(weights, (sum(sent) / 3).split([4, 1]), strict=True):
            p.grad = piece.reshape(p.shape)
        theirs.step()
        torch.testing.assert_close(ours.weights(), flat(weights), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("open_rule", ["index", "lazy"])
def test_synchronous_ordered_momentum_is_nesterovs_or_the_heavy_balls(open_rule: str) -> None:
    ours = Server(untuned.OrMo(parameters(), 0.1 / 3, num_workers=3, open_rule=open_rule), 3, synchronous=True)
    workers, weights = Workers(ours), parameters()
    theirs = torch.optim.SGD(weights, 0.1, 0.9, nesterov=open_rule == "index")
    for _ in range(8):
        sent = [workers.message(w).gradient for w in range(3)]
        answers = [workers.send(w) for w in (1, 2, 0)]
        assert [len(answer) for answer in answers] == [0, 0, 3]
        for p, piece in zip(weights, (sum(sent) / 3).split([4, 1]), strict=True):
            p.grad = piece.reshape(p.shape)
        theirs.step()
        torch.testing.assert_close(ours.weights(), flat(weights), rtol=1e-13, atol=1e-13)


def test_an_answer_is_a_copy_that_later_steps_leave_alone() -> None:
    ours = server()
    workers = Workers(ours)
    kept = workers.holding[2].weights.clone()
    before = workers.holding[0].weights
    before.fill_(7.0)
    assert torch.equal(ours.weights(), kept)
    workers.told([Answer(0, 0, 0, kept.clone())])
    workers.run(10)
    assert not torch.equal(ours.weights(), kept)
    late = server()
    held = Workers(late).holding[2].weights
    assert torch.equal(held, kept)


def test_after_its_steps_everybody_is_told_to_stop() -> None:
    for synchronous, kind in itertools.product((False, True), ("ormo", "asgd")):
        ours = server(kind, steps=7, synchronous=synchronous)
        workers = Workers(ours)
        for worker in itertools.islice(itertools.cycle(range(3)), 30):
            if not workers.holding[worker].stop:
                workers.send(worker)
        assert all(answer.stop for answer in workers.holding.values())
        assert ours.done and not ours.in_flight and not ours.failure
        assert ours.index == len(ours.trace) == (9 if synchronous and kind == "asgd" else 7)


def test_a_scheduler_steps_with_the_optimizer() -> None:
    optimizer = untuned.OrMo(parameters(), 1.0, num_workers=3)
    ours = Server(optimizer, 3, scheduler=torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 10))
    Workers(ours).run(5)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5)


def test_steps_at_lr_0_and_before_the_server_do_not_shift_the_delays() -> None:
    """A delay is that of the server's count, whatever the optimizer's is: here 0, 0, 0 and 4, from step 7 to 3."""
    optimizer = untuned.OrMo(parameters(), 0.1, num_workers=3)
    for _ in range(4):
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        optimizer.step()
    workers = Workers(Server(optimizer, 3))
    for worker, lr, lag in ((0, 0.1, 0), (0, 0.0, 0), (0, 0.1, 0), (0, 0.1, 0), (1, 0.1, 2)):
        optimizer.param_groups[0]["lr"] = lr
        workers.send(worker)
        assert lr == 0.0 or optimizer.metrics()["lag"] == lag
    assert optimizer.metrics()["steps"] == 8


# ---------------------------------------------------------------------- what is refused

SPOILED = torch.tensor([0.0, 1.0, float("nan"), 2.0, float("inf")], dtype=torch.float64)
WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "nan": ("nonfinite", {"gradient": SPOILED}, "worker 1 sent a gradient whose element 2 is nan; it was not applied."),
    "inf": (
        "nonfinite",
        {"gradient": -SPOILED[[0, 1, 3, 4, 1]]},
        "worker 1 sent a gradient whose element 3 is -inf; it was not applied.",
    ),
    "huge": (
        "nonfinite",
        {"gradient": torch.full((DIM,), 1e200, dtype=torch.float64)},
        "worker 1 sent a gradient whose squares add up to more than torch.float64 holds, with an element 1e+200; it "
        "was not applied.",
    ),
    "future": (
        "future",
        {"index": 9},
        "worker 1 sent a gradient of index 9, which lies ahead of the server's 4; it was not applied.",
    ),
    "other index": (
        "foreign",
        {"index": 3},
        "worker 1 sent a gradient of index 3 and draw 1 in the place of index 0 and draw 1; it was not applied.",
    ),
    "other draw": (
        "foreign",
        {"draw": 2},
        "worker 1 sent a gradient of index 0 and draw 2 in the place of index 0 and draw 1; it was not applied.",
    ),
    "shape": (
        "shape",
        {"gradient": torch.zeros(4, dtype=torch.float64)},
        "worker 1 sent a gradient of shape (4,) and torch.float64 in the place of (5,) and torch.float64; it was not "
        "applied.",
    ),
    "dtype": (
        "shape",
        {"gradient": torch.zeros(DIM)},
        "worker 1 sent a gradient of shape (5,) and torch.float32 in the place of (5,) and torch.float64; it was not "
        "applied.",
    ),
    "stranger": (
        "unknown",
        {"worker": 3},
        "worker 3 is none of the workers 0 to 2; it was not applied.",
    ),
}


@pytest.mark.parametrize("kind", ["ormo", "naive"])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_gradient_is_counted_and_never_applied(wrong: str, kind: str) -> None:
    reason, changed, sentence = WRONG[wrong]
    ours = server(kind)
    workers = Workers(ours)
    for _ in range(4):
        workers.send(0)
    before = copy.deepcopy((ours.weights(), ours.optimizer.state_dict()))
    answers = ours.receive(workers.message(1, **changed))
    assert (ours.refused[reason], ours.refused.total(), ours.refusals[-1]) == (1, 1, sentence)
    assert torch.equal(ours.weights(), before[0]) and ours.index == 4
    assert [(a.worker, a.index) for a in answers] == ([] if reason == "unknown" else [(1, 4)])
    after = ours.optimizer.state_dict()["state"]
    assert all(torch.equal(v[k], after[p][k]) for p, v in before[1]["state"].items() for k in v)
    workers.told(answers)
    workers.numbers[1] = 1
    assert len(workers.send(1)) == 1 and ours.index == 5
    assert ours.trace[-1] == (1, *((0, 1) if reason == "unknown" else (4, 7)))


def test_what_arrives_twice_is_applied_once() -> None:
    ours = server()
    workers = Workers(ours)
    message = workers.message(0)
    assert len(workers.send(0)) == 1
    after = ours.weights()
    for _ in range(3):
        assert ours.receive(message) == []
    assert torch.equal(ours.weights(), after)
    assert ours.refused == {"duplicate": 3}
    assert ours.refusals[-1] == "worker 0 sent gradient number 0 (draw 0) again; it was not applied."
    assert len(workers.send(0)) == 1  # it goes on with what it was given


def test_gradients_that_are_too_late_are_dropped_or_count_as_less_late() -> None:
    for stale in ("drop", "cap"):
        ours = server(max_lag=1, stale=stale)
        workers = Workers(ours)
        for _ in range(7):
            workers.send(0)
        before = ours.weights()
        [answer] = workers.send(1)
        if stale == "drop":
            assert torch.equal(ours.weights(), before) and answer.index == 7
            assert ours.refusals[-1] == "worker 1 sent a gradient of index 0 at 7, 3 buckets late; it was not applied."
        else:
            assert answer.index == 8 and ours.trace[-1] == (1, 0, 1)
            assert ours.optimizer.metrics()["lag"] == 1.0
    early = server(max_lag=0)
    workers = Workers(early)
    for worker in (0, 1, 2):
        workers.send(worker)
    assert early.refused == {"late": 2}  # all indexes but 0 of the first three are in bucket 1


def test_it_gives_up_when_nothing_finite_comes_any_more() -> None:
    ours = server("asgd", lr=1e200, steps=1000)
    workers = Workers(ours)
    for worker in itertools.islice(itertools.cycle(range(3)), 500):
        if not workers.holding[worker].stop:
            workers.send(worker)
    assert all(answer.stop for answer in workers.holding.values())
    assert ours.done and ours.index < 10 and ours.refused["nonfinite"] == 30
    assert ours.failure.startswith("30 gradients in a row were refused; the last: worker ")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"stale": "keep"}, "stale must be 'drop' or 'cap', not 'keep'"),
        ({"max_lag": -1}, "max_lag must be None or 0 or more, not -1"),
        ({"kind": "naive", "stale": "cap"}, "stale='cap' needs a step with an index; SGD has none"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        server(**options)


def test_a_method_that_reads_the_loss_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^Server: MoMo reads the loss in every step; workers send none"):
        Server(untuned.MoMo(parameters()), 2)


def test_a_server_has_workers() -> None:
    with pytest.raises(ValueError, match="workers must be 1 or more, not 0"):
        Server(untuned.OrMo(parameters()), 0)


def test_parameters_of_two_dtypes_are_refused() -> None:
    params = [torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1, dtype=torch.float64))]
    with pytest.raises(ValueError, match="they must have one dtype and one device"):
        Server(untuned.OrMo(params), 2)


# ---------------------------------------------------------------------- workers that go and come


def test_a_lost_worker_is_missed_by_nobody_and_may_come_back() -> None:
    ours = server()
    workers = Workers(ours)
    workers.run(6)
    assert ours.lost(1) == [] and ours.lost(1) == []
    assert set(ours.in_flight) == {0, 2}
    for _ in range(5):
        workers.send(0)
        workers.send(2)
    before = ours.weights()
    late = workers.message(1)
    [answer] = ours.receive(late)  # it was slow, not dead
    assert torch.equal(ours.weights(), before)
    assert (answer.worker, answer.index) == (1, ours.index) and 1 in ours.in_flight
    assert ours.refused == {"lost": 1}
    ours.lost(1)
    [answer] = ours.rejoin(1)  # as a new process: it counts from 0 again
    workers.told([answer])
    assert len(workers.send(1, number=0)) == 1 and ours.trace[-1][0] == 1
    with pytest.raises(ValueError, match="there is no worker 3; they are numbered 0 to 2"):
        ours.rejoin(3)


def test_a_round_does_not_wait_for_the_lost() -> None:
    for kind in ("naive", "ormo"):
        ours = server(kind, synchronous=True)
        workers = Workers(ours)
        assert workers.send(0) == [] and workers.send(2) == []
        answers = workers.told(ours.lost(1))
        assert [(a.worker, a.index) for a in answers] == [(0, 2), (2, 2)]
        assert ours.trace == [(0, 0, 0), (2, 0, 2)]
        assert workers.send(0) == []
        workers.told(ours.rejoin(1))
        assert workers.send(1) == []
        assert [a.worker for a in workers.send(2)] == [0, 1, 2]


def test_threads_are_served_one_at_a_time() -> None:
    ours = server(workers=4, steps=400)
    answers = ours.start()

    def work(answer: Answer) -> None:
        number = 0
        while answer.weights is not None:
            gradient = compute(answer.weights, answer.draw)
            [answer] = ours.receive(Gradient(answer.worker, answer.index, answer.draw, number, gradient))
            number += 1

    threads = [threading.Thread(target=work, args=(answer,)) for answer in answers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert ours.index == len(ours.trace) == 400
    assert {*ours.refused} <= {"ended"}


# ---------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("kind", ["ormo", "naive", "torch"])
def test_a_restored_server_goes_on_with_the_same_numbers(kind: str) -> None:
    """Everything that was being computed is lost; so it is for the one that was not interrupted, which starts anew."""
    ours = server(kind)
    Workers(ours).run(20)
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    other = server(kind, lr=7.0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert ends_alike(ours, other) and (other.index, other.trace) == (20, ours.trace)
    assert other.in_flight == ours.in_flight
    for one in (ours, other):
        workers = Workers(one)
        assert {answer.index for answer in workers.holding.values()} == {20}
        workers.run(40, seed=1)
    assert ends_alike(ours, other)
    assert ours.trace == other.trace and len({draw for *_, draw in ours.trace}) == 40


def test_what_was_computed_before_a_restart_is_refused_after_it() -> None:
    ours = server()
    workers = Workers(ours)
    workers.run(5)
    old = workers.message(1)
    workers.told(ours.start())
    [answer] = ours.receive(old)
    assert answer.index == 5
    assert ours.refused == {"foreign": 1}


def test_a_checkpoint_of_others_is_refused() -> None:
    state = server().state_dict()
    with pytest.raises(ValueError, match="the checkpoint is of 3 workers, not of 4"):
        server(workers=4).load_state_dict(state)
    with pytest.raises(ValueError, match="the checkpoint has 5 parameters, not 1"):
        Server(untuned.SGD([torch.nn.Parameter(torch.ones(1))]), 3).load_state_dict(state)


def test_the_gradient_of_a_model_depends_on_weights_and_draw_alone() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1), torch.nn.Linear(2, 2))
    model[0].bias.requires_grad_(False)

    def loss(model: Any, draw: int) -> torch.Tensor:
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(draw))
        return model[:3](x).square().mean()

    gradient = ModelGradient(model, loss)
    params = [p for p in model.parameters() if p.requires_grad]
    start = flat(params)
    first = gradient(start, 3)
    gradient(start + 1.0, 4)
    assert torch.equal(gradient(start, 3), first)
    loss(model, 3).backward()
    assert torch.equal(first, flat(p.grad if p.grad is not None else torch.zeros_like(p) for p in params))
    assert first[-6:].tolist() == [0.0] * 6

"""Workers in virtual time, and the repetition of what real ones did."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections.abc import Callable, Mapping, Sequence

import torch

from untuned.systems.asynchronous.clocks import Clock
from untuned.systems.asynchronous.messages import Answer, Compute, Gradient
from untuned.systems.asynchronous.server import Row, Server


@dataclasses.dataclass(frozen=True)
class Simulation:
    """What has happened. times: when each gradient of `server.trace` was applied, in virtual seconds. end: of the last
    event. lost: the workers that were lost and did not come back."""

    times: list[float]
    end: float
    lost: list[int]


def simulate(
    server: Server,
    compute: Compute,
    clock: Clock,
    *,
    until: float = float("inf"),
    lost: Mapping[int, float] | None = None,
    back: Mapping[int, float] | None = None,
    watch: Callable[[Server, float], None] | None = None,
) -> Simulation:
    """Train with workers of which each takes as long for a gradient as the clock says.

    Events wait in a heap by their time and, at the same time, in the order in which they were put there; so there is no
    chance in it but that of the clock's seed and of `compute`, called with weights and draw.

    Args:
        server: one that has steps to end at, or a finite `until`.
        until: the virtual time after which nothing is received any more.
        lost: worker -> the time at which it is lost, with what it computes.
        back: worker -> the time at which it rejoins.
        watch: called with the server and the time after every gradient that was applied.
    """
    if server.steps is None and until == float("inf"):
        raise ValueError("simulate: nothing ends it; give the server steps or the simulation a time, until=.")
    sequence, times, gone = itertools.count(), list[float](), set[int]()
    sent, numbers = (
        dict[int, int](),
        dict[int, int](),
    )  # draw -> number of its gradient; worker -> how many it was given
    events: list[tuple[float, int, Answer | tuple[str, int]]] = []
    for what, when in (("lost", lost or {}), ("back", back or {})):
        for worker, time in when.items():
            heapq.heappush(events, (time, next(sequence), (what, worker)))

    def give(answers: Sequence[Answer], now: float) -> None:
        for answer in answers:
            if not answer.stop:
                number = numbers.get(answer.worker, 0)
                duration = clock.duration(answer.worker, number)
                heapq.heappush(events, (now + duration, next(sequence), answer))
                sent[answer.draw], numbers[answer.worker] = number, number + 1

    now = 0.0
    give(server.start(), now)
    while events and events[0][0] <= until and not server.done:
        time, _, event = heapq.heappop(events)
        if isinstance(event, Answer) and server.in_flight.get(event.worker) != (event.index, event.draw):
            continue  # of a worker that was lost meanwhile
        now, before = time, server.index
        if isinstance(event, tuple):
            what, worker = event
            give(server.lost(worker) if what == "lost" else server.rejoin(worker), now)
            (gone.add if what == "lost" else gone.discard)(worker)
        elif event.weights is not None:
            gradient = compute(event.weights, event.draw)
            message = Gradient(event.worker, event.index, event.draw, sent.pop(event.draw), gradient)
            give(server.receive(message), now)
        times += [now] * (server.index - before)
        if watch is not None and server.index > before:
            watch(server, now)
    return Simulation(times, now, sorted(gone))


def replay(trace: Sequence[Row], compute: Compute, server: Server) -> None:
    """Apply the gradients of a trace in its order, so that the server ends with the same weights to the bit.

    For a server like the one that recorded it (same start, optimizer and options) and the same pure `compute`; whoever
    sent the gradients and by which transport makes no difference. A server that has been restored goes on with the rows
    after its checkpoint. Raises `ValueError` for a row whose weights the replay does not have.
    """
    last = {index: place for place, (_, index, _) in enumerate(trace)}  # where each index is needed last
    models: dict[int, torch.Tensor] = {}
    rounds = server.synchronous and not server.indexed
    for _, rows in itertools.groupby(enumerate(trace), lambda row: row[1][1] if rounds else row[0]):
        if server.index in last:
            models[server.index] = server.weights()
        messages = []
        for place, (worker, index, draw) in rows:
            if index not in models:
                raise ValueError(f"replay: row {place} of the trace has index {index}, whose weights are not known.")
            messages.append(Gradient(worker, index, draw, place, compute(models[index].clone(), draw)))
        server.apply(messages)
        for message in messages:
            if last[message.index] <= message.number:
                models.pop(message.index, None)

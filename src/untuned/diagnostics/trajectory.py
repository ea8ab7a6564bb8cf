"""`TrajectoryRecorder` watches where an optimizer takes the parameters: arXiv 2403.07379, in constant memory."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from untuned.diagnostics import segments
from untuned.diagnostics.checkpoints import TrajectoryMap
from untuned.diagnostics.segments import square
from untuned.diagnostics.sketch import Sketch
from untuned.diagnostics.trajectory_measures import (
    ALL,
    By,
    Floats,
    Measures,
    Series,
    check_center,
    cosines,
    defined,
    effective_rank,
    measures,
)
from untuned.wrappers.weights import innermost

_TITLE = "TrajectoryRecorder"
_COLUMNS = 4  # of a row of numbers: |theta|, |theta - theta_0|, |update|, <update, update before>


class TrajectoryRecorder:
    """Records the points theta_0, theta_every, theta_{2 every}, ... of a run and says how they lie to each other.

    `target` is a model, or pairs of name and parameter. Its values now are theta_0. Tied parameters count once, frozen
    ones like all others, buffers not at all. `center` says from where the directions of the mean directional similarity
    (MDS) are seen: the zero vector ("origin") or theta_0 ("init", of which theta_0 itself has no direction). `groups`
    measures parts of the model, too: "layer" (by module), "tensor", or a function from a parameter's name to the name
    of its group, None leaving the parameter out. `sketch`: size of a random-sign sketch of each point, for `map()`; 0
    for none. A cosine read from a sketch of k numbers is off by about 1 / sqrt(k). At most `points` sketches are kept,
    every second one being dropped when there are more. `seed` chooses the signs. `steps`: how many the optimizer has
    done before.

    Memory: 5 copies of the parameters in float32 (float64 for float64), 6 with `groups`, and a few numbers per recorded
    point. Differences are taken before any cast; norms and inner products are added up in float64. A point that is not
    finite is not recorded, but counted in `left_out`. Of sharded parameters (FSDP2, DTensor) each rank keeps its part,
    and all ranks must record, and ask for the summary, together; a checkpoint belongs to its rank. Recording draws no
    random numbers and changes nothing of the run. With every=20 it adds less than 5 % to a step of even a small network
    (benchmarks/recorder.py).

    Raises TypeError or ValueError in one sentence for a target without parameters that have values.

    >>> import torch
    >>> from untuned.diagnostics import TrajectoryRecorder
    >>> layer = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.ones_(layer.weight)
    >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    >>> recorder = TrajectoryRecorder(layer, every=1)
    >>> handle = recorder.attach(optimizer)
    >>> for _ in range(3):
    ...     layer.weight.grad = -torch.ones(1, 1)
    ...     optimizer.step()
    >>> handle.remove()
    >>> summary = recorder.summary()["all"]
    >>> summary.points, summary.mds, summary.relative_movement
    (4, 1.0, 1.5)
    """

    def __init__(
        self,
        target: nn.Module | Iterable[tuple[str, Tensor]],
        *,
        every: int = 20,
        center: str = "origin",
        groups: By = None,
        sketch: int = 0,
        points: int = 256,
        seed: int = 0,
        steps: int = 0,
    ) -> None:
        wholes = {"every": (every, 1), "sketch": (sketch, 0), "points": (points, 2), "steps": (steps, 0)}
        for name, (value, least) in wholes.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{_TITLE}: {name} must be a whole number from {least}, not {value!r}.")
        check_center(center, _TITLE)
        self.every, self.center, self.steps, self.left_out = every, center, steps, 0
        self._segments = segments.of(segments.parameters_of(target, _TITLE), groups, _TITLE)
        self._groups = [ALL] if groups is None else [ALL, *dict.fromkeys(s.group for s in self._segments)]
        self._hook: tuple[weakref.ref[Any], Any] | None = None
        self._at: list[int] = []  # the step of each point
        self._rows: list[list[list[float]]] = []  # of each point and group: `_COLUMNS` numbers
        self._counts = dict.fromkeys(self._groups, 0)  # points with a direction
        self._sketch = Sketch(self._segments, sketch, points, seed) if sketch else None
        with torch.no_grad():
            for segment in self._segments:
                segment.begin(grouped=groups is not None)
            if self._sketch is not None:
                self._sketch.begin(self._added(self._sketch.of_start())[0])
            self.record()
        if self.left_out:
            raise ValueError(f"{_TITLE}: the parameters are not finite at the start; make it before they are lost.")

    # ------------------------------------------------------------------ in the loop

    def attach(self, optimizer: Any) -> Any:
        """Count and record by a hook after each `optimizer.step()`; `remove()` of the handle that comes back ends it.

        A wrapper (as of Accelerate) is opened. Raises ValueError, with nothing changed, if this recorder is attached
        already, or if the optimizer steps none of its parameters.
        """
        inner = innermost(optimizer, f"{_TITLE}.attach")
        if self.attached is not None:
            which = "this optimizer" if self.attached is inner else "another optimizer"
            raise ValueError(f"{_TITLE} is attached to {which} already; remove() its handle first.")
        mine = {id(p) for segment in self._segments for p in segment.parameters}
        if mine.isdisjoint(id(p) for group in inner.param_groups for p in group["params"]):
            raise ValueError(f"{_TITLE}: the optimizer steps none of the parameters that are recorded.")
        handle = inner.register_step_post_hook(self._after_step)
        self._hook = weakref.ref(inner), handle
        return handle

    @property
    def attached(self) -> torch.optim.Optimizer | None:
        """The optimizer whose steps are recorded by a hook, or None."""
        if self._hook is None:
            return None
        optimizer, handle = self._hook
        hooks = handle.hooks_dict_ref()
        return optimizer() if hooks is not None and handle.id in hooks else None

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self.step()

    def step(self) -> None:
        """Count a step of the optimizer, and record if it is an `every`-th; the hook does it."""
        self.steps += 1
        if self.steps % self.every == 0:
            self.record()

    @torch.no_grad()
    def record(self) -> bool:
        """Record the point at which the parameters are now, whatever the count; returns False if it is not finite."""
        norms = self._added([square(segment.read())[None] for segment in self._segments])
        if not np.isfinite(norms).all():
            self.left_out += 1
            return False
        first, moved = not self._at, self._added([segment.move() for segment in self._segments])
        rows = np.concatenate([norms, moved], 1)
        rows[:, :3] = np.sqrt(rows[:, :3])
        if first:
            rows[:, 2:] = math.nan
        elif len(self._at) == 1:
            rows[:, 3] = math.nan
        lengths = dict(zip(self._groups, rows[:, 0 if self.center == "origin" else 1].tolist(), strict=True))
        for segment in self._segments:
            segment.add_direction(self.center, lengths[ALL], lengths.get(segment.group, 0.0))
        for group, length in lengths.items():
            self._counts[group] += length > 0
        if self._sketch is not None and self._sketch.wants(len(self._at)):
            self._sketch.keep(self._added(self._sketch.of_moves())[0])
        self._at.append(self.steps)
        self._rows.append(rows.tolist())
        return True

    def _added(self, values: list[Tensor]) -> Floats:
        """Numbers of each segment -> those of each group [groups, numbers] in float64, over all ranks."""
        totals = segments.over_ranks(self._segments, values)
        found = dict.fromkeys(self._groups, np.zeros(totals.shape[1]))
        for segment, total in zip(self._segments, totals, strict=True):
            for group in {ALL, segment.group}:
                found[group] = found[group] + total
        return np.stack(list(found.values()))

    # ------------------------------------------------------------------ what was found

    def series(self, group: str = ALL) -> Series:
        """What was measured at each point, of all parameters or of one group."""
        if group not in self._groups:
            raise ValueError(f"{_TITLE}: there is no group {group!r}, but {', '.join(self._groups)}.")
        rows = np.array(self._rows)[:, self._groups.index(group)]
        return Series(np.array(self._at), *rows.T)

    @torch.no_grad()
    def summary(self) -> dict[str, Measures]:
        """The measures so far, of all parameters ("all") and of each group."""
        sums = self._added([segment.sums() for segment in self._segments])
        found = {}
        for i, group in enumerate(self._groups):
            n, total = self._counts[group], float(sums[i, int(i > 0)])
            found[group] = measures(self.series(group), n, total / n**2 if n else math.nan)
        return found

    def map(self, center: str | None = None) -> TrajectoryMap:
        """The cosines of all pairs of sketched points, approximately; `center` is the recorder's if it is not given.

        The measures beside it are those of the sketched points: MDS and effective rank are read from the sketches.
        """
        if self._sketch is None:
            raise ValueError(f"{_TITLE} keeps no sketches; make it with sketch=2048, or use trajectory_map().")
        check_center(center := center or self.center, _TITLE)
        matrix = cosines(self._sketch.gram(center))
        kept = defined(matrix)
        mds = float(kept.mean()) if len(kept) else math.nan
        found = measures(self.series(), len(kept), mds, effective_rank(matrix))
        return TrajectoryMap(center, np.array(self._at)[self._sketch.points], {ALL: matrix}, {ALL: found})

    # ------------------------------------------------------------------ checkpoints

    def _identity(self) -> dict[str, Any]:
        """What has to be the same for a checkpoint to go on."""
        sketch = None if self._sketch is None else [self._sketch.size, self._sketch.most, self._sketch.seed]
        layout = [[s.group, s.names, s.size, str(s.start.dtype)] for s in self._segments]
        return {"every": self.every, "center": self.center, "sketch": sketch, "layout": layout}

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on bit for bit; its tensors are the recorder's own, so save them before going on."""
        return {
            "identity": self._identity(),
            "steps": self.steps,
            "left_out": self.left_out,
            "at": list(self._at),
            "rows": torch.tensor(self._rows, dtype=torch.float64),
            "counts": dict(self._counts),
            "segments": [segment.state() for segment in self._segments],
            "sketch": None if self._sketch is None else self._sketch.state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another recorder of the same parameters and options stood; its theta_0 is that of the run.

        Raises ValueError, with nothing changed, if parameters or options differ.
        """
        mine, other = self._identity(), state["identity"]
        if differ := [key for key in mine if mine[key] != other.get(key)]:
            what = "parameters or groups" if differ == ["layout"] else ", ".join(differ)
            raise ValueError(f"{_TITLE}: the checkpoint is of a recorder with other {what}.")
        self.steps, self.left_out, self._at = state["steps"], state["left_out"], list(state["at"])
        self._rows, self._counts = state["rows"].tolist(), dict(state["counts"])
        for segment, saved in zip(self._segments, state["segments"], strict=True):
            segment.restore(saved)
        if self._sketch is not None:
            self._sketch.restore(state["sketch"])

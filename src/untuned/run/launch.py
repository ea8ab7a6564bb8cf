"""The stages of an optimizer, run by kernels where they exist and by the reference elsewhere."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportPrivateImportUsage=false
# torch's stubs leave types unknown, and its multi-tensor functions have private names.

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import itertools
from typing import Any

import torch

from untuned.kernels.batch import Batch, Members, accepted, scalar
from untuned.memory import slots
from untuned.memory.buckets import (
    Bucket,
    Live,
    States,
    arrange,
    check_gradient,
    local,
    same_objects,
    take_gradients,
    takes_part,
)
from untuned.memory.now import Now
from untuned.parts.declare import check_parameter
from untuned.recipe.fuse import DECAYS, Stage, guard_stage, stages
from untuned.recipe.plan import Verbs, decided_in_numpy, plan
from untuned.recipe.recipe import COMPENSATION, Group, Recipe
from untuned.recipe.symbols import Program, Zeros
from untuned.recipe.trace import Sums, compensated
from untuned.run import eager

EXECUTIONS = ("auto", "reference", "native")
native_available = importlib.util.find_spec("numba") is not None
triton_available = importlib.util.find_spec("triton") is not None
TRITON_DEVICES = {"cuda"}
Stages = dict[Any, list[Stage]]  # by the label of the groups that they serve, in order


def check_execution(name: str, execution: str) -> None:
    if execution not in EXECUTIONS:
        raise ValueError(f"{name}: execution must be one of {', '.join(EXECUTIONS)}, not {execution!r}.")
    if execution == "native" and not native_available:
        raise ValueError(f"{name}: execution='native' needs numba: pip install 'untuned[kernels]'.")


def zeros(groups: list[Group]) -> Zeros:
    return DECAYS[all(group["weight_decay"] == 0 for group in groups)]


class Launch:
    """The plan of a recipe, and its live tensors sorted into batches that kernels take, and the rest."""

    def __init__(self, recipe: Recipe, execution: str) -> None:
        self.recipe, self.execution = recipe, execution
        verbs = plan(recipe.variants.values())
        by_label = {label: stages(recipe, parts, verbs) for label, parts in recipe.variants.items()}
        self.guard = guard_stage(recipe)
        self.guarded: Stages = {label: [self.guard] for label in recipe.variants}
        self.plan: list[tuple[Stages, Sums, Verbs]] = []
        for i, (_, deciders) in enumerate(verbs):
            here = {label: found[i] for label, found in by_label.items()}
            those = [(recipe.variants[label], one) for label, found in here.items() for one in found]
            sums: Sums = {parts[role]: ones for parts, one in those for role, ones in one.sums.items()}
            self.plan.append((here, sums, deciders))
        every = [self.guarded, *(here for here, _, _ in self.plan)]
        self.stages = {label: [one for here in every for one in here[label]] for label in recipe.variants}
        on_host = native_available and execution != "reference"
        self.in_numpy = set.intersection(*map(decided_in_numpy, recipe.variants.values())) if on_host else set[str]()
        self.arranged: tuple[list[list[Any]], list[Bucket]] = [], []  # what it follows from, and the buckets
        self.known: Any = None
        self.zeros: Zeros = frozenset()
        self.batches: list[Batch] = []
        self.rest: list[tuple[int, int]] = []  # bucket and tensor in it
        self.captured: list[torch.Tensor] = []  # tables that captured graphs read in every replay

    @property
    def running(self) -> str:
        """What runs the sweeps; known for each tensor from the first step on."""
        by_kernels = bool(self.batches) if self.rest else self.execution != "reference" and native_available
        rest = f", {len(self.rest)} tensors by the reference" if self.rest and by_kernels else ""
        return ("native execution" if by_kernels else "reference execution") + rest

    def label(self, bucket: Bucket) -> Any:
        return bucket.group["label"] if len(self.stages) > 1 else next(iter(self.stages))

    def live(self, now: Now, states: States) -> list[Bucket]:
        """The parameters that take part in this step; arranged and checked anew only when that changes."""
        found: list[Live] = list(map(takes_part, now.groups))
        present = [list(now.groups), *(params for params, _ in found), slots.tensors(states)]
        known, buckets = self.arranged
        same = len(known) == len(present) and all(map(same_objects, known, present))
        if same:
            take_gradients(buckets, found)
        if not same or not self.refresh(buckets):
            for p in itertools.chain.from_iterable(params for params, _ in found):
                check_parameter(self.recipe.title, p)
                check_gradient(self.recipe.title, p)
            slots.own(self.recipe, now.groups, states)
            now.buckets = buckets = arrange(found, self.recipe, now.groups, states)
            take_gradients(buckets, found)
            position = {p: i for i, p in enumerate(p for group in now.groups for p in group["params"])}
            for bucket in buckets:
                slots.create_scratch(self.recipe, slots.stack_numbers(self.recipe, bucket))
                if self.recipe.stochastic_rounding:
                    bucket.positions = torch.tensor([position[p] for p in bucket.params], device=bucket.device)
            self.arrange(now)
            present[-1] = slots.tensors(states)
            self.arranged = present, buckets
        for bucket in buckets:
            bucket.grads = []  # the kernels know their addresses, and nothing may keep them alive after the step
            for p in bucket.params if bucket.domain else ():  # a gradient may be placed anew without showing above
                check_gradient(self.recipe.title, p)
        return buckets

    def refresh(self, buckets: list[Bucket]) -> bool:
        """Whether all is as it was when the tensors were sorted, but for the storage of their elements."""
        self.zeros = zeros([bucket.group for bucket in buckets])
        return self.known == self._kinds(buckets) and all(batch.refresh() for batch in self.batches)

    def _kinds(self, buckets: list[Bucket]) -> list[Any]:
        rest = [buckets[i].params[j] for i, j in self.rest]
        kinds = [(p.device, p.dtype, p.shape, p.grad is not None and p.grad.layout) for p in rest]
        return [torch.get_num_threads(), *kinds]

    def arrange(self, now: Now) -> None:
        """Sort the tensors by what kernels must know of them."""
        self.rest = []
        self.zeros = frozenset()
        taken: dict[Any, Members] = {}
        keys: dict[Any, list[str]] = {}
        for label, exact in itertools.product(self.stages, (False, True)):
            programs = [self._program(stage, exact) for stage in self.stages[label]]
            keys[label, exact] = sorted({key for p in programs for keys_ in p.streams() for key in keys_})
        for i, bucket in enumerate(now.buckets):
            kernels, label = self._kernels(bucket.device), self.label(bucket)
            for j, p in enumerate(bucket.params):
                needed = keys[label, COMPENSATION in bucket.states[j]]
                dtypes = accepted(bucket, j, needed, kernels.TYPES) if kernels else None
                if dtypes is None:
                    self.rest.append((i, j))
                else:
                    then = any(one.then for one in self.stages[label])
                    one_pass = not self.recipe.by_rows and local(p) is p and p.numel() <= kernels.ONE_PASS and then
                    taken.setdefault((bucket.device, kernels, label, one_pass, dtypes), []).append((i, bucket, j))
        self.batches = [
            Batch(kernels, label, one, dtypes, where, self.captured)
            for (_, kernels, label, one, dtypes), where in taken.items()
        ]
        self.known = self._kinds(now.buckets)
        self.refresh(now.buckets)
        for batch in self.batches:  # before anything changes
            for stage in self.stages[batch.label]:
                self._call(stage, batch)

    def _program(self, stage: Stage, exact: bool) -> Program:
        """What kernels run for a stage; `exact`: on parameters with a slot for what rounding takes from them."""
        program = stage.program(self.zeros) if stage.program else Program({}, {})
        if self.recipe.stochastic_rounding:
            return dataclasses.replace(program, at_random=True)
        return compensated(program) if exact else program

    def _call(self, stage: Stage, batch: Batch) -> Any:
        key = stage, self.zeros
        if key not in batch.calls:
            exact = COMPENSATION in batch.dtypes
            program, then = self._program(stage, exact), ()
            if batch.one_pass and stage.then:
                then = ((self._program(stage.then[0], exact), stage.then[1], self.recipe.skip_nonfinite),)
                batch.calls[stage.then[0], self.zeros] = None
            batch.calls[key] = batch.kernels.Call(program, batch, *then) if program.stores or program.sums else None
        return batch.calls[key]

    def run(self, now: Now, here: Stages, sums: Sums) -> list[torch.Tensor]:
        """Run stages on all tensors -> one block [tensors, or rows of tensors, reductions] per bucket."""
        buckets, count = now.buckets, sum(map(len, sums.values()))
        blocks = [torch.zeros((b.ends[-1], count), dtype=torch.float64, device=b.device) for b in buckets]

        def by_reference(stage: Stage, i: int, j: int) -> None:
            if out := eager.run(now, stage, buckets[i], j):
                rows = slice(*buckets[i].ends[j : j + 2])
                blocks[i][self._cells(sums, stage, buckets[i], rows)] = torch.stack(out, 1)

        for n in range(max(map(len, here.values()))):
            singly = [(i, j) for i, j in self.rest if n < len(here[self.label(buckets[i])])]
            for batch in (b for b in self.batches if n < len(here[b.label])):
                stage = here[batch.label][n]
                if not stage.program:
                    singly += batch.tensors
                elif call := self._call(stage, batch):
                    found = call.run(now, batch, {i: self._flag(now, stage, buckets[i]) for i in batch.buckets})
                    for i, index, rows in batch.spans if stage.sums else ():
                        blocks[i][self._cells(sums, stage, buckets[i], index)] = found[rows]
            for i, j in sorted(singly):  # ranks gather whole tensors in one order, whichever of them their kernels take
                by_reference(here[self.label(buckets[i])][n], i, j)
        return blocks

    def _flag(self, now: Now, stage: Stage, bucket: Bucket) -> torch.Tensor | None:
        """Whether a stage may change the tensors of a bucket, as a 0-dim bool tensor; None if it surely may."""
        if stage.only_changed is None:
            return bucket.on
        pairs = [(scalar(now, bucket, one), scalar(now, bucket, then)) for one, then in stage.only_changed]
        changed = torch.stack([(one != then).any() for one, then in pairs]).any().to(bucket.device)
        return changed if bucket.on is None else changed & bucket.on

    def _kernels(self, device: torch.device) -> Any:
        """The module that compiles programs for a device, if there is one; importing it takes half a second."""
        on_gpu = device.type in TRITON_DEVICES and triton_available and self.execution == "native"
        if self.execution == "reference" or not (on_gpu or (native_available and device.type == "cpu")):
            return None
        return importlib.import_module("untuned.kernels.triton" if on_gpu else "untuned.kernels.native")

    def _cells(self, sums: Sums, stage: Stage, bucket: Bucket, rows: Any) -> tuple[Any, Any]:
        """Rows, and the columns of `sums`, the reductions of a sweep, that a stage fills for tensors of a bucket."""
        if len(stage.sums) == len(sums):
            return rows, slice(None)
        first = dict(zip(sums, itertools.accumulate(map(len, sums.values()), initial=0), strict=False))
        columns = [first[bucket.parts[role]] + i for role, ones in stage.sums.items() for i in range(len(ones))]
        return rows if isinstance(rows, slice) else rows[:, None], columns

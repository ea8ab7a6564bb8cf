"""The sweeps of an optimizer, run by kernels where they exist and by the reference elsewhere."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from untuned.core.buckets import Bucket
from untuned.core.frames import COMPENSATION, ElementFrame
from untuned.kernels import reference
from untuned.kernels.batch import Batch, Where, accepted
from untuned.kernels.program import Column, Program, Symbol, Verbs, compensated, early, trace
from untuned.kernels.writer import Text

if TYPE_CHECKING:
    from untuned.core.engine import Optimizer
    from untuned.core.plan import Plan

EXECUTIONS = ("auto", "reference", "native")
native_available = importlib.util.find_spec("numba") is not None
triton_available = importlib.util.find_spec("triton") is not None
TRITON_DEVICES = {"cuda"}
MOVE = [("iterate", "move")]


class Sweep:
    """One pass over all tensors: a program for kernels, and the reference for tensors that no kernel takes.

    `program(decays)`: without weight decay there is less to read. There is none for verbs that see slices. `apart`:
    for each role that asked for sums, whether the tensors stay apart in them. `only_changed`: numbers, as columns of a
    table, of which one must have changed in this step for the program to run.
    """

    def __init__(
        self,
        program: Callable[[bool], Program] | None,
        reference: Callable[[Optimizer, Bucket, int], list[torch.Tensor]],
        apart: dict[str, list[bool]],
        only_changed: list[Column] | None = None,
    ) -> None:
        self.programs = {decays: program(decays) for decays in (True, False)} if program else {}
        self.reference, self.apart, self.only_changed = reference, apart, only_changed
        self.count = sum(map(len, apart.values()))

    def flag(self, opt: Optimizer, bucket: Bucket) -> torch.Tensor | None:
        """Whether the program may change the tensors of a bucket, as a 0-dim bool tensor; None if it surely may."""
        if self.only_changed is None:
            return bucket.on
        before = opt.before[id(bucket.group["params"])]
        pairs = [
            (bucket.group[key], before[key]) if kind == "number" else (bucket.numbers[key], bucket.before[key])
            for kind, key, _ in self.only_changed
        ]
        changed = torch.stack([(now != then).any() for now, then in pairs]).any().to(bucket.device)
        return changed if bucket.on is None else changed & bucket.on


def of_plan(opt: Optimizer, plan: Plan) -> list[tuple[Sweep, list[str]]]:
    """The sweeps of a plan in order, each with the roles that decide on its sums.

    The move joins the sweep before it if the decisions in between change nothing that it reads, or seldom do.
    """
    *first, last = plan
    verbs, deciders = first[-1] if first else ([], [])
    ahead = None
    if last == (MOVE, []) and verbs and not _of_slices(opt, verbs):
        ahead = early(opt.parts, deciders, opt.maximize)
    if ahead is None:
        return [(_of_verbs(opt, v, v), d) for v, d in plan]
    whole = [*verbs, *MOVE]
    found = [(_of_verbs(opt, v, v), d) for v, d in first[:-1]]
    if ahead.program is None:
        return [*found, (_of_verbs(opt, whole, whole), deciders)]

    def correction(decays: bool) -> Program:
        again = early(opt.parts, deciders, opt.maximize, decays)
        assert again is not None
        assert again.program is not None
        return again.program

    rest = Sweep(correction, _by_reference(MOVE), {}, ahead.numbers)
    return [*found, (_of_verbs(opt, whole, verbs), deciders), (rest, [])]


def _of_verbs(opt: Optimizer, by_kernels: Verbs, by_reference: Verbs) -> Sweep:
    def program(decays: bool) -> Program:
        return trace(opt.parts, by_kernels, opt.maximize, decays)

    return Sweep(None if _of_slices(opt, by_kernels) else program, _by_reference(by_reference), program(True).apart)


def _of_slices(opt: Optimizer, verbs: Verbs) -> bool:
    return opt.parts["step_size"].every > 1 and verbs == [("step_size", "measure")]


def _by_reference(verbs: Verbs) -> Callable[[Optimizer, Bucket, int], list[torch.Tensor]]:
    return lambda opt, bucket, i: reference.run(opt, verbs, bucket, i)


def guard() -> Sweep:
    """The sweep that counts gradient elements whose square is not finite: it would stay in an average of squares."""
    g = Symbol("load", "g")
    program = Program({}, [g.call("where", g * g < float("inf"), 0.0, 1.0)], {})

    def count(opt: Optimizer, bucket: Bucket, i: int) -> list[torch.Tensor]:
        g = ElementFrame(opt, bucket, i).public("raw")
        return [(~torch.isfinite(g * g)).sum(dtype=torch.float64)]

    return Sweep(lambda decays: program, count, {"guard": [True]})


class Tensors:
    """The live tensors of an optimizer, sorted into batches that kernels take, and the rest."""

    def __init__(self, sweeps: list[Sweep]) -> None:
        self.sweeps = sweeps
        self.known: Any = None
        self.decays = False  # whether any group has weight decay
        self.batches: list[Batch] = []
        self.rest: list[tuple[int, int]] = []  # bucket and tensor in it
        self.captured: list[torch.Tensor] = []  # tables that captured graphs read in every replay

    def found(self, buckets: list[Bucket]) -> bool:
        """Whether all is as it was when they were sorted, but for the storage of their elements."""
        rest = [_kind(buckets[i].params[j]) for i, j in self.rest]
        return self.known == (_settings(buckets), rest) and all(batch.found() for batch in self.batches)

    def arrange(self, opt: Optimizer, buckets: list[Bucket]) -> None:
        """Sort the tensors by what kernels must know of them."""
        self.decays, _ = settings = _settings(buckets)
        self.rest = []
        taken: dict[Any, Where] = {}
        for i, bucket in enumerate(buckets):
            kernels = _kernels(opt, bucket.device)
            for j, p in enumerate(bucket.params):
                programs = self.programs(COMPENSATION in bucket.states[j])
                keys = sorted({key for program in programs.values() for keys in program.streams() for key in keys})
                dtypes = accepted(opt, p, keys, kernels.TYPES) if kernels else None
                if dtypes is None:
                    self.rest.append((i, j))
                else:
                    taken.setdefault((kernels, bucket.device, dtypes), []).append((i, bucket, j))
        self.batches = []
        for (kernels, _, dtypes), where in taken.items():
            batch = Batch(dtypes, where)
            batch.found()
            for sweep, program in self.programs(COMPENSATION in batch.dtypes).items():
                if program.stores or program.sums:
                    batch.calls[sweep] = kernels.Call(program, batch)
            self.batches.append(batch)
        self.known = settings, [_kind(buckets[i].params[j]) for i, j in self.rest]

    def programs(self, exact: bool) -> dict[Sweep, Program]:
        """What kernels run for each sweep; `exact`: on parameters with a slot for what rounding takes from them."""
        found = {sweep: sweep.programs[self.decays] for sweep in self.sweeps if sweep.programs}
        return {sweep: compensated(program) if exact else program for sweep, program in found.items()}

    def streams(self, guard: bool) -> list[str]:
        """What kernels read and write in a step, by key, without corrections that most steps do not need."""
        usual = [s.programs[self.decays] for s in self.sweeps[not guard :] if s.programs and s.only_changed is None]
        return [key for program in usual for keys in program.streams() for key in keys]

    def run(self, opt: Optimizer, sweep: Sweep, buckets: list[Bucket]) -> list[torch.Tensor]:
        """One block [tensors, sums] per bucket."""
        blocks = [torch.zeros((len(b.params), sweep.count), dtype=torch.float64, device=b.device) for b in buckets]
        flags = [sweep.flag(opt, bucket) for bucket in buckets]
        for batch in self.batches:
            if sweep in batch.calls:
                rows = batch.calls[sweep].run(opt, {i: flags[i] for i in batch.buckets})
                for i, index, here in batch.spans if sweep.count else ():
                    blocks[i][index] = rows[here]
        everywhere = ((i, j) for i, bucket in enumerate(buckets) for j in range(len(bucket.params)))
        for i, j in self.rest if sweep.programs else everywhere:
            if out := sweep.reference(opt, buckets[i], j):
                blocks[i][j] = torch.stack(out)
        return blocks


def _settings(buckets: list[Bucket]) -> tuple[bool, int]:
    return any(bucket.group["weight_decay"] != 0 for bucket in buckets), torch.get_num_threads()


def _kind(p: torch.Tensor) -> tuple[Any, ...]:
    assert p.grad is not None
    return p.device, p.dtype, p.shape, p.grad.layout


def _kernels(opt: Optimizer, device: torch.device) -> Any:
    """The module that compiles programs for a device, if there is one."""
    if opt.execution == "reference":
        return None
    if device.type in TRITON_DEVICES and triton_available and opt.execution == "native":
        from untuned.kernels import triton  # importing it takes half a second

        return triton
    if native_available and device.type == "cpu":
        from untuned.kernels import native  # as long, for numba

        return native
    return None


def describe(opt: Optimizer) -> str:
    """The programs of an optimizer's sweeps, with what they read and write."""
    decays = any(group["weight_decay"] != 0 for group in opt.param_groups)
    found: list[str] = []
    for i, sweep in enumerate(opt._tensors.sweeps):
        if not sweep.programs or not any(sweep.programs[decays].streams()):
            continue
        read, written = sweep.programs[decays].streams()
        size = 4 * (len(read) + len(written))
        title = "check of the gradients" if i == 0 else f"sweep {len(found)}"
        when = "" if sweep.only_changed is None else ", only in steps that change " + sweep.only_changed[0][1]
        what = f"reads {', '.join(read)}" + (f"; writes {', '.join(written)}" if written else "")
        program = Text(sweep.programs[decays])
        found.append("\n".join([f"{title}{when}: {what}; {size} bytes per float32 parameter", *program.lines]))
    return "\n\n".join(found)

"""The sweeps of an optimizer, run by kernels where they exist and by the reference elsewhere."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from untuned.core.buckets import Bucket, Group, local
from untuned.core.frames import COMPENSATION, ElementFrame
from untuned.kernels import reference
from untuned.kernels.batch import Batch, Where, accepted, scalar
from untuned.kernels.program import Column, Program, Symbol, TraceFrame, Zeros, compensated, decision, early, trace

if TYPE_CHECKING:
    from untuned.core.engine import Optimizer
    from untuned.core.plan import Plan, Verbs

EXECUTIONS = ("auto", "reference", "native")
native_available = importlib.util.find_spec("numba") is not None
triton_available = importlib.util.find_spec("triton") is not None
TRITON_DEVICES = {"cuda"}
MOVE = [("iterate", "move")]
DECAYS = (frozenset[str](), frozenset({"weight_decay"}))
Reference = Callable[["Optimizer", Bucket, int], list[torch.Tensor]]  # the sums of one tensor of a bucket


def check_execution(name: str, execution: str) -> None:
    if execution not in EXECUTIONS:
        raise ValueError(f"{name}: execution must be one of {', '.join(EXECUTIONS)}, not {execution!r}.")
    if execution == "native" and not native_available:
        raise ValueError(f"{name}: execution='native' needs numba: pip install 'untuned[kernels]'.")


@dataclasses.dataclass(eq=False)
class Sweep:
    """One pass over all tensors: a program for kernels, and the reference for tensors that no kernel takes.

    `trace`: its program where some things are 0, since there is less to read then; there is none for verbs that see
    slices. `apart`: for each role that asked for sums, whether the tensors stay apart in them. `only_changed`: numbers,
    as columns of a table for now and for before the step, of which one must have changed in it for the program to run.
    `then`: the next sweep, if kernels may run it tensor by tensor in the same pass, and the numbers decided in between.
    """

    trace: Callable[[Optimizer, Zeros], Program] | None
    reference: Reference
    apart: dict[str, list[bool]]
    only_changed: list[tuple[Column, Column]] | None = None
    then: tuple[Sweep, dict[Column, Symbol]] | None = None

    def program(self, opt: Optimizer, zeros: Zeros) -> Program:
        return self.trace(opt, zeros) if self.trace else Program({}, [], {})

    @property
    def count(self) -> int:
        return sum(map(len, self.apart.values()))

    def flag(self, opt: Optimizer, bucket: Bucket) -> torch.Tensor | None:
        """Whether the program may change the tensors of a bucket, as a 0-dim bool tensor; None if it surely may."""
        if self.only_changed is None:
            return bucket.on
        pairs = [(scalar(opt, bucket, now), scalar(opt, bucket, then)) for now, then in self.only_changed]
        changed = torch.stack([(now != then).any() for now, then in pairs]).any().to(bucket.device)
        return changed if bucket.on is None else changed & bucket.on


def of_plan(opt: Optimizer, plan: Plan) -> list[tuple[Sweep, Verbs]]:
    """The sweeps of a plan in order, each with the verbs that decide on its sums.

    The move joins the sweep before it if the decisions in between change nothing that it reads, or seldom do.
    """
    *first, last = plan
    verbs, deciders = first[-1] if first else ([], [])
    joins = last == (MOVE, []) and verbs and not _of_slices(opt, verbs)
    decided = [opt.parts[role] for role, _ in deciders]
    ahead = [found for zeros in DECAYS if joins and (found := early(opt, decided, zeros))]
    if len(ahead) < len(DECAYS):
        found = [(_of_verbs(opt, v, v), d) for v, d in plan]
        for (one, deciders), (two, _) in itertools.pairwise(found):
            if one.count and not two.count and (decided := decision(opt, deciders, one.apart)):
                one.then = (two, decided) if two.program(opt, frozenset()).stores else None
        return found
    found = [(_of_verbs(opt, v, v), d) for v, d in first[:-1]]
    changed, whole = ahead[0][1], [*verbs, *MOVE]
    found.append((_of_verbs(opt, whole, verbs if changed else whole), deciders))
    if changed:
        correction = lambda _, zeros: ahead["weight_decay" in zeros][0]  # noqa: E731
        found.append((Sweep(correction, _by_reference(MOVE), {}, changed), []))
    return found


def _of_verbs(opt: Optimizer, by_kernels: Verbs, by_reference: Verbs) -> Sweep:
    program = trace(TraceFrame(opt), by_kernels)
    traced: Any = None if _of_slices(opt, by_kernels) else lambda opt, zeros: trace(TraceFrame(opt, zeros), by_kernels)
    return Sweep(traced, _by_reference(by_reference), program.apart)


def _of_slices(opt: Optimizer, verbs: Verbs) -> bool:
    return opt.parts["step_size"].every > 1 and verbs == [("step_size", "measure")]


def _by_reference(verbs: Verbs) -> Reference:
    return lambda opt, bucket, i: reference.run(opt, verbs, bucket, i)


def guard(clips: bool) -> Sweep:
    """The sweep that counts gradient elements whose square is not finite: it would stay in an average of squares.

    With clipping it also adds up the squares.
    """
    g = Symbol("load", "g")
    square = g.call("*", g, g)
    bad = g.call("where", g.call("<", square, float("inf")), 0.0, 1.0)
    program = Program({}, [bad, square] if clips else [bad], {})

    def squares(frame: ElementFrame) -> list[torch.Tensor]:
        square = frame.gradient_as_given() ** 2
        return [~torch.isfinite(square), square] if clips else [~torch.isfinite(square)]

    by_reference: Reference = lambda opt, bucket, i: reference.summed(opt, bucket, i, squares)  # noqa: E731
    return Sweep(lambda *_: program, by_reference, {"guard": [True] * len(program.sums)})


def zeros(opt: Optimizer, groups: list[Group]) -> Zeros:
    return DECAYS[all(group["weight_decay"] == 0 for group in groups)]


class Tensors:
    """The live tensors of an optimizer, sorted into batches that kernels take, and the rest."""

    def __init__(self, sweeps: list[Sweep], at_random: bool) -> None:
        self.sweeps, self.at_random = sweeps, at_random
        self.known: Any = None
        self.zeros: Zeros = frozenset()
        self.batches: list[Batch] = []
        self.rest: list[tuple[int, int]] = []  # bucket and tensor in it
        self.captured: list[torch.Tensor] = []  # tables that captured graphs read in every replay

    def found(self, opt: Optimizer, buckets: list[Bucket]) -> bool:
        """Whether all is as it was when they were sorted, but for the storage of their elements."""
        self.zeros = zeros(opt, [bucket.group for bucket in buckets])
        return self.known == self._seen(buckets) and all(batch.found() for batch in self.batches)

    def _seen(self, buckets: list[Bucket]) -> list[Any]:
        rest = [buckets[i].params[j] for i, j in self.rest]
        kinds = [(p.device, p.dtype, p.shape, p.grad is not None and p.grad.layout) for p in rest]
        return [torch.get_num_threads(), *kinds]

    def arrange(self, opt: Optimizer, buckets: list[Bucket]) -> None:
        """Sort the tensors by what kernels must know of them."""
        self.rest = []
        self.zeros = frozenset()
        taken: dict[Any, Where] = {}
        programs = [[self._program(opt, sweep, exact) for sweep in self.sweeps] for exact in (False, True)]
        keys = [{key for p in found for keys in p.streams() for key in keys} for found in programs]
        for i, bucket in enumerate(buckets):
            kernels = _kernels(opt, bucket.device)
            for j, p in enumerate(bucket.params):
                needed = sorted(keys[COMPENSATION in bucket.states[j]])
                dtypes = accepted(opt, p, needed, kernels.TYPES) if kernels else None
                if dtypes is None:
                    self.rest.append((i, j))
                else:
                    one_pass = local(p) is p and p.numel() <= kernels.ONE_PASS and any(one.then for one in self.sweeps)
                    taken.setdefault((bucket.device, kernels, one_pass, dtypes), []).append((i, bucket, j))
        self.batches = [Batch(kernels, one, dtypes, where) for (_, kernels, one, dtypes), where in taken.items()]
        self.known = self._seen(buckets)
        self.found(opt, buckets)
        for batch, sweep in itertools.product(self.batches, self.sweeps):  # before anything changes
            self._call(opt, sweep, batch)

    def _program(self, opt: Optimizer, sweep: Sweep, exact: bool) -> Program:
        """What kernels run for a sweep; `exact`: on parameters with a slot for what rounding takes from them."""
        program = sweep.program(opt, self.zeros)
        if self.at_random:
            return dataclasses.replace(program, at_random=True)
        return compensated(program) if exact else program

    def _call(self, opt: Optimizer, sweep: Sweep, batch: Batch) -> Any:
        key = sweep, self.zeros
        if key not in batch.calls:
            exact = COMPENSATION in batch.dtypes
            program, then = self._program(opt, sweep, exact), ()
            if batch.one_pass and sweep.then:
                then = ((self._program(opt, sweep.then[0], exact), sweep.then[1], opt.skip_nonfinite),)
                batch.calls[sweep.then[0], self.zeros] = None
            batch.calls[key] = batch.kernels.Call(program, batch, *then) if program.stores or program.sums else None
        return batch.calls[key]

    def run(self, opt: Optimizer, sweep: Sweep, buckets: list[Bucket]) -> list[torch.Tensor]:
        """One block [tensors, sums] per bucket."""
        blocks = [torch.zeros((len(b.params), sweep.count), dtype=torch.float64, device=b.device) for b in buckets]
        flags = [sweep.flag(opt, bucket) for bucket in buckets]
        for batch in self.batches:
            if call := self._call(opt, sweep, batch):
                rows = call.run(opt, batch, {i: flags[i] for i in batch.buckets})
                for i, index, here in batch.spans if sweep.count else ():
                    blocks[i][index] = rows[here]
        everywhere = ((i, j) for i, bucket in enumerate(buckets) for j in range(len(bucket.params)))
        for i, j in self.rest if sweep.trace else everywhere:
            if out := sweep.reference(opt, buckets[i], j):
                blocks[i][j] = torch.stack(out)
        return blocks


def _kernels(opt: Optimizer, device: torch.device) -> Any:
    """The module that compiles programs for a device, if there is one; importing it takes half a second."""
    on_gpu = device.type in TRITON_DEVICES and triton_available and opt.execution == "native"
    if opt.execution == "reference" or not (on_gpu or (native_available and device.type == "cpu")):
        return None
    return importlib.import_module("untuned.kernels.triton" if on_gpu else "untuned.kernels.native")

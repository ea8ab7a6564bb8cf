"""One sweep of an optimizer, run by kernels where they exist and by the reference elsewhere."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from untuned.core.buckets import Bucket
from untuned.core.frames import COMPENSATION, ElementFrame
from untuned.kernels import reference
from untuned.kernels.program import Program, Symbol, compensated, trace

if TYPE_CHECKING:
    from untuned.core.engine import Optimizer
    from untuned.kernels import native, triton
    from untuned.kernels.native import NativeSweep
    from untuned.kernels.triton import TritonSweep

EXECUTIONS = ("auto", "reference", "native")
native_available = importlib.util.find_spec("numba") is not None
triton_available = importlib.util.find_spec("triton") is not None
TRITON_DEVICES = {"cuda"}

Reference = Callable[["Optimizer", Bucket, int], list[torch.Tensor]]


class Sweep:
    """A program to run on every tensor, and the reference way for tensors that no kernel takes."""

    def __init__(self, opt: Optimizer, program: Program, reference: Reference) -> None:
        self.program, self.reference = program, reference
        self.compiled: dict[tuple[str, bool], NativeSweep | TritonSweep] = {}
        self.arranged: list[Bucket] | None = None
        self.calls: list[native.Call | triton.Call] = []
        self.rest: list[tuple[int, int]] = []  # bucket and tensor in it

    def run(self, opt: Optimizer, buckets: list[Bucket]) -> list[torch.Tensor]:
        """One block [tensors, sums] per bucket."""
        self._arrange(opt, buckets)
        sums = len(self.program.sums)
        blocks = [torch.zeros((len(b.params), sums), dtype=torch.float64, device=b.device) for b in buckets]
        for call in self.calls:
            rows = call.run(opt)
            for i, index, here in call.spans if sums else ():
                blocks[i][index] = rows[here]
        for i, j in self.rest:
            if out := self.reference(opt, buckets[i], j):
                blocks[i][j] = torch.stack(out)
        return blocks

    def _arrange(self, opt: Optimizer, buckets: list[Bucket]) -> None:
        """Sort the tensors into kernel calls, anew only if the buckets or the slots are others than before."""
        if buckets is self.arranged and all(call.current() for call in self.calls):
            return
        self.arranged, self.rest = buckets, []
        taken: dict[Any, list[tuple[int, Bucket, int]]] = {}
        for i, bucket in enumerate(buckets):
            for j, p in enumerate(bucket.params):
                kernels = self._kernels(opt, bucket.device, COMPENSATION in bucket.states[j])
                dtypes = kernels.accepts(opt, p) if kernels else None
                if kernels is None or dtypes is None:
                    self.rest.append((i, j))
                else:
                    taken.setdefault((kernels, bucket.device, dtypes), []).append((i, bucket, j))
        self.calls = [kernels.call(dtypes, where) for (kernels, _, dtypes), where in taken.items()]

    def _kernels(self, opt: Optimizer, device: torch.device, exact: bool) -> NativeSweep | TritonSweep | None:
        """What compiles the program for a device, if anything does; `exact`: with compensated parameters."""
        on_cuda = device.type in TRITON_DEVICES and triton_available and opt.execution == "native"
        if opt.execution == "reference" or not (on_cuda or native_available):
            return None
        key = ("triton" if on_cuda else "native", exact)
        if key not in self.compiled:
            if on_cuda:
                from untuned.kernels.triton import TritonSweep as Compiled  # importing triton takes half a second
            else:
                from untuned.kernels.native import NativeSweep as Compiled  # as long for numba
            self.compiled[key] = Compiled(compensated(self.program) if exact else self.program)
        return self.compiled[key]


def of_verbs(opt: Optimizer, verbs: list[tuple[str, str]]) -> Sweep:
    """The sweep that runs these verbs."""
    program = trace(opt.parts, verbs, opt.maximize)
    return Sweep(opt, program, lambda opt, bucket, i: reference.run(opt, verbs, bucket, i))


def guard(opt: Optimizer) -> Sweep:
    """The sweep that counts gradient elements whose square is not finite: it would stay in an average of squares."""
    g = Symbol("load", "g")
    bad = g.call("where", g * g < float("inf"), 0.0, 1.0)

    def count(opt: Optimizer, bucket: Bucket, i: int) -> list[torch.Tensor]:
        g = ElementFrame(opt, bucket, i).public("raw")
        return [(~torch.isfinite(g * g)).sum(dtype=torch.float64)]

    return Sweep(opt, Program({}, [bad], {}), count)

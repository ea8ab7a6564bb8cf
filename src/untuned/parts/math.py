"""Functions of one element, and the reductions of what verbs return.

They take tensors, the symbols that kernels trace verbs with, NumPy's numbers and Python's.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportPrivateImportUsage=false
# torch's stubs leave types unknown, and its multi-tensor functions have private names.

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


class Traced:
    """Base of the symbols that kernels trace verbs with: `q.call(op, ...)` is the operation on them."""

    __slots__ = ()

    def call(self, op: str, *args: Any) -> Any:
        raise TypeError(op)


def _apply(op: str, name: str, in_python: Callable[..., Any], *values: Any) -> Any:
    """The operation on symbols, on tensors, on NumPy's numbers or on Python's, which may be mixed with the others."""
    if (symbol := next((v for v in values if isinstance(v, Traced)), None)) is not None:
        return symbol.call(op, *values)
    if tensors := [v for v in values if isinstance(v, torch.Tensor)]:
        real = [v for v in tensors if v.is_floating_point()] or [tensors[0].new_empty((), dtype=torch.float64)]
        like = max(real, key=torch.Tensor.dim)
        return getattr(torch, name)(*(v if isinstance(v, torch.Tensor) else like.new_full((), v) for v in values))
    if any(isinstance(v, np.ndarray | np.generic) for v in values):
        return getattr(np, name)(*values)
    return in_python(*values)


def sqrt(q: Any) -> Any:
    return _apply("sqrt", "sqrt", math.sqrt, q)


def exp(q: Any) -> Any:
    return _apply("exp", "exp", math.exp, q)


def log(q: Any) -> Any:
    """The natural logarithm of q > 0."""
    return _apply("log", "log", math.log, q)


def tanh(q: Any) -> Any:
    return _apply("tanh", "tanh", math.tanh, q)


def minimum(q: Any, r: Any) -> Any:
    return _apply("min", "minimum", min, q, r)


def maximum(q: Any, r: Any) -> Any:
    return _apply("max", "maximum", max, q, r)


def _chosen(condition: Any, q: Any, r: Any) -> Any:
    return q if condition else r


def where(condition: Any, q: Any, r: Any) -> Any:
    if isinstance(condition, bool):  # of options alone
        return _chosen(condition, q, r)
    return _apply("where", "where", _chosen, condition, q, r)


def cbrt(q: Any) -> Any:
    """The cube root of q >= 0."""
    return q.call("cbrt", q) if isinstance(q, Traced) else q ** (1 / 3)


def sign(q: Any) -> Any:
    return where(q > 0, 1.0, where(q < 0, -1.0, 0.0))


def ratio(q: Any, r: Any) -> Any:
    """q / r, and 0 where r is 0."""
    return where(r > 0, q / where(r > 0, r, 1.0), 0.0)


@dataclasses.dataclass(frozen=True)
class Reduced:
    """What a verb returns to be reduced over elements: by "sum" or "max", and apart for each tensor or not.

    A part whose scope is "tensor" or "row" gets all results apart, one for each tensor or row.
    """

    value: Any
    kind: str = "sum"
    each: bool = False


def reduced(summand: Any) -> Reduced:
    return summand if isinstance(summand, Reduced) else Reduced(summand)


def dot(q: Any, r: Any) -> Any:
    """The summand of <q, r>: what a verb returns is summed over the model by the engine."""
    return q * r


def norm1(q: Any) -> Any:
    """The summand of the 1-norm."""
    return abs(q)


def largest(q: Any) -> Reduced:
    """The largest |q|: the engine takes the maximum over elements instead of the sum; it is 0 if there are none."""
    return Reduced(abs(q), kind="max")


def each(summand: Any) -> Reduced:
    """A reduction whose results stay apart, one per tensor."""
    return dataclasses.replace(reduced(summand), each=True)


def mixed(x: Any) -> Any:
    """A hash of 32 bits of integers held in int64: xorshift and multiply, twice, with constants of least bias."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


def uniform(seed: Any, k: Any) -> Any:
    """In `decide`: a number in (0, 1), of 32 random bits, that follows from two whole numbers below 2^32 alone.

    So it is equal on all ranks and after a resume.
    """
    seed, k = (q.long() if isinstance(q, torch.Tensor) else np.asarray(q).astype(np.int64) for q in (seed, k))
    bits = mixed(mixed(k) ^ mixed(seed + 0x9E3779B9 & 0xFFFFFFFF))
    return ((bits.double() if isinstance(bits, torch.Tensor) else bits) + 0.5) / 2.0**32

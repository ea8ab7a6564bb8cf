"""Arrays at raw addresses, and bfloat16 as bits, inside Numba functions."""

# pyright: basic, reportPrivateImportUsage=false, reportCallIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit, prange, types  # noqa: F401 (kernels import all of this module)
from numba.extending import intrinsic

FAST = {"error_model": "numpy", "fastmath": {"reassoc", "nsz", "contract", "arcp", "afn"}}


def _pointer(element: Any) -> Any:
    @intrinsic
    def cast(context: Any, address: Any, start: Any) -> Any:
        def code(ctx: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = builder.inttoptr(args[0], ctx.get_value_type(signature.return_type))
            return builder.gep(pointer, [args[1]])

        return types.CPointer(element)(types.uint64, types.int64), code

    return cast


float32, float64, bfloat16 = _pointer(types.float32), _pointer(types.float64), _pointer(types.uint16)


@njit(inline="always")
def float_of(bits):
    """The float32 that bfloat16 bits stand for."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@njit(inline="always")
def bits_of(value):
    """A float32 as bfloat16 bits, rounded to nearest even; NaN stays NaN."""
    bits = np.float32(value).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.uint16(0x7FC0) if value != value else np.uint16(rounded)


@njit(inline="always")
def cbrt(x):
    """The cube root of a float32 x >= 0 as x y^2; y = x^(-1/3) from the bits of x, a step of third order and Newton's.

    pow() takes eight times as long as the rest of a sweep. Relative error 6e-7 from 1e-36 on; below, it is too small.
    """
    at_least = max(x, np.float32(1e-36))  # y^3 must not overflow
    third = np.int32(np.float32(np.float32(at_least).view(np.int32)) * np.float32(1 / 3))
    y = np.int32(np.int32(0x54A2FA8C) - third).view(np.float32)
    r = np.float32(1) - at_least * y * y * y
    y = y + y * r * (np.float32(1 / 3) + np.float32(2 / 9) * r)
    y = y * (np.float32(4 / 3) - np.float32(1 / 3) * at_least * y * y * y)
    return x * y * y


@njit(inline="always")
def bits_at_random(value, seed, shift):
    """A float32 as bfloat16 bits, rounded up or down by the hash of a uint32; see untuned.memory.rounding."""
    x = np.uint32(seed)
    x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D))
    x = np.uint32((x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B))
    noise = ((x ^ (x >> np.uint32(16))) >> shift) & np.uint32(0xFFFF)
    rounded = np.uint32(np.float32(value).view(np.uint32) + noise) >> np.uint32(16)
    return np.uint16(0x7FC0) if value != value else np.uint16(rounded)

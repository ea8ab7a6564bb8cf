"""Arrays at raw addresses, and bfloat16 as bits, inside Numba functions."""

# pyright: basic, reportPrivateImportUsage=false, reportCallIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic


def _pointer(element: Any) -> Any:
    @intrinsic
    def cast(context: Any, address: Any) -> Any:
        def code(ctx: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], ctx.get_value_type(signature.return_type))

        return types.CPointer(element)(types.uint64), code

    return cast


_float32, _float64, _uint16 = _pointer(types.float32), _pointer(types.float64), _pointer(types.uint16)


@njit(inline="always")
def view_float32(address, start, n):
    return carray(_float32(address + np.uint64(4) * np.uint64(start)), (n,))


@njit(inline="always")
def view_float64(address, start, n):
    return carray(_float64(address + np.uint64(8) * np.uint64(start)), (n,))


@njit(inline="always")
def view_bfloat16(address, start, n):
    return carray(_uint16(address + np.uint64(2) * np.uint64(start)), (n,))


@intrinsic
def _as_float(context: Any, bits: Any) -> Any:
    def code(ctx: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ctx.get_value_type(types.float32))

    return types.float32(types.uint32), code


@intrinsic
def _as_bits(context: Any, value: Any) -> Any:
    def code(ctx: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ctx.get_value_type(types.uint32))

    return types.uint32(types.float32), code


@njit(inline="always")
def float_of(bits):
    """The float32 that bfloat16 bits stand for."""
    return _as_float(np.uint32(bits) << np.uint32(16))


@njit(inline="always")
def bits_of(value):
    """A float32 as bfloat16 bits, rounded to nearest even; NaN stays NaN."""
    bits = _as_bits(value)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.uint16(0x7FC0) if value != value else np.uint16(rounded)


@njit(inline="always")
def cbrt(x):
    """The cube root of a float32 x >= 0 as x y^2; y = x^(-1/3) from the bits of x, a step of third order and Newton's.

    pow() takes eight times as long as the rest of a sweep. Relative error 6e-7 from 1e-36 on; below, it is too small.
    """
    at_least = max(x, np.float32(1e-36))  # y^3 must not overflow
    third = np.int32(np.float32(np.int32(_as_bits(at_least))) * np.float32(1 / 3))
    y = _as_float(np.uint32(np.int32(0x54A2FA8C) - third))
    r = np.float32(1) - at_least * y * y * y
    y = y + y * r * (np.float32(1 / 3) + np.float32(2 / 9) * r)
    y = y * (np.float32(4 / 3) - np.float32(1 / 3) * at_least * y * y * y)
    return x * y * y


@njit(inline="always")
def bits_at_random(value, seed, shift):
    """A float32 as bfloat16 bits, rounded up or down by the hash of a uint32; see untuned.core.rounding."""
    x = np.uint32(seed)
    x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D))
    x = np.uint32((x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B))
    noise = ((x ^ (x >> np.uint32(16))) >> shift) & np.uint32(0xFFFF)
    rounded = np.uint32(_as_bits(value) + noise) >> np.uint32(16)
    return np.uint16(0x7FC0) if value != value else np.uint16(rounded)

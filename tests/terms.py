"""Bounds for numbers that were computed twice: by another kernel, in another order, or on another machine.

Each addition rounds what it gives, by 2^-53 of it at most in float64, and what it gives is no larger than the sum of
the absolute values of all terms. So two ways to one sum differ by some roundings of *that*, and not of the sum, which
may be much smaller: where terms cancel, a bound relative to the result asks for digits that no order of the terms has.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def assert_near(found: Any, expected: Any, terms: Any, roundings: int = 16, unit: float = 2.0**-53) -> None:
    """Equal up to so many roundings of the terms: `terms` is the sum of their absolute values, or a bound on it."""
    apart, bound = np.abs(np.asarray(found) - np.asarray(expected)), roundings * unit * np.asarray(terms)
    assert (apart <= bound).all(), (
        f"{apart.max():.3g} apart, where terms of {np.max(terms):.3g} explain {bound.max():.3g}"
    )

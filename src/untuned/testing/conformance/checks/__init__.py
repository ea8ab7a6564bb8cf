"""The checks, by theme; importing them registers them, in this order."""

from untuned.testing.conformance.checks import (
    construction,
    stepping,
    parameters,
    groups,
    learning_rates,
    hard_numbers,
    checkpoints,
    processes,
)

__all__ = [
    "checkpoints",
    "construction",
    "groups",
    "hard_numbers",
    "learning_rates",
    "parameters",
    "processes",
    "stepping",
]

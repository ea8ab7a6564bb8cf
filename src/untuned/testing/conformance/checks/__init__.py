"""The checks, by theme; importing them registers them, in this order."""

# ruff: noqa: I001, F401
from untuned.testing.conformance.checks import construction
from untuned.testing.conformance.checks import stepping
from untuned.testing.conformance.checks import parameters
from untuned.testing.conformance.checks import groups
from untuned.testing.conformance.checks import learning_rates
from untuned.testing.conformance.checks import hard_numbers
from untuned.testing.conformance.checks import checkpoints
from untuned.testing.conformance.checks import processes

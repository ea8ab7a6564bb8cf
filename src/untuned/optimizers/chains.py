"""A transform that a named class has of its own, in one chain with those that it is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def joined(given: Any, own: Any, first: bool) -> Any:
    """The chain, or that of each label, with `own` first or last. What is no chain stays as it is, to be refused."""
    if isinstance(given, Mapping):
        return {label: joined(chain, own, first) for label, chain in given.items()}
    if not isinstance(given, Sequence) or isinstance(given, str):
        return given
    return [own, *given] if first else [*given, own]

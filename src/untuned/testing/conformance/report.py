"""The results of a run of checks as JSON and as a badge."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import untuned
from untuned.testing.conformance.check import CHECKS
from untuned.testing.conformance.runner import Result
from untuned.testing.conformance.target import Target

_GOOD, _FAIR, _POOR = "#2e7d32", "#b26a00", "#c62828"


def document(target: Target, results: Sequence[Result]) -> dict[str, Any]:
    """All about a run, of plain values: target, versions, capabilities, counts, and each check with its remark."""
    return {
        "target": target.name,
        "options": {name: repr(value) for name, value in target.options.items()},
        "versions": versions(target),
        "capabilities": dict(target.declared),
        "counts": {status: sum(r.status == status for r in results) for status in sorted({r.status for r in results})},
        "checks": [
            {"theme": CHECKS[r.check].theme, "title": CHECKS[r.check].title, **dataclasses.asdict(r)} for r in results
        ],
    }


def versions(target: Target) -> dict[str, str]:
    """Of everything that decides the outcome: Python, torch, this suite and the package of the optimizer."""
    found = {
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "untuned": untuned.__version__,
    }
    module = target.factory.partition(":")[0] if isinstance(target.factory, str) else target.factory.__module__
    for package in metadata.packages_distributions().get(module.partition(".")[0], []):
        found[package] = metadata.version(package)
    return found


def badge(results: Sequence[Result]) -> str:
    """An SVG image "untuned check | 50 of 52", of those that apply; green if no check failed."""
    applied = [r for r in results if r.status != "does not apply"]
    failed = sum(r.status == "failed" for r in applied)
    left, right = "untuned check", f"{len(applied) - failed} of {len(applied)}"
    colour = _GOOD if not failed else _FAIR if failed <= len(applied) / 10 else _POOR
    one, two = (7 * len(text) + 12 for text in (left, right))
    return f"""<svg xmlns="http://www.w3.org/2000/svg" width="{one + two}" height="20" role="img">
<title>{left}: {right}</title>
<clipPath id="r"><rect width="{one + two}" height="20" rx="3"/></clipPath>
<g clip-path="url(#r)"><rect width="{one}" height="20" fill="#444"/>
<rect x="{one}" width="{two}" height="20" fill="{colour}"/></g>
<g fill="#fff" text-anchor="middle" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">
<text x="{one / 2}" y="14">{left}</text><text x="{one + two / 2}" y="14">{right}</text></g>
</svg>
"""

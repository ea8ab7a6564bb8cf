"""The order of a recipe's verbs and decisions, found once from the parts.

The number of sweeps is the cost model: a plain method has one, an adaptive one two.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportPrivateImportUsage=false
# torch's stubs leave types unknown, and its multi-tensor functions have private names.

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from untuned.core.frames import DryFrame

Verbs = list[tuple[str, str]]  # (role, verb)
Plan = list[tuple[Verbs, Verbs]]


def plan(parts: dict[str, Any]) -> Plan:
    """Sweeps in order, each as (its verbs, the verbs that decide on its sums).

    A decision without sums follows the step size's, or comes first if nothing is measured. Kernels join the move with
    the sweep before it where the decisions in between change nothing that it reads, or seldom do.
    """

    def has(role: str, verb: str) -> bool:
        return hasattr(parts[role], verb)

    sweeps: Plan = []
    deciders = [(role, "decide") for role in ("step_size", "iterate") if has(role, "decide")]
    if has("direction", "look"):
        sweeps.append(([("direction", "look")], [("direction", "decide")]))
    elif has("direction", "decide"):
        deciders.insert(0, ("direction", "decide"))
    body = [("direction", "accumulate")] if has("direction", "accumulate") else []
    measures = [(role, "measure") for role in ("step_size", "iterate") if has(role, "measure")]
    move = [("iterate", "move")]
    if not measures:
        if deciders:
            sweeps.append(([], deciders))
        return [*sweeps, ([*body, *move], [])]
    apart = parts["step_size"].every > 1  # its measure sees other elements than the rest
    if apart and body:
        sweeps.append((body, []))
        body = []
    if len(measures) == 2 and (apart or parts["iterate"].wants_size):  # x.size is known after the step size's decision
        sweeps.append((body + measures[:1], [one for one in deciders if one[0] != "iterate"]))
        sweeps.append((measures[1:], [("iterate", "decide")]))
    else:
        sweeps.append((body + measures, deciders))
    return [*sweeps, (move, [])]


def _dry_run(parts: dict[str, Any], role: str, ones: Callable[[int], Any]) -> DryFrame:
    """The decisions of a part on ones."""
    frame, part = DryFrame(parts, ones), parts[role]
    if decision := getattr(part, "decide", None):
        decision(frame.place(role), *(ones(1) for _ in range(len(inspect.signature(decision).parameters) - 1)))
    return frame


def read_by_model_decisions(parts: dict[str, Any]) -> list[tuple[str, str]]:
    """Hyper-parameters that a decision or a number of the whole model reads: they must be equal in all groups."""
    ones = functools.partial(torch.ones, dtype=torch.float64)
    read = [_dry_run(parts, role, ones).read_keys for role, part in parts.items() if part.scope == "model"]
    firsts = {
        (part.name, n.first)
        for part in parts.values()
        for n in part.numbers().values()
        if part.scope == "model" and not n.each and isinstance(n.first, str)
    }
    return sorted(firsts.union(*read))


def decided_in_numpy(parts: dict[str, Any]) -> set[str]:
    """The roles whose decisions need no function of torch's."""
    found: set[str] = set()
    for role in parts:
        with contextlib.suppress(TypeError, AttributeError), np.errstate(all="ignore"):
            _dry_run(parts, role, np.ones)
            found.add(role)
    return found

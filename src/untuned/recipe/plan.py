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
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from untuned.parts.declare import Hyper, Number
from untuned.parts.part import Part
from untuned.parts.place import Frame, Parts

Verbs = list[tuple[str, str]]  # (role, verb)
Plan = list[tuple[Verbs, Verbs]]  # sweeps, each with the decisions that follow it
ROLES = ("gradient", "direction", "step_size", "around", "iterate", "decay")


def plan(variants: Iterable[Parts]) -> Plan:
    """Sweeps in order, each as (its verbs, the verbs that decide on its sums), for all that a partition holds.

    A decision without sums, of a part that neither looks nor measures, runs before the first `measure` if that belongs
    to a later part, which may read what is decided; else with the decisions on the first sums that are measured; and
    before the last sweep if nothing is measured. What is remembered of the gradient goes back along the chain, since
    each transform reads those before it. Kernels join the move with the sweep before it where the decisions in between
    change nothing that it reads, or seldom do. What is watched runs with the sweep that a gradient transform begins, or
    behind the move, and is recorded after the decisions on the other sums of that sweep.
    """
    variants = list(variants)
    roles = sorted({role for parts in variants for role in parts}, key=lambda r: (ROLES.index(r.split()[0]), r))

    def having(verb: str) -> list[str]:
        return [role for role in roles if any(hasattr(parts.get(role), verb) for parts in variants)]

    sweeps: Plan = []
    body: Verbs = []
    looks, measures, decides = having("look"), having("measure"), having("decide")
    for role in (r for r in roles if r.split()[0] in ROLES[:2]):
        if role in looks:
            sweeps.append(([*body, (role, "look")], [(role, "decide")]))
            body = []
        first = ("accumulate", "reform") if role == "direction" else ("watch", "accumulate")
        body += [(role, verb) for verb in first if role in having(verb)]
    late = [(role, "watch") for role in ("direction", "iterate") if role in having("watch")]
    move = [("iterate", "move"), *late, *((role, "remember") for role in reversed(having("remember")))]
    waiting = [role for role in decides if role not in looks]  # for the first sums of what is measured, if anything is
    slices = any(parts["step_size"].every > 1 for parts in variants)
    if slices and body and measures:  # its measure sees other elements than the rest
        sweeps.append((body, []))
        body = []
    together: list[list[str]] = []
    for role in measures:  # x.size is known after the step size's decision
        sized = role != "iterate" or any(parts[role].wants_size for parts in variants)
        if together and not (sized or slices):
            together[-1].append(role)
        else:
            together.append([role])
    for measured in together:
        ready = [r for r in waiting if r not in measures and roles.index(r) < roles.index(measured[0])]
        mine = [r for r in waiting if r not in ready and (r in measured or r not in measures)]
        sweeps += [([], [(r, "decide") for r in ready])] if ready else []
        sweeps.append(([*body, *((r, "measure") for r in measured)], [(r, "decide") for r in mine]))
        body, waiting = [], [r for r in waiting if r not in (*ready, *mine)]
    if waiting:
        sweeps.append(([], [(r, "decide") for r in waiting]))
    sweeps.append(([*body, *move], []))
    return [(verbs, [*deciders, *((r, "record") for r, v in verbs if v == "watch")]) for verbs, deciders in sweeps]


class DryFrame(Frame):
    """A decision on ones, to learn which hyper-parameters it reads: `read_keys` holds (part, key).

    Their values are those of a group, or those that the part was built with.
    """

    where = "'decide'"

    def __init__(self, parts: Parts, ones: Callable[[int], Any], group: dict[str, Any] | None = None) -> None:
        super().__init__(parts)
        self.ones, self.group, self.scope = ones, group, "model"
        self.read_keys: list[tuple[Part, str]] = []

    def number(self, part: Part, declared: Number) -> Any:
        first = getattr(part, declared.first) if isinstance(declared.first, str) else declared.first
        size = part.length(declared) if declared.size else len(first) if isinstance(first, tuple) else 1
        return self.ones(size)

    number_before = number

    def hyper(self, part: Part, letter: Hyper) -> Any:
        self.read_keys.append((part, letter.key))
        value = (self.group or part.hypers())[letter.key]
        return value if letter.index is None else value[letter.index]

    def signal(self, key: str) -> Any:
        return self.ones(1)

    def engine(self, name: str) -> Any:
        if (self.scope == "row" and name == "t") or (self.scope != "tensor" and name == "rho"):
            return super().engine(name)
        return torch.zeros(1, dtype=torch.int64) if name == "ids" else self.ones(1)

    def write(self, part: Part, name: str, value: Any) -> None:
        self.written(part, name, Number)


def _dry_run(parts: Parts, role: str, ones: Callable[[int], Any]) -> DryFrame:
    """The decisions of a part on ones."""
    frame, part = DryFrame(parts, ones), parts[role]
    frame.scope = part.scope
    for decision in (getattr(part, verb) for verb in ("decide", "record") if hasattr(part, verb)):
        decision(frame.place(role), *(ones(1) for _ in range(len(inspect.signature(decision).parameters) - 1)))
    return frame


def read_by_model_decisions(parts: Parts) -> list[tuple[Part, str]]:
    """Hyper-parameters that a decision or a number of the whole model reads: they must be equal in all groups.

    Raises what a decision raises that reads or writes a letter which does not exist there.
    """
    ones = functools.partial(torch.ones, dtype=torch.float64)
    frames = {role: _dry_run(parts, role, ones) for role in parts}
    read = [frame.read_keys for role, frame in frames.items() if parts[role].scope == "model"]
    firsts = {
        (part, n.first)
        for part in parts.values()
        for n in part.numbers().values()
        if part.scope == "model" and not n.each and isinstance(n.first, str)
    }
    return sorted(firsts.union(*read), key=lambda one: (one[0].name, one[1]))


def decided_in_numpy(parts: Parts) -> set[str]:
    """The roles whose decisions need no function of torch's."""
    found: set[str] = set()
    for role in parts:
        with contextlib.suppress(TypeError, AttributeError), np.errstate(all="ignore"):
            _dry_run(parts, role, np.ones)
            found.add(role)
    return found

"""The words of `gives` and `needs`, and the refusal of parts that do not fit."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportPrivateImportUsage=false
# torch's stubs leave types unknown, and its multi-tensor functions have private names.

from __future__ import annotations

import difflib
import inspect
from typing import Any

from untuned.parts.kinds import KINDS, PARTNERS, Iterate, StepTransform
from untuned.parts.part import Part
from untuned.parts.place import Parts

WORDS = {
    "average": "one scalar weight per past gradient",
    "diagonal": "a diagonal scale D that the direction divides by",
    "weighted": "weights of the step size inside the direction's averages",
    "gradient": "u is the current gradient",
    "sum": "m adds up all past gradients",
    "from_start": "the step is taken from the starting point",
    "loss": "the loss of every step",
    "sample_ids": "the numbers of the samples in every batch",
    "additive": "the parameters move by a multiple of u",
    "plain_step": "steps by x.base, which transforms can wrap",
    "decays_p": "weight decay of the parameters, not of their gradient",
    "modes": "holds different points in training and in evaluation",
}
SCOPES = ("model", "group", "tensor", "row")
RESERVED_STATE = {"step", "rho"}
RESERVED_GROUP = {"params", "param_names", "steps", "skipped", "training", "method", "initial_lr", "label"}


def check(parts: Parts) -> None:
    """Raise `TypeError` in one sentence if the parts of a recipe do not fit together."""
    for part in parts.values():
        _check_verbs(part)
    removed = {word: part for part in parts.values() for word in getattr(part, "removes", ())}
    given = {word for part in parts.values() for word in part.gives} - removed.keys() | {"loss", "sample_ids"}
    for part in parts.values():
        needs = part.needs | ({"plain_step"} if isinstance(part, StepTransform) else frozenset())
        for word in sorted(needs - given):
            other = removed.get(word) or next(one for one in parts.values() if _classes(one, word))
            why = other.lacks.get(word, f"{other.name} does not give it")
            names = _classes(other, word)
            use = " or ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
            raise TypeError(
                f"{part.name} cannot use {other.name}: it needs {word!r} ({WORDS[word]}); {why}. "
                + (f"Use {use}." if use else "Leave it out.")
            )
    _check_names({p: _state_keys(p) for p in parts.values()}, RESERVED_STATE, "per-parameter state")
    _check_names({p: _group_keys(p) for p in parts.values()}, RESERVED_GROUP, "group entry")


def _check_verbs(part: Part) -> None:
    kind = kind_of(part)
    known = {name for name, _ in inspect.getmembers(kind)} | {*kind.verbs}
    found = {name for name, value in inspect.getmembers(type(part)) if inspect.isfunction(value)}
    if unknown := sorted(name for name in found - known if not name.startswith("_")):
        near = difflib.get_close_matches(unknown[0], kind.verbs, n=1)
        raise TypeError(
            f"{part.name}: {unknown[0]!r} is no verb of a {kind.__name__}; "
            + (f"did you mean {near[0]!r}? " if near else f"these are {', '.join(kind.verbs)}. ")
            + "Begin the names of helpers with an underscore."
        )
    for verb, partner in PARTNERS.items():
        if verb in kind.verbs and hasattr(part, verb) and not hasattr(part, partner):
            raise TypeError(f"{part.name}: it has {verb!r} and no {partner!r}, without which it does nothing. Add it.")
    if isinstance(part, Iterate) and hasattr(part, "leave") != ("modes" in part.gives):
        raise TypeError(f"{part.name}: it must give 'modes' if and only if it has 'leave' and 'enter'.")
    if part.scope not in SCOPES:
        raise TypeError(f"{part.name}: scope must be one of {', '.join(map(repr, SCOPES))}, not {part.scope!r}.")
    if vectors := [n.key for n in part.numbers().values() if n.size and part.scope == "row"]:
        raise TypeError(f"{part.name}: a number of each row, {vectors[0]!r}, cannot be a vector (size=).")
    if wrong := sorted({key for key, _ in part.signals()} & {"closure", "loss", "sample_ids"}):
        raise TypeError(f"{part.name}: step() has a {wrong[0]!r} already, so it is no name of a signal. Rename it.")
    for said, words in (("gives", part.gives), ("needs", part.needs), ("lacks", part.lacks)):
        if unknown := sorted({*words} - WORDS.keys()):
            near = difflib.get_close_matches(unknown[0], WORDS, n=1) or WORDS
            raise TypeError(
                f"{part.name}: {unknown[0]!r} in {said} is no word of the library; use {', '.join(map(repr, near))}."
            )


def kind_of(part: Part) -> Any:
    return next(kind for kind in KINDS if isinstance(part, kind))


def _classes(part: Part, word: str) -> list[str]:
    """Names of the classes of this part's kind that give the word."""
    found, todo = list[str](), [kind_of(part)]
    while todo:
        for cls in todo.pop().__subclasses__():
            todo.append(cls)
            ours = cls.__module__.startswith("untuned.") and not inspect.isabstract(cls)
            found += [cls.__name__] if ours and word in _class_gives(cls) else []
    return sorted(found)


def _class_gives(cls: Any) -> frozenset[str]:
    return cls.gives if isinstance(cls.gives, frozenset) else cls().gives  # options may decide it: ask the default


def _state_keys(part: Part) -> set[str]:
    return {s.key for s in part.slots().values()} | {n.key for n in part.numbers().values() if part.per_tensor(n)}


def _group_keys(part: Part) -> set[str]:
    return set(part.hypers()) | {n.key for n in part.numbers().values() if not part.per_tensor(n)}


def _check_names(names: dict[Part, set[str]], reserved: set[str], kind: str) -> None:
    owner: dict[str, str] = dict.fromkeys(reserved, "the engine")
    for part, keys in names.items():
        for key in sorted(keys):
            if key in owner:
                raise TypeError(
                    f"{part.name} and {owner[key]} both declare the {kind} {key!r}: they cannot share one optimizer. "
                    f"Rename it in one of them, or use another part."
                )
            owner[key] = part.name

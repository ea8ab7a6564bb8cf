"""The words of `gives` and `needs`, and the refusal of parts that do not fit."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false, reportPrivateImportUsage=false
# torch's stubs leave types unknown, and its multi-tensor functions have private names.

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from untuned.core.parts import Part

WORDS = {
    "average": "one scalar weight per past gradient",
    "diagonal": "a diagonal scale D that the direction divides by",
    "weighted": "weights of the step size inside its averages",
    "gradient": "u is the current gradient",
    "sum": "m adds up all past gradients",
    "from_start": "the step is taken from the starting point",
    "loss": "the loss of every step",
    "sample_ids": "the numbers of the samples in every batch",
    "owns_p": "recomputes the parameters from its own slots",
    "decays_p": "weight decay of the parameters, not of their gradient",
    "modes": "holds different points in training and in evaluation",
}
RESERVED_STATE = {"step", "rho"}
RESERVED_GROUP = {"params", "param_names", "steps", "skipped", "training", "method", "initial_lr"}


def check(parts: dict[str, Any]) -> None:
    """Raise `TypeError` in one sentence if the parts of a recipe do not fit together."""
    given = {word for part in parts.values() for word in part.gives} | {"loss", "sample_ids"}
    for part in parts.values():
        for word in sorted(part.needs - given):
            other = parts[next(role for role in parts if _classes(parts[role], word))]
            why = other.lacks.get(word, f"{other.name} does not give it")
            names = _classes(other, word)
            use = " or ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
            raise TypeError(
                f"{part.name} cannot use {other.name}: it needs {word!r} ({WORDS[word]}); {why}. Use {use}."
            )
    _check_names({p: _state_keys(p) for p in parts.values()}, RESERVED_STATE, "per-parameter state")
    _check_names({p: _group_keys(p) for p in parts.values()}, RESERVED_GROUP, "group entry")


def _classes(part: Part, word: str) -> list[str]:
    """Names of the classes of this part's kind that give the word."""
    kind = type(part).__mro__[1]
    return sorted(c.__name__ for c in kind.__subclasses__() if word in _class_gives(c))


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

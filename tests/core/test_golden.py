"""Public signatures: a change of one edits signatures.txt in the same commit.

`python tests/core/test_golden.py` writes the file anew.
"""

import inspect
import re
from pathlib import Path
from types import ModuleType

import untuned

GOLDEN = Path(__file__).parents[1] / "golden" / "signatures.txt"
METHODS = [
    "add_param_group",
    "averaged_parameters",
    "eval",
    "load_state_dict",
    "metrics",
    "record_loss",
    "step",
    "train",
]


def signatures() -> str:
    lines = []
    for name in sorted(untuned.__all__):
        value = getattr(untuned, name)
        if isinstance(value, ModuleType):
            parts = getattr(value, "__all__", None) or [
                part for part, cls in vars(value).items() if getattr(cls, "__module__", None) == value.__name__
            ]
            for part in sorted(parts):
                held = getattr(value, part)
                lines.append(f"{name}.{part}{inspect.signature(held) if callable(held) else sorted(held)}")
        elif name != "__version__":
            lines.append(f"{name}{inspect.signature(value)}")
    lines += [f"Optimizer.{name}{inspect.signature(getattr(untuned.Optimizer, name))}" for name in METHODS]
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", "\n".join(lines) + "\n")  # annotations without their quotes


def test_signatures() -> None:
    assert signatures() == GOLDEN.read_text(), "run `python tests/core/test_golden.py` if the change is meant"


if __name__ == "__main__":
    GOLDEN.write_text(signatures())

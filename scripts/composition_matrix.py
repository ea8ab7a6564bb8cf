"""Write docs/compositions.md: every step size on every direction with every iterate, composed once.

    python scripts/composition_matrix.py [--check]

`--check` writes nothing and exits with 1 if the page is stale.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from method_pages import build, options, publish

import untuned
from untuned import directions, iterates, step_sizes

PAGE = Path(__file__).parents[1] / "docs" / "compositions.md"
ARGUMENTS: dict[str, dict[str, Any]] = {}  # of parts that cannot be built without
RUNS, NO_THEORY = "●", "○"

_HEAD = """<!-- Written by scripts/composition_matrix.py: change the parts instead. -->

# Compositions

Every step size (rows) on every direction (columns), one table per iterate, each part with its default options, as
`untuned.compose(params, direction=..., step_size=..., iterate=...)` takes them. Of {count} compositions {theory} run
(●), {no_theory} run but no theory covers them (○), and {refused} are refused: the number leads to the sentence at the
end of this page.

What counts as covered: the parts of a named class, unless its docstring says that no theory covers it; `Fixed` or
`WarmedUp` on any direction, the plain use of both; `MoMo` on any direction that gives `average`, the model of the loss
that its theory is about; and `Mechanic` or `Mechanize` around anything, whose bound is stated for any base. Weight
decay, any of the three, makes no difference to what is refused. An option may: `TAM` and `SNGM` give `average` with
`scope="model"` only, `Momentum` without `nesterov` only.

Averaging iterates take gradients at y and let steps move z. `GPA` and `ScheduleFree` have step sizes measure the loss
and the distance at z, as published for two compositions with `ScheduleFree`: `SPS(c=1)` on `Gradient` (arXiv
2511.07767) and `Prodigy` on a direction without a first moment (its authors' code). `PrimalAverage` has them measure at
y, as published for `TAPS` and `MOTAPS`. `measure_at="y"` or `"z"` is the other choice.
"""


@dataclass(frozen=True)
class Cell:
    direction: str
    step_size: str
    iterate: str
    refusal: str  # empty if it runs
    theory: bool


def cells() -> Iterator[Cell]:
    """Every combination, composed."""
    covered = _of_named_classes()
    weight = torch.nn.Parameter(torch.ones(1, 1))
    for iterate, step_size, direction in product(_parts(iterates), _parts(step_sizes), _parts(directions)):
        refusal = ""
        try:
            untuned.compose([weight], direction, step_size, iterate, execution="reference")
        except TypeError as reason:
            refusal = str(reason)
        plain = iterate.name == "Plain"
        theory = (
            (direction.name, step_size.name, iterate.name) in covered
            or (plain and step_size.name in ("Fixed", "WarmedUp"))
            or (plain and step_size.name == "MoMo" and "average" in direction.gives)
            or iterate.name in ("Mechanic", "Mechanize")
        )
        yield Cell(direction.name, step_size.name, iterate.name, refusal, theory)


def _parts(room: Any) -> list[Any]:
    return [getattr(room, name)(**ARGUMENTS.get(name, {})) for name in room.__all__]


def _of_named_classes() -> set[tuple[str, str, str]]:
    """The parts of every method, also with momentum where that is an option, but those whose class says "no theory"."""
    found = set()
    for name in untuned.list():
        method = untuned.get(name)
        if "no theory covers it" in " ".join((method.optimizer.__doc__ or "").split()):
            continue
        for change in ({}, {"momentum": 0.9}):
            if change.keys() <= options(method).keys():
                parts = build(method, **change).parts
                found.add(tuple(parts[role].name for role in ("direction", "step_size", "iterate")))
    return found


def page(found: Sequence[Cell]) -> str:
    refusals = list(dict.fromkeys(cell.refusal for cell in found if cell.refusal))
    run = [cell for cell in found if not cell.refusal]
    theory = sum(cell.theory for cell in run)
    blocks = [_HEAD.format(count=len(found), theory=theory, no_theory=len(run) - theory, refused=len(found) - len(run))]
    at = {(cell.iterate, cell.step_size, cell.direction): cell for cell in found}
    for iterate in dict.fromkeys(cell.iterate for cell in found):
        columns = list(dict.fromkeys(cell.direction for cell in found))
        rows = []
        for step_size in dict.fromkeys(cell.step_size for cell in found):
            row = [at[iterate, step_size, direction] for direction in columns]
            rows.append([f"**{step_size}**", *(_shown(cell, refusals) for cell in row)])
        lines = [["", *columns], ["---", *[":-:"] * len(columns)], *rows]
        blocks.append(f"## {iterate}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    blocks.append("## Refusals\n\n" + "\n".join(f"[^{i}]: {text}" for i, text in enumerate(refusals, 1)) + "\n")
    return "\n".join(blocks)


def _shown(cell: Cell, refusals: Sequence[str]) -> str:
    if cell.refusal:
        return f"[^{refusals.index(cell.refusal) + 1}]"
    return RUNS if cell.theory else NO_THEORY


def pages(found: Sequence[Cell]) -> dict[Path, str]:
    return {PAGE: page(found)}


def main(arguments: Sequence[str]) -> int:
    return publish(pages(list(cells())), "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

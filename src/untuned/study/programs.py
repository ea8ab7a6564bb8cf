"""The programs of an optimizer's sweeps as text: what kernels do to every element."""

from __future__ import annotations

from typing import Any

from untuned.kernels.writer import Writer
from untuned.optimizer.optimizer import Optimizer
from untuned.recipe.symbols import Program, Symbol
from untuned.run.launch import zeros

_INFIX = {"+", "-", "*", "/", "**", "<", "<=", ">", ">=", "==", "&"}


def streams(opt: Optimizer, guard: bool) -> list[str]:
    """What kernels read and write in a step, by key, without corrections that most steps do not need."""
    stages = (s for of_label in opt._launch.stages.values() for s in of_label[not guard :])
    usual = [s.program(zeros(opt.param_groups)) for s in stages if s.program and s.only_changed is None]
    return [key for program in usual for keys in program.streams() for key in keys]


def describe(opt: Optimizer) -> str:
    """The programs of an optimizer's sweeps, with what they read and write."""
    zero = zeros(opt.param_groups)
    found: list[str] = []
    for label, stages in opt._launch.stages.items():
        for i, sweep in enumerate(stages):
            program = sweep.program(zero) if sweep.program else None
            read, written = program.streams() if program else ([], [])
            if not program or (not read and not written):
                continue
            size = 4 * (len(read) + len(written))
            title = "check of the gradients" if i == 0 else f"sweep {len(found)}"
            title += "" if label is None else f" of {label!r}"
            when = "" if sweep.only_changed is None else ", only in steps that change " + sweep.only_changed[0][0][1]
            if any(before.then and before.then[0] is sweep for before in stages):
                when = ", on a CPU for one tensor after the other, while the sweep before has it in the cache"
            what = f"reads {', '.join(read)}" + (f"; writes {', '.join(written)}" if written else "")
            head = f"{title}{when}: {what}; {size} bytes per float32 parameter"
            found.append("\n".join([head, *Text(program).lines]))
    return "\n\n".join(found)


class Text(Writer):
    """A program for people to read."""

    def __init__(self, program: Program) -> None:
        read, written = program.streams()
        super().__init__(program, dict.fromkeys(sorted({*read, *written}), "float32"), [])
        stores = [f"store {key} = {value}" for key, value in self.stores.items()]
        adds = [
            f"{total} += {summand}" if kind == "sum" else f"{total} = max({total}, {summand})"
            for (summand, kind), total in self.totals.items()
        ]
        lines = ["once per chunk", *self.head, "for every element", *self.loads, *self.body, *adds, *stores]
        lines += ["per chunk", *(f"sum {j} = {value}" for j, value in enumerate(self.sums))] if self.sums else []
        self.lines = [line if line.endswith(("chunk", "element")) else f"    {line}" for line in lines if line]

    def expression(self, q: Symbol, args: tuple[Any, ...]) -> str:
        if q.op == "load":
            return f"load {args[0]}"
        if q.op == "scalar":
            kind, key, position = args[0]
            name = key if position is None else f"{key}[{position}]"
            return f"{name} before the step" if kind.endswith("before") else name
        if q.op == "const":
            return f"{args[0]:g}"
        return f"{args[0]} {q.op} {args[1]}" if q.op in _INFIX else f"{q.op}({', '.join(args)})"

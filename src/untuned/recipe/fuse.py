"""From the verbs of a plan to the stages that run, and the three rewrites that save passes over memory.

1. Move ahead: the move joins the sweep whose sums a decision reads, with the numbers from before the step, where that
   decision seldom changes them; a correction follows in the steps that changed them. If the move reads nothing that is
   decided in between, it joins for good.

       accumulate measure | decide | move     ->     accumulate measure move | decide | correct, if d changed

2. Decide in the pass: where every decision is of one tensor alone, a kernel sums, decides and moves tensor by tensor.

       sums of all | decide all | move all    ->     sums, decide, move of one tensor after the other

3. Compensate (`trace.compensated`): x.p of a low-precision parameter is its value and what rounding took from it.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable
from typing import Any

from untuned.parts import fit
from untuned.parts.declare import Number
from untuned.parts.kinds import UNTRACED, WRITERS
from untuned.parts.part import Part
from untuned.parts.place import Frame, Parts
from untuned.recipe.plan import Plan, Verbs
from untuned.recipe.recipe import Recipe
from untuned.recipe.symbols import BEFORE, Column, Program, Symbol, Zeros, leaves, same
from untuned.recipe.trace import Body, Sums, TraceFrame, body, guard, trace

DECAYS = (frozenset[str](), frozenset({"weight_decay"}))  # what programs take as 0: the second if it is 0 everywhere


@dataclasses.dataclass(eq=False)
class Stage:
    """One pass over tensors.

    `run`: what it does to the elements of one tensor, for the reference. `program(zeros)`: the same for kernels, with
    the options named in `zeros` taken as 0, so that less need be read; None if only the reference can do it. `sums`:
    what is reduced. `only_changed`: pairs of columns of the table of scalars, a number now and before the step; the
    stage is only run if one of these numbers has changed. `then`: the next stage, if kernels may run it tensor by
    tensor in the same pass, and the numbers decided in between. `whole`: `run` takes whole tensors, gathered if they
    are sharded. `every`: it sees every n-th element.
    """

    run: Body
    program: Callable[[Zeros], Program] | None
    sums: Sums = dataclasses.field(default_factory=dict)
    only_changed: list[tuple[Column, Column]] | None = None
    then: tuple[Stage, dict[Column, Symbol]] | None = None
    whole: bool = False
    every: int = 1


def stages(recipe: Recipe, parts: Parts, plan: Plan) -> list[list[Stage]]:
    """The stages between the decisions of a plan, for tensors that these parts serve."""
    _check_letters(recipe, parts)
    served = [tuple([v for v in verbs if hasattr(parts.get(v[0]), v[1])] for verbs in sweep) for sweep in plan]
    found = [[_of_verbs(recipe, parts, part) for part in _split(verbs)] for verbs, _ in served]
    for here, (_, deciders) in zip(found, served, strict=True):
        for role, verb in deciders:
            _check_count(parts, role, verb, sum(len(stage.sums.get(role, [])) for stage in here))
    late = [role for role, verb in served[-1][0] if verb == "remember" and not parts["decay"].decoupled]
    stores = [stage.program(DECAYS[0]).stores for of in found[:-1] for stage in of if late and stage.program]
    if any("p" in keys for keys in stores):  # x.g would hold the decay of weights that have moved
        names = [parts[role].name for role in (late[0], "iterate", "decay")]
        raise TypeError(f"{names[0]} cannot use {names[1]} with {names[2]}: decay the weights, as Decoupled does.")
    verbs, deciders = served[-2] if len(served) > 1 else ([], [])
    last, before = served[-1][0], found[-2] if len(found) > 1 else []
    joins = {verb for _, verb in last} <= {"move", "remember"} and [bool(s.program) for s in before] == [True]
    decided = [parts[role] for role, _ in deciders]
    ahead = [one for zeros in DECAYS if joins and (one := _moved_ahead(recipe, parts, last, decided, zeros))]
    if len(ahead) == len(DECAYS):
        changed, whole = ahead[0][1], [*verbs, *last]
        found[-2] = [_of_verbs(recipe, parts, whole, verbs if changed else whole)]
        correction = Stage(body(last), lambda zeros: ahead["weight_decay" in zeros][0], only_changed=changed)
        found[-1] = [correction] if changed else []
        return found
    for (here, after), (_, deciders) in zip(itertools.pairwise(found), served[:-1], strict=True):
        if here and here[-1].sums and after and after[0].program and not after[0].sums:
            numbers = decided_in_pass(recipe, parts, deciders, here[-1].sums)
            here[-1].then = (after[0], numbers) if numbers and after[0].program(DECAYS[0]).stores else None
    return found


class OptionOfGroups:
    """What self.lr is while verbs are checked: only x.lr knows the value of each group."""


def _check_letters(recipe: Recipe, parts: Parts) -> None:
    """Run every verb on symbols, also those that no other part asks for: what does not exist raises here."""
    for role, part in parts.items():
        checked = copy.copy(part)
        for key in part.hypers():
            setattr(checked, key, OptionOfGroups())
        for verb in (v for v in fit.kind_of(part).verbs if hasattr(part, v) and v not in UNTRACED):
            frame = TraceFrame(recipe, parts | {role: checked})
            frame.reads_only, frame.at = verb not in WRITERS, (role, verb)
            others = [Symbol("load", "g")] * (len(inspect.signature(getattr(part, verb)).parameters) - 1)
            trace(frame, functools.partial(_run_alone, role, verb, others))


def _run_alone(role: str, verb: str, others: list[Symbol], frame: Frame) -> Sums:
    getattr(frame.parts[role], verb)(frame.place(role), *others)
    return {}


def _split(verbs: Verbs) -> list[Verbs]:
    """Matrix math needs whole tensors: it stands alone between sweeps."""
    groups = itertools.groupby(verbs, lambda v: v[1] == "reform")
    return [list(group) for _, group in groups]


def _of_verbs(recipe: Recipe, parts: Parts, by_kernels: Verbs, by_reference: Verbs | None = None) -> Stage:
    if by_kernels[0][1] == "reform":
        return Stage(body(by_kernels), None, whole=True)
    every = recipe.every if by_kernels == [("step_size", "measure")] else 1
    traced = lambda zeros: trace(TraceFrame(recipe, parts, zeros), body(by_kernels))  # noqa: E731
    return Stage(body(by_reference or by_kernels), traced if every == 1 else None, traced(DECAYS[0]).sums, every=every)


def _check_count(parts: Parts, role: str, by: str, given: int) -> None:
    if (takes := len(inspect.signature(getattr(parts[role], by)).parameters) - 1) != given:
        name, verb = parts[role].name, "look" if role.split()[0] in ("direction", "gradient") else "measure"
        verb = "watch" if by == "record" else verb
        sums, these = f"{takes} sum" + "s" * (takes != 1), f"{given} sum" + "s" * (given != 1)
        if not hasattr(parts[role], verb):
            raise TypeError(f"{name}: its {by!r} takes {sums} and there is no {verb!r}. Add it.")
        raise TypeError(f"{name}: its {verb!r} returns {these} and its {by!r} takes {takes}. They must be as many.")


def guard_stage(recipe: Recipe) -> Stage:
    run = guard(clips=recipe.clip_grad_norm is not None)
    program = trace(TraceFrame(recipe, recipe.parts), run)
    return Stage(run, lambda zeros: program, program.sums)


class _Decision(TraceFrame):
    """A decision of one tensor, whose numbers are symbols."""

    where = "'decide'"

    def number(self, part: Part, declared: Number) -> Any:
        if declared.size:
            raise TypeError(declared.key)
        return self.fresh[declared.key] if declared.key in self.fresh else super().number(part, declared)

    def write(self, part: Part, name: str, value: Any) -> None:
        key, value = self.written(part, name, Number), Symbol.lift(value)
        finite = value.call("<", value.call("abs", value), float("inf"))
        self.fresh[key] = value.call("where", finite, value, self.read(part, name))


def decided_in_pass(recipe: Recipe, parts: Parts, deciders: Verbs, sums: Sums) -> dict[Column, Symbol] | None:
    """What decisions make of the sums of a sweep, as columns of a table; None unless each is of one tensor alone."""
    if not deciders or any(parts[role].scope != "tensor" for role, _ in deciders):
        return None
    numbered = itertools.count()
    given = {role: [Symbol("sum", next(numbered), one.kind) for one in ones] for role, ones in sums.items()}
    frame = _Decision(recipe, parts)
    with contextlib.suppress(Exception):  # it needs torch or the loss: then it runs between two passes
        for role, verb in deciders:
            getattr(parts[role], verb)(frame.place(role), *given.get(role, []))
        return {("each", key, None): value for key, value in frame.fresh.items()}
    return None


def _moved_ahead(
    recipe: Recipe, parts: Parts, last: Verbs, decided: list[Part], zeros: Zeros
) -> tuple[Program, list[tuple[Column, Column]]] | None:
    """What is left to do if the last sweep goes ahead of the decisions of these parts, into that whose sums they read.

    That is a program that puts into p what the decisions changed, and the numbers it depends on, as columns of a table,
    now and before the step; none if the decisions change nothing that the move reads. None if the move cannot go ahead:
    it can if the numbers seldom change, it is affine in the step, and neither the decay nor, by way of the weights, the
    direction depends on them.
    """
    iterate = parts["iterate"]

    def moved(p: Symbol, before: list[Part]) -> tuple[Program, Symbol]:
        frame = TraceFrame(recipe, parts, zeros, before)
        frame.fresh["p"] = p
        return trace(frame, body(last)), Symbol.lift(frame.read(iterate, "rate"))

    (now, rate), (then, rate_then) = (moved(Symbol("load", "p"), before) for before in ([], decided))
    if all(same(value, then.stores[key]) for key, value in now.stores.items()):
        return Program({}, {}), []
    rows = {leaf.args[0] for leaf in leaves(now.stores.values()) if leaf.op == "scalar"}
    numbers = {n.key: n for part in decided for n in part.numbers().values()}
    changed = sorted(row for row in rows if row[0] in BEFORE and row[1] in numbers)
    direction = leaves([Symbol.lift(TraceFrame(recipe, parts, zeros).read(iterate, "u"))])
    follows = any(role.startswith("around") for role in parts) or not same(rate, rate_then)
    follows = follows or any(leaf.op == "load" and leaf.args[0] == "p" for leaf in direction)
    if follows or {*now.stores} != {"p"} or not (iterate.affine and all(numbers[key].seldom for _, key, _ in changed)):
        return None
    new, old = (moved(Symbol("const", 0.0), before)[0].stores["p"] for before in ([], decided))
    corrected = new.call("+", Symbol("load", "p"), new.call("-", new, old))
    return Program({"p": corrected}, {}), [(row, (BEFORE[row[0]], *row[1:])) for row in changed]

"""Verdicts by rules written down before the runs, `[[rules]]` of a study's file, and on its `[claim]`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from untuned.study import widths
from untuned.study.aggregate import Estimate
from untuned.study.config import ClaimEntry, RuleEntry
from untuned.study.results import Results, TaskResult
from untuned.study.rules import Rule, Verdict
from untuned.study.stats import Floats, Outcome, best, seed_mean

ClaimVerdict = Literal["holds here", "does not hold here", "cannot be told at this scale"]
_LR = {"default": "its default lr", "best": "its best lr of the grid"}


@dataclass(frozen=True)
class Decision:
    """What a rule says of the runs so far."""

    entry: RuleEntry
    rule: Rule
    estimate: Estimate | None  # None without a run of both
    verdict: Verdict

    @property
    def sentence(self) -> str:
        """One line for people."""
        a, b = self.entry.method, self.entry.against
        if self.entry.statistic == "width":
            said = {
                "better": f"the range of good learning rates of {a} is wider than that of {b}",
                "worse": f"the range of good learning rates of {a} is narrower than that of {b}",
                "no difference of more than the margin": (
                    f"the ranges of good learning rates of {a} and {b} differ by no more than {self.rule.margin:g} "
                    "decades"
                ),
                "cannot be told": f"whether the range of good learning rates of {a} is wider than that of {b} "
                "cannot be told",
            }[self.verdict]
            return f"{said} ({self._said()})"
        one, other = self.entry.at, self.entry.against_at or self.entry.at
        where = f"each at {_LR[one]}" if one == other else f"{a} at {_LR[one]}, {b} at {_LR[other]}"
        said = {
            "better": f"{a} is better than {b}",
            "worse": f"{a} is worse than {b}",
            "no difference of more than the margin": f"{a} and {b} differ by no more than {self.rule.margin:g}",
            "cannot be told": f"whether {a} is better than {b} cannot be told",
        }[self.verdict]
        return f"{said}, {where} ({self._said()})"

    @property
    def interval(self) -> tuple[float, float] | None:
        return self.estimate.interval if self.estimate else None

    @property
    def numbers(self) -> tuple[float, float, float]:
        """The estimate and the ends of its interval, NaN where there is none."""
        value = math.nan if self.estimate is None else self.estimate.value
        low, high = self.interval or (math.nan, math.nan)
        return value, low, high

    def says(self, claim: ClaimEntry) -> ClaimVerdict:
        """What the interval makes of a claim: it may leave open only verdicts for which it holds, or only others."""
        left = self.rule.regions(self.interval)
        if left <= {*claim.holds}:
            return "holds here"
        return "cannot be told at this scale" if left & {*claim.holds} else "does not hold here"

    def _said(self) -> str:
        value, low, high = self.numbers
        if math.isnan(value):
            return "no runs"
        span = "" if math.isnan(low) else f", {100 * self.rule.level:g} % interval {low:.3g} to {high:.3g}"
        if self.entry.statistic == "width":
            return f"difference {value:.3g} decades as far as the grids reach{span}"
        return f"{'probability' if self.rule.statistic == 'probability' else 'difference'} {value:.3g}{span}"


def decide(results: Results) -> list[Decision]:
    """A decision for each rule of the study."""
    return [decide_on(results, entry, results.tasks) for entry in results.study.rules]


def decide_claim(results: Results) -> ClaimVerdict | None:
    """The claim holds if every rule supports it, and does not if any contradicts it; None if the study has no claim."""
    claim = results.study.claim
    if claim is None:
        return None
    said = {decision.says(claim) for decision in decide(results)}
    if "does not hold here" in said:
        return "does not hold here"
    return "holds here" if said == {"holds here"} else "cannot be told at this scale"


def decide_on(results: Results, entry: RuleEntry, tasks: Sequence[TaskResult]) -> Decision:
    """What a rule says on some of the study's tasks; a verdict about tasks like these needs more than one."""
    several = len(tasks) > 1 and entry.over == "tasks"
    if entry.statistic == "width":
        rule = widths.WidthRule("mean", entry.margin, entry.level, higher_is_better=True, tasks=several)
        estimate = widths.compare(tasks, entry.method, entry.against, rule)
        return Decision(entry, rule, estimate, rule.judge(estimate and estimate.interval))
    rule = Rule(entry.statistic, entry.margin, entry.level, higher_is_better=True, tasks=several)
    sides = ((entry.method, entry.at), (entry.against, entry.against_at or entry.at))
    pairs = [[_scores(results, task, method, at) for method, at in sides] for task in tasks]
    a, b = (np.array([pair[side] for pair in pairs]) for side in (0, 1))
    both = ~(np.isnan(a) | np.isnan(b)).all(axis=1)
    if not both.any():
        return Decision(entry, rule, None, "cannot be told")
    estimate = rule.estimate(a[both], b[both])
    return Decision(entry, rule, estimate, rule.judge(estimate.interval))


def row_of(results: Results, outcome: Outcome, at: str, maximize: bool) -> int | None:
    """Which of the outcome's learning rates counts: the best of the grid or the method's default; None without it."""
    if at == "best":
        return best(seed_mean(outcome.finals), maximize)
    usual = next(m.default_lr for m in results.study.methods if m.label == outcome.method)
    return outcome.lrs.index(usual) if usual in outcome.lrs else None


def _scores(results: Results, task: TaskResult, method: str, at: str) -> Floats:
    """The metric of one method by seed, where 0 is chance and 1 the best mean of the study on the task."""
    nothing = np.full(len(results.study.seeds), np.nan)
    top = max((abs(s.mean - task.metric.chance) for s in task.summaries if not np.isnan(s.mean)), default=0.0)
    outcome = next(o for o in task.outcomes if o.method == method)
    row = row_of(results, outcome, at, task.metric.maximize)
    if row is None or top == 0:
        return nothing
    sign = 1 if task.metric.maximize else -1
    return sign * (outcome.finals[row] - task.metric.chance) / top

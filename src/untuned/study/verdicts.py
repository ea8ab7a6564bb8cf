"""Verdicts on two methods of a study by rules written down before the runs: `[[rules]]` of a study's file."""

import math
from dataclasses import dataclass

import numpy as np

from untuned.study.aggregate import Estimate, Rule, Verdict
from untuned.study.config import RuleEntry
from untuned.study.results import Results, TaskResult
from untuned.study.stats import Floats, Outcome, best, seed_mean


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
        where = "at its default lr" if self.entry.at == "default" else "at its best lr of the grid"
        said = {
            "better": f"{self.entry.method} is better than {self.entry.against}",
            "worse": f"{self.entry.method} is worse than {self.entry.against}",
            "no difference of more than the margin": (
                f"{self.entry.method} and {self.entry.against} differ by no more than {self.rule.margin:g}"
            ),
            "cannot be told": f"whether {self.entry.method} is better than {self.entry.against} cannot be told",
        }[self.verdict]
        return f"{said}, each {where} ({self._said()})"

    @property
    def numbers(self) -> tuple[float, float, float]:
        """The estimate and the ends of its interval, NaN where there is none."""
        value = math.nan if self.estimate is None else self.estimate.value
        low, high = (self.estimate.interval if self.estimate else None) or (math.nan, math.nan)
        return value, low, high

    def _said(self) -> str:
        value, low, high = self.numbers
        if math.isnan(value):
            return "no runs"
        span = "" if math.isnan(low) else f", {100 * self.rule.level:g} % interval {low:.3g} to {high:.3g}"
        what = "probability" if self.rule.statistic == "probability" else "difference"
        return f"{what} {value:.3g}{span}"


def decide(results: Results) -> list[Decision]:
    """A decision for each rule of the study."""
    return [_decide(results, entry) for entry in results.study.rules]


def _decide(results: Results, entry: RuleEntry) -> Decision:
    # A verdict about tasks like these needs more than one.
    rule = Rule(entry.statistic, entry.margin, entry.level, higher_is_better=True, tasks=len(results.tasks) > 1)
    pairs = [
        [_scores(results, task, method, entry.at) for method in (entry.method, entry.against)] for task in results.tasks
    ]
    a, b = (np.array([pair[side] for pair in pairs]) for side in (0, 1))
    both = ~(np.isnan(a) | np.isnan(b)).all(axis=1)
    if not both.any():
        return Decision(entry, rule, None, "cannot be told")
    return Decision(entry, rule, rule.estimate(a[both], b[both]), rule.verdict(a[both], b[both]))


def _scores(results: Results, task: TaskResult, method: str, at: str) -> Floats:
    """The metric of one method by seed, where 0 is chance and 1 the best mean of the study on the task."""
    nothing = np.full(len(results.study.seeds), np.nan)
    top = max((abs(s.mean - task.metric.chance) for s in task.summaries if not np.isnan(s.mean)), default=0.0)
    outcome = next(o for o in task.outcomes if o.method == method)
    row = _row(results, outcome, at, task.metric.maximize)
    if row is None or top == 0:
        return nothing
    sign = 1 if task.metric.maximize else -1
    return sign * (outcome.finals[row] - task.metric.chance) / top


def _row(results: Results, outcome: Outcome, at: str, maximize: bool) -> int | None:
    """Which learning rate counts."""
    if at == "best":
        return best(seed_mean(outcome.finals), maximize)
    usual = next(m.default_lr for m in results.study.methods if m.label == outcome.method)
    return outcome.lrs.index(usual) if usual in outcome.lrs else None

"""Verdicts by rules fixed beforehand, on studies whose results are known."""

import csv
import json
from pathlib import Path

import pytest

from untuned.study import report, results, verdicts
from untuned.study.config import RuleEntry, parse_methods
from untuned.study.resolve import resolve
from untuned.study.runner import Result
from untuned.study.store import Store


def decided(folder: Path, accuracies: dict[tuple[str, float], list[float]], **rule: object) -> verdicts.Decision:
    """A study of two methods at two learning rates on one task with these accuracies by seed, chance .25."""
    entry = RuleEntry.model_validate({"method": "adam", "against": "sgd", **rule})
    seeds = len(next(iter(accuracies.values())))
    study = resolve(["tiny:Line"], parse_methods("adam,sgd"), ("default", 0.3), seeds, rules=[entry])
    store = Store.create(folder, study)
    with store.writing():
        for run in study.runs():
            values = accuracies.get((run.method, run.lr))
            if values is not None:
                store.start(run)
                store.finish(run, Result("done", final={"val_loss": 1.0, "val_accuracy": values[run.seed]}))
    [decision] = verdicts.decide(results.load(folder))
    return decision


def test_scores_are_parts_of_the_way_from_chance_to_the_best(tmp_path: Path) -> None:
    accuracies = {("adam", 1e-3): [0.75, 0.75], ("sgd", 1e-3): [0.5, 0.5], ("sgd", 0.3): [1.0, 1.0]}
    decision = decided(tmp_path / "s", accuracies)
    assert decision.numbers == pytest.approx((0.5 / 0.75 - 0.25 / 0.75,) * 3)  # the best mean is 1.0, of sgd at 0.3
    assert decision.verdict == "better"
    assert decision.sentence.startswith("adam is better than sgd, each at its default lr (difference 0.333, 95 %")


def test_the_best_of_the_grid_counts_where_the_rule_says_so(tmp_path: Path) -> None:
    accuracies = {("adam", 1e-3): [0.75, 0.75], ("sgd", 1e-3): [0.5, 0.5], ("sgd", 0.3): [1.0, 1.0]}
    decision = decided(tmp_path / "s", accuracies, at="best")
    assert decision.verdict == "worse"
    assert decision.numbers[0] == pytest.approx(0.5 / 0.75 - 1)


def test_within_the_margin_and_undecided(tmp_path: Path) -> None:
    near = {("adam", 1e-3): [0.75, 0.74, 0.76], ("sgd", 1e-3): [0.75, 0.75, 0.75]}
    assert decided(tmp_path / "a", near, margin=0.05).verdict == "no difference of more than the margin"
    assert decided(tmp_path / "b", near).verdict == "cannot be told"


def test_without_runs_of_both_nothing_can_be_told(tmp_path: Path) -> None:
    decision = decided(tmp_path / "s", {("adam", 1e-3): [0.75, 0.75]})
    assert (decision.verdict, decision.estimate) == ("cannot be told", None)
    assert "no runs" in decision.sentence


def test_the_report_and_its_tables_have_the_verdict(tmp_path: Path) -> None:
    decided(tmp_path / "s", {("adam", 1e-3): [0.75, 0.75], ("sgd", 1e-3): [0.5, 0.5]}, margin=0.1)
    page = report.write(tmp_path / "s").read_text()
    assert "adam is better than sgd" in page
    [row] = csv.DictReader((tmp_path / "s" / "tables" / "verdicts.csv").read_text().splitlines())
    assert (row["verdict"], float(row["margin"]), float(row["value"])) == ("better", 0.1, 0.5)
    assert json.loads((tmp_path / "s" / "study.json").read_text())["rules"][0]["margin"] == 0.1

"""Claims of the papers: the page says what its runs say, and the rules that decide them."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from untuned.study import results, verdicts
from untuned.study.cli import app
from untuned.study.config import ClaimEntry, RuleEntry, parse_methods
from untuned.study.resolve import resolve
from untuned.study.results import Results

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import claims_page

SAME = "no difference of more than the margin"
RATES = (1e-3, 1e-2, 1e-1, 1.0)


def claim(*holds: str) -> ClaimEntry:
    return ClaimEntry.model_validate({"text": "it is", "source": "a paper", "date": "2026-11-28", "holds": holds})


def study(
    adam: list[list[float]], sgd: list[list[float]], *rules: Mapping[str, object], holds: str = "better"
) -> Results:
    """Results of adam and sgd on tiny:Line, chance .25: accuracies by learning rate of RATES and seed."""
    entries = [RuleEntry.model_validate({"method": "adam", "against": "sgd", **rule}) for rule in rules]
    asked = resolve(["tiny:Line"], parse_methods("adam,sgd"), RATES, len(adam[0]), rules=entries, claim=claim(holds))
    values = {
        ("tiny:Line", method, lr, seed): value
        for method, by_lr in (("adam", adam), ("sgd", sgd))
        for lr, by_seed in zip(RATES, by_lr, strict=True)
        for seed, value in enumerate(by_seed)
    }
    return results.of_values(asked, values)


def twice(*by_lr: float) -> list[list[float]]:
    """The same result with both seeds."""
    return [[value, value] for value in by_lr]


# ---------------------------------------------------------------- the width of the range of good learning rates

WIDTH = {"statistic": "width", "margin": 0.5}


def test_a_width_is_what_one_computes_by_hand() -> None:
    # adam: two rates at .8, and on each side the line from .8 to .5 passes .78 after 1/15 of a decade. sgd: one rate.
    found = study(twice(0.5, 0.8, 0.8, 0.5), twice(0.5, 0.8, 0.5, 0.5), WIDTH)
    [decision] = verdicts.decide(found)
    assert decision.numbers == pytest.approx(((1 + 2 / 15) - 2 / 15,) * 3)
    assert decision.verdict == "better"
    assert decision.sentence.startswith(
        "the range of good learning rates of adam is wider than that of sgd (difference 1"
    )
    assert "wider than the other's if the 95 % interval of the difference in decades lies above 0.5" in str(
        decision.rule
    )


def test_a_range_that_its_grid_cuts_is_a_lower_bound() -> None:
    [wide] = verdicts.decide(study(twice(0.5, 0.5, 0.8, 0.8), twice(0.5, 0.8, 0.5, 0.5), WIDTH))
    assert wide.numbers == pytest.approx((1 + 1 / 15 - 2 / 15, 1 + 1 / 15 - 2 / 15, np.inf))
    assert wide.verdict == "better"
    [cut] = verdicts.decide(study(twice(0.5, 0.8, 0.8, 0.5), twice(0.8, 0.5, 0.5, 0.5), WIDTH))
    assert cut.numbers == pytest.approx((1 + 2 / 15 - 1 / 15, -np.inf, 1 + 2 / 15 - 1 / 15))
    assert cut.verdict == "cannot be told"
    [both] = verdicts.decide(study(twice(0.5, 0.5, 0.8, 0.8), twice(0.8, 0.5, 0.5, 0.5), WIDTH))
    assert both.numbers[1:] == (-np.inf, np.inf)


def test_a_method_that_learned_nothing_has_no_width() -> None:
    [decision] = verdicts.decide(study(twice(0.5, 0.8, 0.8, 0.5), twice(0.26, 0.25, 0.25, 0.25), WIDTH))
    assert decision.numbers[0] == pytest.approx(1 + 2 / 15)


def test_the_width_varies_with_the_seeds_that_are_drawn() -> None:
    # Seed 0 of adam is good at two rates, seed 1 at one; drawn twice each they are the ends of the interval.
    adam = [[0.5, 0.5], [0.8, 0.8], [0.8, 0.5], [0.5, 0.5]]
    [decision] = verdicts.decide(study(adam, twice(0.5, 0.8, 0.5, 0.5), WIDTH))
    value, low, high = decision.numbers
    assert (low, high) == pytest.approx((0, 1))
    assert value == pytest.approx((1 / 15 + 2 / 15) - 2 / 15)  # the line from .8 to .65, their mean, passes .78 later
    assert decision.verdict == "cannot be told"


def test_without_runs_of_both_no_width_can_be_told() -> None:
    asked = study(twice(0.5, 0.8, 0.8, 0.5), twice(0.5, 0.8, 0.5, 0.5), WIDTH).study
    [decision] = verdicts.decide(results.of_values(asked, {("tiny:Line", "adam", 1e-3, 0): 0.5}))
    assert (decision.estimate, decision.verdict) == (None, "cannot be told")


# ---------------------------------------------------------------- what rules make of a claim


def test_a_rule_may_hold_a_default_against_the_best_of_a_grid() -> None:
    found = study(twice(0.7, 0.8, 0.9, 0.5), twice(0.5, 0.8, 0.5, 0.5), {"against_at": "best"}, {"at": "best"})
    default, best = verdicts.decide(found)
    top = 0.9 - 0.25
    assert default.numbers[0] == pytest.approx((0.7 - 0.8) / top)
    assert best.numbers[0] == pytest.approx((0.9 - 0.8) / top)
    assert "adam at its default lr, sgd at its best lr of the grid" in default.sentence
    assert verdicts.decide_claim(found) == "does not hold here"  # one rule contradicts it


HIGH, LOW = twice(0.5, 0.9, 0.5, 0.5), twice(0.5, 0.7, 0.5, 0.5)
MIXED = [[0.5, 0.5], [0.9, 0.5], [0.5, 0.5], [0.5, 0.5]]  # beside LOW: better and worse
NEAR = [[0.5, 0.5], [0.705, 0.73], [0.5, 0.5], [0.5, 0.5]]  # beside LOW: within the margin of .05, and better


@pytest.mark.parametrize(
    ("adam", "holds", "verdict"),
    [
        (HIGH, ("better",), "holds here"),
        (HIGH, ("better", SAME), "holds here"),
        (HIGH, (SAME,), "does not hold here"),
        (LOW, ("better",), "does not hold here"),
        (LOW, ("better", SAME), "holds here"),
        (MIXED, ("better",), "cannot be told at this scale"),
        (NEAR, ("better", SAME), "holds here"),  # the rule alone cannot tell which of the two
        (NEAR, ("better",), "cannot be told at this scale"),
        (NEAR, ("worse",), "does not hold here"),
    ],
)
def test_a_claim_holds_if_the_interval_leaves_open_only_its_verdicts(
    adam: list[list[float]], holds: tuple[str, ...], verdict: str
) -> None:
    margin = 0.02 if adam is NEAR else 0.05
    [decision] = verdicts.decide(study(adam, LOW, {"at": "best", "margin": margin}))
    assert decision.says(claim(*holds)) == verdict


def test_every_rule_of_a_claim_has_to_hold() -> None:
    better, little = {"at": "best"}, {"at": "best", "margin": 0.5}
    assert verdicts.decide_claim(study(HIGH, LOW, better)) == "holds here"
    assert verdicts.decide_claim(study(HIGH, LOW, better, better)) == "holds here"
    assert verdicts.decide_claim(study(MIXED, LOW, better)) == "cannot be told at this scale"
    assert verdicts.decide_claim(study(HIGH, LOW, better, little)) == "does not hold here"  # no more than .5
    turned = {"method": "sgd", "against": "adam", "at": "best"}
    assert verdicts.decide_claim(study(MIXED, LOW, better, turned)) == "cannot be told at this scale"
    assert verdicts.decide_claim(study(HIGH, LOW, better, turned)) == "does not hold here"


def test_the_command_ends_with_the_verdict_on_the_claim(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text(
        "tasks = ['tiny:Line']\nmethods = ['sgd(lr=0.03)', 'adam(lr=1e-6)']\nseeds = 2\n"
        "[claim]\ntext = 'SGD learns'\nsource = 'a paper'\ndate = 2026-11-28\nholds = ['better']\n"
        "[[rules]]\nmethod = 'sgd'\nagainst = 'adam'\n"
        "at = 'best'\n"
    )
    result = CliRunner().invoke(app, ["compare", str(file), "--workers", "1", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    verdict = verdicts.decide_claim(results.load(tmp_path / "out"))
    assert f"claim: SGD learns (a paper): {verdict}\n" in result.output


def test_a_rule_about_these_tasks_draws_seeds_alone() -> None:
    entries = [
        RuleEntry.model_validate({"method": "adam", "against": "sgd", "at": "best", "over": over})
        for over in ("tasks", "seeds")
    ]
    tasks = ["tiny:Line", "tiny:Slow"]
    asked = resolve(tasks, parse_methods("adam(lr=0.1),sgd(lr=0.1)"), (), 2, rules=entries, claim=claim("better"))
    lead = {"tiny:Line": 0.4, "tiny:Slow": -0.1}  # the tasks disagree, the seeds do not
    values = {
        (task, method, 0.1, seed): 0.5 + (lead[task] if method == "adam" else 0.0)
        for task in tasks
        for method in ("adam", "sgd")
        for seed in (0, 1)
    }
    these, those = verdicts.decide(results.of_values(asked, values))[::-1]
    assert (these.verdict, those.verdict) == ("better", "cannot be told")
    assert these.numbers[1] == these.numbers[2] == pytest.approx(these.numbers[0])


# ---------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict[str, str]]]:
    return claims_page.read()


def test_every_claim_has_all_of_its_runs_and_rules_from_before(rows: dict[str, list[dict[str, str]]]) -> None:
    assert rows.keys() == {*claims_page.names()}
    for name in claims_page.names():
        asked = claims_page.asked(name)
        assert asked.claim is not None and asked.rules, name
        there = {(row["task"], row["method"], float(row["lr"]), int(row["seed"])) for row in rows[name]}
        wanted = {(run.task, run.label, run.lr, run.seed) for run in asked.runs()}
        assert there >= wanted, name
        found = claims_page.decided(name, rows[name])  # tuning adds learning rates, each for every seed
        assert there == {(run.task, run.label, run.lr, run.seed) for run in found.runs}, name
        assert len(rows[name]) == len(there)
        assert all(row["day"] >= f"{asked.claim.date}" for row in rows[name]), name


def test_the_page_says_what_its_runs_say(rows: dict[str, list[dict[str, str]]]) -> None:
    page = claims_page.PAGE.read_text(encoding="utf-8")
    assert page == claims_page.page(rows), "run: python scripts/claims_page.py"
    for name in claims_page.names():
        [line] = [line for line in page.splitlines() if f"](#{name})" in line]
        assert re.search(r"\*\*(holds here|does not hold here|cannot be told at this scale)\*\*", line), line


def test_rules_are_written_as_inequalities() -> None:
    def said(*holds: str, **rule: object) -> str:
        return claims_page.rule_text(RuleEntry.model_validate({"method": "a", "against": "b", **rule}), claim(*holds))

    assert said("better") == "a (default) - b (default) > 0"
    assert said("better", SAME, against_at="best", margin=0.02) == "a (default) - b (best) >= -0.02"
    assert said(SAME, margin=0.1) == "a (default) - b (default) from -0.1 to 0.1"
    assert said("better", over="seeds", at="best") == "a (best) - b (best) > 0; these tasks"
    assert said("better", statistic="probability") == "probability that a (default) beats b (default) > 0.5"
    assert said("worse", at="best") == "a (best) - b (best) < 0"
    assert said("better", statistic="width", margin=0.25) == "decades of a - decades of b > 0.25"
    assert claims_page.short("sgd(schedule=refined('a.csv', sha256='00'))") == "sgd(schedule=refined)"

"""The study of the marginal value of momentum: its runs, what it asks for, and that its rules can say either."""

from functools import cache

import numpy as np
import pytest
from matplotlib.figure import Figure

from untuned.study.papers import marginal_value as study
from untuned.study.papers.frame import Row, Rows


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of a few steps."""
    monkeypatch.setattr(study, "SETTINGS", {n: study.Setting(s.title, 8, 4, s.etas) for n, s in study.SETTINGS.items()})
    monkeypatch.setattr(study, "MIXED", study.Setting("SVAG", 8, 10, (0.5,)))


@cache
def laboratory() -> list[Row]:
    return study.laboratory()


def made_up(gain: dict[str, float], ratio: float, left: float) -> Rows:
    """Rows as the jobs give them: `gain` points of momentum by setting, `ratio` of its loss, `left` of the gap."""
    found: dict[str, list[Row]] = {"laboratory": laboratory(), "sweep": [], "svag": []}

    def add(job) -> None:
        a = job.arguments
        noise = 0.01 * np.random.default_rng([a.get("seed", 0), int(100 * a.get("beta", 0))]).standard_normal()
        if job.function is study.sweep:
            peak = 0.2 if a["eta"] == 0.2 else 0.0
            top = gain[a["setting"]] if a["beta"] == 0.9 else 0.0
            loss = 0.4 * (ratio if a["beta"] == 0.9 else 1.0) * (1 - peak)
            found["sweep"].append({**a, "val_accuracy": 80 + top + 5 * peak + noise, "train_loss": loss + noise / 10})
        if job.function is study.svag:
            gap = 0.2 * (1.0 if a["l"] == 1 else left) * (a["beta"] == 0)
            found["svag"] += [{**a, "time": 5.0 * k, "train_loss": 0.5 + gap + noise / 10} for k in range(1, 21)]

    asked = study.jobs(3, {})
    for job in asked:
        add(job)
    for job in study.jobs(3, found)[len(asked) :]:
        add(job)
    return found


def verdicts(rows: Rows) -> list[str]:
    return [claim.verdict for claim in study.claims(rows)]


def test_the_rules_can_say_either() -> None:
    yes, no = "holds here", "does not hold here"
    assert verdicts(made_up({"small": 0.2, "large": 0.2}, 0.95, 0.1)) == [yes] * 7
    assert verdicts(made_up({"small": 0.2, "large": 3.0}, 0.5, 0.9)) == [yes, yes, no, no, no, no, no]


def test_the_second_round_has_fresh_seeds_at_the_best_learning_rates() -> None:
    rows = made_up({"small": 0.2, "large": 0.2}, 0.95, 0.1)
    fresh = [job.arguments for job in study.jobs(3, rows) if job.arguments.get("seed", 0) >= study.FRESH]
    assert {a["eta"] for a in fresh} == {0.2} and {a["beta"] for a in fresh} == {0.0, 0.9}
    assert len({a["seed"] for a in fresh}) == 30


def test_the_page_can_be_drawn() -> None:
    rows = made_up({"small": 0.2, "large": 0.2}, 0.95, 0.1)
    for title, draw in study.panels(rows):
        draw(axes := Figure().subplots())
        assert title and axes.get_xlabel() and axes.get_ylabel()
    for table in study.tables(rows):
        assert all(len(line) == len(table.columns) for line in table.rows)
    assert any("0.362" in line for line in study.tables(rows)[0].rows)


@pytest.mark.usefixtures("short")
def test_runs_are_seeded_and_coupled() -> None:
    one, again, other = (study.sweep(setting="small", eta=0.1, beta=0.9, seed=s) for s in (3, 3, 4))
    assert one == again != other
    assert study.sweep(setting="small", eta=1e6, beta=0.0, seed=3)[0]["train_loss"] == pytest.approx(np.log(10))
    times = [row["time"] for row in study.svag(beta=0.0, l=2, seed=3)]
    assert times == [5.0, 10.0]

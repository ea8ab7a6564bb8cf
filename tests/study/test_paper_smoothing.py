"""The study of momentum as smoothing: its runs, what it asks for, and that its rules can say either."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from untuned.study.papers import smoothing as study
from untuned.study.papers import smoothing_runs as runs
from untuned.study.papers.frame import Row, Rows


def made_up(tight: float, share: float, same: bool, C2: float, gain: float) -> Rows:
    """Rows as the jobs give them: measured delta / bound, the share of K^2, the critical route's C2, gain in points."""
    found: dict[str, list[Row]] = {"noise": [], "steps_to_goal": [], "schedule": []}

    def add(job) -> None:
        a = job.arguments
        noise = 0.01 * np.random.default_rng(a["seed"]).standard_normal()
        if job.function is runs.noise:
            bound = 100 * (1 - a["beta"]) ** -2 if a["kind"] == "shb" or not same else 100.0
            lr = 0.05 * ((1 - a["beta"]) if a["kind"] == "shb" else 1.0)
            total = bound * (tight + noise) ** 2
            parts = {"bias": 0.5 * total, "variance": 0.6 * total, "cross": -0.1 * total}
            exact = {"exact_gradient": total, "exact_noise": 0.1 * total, "C2": 50.0, "gradient": 1.0, "K": 2.0}
            row = {"lr": lr, "total": total, "bound": bound, "bound_share": share + noise, **parts, **exact}
            found["noise"].append({**a, **row})
        if job.function is runs.steps_to_goal:
            reached = None if a["batch"] < 16 else 300  # so 16 is critical, C2 = 16 / 0.2
            found["steps_to_goal"].append({**a, "steps": reached, "C2": C2 + noise})
        if job.function is runs.schedule:
            better = gain if a["method"] in ("lr", "batch", "beta") else 0.0
            row = {"val_accuracy": 80 + better + noise * (1 + (a["method"] == "lr")), "train_loss": 0.2}
            row |= {"steps": 900, "batch": 32, "beta_at_end": 0.9, "reached": None if a["method"] == "linear" else 1.0}
            found["schedule"].append({**a, **row})

    asked = runs.jobs(3, {})
    for job in asked:
        add(job)
    for job in runs.jobs(3, found)[len(asked) :]:
        add(job)
    return found


def test_the_rules_can_say_either() -> None:
    yes, no = "holds here", "does not hold here"

    def verdicts(*args: float) -> list[str]:
        return [claim.verdict for claim in study.claims(made_up(*args))]

    assert verdicts(0.7, 0.9, True, 50.0, 1.0) == [yes] * 11
    assert verdicts(1.3, 0.2, False, 1.0, -1.0) == [no] * 11
    assert verdicts(0.1, 0.9, True, 50.0, 1.0)[:3] == [yes, no, yes]


def test_the_page_can_be_drawn() -> None:
    rows = made_up(0.7, 0.9, True, 50.0, 1.0)
    for title, draw in study.panels(rows):
        draw(axes := Figure().subplots())
        assert title and axes.get_xlabel()
    for table in study.tables(rows):
        assert all(len(line) == len(table.columns) for line in table.rows)


def test_the_two_forms_of_momentum_take_the_same_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the coupled learning rate, but for the first steps, in which torch's buffer has no dampening yet."""
    monkeypatch.setattr(runs, "SETTLE", 60)
    monkeypatch.setattr(runs, "SKIP", 2)
    monkeypatch.setattr(runs, "WINDOW", 3)
    heavy, averaged = (runs.noise(kind=kind, beta=0.5, batch=64, seed=5)[0] for kind in ("shb", "nshb"))
    assert heavy["gradient"] == pytest.approx(averaged["gradient"], rel=0.5)
    assert heavy["lr"] == pytest.approx(0.025) and averaged["lr"] == 0.05
    assert heavy["variance"] == pytest.approx(4 * averaged["variance"], rel=0.5)  # (1 / (1 - beta))^2
    for row in (heavy, averaged):
        assert row["total"] == pytest.approx(row["bias"] + row["variance"] + row["cross"])
        assert row["total"] < row["bound"]


@pytest.mark.parametrize("method", runs.METHODS)
def test_all_schedules_use_the_same_number_of_samples(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "SAMPLES", 1200)
    monkeypatch.setattr(runs, "STAGES", 3)
    monkeypatch.setattr(runs, "LARGEST", 100)
    seen: list[int] = []

    def drawn(model, batch: int, *seed: int):
        inner = original(model, batch, *seed)
        return lambda: (seen.append(batch), inner())[1]

    original = runs.drawn
    monkeypatch.setattr(runs, "drawn", drawn)
    row = runs.schedule(method=method, eta=0.1, seed=5)[0]
    used = [size for size in seen if size > 1]
    assert len(used) == row["steps"] and 1200 <= sum(used) < 1200 + 100
    assert (max(used) > 32) == (method == "batch") and (row["beta_at_end"] < 0.9) == (method == "beta")


def test_the_search_gives_up_and_a_dead_network_does_not_meet_the_goal(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(eps_sq: float, loss: float) -> object:
        monkeypatch.setattr(runs, "SWEEP", {**goal, "eps_sq": eps_sq})
        monkeypatch.setattr(runs, "training_loss", lambda model: loss)
        return runs.steps_to_goal(batch=8, seed=5)[0]["steps"]

    goal = {**runs.SWEEP, "from": 2, "least": 2, "every": 2, "limit": 6}
    assert found(0.0, 0.5) is None
    assert found(1e9, 0.5) == 4
    assert found(1e9, 2.3) is None

"""The study of the Ising machine: its jobs, its rules on made-up rows, and its page from small runs."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from untuned.study.papers import ising_runs
from untuned.study.papers.frame import Job, Row
from untuned.study.papers.ising import STUDY
from untuned.study.papers.ising_runs import CELLS, FEEDBACKS, KAPPAS, METHODS, STRENGTHS
from untuned.study.papers.rows import numbers

BOXQP = "2\n3 -1\n2 -4\n-4 6\n"  # largest value 4, at (1, 0)


def made(seeds: int, rows: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """The rows of all jobs that are asked for, but those of the functions that are in `rows` already."""
    found: dict[str, list[Row]] = {}
    for job in STUDY.jobs(seeds, rows):
        if job.function.__name__ not in rows:
            new = [{**job.arguments, **row} for row in job.function(**job.arguments)]
            found.setdefault(job.function.__name__, []).extend(new)
    return {**rows, **found}


def names(jobs: Any) -> list[str]:
    return [job.function.__name__ for job in jobs]


# ---------------------------------------------------------------- jobs


def test_races_wait_for_the_optima(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ising_runs.FOLDER, raising=False)
    first = STUDY.jobs(2, {})
    assert set(names(first)) == {"optimum", "conditioning", "spins"}
    rows: Any = [{"n": n, "density": d, "seed": s, "best": -7.0, "proven": True} for n, d in CELLS for s in range(2)]
    then = STUDY.jobs(2, {"optimum": rows})
    assert then[: len(first)] == first
    assert names(then[len(first) :]).count("race") == 2 * len(CELLS)
    assert names(then).count("curves") == names(then).count("finals") == 1
    assert Job(ising_runs.race, {"n": 20, "density": 1.0, "seed": 1, "best": -7.0}) in then


def test_the_instances_of_the_paper_are_added_if_their_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spar002-100-1.in").write_text(BOXQP)
    (tmp_path / "spar002-100-2.in").write_text(BOXQP)  # not in the table
    (tmp_path / "README.txt").write_text("spar002-100-1 4.0\nspar040-040-3 1173.5\n")
    monkeypatch.setenv(ising_runs.FOLDER, str(tmp_path))
    monkeypatch.setattr(ising_runs, "STEPS", 1000)
    monkeypatch.setattr(ising_runs, "SAMPLES", 8)
    (job,) = [job for job in STUDY.jobs(2, {}) if job.function is ising_runs.published]
    assert job.arguments == {"instance": "spar002-100-1"}
    rows = job.function(**job.arguments)
    assert [row["method"] for row in rows] == list(METHODS)
    assert rows[-1]["success"] == 1 and min(numbers(rows, "least_gap")) > -1e-9  # so 4 is the maximum


def test_optima_of_small_instances_are_proven() -> None:
    (row,) = ising_runs.optimum(n=20, density=1.0, seed=2)
    assert row == {"best": -847.0, "proven": True, "starts_there": 1.0}


# ---------------------------------------------------------------- the page, of small runs


@pytest.fixture(scope="module")
def small() -> dict[str, list[Row]]:
    """All rows of two seeds, at 120 round trips."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(ising_runs.FOLDER, raising=False)
        patch.setattr(ising_runs, "STEPS", 120)
        patch.setattr(ising_runs, "SAMPLES", 6)
        patch.setattr(ising_runs, "REFERENCE", (8, 100))
        rows: dict[str, list[Row]] = {
            "optimum": [
                {"n": n, "density": d, "seed": s, "best": -500.0 * n, "proven": n < 70, "starts_there": 0.5}
                for n, d in CELLS
                for s in range(2)
            ]
        }
        return made(2, rows)


def test_every_claim_table_and_panel_follows_from_rows(small: dict[str, list[Row]]) -> None:
    assert len(small["conditioning"]) == len(KAPPAS) * len(FEEDBACKS) * 2 * len(STRENGTHS)
    claims = STUDY.claims(small)
    assert len(claims) == 8 and all("nan" not in claim.here for claim in claims)
    tables = STUDY.tables(small)
    assert [len(table.rows) for table in tables] == [20, 12, 16]
    assert all(len(row) == len(table.columns) for table in tables for row in table.rows)
    for _, draw in STUDY.panels(small):
        ax = Figure().add_subplot()
        draw(ax)
        assert ax.get_xlabel() and ax.get_ylabel() and ax.has_data()


def test_a_race_depends_on_its_arguments_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ising_runs, "STEPS", 200)
    monkeypatch.setattr(ising_runs, "SAMPLES", 4)
    arguments = {"n": 6, "density": 1.0, "seed": 0, "best": -100.0}
    first = ising_runs.race(**arguments)
    assert first == ising_runs.race(**arguments) and first != ising_runs.race(**arguments | {"seed": 1})
    assert first[0]["fraction_50"] == 1.0


# ---------------------------------------------------------------- rules


def raced(**by_method: dict[str, float]) -> list[Row]:
    """A row for each method on four equal instances."""
    plain = {"success": 1.0, "gap_spread": 0.0, "distance": 0.0, "median_gap": 0.0, "least_gap": 0.0, "distinct": 1}
    plain |= {"fraction_5": 1.0, "fraction_10": 1.0, "fraction_25": 1.0, "fraction_50": 1.0}
    return [
        {"n": 20, "density": 1.0, "seed": s, "method": method, **plain, **by_method.get(method.replace(" ", "_"), {})}
        for s in range(4)
        for method in METHODS
    ]


def conditioned(success: dict[str, float], lost: dict[str, float]) -> list[Row]:
    return [
        {
            "kappa": k,
            "method": m,
            "seed": s,
            "strength": strength,
            "diverged": d,
            "proven": True,
            "success": 0.0 if d else success[m],
        }
        for k in KAPPAS
        for m in FEEDBACKS
        for s in range(3)
        for strength in STRENGTHS
        for d in [lost[m] if k == 1000 and strength > 1 else 0.0]
    ]


STABLE = conditioned({"gradient": 1, "momentum": 1, "adam": 0.8}, {"gradient": 1, "momentum": 1, "adam": 0})


def verdicts(race: list[Row], conditioning: list[Row] = STABLE, **more: list[Row]) -> list[str]:
    return [claim.verdict for claim in STUDY.claims({"race": race, "conditioning": conditioning, **more})]


YES, NO, OPEN = "holds here", "does not hold here", "cannot be told at this scale"


def test_rules_of_the_races() -> None:
    fast = {f"fraction_{X}": 0.5 for X in (5, 10, 25, 50)}
    race = raced(
        gradient={"success": 0.0},
        momentum={"gap_spread": 0.02, "distance": 0.3, "success": 0.2} | {f"fraction_{X}": 0.05 for X in (5, 10)},
        adam={"gap_spread": 0.01, "distance": 0.1, "success": 0.6} | fast,
    )
    assert verdicts(race) == [YES, YES, YES, YES, YES, YES, NO, NO]
    assert verdicts(raced()) == [NO, NO, NO, NO, OPEN, YES, NO, NO]
    alone = raced(gradient={"success": 0.0}, momentum={"success": 0.0})
    assert verdicts(alone)[4] == NO
    slow = raced(adam={"gap_spread": 0.01, "distance": 0.3, "fraction_5": 0.3}, momentum={"gap_spread": 0.01})
    assert verdicts(slow)[:3] == [NO, NO, NO]


def test_rules_of_the_conditioning_test() -> None:
    both = conditioned({"gradient": 1, "momentum": 1, "adam": 0.8}, {"gradient": 0, "momentum": 1, "adam": 0})
    assert verdicts(raced(), both)[5:7] == [NO, YES]
    lost = conditioned({"gradient": 1, "momentum": 1, "adam": 0.8}, {"gradient": 1, "momentum": 1, "adam": 1})
    assert verdicts(raced(), lost)[5] == NO
    poor = conditioned({"gradient": 1, "momentum": 1, "adam": 0.4}, {"gradient": 1, "momentum": 1, "adam": 0})
    assert verdicts(raced(), poor)[5] == NO


def test_rules_of_the_published_instances() -> None:
    def spar(name: str, low: float, high: float) -> Row:
        return {"instance": name, "method": "gradient", "final_low": low, "final_high": high, "success": 0.0}

    rows = [spar("spar080-050-3", 0.0032746, 0.0032747), spar("spar040-040-3", 0.0, 0.0)]
    assert verdicts(raced(), published=rows)[8:] == [YES, YES]
    rows = [spar("spar080-050-3", 0.0032746, 0.004), spar("spar040-040-3", 0.01, 0.02)]
    assert verdicts(raced(), published=rows)[8:] == [OPEN, NO]
    every = [
        {"instance": f"i{i}", "method": m, "success": float(m != "gradient" or i >= 17)}
        for i in range(99)
        for m in METHODS
    ]
    assert verdicts(raced(), published=every)[8:] == [YES]

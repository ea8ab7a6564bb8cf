"""The study of OrMo: what its jobs compute, how it chooses learning rates, and what its claims are made of."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from untuned.study.papers import ormo, ormo_runs
from untuned.study.papers.frame import Job, Row
from untuned.study.papers.ormo_results import SETTINGS, chosen, losses, tuned
from untuned.study.papers.ormo_runs import LRS, METHODS


def merged(job: Job, rows: list[Row]) -> list[Row]:
    return [{**job.arguments, **row} for row in rows]


@pytest.fixture(autouse=True)
def no_cifar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ormo, "_there", lambda task: False)


def made_up(jobs: list[Job], best: dict[str, float]) -> dict[str, list[Row]]:
    """Rows of jobs that did not run: methods are as good as `best` says, and best at lr 0.02 and the effective 0.1."""
    found: dict[str, list[Row]] = {"toy": [], "network": [], "processes": [], "late": []}
    for job in jobs:
        method, seed = str(job.arguments.get("method")), int(str(job.arguments.get("seed", 0)))
        scale = best.get(method, 1.0) * (1 + 0.01 * seed)
        if job.function is ormo_runs.late:
            found["late"] += merged(job, ormo_runs.late(momentum=0.9))
        elif job.function is ormo_runs.toy:
            for lr in LRS:
                loss = None if lr > 0.2 else 1e-3 * scale * (1 + math.log(lr / 0.02) ** 2)
                found["toy"] += merged(job, [{"lr": lr, "loss": loss, "seconds": 9.0, "largest_delay": 3}])
        elif job.function is ormo_runs.network:
            off = math.log(float(str(job.arguments["effective"])) / 0.1) ** 2
            for look in range(3):
                loss = None if method == "naive" and look == 2 and seed == 1 else 0.5 * scale * (1 + off) / (1 + look)
                seconds = 10.0 * look * (9.0 if method == "ssgdm" else 1.0)
                row: Row = {
                    "applied": 10 * look,
                    "seconds": seconds,
                    "val_loss": loss,
                    "accuracy": loss and 1 - loss / 2,
                }
                found["network"] += merged(job, [row])
        else:
            shares: Row = {f"of_worker_{w}": 5 * w for w in range(3)}
            row = {"method": "ormo", "seconds_since": 1.0, "gradients": 15, "val_loss": 0.9, "replayed": True}
            found["processes"] += merged(job, [{**row, **shares}, {**row, **shares, "seconds_since": 2.0}])
    return {name: rows for name, rows in found.items() if rows}


def rounds(seeds: int, best: dict[str, float]) -> tuple[list[list[Job]], dict[str, list[Row]]]:
    """What the study asks for, round by round, until nothing is new."""
    found, rows = list[list[Job]](), dict[str, list[Row]]()
    while not found or len(found[-1]) > len(found[-2] if len(found) > 1 else ()):
        found.append(list(ormo.STUDY.jobs(seeds, rows)))
        rows = made_up(found[-1], best)
    return found[:-1], rows


def names(jobs: list[Job]) -> set[str]:
    return {job.function.__name__ for job in jobs}


# ---------------------------------------------------------------------- jobs


def test_a_late_gradient_moves_as_far_as_the_paper_has_it() -> None:
    """1, 1.9, 2.71, 4.69 and 6.86 times lr at momentum 0.9 for 0, 1, 2, 5 and 10 buckets."""
    found = {(r["lag"], r["step"]): r["moved"] for r in ormo_runs.late(momentum=0.9)}
    assert [round(float(str(found[lag, "ordered"])), 2) for lag in (0, 1, 2, 5, 10)] == [1.0, 1.9, 2.71, 4.69, 6.86]
    assert all(found[lag, "vanilla"] == 1.0 for lag in (0, 1, 2, 5, 10))


@pytest.mark.parametrize("method", METHODS)
def test_the_parabola_side_by_side_is_the_parabola_at_its_learning_rate(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Gradients times lr at lr 1 are gradients at that lr, and what diverges leaves the others alone."""
    monkeypatch.setattr(ormo_runs, "GRADIENTS", 150)
    monkeypatch.setattr(ormo_runs, "LRS", (0.001, 0.005, 5.0))
    together = ormo_runs.toy(method=method, workers=8, slow=True, seed=3)
    served = ormo_runs.served

    def at_its_lr(method: str, params: Any, workers: int, lr: float, steps: int) -> Any:
        server = served(method, params, workers, 0.005 * lr, steps)
        apply = server.apply

        def undone(messages: Any) -> None:
            for message in messages:
                message.gradient.div_(0.005)
            apply(messages)

        server.apply = undone
        return server

    monkeypatch.setattr(ormo_runs, "LRS", (0.005,))
    monkeypatch.setattr(ormo_runs, "served", at_its_lr)
    [alone] = ormo_runs.toy(method=method, workers=8, slow=True, seed=3)
    assert [row["loss"] is None for row in together] == [False, False, True]
    assert together[1]["loss"] == pytest.approx(alone["loss"], rel=1e-9)
    assert float(str(together[1]["loss"])) < 0.9 * ormo_runs.START
    assert (float(str(together[0]["seconds"])) > 100) == (method == "ssgdm")  # rounds wait for the slow
    assert together[0]["largest_delay"] == alone["largest_delay"]


def test_a_network_learns_and_is_looked_at_in_time() -> None:
    arguments = {**ormo.FASHION, "gradients": 120, "looks": 4, "workers": 4}
    found = ormo_runs.network(**arguments, method="ormo", effective=0.1, seed=1)
    assert [row["applied"] for row in found] == [0, 40, 80, 120]
    assert found[0]["seconds"] == 0.0 and float(str(found[-1]["seconds"])) > 20
    assert float(str(found[-1]["val_loss"])) < 1.6 < 2.2 < float(str(found[0]["val_loss"]))
    assert found == ormo_runs.network(**arguments, method="ormo", effective=0.1, seed=1)
    gone = ormo_runs.network(**{**arguments, "method": "naive", "effective": 1e6, "seed": 1})
    assert gone[-1]["val_loss"] is None and 0 < int(str(gone[-1]["applied"])) < 120


@pytest.mark.slow  # processes import torch
def test_real_processes_are_replayed_to_the_bit() -> None:
    found = ormo_runs.processes(effective=0.05, budget=0.5, seconds=0.01, slower=3.0)
    assert {row["method"] for row in found} == {"asgd", "naive", "ormo", "ormo_da", "ssgdm"}
    assert all(row["replayed"] is True for row in found)
    assert all(math.isfinite(float(str(row["val_loss"]))) for row in found)


# ---------------------------------------------------------------------- rounds, claims and pages


def test_rounds_follow_the_best_learning_rate_and_processes_come_last() -> None:
    asked, rows = rounds(3, {})
    assert names(asked[0]) == {"late", "toy", "network"}
    assert (
        [len({job.arguments["effective"] for job in jobs if job.function is ormo_runs.network}) for jobs in asked]
        == [
            *(3, 4, 5, 5),  # 0.0125 to 0.05, 0.1, 0.2, and then the other seeds
            5,
        ][: len(asked)]
    )
    assert [("processes" in names(jobs)) for jobs in asked] == [False] * (len(asked) - 1) + [True]
    assert tuned(rows, "fashion-cnn", "ormo") == 0.1
    fresh = [job.arguments for job in asked[-1] if job.function is ormo_runs.network and job.arguments["seed"] != 0]
    assert {(a["effective"], a["seed"]) for a in fresh} == {(0.1, 1), (0.1, 2)} and len(fresh) == 2 * len(METHODS)


def test_a_seed_is_read_at_the_learning_rate_of_the_others() -> None:
    _, rows = rounds(3, {})
    for row in rows["toy"]:
        if row["seed"] == 2 and row["method"] == "ormo" and row["lr"] == LRS[3]:
            row["loss"] = 1e-9  # lucky
    found = losses(rows, "ormo", 8, True)
    assert found.shape == (3, 24) and found[2, 3] == 1e-9
    best = min(range(24), key=lambda i: abs(math.log(LRS[i] / 0.02)))
    assert chosen(found)[2] == best
    assert torch.isinf(torch.tensor(found[:, -1])).all()


@pytest.mark.parametrize(
    ("best", "verdicts"),
    [
        (
            {"ormo": 0.5, "ormo_da": 0.5, "vanilla": 0.7, "naive": 1.5, "ssgdm": 0.6},
            ["holds here"] * 8,
        ),
        (
            {"ormo": 1.2, "ormo_da": 1.4, "vanilla": 1.0, "naive": 0.9, "ssgdm": 0.1},
            ["does not hold here"] * 6 + ["cannot be told at this scale", "does not hold here"],
        ),
    ],
)
def test_verdicts_follow_from_the_ratios(best: dict[str, float], verdicts: list[str]) -> None:
    """One run of naive momentum on the network diverges and counts with chance, so that nothing can be told of it."""
    _, rows = rounds(5, best)
    found = ormo.STUDY.claims(rows)
    told = [claim.verdict for claim in found]
    assert told == verdicts
    assert "ratio of losses, 8 workers, alike: " in found[0].here and found[0].here.endswith("; n = 5 seeds")


def test_pages_are_drawn_from_rows_alone() -> None:
    _, rows = rounds(3, {"naive": 1.4})
    networks = [claim for claim in ormo.STUDY.claims(rows) if claim.says.startswith("Fashion CNN")]
    assert {claim.verdict for claim in networks} == {"cannot be told at this scale"}  # of two seeds
    panels = ormo.STUDY.panels(rows)
    assert [title for title, _ in panels] == [
        "Parabola, 16 workers, 2 slow, n = 3 seeds",
        "Fashion CNN, 16 workers, 2 slow, n = 2 seeds",
        "Fashion CNN, 3 processes, 1 slow, n = 1",
    ]
    for _, draw in panels:
        ax = Figure().subplots()
        draw(ax)
        assert ax.get_xlabel() and ax.get_ylabel() and ax.lines and ax.get_legend()
    found = {table.title.partition(":")[0]: table for table in ormo.STUDY.tables(rows)}
    assert all(len(cells) == len(table.columns) for table in found.values() for cells in table.rows)
    [lagging] = [table for title, table in found.items() if title.startswith("How far a late")]
    assert lagging.rows[0] == ("OrMo", "1", "1.9", "2.71", "4.686", "6.862")
    whole = ormo.STUDY.tables(rows)
    assert len(whole[0].rows) == len(SETTINGS) and "1 of 2" in {cells[-1] for cells in whole[3].rows}
    assert {cells[-1] for cells in whole[4].rows} == {"yes"}

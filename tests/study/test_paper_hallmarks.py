"""The study of trajectories: its jobs on very few steps, and its page from rows that are made up."""

import json
import math
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from untuned.study.papers import hallmarks, hallmarks_runs, pages
from untuned.study.papers.frame import Row, Rows
from untuned.study.papers.hallmarks import STUDY
from untuned.study.papers.hallmarks_numbers import FACTORS
from untuned.study.papers.hallmarks_runs import EPOCHS, POINTS, SWITCHES
from untuned.study.trajectory_picture import draw_map

mpl.use("agg")


def made_up(seeds: int = 3, diverged: bool = False) -> dict[str, list[Row]]:
    """Rows as the jobs return them: larger settings explore more, training finds its direction at once."""
    found: dict[str, list[Row]] = {}
    for job in STUDY.jobs(seeds, {}):
        name, given = job.function.__name__, dict(job.arguments)
        noise = 1e-4 * float(given.get("seed") or 0)
        if name in ("settings", "widths"):
            size = given.get("lr", 0) / (1 - given.get("momentum", 0)) + 10 * given.get("weight_decay", 0)  # pyright: ignore[reportOperatorIssue]
            mds = 1 - 0.1 * float(size) - 1e-4 * float(given.get("batch_size") or 0) + noise
            mds += 1e-3 * float(given.get("width") or 0)
            keys = ("mds_origin", "mds_init", "rank_init", "movement", "straightness", "update_angle", "train_loss")
            rows = [{"diverged": diverged, **dict.fromkeys((*keys, "accuracy"), None if diverged else mds)}]
        elif name == "progress":
            shares = [k / POINTS for k in range(1, POINTS + 1)]
            rows = [
                {"share": s, "end_angle": 60 * (1 - s) ** 4, "update_angle": None if s == shares[0] else 40 + 50 * s,
                 "mds_init": 0.9, "mds_origin": 0.99} for s in shares
            ]  # fmt: skip
        elif name == "late":
            better = {"everything": 0.0, "batch-norm scalars": -0.002, "output layer": -0.03, "nothing": -0.1}
            rows = [
                {"switch": s, "branch": b, "share": 0.1, "accuracy": 0.8 + d + noise, "val_loss": 0.5, "train_loss": 0}
                for s in SWITCHES
                for b, d in better.items()
            ]
        elif name == "movement":
            groups = ("all", *dict.fromkeys(map(hallmarks_runs.kind, ("1.w", "2.w", "8.w"))))
            rows = [{"group": g, "epoch": e, "moved": 0.1 * e, "mds": 0.9} for g in groups for e in range(EPOCHS + 1)]
        elif name == "maps":
            at = [24 * k for k in range(POINTS + 1)]
            pairs = [(i, j, 1 - abs(i - j) / 2000) for i in at for j in at]
            rows = [{"row": i, "column": j, "origin": c, "init": c if i and j else None} for i, j, c in pairs]
        else:
            rows = [{"mds": 0.68 + noise, "theory": 0.6803, "update_angle": 90.0}]
        found.setdefault(name, []).extend({**given, **row} for row in rows)
    job: Row = {
        "function": "late",
        "arguments": "{}",
        "seconds": 1.0,
        "date": "2026-01-01",
        "machine": "m",
        "torch": "2",
    }
    return {**found, "jobs": [job]}


def verdicts(rows: Rows) -> list[str]:
    return [claim.verdict for claim in STUDY.claims(rows)]


# ---------------------------------------------------------------- jobs


def test_jobs_are_distinct_and_of_plain_arguments() -> None:
    asked = STUDY.jobs(3, {})
    marks = {json.dumps([job.function.__name__, dict(job.arguments)], sort_keys=True) for job in asked}
    assert len(marks) == len(asked)
    assert all(getattr(hallmarks_runs, job.function.__name__) is job.function for job in asked)
    assert {job.arguments["seed"] for job in asked} == {0, 1, 2}


def test_a_run_is_measured_and_is_the_same_again() -> None:
    given: dict[str, Any] = {"lr": 0.03, "momentum": 0.9, "weight_decay": 0.0, "batch_size": 64, "steps": 40, "seed": 5}
    first, again = (hallmarks_runs.settings(task="fashion-mlp", **given) for _ in range(2))
    assert first == again
    (row,) = first
    assert 0.5 < row["mds_origin"] < 1 and 0 < row["movement"] < 2 and row["accuracy"] > 0.3  # pyright: ignore[reportOperatorIssue]
    (bad,) = hallmarks_runs.settings(task="fashion-mlp", **{**given, "lr": 1e6})
    assert bad["diverged"] is True and bad["mds_origin"] is None and bad.keys() == row.keys()


def test_progress_agrees_with_the_map() -> None:
    given: dict[str, Any] = {"task": "fashion-mlp", "lr": 0.03, "momentum": 0.9, "steps": 40, "seed": 0}
    rows, pairs = hallmarks_runs.progress(**given), hallmarks_runs.maps(**given)
    assert len(rows) == POINTS and rows[-1]["end_angle"] == 0.0
    end = {row["row"]: row["init"] for row in pairs if row["column"] == 40}
    for row in rows:
        step = round(40 * float(row["share"] or 0))
        assert math.cos(math.radians(float(row["end_angle"] or 0))) == pytest.approx(end[step], abs=1e-12)
    all_pairs = np.array([row["init"] for row in pairs if row["init"] is not None], dtype=float)
    assert rows[-1]["mds_init"] == pytest.approx(all_pairs.mean())


def test_branches_leave_full_training_alone_and_train_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hallmarks_runs, "EPOCHS", 2)
    monkeypatch.setattr(hallmarks_runs, "SWITCHES", (1,))
    rows = {row["branch"]: row for row in hallmarks_runs.late(lr=0.03, momentum=0.9, seed=0)}
    monkeypatch.setattr(hallmarks_runs, "SWITCHES", ())
    problem, model = hallmarks_runs._problem("fashion-cnn"), hallmarks_runs.network(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    hallmarks_runs._epoch(problem, model, optimizer, 0.03, 0, 0)
    assert rows["nothing"]["accuracy"] == problem.evaluate(model)["val_accuracy"]
    hallmarks_runs._epoch(problem, model, optimizer, 0.03, 1, 0)
    assert rows["everything"]["accuracy"] == problem.evaluate(model)["val_accuracy"]
    assert [rows[name]["share"] for name in ("everything", "nothing")] == [1.0, 0.0]
    assert rows["batch-norm scalars"]["share"] == pytest.approx(224 / 106_234)
    assert rows["output layer"]["share"] == pytest.approx(650 / 106_234)
    losses = [rows[name]["train_loss"] for name in ("everything", "batch-norm scalars", "nothing")]
    assert len(set(losses)) == 3


def test_frozen_parameters_do_not_move() -> None:
    problem, model = hallmarks_runs._problem("fashion-cnn"), hallmarks_runs.network(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    batch = next(problem.batches(0, 0))
    problem.loss(model, batch).backward()
    optimizer.step()  # its momentum is not zero now
    twin, its = hallmarks_runs._forked(model, optimizer)
    for name, p in twin.named_parameters():
        p.requires_grad_(hallmarks_runs.BRANCHES["batch-norm scalars"](name))
    its.zero_grad()
    problem.loss(twin, batch).backward()
    its.step()
    moved = {
        name for (name, p), q in zip(twin.named_parameters(), model.parameters(), strict=True) if not torch.equal(p, q)
    }
    assert {hallmarks_runs.kind(name) for name in moved} == {hallmarks_runs.SCALARS} and len(moved) == 6


def test_the_walk_of_the_reference_line() -> None:
    (row,) = hallmarks_runs.walk(parameters=20_000, points=41, seed=0)
    assert row["mds"] == pytest.approx(row["theory"], abs=0.01)


# ---------------------------------------------------------------- the page


def test_claims_follow_from_the_rows() -> None:
    rows = made_up()
    good = verdicts(rows)
    assert len(good) == len(FACTORS) + 8
    output_layer = len(good) - 2
    assert good[output_layer] == "does not hold here"  # three points are missing
    assert set(good[:output_layer] + good[-1:]) == {"holds here"}
    turned = {**rows, "settings": [{**row, "mds_origin": 1 - row["mds_origin"]} for row in rows["settings"]]}  # pyright: ignore[reportOperatorIssue]
    assert set(verdicts(turned)[: len(FACTORS)]) == {"does not hold here"}
    late = [{**row, "update_angle": row["update_angle"] and row["update_angle"] / 2} for row in rows["progress"]]  # pyright: ignore[reportOperatorIssue]
    slow = [{**row, "end_angle": 3 * row["end_angle"]} for row in late]  # pyright: ignore[reportOperatorIssue]
    changed = verdicts({**rows, "progress": slow})
    assert changed[len(FACTORS) + 3 : len(FACTORS) + 5] == ["does not hold here"] * 2


def test_of_runs_that_diverged_nothing_is_told() -> None:
    rows = made_up(diverged=True)
    assert set(verdicts(rows)[: len(FACTORS) + 3]) == {"cannot be told at this scale"}
    assert "3 of 3" in hallmarks.tables(rows)[0].rows[0]


def test_the_page_and_the_panels_are_drawn_from_rows_alone() -> None:
    rows = made_up()
    text = pages.markdown(STUDY, rows, STUDY.claims(rows))
    assert "nan" not in text and "None" not in text
    for _, draw in STUDY.panels(rows):
        figure = Figure(figsize=(6.2, 4.3))
        ax = figure.subplots()
        draw(ax)
        assert ax.get_xlabel() or ax.get_xticklabels()
        assert ax.get_ylabel()
    assert len(hallmarks.tables(rows)) == 4


def test_a_map_leaves_out_points_without_a_direction() -> None:
    matrix = np.array([[np.nan, np.nan, np.nan], [np.nan, 1.0, 0.5], [np.nan, 0.5, 1.0]])
    ax = Figure().subplots()
    image = draw_map(ax, matrix, [0, 10, 20])
    assert image.get_array().shape == (2, 2) and image.get_clim() == (0.5, 1.0)  # pyright: ignore[reportOptionalMemberAccess]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["10", "20"]
    with pytest.raises(ValueError, match="no point of the map has a direction"):
        draw_map(ax, np.full((2, 2), np.nan), [0, 1])

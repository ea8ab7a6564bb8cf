"""The study of LoRASC: what its runs compute, which it asks for, and what follows from their rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch

from untuned.study import tasks
from untuned.study.config import StudyError
from untuned.study.papers import load, run
from untuned.study.papers import lorasc_runs as runs
from untuned.study.papers.frame import Row

matplotlib.use("agg")
STUDY = load("lorasc")


def rows_of(arm: str, lr: float, seed: int, loss: float, name: str = "text", noise: float | None = None) -> list[Row]:
    """What a run with this loss at its end would have given."""
    arguments: Row = {**runs.plan(name, arm, noise), "lr": lr, "seed": seed}
    if name == "text":
        end = {"val_loss": loss, "val_accuracy": 0.7, "train_loss": loss / 2}
        return [{**arguments, "epoch": e, **(end if e == 4 else end | {"train_loss": None})} for e in range(1, 5)]
    rank = runs.plan(name, arm)["rank"]
    return [
        {**arguments, "step": 100 * k, "loss": 8.0 if k == 0 else loss,
         "change": rank * k if runs.ARMS[arm].cascades else rank * (k > 0)}
        for k in range(7)
    ]  # fmt: skip


def played(loss: Any, seeds: int = 3) -> dict[str, list[Row]]:
    """All rows of a study in which a run has `loss(name, arm, lr, noise)`, asked for round by round."""
    found: dict[str, list[Row]] = {}
    known: set[str] = set()
    while new := [job for job in STUDY.jobs(seeds, found) if str(job.arguments) not in known]:
        for job in new:
            known.add(str(job.arguments))
            name, given = job.function.__name__, dict(job.arguments)
            noise = given["noise"]
            arm = next(
                arm for of in (noise, None) for arm in runs.ARMS  # the arm of this noise, else another strength of it
                if of in (None, runs.ARMS[arm].noise)
                and runs.plan(name, arm, noise) == {k: given[k] for k in ("rank", "cascades", "pace", "noise")}
            )  # fmt: skip
            end = loss(name, arm, given["lr"], noise) + 0.001 * (int(given["seed"]) % 7)
            found.setdefault(name, []).extend(rows_of(arm, given["lr"], int(given["seed"]), end, name, noise))
    return found


def test_the_grid_grows_until_the_best_lr_lies_inside() -> None:
    found = played(lambda name, arm, lr, noise: abs(lr - 0.1) if arm == "lora" else abs(lr - 0.01))
    assert list(runs.tuned(found, "text", "lora")) == [3e-3, 1e-2, 3e-2, 1e-1, 3e-1]
    assert runs.best_lr(found, "text", "lora") == 1e-1
    assert list(runs.tuned(found, "text", "lorasc")) == [3e-3, 1e-2, 3e-2]
    down = played(lambda name, arm, lr, noise: lr)
    assert min(runs.tuned(down, "text", "total")) == runs.GRID[0] and runs.best_lr(down, "text", "total") == 1e-5
    counted = runs.final(found, "text", "lora", "val_loss")
    assert counted == pytest.approx([0.0, 0.001, 0.002]), "of the seeds that did not choose the lr"


def test_runs_that_diverge_choose_no_lr() -> None:
    found = played(lambda name, arm, lr, noise: float("nan") if lr > 5e-3 else 1 / lr)
    assert runs.best_lr(found, "teacher", "chain") == 3e-3
    assert runs.tuned(found, "teacher", "chain")[1e-2] == float("inf")


@pytest.mark.parametrize(("better", "verdict"), [(-0.3, "holds here"), (0.3, "does not hold here")])
def test_verdicts_follow_the_rule(better: float, verdict: str) -> None:
    """An effect of one sign on every claim that compares arms."""
    order = {"lora": 0.0, "total": 0.0, "chain": 0.0, "quiet": better, "lorasc": 2 * better}
    found = played(lambda name, arm, lr, noise: 2 + order[arm] + abs(lr - 0.01))
    claims = STUDY.claims(found)
    grown, overfits = claims.pop(1), claims.pop(5)
    assert [claim.verdict for claim in claims] == [verdict] * len(claims)
    assert grown.verdict == "holds here" and "ranks 2, 4, 6, 8, 10, 12" in grown.here
    assert overfits.verdict == verdict and "gap of the two" in overfits.here
    assert "n = 3 seeds" in claims[0].here
    lacking = {name: [row for row in these if row["seed"] in runs.TUNING] for name, these in found.items()}
    assert {claim.verdict for claim in STUDY.claims(lacking)} == {"cannot be told at this scale"}


def test_tables_and_pictures_are_made_from_rows_alone() -> None:
    found = played(lambda name, arm, lr, noise: 2 + (noise - 0.3) ** 2 + abs(lr - 0.01))
    for table in STUDY.tables(found):
        assert [len(row) for row in table.rows] == [len(table.columns)] * len(runs.ARMS)
    for title, draw in STUDY.panels(found):
        figure, ax = plt.subplots()
        draw(ax)
        assert ax.get_xlabel() and ax.get_ylabel() and "n = " in title
        plt.close(figure)


def test_a_teacher_is_learned_by_cascades_of_growing_rank() -> None:
    plain, cascade = (runs.teacher(**runs.plan("teacher", arm), lr=3e-2, seed=3) for arm in ("lora", "chain"))
    assert [row["change"] for row in cascade] == [0, 2, 4, 6, 8, 10, 12]
    assert [row["change"] for row in plain] == [0, 2, 2, 2, 2, 2, 2]
    assert plain[0]["loss"] == cascade[0]["loss"] and plain[1]["loss"] == cascade[1]["loss"], "bitwise, until a merge"
    assert float(cascade[-1]["loss"] or 9) < 0.5 * float(plain[-1]["loss"] or 0)


def test_a_run_that_is_not_finite_has_a_last_row() -> None:
    [*_, end] = runs.teacher(**runs.plan("teacher", "chain"), lr=1e200, seed=0)
    assert end["step"] == 600 and not abs(float(end["loss"] or 0)) < 1e3


@pytest.fixture
def texts(fetched: None):
    """The weights are stand-ins."""
    runs._task.cache_clear()
    runs._features.cache_clear()
    yield
    runs._task.cache_clear()
    runs._features.cache_clear()


def test_features_that_are_computed_once_give_the_function_of_the_whole_model(texts: None) -> None:
    task, x, x_val = runs._features()
    whole = tasks.load("minilm-full").model(5)
    with torch.no_grad():
        torch.testing.assert_close(runs._Top(5)(x_val, task.x_val), whole(task.x_val), rtol=1e-4, atol=1e-5)
    assert x.shape[:2] == task.x.shape


def test_texts_are_learned_and_a_run_is_a_function_of_its_arguments(texts: None) -> None:
    found = {arm: runs.text(**runs.plan("text", arm), lr=1e-2, seed=1) for arm in ("lora", "lorasc")}
    for rows in found.values():
        assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
        assert [row["train_loss"] is None for row in rows] == [True] * 3 + [False]
        assert float(rows[-1]["train_loss"] or 9) < math.log(6)
    assert found["lora"] != found["lorasc"]
    assert runs.text(**runs.plan("text", "lora"), lr=1e-2, seed=1) == found["lora"]


def test_weights_that_are_not_there_are_named_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNTUNED_DATA", str(tmp_path / "nothing"))
    with pytest.raises(
        StudyError, match=r"lorasc needs the data of the task minilm-lora: .*`untuned data fetch minilm`"
    ):
        run.run(STUDY, tmp_path / "out", 2, 1, lambda *_: None)
    assert not (tmp_path / "out").exists()

"""`untuned schedule`: files, picture, ranking, warning, refusals."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from untuned.schedules import SHAPES, refine, tables
from untuned.study import cli
from untuned.study.schedule import ranked

Untuned = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Untuned:
    """Run `untuned schedule ARGUMENTS` in an empty folder: exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["untuned", "schedule", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert not isinstance(left.value.code, str)
        found = capfd.readouterr()
        return left.value.code or 0, found.out, found.err

    return run


NORMS = 1 + 0.1 * np.sin(np.arange(100))


def log(path: Path, norms: np.ndarray = NORMS) -> Path:
    tables.write(path, {"step": np.arange(1, len(norms) + 1), "l1": 10 / norms, "l2": norms})
    return path


@pytest.mark.parametrize("name", ["norms.csv", "norms.parquet", "norms"])
def test_refine_writes_a_schedule_and_a_picture(run: Untuned, name: str) -> None:
    if name == "norms":
        Path(name).mkdir()
        log(Path(name) / "000000000001.parquet")
    else:
        log(Path(name))
    status, output, error = run("refine", name)
    assert (status, error) == (0, "")
    assert output.splitlines() == [
        f"schedule: norms-schedule.csv, 100 steps, peak after {refine(NORMS, 2).argmax()} % of the run",
        "picture: norms-schedule.png",
    ]
    found = tables.read("norms-schedule.csv")
    assert found["multiplier"].tolist() == refine(NORMS, 2).tolist()
    assert Path("norms-schedule.png").read_bytes().startswith(b"\x89PNG")

    assert run("refine", name, "--power", 1, "--tau", 0.3, "--steps", 40, "--out", "other.parquet")[0] == 0
    assert tables.read("other.parquet")["multiplier"].tolist() == refine(10 / NORMS, 1, 0.3, 40).tolist()
    assert Path("other.png").exists()


def test_a_late_peak_is_warned_of(run: Untuned) -> None:
    for rate, warned in ((0.0, False), (0.05, True)):
        log(Path("norms.csv"), np.exp(-rate * np.arange(200)))
        status, output, _ = run("refine", "norms.csv")
        assert status == 0
        assert ("warning: the largest lr comes after " in output) == warned


def test_bound_ranks_schedules_best_first(run: Untuned) -> None:
    steps = 400
    log(Path("norms.csv"), np.full(steps, 3.0))
    status, output, error = run("bound", "norms.csv", "--distance", 0.25)
    assert (status, error) == (0, "")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if "│" in line]
    found = {name: float(share) for name, _, share, _ in rows}
    assert found["linear"] == found["refined (L2 norms)"] == 2.013
    assert (found["cosine"], found["wsd"], found["constant"]) == (2.068, 2.186, 2.751)
    assert next(iter(found)) == "least bound, numerically"
    assert list(found.values()) == sorted(found.values())
    assert SHAPES.keys() < found.keys()
    best, unit = ranked(Path("norms.csv"), 0.25)
    assert unit == pytest.approx(0.25 * 3 / 20)
    assert [f"{row.value:.4g}" for row in best] == [bound for _, bound, _, _ in rows]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["refine", "nothing"],
            "untuned: nothing does not exist: it should be a log of gradient norms, or a schedule.",
        ),
        (["bound", "nothing"], "untuned: nothing does not exist: "),
        (["refine", "log.csv", "--tau", "2"], "must be in [0, 1], not 2.0."),
        (
            ["refine", "log.csv", "--power", "-1"],
            "power must be 2 (SGD, L2 norms) or 1 (Adam, L1), or positive, not -1.0",
        ),
        (["refine", "log.csv", "--steps", "0"], "steps must be a whole number of at least 1, not 0."),
        (["refine", "log.csv", "--out", "x.png"], "--out must end in .csv or .parquet, not 'x.png'"),
        (["refine", "zero.csv"], "a norm must be positive and finite; that of step 3 is 0.0."),
        (["bound", "zero.csv"], "that of step 3 is 0.0."),
        (["bound", "log.csv", "--distance", "0"], "bound: distance must be positive and finite, not 0.0."),
        (["refine", "log.csv", "--out", "no/where.csv"], "untuned: no/where.csv: there is no folder no"),
        (["refine", "log.csv", "--out", "log.csv"], "untuned: log.csv is the log itself; choose another --out"),
        (["refine", "log.csv", "--out", "../log.csv"], "is a folder; choose another --out"),
    ],
)
def test_refusals_are_one_sentence_and_write_nothing(run: Untuned, arguments: list[str], sentence: str) -> None:
    log(Path("log.csv"))
    Path("../log.csv").mkdir(exist_ok=True)
    tables.write(Path("zero.csv"), {"step": [1, 2, 3], "l1": [1, 1, 1], "l2": [1.0, 1.0, 0.0]})
    status, output, error = run(*arguments)
    assert (status, output) == (2, "")
    assert sentence in error
    assert len(error.splitlines()) == 1
    assert sorted(path.name for path in Path().iterdir()) == ["log.csv", "zero.csv"]


def test_a_schedule_does_not_become_a_part_of_its_log(run: Untuned) -> None:
    Path("norms").mkdir()
    log(Path("norms") / "000000000001.parquet")
    status, _, error = run("refine", "norms", "--out", "norms/schedule.parquet")
    assert (status, error) == (
        2,
        "untuned: norms/schedule.parquet would be read as a part of the log; choose another --out\n",
    )
    assert run("refine", "norms", "--out", "norms/schedule.csv")[0] == 0
    assert tables.read("norms")["l2"].tolist() == NORMS.tolist()


def test_every_folder_has_a_schedule_of_its_own(run: Untuned, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("run.1", "run.2"):
        Path(name).mkdir()
        log(Path(name) / "000000000001.parquet")
        assert run("refine", name)[1].startswith(f"schedule: {name}-schedule.csv, ")
    monkeypatch.chdir("run.1")
    assert run("refine", ".")[0] == 0
    assert sorted(path.name for path in Path("..").glob("*.csv")) == ["run.1-schedule.csv", "run.2-schedule.csv"]

"""The frame of the studies of papers: what is run, kept, resumed, refused and written."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from untuned.study.config import StudyError
from untuned.study.papers import SUMMARIES, load, pages, rows, run
from untuned.study.papers.frame import Claim, Job, PaperStudy, Row, Rows, Table, all_told, told

CALLS = "UNTUNED_TEST_CALLS"  # names a file to which every call of a job adds a line


def square(*, x: int, seed: int) -> list[Row]:
    with open(os.environ[CALLS], "a") as file:
        file.write(f"square {x} {seed}\n")
    if x == 13:
        raise ArithmeticError("thirteen")
    if x == 99:
        os.kill(os.getpid(), signal.SIGKILL)
    return [{"y": x * x + 0.1 * seed, "even": x % 2 == 0, "word": None if x else "zero"}]


def slow(*, x: int) -> list[Row]:
    with open(os.environ[CALLS], "a") as file:
        file.write(f"slow {x}\n")
    time.sleep(0.3)
    return [{"y": x}]


def study(*xs: int, version: int = 1, needs: dict[str, str] | None = None) -> PaperStudy:
    def jobs(seeds: int, found: Rows) -> list[Job]:
        first = [Job(square, {"x": x, "seed": seed}) for x in xs for seed in range(seeds)]
        if "square" in found:  # a second round, at the best x of the first
            top = max(found["square"], key=lambda row: row["y"])
            first.append(Job(square, {"x": top["x"], "seed": 100}))
        return first

    def claims(found: Rows) -> list[Claim]:
        values = rows.numbers(found["square"], "y")
        return [Claim("Squares are positive", "all", f"least {min(values):.2f}", told((min(values), max(values)), 0))]

    return PaperStudy(
        name="squares",
        title="Squares",
        source="nobody, 2026",
        about="One paragraph with `code`\nin it.\n\nAnother < one.",
        jobs=jobs,
        claims=claims,
        tables=lambda found: [Table("All", ("x", "y"), [(str(r["x"]), str(r["y"])) for r in found["square"]], "a | b")],
        panels=lambda found: [
            ("y of x", lambda ax: ax.plot(rows.numbers(found["square"], "x"), rows.numbers(found["square"], "y")))
        ],
        version=version,
        needs=needs or {},
    )


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The calls since the last time it was asked."""
    path = tmp_path / "calls"
    monkeypatch.setenv(CALLS, str(path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))

    def since() -> list[str]:
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return sorted(lines)

    return since


def make(of: PaperStudy, folder: Path, seeds: int = 2) -> list[rows.Record]:
    return run.run(of, folder, seeds, 1, lambda *_: None)


def test_a_study_is_run_once_grows_and_is_run_anew_when_its_version_is_raised(tmp_path: Path, calls) -> None:
    found = make(study(1, 3), tmp_path / "out")
    assert calls() == ["square 1 0", "square 1 1", "square 3 0", "square 3 1", "square 3 100"]
    assert rows.merged(found)["square"][-1] == {"x": 3, "seed": 100, "y": 19.0, "even": False, "word": None}
    assert make(study(1, 3), tmp_path / "out") == found
    assert calls() == []
    make(study(1, 2, 3), tmp_path / "out")
    assert calls() == ["square 2 0", "square 2 1"]
    make(study(1, 3, version=2), tmp_path / "out")
    assert len(calls()) == 5


def test_a_job_that_raises_costs_its_own_rows_alone(tmp_path: Path, calls) -> None:
    with pytest.raises(StudyError, match=r"2 of 4 jobs of squares failed, the first square\(x=13, seed=[01]\): Arith"):
        make(study(13, 2), tmp_path / "out")
    assert len(calls()) == 4
    with pytest.raises(StudyError, match="2 of 4 jobs"):
        make(study(13, 2), tmp_path / "out")
    assert calls() == ["square 13 0", "square 13 1"]


def test_a_process_that_dies_leaves_what_had_ended(tmp_path: Path, calls) -> None:
    with pytest.raises(StudyError, match=r"a process of squares was ended from outside.*goes on from there"):
        make(study(2, 99), tmp_path / "out")
    calls()
    make(study(2), tmp_path / "out")
    assert calls() == ["square 2 100"]


def test_what_is_missing_is_said_before_anything_is_written(tmp_path: Path) -> None:
    lacking = study(1, needs={"no_such_module": "peft"})
    with pytest.raises(StudyError, match=r'squares needs no_such_module; from the clone: pip install "\.\[peft\]"'):
        make(lacking, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_of_others_are_refused(tmp_path: Path, calls) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(StudyError, match="exists and holds no study; choose another --out"):
        make(study(1), tmp_path / "full")
    with pytest.raises(StudyError, match="is no folder; choose another --out"):
        make(study(1), tmp_path / "full" / "file" / "below")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "paper.json").write_text('{"study": "saddle"}')
    with pytest.raises(StudyError, match="holds the study 'saddle', not 'squares'"):
        make(study(1), tmp_path / "other")
    assert calls() == []


def test_rows_come_back_from_their_files_with_their_types(tmp_path: Path) -> None:
    of = study(1)
    given: list[Row] = [
        {"a": 1, "b": 0.1, "c": True, "d": None, "e": "two words, a comma", "f": float("inf")},
        {"a": -7, "b": 1e-300, "c": False, "d": "x", "e": '"', "f": 2.0},
    ]
    record = rows.Record("f", {"k": 2}, given, 1.5, "2026-01-01", "machine", "2.13.0")
    rows.write_csv(of, tmp_path, [record])
    found = rows.read_csv(of, tmp_path)
    assert found["f"] == [{"k": 2, **row} for row in given]
    assert [list(map(type, row.values())) for row in found["f"]] == [[int, *map(type, row.values())] for row in given]
    assert found["jobs"][0]["seconds"] == 1.5
    for text in ("7", "", "True", "nan"):
        with pytest.raises(ValueError, match="give back as another type"):
            rows.write_csv(of, tmp_path, [rows.Record("f", {}, [{"a": text}], 1.0, "d", "m", "2.13.0")])


def test_the_page_is_the_rows(tmp_path: Path, calls) -> None:
    of = study(2, 3)
    rows.write_csv(of, tmp_path, make(of, tmp_path / "out"))
    page, claims = pages.write(of, tmp_path)
    assert [claim.here for claim in claims] == ["least 4.00"]
    text = (tmp_path / "squares.md").read_text()
    assert "**Of 1 claim of the paper 1 holds here.**" in text
    assert "| Squares are positive | all | least 4.00 | **holds here** |" in text
    assert "| 3 | 19.0 |" in text
    assert "`untuned study squares`. 5 jobs, 0.0 minutes of one core in all, on 20" in text
    html = page.read_text()
    assert "<code>code</code> in it." in html
    assert "Another &lt; one." in html
    assert html.count("<svg") == 1
    assert (tmp_path / "squares.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "squares-square.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 5


@pytest.mark.skipif(sys.platform == "win32", reason="has no signals")
def test_a_study_that_is_killed_goes_on_where_it_was(tmp_path: Path, calls) -> None:
    program = (
        "import sys; from pathlib import Path; from untuned.study.papers import run; from untuned.study.papers.frame "
        "import *; import test_papers as t\n"
        "s = PaperStudy('slow', 'S', 'n', 'a', lambda n, r: [Job(t.slow, {'x': x}) for x in range(6)], None, None)\n"
        "if __name__ == '__main__': run.run(s, Path(sys.argv[1]), 2, 1, lambda *a: print(a[1], flush=True))\n"
    )
    (tmp_path / "program.py").write_text(program)
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    assert process.stdout.readline() == "2\n"
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert len(calls()) in (2, 3, 4)
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    made = again.stdout.split()
    assert made[-1] == "6"
    assert made[0] >= "3"
    assert len(calls()) == len(made)


def test_verdicts_by_intervals() -> None:
    assert told((0.1, 0.2), 0.1, 0.2) == "holds here"
    assert told((0.1, 0.2), 0.15) == "cannot be told at this scale"
    assert told((0.1, 0.2), 0.21) == "does not hold here"
    assert told((0.1, 0.2), high=0.05) == "does not hold here"
    assert told(None) == told((float("nan"), 1.0)) == "cannot be told at this scale"
    assert all_told(["holds here", "holds here"]) == "holds here"
    assert all_told(["holds here", "cannot be told at this scale"]) == "cannot be told at this scale"
    assert all_told(["cannot be told at this scale", "does not hold here"]) == "does not hold here"


DOCS = Path(__file__).parents[2] / "docs" / "papers"


@pytest.mark.parametrize("name", SUMMARIES)
def test_the_committed_rows_are_those_of_the_jobs_that_the_study_asks_for(name: str) -> None:
    """The pages themselves are compared in test_docs_generated.py."""
    paper = load(name)
    assert paper.name == name
    found = rows.read_csv(paper, DOCS)
    listed = [(job["function"], job["arguments"]) for job in found.pop(rows.JOBS)]
    asked = [
        (job.function.__name__, json.dumps(dict(job.arguments), sort_keys=True))
        for job in paper.jobs(paper.seeds, found)
    ]
    assert len(set(listed)) == len(listed)
    assert asked
    assert not set(asked) - set(listed)

"""What the terminal shows while a study runs."""

import io
import traceback
from pathlib import Path

import pytest
from rich.console import Console

from untuned.study.config import MethodEntry, Study, TaskEntry
from untuned.study.live import Live, time_left
from untuned.study.runner import Result
from untuned.study.store import Store

TASK = TaskEntry(name="line", title="", metric="val_loss", maximize=False, chance=1, batch_size=1, epochs=1)
STUDY = Study(version="1", tasks=(TASK,), methods=(MethodEntry(name="adam", lrs=(0.1, 1.0)),), seeds=(0, 1))


@pytest.mark.parametrize("terminal", [True, False])
def test_warnings_are_lines_with_the_run_and_its_lr_once_in_a_study(tmp_path: Path, terminal: bool):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=60, color_system=None)
    store = Store.create(tmp_path / "s", STUDY)
    long = "UserWarning: [bold]a\n  scheduler[/bold] " + "was stepped before its optimizer " * 3
    with Live(store, 1, False, console) as view:
        for run in STUDY.runs():
            view.started(run)
            view.ended(run, Result("done", 1.0, 10, {"val_loss": 0.5}, warnings=(long, f"of {run.lr:g}")))
    shown = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    lines = [line.removeprefix("\x1b[2K").strip() for line in shown.splitlines()]  # the code clears the bar's line
    said = [line for line in lines if "Warning" in line]
    assert said == ["line adam lr 0.1 seed 0: " + " ".join(long.split())]
    assert sum("of 0.1" in line for line in lines) == 1 and sum("of 1" in line for line in lines) == 1


def test_time_left_takes_each_task_by_its_own_duration():
    ended = [{"task": "a", "seconds": 1.0}, {"task": "a", "seconds": 3.0}, {"task": "b", "seconds": 10.0}]
    assert time_left(ended, ["a", "a", "b", "new"], 2) == pytest.approx((2 + 2 + 10 + 6) / 2)
    assert time_left([], ["a"], 1) is None


def test_a_reason_is_one_line_with_its_exception_and_names_of_tasks_are_no_emoji(tmp_path: Path):
    try:
        raise RuntimeError("sizes differ:\n  4 and 5" + " and 6" * 100)
    except RuntimeError:
        error = traceback.format_exc()
    console = Console(file=io.StringIO(), width=60)
    with Live(Store.create(tmp_path / "s", STUDY), 1, False, console) as view:
        for run, said in zip(STUDY.runs(), (error, "my:Mute: no loss"), strict=False):
            view.started(run)
            view.ended(run, Result("crashed", 1.0, error=said))
    first, second = console.file.getvalue().splitlines()  # pyright: ignore[reportAttributeAccessIssue]
    assert "crashed: RuntimeError: sizes differ: 4 and 5 and 6" in first and len(first) < 400
    assert "crashed: my:Mute: no loss" in second

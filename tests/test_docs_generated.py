"""The generated pages are those that the code would write now, and the study behind their pictures is complete."""

import dataclasses
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import untuned
from untuned.study.config import Run, Study, label
from untuned.study.runner import Result
from untuned.study.stats import Plateau
from untuned.study.store import Store

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import composition_matrix  # noqa: E402
import guide_page  # noqa: E402
import guide_study  # noqa: E402
import method_pages  # noqa: E402
import method_study  # noqa: E402
import paper_pages  # noqa: E402
import wrapper_study  # noqa: E402

METHODS = [untuned.get(name) for name in untuned.list()]


def test_pages_of_methods_are_up_to_date() -> None:
    assert method_pages.main(["--check"]) == 0, "run: python scripts/method_pages.py"


def test_guide_is_up_to_date() -> None:
    assert guide_page.main(["--check"]) == 0, "run: python scripts/guide_page.py"


def test_pages_of_studies_of_papers_are_up_to_date() -> None:
    assert paper_pages.main(["--check"]) == 0, "run: python scripts/paper_pages.py"


@pytest.fixture(scope="module")
def cells() -> list[composition_matrix.Cell]:
    return list(composition_matrix.cells())


def test_page_of_compositions_is_up_to_date(cells: list[composition_matrix.Cell]) -> None:
    written = composition_matrix.pages(cells)
    assert method_pages.publish(written, check=True) == 0, "run: python scripts/composition_matrix.py"


def test_notes_cover_every_method_and_option_and_nothing_else() -> None:
    notes = method_pages.notes()
    assert set(notes["methods"]) == {m.name for m in METHODS}
    assert set(notes["options"]) <= {option for m in METHODS for option in method_pages.options(m)}
    for method in METHODS:
        note, options = notes["methods"][method.name], set(method_pages.options(method))
        own = set(note.get("options", {}))
        assert own <= options, f"{method.name} has no option {own - options}"
        assert options <= own | set(notes["options"]), f"docs/methods/notes.toml: describe {options} of {method.name}"
        assert note["schedule"].endswith(".") and note["pitfalls"]
        parts = method_pages.build(method).parts.values()
        stated = [method_pages.Document.of(thing).differs for thing in (method.optimizer, *parts)]
        assert "differs" in note or any(stated), f"nothing says how {method.name} differs from other implementations"


def test_study_covers_every_method_at_its_default_lr() -> None:
    runs = {
        (r.task, f"{r.epochs:g}", r.method, f"{r.lr:g}", str(r.seed)) for r in method_study.study(untuned.list()).runs()
    }
    rows = {tuple(row[key] for key in ("task", "epochs", "method", "lr", "seed")) for row in method_study.read()}
    assert rows == runs, "run: python scripts/method_study.py " + " ".join(sorted({run[2] for run in rows ^ runs}))
    for name in untuned.list():
        picture = method_study.OUT / f"{name}.png"
        assert picture.stat().st_size < 25_000
        with Image.open(picture) as image:
            assert image.size == (616, 407)


def test_guide_has_all_runs_of_its_questions() -> None:
    runs = {
        (question, r.task, f"{r.epochs:g}", label(r.method, r.options), f"{r.lr:g}", str(r.seed))
        for question, asked in guide_study.QUESTIONS.items()
        for r in asked.study().runs()
    }
    columns = ("question", "task", "epochs", "method", "lr", "seed")
    rows = {tuple(row[key] for key in columns) for row in guide_study.read()}
    assert rows == runs, "run: python scripts/guide_study.py " + " ".join(sorted({run[0] for run in rows ^ runs}))


def test_page_of_wrappers_quotes_its_runs_and_no_other_number() -> None:
    rows, again = wrapper_study.read(), "run: OMP_NUM_THREADS=1 python scripts/wrapper_study.py"
    page = (ROOT / "docs" / "wrappers.md").read_text()
    section = page.partition("## As measured\n")[2].partition("\n## ")[0]
    tables = wrapper_study.tables(rows)
    assert all(table in section for table in tables), again
    prose = section
    for table in tables:
        prose = prose.replace(table, "")
    quoted = set(re.findall(r"\d+\.\d+", prose))
    assert quoted <= set(re.findall(r"\d+\.\d+", " ".join(tables))), "a number that is in neither table"
    assert wrapper_study.PNG.stat().st_size <= 150_000


def test_study_of_wrappers_has_all_its_runs() -> None:
    study, rows = wrapper_study, wrapper_study.read()
    asked = {("continual", net, study.ADAM_LR, None, seed) for net in study.NETS for seed in study.SEEDS}
    for contender in study.BATCHES:
        asked |= {("batch", contender, *study.tuned(rows, contender), seed) for seed in study.SEEDS}
        tried = [(lr, inner) for lr in study.LRS for inner in study.inner_lrs(contender, lr)]
        asked |= {("tuning", contender, lr, inner, seed) for lr, inner in tried for seed in study.TUNING_SEEDS}
    found = {
        (r["part"], r["contender"], float(r["lr"]), float(r["inner_lr"]) if r["inner_lr"] else None, int(r["seed"]))
        for r in rows
    }
    assert found == asked
    points = {"continual": study.TASKS + 1, "batch": study.EPOCHS + 1, "tuning": 1}
    assert len(rows) == sum(points[part] for part, *_ in asked)


# ---------------------------------------------------------------- what the pages are made of


def options(name: str) -> dict[str, method_pages.Option]:
    return {option.name: option for option in method_pages.described(untuned.get(name))}


def test_ranges_are_what_the_refusals_say() -> None:
    momo, prodigy, tam = options("momo"), options("prodigy"), options("tam")
    assert (momo["lr"].range, momo["beta"].range, momo["lb"].range) == ("[0, inf)", "[0, 1)", "(-inf, inf)")
    assert (momo["use_fstar"].range, momo["use_fstar"].shown) == ("True or False", "`False`")
    assert (prodigy["betas"].range, prodigy["beta3"].range) == ("two numbers in [0, 1)", "None or [0, 1)")
    assert tam["scope"].range == "one of tensor, group, model"
    assert options("sgd")["dampening"].range == "[0, 1]"  # of a part that is not there without momentum
    assert options("taps")["samples"].shown == "required"


def test_slots_are_counted_where_they_lie() -> None:
    sgd = untuned.get("sgd")
    assert method_pages.Slots.of(method_pages.build(sgd)) == method_pages.Slots((), 0)
    assert options("sgd")["momentum"].slots == method_pages.Slots(("momentum_buffer",), 4)
    adam = method_pages.build(untuned.get("adam"))
    assert method_pages.Slots.of(adam) == method_pages.Slots(("exp_avg", "exp_avg_sq"), 8)
    sliced = options("prodigy")["slice_p"]
    assert (sliced.other, sliced.slots.bytes, len(sliced.slots.keys)) == (2, 12, 4)


def test_a_docstring_comes_apart() -> None:
    def documented() -> None:
        """A method: arXiv 1234.56789.

        It does this.
            x <- x

        Needs care (very). Differs from the paper in lr. It is positive. Needs the loss. Sweeps: 2. Slots: 1.

            u = g

        >>> 1 + 1
        2
        """

    document = method_pages.Document.of(documented)
    assert document.differs == "Differs from the paper in lr. It is positive."
    assert document.example == ">>> 1 + 1\n2"
    assert document.text.endswith("Needs care (very). Needs the loss.\n\n    u = g")


def test_check_finds_what_is_stale_and_touches_nothing(tmp_path: Path) -> None:
    fresh, stale, missing, leftover = (tmp_path / name for name in ("a.md", "b.md", "c.md", "d.md"))
    fresh.write_text("a")
    stale.write_text("old")
    leftover.write_text("d")
    pages = {fresh: "a", stale: "b", missing: "c"}
    assert method_pages.publish({fresh: "a"}, check=True) == 0
    assert method_pages.publish(pages, check=True) == 1
    assert method_pages.publish({fresh: "a"}, check=True, leftovers=[leftover]) == 1
    assert (stale.read_text(), missing.exists(), leftover.exists()) == ("old", False, True)
    assert method_pages.publish(pages, check=False, leftovers=[leftover]) == 0
    assert (stale.read_text(), missing.read_text(), leftover.exists()) == ("b", "c", False)


def test_compositions_know_theory_and_refusals(cells: list[composition_matrix.Cell]) -> None:
    at = {(cell.direction, cell.step_size, cell.iterate): cell for cell in cells}
    assert at["Adam", "MoMo", "Plain"].theory and not at["Adam", "MoMo", "Plain"].refusal
    assert at["TAM", "Fixed", "Plain"].theory
    assert at["RMSProp", "WarmedUp", "ScheduleFree"].theory  # of a named class
    assert not at["Adam", "Prodigy", "ScheduleFree"].refusal and not at["Adam", "Prodigy", "ScheduleFree"].theory
    assert at["TAM", "MoMo", "Plain"].refusal.startswith("MoMo cannot use TAM: it needs 'average'")


# ---------------------------------------------------------------- the study


def finished(folder: Path, study: Study, results: Callable[[Run], Result]) -> Store:
    """A store in which every run of the study ended as `results` says."""
    store = Store.create(folder, study)
    with store.writing():
        for run in study.runs():
            store.start(run)
            store.finish(run, results(run))
    return store


def test_a_study_becomes_rows_and_a_picture(tmp_path: Path) -> None:
    small = method_study.study(["adamw", "sgd"], seeds=3)
    assert [method.lrs for method in small.methods] == [(1e-05, 4.64e-05, 0.000215, 0.001, 0.00464, 0.0215, 0.1)] * 2

    def result(run: Run) -> Result:
        if (run.method, run.lr, run.seed) == ("sgd", 0.1, 1):
            return Result("diverged", error="train_loss is nan after step 7")
        accuracy = {"adamw": 0.8, "sgd": min(0.5, 50 * run.lr)}[run.method] + run.seed / 100
        return Result("done", final={"val_loss": 1.0, "val_accuracy": accuracy})

    rows = method_study.rows(finished(tmp_path / "study", small, result))
    assert [row["seed"] for row in rows] == ["0", "1", "2"] * 14
    assert rows[-2] == {
        "task": "fashion-mlp", "epochs": "20", "method": "sgd", "lr": "0.1", "seed": "1", "metric": "val_accuracy",
        "value": "", "status": "diverged",
    }  # fmt: skip
    assert [row["value"] for row in rows[-3:]] == ["0.5", "", "0.52"]

    mine, reference = (method_study.Sensitivity.of(name, rows, chance=0.1) for name in ("sgd", "adamw"))
    assert mine.finals[-1].tolist() == [0.5, 0.1, 0.52]
    assert mine.finals[0].tolist() == [0.1, 0.1, 0.1]  # worse than chance counts as chance
    assert (mine.medians[-1], mine.medians[3]) == (0.5, pytest.approx(0.1)) and reference.medians[0] == 0.81
    assert mine.diverged.tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert (mine.best, mine.default, reference.best, reference.default) == (5, 3, 0, 3)
    assert reference.within(0.01) == Plateau(1e-5, 0.1, open_low=True, open_high=True)
    assert mine.within(0.02, of=0.81) is None  # never comes so far
    assert dataclasses.replace(mine, finals=np.full((7, 3), 0.1)).within(0.01) is None  # learned nothing
    assert method_study.summary(method_study.standings(rows)) == [
        ("adamw", "81.0 (80.0 to 82.0)", "0.001", "+0.0", "81.0", "1e-05", "+0.0",
         "≥ 4.0", "≥ 4.0", "≥ 4.0", "0 of 21"),
        ("sgd", "10.0 (10.0 to 10.0)", "0.001", "-71.0", "51.0", "0.0215", "-30.0", "≥ 0.7", "≥ 0.7", "0", "1 of 21"),
    ]  # fmt: skip
    method_study.draw_overview(tmp_path / "overview.png", method_study.standings(rows), "validation accuracy (%)")
    with Image.open(tmp_path / "overview.png") as overview:
        assert overview.size == (902, 220)
    method_study.draw(tmp_path / "sgd.png", mine, reference, "validation accuracy (%)")
    colors = Image.open(tmp_path / "sgd.png").convert("RGB").getcolors()
    assert colors and {(213, 94, 0), (127, 127, 127)} <= {_near(color) for _, color in colors}

    path = tmp_path / "study.csv"
    method_study.merge(path, rows)
    assert method_study.read(path) == rows
    method_study.merge(path, [row | {"value": "1"} for row in rows if row["method"] == "sgd"])
    assert [row["value"] for row in method_study.read(path)] == [row["value"] for row in rows[:21]] + ["1"] * 21


def _near(color: Any) -> tuple[int, int, int]:
    """The colour of the method or of the reference if it is within what a palette of 48 moves it by."""
    for wanted in ((213, 94, 0), (127, 127, 127)):
        if max(abs(a - b) for a, b in zip(color, wanted, strict=True)) <= 12:
            return wanted
    return color


def test_the_guide_reads_cells(tmp_path: Path) -> None:
    def row(method: str, lr: str, seed: int, value: str) -> method_study.Row:
        values = ("fashion-mlp", "20", method, lr, str(seed), "val_accuracy", value, "done" if value else "diverged")
        return dict(zip(method_study.COLUMNS, values, strict=True))

    path = tmp_path / "guide.csv"
    guide_study.merge(path, "schedule", [row("prodigy(slice_p=11)", "1", 0, "0.9")])
    guide_study.merge(path, "constant", [row("adamw", "1", 0, "0.6"), row("adamw", "2", 0, "0.5")])
    both = [row("adamw", lr, seed, value) for lr, value in (("1", "0.7"), ("2", "")) for seed in (0, 1)]
    both[0]["value"] = "0.5"
    guide_study.merge(path, "constant", both)
    rows = guide_study.read(path)
    assert [found["question"] for found in rows] == ["constant"] * 4 + ["schedule"]
    cells = guide_page.Cells(rows, "constant", "fashion-mlp")
    assert cells["adamw 1"].long == "60.0 ± 10.0 (50.0 to 70.0)" and cells.tuned is cells["adamw 1"]
    assert cells["adamw 2"].finals.tolist() == [0.1, 0.1]  # diverged counts as chance
    with pytest.raises(ValueError, match="too many values"):
        cells["adamw"]  # at which lr?
    assert guide_page.side_by_side({"a": cells}).splitlines()[2] == "| `adamw` | 1 | 60.0 ± 10.0 (50.0 to 70.0) |"


def test_networks_of_the_guide_are_what_they_say() -> None:
    unlike, half = guide_study.Unlike(), guide_study.BFloat16()
    like, other = unlike.model(0).children()
    other.load_state_dict({f"network.{key}": 1000 * value for key, value in like.state_dict().items()})
    assert torch.allclose(like(unlike.x[:9]), other(unlike.x[:9]), rtol=1e-5, atol=1e-6)
    assert {p.dtype for p in half.model(0).parameters()} == {torch.bfloat16} == {half.x.dtype}


def test_a_crashed_run_is_no_result(tmp_path: Path) -> None:
    small = method_study.study(["sgd"], seeds=1)
    store = finished(tmp_path / "study", small, lambda _: Result("crashed", error="RuntimeError: no memory"))
    with pytest.raises(RuntimeError, match=r"^sgd lr 1e-05 seed 0 crashed:\nRuntimeError: no memory$"):
        method_study.rows(store)

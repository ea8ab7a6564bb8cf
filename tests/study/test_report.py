"""Reports of synthetic studies: numbers in tables, page and picture; partial, broken and unusual studies."""

import csv
import html
import io
import json
import math
import re
import sqlite3
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

import untuned
from untuned.study import charts, report, report_tables
from untuned.study.config import MethodEntry, Run, Study, StudyError, TaskEntry
from untuned.study.headline import headline
from untuned.study.looks import styles
from untuned.study.results import _curve, load

LRS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
MLP = TaskEntry(
    name="fashion-mlp",
    title="MLP 784-100-100-10 on 2,000 Fashion-MNIST images",
    metric="val_accuracy",
    maximize=True,
    chance=0.1,
    batch_size=64,
    epochs=10,
)
TEXT = TaskEntry(
    name="sotu-transformer",
    title="Character transformer on the State of the Union",
    metric="val_bits_per_char",
    maximize=False,
    chance=6.0,
    batch_size=32,
    epochs=4,
)


def study(
    tasks: Iterable[TaskEntry] = (MLP,),
    methods: Iterable[str | MethodEntry] = ("adam", "momo_adam"),
    lrs: tuple[float, ...] = LRS,
    seeds: int = 3,
) -> Study:
    """Methods given by name have no default lr."""
    return Study(
        version="0.1.0",
        tasks=tuple(tasks),
        methods=tuple(MethodEntry(name=m, lrs=lrs) if isinstance(m, str) else m for m in methods),
        seeds=tuple(range(seeds)),
    )


Final = Callable[[Run], float | None]  # the metric a run ends with; None: it diverges


def ended(_: Run) -> str | None:
    return "done"


def build(
    folder: Path, what: Study, final: Final, *, status: Callable[[Run], str | None] = ended, backwards: bool = False
) -> Path:
    """Write a study's folder; `status` says what became of each run (None: it never began)."""
    (folder / "curves").mkdir(parents=True)
    (folder / "study.json").write_text(what.model_dump_json())
    db = sqlite3.connect(folder / "ledger.sqlite")
    db.execute("PRAGMA journal_mode=WAL")
    db.execute(
        "CREATE TABLE runs(run TEXT PRIMARY KEY, task TEXT, method TEXT, lr REAL, seed INTEGER, options TEXT, "
        "epochs REAL, status TEXT, started REAL, seconds REAL, steps INTEGER, final TEXT, error TEXT, versions TEXT, "
        "machine TEXT)"
    )
    tasks = {task.name: task for task in what.tasks}
    runs = what.runs()
    for i, run in enumerate(reversed(runs) if backwards else runs):
        task, value, state = tasks[run.task], final(run), status(run)
        if state is None:
            continue
        if state == "done" and value is None:
            state = "diverged"
        finished = state in ("done", "diverged")
        row = {
            "run": run.id,
            "task": run.task,
            "method": run.method,
            "lr": run.lr,
            "seed": run.seed,
            "options": json.dumps(run.options),
            "epochs": run.epochs,
            "status": state,
            "started": 1.7e9 + i,
            "seconds": 3.6 if finished else None,
            "steps": 200 if finished else None,
            "final": json.dumps({"val_loss": 0.5, task.metric: value}) if state == "done" else None,
            "error": "RuntimeError: <no> memory" if state == "crashed" else None,
            "versions": json.dumps({"torch": "2.13.0", "python": "3.11.2"}),
            "machine": json.dumps({"cpu": "Example 3000", "cores": 2}),
        }
        db.execute(f"INSERT INTO runs VALUES ({','.join('?' * len(row))})", tuple(row.values()))
        if finished:
            pq.write_table(curve(run, value, task), folder / "curves" / f"{run.id}.parquet")
    db.commit()
    db.close()
    return folder


STEP_US = {"sgd": 60, "adam": 100, "momo": 110, "momo_adam": 155, "prodigy": 210, "schedule_free_adamw": 130}


def curve(run: Run, value: float | None, task: TaskEntry) -> pa.Table:
    n = 21 if value is not None else 4
    t = np.arange(n) / 20
    rng = np.random.default_rng([run.seed, int(run.id, 16)])
    goal = task.chance if value is None else value
    level = 1.3 - goal if task.maximize else goal / 3
    loss = (2.3 - level) * np.exp(-6 * t) + level * (1 - 0.4 * t) + 0.02 * rng.standard_normal(n)
    wide = run.method in ("momo", "momo_adam", "prodigy")
    lr = run.lr * np.ones(n) if not wide else np.minimum(run.lr, 0.08 * np.exp(-2 * t) * (1 + 0.1 * rng.random(n)))
    if run.method == "prodigy":
        lr = run.lr * np.minimum(1e-3, 1e-6 * np.exp(60 * t))
    measured = np.arange(n) > 0
    us = STEP_US.get(run.method, 100) * (1 + 0.02 * (run.seed - 1)) * np.ones(n)
    return pa.table(
        {
            "step": pa.array(10 * np.arange(n), pa.int32()),
            "epoch": pa.array(task.epochs * t, pa.float32()),
            "train_loss": pa.array(loss, pa.float32(), mask=~measured),
            "val_loss": pa.array(loss + 0.1, pa.float32()),
            "metric": pa.array(task.chance + (goal - task.chance) * (1 - np.exp(-6 * t)), pa.float32()),
            "lr_effective": pa.array(lr, pa.float32()),
            "step_us": pa.array(us, pa.float32(), mask=~measured),
            "fwdbwd_us": pa.array(900 * np.ones(n), pa.float32(), mask=~measured),
        }
    )


def realistic(run: Run) -> float | None:
    """Rises by learning rate to a top, stays there as wide as the method is robust, then diverges."""
    x = math.log10(run.lr)
    start, end, top = {
        "sgd": (-1.0, 0.3, 0.835),
        "adam": (-3.1, -2.2, 0.852),
        "momo": (-0.7, 9.0, 0.848),
        "momo_adam": (-3.0, 9.0, 0.857),
        "prodigy": (-1.2, 1.0, 0.855),
        "schedule_free_adamw": (-2.9, -1.3, 0.851),
    }[run.method]
    noise = np.random.default_rng([run.seed, int(run.id, 16)]).standard_normal()
    below, above = max(0.0, start - x), max(0.0, x - end)
    if above > 2.0 + 0.3 * noise:
        return None
    score = 0.1 + (top - 0.1) * math.exp(-0.09 * below**2 - 0.35 * above**2) + 0.003 * noise * (1 + 8 * (above > 1))
    return (
        score if run.task == MLP.name else 2.35 + 5.2 * (0.86 - score) + (0.25 if run.method in ("sgd", "momo") else 0)
    )


def peak_at(best_lr: float, top: float = 0.9, fall: float = 0.1) -> Final:
    """Loses `fall` per decade away from best_lr, the same for all seeds up to 0.001 * (seed - 1)."""
    return lambda run: top - fall * abs(math.log10(run.lr / best_lr)) + 0.001 * (run.seed - 1)


def table(folder: Path, name: str) -> list[dict[str, str]]:
    with open(folder / "tables" / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def markdown(folder: Path) -> str:
    return (folder / "tables" / "summary.md").read_text(encoding="utf-8")


def text_of(page: Path) -> str:
    """What a reader sees of the page, without tags."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page.read_text(encoding="utf-8"))).split())


def axes(draw: Callable[..., None], *args: object, **options: object) -> Axes:
    ax = Figure().add_subplot()
    draw(ax, *args, **options)
    return ax


@pytest.fixture(scope="module")
def two_methods(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adam peaks sharply at 1e-3 (90 %), MoMo-Adam broadly at 1e-2 (89 %)."""
    sharp, broad = peak_at(1e-3, 0.9, 0.1), peak_at(1e-2, 0.89, 0.004)
    folder = build(
        tmp_path_factory.mktemp("two") / "study", study(), lambda run: (sharp if run.method == "adam" else broad)(run)
    )
    assert report.write(folder) == folder / "report.html"
    return folder


def test_summary_table_has_the_closed_form_numbers(two_methods: Path):
    adam, momo = table(two_methods, "summary")
    assert (adam["method"], adam["metric"], adam["best_lr"]) == ("adam", "val_accuracy", "0.001")
    assert (adam["mean"], adam["n"], adam["low95"], adam["high95"], adam["tolerance"]) == (
        "0.9",
        "3",
        "0.899",
        "0.901",
        "0.02",
    )
    assert (adam["own_decades"], adam["own_lower_bound"], adam["overall_decades"]) == ("0.4", "False", "0.4")
    assert float(adam["own_low"]) == pytest.approx(10**-3.2, rel=1e-5)
    # MoMo-Adam is above 0.88 for 2.5 decades to the right of its best; to the left the grid ends after 2.
    assert (momo["own_decades"], momo["own_lower_bound"]) == ("6", "True")
    assert (momo["overall_decades"], momo["overall_lower_bound"]) == ("4.5", "True")
    assert (momo["diverged"], momo["runs"]) == ("0", "21")
    assert "| default lr | final validation accuracy (%) at the default lr | n at the default lr |" in markdown(
        two_methods
    )
    assert "| decades within 2 points of own best | decades within 2 points of best of all |" in markdown(two_methods)
    assert "| adam | – | none | 0 | – | 0.001 | 90.0 | 3 | 89.9 to 90.1 | 0.4 | 0.4 | 0 of 21 |" in markdown(
        two_methods
    )
    assert "| momo_adam | – | none | 0 | – | 0.01 | 89.0 | 3 | 88.9 to 89.1 | ≥ 6.0 | ≥ 4.5 | 0 of 21 |" in markdown(
        two_methods
    )


def test_other_tables_hold_every_run_and_every_learning_rate(two_methods: Path):
    runs, by_lr = table(two_methods, "runs"), table(two_methods, "by_lr")
    assert len(runs) == 42 and len(by_lr) == 14
    assert runs[0] == {"task": "fashion-mlp", "method": "adam", "lr": "0.0001", "seed": "0", "metric": "val_accuracy",
                       "value": "0.799", "diverged": "False"}  # fmt: skip
    assert {k: by_lr[0][k] for k in ("mean", "min", "max", "n")} == {
        "mean": "0.8",
        "min": "0.799",
        "max": "0.801",
        "n": "3",
    }
    assert table(two_methods, "step_cost") == [
        {"task": "fashion-mlp", "method": "adam", "step_us": "100", "ratio": "1"},
        {"task": "fashion-mlp", "method": "momo_adam", "step_us": "155", "ratio": "1.55"},
    ]


def test_page_says_it_in_one_sentence_and_in_numbers(two_methods: Path):
    text = text_of(two_methods / "report.html")
    assert (
        "Adam stays within 2 points of its best over 0.4 decades of learning rate, MoMo-Adam over at least 6.0."
    ) in text
    assert "2 methods, 7 learning rates from 10⁻⁴ to 10², 3 seeds, 1 task: 42 runs, 0 of them diverged" in text
    assert "Adam – none 0 – 0.001 90.0 3 89.9 to 90.1 0.4 0.4 0 of 21 100 µs, 1.00× –" in text
    assert "Adam, lr 10⁻³: mean 90.0, range 89.9 to 90.1, n = 3" in text  # a tooltip
    assert "missing" not in text
    assert "2023-11-14 (UTC)" in text and "torch 2.13.0" in text and "cpu Example 3000" in text


def test_page_loads_nothing_and_needs_no_script(two_methods: Path):
    page = (two_methods / "report.html").read_text(encoding="utf-8")
    loaded = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]*)""", page) + re.findall(r"url\(([^)]*)\)", page)
    assert len(loaded) > 100 and all(target.startswith(("#", "data:")) for target in loaded)
    assert "<script" not in page and "@import" not in page
    assert page.count("<svg") == 7 + 2  # seven charts and a swatch per method
    assert len(page) < 300_000


def test_same_results_in_another_order_give_the_same_bytes(two_methods: Path, tmp_path: Path):
    sharp, broad = peak_at(1e-3, 0.9, 0.1), peak_at(1e-2, 0.89, 0.004)
    other = build(tmp_path / "s", study(), lambda run: (sharp if run.method == "adam" else broad)(run), backwards=True)
    for _ in range(2):  # written over itself, too
        report.write(other)
        for name in ("report.html", "tables/summary.md", *(f"tables/{t}.csv" for t in ("runs", "by_lr", "summary"))):
            assert (other / name).read_bytes() == (two_methods / name).read_bytes(), name


def test_partial_study_shows_what_is_there_and_counts_the_rest(tmp_path: Path):
    def status(run: Run) -> str | None:
        if run.method == "adam":
            return {0: "done", 1: "crashed", 2: "running"}[run.seed]
        return "done" if run.lr < 1 else None

    folder = build(tmp_path / "s", study(), peak_at(1e-2, 0.9, 0.001), status=status)
    text = text_of(report.write(folder))
    assert "23 of 42 runs missing (9 not run, 7 running, 7 crashed)" in text
    assert "mean over up to 3 seeds" in text
    assert "fashion-mlp adam lr 0.001 seed 1 RuntimeError: <no> memory" in text
    adam, momo = table(folder, "summary")
    assert (adam["n"], adam["runs"], adam["low95"]) == ("1", "7", "")
    assert (momo["n"], momo["runs"]) == ("3", "12")
    # four of seven learning rates were tried: three decades, open to both sides
    assert (momo["own_decades"], momo["own_lower_bound"]) == ("3", "True")


def test_study_in_which_nothing_has_run_yet(tmp_path: Path):
    folder = build(tmp_path / "s", study(), peak_at(1), status=lambda run: None)
    text = text_of(report.write(folder))
    assert "No run has finished yet." in text and "42 of 42 runs missing (42 not run)" in text
    assert "| adam | – | none | 0 | – | – | – | 0 | – | 0 | 0 | 0 of 0 |" in markdown(folder)


def test_study_in_which_everything_crashed_says_why(tmp_path: Path):
    folder = build(tmp_path / "s", study(), peak_at(1), status=lambda run: "crashed")
    page = report.write(folder)
    text = text_of(page)
    assert "No run has finished: 42 of 42 crashed. " in text
    why = "fashion-mlp: 42 runs crashed: RuntimeError: <no> memory"
    assert text.count(why) == 1 + 1  # above, and in the place of the charts
    shown = page.read_text(encoding="utf-8").split("<main>")[1]
    assert "<svg" not in shown and "<table" not in shown and re.findall("<h2>(.*?)</h2>", shown) == ["Crashed runs"]
    ax = axes(charts.words, text=load(folder).tasks[0].nothing)
    assert [" ".join(t.get_text().split()) for t in ax.texts] == ["No run has finished; " + why + "."]
    assert not ax.axison


def test_task_that_crashed_beside_one_that_did_not(tmp_path: Path):
    crashes = lambda run: "crashed" if run.task == TEXT.name else "done"  # noqa: E731
    folder = build(tmp_path / "s", study([MLP, TEXT]), peak_at(1), status=crashes)
    first, second = load(folder).tasks
    assert (first.nothing, second.nothing[:60]) == ("", "No run has finished; sotu-transformer: 42 runs crashed: Runt")
    assert text_of(report.write(folder)).count("sotu-transformer: 42 runs crashed") == 2


def test_no_room_for_a_report_is_one_sentence(tmp_path: Path):
    folder = build(tmp_path / "s", study(), peak_at(1))
    (folder / "report.html").mkdir()
    with pytest.raises(
        StudyError, match=rf"cannot write a report to {folder} \(.*\); the runs are kept, `untuned repor"
    ):
        report.write(folder)


def test_one_seed_has_no_interval_and_says_so(tmp_path: Path):
    folder = build(tmp_path / "s", study(methods=["adam"], seeds=1), peak_at(1e-1, 0.8, 0.1))
    text = text_of(report.write(folder))
    assert "Adam stays within 2 points of its best over 0.4 decades of learning rate." in text
    assert "1 method, 7 learning rates from 10⁻⁴ to 10², 1 seed, 1 task: 7 runs" in text
    assert "| adam | – | none | 0 | – | 0.1 | 79.9 | 1 | none (n = 1) | 0.4 | 0.4 | 0 of 7 |" in markdown(folder)


def test_method_that_always_diverges_counts_as_chance_without_plateau(tmp_path: Path):
    good = peak_at(1e-1, 0.8, 0.1)
    folder = build(
        tmp_path / "s", study(methods=["momo", "sgd"]), lambda run: good(run) if run.method == "momo" else None
    )
    text = text_of(report.write(folder))
    assert "MoMo stays within 2 points of its best over 0.4 decades of learning rate." in text
    assert "| sgd | – | none | 0 | – | 0.0001 | 10.0 | 3 | 10.0 to 10.0 | 0 | 0 | 21 of 21 |" in markdown(folder)
    assert "no better than chance" in text and "SGD, lr 10²: 3 of 3 diverged" in text
    assert {row["value"] for row in table(folder, "runs") if row["method"] == "sgd"} == {""}
    assert {row["mean"] for row in table(folder, "by_lr") if row["method"] == "sgd"} == {"0.1"}

    result = load(folder).tasks[0]
    ax = axes(charts.lr_picture, result, looks=styles({"momo": "MoMo", "sgd": "SGD"}))
    crosses = [line for line in ax.lines if line.get_marker() == "x"]
    assert len(crosses) == 7 and {float(line.get_ydata()[0]) for line in crosses} == {0.1}
    assert set(result.train_loss) == {"momo"}


def test_a_loss_that_became_infinite_at_the_last_evaluation_is_a_divergence(tmp_path: Path):
    final = peak_at(1e-1, 0.8, 0.1)
    folder = build(tmp_path / "s", study(methods=["sgd"]), lambda run: math.nan if run.lr == 100 else final(run))
    report.write(folder)
    assert table(folder, "summary")[0]["diverged"] == "3"
    assert table(folder, "by_lr")[-1]["mean"] == "0.1"


def test_minimised_metric_is_ranked_and_drawn_the_other_way_round(tmp_path: Path):
    # 0.3 bits more per decade; the tolerance is 2 % of the 6 bits of chance, 0.12: 0.4 decades to each side.
    final = peak_at(1e-2, -2.5, 0.3)
    what = study([TEXT], ["schedule_free_adamw", "prodigy"])
    folder = build(
        tmp_path / "s", what, lambda run: 9.0 if run.lr == 100 and run.method == "prodigy" else -(final(run) or 0)
    )
    text = text_of(report.write(folder))
    assert "Schedule-Free-AdamW stays within 0.12 of its best over 0.8 decades of learning rate" in text
    row = table(folder, "summary")[0]
    assert (row["best_lr"], row["mean"], row["tolerance"], row["own_decades"]) == ("0.01", "2.5", "0.12", "0.8")
    assert (
        "| schedule_free_adamw | – | none | 0 | – | 0.01 | 2.500 | 3 | 2.499 to 2.501 | 0.8 | 0.8 | 0 of 21 |"
        in markdown(folder)
    )

    looks = styles({"schedule_free_adamw": "a", "prodigy": "b"})
    ax = axes(charts.lr_picture, load(folder).tasks[0], looks=looks)
    lower, upper = ax.get_ylim()
    assert lower > 6.0 and 2.0 < upper < 2.5  # better is up
    # Prodigy's 9 bits at the last learning rate are worse than chance and count as chance.
    assert [r["value"] for r in table(folder, "runs") if r["lr"] == "100"][:3] == ["9", "9", "9"]
    assert table(folder, "by_lr")[-1]["mean"] == "6"
    prodigy = next(line for line in ax.lines if line.get_gid() == "m1" and len(line.get_xdata()) == 7)
    assert prodigy.get_ydata()[-1] == 6.0


def test_picture_has_a_panel_per_task_and_lines_through_the_means(two_methods: Path, tmp_path: Path):
    folder = build(tmp_path / "s", study([MLP, TEXT], ["adam"], lrs=(0.1, 1.0), seeds=1), lambda run: 0.5)
    report.write(folder)
    sizes = [struct.unpack(">II", (f / "report.png").read_bytes()[16:24]) for f in (two_methods, folder)]
    assert sizes[1][0] == 2 * sizes[0][0] and sizes[1][1] == sizes[0][1]

    ax = axes(charts.lr_picture, load(two_methods).tasks[0], looks=styles({"adam": "Adam", "momo_adam": "M"}))
    line = next(line for line in ax.lines if line.get_gid() == "m0" and len(line.get_xdata()) == 7)
    np.testing.assert_allclose(line.get_xdata(), LRS)
    np.testing.assert_allclose(line.get_ydata(), [0.8, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4])


def test_headline_compares_adam_with_the_widest_that_keeps_up_with_the_best(tmp_path: Path):
    of = {"adam": peak_at(1e-2, 0.9, 0.1), "momo": peak_at(1e-2, 0.5, 0.0), "prodigy": peak_at(1e-2, 0.89, 0.02)}
    folder = build(tmp_path / "a", study(methods=of), lambda run: of[run.method](run))
    text = text_of(report.write(folder))
    assert "Adam stays within 2 points of its best over 0.4 decades of learning rate, Prodigy over 2.0." in text
    _, momo, prodigy = table(folder, "summary")
    assert (momo["own_decades"], momo["overall_decades"], prodigy["overall_decades"]) == ("6", "0", "1")

    of = {"momo_adam": peak_at(1e-2, 0.882, 0.004), "adam": of["adam"], "prodigy": of["prodigy"]}
    folder = build(tmp_path / "b", study(methods=of), lambda run: of[run.method](run))
    text = text_of(report.write(folder))
    assert "over 0.4 decades of learning rate, MoMo-Adam over at least 6.0." in text


def test_methods_with_options_and_learning_rates_of_their_own_stay_apart(tmp_path: Path):
    plain = MethodEntry(name="adam", lrs=(1e-3, 1e-2))
    slow = MethodEntry(name="adam", options={"betas": (0.9, 0.99)}, lrs=(1.0,))
    what = Study(version="0.1.0", tasks=(MLP,), methods=(plain, slow), seeds=(0, 1))
    folder = build(tmp_path / "s", what, lambda run: 0.7 if run.options else 0.8)
    text = text_of(report.write(folder))
    assert [(r["method"], r["mean"], r["runs"]) for r in table(folder, "summary")] == [
        ("adam", "0.8", "4"),
        ("adam(betas=(0.9, 0.99))", "0.7", "2"),
    ]
    assert "Adam(betas=(0.9, 0.99))" in text and "missing" not in text


def test_lost_curve_costs_its_curve_only(tmp_path: Path):
    folder = build(tmp_path / "s", study(methods=["adam"], lrs=(0.1,), seeds=1), lambda run: 0.8)
    for path in (folder / "curves").iterdir():
        path.unlink()
    assert "not measured" in text_of(report.write(folder))
    assert table(folder, "summary")[0]["mean"] == "0.8" and table(folder, "step_cost")[0]["step_us"] == ""


def test_folder_without_a_study_is_refused_and_left_alone(tmp_path: Path):
    with pytest.raises(StudyError, match=r"holds no study: study\.json is missing"):
        report.write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_realistic_study_tells_who_needs_no_tuning(tmp_path: Path):
    what = study([MLP, TEXT], ["sgd", "adam", "momo", "momo_adam", "prodigy", "schedule_free_adamw"])
    folder = build(tmp_path / "s", what, realistic)
    text = text_of(report.write(folder))
    found = re.findall(
        r"(\S+): Adam stays within \S+(?: points)? of its best over (\S+) decades of learning rate, "
        r"MoMo-Adam over at least (\d\.\d)",
        text,
    )
    assert {task for task, _, _ in found} == {MLP.name, TEXT.name}
    assert all(1 < float(adam) < 2 and float(momo) > 5 for _, adam, momo in found)
    assert "means within 2 points of validation accuracy or 0.12 of validation bits per char." in text
    assert len(table(folder, "runs")) == 252 and len(table(folder, "summary")) == 12
    prodigy = load(folder).tasks[0].lr_effective["prodigy"]
    assert prodigy.mean[-1] / prodigy.mean[0] == pytest.approx(1000, rel=1e-5)  # d grew


# What people get


def entry(name: str, *lrs: float, default: float | None = None, **trained: object) -> MethodEntry:
    return MethodEntry.model_validate({"name": name, "lrs": lrs, "default_lr": default, **trained})


def by_rate(values: dict[str, dict[float, float | None]]) -> Final:
    """Final metrics by method and lr, 0.001 apart by seed."""

    def final(run: Run) -> float | None:
        value = values[run.label][run.lr]
        return None if value is None else value + 0.001 * (run.seed - 1)

    return final


def test_results_at_the_default_come_first_beside_the_best_of_the_grid(tmp_path: Path):
    adam, prodigy = entry("adam", 1e-3, 1e-2, default=1e-3), entry("prodigy", 1.0, default=1.0)
    sgd = entry("sgd", 0.1, default=1e-3)
    final = by_rate({"adam": {1e-3: 0.8, 1e-2: 0.832}, "prodigy": {1.0: 0.834}, "sgd": {0.1: 0.7}})
    folder = build(tmp_path / "s", study(methods=[adam, prodigy, sgd]), final)
    page = report.write(folder)
    text = text_of(page)
    heads = re.findall("<h2>(.*?)</h2>", page.read_text(encoding="utf-8"))
    assert heads[:2] == ["Results at the default learning rate", "Final result against learning rate"]
    assert text.startswith(
        "At its default lr, Prodigy ends at 83.4 % validation accuracy, best of 2; Adam with the best of 2 learning "
        "rates at 83.2 %."
    )
    assert "Adam, default lr 10⁻³: mean 80.0, range 79.9 to 80.1, n = 3" in text
    assert "Adam, best of 2 lr: 83.2 at lr 10⁻²" in text
    assert "Adam 0.001 80.0 3 79.9 to 80.1 0.01 83.2 3 83.1 to 83.3" in text
    assert "SGD 0.001 not run 0 – 0.1 70.0 3" in text  # the user gave a learning rate instead
    assert "chosen on the same runs" in text
    rows = {row["method"]: row for row in table(folder, "summary")}
    assert [rows["adam"][k] for k in ("default_lr", "default_mean", "default_n", "lrs")] == ["0.001", "0.8", "3", "2"]
    assert [rows["sgd"][k] for k in ("default_lr", "default_mean", "best_lr", "mean")] == ["0.001", "", "0.1", "0.7"]

    result = load(folder).tasks[0]
    looks = styles({"adam": "Adam", "prodigy": "Prodigy", "sgd": "SGD"})
    ax = axes(charts.default_picture, result, looks=looks)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["Prodigy", "Adam", "SGD"]  # the best first
    dots = next(
        line for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata()) == 3 and line.get_gid() == "m0"
    )
    np.testing.assert_allclose(sorted(dots.get_xdata()), [0.799, 0.8, 0.801])
    low, high = ax.get_xlim()
    assert low < 0.7 < 0.834 < high


def test_why_a_default_has_no_result(tmp_path: Path):
    methods = [entry("adam", 1e-3, 1e-2, default=1e-3), entry("momo", 1.0, 2.0, default=1.0), entry("sgd", 0.1)]
    methods.append(entry("prodigy", 1.0, 2.0, default=1.0))

    def status(run: Run) -> str | None:
        return {("adam", 1e-3): "crashed", ("momo", 1.0): "running", ("prodigy", 1.0): None}.get(
            (run.method, run.lr), "done"
        )

    folder = build(tmp_path / "s", study(methods=methods), lambda run: 0.8, status=status)
    absent = load(folder).tasks[0].absent
    assert absent == {"adam": "crashed", "momo": "running", "sgd": "none", "prodigy": "not yet run"}


RATES = {1e-3: 0.5, 1e-2: 0.7, 1e-1: 0.9}
HEADLINES = [
    ("one method, one lr", [entry("adam", 1e-3, default=1e-3)], {"adam": RATES},
     "At its default lr, Adam ends at 50.0 % validation accuracy."),
    ("one method", [entry("adam", *RATES, default=1e-3)], {"adam": RATES},
     "At its default lr, Adam ends at 50.0 % validation accuracy; with the best of its 3 learning rates at 90.0 %."),
    ("default is best", [entry("adam", *RATES, default=1e-1)], {"adam": RATES},
     "At its default lr, Adam ends at 90.0 % validation accuracy; none of its 3 learning rates does better."),
    ("two alike", [entry("adam", 1e-1, default=1e-1), entry("momo", 1e-1, default=1e-1)],
     {"adam": RATES, "momo": RATES}, "At their default lr, Adam and MoMo end at 90.0 % validation accuracy."),
    ("without Adam", [entry("momo", *RATES, default=1e-2), entry("sgd", *RATES, default=1e-3)],
     {"momo": RATES, "sgd": RATES | {1e-1: 0.95}},
     "At its default lr, MoMo ends at 70.0 % validation accuracy, best of 2; SGD with the best of 3 learning rates at "
     "95.0 %."),
    ("defaults learn nothing", [entry("adam", *RATES, default=1e-3), entry("sgd", 1e-3, default=1e-3)],
     {"adam": RATES | {1e-3: 0.1}, "sgd": {1e-3: None}},
     "At their default lr, none of 2 methods learns; Adam with the best of 3 learning rates at 90.0 %."),
    ("rates of their own", [entry("adam", 1e-3, 1e-2), entry("momo", 1.0)],
     {"adam": RATES, "momo": {1.0: 0.72}}, "MoMo at lr 1 ends at 72.0 % validation accuracy, best of 2 methods."),
    ("single rates", [entry("adam", 1e-1), entry("momo", 1.0)],
     {"adam": RATES, "momo": {1.0: 0.72}}, "Adam at lr 0.1 ends at 90.0 % validation accuracy, best of 2 methods."),
    ("nothing learned", [entry("sgd", 1e-3)], {"sgd": {1e-3: None}}, "No method has learned anything yet."),
]  # fmt: skip


@pytest.mark.parametrize(("methods", "values", "said"), [it[1:] for it in HEADLINES], ids=[it[0] for it in HEADLINES])
def test_headline_fits_the_study(tmp_path: Path, methods: list[MethodEntry], values: dict, said: str):
    folder = build(tmp_path / "s", study(methods=methods), by_rate(values))
    found = load(folder)
    assert headline(found, report_tables.names(found.study)) == said
    assert report.write(folder).exists()  # with one, two or three learning rates


def test_headline_of_two_tasks_and_of_five(tmp_path: Path):
    methods = [entry("adam", 1e-3, 1e-2, default=1e-3), entry("prodigy", 1.0, default=1.0)]

    def final(run: Run) -> float:
        if run.task == TEXT.name:
            return {1e-3: 2.2, 1e-2: 2.0, 1.0: 2.5}[run.lr]
        return {1e-3: 0.6, 1e-2: 0.82, 1.0: 0.81 if run.task in (MLP.name, "t0") else 0.7}[run.lr]

    two = load(build(tmp_path / "two", study([MLP, TEXT], methods), final))
    assert headline(two, report_tables.names(two.study)) == (
        "Best of 2 at their default lr: Prodigy on fashion-mlp (81.0 %), Adam on sotu-transformer (2.200); "
        "Adam with the best of its learning rates gets 82.0 % and 2.000."
    )
    tasks = [MLP, TEXT, *(MLP.model_copy(update={"name": f"t{i}"}) for i in range(3))]
    five = load(build(tmp_path / "five", study(tasks, methods), final))
    assert headline(five, report_tables.names(five.study)) == (
        "At its default lr, Prodigy comes close to the best of all methods and learning rates on 2 of 5 tasks, the "
        "most of 2 methods; Adam with the best of its learning rates on 5."
    )


def test_a_method_has_its_colour_in_every_report():
    pair, more = styles({"adam": "", "prodigy": ""}), styles({"sgd": "", "prodigy": "", "adam": ""})
    for method in pair:
        assert (pair[method].color, pair[method].marker) == (more[method].color, more[method].marker)
    known = ["adam", "adamw", "prodigy", "momo_adam", "momo", "sgd", "schedule_free_adamw", "mechanic_adamw"]
    assert len({style.color for style in styles(dict.fromkeys(known, "")).values()}) == len(known)
    # An option or a schedule changes the colour only beside the plain method.
    alone = styles({"adam(schedule=linear)": ""})["adam(schedule=linear)"]
    beside = styles({"adam(schedule=linear)": "", "adam": ""})
    assert alone.color == beside["adam"].color != beside["adam(schedule=linear)"].color


def test_no_two_methods_of_a_report_look_alike():
    names = [*untuned.list(), "adam(schedule=linear)", "compose(adam, momo)", "prodigyopt:Prodigy", "adam(eps=1e-6)"]
    looks = styles(dict.fromkeys(names, ""))
    assert list(looks) == names and len({(s.marker, str(s.dash)) for s in looks.values()}) == len(names)


def test_schedule_of_all_methods_is_told_once(tmp_path: Path):
    linear = {"schedule": "linear", "warmup": 0.05}
    both = study(methods=[entry("adam", 0.1, **linear), entry("momo", 0.1, **linear)])
    assert report_tables.names(both) == {
        "adam(schedule=linear, warmup=0.05)": "Adam",
        "momo(schedule=linear, warmup=0.05)": "MoMo",
    }
    text = text_of(report.write(build(tmp_path / "both", both, lambda run: 0.5)))
    assert "All with schedule linear behind a warm-up over 5 % of the run." in text
    one = study(methods=[entry("adam", 0.1, **linear), entry("momo", 0.1, warmup=0.05)])
    assert list(report_tables.names(one).values()) == ["Adam(schedule=linear)", "MoMo"]


def test_table_in_the_terminal(tmp_path: Path):
    methods = [entry("adam", 1e-3, 1e-2, default=1e-3), entry("sgd", 0.1, default=1e-3)]
    final = by_rate({"adam": {1e-3: 0.8, 1e-2: 0.832}, "sgd": {0.1: None}})
    folder = build(tmp_path / "s", study(methods=methods), final)
    [found] = report_tables.summary_tables(load(folder))
    console = Console(width=100, file=io.StringIO())
    console.print(found)
    said = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]  # pyright: ignore
    assert "Adam 0.001 80.0 0.01 83.2 ≥ 0.6 0 of 6 100 µs" in said
    assert "SGD 0.001 not run 0.1 10.0 0 3 of 3 60 µs" in said
    crashed = build(tmp_path / "c", study(methods=methods), final, status=lambda run: "crashed")
    assert report_tables.summary_tables(load(crashed)) == []


@pytest.mark.parametrize("width", [60, 80, 120])
def test_numbers_in_the_terminal_stay_whole(tmp_path: Path, width: int):
    methods = [entry("adam", 1e-3, 1e-2, default=1e-3), entry("sgd", 0.1, default=0.1, schedule="wsd(decay=0.125)")]
    final = by_rate({"adam": {1e-3: 0.8, 1e-2: 0.832}, "sgd(schedule=wsd(decay=0.125))": {0.1: 0.7}})
    folder = build(tmp_path / "s", study(methods=methods), final)
    console = Console(width=width, file=io.StringIO())
    console.print(*report_tables.summary_tables(load(folder), width))
    said = console.file.getvalue().splitlines()  # pyright: ignore[reportAttributeAccessIssue]
    assert max(map(len, said)) <= width
    [adam] = [" ".join(line.split()) for line in said if " Adam " in line]
    cells = ["Adam", "0.001", "80.0", "0.01", "83.2", "≥ 0.6", "0 of 6", "100 µs"]
    assert adam == " ".join(cells[: {60: 5, 80: 6, 120: 8}[width]])
    assert any("SGD(schedule=wsd(" in line for line in said)


def test_footer_has_minutes_processor_and_the_last_command(tmp_path: Path):
    folder = build(tmp_path / "s", study(), lambda run: 0.5)
    (folder / "command.txt").write_text(
        "2026-01-02 03:04:05 UTC: untuned compare a\n2026-01-02 03:05:06 UTC: untuned compare b --out <s>\n"
    )
    db = sqlite3.connect(folder / "ledger.sqlite")
    db.execute(
        "update runs set machine = ?", [json.dumps({"system": "Linux", "processor": "Example 3000", "cores": 2})]
    )
    db.commit()
    text = text_of(report.write(folder))
    assert "2.5 minutes of training in all Command untuned compare b --out <s> Versions" in text
    assert "Machine processor Example 3000, system Linux, cores 2" in text


@pytest.mark.parametrize(("count", "text"), [(648, "648 B"), (999.9, "1 kB"), (1.25e6, "1.25 MB"), (math.nan, "–")])
def test_memory_as_people_read_it(count: float, text: str):
    assert report.size(count) == text


def test_two_points_can_be_seen_at_the_top_and_a_few_learning_rates_are_named(tmp_path: Path):
    methods = [entry("adam", 3e-4, 6e-4), entry("momo", 3e-4)]
    final = by_rate({"adam": {3e-4: 0.9, 6e-4: 0.92}, "momo": {3e-4: 0.5}})
    result = load(build(tmp_path / "s", study(methods=methods), final)).tasks[0]
    ax = axes(charts.lr_picture, result, looks=styles({"adam": "Adam", "momo": "MoMo"}))
    place = (ax.transScale + ax.transLimits).transform
    assert place((1e-3, 0.92))[1] - place((1e-3, 0.9))[1] > 0.12  # of the height, for 2 of the 82 points above chance
    assert list(ax.get_xticks()) == [3e-4, 6e-4]
    firsts = [line.get_xdata()[0] for line in ax.lines if line.get_marker() not in ("None", "x")]
    assert len(set(firsts)) == 3  # methods with one lr in common stand side by side


def test_curves_of_runs_that_begin_apart_meet_at_their_common_steps() -> None:
    """A range test that is stopped early leaves more steps, and so more evaluations, than one that is not."""
    columns = {"step": [60, 80, 100], "epoch": [3.0, 4.0, 5.0], "val_loss": [3.0, 2.0, 1.0]}
    short = pa.table({**columns, "step": [73, 80, 100], "val_loss": [9.0, 4.0, 3.0]})
    long = pa.table({"step": [41, 60, 80, 100], "epoch": [2.0, 3.0, 4.0, 5.0], "val_loss": [5.0, 4.0, 3.0, 2.0]})
    curve = _curve([short, long], "val_loss")
    assert curve.epoch.tolist() == [4.0, 5.0]
    assert curve.mean.tolist() == [3.5, 2.5]
    assert curve.band.tolist() == [[3.0, 4.0], [2.0, 3.0]]

"""`untuned bench`: its parameter lists, its arithmetic under a clock of our own, its tables, its sentences."""

import csv
import io
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import untuned
from untuned.study import bench, bench_report, cli
from untuned.study.bench import CLOCKS, Job, Row, in_process, measure, plan, ratios, run
from untuned.study.config import StudyError
from untuned.study.contenders import MODELS, PACKAGES, PEERS, REFERENCE, Contender

TWENTY = [(64,)] * 20
OURS = ("adamw", "sgd(momentum=0.9)", "momo_adam")
TIMES = {REFERENCE: 2e-6, "adamw": 3e-6, "sgd(momentum=0.9)": 1e-6, "momo_adam": 5e-6}
JOB = Job("tiny", "float32", (REFERENCE, *OURS), "default", False, 5, 1, "cpu")


class Drifting:
    """A clock on a machine that becomes slower steadily: step i of a contender takes its time times 1 + i / 10."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __call__(self, call: Callable[[], object]) -> float:
        call()
        contender = getattr(call, "__self__", None)
        if contender is None:
            return 1e-3  # an array operation
        self.calls.append(contender.name)
        return TIMES[contender.name] * (1 + len(self.calls) / 10)


@cache
def measured(job: Job = JOB) -> list[Row]:
    return list(measure(job, TWENTY, Drifting(), stream=1000))


@pytest.mark.parametrize(
    ("model", "tensors", "parameters"),
    [
        ("resnet50", 161, 25_557_032),
        ("gpt2", 148, 124_439_808),
        ("vit-b", 152, 86_567_656),
        ("lora", 400, 13_107_200),
        ("tiny", 2000, 128_000),
    ],
)
def test_the_lists_have_the_tensors_of_the_models(model: str, tensors: int, parameters: int) -> None:
    assert len(MODELS[model]) == tensors
    assert sum(map(math.prod, MODELS[model])) == parameters


def test_a_ratio_is_to_the_mean_of_both_neighbours() -> None:
    assert ratios([1.0, 3.0, 2.0, 8.0, 6.0]).tolist() == [2.0, 2.0]


def test_steady_drift_of_the_machine_cancels() -> None:
    rows = {row.contender: row for row in measured()}
    expected = {REFERENCE: 1.0, "adamw": 1.5, "sgd(momentum=0.9)": 0.5, "momo_adam": 2.5}
    for contender, ratio in expected.items():
        row = rows[contender]
        assert (row.low, row.ratio, row.high) == pytest.approx((ratio, ratio, ratio))
        assert row.ms is not None
        assert row.reference_ms == pytest.approx(row.ms / ratio)  # the median of 6 steps lies amid the 5 between them
        assert row.first_step_s is not None
        assert row.first_step_s > 0
        assert not row.error


def test_quartiles_and_medians_are_of_the_rounds() -> None:
    times = iter([1e-3] * 10 + [1, 5, 1, 1, 1, 4, 1, 2, 1, 3, 1])  # two streams, then reference and contender in turn
    row = list(measure(replace(JOB, contenders=("adamw",)), TWENTY, lambda call: next(times), stream=10))[-1]
    assert (row.low, row.ratio, row.high, row.ms, row.reference_ms) == (2.0, 3.0, 4.0, 3000.0, 1000.0)


def test_every_step_stands_between_two_of_the_reference_and_the_order_is_shuffled_by_a_seed() -> None:
    clock = Drifting()
    order = [row.contender for row in measure(JOB, TWENTY, clock, stream=10)][2:]
    assert sorted(order) == sorted(JOB.contenders)
    assert order != list(JOB.contenders)
    assert order == [row.contender for row in measured()][2:]
    block = 2 * JOB.rounds + 1
    for i, contender in enumerate(order):
        assert clock.calls[i * block : (i + 1) * block] == [REFERENCE, contender] * JOB.rounds + [REFERENCE]


def test_bandwidth_counts_two_reads_and_one_write() -> None:
    streams = measured()[:2]
    assert [row.contender for row in streams] == ["stream a = b + s c", "stream a += s b"]
    assert [row.gb_per_s for row in streams] == pytest.approx([3 * 4 * 1000 / 1e-3 / 1e9] * 2)


@pytest.mark.parametrize(
    ("dtype", "adamw", "sgd", "reference", "slots"),
    [("float32", 28, 20, 28, 8), ("bfloat16", 22, 14, 14, 8), ("bfloat16:bfloat16", 14, 10, 14, 4)],
)
def test_bytes_per_parameter(dtype: str, adamw: int, sgd: int, reference: int, slots: int) -> None:
    job = JOB if dtype == JOB.dtype else replace(JOB, dtype=dtype, contenders=(REFERENCE, "adamw", "sgd(momentum=0.9)"))
    rows = {row.contender: row for row in measured(job)}
    named = [rows[name].bytes_per_param for name in ("adamw", "sgd(momentum=0.9)", REFERENCE)]
    assert named == [adamw, sgd, reference]
    assert rows["adamw"].gb_per_s == pytest.approx(adamw * 64 * 20 / rows["adamw"].ms * 1e3 / 1e9)
    assert rows["adamw"].state_bytes_per_param == pytest.approx(slots, abs=0.3)  # and counters, one per 64 elements


def test_the_guard_is_shown_and_costs_a_read_at_most() -> None:
    on, off = ({row.contender: row for row in measured(replace(JOB, guard=guard))} for guard in (True, False))
    for contender in OURS:
        assert (on[contender].guard, off[contender].guard) == ("on", "off")
        assert 0 <= on[contender].bytes_per_param - off[contender].bytes_per_param <= 4
    assert on[REFERENCE].guard == ""


def test_a_contender_keeps_its_parameters_and_its_gradients() -> None:
    contender = Contender("torch SGD(momentum=0.9)", [(8, 8), (3,)])
    before = [p.detach().clone() for p in contender.params]
    contender.draw_gradients()
    drawn = [g.clone() for g in contender.gradients]
    for _ in range(10):
        for p in contender.params:
            p.grad = None  # as optimizers that free gradients do
        contender.turn_gradients()
        contender.step()
    torch.testing.assert_close([p.detach() for p in contender.params], before, rtol=0, atol=1e-7)
    assert not torch.equal(contender.params[0], before[0])
    torch.testing.assert_close([p.grad for p in contender.params], drawn, rtol=0, atol=0)  # turned 10 times
    assert contender.state_bytes() == 4 * 67
    assert contender.named_bytes() is None


def test_plan_runs_peers_again_with_tuned_malloc() -> None:
    jobs = plan(["momo"], ["tiny", "lora"], ["float32", "bfloat16:bfloat16"], ["torch"], rounds=3)
    assert [(job.model, job.dtype, job.allocator) for job in jobs] == [
        (model, dtype, allocator)
        for model in ("tiny", "lora")
        for dtype in ("float32", "bfloat16:bfloat16")
        for allocator in ("default", "tuned")
    ]
    default, tuned = jobs[:2]
    peers = [name for name in PEERS if name.startswith("torch ") and name != REFERENCE]
    assert len(peers) == 5
    assert default.contenders == (REFERENCE, "momo", *peers)
    assert tuned == replace(default, contenders=(REFERENCE, *peers), allocator="tuned")
    assert [job.allocator for job in plan(["momo"], ["tiny"], ["float32"], [])] == ["default"]


def test_plan_without_methods_takes_all_of_them() -> None:
    [job] = plan([], ["tiny"], ["float32"], [])
    assert {name.partition("(")[0] for name in job.contenders[1:]} == set(untuned.list())
    assert "sgd(momentum=0.9)" in job.contenders
    assert (job.clock, replace(job, threads=2).clock) == ("CPU time of the thread", "wall clock")


def test_one_failure_costs_no_other_row_and_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(PEERS, "torch Lost", ("torch.optim", "Lost", {}))
    job = replace(JOB, contenders=("torch Lost", "adamw"))
    rows = measured(job)
    assert {row.contender: row.ratio for row in rows[2:]} == {"torch Lost": None, "adamw": pytest.approx(1.5)}
    page = bench_report.write(tmp_path, [job], rows).read_text()
    assert "| torch Lost | default |  | failed |" in page
    assert "failed: tiny float32 torch Lost: AttributeError: module 'torch.optim' has no attribute 'Lost'" in page


def test_rows_are_on_disk_as_they_come(tmp_path: Path) -> None:
    table = tmp_path / "bench.csv"
    rows = run([JOB], table, measured)
    first = next(rows)
    [line] = csv.DictReader(table.read_text().splitlines())
    assert (line["contender"], line["ratio"]) == (first.contender, "")
    everything = [first, *rows]
    lines = list(csv.DictReader(table.read_text().splitlines()))
    assert list(lines[0]) == [field.name for field in fields(Row)]
    assert [line["contender"] for line in lines] == [row.contender for row in everything]
    [adamw] = (line for line in lines if line["contender"] == "adamw")
    assert (adamw["ratio"], adamw["bytes_per_param"], adamw["guard"], adamw["error"]) == ("1.5", "28", "off", "")


def test_tables_in_markdown_and_on_the_screen(tmp_path: Path) -> None:
    tuned = replace(JOB, contenders=(REFERENCE,), allocator="tuned")
    rows = [replace(row, first_step_s=0.25) if row.ratio else row for row in measured() + measured(tuned)]
    page = bench_report.write(tmp_path, [JOB, tuned], rows).read_text()
    assert f"untuned {untuned.__version__}, python {sys.version.split()[0]}" in page
    assert f"torch {torch.__version__}" in page
    assert "CPU time of the thread, threads: 1, median and quartiles of 5 rounds" in page
    [start] = [i for i, line in enumerate(page.splitlines()) if line == "## tiny, float32"]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines()[start + 2 :]]
    assert [row[0] for row in cells] == [
        "contender",
        "---",
        "stream a += s b",
        "stream a += s b",
        "stream a = b + s c",
        "stream a = b + s c",
        f"{REFERENCE} itself",
        f"{REFERENCE} itself",
        "adamw",
        "momo_adam",
        "sgd(momentum=0.9)",
    ]
    adamw = cells[8]
    assert adamw[1:5] + adamw[7:8] + adamw[9:] == ["default", "off", "1.50", "1.50–1.50", "28.0", "0.25"]
    assert cells[6][2:] == ["", "1.00", "1.00–1.00", cells[6][5], cells[6][6], "28.0", "8.1", "0.25"]
    assert cells[7][1] == "tuned"
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")

    console = Console(width=160, file=io.StringIO())
    [table] = bench_report.tables(rows)
    console.print(table)
    [line] = [line for line in console.file.getvalue().splitlines() if line.split()[:1] == ["adamw"]]
    assert line.split() == adamw


def test_a_real_measurement() -> None:
    rows = {row.contender: row for row in measure(replace(JOB, guard=True), TWENTY, CLOCKS[JOB.clock], stream=2**20)}
    for contender in JOB.contenders:
        assert not rows[contender].error
        assert 0 < rows[contender].low <= rows[contender].ratio <= rows[contender].high
    assert 0.2 < rows[REFERENCE].ratio < 5


def test_a_process_of_its_own_hands_its_rows_over() -> None:
    job = replace(JOB, contenders=(REFERENCE,), allocator="tuned", rounds=1)
    rows = list(in_process(job))
    assert [row.contender for row in rows] == ["stream a = b + s c", "stream a += s b", REFERENCE]
    assert {(row.model, row.dtype, row.allocator, row.error) for row in rows} == {("tiny", "float32", "tuned", "")}
    assert rows[2].bytes_per_param == 28


def test_a_process_that_dies_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StudyError, match="the process for nothing in float32 ended with status 1"):
        list(in_process(replace(JOB, model="nothing")))
    assert "KeyError: 'nothing'" in capfd.readouterr().err


Untuned = Callable[..., tuple[int, str, str]]


@pytest.fixture
def untuned_bench(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Untuned:
    """Run `untuned bench ARGUMENTS` in an empty folder: exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "in_process", measured)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["untuned", "bench", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code or 0, *capfd.readouterr()

    return call


def test_the_command_writes_its_three_files_and_refuses_to_write_them_twice(untuned_bench: Untuned) -> None:
    ours = ("adamw", "sgd(momentum=0.9)")
    command = [*ours, "--model", "tiny", "--dtype", "float32,bfloat16", "--no-guard", "--rounds", "3", "--out", "b"]
    status, output, error = untuned_bench(*command)
    assert (status, error) == (0, "")
    assert "tiny bfloat16 sgd(momentum=0.9): 0.50\n" in output
    assert output.endswith(f"report: {Path('b', 'bench.md')}\n")
    assert sorted(path.name for path in Path("b").iterdir()) == ["bench.csv", "bench.md", "bench.png"]
    assert Path("b/bench.csv").read_text().count("\n") == 1 + 2 * (2 + 1 + len(ours))
    assert "## tiny, bfloat16\n" in Path("b/bench.md").read_text()
    assert untuned_bench(*command) == (2, "", "untuned: b holds a benchmark; choose another --out\n")


def test_a_failed_contender_is_exit_status_one(untuned_bench: Untuned, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(job: Job) -> Iterator[Row]:
        yield Row(job.model, job.dtype, job.allocator, "adamw", error="RuntimeError: no")

    monkeypatch.setattr(bench, "in_process", failing)
    status, output, _ = untuned_bench("adamw", "--model", "tiny", "--dtype", "float32")
    assert status == 1
    assert "tiny float32 adamw: RuntimeError: no\n" in output
    [folder] = Path().glob("bench-*")
    assert (folder / "bench.md").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["momoo"], "no method is called 'momoo'; did you mean momo"),
        (["adam(lr=1e-3)"], "methods: adam: the lr does not change the time of a step; leave it out"),
        (["adam(bettas=1)"], "methods: adam(bettas=1) in float32: adam has no option 'bettas'"),
        (["--model", "resnet5"], "model: there is no 'resnet5'; there are resnet50, gpt2, vit-b, lora, tiny"),
        (["--dtype", "float31"], "dtype: cannot read 'float31'; there are float32, bfloat16, float16, float64"),
        (["--dtype", "bfloat16:float32:float32"], "dtype: cannot read 'bfloat16:float32:float32'"),
        (["adam", "--dtype", "float16:float16"], "methods: adam in float16:float16: Adam: slot_dtype must be"),
        (["--against", "optax"], f"against: there is no 'optax'; there are {', '.join(PACKAGES)}"),
        (
            ["--against", "madgrad"],
            "against: madgrad cannot be imported (import of madgrad halted; None in sys.modules)",
        ),
        (["--device", "tpu"], "device: there is no 'tpu'; there are cpu, cuda"),
        (["--device", "cuda"], "device: cuda needs a GPU, and torch.cuda.is_available() is False on this machine"),
        (["--rounds", "2"], "--rounds"),
        (["--model", ","], "model: name at least one"),
        (["--dtype", ""], "dtype: name at least one"),
    ],
)
def test_refusals_are_one_sentence_and_write_nothing(
    untuned_bench: Untuned, arguments: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "madgrad", None)
    status, output, error = untuned_bench(*arguments)
    assert (status, output) == (2, "")
    assert sentence in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_help(untuned_bench: Untuned) -> None:
    status, output, _ = untuned_bench("--help")
    assert status == 0
    assert "--against" in output


def test_a_row_survives_the_pipe() -> None:
    row: Any = measured()[-1]
    assert Row(**asdict(row)) == row

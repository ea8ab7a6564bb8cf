"""The command line: its options, its exit status, its sentences."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import typer.main

import untuned
from untuned.study import cli, tasks
from untuned.study.store import Store

GOLDEN = Path(__file__).parents[1] / "golden" / "cli.txt"

Untuned = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Untuned:
    """Run `untuned ARGUMENTS` in an empty folder: exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["untuned", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        if isinstance(left.value.code, str):  # what the interpreter does with a sentence
            print(left.value.code, file=sys.stderr)
        return 1 if isinstance(left.value.code, str) else left.value.code or 0, *capfd.readouterr()

    return run


def options() -> Iterator[str]:
    """Every command with its parameters, one a line."""

    def walk(command: typer.core.TyperCommand, path: str) -> Iterator[str]:
        if commands := getattr(command, "commands", None):
            yield from (line for name, sub in commands.items() for line in walk(sub, f"{path} {name}"))
            return
        yield f"{path}: {(command.help or '').splitlines()[0]}"
        for parameter in command.params:
            names = ", ".join([*parameter.opts, *parameter.secondary_opts])
            yield f"    {names} default {parameter.default!r}: {parameter.help}"

    return walk(typer.main.get_command(cli.app), "untuned")


def test_options_are_those_of_the_golden_file() -> None:
    assert "\n".join(options()) + "\n" == GOLDEN.read_text()


def test_every_command_has_help(run: Untuned) -> None:
    for words in (
        ["compare"],
        ["replay"],
        ["replay", "momo-mnist"],
        ["replay", "logreg12"],
        ["study"],
        ["study", "saddle"],
        ["bench"],
        ["report"],
        ["list"],
        ["show"],
        ["data"],
        ["data", "list"],
        ["data", "fetch"],
    ):
        status, output, _ = run(*words, "--help")
        assert status == 0
        assert "Usage: " in output
    assert run("--version")[:2] == (0, f"untuned {untuned.__version__}\n")


def test_a_study_from_the_command_to_the_report_and_again(run: Untuned) -> None:
    command = ["compare", "tiny:Line", "tiny:Raises", "--methods", "momo,sgd(momentum=0.9, lr=(0.1, 1e30))"]
    command += ["--lr", "0.1", "--seeds", "2", "--workers", "1"]
    status, output, error = run(*command)
    assert (status, error) == (1, "")  # there were crashes
    [folder] = Path("studies").iterdir()
    store = Store(folder)
    assert folder.name == f"tiny.Line+tiny.Raises-{store.study.id[:8]}"
    assert f"12 runs in {folder}\n" in output
    assert "1/12 tiny:Line momo lr 0.1 seed 0: val_accuracy " in output
    assert "sgd(momentum=0.9) lr 1e+30 seed 0: diverged: val_loss is inf after step 1 (" in output
    assert "tiny:Raises momo lr 0.1 seed 1: crashed: RuntimeError: the third epoch is lost (" in output
    assert f"report: {folder / 'report.html'}\n" in output
    assert output.splitlines()[-1].startswith("crashed runs: 2; ")
    ledger = store.runs()
    for row in ledger.to_pylist():
        crashes = row["task"] == "tiny:Raises" and row["seed"] == 1 and row["lr"] == 0.1
        assert row["status"] == ("crashed" if crashes else "diverged" if row["lr"] == 1e30 else "done"), row["error"]
        assert (row["final"] is None) == (row["status"] != "done")
        assert store.curve(row["run"]).num_rows == {"crashed": 11, "diverged": 2, "done": 21}[row["status"]]
        if crashes:
            assert row["error"].endswith("RuntimeError: the third epoch is lost\n")

    page = folder / "report.html"
    page.unlink()
    status, output, _ = run(*command)
    assert status == 1
    assert "12 of 12 runs are there already\n" in output
    assert store.runs().equals(ledger)
    assert page.exists()

    page.unlink()
    assert run("report", folder)[:2] == (0, f"report: {page}\n")
    assert page.exists()


def test_a_mended_task_goes_on_and_a_study_grows(run: Untuned, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    own = tmp_path / "own_task.py"
    broken = "from tiny import Line\nclass Own(Line):\n    def batches(self, seed, epoch):\n"
    broken += "        if seed == 1: raise RuntimeError('lost')\n        return super().batches(seed, epoch)\n"
    own.write_text(broken)

    def compare(*more: str, methods: str = "sgd") -> tuple[int, str, str]:
        monkeypatch.delitem(sys.modules, "own_task", raising=False)  # as in a new process
        importlib.invalidate_caches()
        words = ["own_task:Own", "--methods", methods, "--lr", "0.1", "--workers", "1", "--out", "study", *more]
        return run("compare", *words)

    status, output, _ = compare("--seeds", "2")
    assert (status, output.splitlines()[-2:]) == (
        1,
        [
            "own_task:Own: 1 run crashed: RuntimeError: lost",
            "crashed runs: 1; ledger.sqlite holds the tracebacks, --retry-crashed runs them again",
        ],
    )
    own.write_text(broken.replace("seed == 1", "seed == 5") + "# mended\n")
    before = Store("study").runs().to_pylist()
    status, _, error = compare("--seeds", "2")
    assert status == 2
    assert "the code of its task 'own_task:Own' has changed since; --retry-crashed keeps what has finished" in error
    assert Store("study").runs().to_pylist() == before
    status, output, _ = compare("--seeds", "2", "--retry-crashed")
    assert (status, output.count("own_task:Own sgd lr 0.1 seed 1: val_accuracy")) == (0, 1)
    first, second = Store("study").runs().to_pylist()
    assert first == before[0]  # not run again
    assert (second["run"], second["status"]) == (before[1]["run"], "done")
    assert ["mended own_task:Own" in row["versions"] for row in (first, second)] == [False, True]

    for more, methods, new in ((("--seeds", "3"), "sgd", 1), (("--lr", "0.1,0.3"), "sgd,adam", 2 * 3 + 3)):
        ledger = Store("study").runs().to_pylist()
        status, output, _ = compare(*more, methods=methods)
        assert (status, len(Store("study").runs())) == (0, len(ledger) + new)
        assert f"{len(ledger)} of {len(ledger) + new} runs are there already\n" in output
        assert Store("study").runs().to_pylist()[: len(ledger)] == ledger
    status, output, _ = compare("--seeds", "1")  # asks for less than is there
    assert (status, "12 of 12 runs are there already\n" in output) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["compare", "tiny:Line", "--methods", "momoo"], "no method is called 'momoo'; did you mean momo"),
        (
            ["compare", "tiny:Line", "--methods", "adam(bettas=1)"],
            "methods: adam(bettas=1): adam has no option 'bettas'",
        ),
        (["compare", "tiny:Line", "--lr", "0"], "lr: a learning rate must be positive and finite, not 0.0"),
        (["compare", "tiny:Line", "--budget", "-1"], "budget: epochs must be positive and finite, not -1.0"),
        (["compare", "nothing"], "no task 'nothing'; there are "),
        (["compare", "no_module:Task"], "no module 'no_module'"),
        (["compare", "tiny:Unbuilt"], "untuned: task 'tiny:Unbuilt' cannot be created: KeyError: 'data/train.csv' ("),
        (["compare", "tiny:Unbatched"], "task 'tiny:Unbatched': batch_size: Input should be greater than 0, not 0"),
        (["compare", "tiny:Hopeless"], "task 'tiny:Hopeless': chance: Input should be a finite number, not inf"),
        (["compare", "broken:Task"], "task 'broken:Task': 'broken' cannot be imported: RuntimeError: boom ("),
        (["compare", "tiny:Line", "--methods", "adam", "--out", "occupied"], "occupied exists and holds no study"),
        (["report", "occupied"], "occupied holds no study: study.json is missing"),
        (["show", "momo-adm"], "'momo-adm'; did you mean momo_adam"),
        (["data", "fetch", "iris-of-mine"], "iris-of-mine"),
        (
            ["study", "saddle", "--out", "occupied/notes.txt"],
            "untuned: occupied/notes.txt is no folder; choose another",
        ),
        (["study", "saddle", "--out", "occupied/notes.txt/new"], "notes.txt is no folder; choose another --out"),
        (["study", "refined", "--out", "occupied/notes.txt"], "untuned: occupied/notes.txt is no folder; choose"),
        (["study", "refined", "--out", "occupied/notes.txt/new"], "notes.txt is no folder; choose another --out"),
        (["study", "saddle", "--out", "new", "--seeds", "1"], "--seeds"),
        (["replay", "prodigy-mnist"], "No such command 'prodigy-mnist'"),
        (
            ["replay", "logreg12", "--sets", "iris,shuttle"],
            "sets: no accuracy is published for 'shuttle'; choose from dna,",
        ),
        (["replay", "momo-mnist"], "untuned data fetch mnist"),
        (["compare", "--seeds", "0"], "--seeds"),
        (["compare", "--workers", "x"], "--workers"),
        (["compere"], "compere"),
    ],
)
def test_refusals_are_one_sentence_and_exit_status_two(
    run: Untuned, arguments: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("UNTUNED_DATA", str(tmp_path / "no-data"))
    monkeypatch.setenv("COLUMNS", "200")
    code = tmp_path.parent / f"{tmp_path.name}-code"
    code.mkdir()
    (code / "broken.py").write_text("raise RuntimeError('boom')")
    monkeypatch.syspath_prepend(code)
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied" / "notes.txt").touch()
    status, output, error = run(*arguments)
    assert (status, output) == (2, "")
    assert sentence in error
    assert "Traceback" not in error
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["notes.txt", "occupied"]


def test_list_names_everything(run: Untuned) -> None:
    status, output, _ = run("list")
    assert status == 0
    words = output.split()
    assert set(untuned.list()) | set(tasks.names()) <= set(words)
    assert "arXiv 2305.07583" in output


def test_show_has_equations_options_cost_and_paper(run: Untuned) -> None:
    for method in untuned.list():
        status, output, _ = run("show", method)
        assert status == 0
        assert untuned.get(method).paper in output
        assert f"    lr = {untuned.get(method).lr!r}\n" in output
        assert "<-" in output
        assert "Sweeps: " in output
        assert "Direction: " in output
    assert "    betas = (0.9, 0.999)\n" in run("show", "momo_adam")[1]


def test_data_list_says_what_is_there(run: Untuned, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UNTUNED_DATA", str(tmp_path))
    lines = {line.split()[0]: line for line in run("data", "list")[1].splitlines()}
    assert "846 x 18" in lines["vehicle"]
    assert "shipped" in lines["vehicle"]
    assert "not fetched" in lines["mnist"]


@pytest.mark.parametrize("missing", ["typer", "rich.console"])
def test_without_the_study_extra_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    spec = importlib.util.spec_from_file_location("cli_again", cli.__file__)
    assert spec
    assert spec.loader
    with pytest.raises(SystemExit, match=rf'untuned: {missing} is missing; run: pip install "untuned\[study\]"'):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_the_same_if_only_what_a_command_needs_is_missing(run: Untuned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "untuned.study.config")
    monkeypatch.setitem(sys.modules, "pydantic", None)
    status, output, error = run("compare", "tiny:Line")
    assert (status, output) == (1, "")
    assert error == 'untuned: pydantic is missing; run: pip install "untuned[study]"\n'


def test_show_prints_the_program_of_the_kernels(run: Untuned) -> None:
    _, result, _ = run("show", "prodigy", "--program")
    assert "sweep 1: reads exp_avg, exp_avg_sq, g, p, p0, s; writes exp_avg, exp_avg_sq, p, s; 40 bytes" in result
    assert "sweep 2, only in steps that change d:" in result


def test_the_trajectory_of_checkpoints_in_the_order_of_their_steps(run: Untuned, tmp_path: Path) -> None:
    for step, point in ((1000, [0.0, 2.0]), (0, [1.0, 0.0]), (500, [1.0, 1.0])):
        torch.save({"layer.weight": torch.tensor(point)}, tmp_path / f"checkpoint-{step}.pt")
    files = sorted(tmp_path.glob("*.pt"))  # 0, 1000, 500
    status, output, _ = run("trajectory", *files, "--by", "layer", "--out", "there")
    assert status == 0
    rows = [line.split(",") for line in (tmp_path / "there" / "map.csv").read_text().splitlines()]
    assert rows[0] == ["step", "0", "500", "1000"]
    assert [[float(cell) for cell in row] for row in rows[1:]] == [
        pytest.approx(row) for row in ([0, 1, 0.5**0.5, 0], [500, 0.5**0.5, 1, 0.5**0.5], [1000, 0, 0.5**0.5, 1])
    ]
    mds = (3 + 4 * 0.5**0.5) / 9
    straight = 100 * 5**0.5 / (1 + 2**0.5)  # |(1, 0) - (0, 2)| of the path from there by (1, 1)
    assert f"layer: mean directional similarity {mds:.4f}, |theta_T - theta_0| = 2.236, {straight:.0f} %" in output
    assert (tmp_path / "there" / "map.png").read_bytes().startswith(b"\x89PNG")
    assert run("trajectory", files[0])[::2] == (2, "untuned: trajectory_map needs two checkpoints or more, not 1.\n")
    assert run("trajectory", "no.pt", files[0])[::2] == (2, "untuned: there is no checkpoint no.pt\n")
    assert run("trajectory", *files, "--out", files[0])[0] == 2

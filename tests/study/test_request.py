"""A study from options of the command line and from a TOML file: the same study, or one sentence."""

import sys
from pathlib import Path
from typing import Any

import pytest

from untuned.study import cli
from untuned.study.config import RuleEntry, Study, StudyError
from untuned.study.request import DEMO_BUDGET, DEMO_METHODS, DEMO_TASKS, LRS, Request
from untuned.study.store import Store

FULL = """
tasks = ["tiny:Line", "logreg-iris"]
methods = ["adamw", "compose(adam, momo(lb=1.0), schedule_free)", "torch.optim:NAdam(lr=0.1)"]
lr = ["default", 1e-2, "0.1:1:3"]
seeds = 2
budget = 10                     # epochs
schedule = "wsd(decay=0.1)"
warmup = 0.05
stop_hopeless = true
tune = true

[[rules]]
method = "torch.optim:NAdam"
against = "compose(adam, momo(lb=1.0), schedule_free)"
at = "best"
statistic = "iqm"
margin = 0.02
level = 0.9
"""
OPTIONS: dict[str, Any] = {
    "methods": "adamw,compose(adam, momo(lb=1.0), schedule_free),torch.optim:NAdam(lr=0.1)",
    "lr": "default,1e-2,0.1:1:3",
    "seeds": 2,
    "budget": 10.0,
    "schedule": "wsd(decay=0.1)",
    "warmup": 0.05,
    "stop_hopeless": True,
    "tune": True,
}


def write(folder: Path, text: str) -> str:
    (folder / "study.toml").write_text(text)
    return str(folder / "study.toml")


def refused(tasks: list[str], **given: Any) -> str:
    """The sentence with which a request is refused, when it is read or when it is resolved."""
    with pytest.raises(StudyError) as caught:
        Request.of(tasks, **given).resolve()
    said = str(caught.value)
    assert "\n" not in said
    return said


def test_a_file_and_options_give_the_same_study(tmp_path: Path) -> None:
    options = Request.of(["tiny:Line", "logreg-iris"], **OPTIONS)
    file = Request.of([write(tmp_path, FULL)])
    assert options.tune is file.tune is True
    found = file.resolve()
    assert found.model_copy(update={"rules": ()}) == options.resolve()
    assert [run.id for run in found.runs()] == [run.id for run in options.resolve().runs()]
    assert [task.name for task in found.tasks] == ["tiny:Line", "logreg-iris"]
    assert {task.epochs for task in found.tasks} == {10.0}
    assert [method.lrs for method in found.methods] == [
        (0.001, 0.01, 0.1, 0.316228, 1.0),
        (0.01, 0.1, 0.316228, 1),
        (0.1,),
    ]
    assert {method.schedule for method in found.methods} == {"wsd(decay=0.1)"}
    assert found.seeds == (0, 1) and found.stop_hopeless


def test_lists_and_texts_with_commas_mean_the_same(tmp_path: Path) -> None:
    lists = 'tasks = ["tiny:Line", "logreg-iris"]\nmethods = ["adam", "sgd(lr=(0.1, 1))"]\nlr = [0.1, 1]\n'
    texts = 'tasks = "tiny:Line,logreg-iris"\nmethods = "adam,sgd(lr=(0.1, 1))"\nlr = "0.1,1"\n'
    (tmp_path / "texts.toml").write_text(texts)
    assert Request.of([write(tmp_path, lists)]).resolve() == Request.of([str(tmp_path / "texts.toml")]).resolve()
    one = Request.of([write(tmp_path, 'tasks = "tiny:Line"\nmethods = "adam"\nlr = 0.1')]).resolve()
    assert [method.lrs for method in one.methods] == [(0.1,)]


def test_what_is_not_said_is_the_demo() -> None:
    request = Request.of([])
    assert (request.tasks, request.budget) == (DEMO_TASKS, DEMO_BUDGET)
    assert (request.methods, request.lr, request.seeds, request.tune) == (DEMO_METHODS, LRS, 3, False)
    assert Request.of(["tiny:Line"]).budget is None  # that of the task
    assert Request.of([], budget=3.0).budget == 3.0


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("methods", "sgd"),
        ("lr", "0.5"),
        ("seeds", 1),
        ("budget", 2.0),
        ("schedule", "linear"),
        ("schedule", ""),
        ("warmup", 0.0),
        ("stop_hopeless", False),
        ("tune", False),
    ],
)
def test_an_option_wins_over_the_file(option: str, value: object, tmp_path: Path) -> None:
    path = write(tmp_path, FULL)
    file, asked = Request.of([path]), Request.of([path], **{option: value})
    assert getattr(asked, option) == value != getattr(file, option)
    others = Request.model_fields.keys() - {option}
    assert {name: getattr(asked, name) for name in others} == {name: getattr(file, name) for name in others}
    assert Request.of([path], **{option: None}).model_dump() == file.model_dump()


CLAIM = "[claim]\ntext = 'it is'\nsource = 'a paper'\ndate = 2026-11-28\nholds = ['better']\n"
BAD = {
    "": "",
    "tasks = [": "study.toml cannot be read: ",
    "task = ['tiny:Line']": "study.toml: task: Extra inputs are not permitted, not ['tiny:Line']; there are tasks,",
    "tasks = 3": "study.toml: tasks: Input should be a valid tuple, not 3",
    "tasks = [3]": "study.toml: tasks.0: Input should be a valid string, not 3",
    "tasks = []": "study.toml: a study needs at least one task and one method",
    "tasks = ['irys']": "study.toml: no task 'irys'; there are",
    "tasks = ['tiny:Line', 'tiny:Line']": "study.toml: tasks: tiny:Line is given twice",
    "methods = 3": "study.toml: methods.",
    "methods = ['adm']": "study.toml: no method is called 'adm'; did you mean",
    "methods = ['adam', 'adam()']": "study.toml: methods: adam is given twice",
    "methods = []": "study.toml: a study needs at least one task and one method",
    "methods = ['adam(bettas=1)']": "study.toml: methods: adam(bettas=1): ",
    "methods = ['nowhere.at.all:Adam']": "study.toml: methods: nowhere.at.all:Adam: nowhere is not installed",
    "methods = ['torch.optim:LBFGS']": "study.toml: methods: torch.optim:LBFGS evaluates the loss itself",
    "methods = ['compose(adam, momentum)']": "study.toml: methods: compose(adam, momentum) has two parts for direction",
    "lr = 'x'": "study.toml: lr: cannot read 'x'",
    "lr = []": "study.toml: lr: cannot read ''",
    "lr = -1": "study.toml: lr: a learning rate must be positive and finite, not -1.0",
    "lr = {}": "study.toml: lr.",
    "seeds = 'three'": "study.toml: seeds: Input should be a valid integer",
    "seeds = true": "study.toml: seeds: Input should be a valid integer, not True",
    "seeds = 2.5": "study.toml: seeds: Input should be a valid integer, not 2.5",
    "seeds = 0": "study.toml: seeds: must be at least 1, not 0",
    "budget = 'long'": "study.toml: budget: Input should be a valid number, not 'long'",
    "budget = true": "study.toml: budget: Input should be a valid number, not True",
    "budget = -1": "study.toml: budget: epochs must be positive and finite, not -1.0",
    "budget = nan": "study.toml: budget: epochs must be positive and finite, not nan",
    "schedule = 'lineer'": "study.toml: schedule: 'lineer' is none of constant, linear,",
    "schedule = 3": "study.toml: schedule: Input should be a valid string, not 3",
    "warmup = 1.0": "study.toml: warmup: is a part of the run, at least 0 and below 1, not 1.0",
    "warmup = nan": "study.toml: warmup: is a part of the run, at least 0 and below 1, not nan",
    "warmup = 'x'": "study.toml: warmup: Input should be a valid number",
    "stop_hopeless = 'perhaps'": "study.toml: stop_hopeless: Input should be a valid boolean",
    "lr = true": "study.toml: lr.str: Input should be a valid string, not True",
    "lr = [0.1, true]": "study.toml: lr",
    "warmup = true": "study.toml: warmup: Input should be a valid number, not True",
    "warmup = '0.1'": "study.toml: warmup: Input should be a valid number, not '0.1'",
    "stop_hopeless = 'yes'": "study.toml: stop_hopeless: Input should be a valid boolean, not 'yes'",
    "tune = 1": "study.toml: tune: Input should be a valid boolean, not 1",
    "[[rules]]\nmethod = 'adam'\nagainst = 'adam()'": "study.toml: rules: adam is compared with itself",
    "tune = []": "study.toml: tune: Input should be a valid boolean",
    "rules = 3": "study.toml: rules: Input should be a valid tuple, not 3",
    "[[rules]]\nmethod = 'adam'": "study.toml: rules.0.against: Field required",
    "[[rules]]\nmethod = 'adam'\nagainst = 'sgd'\nmargn = 1": "rules.0.margn: Extra inputs are not permitted, not 1; "
    "there are method, against, at, against_at, statistic, over, margin, level",
    "[[rules]]\nmethod = 'adam'\nagainst = 'sgd'\nmargin = -1": "study.toml: rules.0.margin: Input should be greater",
    "[[rules]]\nmethod = 'adam'\nagainst = 'sgd'\nlevel = 1.0": "study.toml: rules.0.level: Input should be less than",
    "[[rules]]\nmethod = 'adam'\nagainst = 'sgd'\nat = 'worst'": "study.toml: rules.0.at: Input should be 'default' or",
    "[[rules]]\nmethod = 'prodigy'\nagainst = 'sgd'": "study.toml: rules: method = 'prodigy' is none of adam, sgd",
    "[[rules]]\nmethod = 'adam'\nagainst = 'sgd'\nagainst_at = 1": "study.toml: rules.0.against_at: Input should be",
    CLAIM: "study.toml: claim: nothing decides it; write [[rules]]",
    f"{CLAIM}hold = []": "study.toml: claim.hold: Extra inputs are not permitted, not []; there are text, source, "
    "date, holds, why",
    CLAIM.replace("['better']", "[]"): "study.toml: claim.holds: Tuple should have at least 1 item",
    CLAIM.replace("better", "best"): "study.toml: claim.holds.0: Input should be 'better', 'worse' or 'no difference",
    CLAIM.replace("2026-11-28", "'soon'"): "study.toml: claim.date: Input should be a valid date",
    CLAIM.replace("text = 'it is'", ""): "study.toml: claim.text: Field required",
    "[[rules]]\nmethod = 'adam'\nagainst = 'adm'": "study.toml: no method is called 'adm'",
}  # fmt: skip


@pytest.mark.parametrize("text", list(BAD)[1:])
def test_a_bad_file_is_one_sentence_that_names_it_and_the_field(text: str, tmp_path: Path) -> None:
    field = text.partition(" ")[0]
    rest = {"tasks": "tasks = ['tiny:Line']\n", "methods": "methods = 'adam,sgd'\n", "lr": "lr = 0.1\n"}
    good = "".join(line for name, line in rest.items() if name != field)
    said = refused([write(tmp_path, good + text)])
    assert BAD[text] in said
    assert said.startswith(f"{tmp_path / 'study.toml'}")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere.toml"
    assert refused([str(missing)]) == f"{missing}: there is no such file"
    (tmp_path / "folder.toml").mkdir()
    assert refused([str(tmp_path / "folder.toml")]).startswith(f"{tmp_path / 'folder.toml'} cannot be read: ")
    (tmp_path / "latin.toml").write_bytes("tasks = ['\xe4']".encode("latin-1"))
    assert refused([str(tmp_path / "latin.toml")]).startswith(f"{tmp_path / 'latin.toml'} cannot be read: ")
    said = refused([write(tmp_path, FULL), "logreg-iris"])
    assert said == f"a study comes from one file or from names of tasks, not from {tmp_path}/study.toml and logreg-iris"


def test_a_bad_option_names_itself() -> None:
    assert refused(["tiny:Line"], seeds=0) == "seeds: must be at least 1, not 0"
    assert refused(["tiny:Line"], warmup=2.0).startswith("warmup: is a part of the run")
    assert refused(["tiny:Line"], seeds="x").startswith("study: seeds: Input should be a valid integer")


def test_rules_have_the_methods_as_the_study_writes_them(tmp_path: Path) -> None:
    text = """
tasks = ["tiny:Line"]
methods = ["adam(betas=[0.9, 0.95])", "adamw(lr=range_test(steps=10), schedule=linear())", "sgd"]
lr = 0.1
rules = [
    {method = "adam(betas=(0.9,0.95))", against = "sgd()"},
    {method = "adamw(schedule=linear, lr = range_test(steps = 10))", against = "adam(betas=[0.9, 0.95])", margin = 0.1},
]
"""
    study = Request.of([write(tmp_path, text)]).resolve()
    assert study.rules == (
        RuleEntry(method="adam(betas=(0.9, 0.95))", against="sgd"),
        RuleEntry(
            method="adamw(lr=range_test(steps=10), schedule=linear)", against="adam(betas=(0.9, 0.95))", margin=0.1
        ),
    )
    assert {side for rule in study.rules for side in (rule.method, rule.against)} == {m.label for m in study.methods}
    assert Study.model_validate_json(study.model_dump_json()) == study


def test_the_command_reads_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """And the folder has the study, whose rules a second request may not change."""
    path = write(tmp_path, "tasks = ['tiny:Line']\nmethods = 'sgd'\nlr = 0.1\nseeds = 1\nbudget = 0.2\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))  # of the worker

    def compare(*options: str) -> int:
        monkeypatch.setattr(sys, "argv", ["untuned", "compare", path, "--out", "study", "--workers", "1", *options])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return int(left.value.code or 0)

    assert compare() == 0
    store = Store("study")
    assert store.study == Request.of([path]).resolve()
    assert list(store.statuses().values()) == ["done"]
    write(tmp_path, Path(path).read_text() + "[[rules]]\nmethod = 'sgd'\nagainst = 'adam'\n")
    assert compare("--methods", "sgd,adam") == 2
    assert "study holds a different study: its rules is ()" in capfd.readouterr().err


def test_modules_are_looked_for_beside_the_file_before_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    tiny = (Path(__file__).parent / "tiny.py").read_text()
    (there / "besides.py").write_text(tiny)
    (here / "besides.py").write_text("raise RuntimeError('the one of the current folder')")
    (here / "here_only.py").write_text(tiny)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(here)
    file = write(there, 'tasks = ["besides:Line", "here_only:Line"]\nmethods = ["sgd(lr=0.1)"]')
    study = Request.of([file]).resolve()
    assert [task.name for task in study.tasks] == ["besides:Line", "here_only:Line"]
    for module in ("besides", "here_only"):
        del sys.modules[module]

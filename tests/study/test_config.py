"""What is asked for on the command line becomes a checked study, or one clear sentence."""

import hashlib
import json
from pathlib import Path

import pytest

import untuned
from untuned.study.config import (
    MethodEntry,
    MethodSpec,
    RuleEntry,
    Run,
    Study,
    StudyError,
    TaskEntry,
    label,
    parse_methods,
)
from untuned.study.resolve import parse_lrs, resolve

RUN = Run(
    task="iris", method="adam", options={"betas": (0.9, 0.95)}, lr=0.1, seed=2, epochs=5, batch_size=16, version="1.0"
)


def test_log_spaced_learning_rates_include_both_ends() -> None:
    assert parse_lrs("1e-4:1e2:7") == (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
    assert parse_lrs("1e-3:1:7") == (0.001, 0.00316228, 0.01, 0.0316228, 0.1, 0.316228, 1.0)
    assert parse_lrs("0.3:0.7:2") == (0.3, 0.7)


def test_listed_learning_rates_are_ascending_without_repetition() -> None:
    assert parse_lrs("1,1e-3,1e-2,0.001,1e1:1e3:3") == (0.001, 0.01, 1.0, 10.0, 100.0, 1000.0)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "cannot read ''"),
        ("1e-3,x", "cannot read 'x'"),
        ("1:2", "cannot read '1:2'"),
        ("1:2:3:4", "cannot read '1:2:3:4'"),
        ("1:2:2.5", "cannot read '1:2:2.5'"),
        ("1:10:1", "COUNT >= 2"),
        ("10:1:3", "0 < LOW < HIGH"),
        ("0:1:3", "0 < LOW < HIGH"),
        ("1:inf:3", "0 < LOW < HIGH"),
        ("1e-3,0", "positive and finite, not 0.0"),
        ("-1", "positive and finite, not -1.0"),
        ("nan", "positive and finite, not nan"),
        ("inf", "positive and finite, not inf"),
    ],
)
def test_bad_learning_rates_are_refused(text: str, part: str) -> None:
    with pytest.raises(StudyError) as caught:
        parse_lrs(text)
    assert part in str(caught.value)


def test_methods_with_options_and_learning_rates_of_their_own() -> None:
    assert parse_methods("momo, adam(betas=(0.9, 0.95), eps=1e-6),prodigy(lr=1.0),sgd(lr=(1, 0.1))") == [
        MethodSpec("momo", {}),
        MethodSpec("adam", {"betas": (0.9, 0.95), "eps": 1e-6}),
        MethodSpec("prodigy", {}, (1.0,)),
        MethodSpec("sgd", {}, (0.1, 1.0)),
    ]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("momo_adm", "'momo_adm'; did you mean momo_adam"),
        ("momo-adam", "'momo-adam'; did you mean momo_adam"),
        ("zzzzz", "no method is called 'zzzzz'"),
        ("adam(", "cannot read 'adam('"),
        ("adam] + [momo", "cannot read"),
        ("adam(0.9)", "adam(0.9): options need names"),
        ("adam(**{'eps': 1})", "options need names"),
        ("adam(eps=__import__('os').getpid())", "option eps must be a number, string, boolean, None or tuple"),
        ("adam(eps=1e999)", "option eps must be a number"),
        ("adam(eps=b'x')", "option eps must be a number"),
        ("adam(lr=0)", "adam(lr=...): a learning rate must be positive and finite, not 0"),
        ("adam(lr='x')", "not 'x'"),
        ("adam(lr=())", "adam(lr=...): there is no learning rate"),
        ("adam(lr=[])", "adam(lr=...): there is no learning rate"),
        ("adam(lr=True)", "not True"),
    ],
)
def test_bad_methods_are_refused(text: str, part: str) -> None:
    with pytest.raises(StudyError) as caught:
        parse_methods(text)
    assert part in str(caught.value)


def test_label_is_what_the_parser_reads() -> None:
    options = {"betas": (0.9, 0.95), "eps": 1e-06}
    assert label("adam", options) == "adam(betas=(0.9, 0.95), eps=1e-06)"
    assert parse_methods(label("adam", options)) == [MethodSpec("adam", options)]
    assert label("adam", {}) == "adam"


def test_identity_is_the_hash_of_everything_that_determines_the_numbers() -> None:
    text = (
        '{"batch_size":16,"epochs":5.0,"lr":0.1,"method":"adam","options":{"betas":[0.9,0.95]},'
        '"seed":2,"source":"","task":"iris","version":"1.0"}'
    )
    assert RUN.canonical() == text
    assert RUN.id == hashlib.sha256(text.encode()).hexdigest()[:16]
    changes = {
        "task": "wine",
        "method": "sgd",
        "options": {},
        "lr": 0.2,
        "seed": 3,
        "epochs": 6,
        "version": "1.1",
        "source": "0f",
    }
    ids = {RUN.model_copy(update={key: value}).id for key, value in changes.items()}
    assert len(ids | {RUN.id, RUN.model_copy(update={"batch_size": 8}).id}) == len(changes) + 2


def test_options_are_tuples_again_after_a_file() -> None:
    again = Run.model_validate_json(RUN.model_dump_json())
    assert again == RUN
    assert again.options == {"betas": (0.9, 0.95)}
    assert again.id == RUN.id


def study(**changes: object) -> Study:
    task = TaskEntry(name="t", title="T", metric="m", maximize=True, chance=0.5, batch_size=2, epochs=3)
    methods = (
        MethodEntry(name="adam", lrs=(1, 2, 3, 4, 5, 6, 7)),
        MethodEntry(name="sgd", options={"momentum": 0.9}, lrs=(1,)),
    )
    return Study(version="1", tasks=(task,), methods=methods, seeds=(0, 1)).model_copy(update=changes)


def test_runs_are_all_there_and_coarse_before_fine() -> None:
    runs = study().runs()
    assert [(r.seed, r.method, r.lr) for r in runs[:8]] == [
        (0, "adam", 1.0), (0, "sgd", 1.0), (0, "adam", 5.0), (0, "adam", 3.0),
        (0, "adam", 7.0), (0, "adam", 2.0), (0, "adam", 6.0), (0, "adam", 4.0),
    ]  # fmt: skip
    assert [(r.seed, r.method, r.lr) for r in runs[8:]] == [(1, r.method, r.lr) for r in runs[:8]]
    assert {(r.epochs, r.batch_size, r.task, r.version) for r in runs} == {(3, 2, "t", "1")}
    assert runs[1].options == {"momentum": 0.9}
    assert len({run.id for run in runs}) == 16


def test_a_study_survives_its_file() -> None:
    assert Study.model_validate_json(study().model_dump_json()) == study()
    assert json.loads(study().canonical())["seeds"] == [0, 1]


def test_resolve_takes_defaults_from_the_task() -> None:
    resolved = resolve(["tiny:Line"], parse_methods("adam,sgd(momentum=0.9, lr=0.5)"), (0.1, 0.01), seeds=2)
    [task] = resolved.tasks
    assert (task.name, task.metric, task.chance, task.batch_size, task.epochs) == (
        "tiny:Line",
        "val_accuracy",
        0.25,
        4,
        4,
    )
    assert [method.lrs for method in resolved.methods] == [(0.01, 0.1), (0.5,)]
    assert resolved.seeds == (0, 1)
    assert resolved.version == untuned.__version__
    assert resolve(["tiny:Line"], parse_methods("adam"), (0.1,), 1, epochs=0.5).tasks[0].epochs == 0.5


@pytest.mark.parametrize(
    ("tasks", "methods", "options", "part"),
    [
        (["no-such-task"], "adam", {}, "no-such-task"),
        (["tiny:Nothing"], "adam", {}, "Nothing"),
        (["tiny:Line", "tiny:Line"], "adam", {}, "tasks: tiny:Line is given twice"),
        (["tiny:Line"], "adam,adam", {}, "methods: adam is given twice"),
        (["tiny:Line"], "momo(lb=1),momo(lb=1.0)", {}, "methods: momo(lb=1) and momo(lb=1.0) are the same"),
        (["tiny:Line"], "adam(eps=1e-6, betas=(0.9, 0.9)),adam(betas=(0.9, 0.9), eps=1e-6)", {}, "are the same"),
        (["tiny:Line"], "adam(bettas=1)", {}, "methods: adam(bettas=1): "),
        (["tiny:Line"], "adam(betas=(0.9, 1.5))", {}, "methods: adam(betas=(0.9, 1.5)): "),
        (["tiny:Line"], "adam", {"seeds": 0}, "seeds: must be at least 1, not 0"),
        (["tiny:Line"], "adam", {"epochs": 0.0}, "budget: epochs must be positive and finite, not 0.0"),
        (["tiny:Line"], "adam", {"epochs": float("nan")}, "not nan"),
        ([], "adam", {}, "at least one task"),
        (["tiny:Line"], "", {}, "at least one"),
    ],
)
def test_impossible_studies_are_refused(tasks: list[str], methods: str, options: dict, part: str) -> None:
    with pytest.raises(StudyError) as caught:
        resolve(tasks, parse_methods(methods), (0.1,), **{"seeds": 1, **options})
    assert part in str(caught.value)


# --- Learning rates: that of the method, those that tuning adds, and those of two studies together.


def test_the_default_is_among_the_rates_if_asked_for() -> None:
    assert parse_lrs("default") == ("default",)
    assert parse_lrs("1,default,0.1") == ("default", 0.1, 1.0)
    found = resolve(
        ["tiny:Line"],
        parse_methods("adam,prodigy,torch.optim:NAdam,compose(adam, momo),sgd(lr=0.5),adamw(lr=range_test(steps=10))"),
        parse_lrs("default,0.1:10:3"),
        seeds=1,
    )
    assert [method.lrs for method in found.methods] == [
        (0.001, 0.1, 1.0, 10.0),
        (0.1, 1.0, 10.0),  # whose default, 1, is among them
        (0.002, 0.1, 1.0, 10.0),
        (0.1, 1.0, 10.0),
        (0.5,),
        (1.0,),
    ]
    assert [method.default_lr for method in found.methods] == [1e-3, 1.0, 2e-3, 1.0, 1e-3, 1.0]
    assert [method.probe for method in found.methods] == [""] * 5 + ["range_test(steps=10)"]
    [only] = resolve(["tiny:Line"], parse_methods("adam"), ("default",), seeds=1).methods
    assert only.lrs == (1e-3,)


OWN = """
import torch
class Bare(torch.optim.SGD):
    def __init__(self, params, lr):
        super().__init__(params, lr=lr)
"""


def test_an_optimizer_without_a_default_lr_needs_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "has_no_default.py").write_text(OWN)
    with pytest.raises(StudyError, match="methods: has_no_default:Bare has no default lr: give it one"):
        resolve(["tiny:Line"], parse_methods("has_no_default:Bare"), ("default", 0.1), seeds=1)
    for text, lrs in (("has_no_default:Bare", (0.1,)), ("has_no_default:Bare(lr=0.1)", ("default",))):
        [method] = resolve(["tiny:Line"], parse_methods(text), lrs, seeds=1).methods
        assert (method.lrs, method.default_lr) == ((0.1,), None)


def test_a_common_schedule_is_that_of_methods_that_name_none() -> None:
    found = resolve(
        ["tiny:Line"],
        parse_methods("adam,sgd(schedule=linear),prodigy(warmup=0.2),adamw(schedule=constant, warmup=0)"),
        (0.1,),
        seeds=1,
        schedule="wsd(decay=0.1)",
        warmup=0.05,
    )
    assert [method.label for method in found.methods] == [
        "adam(schedule=wsd(decay=0.1), warmup=0.05)",
        "sgd(schedule=linear, warmup=0.05)",
        "prodigy(schedule=wsd(decay=0.1), warmup=0.2)",
        "adamw",
    ]
    assert {run.schedule for run in found.runs()} == {"wsd(decay=0.1)", "linear", ""}
    with pytest.raises(StudyError, match=r"methods: adam\(schedule=linear\) is given twice"):
        resolve(["tiny:Line"], parse_methods("adam,adam(schedule=linear)"), (0.1,), seeds=1, schedule="linear")
    for schedule, warmup, part in (("lineer", 0.0, "schedule: 'lineer'"), ("", 1.0, "warmup: is a part of the run")):
        with pytest.raises(StudyError, match=part):
            resolve(["tiny:Line"], parse_methods("adam"), (0.1,), seeds=1, schedule=schedule, warmup=warmup)


def test_what_a_run_is_trained_with_is_its_identity_and_what_it_is_not_is_not() -> None:
    """Runs of folders older than schedules keep their identity."""
    changes = {"schedule": "linear", "warmup": 0.1, "budget": 0.5, "probe": "range_test", "stop_hopeless": True}
    ids = {RUN.model_copy(update={key: value}).id for key, value in changes.items()}
    assert len(ids | {RUN.id}) == len(changes) + 1
    usual = {"schedule": "", "warmup": 0.0, "budget": 1.0, "probe": "", "stop_hopeless": False}
    assert RUN.model_copy(update=usual).canonical() == RUN.canonical()
    assert not changes.keys() & json.loads(RUN.canonical()).keys()


def two_tasks(**changes: object) -> Study:
    tasks = tuple(
        TaskEntry(name=name, title="T", metric="m", maximize=True, chance=0.5, batch_size=2, epochs=3) for name in "tu"
    )
    return study(tasks=tasks, **changes)


def test_added_rates_are_those_of_one_task_and_of_one_method() -> None:
    few = (MethodEntry(name="adam", lrs=(1, 3)), MethodEntry(name="sgd", options={"momentum": 0.9}, lrs=(1,)))
    before = two_tasks(methods=few)
    after = before.with_rates({("adam", "t"): [0.3, 3.0], ("sgd(momentum=0.9)", "u"): [2.0], ("sgd", "t"): [9.0]})
    adam, sgd = after.methods
    assert (adam.rates("t"), adam.rates("u")) == ((0.3, 1, 3), (1, 3))
    assert (sgd.rates("t"), sgd.rates("u")) == ((1,), (1, 2))
    assert (adam.lrs, sgd.lrs) == ((1, 3), (1,))
    runs, more = before.runs(), after.runs()
    assert {run.id for run in runs} < {run.id for run in more}
    extra = [run for run in more if run.id not in {r.id for r in runs}]
    assert {(run.task, run.label, run.lr) for run in extra} == {("t", "adam", 0.3), ("u", "sgd(momentum=0.9)", 2.0)}
    assert len(extra) == 2 * len(before.seeds)
    assert len(more) == len({run.id for run in more})
    assert Study.model_validate_json(after.model_dump_json()) == after
    assert "added" not in before.model_dump_json()
    # Rates added twice, and one after the other, are there once.
    assert after.with_rates({("adam", "t"): [0.3]}) == after
    assert (
        before.with_rates({("adam", "t"): [0.3]})
        .with_rates({("adam", "t"): [3.0], ("sgd(momentum=0.9)", "u"): [2.0]})
        .runs()
        == more
    )
    assert before.with_rates({}) == before


def test_grown_methods_have_the_rates_of_both() -> None:
    a = MethodEntry(name="adam", lrs=(1, 3), added={"t": (5.0,)}, default_lr=1e-3)
    b = MethodEntry(name="adam", lrs=(2, 3), added={"t": (4.0, 5.0), "u": (9.0,)}, default_lr=1e-3)
    both = MethodEntry(name="adam", lrs=(1, 2, 3), added={"t": (4.0, 5.0), "u": (9.0,)}, default_lr=1e-3)
    assert a.grown(b) == b.grown(a) == both
    assert both.grown(a) == both
    assert both.rates("t") == (1, 2, 3, 4, 5)
    assert both.rates("other") == (1, 2, 3)


def test_a_method_of_a_study_has_one_spelling() -> None:
    before, after = (resolve(["tiny:Line"], parse_methods(f"momo(lb={lb})"), (0.1,), 1) for lb in ("1", "1.0"))
    with pytest.raises(StudyError, match=r"^it has momo\(lb=1.0\) written as momo\(lb=1\)$"):
        before.grown(after, mended=False)


def test_a_study_grows_by_tasks_methods_rates_and_seeds() -> None:
    task, other = two_tasks().tasks
    adam, sgd = study().methods
    first = study(tasks=(task,), methods=(adam.model_copy(update={"added": {"t": (0.5,)}}),), seeds=(0, 2))
    second = study(
        tasks=(other, task),
        methods=(sgd, adam.model_copy(update={"lrs": (2.0, 8.0), "added": {"u": (0.1,)}})),
        seeds=(0, 1),
    )
    grown = first.grown(second, mended=False)
    assert [entry.name for entry in grown.tasks] == ["t", "u"]
    assert [method.name for method in grown.methods] == ["adam", "sgd"]  # in the order in which they came
    assert grown.methods[0].rates("t") == (0.5, 1, 2, 3, 4, 5, 6, 7, 8)
    assert grown.methods[0].rates("u") == (0.1, 1, 2, 3, 4, 5, 6, 7, 8)
    assert grown.seeds == (0, 1, 2)
    assert {run.id for run in [*first.runs(), *second.runs()]} <= {run.id for run in grown.runs()}
    assert grown.grown(first, mended=False) == grown.grown(second, mended=False) == grown
    # Other options, and another schedule, are other methods.
    scheduled = study(methods=(adam.model_copy(update={"schedule": "linear"}),))
    assert [method.label for method in study().grown(scheduled, mended=False).methods] == [
        "adam", "sgd(momentum=0.9)", "adam(schedule=linear)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"version": "2"}, "its version is '1', not '2'"),
        ({"stop_hopeless": True}, "its stop_hopeless is False, not True"),
        ({"rules": (RuleEntry(method="adam", against="sgd"),)}, r"its rules is \(\), not \(RuleEntry"),
    ],
)
def test_studies_that_cannot_be_one_are_refused(changes: dict, sentence: str) -> None:
    with pytest.raises(StudyError, match=sentence):
        study().grown(study(**changes), mended=False)


@pytest.mark.parametrize("field", ["title", "metric", "maximize", "chance", "batch_size", "epochs"])
def test_a_task_stays_what_it_is(field: str) -> None:
    [task] = study().tasks
    value = {"title": "U", "metric": "n", "maximize": False, "chance": 0.1, "batch_size": 4, "epochs": 9.0}[field]
    with pytest.raises(StudyError, match=f"{field} of its task 't' is {getattr(task, field)!r}, not {value!r}"):
        study().grown(study(tasks=(task.model_copy(update={field: value}),)), mended=True)


def test_the_code_of_a_task_may_be_mended_and_its_runs_keep_their_identity() -> None:
    [task] = study().tasks
    old, new, newer = (study(tasks=(task.model_copy(update={"source": source}),)) for source in ("aa", "bb", "cc"))
    with pytest.raises(StudyError, match="the code of its task 't' has changed since; --retry-crashed keeps what has"):
        old.grown(new, mended=False)
    mended = old.grown(new, mended=True)
    assert (mended.tasks[0].source, mended.tasks[0].mended) == ("aa", "bb")
    assert [run.id for run in mended.runs()] == [run.id for run in old.runs()]
    assert mended.grown(new, mended=False) == mended
    assert mended.grown(newer, mended=True).tasks[0].mended == "cc"
    assert mended.grown(old, mended=True) == old  # and back

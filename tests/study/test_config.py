"""What is asked for on the command line becomes a checked study, or one clear sentence."""

import hashlib
import json

import pytest

import untuned
from untuned.study.config import (
    MethodEntry,
    MethodSpec,
    Run,
    Study,
    StudyError,
    TaskEntry,
    label,
    parse_lrs,
    parse_methods,
    resolve,
)

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

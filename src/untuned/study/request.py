"""What a study is asked for: options of `untuned compare`, or a TOML file that holds everything.

tasks = ["fashion-mlp", "logreg-vehicle"]
methods = ["adamw(schedule=linear)", "prodigy", "compose(adam, momo, schedule_free)", "torch.optim:NAdam"]
lr = "default,1e-4:1:5"
seeds = 3
budget = 10                     # epochs

[[rules]]                       # a verdict, fixed before the runs
method = "prodigy"
against = "adamw(schedule=linear)"
margin = 0.02

[claim]                         # of others, which the rules decide
text = "Prodigy matches tuned AdamW"
source = "Prodigy, arXiv 2306.06101"
date = 2026-11-28               # of the rules, before the runs
holds = ["better", "no difference of more than the margin"]
"""

import os
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PrivateAttr,
    StrictBool,
    StrictFloat,
    StrictInt,
    ValidationError,
)

from untuned.study.config import ClaimEntry, RuleEntry, Study, StudyError, parse_methods
from untuned.study.resolve import parse_lrs, resolve

DEMO_TASKS = ("logreg-vehicle", "fashion-mlp")
DEMO_BUDGET = 10.0
DEMO_METHODS = "sgd(momentum=0.9),adam,momo,momo_adam,prodigy,schedule_free_adamw"
LRS = "default,1e-4:1e2:7"


def _split(value: Any) -> Any:
    return tuple(value.split(",")) if isinstance(value, str) else value


class Request(BaseModel):
    """A study as people write it; `resolve` checks it. Lists and texts with commas mean the same."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: Annotated[tuple[str, ...], BeforeValidator(_split)] = DEMO_TASKS
    methods: str | tuple[str, ...] = DEMO_METHODS
    lr: str | StrictFloat | tuple[str | StrictFloat, ...] = LRS
    seeds: StrictInt = 3
    budget: StrictFloat | None = None
    schedule: str = ""
    warmup: StrictFloat = 0.0
    stop_hopeless: StrictBool = False
    tune: StrictBool = False
    rules: tuple[RuleEntry, ...] = ()
    claim: ClaimEntry | None = None
    _file: str = PrivateAttr("")  # that it was read from

    @classmethod
    def of(cls, tasks: list[str], **given: Any) -> Self:
        """From words and options of the command line; a single word that ends in .toml is a file. Raises StudyError.

        An option that is None was not given: the file's counts, or the default.
        """
        values: dict[str, Any] = {}
        where = "study"
        if any(word.endswith(".toml") for word in tasks):
            if len(tasks) > 1:
                raise StudyError(f"a study comes from one file or from names of tasks, not from {' and '.join(tasks)}")
            where = tasks[0]
            values = _read(Path(where))
        elif tasks:
            values["tasks"] = tasks
        values |= {name: value for name, value in given.items() if value is not None}
        if "tasks" not in values:
            values.setdefault("budget", DEMO_BUDGET)
        try:
            request = cls.model_validate(values)
        except ValidationError as error:
            wrong = error.errors()[0]
            place = ".".join(map(str, wrong["loc"]))
            entry = {"rules": RuleEntry, "claim": ClaimEntry}.get(str(wrong["loc"][0]), cls)
            fields = cls.model_fields if len(wrong["loc"]) == 1 else entry.model_fields
            known = f"; there are {', '.join(fields)}" if wrong["type"] == "extra_forbidden" else ""
            raise StudyError(f"{where}: {place}: {wrong['msg']}, not {wrong['input']!r}{known}") from None
        request._file = "" if where == "study" else where
        return request

    def resolve(self) -> Study:
        """The study, with all tasks loaded and all optimizers built once. Raises StudyError, which names the file."""
        try:
            return self._resolve()
        except StudyError as error:
            raise StudyError(f"{self._file}: {error}" if self._file else str(error)) from None

    def _resolve(self) -> Study:
        if self.claim and not self.rules:
            raise StudyError("claim: nothing decides it; write [[rules]]")
        if self._file:  # modules beside the file first, then those of the current folder
            _search(os.getcwd())
            _search(str(Path(self._file).resolve().parent))
        lrs = self.lr if isinstance(self.lr, tuple) else (self.lr,)
        return resolve(
            self.tasks,
            parse_methods(self.methods if isinstance(self.methods, str) else ",".join(self.methods)),
            parse_lrs(",".join(str(lr) for lr in lrs)),
            self.seeds,
            self.budget,
            schedule=self.schedule,
            warmup=self.warmup,
            stop_hopeless=self.stop_hopeless,
            rules=self.rules,
            claim=self.claim,
        )


def _search(folder: str) -> None:
    """Let Python look for modules there first, unless it looks there already; so do the processes of the runs."""
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StudyError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StudyError(f"{path} cannot be read: {error}") from None

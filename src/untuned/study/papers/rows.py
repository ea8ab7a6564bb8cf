"""Rows of a study on disk: a file for each job that has ended while it runs, CSV files when it is done."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from untuned.schedules.tables import replace
from untuned.study.config import StudyError
from untuned.study.papers.frame import Job, PaperStudy, Row, Scalar

JOBS = "jobs"  # the file that lists the jobs is named as if they were rows of a function of this name


@dataclass(frozen=True)
class Record:
    """A job that has ended."""

    function: str
    arguments: Mapping[str, Scalar]
    rows: Sequence[Row]
    seconds: float
    date: str
    machine: str
    torch: str


def key(study: PaperStudy, job: Job) -> str:
    """What a job is: its file's name without the ending."""
    text = json.dumps([study.name, study.version, job.function.__name__, dict(sorted(job.arguments.items()))])
    return f"{job.function.__name__}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def check_folder(folder: Path) -> None:
    """StudyError if it is no folder and cannot become one."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise StudyError(f"{folder if folder.exists() else there} is no folder; choose another --out")


def claim_folder(study: PaperStudy, folder: Path) -> None:
    """Make the folder, or take that of an earlier run of this study. Raises StudyError before anything is written."""
    mark = folder / "paper.json"
    if mark.exists():
        found = json.loads(mark.read_text(encoding="utf-8"))["study"]
        if found != study.name:
            raise StudyError(f"{folder} holds the study {found!r}, not {study.name!r}; choose another --out")
        return
    check_folder(folder)
    if folder.exists() and any(path.name[0] != "." for path in folder.iterdir()):
        raise StudyError(f"{folder} exists and holds no study; choose another --out")
    try:
        (folder / JOBS).mkdir(parents=True, exist_ok=True)
        replace(mark, lambda path: path.write_text(json.dumps({"study": study.name}), encoding="utf-8"))
    except OSError as error:
        raise StudyError(f"cannot write a study to {folder} ({error}); choose another --out") from error


def load(study: PaperStudy, folder: Path, job: Job) -> Record | None:
    """The record of a job, or None if it has not ended."""
    path = folder / JOBS / f"{key(study, job)}.json"
    return Record(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def save(study: PaperStudy, folder: Path, job: Job, record: Record) -> None:
    """In one piece: a process that dies leaves the whole record or none."""
    text = json.dumps(record.__dict__)
    replace(folder / JOBS / f"{key(study, job)}.json", lambda path: path.write_text(text, encoding="utf-8"))


def merged(records: Sequence[Record]) -> dict[str, list[Row]]:
    """Rows by function, each with the arguments of its job."""
    found: dict[str, list[Row]] = {}
    for record in records:
        found.setdefault(record.function, []).extend({**record.arguments, **row} for row in record.rows)
    return found


def write_csv(study: PaperStudy, folder: Path, records: Sequence[Record]) -> None:
    """NAME-FUNCTION.csv for the rows of each function, and NAME-jobs.csv for what the jobs took."""
    listed: list[Row] = [
        {
            "function": one.function,
            "arguments": json.dumps(one.arguments, sort_keys=True),
            "seconds": round(one.seconds, 2),
            "date": one.date,
            "machine": one.machine,
            "torch": one.torch,
        }
        for one in records
    ]
    for name, rows in {**merged(records), JOBS: listed}.items():
        columns = list(dict.fromkeys(column for row in rows for column in row))

        def write(path: Path, columns: Sequence[str] = columns, rows: Sequence[Row] = rows) -> None:
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(columns)
                writer.writerows([_text(row.get(column)) for column in columns] for row in rows)

        replace(folder / f"{study.name}-{name}.csv", write)


def read_csv(study: PaperStudy, folder: Path) -> dict[str, list[Row]]:
    """The rows that `write_csv` wrote, of the same types, with the jobs among them under "jobs"."""
    found = {}
    for path in sorted(folder.glob(f"{study.name}-*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            found[path.stem.removeprefix(f"{study.name}-")] = [
                {column: _value(text) for column, text in row.items()} for row in csv.DictReader(file)
            ]
    return found


def _text(value: Scalar) -> str:
    if isinstance(value, str) and (value == "" or not isinstance(_value(value), str)):
        raise ValueError(f"a row of a study holds the text {value!r}, which a CSV file would give back as another type")
    return "" if value is None else str(value)


def _value(text: str) -> Scalar:
    if text in ("True", "False", ""):
        return {"True": True, "False": False, "": None}[text]
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    try:
        return float(text)
    except ValueError:
        return text


def by(rows: Sequence[Row], *columns: str) -> dict[tuple[Scalar, ...], list[Row]]:
    """Rows in groups of equal values of these columns, in the order in which they come first."""
    found: dict[tuple[Scalar, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[column] for column in columns), []).append(row)
    return found


def numbers(rows: Sequence[Row], column: str) -> list[float]:
    """A column as floats; what is missing is NaN."""
    return [math.nan if row.get(column) is None else float(row[column]) for row in rows]  # pyright: ignore[reportArgumentType]

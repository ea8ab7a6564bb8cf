"""A study on disk: `study.json`, `ledger.sqlite` and one Parquet file of curves per run; survives kill -9.

Tables come back as pyarrow, which DuckDB, polars and pandas read in place:
`runs = store.runs(); duckdb.sql("select method, lr, count(*) from runs group by all")`.
"""

import json
import os
import platform
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import ValidationError

from untuned.schedules.tables import replace
from untuned.study.config import Run, Study, StudyError
from untuned.study.runner import CURVE, Result

LEDGER = pa.schema(
    {
        "run": pa.string(),
        "task": pa.string(),
        "method": pa.string(),
        "lr": pa.float64(),
        "seed": pa.int64(),
        "options": pa.string(),  # JSON
        "schedule": pa.string(),  # "" for a constant lr
        "warmup": pa.float64(),
        "budget": pa.float64(),  # part of the epochs
        "probe": pa.string(),  # the range test that found the lr, "" if none
        "epochs": pa.float64(),
        "status": pa.string(),
        "started": pa.float64(),  # seconds since 1970
        "seconds": pa.float64(),
        "steps": pa.int64(),
        "final": pa.string(),  # JSON of evaluate() at the end
        "state_bytes": pa.int64(),  # of the optimizer
        "peak_bytes": pa.int64(),  # largest resident memory of the process
        "error": pa.string(),
        "versions": pa.string(),  # JSON
        "machine": pa.string(),  # JSON
    }
)

_CREATE = """
create table if not exists runs(
    run text primary key, task text not null, method text not null, lr real not null, seed integer not null,
    options text not null, schedule text not null, warmup real not null, budget real not null, probe text not null,
    epochs real not null,
    status text not null check (status in ('running', 'done', 'diverged', 'crashed')),
    started real not null, seconds real, steps integer, final text, state_bytes integer, peak_bytes integer, error text,
    versions text not null, machine text not null
)"""


class Store:
    """The results in `folder`; reading is possible at any time, also while a study runs."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._ledger: sqlite3.Connection | None = None
        try:
            self.study = Study.model_validate_json((self.folder / "study.json").read_bytes())
        except FileNotFoundError:
            raise StudyError(f"{folder} holds no study: study.json is missing") from None
        except OSError as error:
            raise StudyError(f"{folder} holds no study that can be read: {error}") from None
        except ValidationError as error:
            raise StudyError(f"{folder}/study.json cannot be read: {error}") from None

    @classmethod
    def create(cls, folder: Path | str, study: Study, mended: bool = False) -> Self:
        """Open the folder for `study`, new, to resume or to grow; a folder with anything else in it is left untouched.

        `mended`: what is not finished of a task of one's own runs with its code as it is now.
        """
        folder = Path(folder)
        there = cls(folder).study if (folder / "study.json").exists() else None
        if there:
            try:
                study = there.grown(study, mended, cls(folder)._untouched() if mended else ())
            except StudyError as error:
                raise StudyError(f"{folder} holds a different study: {error}; else choose another --out") from None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not there and any(path.name[0] != "." for path in folder.iterdir()):
                raise StudyError(f"{folder} exists and holds no study; choose another --out")
            if study != there:
                replace(folder / "study.json", lambda path: path.write_text(study.model_dump_json(indent=2)))
            (folder / "curves").mkdir(exist_ok=True)
        except OSError as error:
            raise StudyError(f"cannot write a study to {folder} ({error}); choose another --out") from error
        store = cls(folder)
        with store._connect() as ledger:
            ledger.execute("pragma journal_mode = wal")
            ledger.execute(_CREATE)
            for column in LEDGER.names:
                if column not in _columns(ledger):  # of an older version
                    ledger.execute(f"alter table runs add column {column}")
        return store

    def _untouched(self) -> set[str]:
        """Tasks of which no run has finished."""
        touched = set[str]()
        if (self.folder / "ledger.sqlite").exists():
            touched = {row["task"] for row in self.runs().to_pylist() if row["status"] in ("done", "diverged")}
        return {task.name for task in self.study.tasks} - touched

    def grow(self, study: Study) -> None:
        """Let the folder's study be `study`, which asks for all that it asked for and more. Raises StudyError."""
        try:
            replace(self.folder / "study.json", lambda path: path.write_text(study.model_dump_json(indent=2)))
        except OSError as error:
            raise StudyError(f"cannot write to {self.folder} ({error}); its runs are kept") from error
        self.study = study

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only process that adds to this study; half-written curves of a dead one are removed."""
        # An open SQLite transaction is a lock that every platform has and that dies with its process.
        lock = sqlite3.connect(self.folder / ".lock", timeout=1, isolation_level=None)
        try:
            lock.execute("begin exclusive")
        except sqlite3.OperationalError as error:
            lock.close()
            if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
                raise StudyError(f"{self.folder} is being written by another process; wait for it or stop it") from None
            raise self._refused(error) from error
        try:
            for leftover in (self.folder / "curves").glob(".*"):
                leftover.unlink(missing_ok=True)
            with self._connect() as self._ledger:
                yield
        finally:
            self._ledger = None
            lock.close()

    def start(self, run: Run) -> None:
        """Enter the run into the ledger as running, replacing an earlier attempt."""
        mended = next((task.mended for task in self.study.tasks if task.name == run.task), "")
        row = {
            "run": run.id,
            "task": run.task,
            "method": run.method,
            "lr": run.lr,
            "seed": run.seed,
            "options": json.dumps(run.options, sort_keys=True),
            **{field: getattr(run, field) for field in ("schedule", "warmup", "budget", "probe")},
            "epochs": run.epochs,
            "status": "running",
            "started": time.time(),
            "versions": json.dumps(
                {
                    "untuned": run.version,
                    "torch": torch.__version__,
                    "numpy": np.__version__,
                    "python": platform.python_version(),
                    **({f"mended {run.task}": mended} if mended else {}),
                }
            ),
            "machine": json.dumps({"system": platform.platform(), "processor": processor(), "cores": os.cpu_count()}),
        }
        with self._writable as ledger:
            ledger.execute(
                f"insert or replace into runs({', '.join(row)}) values ({', '.join('?' * len(row))})",
                tuple(row.values()),
            )

    def finish(self, run: Run, result: Result) -> None:
        """Enter the end of the run; its curve is on disk already."""
        final = None if result.final is None else json.dumps(result.final)
        with self._writable as ledger:
            ledger.execute(
                "update runs set status = ?, seconds = ?, steps = ?, final = ?, state_bytes = ?, peak_bytes = ?, "
                "error = ? where run = ?",
                (
                    *(result.status, result.seconds, result.steps, final, result.state_bytes, result.peak_bytes),
                    *(result.error, run.id),
                ),
            )

    def write_curve(self, run: Run, curve: pa.Table) -> None:
        """Write the curve in one piece."""
        replace(self._curve(run.id), lambda path: pq.write_table(curve, path))

    def statuses(self) -> dict[str, str]:
        """Status by run."""
        with self._connect() as ledger:
            return dict(ledger.execute("select run, status from runs"))

    def runs(self) -> pa.Table:
        """The ledger, one row a run; `final`, `options`, `versions` and `machine` are JSON."""
        with self._connect() as ledger:
            there = _columns(ledger)
            named = ", ".join(name if name in there else f"null as {name}" for name in LEDGER.names)
            rows = ledger.execute(f"select {named} from runs order by started, run").fetchall()
        columns = zip(*rows, strict=True) if rows else [()] * len(LEDGER)
        return pa.table([list(column) for column in columns], schema=LEDGER)

    def curve(self, run: str) -> pa.Table:
        """The curve of one run; empty if it has none, or none that can be read."""
        try:
            return pq.read_table(self._curve(run), schema=CURVE)
        except (OSError, pa.ArrowException):
            return CURVE.empty_table()

    def curves(self) -> pa.Table:
        """The curves of all done and diverged runs, below one another, each row led by the run it belongs to."""
        keys = ("run", "task", "method", "options", "schedule", "warmup", "budget", "probe", "lr", "seed")
        schema = pa.schema([*(LEDGER.field(key) for key in keys), *CURVE])
        tables = [schema.empty_table()]
        for run in self.runs().to_pylist():
            if run["status"] in ("done", "diverged"):
                curve = self.curve(run["run"])
                repeated = [pa.repeat(run[key], curve.num_rows) for key in keys]
                tables.append(pa.table([*repeated, *curve.columns], schema=schema))
        return pa.concat_tables(tables)

    def _curve(self, run: str) -> Path:
        return self.folder / "curves" / f"{run}.parquet"

    @property
    def _writable(self) -> sqlite3.Connection:
        if self._ledger is None:
            raise RuntimeError("Store: runs are entered inside `with store.writing()` only")
        return self._ledger

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.folder / "ledger.sqlite", timeout=30)) as ledger:
                # What is committed survives the death of the process, as it is in the hands of the operating system.
                ledger.execute("pragma synchronous = normal")
                yield ledger
        except sqlite3.Error as error:
            raise self._refused(error) from error

    def _refused(self, error: sqlite3.Error) -> StudyError:
        kept = "runs that have finished are kept, and the same command goes on from there"
        return StudyError(f"the ledger in {self.folder} cannot be used ({error}); {kept}")


def _columns(ledger: sqlite3.Connection) -> set[str]:
    return {row[1] for row in ledger.execute("pragma table_info(runs)")}


@cache
def processor() -> str:
    """The processor's name, its architecture where the system does not tell."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

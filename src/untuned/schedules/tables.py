"""Logs of gradient norms and schedules as files: columns of numbers in Parquet or CSV, whole or not there at all."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Columns = dict[str, NDArray[np.float64]]


def arrow() -> tuple[Any, Any]:
    """pyarrow and its Parquet module; ModuleNotFoundError with what to install if it is missing."""
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            'Parquet files need pyarrow; run: pip install "untuned[study]".', name="pyarrow"
        ) from None
    return pyarrow, parquet


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its place and move it there: who reads sees the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    write(temporary)
    temporary.replace(path)


def write(path: Path, columns: Mapping[str, Sequence[float] | NDArray[Any]]) -> None:
    """Columns as a CSV file if the name ends so, else as Parquet."""
    if path.suffix == ".csv":
        rows = zip(*(np.asarray(column).tolist() for column in columns.values()), strict=True)
        lines = [",".join(columns), *(",".join(map(repr, row)) for row in rows)]
        replace(path, lambda to: to.write_text("\n".join(lines) + "\n", encoding="utf-8"))
    else:
        pyarrow, parquet = arrow()
        table = pyarrow.table({name: np.asarray(column) for name, column in columns.items()})
        replace(path, lambda to: parquet.write_table(table, to))


def read(path: Path | str) -> Columns:
    """The columns of a CSV file, a Parquet file, or a folder of Parquet files in the order of their names.

    Raises ValueError or FileNotFoundError in one sentence; also if there is a column `step` that does not count 1, 2,
    3, ..., as that of two logs in one file.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: it should be a log of gradient norms, or a schedule.")
    if path.suffix.lower() == ".csv" and path.is_file():
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                header, *rows = list(filter(None, csv.reader(file))) or [[]]
            values = np.array([[float(cell) for cell in row] for row in rows], dtype=np.float64)
            columns = dict(zip(header, values.reshape(len(rows), len(header)).T, strict=True))
        except (ValueError, csv.Error) as error:
            why = " ".join(str(error).split())
            raise ValueError(f"{path} is not a table of numbers below a line of names ({why}).") from None
        if len(columns) < len(header):
            raise ValueError(f"{path} has two columns of one name; it has {', '.join(header)}.")
    else:
        columns = of_parquet(path, sorted(path.glob("*.parquet")) if path.is_dir() else [path])
    steps = columns.get("step", np.arange(0))
    if (wrong := steps != np.arange(1, len(steps) + 1)).any():
        at = int(np.argmax(wrong))
        raise ValueError(f"{path}: its steps must be 1, 2, 3, ...; row {at + 1} has step {steps[at]:g}.")
    return columns


def of_parquet(path: Path, files: Sequence[Path]) -> Columns:
    """The columns of Parquet files, one below the other; ValueError, which names `path`, if that cannot be."""
    pyarrow, parquet = arrow()
    try:
        table = pyarrow.concat_tables([parquet.read_table(file) for file in files] or [pyarrow.table({})])
        return {name: table[name].to_numpy().astype(np.float64) for name in table.column_names}
    except (pyarrow.ArrowException, ValueError, TypeError) as error:
        raise ValueError(f"{path} is not Parquet of one kind, with numbers ({' '.join(str(error).split())}).") from None


def column(path: Path | str, columns: Columns, name: str) -> NDArray[np.float64]:
    """One column, or ValueError with those that are there."""
    if name not in columns:
        raise ValueError(f"{path} has no column {name!r}; it has {', '.join(columns) or 'none'}.")
    return columns[name]

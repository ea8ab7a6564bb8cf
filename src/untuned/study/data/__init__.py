"""The data of the built-in tasks: small sets ship inside the package, larger ones and weights are fetched once by name.

`manifest.json` records for every shipped set where it came from, the hash of its source and of its arrays, and the
licence; `scripts/prepare_data.py` rebuilds all of it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .download import FULL_SETS, FetchError, fetch, path

__all__ = ["Dataset", "FetchError", "available", "fetch", "load", "manifest"]

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Dataset:
    """One row of `available()`."""

    name: str
    n: int
    """Samples; characters or words of a text; weights of a model."""
    d: int
    """Features of a sample; 1 for a text and a model."""
    classes: int
    """Classes; different characters or words of a text; 0 for translations and models."""
    licence: str
    source: str
    """Package and version the data was taken from."""
    status: str
    """One of: shipped, fetched, or not fetched and the size of the download."""


@cache
def manifest() -> Mapping[str, dict[str, Any]]:
    """What `manifest.json` records of every shipped set, by name: n, d, class names, source, arrays, licence."""
    entries = json.loads((_HERE / "manifest.json").read_text("utf-8"))
    return {entry["name"]: entry for entry in entries}


def available() -> list[Dataset]:
    """Every set by name: first the shipped ones, then those that `fetch` gets."""
    shipped = [
        Dataset(e["name"], e["n"], e["d"], len(e["classes"]), e["licence"], e["source"]["package"], "shipped")
        for e in manifest().values()
    ]
    fetchable = [
        Dataset(
            name=name,
            n=full.n,
            d=full.d,
            classes=full.classes,
            licence=full.licence,
            source=" or ".join(source.package for source in full.sources),
            status="fetched" if path(name).exists() else f"not fetched ({full.megabytes} MB)",
        )
        for name, full in FULL_SETS.items()
    ]
    return shipped + fetchable


def load(name: str) -> dict[str, np.ndarray]:
    """Arrays of one set.

    Tables have `x` (n, d) and `y` (n,) with class numbers from 0; images have `x_train`, `y_train`, `x_test`, `y_test`
    as uint8, (n, 28, 28) or (n, 32, 32, 3); "sotu" has `text`, its ASCII codes. Nothing is scaled.

    Words are numbered. "help-pairs" has `german_train`, `english_train`, `german_val` and `english_val` (n, 18), into
    `german_words` and `english_words`; "ptb" has `train`, `valid` and `test`, into `words`; "help-modules" has
    `tokens_train` and `tokens_val` (n, 16), into `vocabulary`, which holds numbers into MiniLM's, and `y_train` and
    `y_val`. "adult-slice" has `names` (n, 8), into the manifest's `vocabularies`, `numbers` (n, 6) and `y`, each with
    `_train` or `_val`. "minilm" has float32 weights, named as in `tasks.finetuning.Encoder`.

    Raises:
        ValueError: there is no such set.
        FileNotFoundError: the set has to be fetched first; the message names the command.
    """
    if name in manifest():
        file = _HERE / f"{name}.npz"
    elif name in FULL_SETS:
        file = path(name)
        if not file.exists():
            raise FileNotFoundError(
                f"{name} is not on this machine ({file} does not exist): "
                f"run `untuned data fetch {name}` ({FULL_SETS[name].megabytes} MB)"
            )
    else:
        raise ValueError(f"no data set {name!r}; there are {', '.join([*manifest(), *FULL_SETS])}")
    with np.load(file) as arrays:
        return dict(arrays)

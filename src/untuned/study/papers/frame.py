"""What the study of a paper is made of: jobs that compute rows, and what the rows say about the paper's claims.

A study is a module of this package with a `STUDY`. Its jobs are functions of plain arguments, so that they can run in
any process and are run once: `run` makes those whose rows are not on disk yet. Everything that people see (claims,
tables, panels) follows from the rows alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from matplotlib.axes import Axes

from untuned.study.verdicts import ClaimVerdict

Scalar = str | int | float | bool | None
Row = dict[str, Scalar]
Rows = Mapping[str, Sequence[Row]]  # by the name of the function; a row holds the arguments of its job, too


@dataclass(frozen=True)
class Job:
    """One computation: `function(**arguments)` returns its rows. Both together are its identity.

    `function` stands at the top of its module, takes keywords only and gives the same rows for the same arguments.
    """

    function: Callable[..., Sequence[Row]]
    arguments: Mapping[str, Scalar]


OURS = "not a claim of the paper"  # begins the `published` of a comparison or control that a study adds


@dataclass(frozen=True)
class Claim:
    """A claim of the paper beside what was found here, or one that the study adds: its `published` begins with OURS."""

    says: str  # one sentence
    published: str  # the paper's number, or how much of the paper was read
    here: str  # the number found here, with n and interval
    verdict: ClaimVerdict

    @property
    def ours(self) -> bool:
        return self.published.startswith(OURS)


@dataclass(frozen=True)
class Table:
    """Numbers behind the claims; all cells are texts."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


Panel = tuple[str, Callable[[Axes], None]]  # title and drawing


def _no_tables(_: Rows) -> Sequence[Table]:
    return ()


@dataclass(frozen=True)
class PaperStudy:
    """A study of one paper.

    `jobs(seeds, rows)` is asked again whenever all it asked for has ended, until it asks for nothing new: a later round
    may depend on the rows of an earlier one. `version` is part of a job's identity; raise it when what a function
    computes has changed, and earlier rows are computed anew.
    """

    name: str  # as in `untuned study NAME`
    title: str
    source: str  # authors, title, venue, arXiv number; what of it was read
    about: str  # paragraphs: the setting, and how it differs from the paper's
    jobs: Callable[[int, Rows], Sequence[Job]]
    claims: Callable[[Rows], Sequence[Claim]]
    panels: Callable[[Rows], Sequence[Panel]]
    tables: Callable[[Rows], Sequence[Table]] = _no_tables
    seeds: int = 5
    version: int = 1
    needs: Mapping[str, str] = field(default_factory=dict[str, str])  # module: extra of this package that brings it
    data: Sequence[str] = ()  # tasks whose data has to be there


def told(interval: tuple[float, float] | None, low: float = -math.inf, high: float = math.inf) -> ClaimVerdict:
    """The verdict on a claim that a number lies between `low` and `high`, by the interval in which it was found."""
    if interval is None or math.isnan(interval[0]) or math.isnan(interval[1]):
        return "cannot be told at this scale"
    if low <= interval[0] and interval[1] <= high:
        return "holds here"
    return "does not hold here" if interval[1] < low or high < interval[0] else "cannot be told at this scale"


def all_told(verdicts: Sequence[ClaimVerdict]) -> ClaimVerdict:
    """The verdict on a claim with several parts: it holds if all do, and does not if one does not."""
    for verdict in ("does not hold here", "cannot be told at this scale"):
        if verdict in verdicts:
            return verdict
    return "holds here"

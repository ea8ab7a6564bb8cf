"""A check is a function with a title; what it raises says what a user would suffer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any


class Harm(Exception):  # noqa: N818, not an error of the program
    """The check failed; the message is one sentence about what a user of the optimizer would suffer."""


class DoesNotApply(Exception):  # noqa: N818
    """The optimizer does not offer what the check is about; the message says what."""


@dataclasses.dataclass(frozen=True)
class Check:
    """name: of the function. theme: of its file. title: first line of its docstring. harm: what a user suffers if it
    raises anything but `Harm`. needs: capabilities without which it does not apply. processes: how many it runs in."""

    name: str
    theme: str
    title: str
    run: Callable[..., str | None]
    harm: str
    needs: Sequence[str]
    processes: int


CHECKS: dict[str, Check] = {}


def check(
    harm: str, *needs: str, processes: int = 1
) -> Callable[[Callable[..., str | None]], Callable[..., str | None]]:
    """Register a function of a `Target`, and of a `World` if it runs in several processes; it may return a remark."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        title = (function.__doc__ or "").splitlines()[0]
        theme = function.__module__.rpartition(".")[2]
        CHECKS[function.__name__] = Check(function.__name__, theme, title, function, harm, needs, processes)
        return function

    return register

"""How a method looks in every chart: one colour per method everywhere, and a marker and a dash that tell it in grey."""

import re
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import untuned

INK = "#010203"  # text and axes: black in a PNG, `currentColor` in a page
_COLORS = {  # those of Okabe and Ito and seven more, by the method that has one to itself
    "adam": "#D55E00",
    "momo_adam": "#0072B2",
    "prodigy": "#009E73",
    "adamw": "#E69F00",
    "schedule_free_adamw": "#CC79A7",
    "momo": "#56B4E9",
    "mechanic_adamw": INK,
    "sgd": "#8C8C8C",
    "dadapt_adam": "#7A5FD0",
    "dog": "#A0522D",
    "prodigy_schedule_free": "#5E9C1E",
    "madgrad": "#C2185B",
    "schedule_free_sgd": "#00838F",
    "range-test": "#5B2A86",
    "relative_muon": "#B71C1C",
}
_MARKERS = "osD^vPXph*<>"
_DASHES: tuple[Any, ...] = (
    "-",
    (0, (6, 2)),
    (0, (1, 1.2)),
    (0, (5, 1.5, 1, 1.5)),
    (0, (9, 3)),
    (0, (3, 1, 1, 1, 1, 1)),
)


@dataclass(frozen=True)
class Style:
    """How one method looks in every chart: colour, marker and dash all differ, so that grey is enough."""

    key: str  # marks what belongs to the method in a page, so that the page can dim the others
    label: str
    color: str
    marker: str
    dash: Any  # a matplotlib line style


def styles(labels: Mapping[str, str]) -> dict[str, Style]:
    """A style per method. `labels`: what people read, by method as in `adam(eps=1e-6)`.

    The colour of a registered method depends on its name alone, so that it is the same in every report; of several
    with one name that with the shortest label has it. The others take colours that are free, by position. No two
    methods of a report have both marker and dash in common.
    """
    plain: dict[str, str] = {}  # registered name: the method that has its colour
    for method in sorted(labels, key=lambda method: (len(method), method)):
        name = re.match(r"\w*", method).group()  # pyright: ignore[reportOptionalMemberAccess]
        if method in _COLORS or (name in _registered() and re.fullmatch(r"\w+(\(.*\))?", method)):
            plain.setdefault(method if method in _COLORS else name, method)
    palette = list(_COLORS.values())
    colors: dict[str, str] = {}
    wanted: dict[str, int] = {}  # position among the pairs of marker and dash
    for name, method in plain.items():
        lot = zlib.crc32(name.encode())
        colors[method] = _COLORS.get(name) or palette[lot % len(palette)]
        wanted[method] = list(_COLORS).index(name) if name in _COLORS else lot
    used = Counter(colors.values())
    for i, method in enumerate(labels):
        if method not in colors:
            colors[method] = min(palette[::-1] if plain else palette, key=lambda color: used[color])
            used[colors[method]] += 1
            wanted[method] = i
    pairs = [(_MARKERS[i % 12], _DASHES[(i + i // 12) % 6]) for i in range(72)]
    looks: dict[str, tuple[str, Any]] = {}
    for method in sorted(labels, key=lambda method: (method not in plain.values(), list(labels).index(method))):
        free = [pair for pair in pairs if pair not in looks.values()] or pairs
        first = pairs[wanted[method] % 72]
        looks[method] = first if first in free else free[wanted[method] % len(free)]
    return {m: Style(f"m{i}", label, colors[m], *looks[m]) for i, (m, label) in enumerate(labels.items())}


@cache
def _registered() -> frozenset[str]:
    return frozenset(untuned.list())

"""The rooms of the library: no circle of imports, rooms that import downward only, and files that can be read."""

import ast
import itertools
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "untuned"
ENGINE = ("parts", "recipe", "memory", "kernels", "run", "optimizer")  # each may import itself and those before it
NEEDED = ("directions", "step_sizes", "iterates")
MATHEMATICS = (*NEEDED, "weight_decay", "weight_decays", "gradients", "around")  # may import `parts` and each other
STUDIED = ("systems", "diagnostics")  # may import optimizers and wrappers, not each other or their studies
LONGEST = 350

Graph = dict[str, dict[str, int]]  # module -> what it imports, and in which line first


def modules(package: Path) -> dict[str, Path]:
    """Every module of a package by its dotted name; a package is named by its folder."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _named(node: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    """The dotted names that one statement or call imports, the relative ones resolved."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            home = module.split(".") if is_package else module.split(".")[:-1]
            base = ".".join([*home[: len(home) - node.level + 1], *([node.module] if node.module else [])])
        yield from (f"{base}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if function in ("import_module", "__import__") and isinstance(node.args[0].value, str):
            yield node.args[0].value


def imports(package: Path) -> Graph:
    """What each module imports from its own package: at the top, for types, in functions and by `import_module`.

    `from a.b import c` is an import of the module a.b.c if there is one, else of a.b.
    """
    known = modules(package)
    graph: Graph = {name: {} for name in known}
    for module, path in known.items():
        for node in ast.walk(ast.parse(path.read_text())):
            for name in _named(node, module, path.name == "__init__.py"):
                while name not in known and "." in name:
                    name = name.rpartition(".")[0]
                if name in known:
                    graph[module].setdefault(name, node.lineno)
    return graph


def _way(graph: Graph, start: str, end: str, within: set[str]) -> list[str]:
    """A shortest way of one import or more from one module to another, both named; empty if there is none."""
    ways, seen = deque([[start]]), set[str]()
    while ways:
        way = ways.popleft()
        for name in graph[way[-1]]:
            if name == end:
                return [*way, name]
            if name in within and name not in seen:
                seen.add(name)
                ways.append([*way, name])
    return []


def cycles(package: Path) -> list[str]:
    """A shortest circle for each import that lies on one: 'a -> b (line 3) -> a (line 1)'. Empty if there is none."""
    graph, found = imports(package), dict[frozenset[str], str]()
    for start, targets in graph.items():
        for target in targets:
            way = [start, start] if target == start else [start, *_way(graph, target, start, set(graph))]
            if len(way) > 1 and frozenset(way) not in found:
                steps = itertools.pairwise(way)
                found[frozenset(way)] = way[0] + "".join(f" -> {b} (line {graph[a][b]})" for a, b in steps)
    return sorted(found.values(), key=lambda text: (text.count("->"), text))


def _room(name: str) -> str:
    """The part of a dotted name below the package: 'a.b.c' -> 'b'; empty for the package itself."""
    return name.split(".")[1] if "." in name else ""


def upward(package: Path) -> list[str]:
    """Imports that a room may not have, as 'a (line 3) may not import b'.

    A module directly in the package that imports nothing from it may be imported by the engine.
    """
    graph, found = imports(package), list[str]()
    files = {_room(name) for name, path in modules(package).items() if path.parent == package and not graph[name]}
    leaves = files - {*ENGINE, *MATHEMATICS}
    for name, targets in graph.items():
        room = _room(name)
        if room in ENGINE:
            allowed = {*ENGINE[: ENGINE.index(room) + 1], *leaves}
        elif room in MATHEMATICS:
            allowed = {"parts", *MATHEMATICS}
        elif room == "optimizers":
            allowed = {"parts", "optimizer", "optimizers", *MATHEMATICS}
        elif room == "wrappers":
            allowed = {"wrappers"}
        elif room in STUDIED:
            allowed = {room, "optimizers", "optimizer", "wrappers", *leaves}
        else:
            continue
        found += [
            f"{name} (line {line}) may not import {to}" for to, line in targets.items() if _room(to) not in allowed
        ]
    return found


def too_long(source: Path) -> list[str]:
    lines = {path: len(path.read_text().splitlines()) for path in sorted(source.rglob("*.py"))}
    return [f"{path.relative_to(source)} has {n} lines" for path, n in lines.items() if n > LONGEST]


# ---------------------------------------------------------------- the library


def test_no_modules_import_each_other() -> None:
    """Also not for types: who needs the type of what stands above it names a smaller thing."""
    found = cycles(PACKAGE)
    assert not found, f"{len(found)} circles of imports:\n" + "\n".join(found)


def test_the_engine_is_cut_into_its_rooms() -> None:
    """Else the rule below would hold of rooms that do not exist."""
    rooms = {_room(name) for name in modules(PACKAGE)}
    assert not {*ENGINE, *NEEDED, "optimizers"} - rooms
    assert {"weight_decay", "weight_decays"} & rooms
    assert "core" not in rooms


def test_rooms_import_downward_only() -> None:
    found = upward(PACKAGE)
    assert not found, f"{len(found)} imports from a room that is not below:\n" + "\n".join(found)


def test_no_file_is_too_long_to_be_read() -> None:
    assert not too_long(PACKAGE.parent)


# ---------------------------------------------------------------- the checker itself


def made(folder: Path, **files: str) -> Path:
    """A package `shop` of these files; `a__b` is the file a/b.py."""
    package = folder / "shop"
    for name, text in {"__init__": "", **files}.items():
        path = package / (name.replace("__", "/") if not name.endswith("__init__") else name.replace("___", "/__"))
        path = path.with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return package


WAYS_TO_IMPORT_B = [  # and the line that does it
    ("import shop.b", 1),
    ("from shop import b", 1),
    ("from shop.b import thing", 1),
    ("from shop.b import *", 1),
    ("from . import b", 1),
    ("from .b import thing", 1),
    ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from shop.b import thing", 3),
    ("def late():\n    from shop.b import thing\n    return thing", 2),
    ("import importlib\nb = importlib.import_module('shop.b')", 2),
    ("from importlib import import_module\nb = import_module('shop.b')", 2),
]


@pytest.mark.parametrize(("statement", "line"), WAYS_TO_IMPORT_B)
def test_a_circle_of_two_is_refused(tmp_path: Path, statement: str, line: int) -> None:
    package = made(tmp_path, a=statement, b="from shop.a import other")
    assert cycles(package) == [f"shop.a -> shop.b (line {line}) -> shop.a (line 1)"]
    (package / "b.py").write_text("import math")
    assert cycles(package) == []


def test_longer_circles_and_those_through_a_package_are_refused(tmp_path: Path) -> None:
    package = made(tmp_path / "one", a="import shop.b", b="import shop.c", c="\nfrom shop import a", d="import shop.a")
    assert cycles(package) == ["shop.a -> shop.b (line 1) -> shop.c (line 1) -> shop.a (line 2)"]
    package = made(tmp_path / "two", __init__="from shop.a import thing", a="import shop")
    assert cycles(package) == ["shop -> shop.a (line 1) -> shop (line 1)"]
    package = made(
        tmp_path / "three", room___init__="from shop.room.a import thing", room__a="from ..room import thing"
    )
    assert cycles(package) == ["shop.room -> shop.room.a (line 1) -> shop.room (line 1)"]
    package = made(tmp_path / "four", a="import shop.a")
    assert cycles(package) == ["shop.a -> shop.a (line 1)"]


def test_two_circles_that_share_a_module_are_both_told(tmp_path: Path) -> None:
    package = made(tmp_path, a="import shop.b\nimport shop.c", b="import shop.a", c="import shop.a")
    assert cycles(package) == [
        "shop.a -> shop.b (line 1) -> shop.a (line 1)",
        "shop.a -> shop.c (line 2) -> shop.a (line 1)",
    ]


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("parts__base", "recipe"),
        ("recipe__stages", "memory.slots"),
        ("memory__slots", "kernels"),
        ("kernels__cpu__native", "run.step"),
        ("run__step", "optimizer"),
        ("optimizer__groups", "optimizers"),
        ("run__step", "directions.adam"),
        ("kernels__sweep", "study"),
        ("kernels__sweep", "registry"),
        ("parts__base", "testing"),
        ("memory__slots", "integrations"),
        ("directions__adam", "recipe"),
        ("directions__adam", "optimizer"),
        ("around__scale", "disk_cache"),
        ("weight_decay", "optimizers"),
        ("optimizers__compose", "run.step"),
        ("optimizers__compose", "registry"),
        ("wrappers__around", "optimizer"),
        ("systems__server", "study"),
        ("diagnostics__noise", "systems"),
    ],
)
def test_an_import_upward_is_refused(tmp_path: Path, module: str, target: str) -> None:
    files = {f"{room}___init__": "" for room in ("parts", "recipe", "kernels", "optimizer", "optimizers")}
    files |= {f"{room}___init__": "" for room in ("study", "testing", "integrations", "systems")}
    files |= {"memory__slots": "", "run__step": "", "directions__adam": "", "disk_cache": "import os"}
    package = made(tmp_path, **files, registry="import shop.optimizers")
    path = package / (module.replace("__", "/") + ".py")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"\nfrom shop.{target} import thing")
    assert upward(package) == [f"shop.{module.replace('__', '.')} (line 2) may not import shop.{target}"]


def test_imports_downward_are_allowed(tmp_path: Path) -> None:
    below = {room: f"from shop.{lower}.one import it\n" for lower, room in itertools.pairwise(ENGINE)}
    package = made(
        tmp_path,
        **{f"{room}__one": below.get(room, "") + "from shop.disk_cache import folder" for room in ENGINE},
        disk_cache="import os",
        iterates__plain="from shop.parts import Iterate\nfrom shop.directions.adam import it",
        directions__adam="from shop.parts import Direction",
        optimizers__adam="from shop.optimizer import Optimizer\nfrom shop import directions, parts",
        registry="from shop.optimizers.adam import Adam",
        parts___init__="",
        optimizer___init__="",
        directions___init__="",
    )
    assert upward(package) == []
    assert cycles(package) == []


def test_a_long_file_is_refused(tmp_path: Path) -> None:
    package = made(tmp_path, a="\n" * LONGEST, b="\n" * (LONGEST + 1))
    assert too_long(package) == [f"b.py has {LONGEST + 1} lines"]

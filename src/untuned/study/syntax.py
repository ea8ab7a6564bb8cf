"""Pieces of the language of methods: names and values in a piece of syntax, and the error of everything refused."""

import ast
import json
import re
from collections.abc import Callable
from typing import Any


class StudyError(ValueError):
    """A request that cannot be carried out; the message is meant for the person who typed it."""


def outside_quotes(text: str, change: Callable[[str], str]) -> str:
    parts = re.split(r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')""", text)
    return "".join(part if i % 2 else change(part) for i, part in enumerate(parts))


def text_of(node: ast.AST) -> str:
    return outside_quotes(ast.unparse(node), lambda part: part.replace(" - ", "-").replace("._colon_.", ":"))


def literal(name: str, option: str, node: ast.expr) -> Any:
    try:
        value = ast.literal_eval(node)
        json.dumps(value, allow_nan=False)
        return tuples(value)
    except (ValueError, TypeError):
        raise StudyError(
            f"methods: {name}: option {option} must be a number, string, boolean, None or tuple of those, "
            f"not {text_of(node)}"
        ) from None


def tuples(value: Any) -> Any:
    """Lists become tuples, as they are in a study."""
    return tuple(map(tuples, value)) if isinstance(value, list | tuple) else value


def name_of(node: ast.expr) -> str:
    """`linear` of linear, "linear" and linear(power=2)."""
    node = node.func if isinstance(node, ast.Call) else node
    return str(node.value) if isinstance(node, ast.Constant) else text_of(node)

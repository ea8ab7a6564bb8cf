"""Functions from the sources of kernels, and what Numba compiled of them on disk, a file for each."""

from __future__ import annotations

import functools
import hashlib
import linecache
import pickle
import sys
import types
from pathlib import Path
from typing import Any

from untuned import disk_cache

_POINTERS = Path(__file__).with_name("pointers.py").read_text()  # inlined into every kernel, so part of its identity
FOLDER = "compiled"


@functools.cache
def compile_source(source: str) -> Any:
    """The function `sweep` of a source text."""
    name = "untuned_kernel_" + hashlib.sha256((source + _POINTERS).encode()).hexdigest()[:24]
    module = sys.modules[name] = types.ModuleType(name)  # Numba looks its functions up by the name of their module
    linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name  # where Triton reads sources
    exec(compile(source, name, "exec"), module.__dict__)
    if hasattr(module.sweep, "enable_caching"):
        module.sweep._cache = _Cache(name)  # Numba's own unpickles whatever its files hold
    return module.sweep


class _Cache:
    """What Numba's dispatcher asks for compiled code, and gives it to, by the types of arguments."""

    def __init__(self, name: str) -> None:
        self.name = name

    def _file(self, signature: Any, codegen: Any) -> str:
        from numba import __version__

        key = repr((signature, codegen.magic_tuple(), __version__, sys.version))  # magic_tuple: the processor
        return f"{self.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"

    def load_overload(self, signature: Any, context: Any) -> Any:
        from numba.core.compiler import CompileResult

        context.refresh()
        content = disk_cache.read(FOLDER, self._file(signature, context.codegen()))
        return CompileResult._rebuild(context, *pickle.loads(content)) if content else None

    def save_overload(self, signature: Any, result: Any) -> None:
        from numba.core.serialize import dumps

        disk_cache.write(FOLDER, self._file(signature, result.codegen), dumps(result._reduce()))
